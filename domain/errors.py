"""Error hierarchy of the product, and the registry from which everything else about an error is derived.

SettleError                     has a stable `code`; knows nothing of HTTP or Temporal
├── Refusal                     the request is refused; nothing is lost, the caller can correct it
│   ├── InvalidInput            a value is malformed; names the field
│   ├── AttemptNotFound         no such attempt, or one of another account
│   ├── HashInUse               another attempt of the same payer holds that transaction hash
│   ├── TooManyReplacements     the hash of one attempt was replaced too often
│   ├── PayerRefused            payments from that address are not accepted: treasury, zero address or token
│   ├── WrongChain              the attempt belongs to another chain than this process settles
│   ├── AuthorizationRefused    the signed authorization does not pay the attempt, or cannot be executed
│   ├── AuthorizationInUse      the signed authorization pays another attempt, or was executed or cancelled
│   ├── NotSignedIn             authentication is missing, or the session has ended
│   ├── KeyRefused              the service key is unknown, revoked or expired
│   ├── SignInRefused           the signature is not the wallet's, or its challenge is used up or expired
│   ├── NotAnOperator           authenticated, but not an operator
│   ├── IdempotencyKeyReused    the key was used with a different request
│   ├── KeyNotFound             no such service key, or one of another account
│   ├── KeyNotInForce           the service key is revoked, expired or replaced already
│   ├── MethodNotFound          no such payment method
│   ├── MethodDisabled          the payment method takes no new charge or address
│   ├── ChargeNotFound          no such charge, or one of another account
│   ├── RequestOfKeyDiffers     the idempotency key was used for a charge on other terms
│   ├── FindingNotFound         no such finding, or an abbreviated id that matches several
│   ├── AccountNotFound         no such billing account
│   ├── GrantNotFound           no such permission to bill another account
│   ├── ReceiptNotFound         no receipt with that id, or of that request
│   ├── WebhookEndpointNotFound     no such endpoint of webhooks, or one of another account
│   ├── WebhookDeliveryNotFound     the endpoint has no such delivery
│   ├── WebhookEndpointStopped      nothing is sent to the endpoint any more: its receiver answered 410
│   ├── TooManyWebhookEndpoints     the account has as many endpoints as it may have
│   ├── RemedyRefused           the remedy does not apply to this finding, or the finding is already resolved
│   └── RateLimited             too many requests; says when to retry
├── Unavailable                 a dependency does not answer now; the same call may succeed later
│   ├── ChainUnavailable        no chain node gave a usable answer (`chain/` has finer ones)
│   │   └── PreconditionNotMet  what must be true of chain and token before money is credited is not confirmed
│   ├── DatabaseUnavailable     PostgreSQL cannot be reached
│   │   └── DatabaseBusy        PostgreSQL answers, but a lock was held too long
│   ├── TemporalUnavailable     the Temporal service cannot be reached
│   │   ├── TemporalBusy        Temporal answers that it is overloaded
│   │   └── TemporalRefused     Temporal has no such namespace, or refuses this process's credentials
│   ├── AddressBudgetExhausted  so many addresses wait unpaid that a wallet would not find another one's payment
│   ├── PriceUnavailable        there is no price of a token that is not a dollar
│   ├── ProviderUnavailable     an AI provider does not say what it has on record
│   ├── EventNotDelivered       the event sink did not accept an event
│   └── ApiNotReady             the HTTP interface is not reachable, or not ready
├── TransferAlreadySettled      that on-chain transfer has paid another attempt
└── OperatorError               only an operator can fix it
    ├── ConfigurationError      a setting is missing or invalid
    ├── StartupCheckFailed      schema, system tenant or rights are not what the code needs
    ├── WorkerOfAnotherChain    a worker was given work of another chain
    ├── WatcherBehind           the chain has not been followed as far as the request asks about
    ├── TemporalRequestInvalid  Temporal will never accept this request: an older server, or a fault of ours
    ├── BookkeepingError        the ledger contradicts the request
    ├── BooksDoNotBalance       an invariant of the ledger is violated
    ├── HoldsNotResolved        credits are held for calls whose gateway has died, for longer than they should be
    ├── RelayNotWorking         what payers have signed is not sent, or soon will not be
    ├── ClocksApart             host, database and chain clocks differ by more than the rules tolerate
    ├── DemoFailed              a step of the demo did not happen in time
    └── SettlementFailed        a settlement of the bench did not end as expected

A class is the single definition of an error: its `code`, `category` and `title`. The HTTP status and problem document
(`api/http/problems.py`), the conversion to and from Temporal failures (`activities/interceptors.py`) and
`docs/errors.md` are derived from it, also for a new class; a test checks that.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from math import ceil
from types import MappingProxyType
from typing import Any, ClassVar, Final, Self


class Category(StrEnum):
    """Category of an error, from which each interface derives its own representation."""

    INVALID = "invalid"
    """The request is malformed, or contradicts an earlier one."""

    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    """The request is well-formed, and the state of its subject does not allow it."""

    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    """A dependency does not answer now."""

    MISCONFIGURED = "misconfigured"
    """An operator has to change something."""

    BOOKKEEPING = "bookkeeping"
    """The database's content contradicts itself or the request."""

    INTERNAL = "internal"
    """A fault of ours."""


REFUSALS: Final = frozenset(
    {
        Category.INVALID,
        Category.UNAUTHENTICATED,
        Category.FORBIDDEN,
        Category.NOT_FOUND,
        Category.CONFLICT,
        Category.RATE_LIMITED,
    }
)
"""Refusals are final: such a request is never retried automatically, by a Temporal activity neither."""

REPEATABLE: Final = frozenset({Category.RATE_LIMITED, Category.UNAVAILABLE, Category.INTERNAL})
"""The same request may succeed later without a change. What waits for an operator is not retried in a loop."""

_registry: dict[str, type[SettleError]] = {}


class SettleError(Exception):
    """Base class of all errors of the product; `code` is stable and may be shown to callers.

    A subclass with a `code` of its own is registered under it. One without is a refinement of its parent, and leaves
    the process as its parent. `title` describes the code and holds for every occurrence.
    """

    code: str = "INTERNAL"
    category: ClassVar[Category] = Category.INTERNAL
    title: ClassVar[str] = "Internal server error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Register the class. Raises `TypeError` where another class has its code."""
        super().__init_subclass__(**kwargs)
        if "code" in vars(cls):
            other = _registry.setdefault(cls.code, cls)
            if other is not cls and other.__qualname__ != cls.__qualname__:
                raise TypeError(f"code {cls.code} of {cls.__qualname__} is already registered for {other.__qualname__}")

    @property
    def is_refusal(self) -> bool:
        """Whether it is a refusal, which a retry does not change."""
        return self.category in REFUSALS

    @property
    def is_repeatable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.category in REPEATABLE

    def facts(self) -> dict[str, Any]:
        """Its fields besides the message, to restore it in another process. JSON values only."""
        return {}

    @classmethod
    def restored(cls, message: str, facts: Mapping[str, Any] = MappingProxyType({})) -> Self:
        """The error as another process raised it; fields missing in `facts` are derived from the message where
        possible.
        """
        error = cls.__new__(cls)
        SettleError.__init__(error, message)
        error._take(facts)
        return error

    def _take(self, facts: Mapping[str, Any]) -> None:
        """Set the fields of a restored error."""

    @staticmethod
    def from_code(code: str, message: str, facts: Mapping[str, Any] = MappingProxyType({})) -> SettleError | None:
        """The error of that code, of its own class; None for an unknown code."""
        kind = registered().get(code)
        return kind.restored(message, facts) if kind else None


def registered() -> Mapping[str, type[SettleError]]:
    """Every error that leaves a process, by its code, the base first."""
    return MappingProxyType({SettleError.code: SettleError} | _registry)


class Refusal(SettleError):
    """The request is refused; the same request gives the same answer."""

    code = "REFUSED"
    category = Category.CONFLICT
    title = "The request was refused"

    @classmethod
    def of_unknown_code(cls, code: str, message: str) -> Refusal:
        """A refusal with a code that this process does not know; the code is kept."""
        error = cls.restored(message)
        error.code = code
        return error


class InvalidInput(Refusal):
    """A value is malformed. `field` is the caller's name for it."""

    code = "INVALID_INPUT"
    category = Category.INVALID
    title = "A value is malformed or out of bounds"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field

    def facts(self) -> dict[str, Any]:
        """The field name."""
        return {"field": self.field}

    def _take(self, facts: Mapping[str, Any]) -> None:
        self.field = str(facts.get("field") or self.message.partition(": ")[0])


class AttemptNotFound(Refusal):
    """No attempt with that id is visible to the caller."""

    code = "ATTEMPT_NOT_FOUND"
    category = Category.NOT_FOUND
    title = "Payment not found"

    def __init__(self, attempt_id: object) -> None:
        super().__init__(f"payment attempt {attempt_id} not found")


class HashInUse(Refusal):
    """Another attempt of the same payer holds the transaction hash."""

    code = "TX_HASH_IN_USE"
    category = Category.CONFLICT
    title = "The transaction is already submitted for another of your payments"

    def __init__(self, tx_hash: str) -> None:
        super().__init__(f"transaction {tx_hash} is already submitted for another of your payments")


class TooManyReplacements(Refusal):
    """The hash of one attempt was replaced too often."""

    code = "TOO_MANY_REPLACEMENTS"
    category = Category.CONFLICT
    title = "The transaction hash was replaced too often"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the transaction hash of this payment was already replaced {limit} times")


class WrongChain(Refusal):
    """The attempt was made for another chain than the one this process settles."""

    code = "INVALID_CHAIN"
    category = Category.CONFLICT
    title = "The payment belongs to another chain"

    def __init__(self, attempt_chain_id: int, chain_id: int) -> None:
        super().__init__(f"this payment is for chain {attempt_chain_id}; this service settles chain {chain_id}")


class PayerRefused(Refusal):
    """A payment from that address cannot be credited: it is the treasury, the zero address or a token contract."""

    code = "PAYER_REFUSED"
    category = Category.FORBIDDEN
    title = "Payments from this address are not accepted"


class AuthorizationRefused(Refusal):
    """A signed authorization that does not pay the attempt, or that the token would not execute."""

    code = "AUTHORIZATION_REFUSED"
    category = Category.INVALID
    title = "The signed authorization is not accepted"

    def __init__(self, reason: str) -> None:
        super().__init__(f"authorization: {reason}")


class AuthorizationInUse(Refusal):
    """The authorization pays another attempt, or was executed or cancelled before it was shown."""

    code = "AUTHORIZATION_IN_USE"
    category = Category.CONFLICT
    title = "The signed authorization cannot be used for this payment"

    def __init__(self, reason: str) -> None:
        super().__init__(f"authorization: {reason}")


class NotSignedIn(Refusal):
    """Authentication is missing, or the session has ended."""

    code = "UNAUTHENTICATED"
    category = Category.UNAUTHENTICATED
    title = "Authentication required"

    def __init__(self) -> None:
        super().__init__("authentication required: sign in with your wallet")


class KeyRefused(Refusal):
    """The request's service key is unknown, revoked or expired."""

    code = "KEY_REFUSED"
    category = Category.UNAUTHENTICATED
    title = "The service key is not accepted"

    def __init__(self, state: str) -> None:
        super().__init__(f"the service key is {state.removeprefix('key_').replace('_key', '')}: expected one in force")


class SignInRefused(Refusal):
    """The signature is not the wallet's, or its challenge is unknown, expired or already used."""

    code = "SIGN_IN_REFUSED"
    category = Category.UNAUTHENTICATED
    title = "Sign-in failed"


class NotAnOperator(Refusal):
    """The caller is authenticated, but not an operator."""

    code = "FORBIDDEN"
    category = Category.FORBIDDEN
    title = "Operator access required"

    def __init__(self) -> None:
        super().__init__("operator access required")


class IdempotencyKeyReused(Refusal):
    """The idempotency key was used with a different request."""

    code = "IDEMPOTENCY_KEY_REUSED"
    category = Category.INVALID
    title = "The idempotency key was used for another request"

    def __init__(self, key: str) -> None:
        super().__init__(f"Idempotency-Key {key!r:.80} was used for another request: use a new key")


class KeyNotFound(Refusal):
    """No service key with that id is visible to the caller."""

    code = "KEY_NOT_FOUND"
    category = Category.NOT_FOUND
    title = "Key not found"

    def __init__(self, key_id: object) -> None:
        super().__init__(f"key {key_id} not found")


class KeyNotInForce(Refusal):
    """The service key is revoked, expired or replaced already, so that it cannot be rotated."""

    code = "KEY_NOT_IN_FORCE"
    category = Category.CONFLICT
    title = "The key is not in force any more"

    def __init__(self, key_id: object, state: str) -> None:
        super().__init__(f"key {key_id} is {state}: make a new one")


class MethodNotFound(Refusal):
    """No payment method with that id."""

    code = "METHOD_NOT_FOUND"
    category = Category.NOT_FOUND
    title = "Payment method not found"

    def __init__(self, method_id: object) -> None:
        super().__init__(f"payment method {str(method_id)[:80]} not found")


class MethodDisabled(Refusal):
    """The payment method takes no new charge or address; what comes to its addresses is credited all the same."""

    code = "METHOD_DISABLED"
    category = Category.CONFLICT
    title = "The payment method is disabled"

    def __init__(self, method_id: str) -> None:
        super().__init__(f"payment method {method_id} is disabled: choose another one")


class ChargeNotFound(Refusal):
    """No charge with that id is visible to the caller."""

    code = "CHARGE_NOT_FOUND"
    category = Category.NOT_FOUND
    title = "Charge not found"

    def __init__(self, charge_id: object) -> None:
        super().__init__(f"charge {charge_id} not found")


class RequestOfKeyDiffers(Refusal):
    """The idempotency key was used before, and not for a charge on these terms."""

    code = "IDEMPOTENCY_CONFLICT"
    category = Category.CONFLICT
    title = "The idempotency key was used for a charge on other terms"

    def __init__(self, key: str) -> None:
        super().__init__(f"Idempotency-Key {key!r:.80} was used for another request: use a new key")


class FindingNotFound(Refusal):
    """No finding with that id, or an abbreviated id that matches several."""

    code = "FINDING_NOT_FOUND"
    category = Category.NOT_FOUND
    title = "Finding not found"

    def __init__(self, finding_id: object, found: int = 0) -> None:
        super().__init__(f"{found} findings begin with {finding_id}" if found else f"finding {finding_id} not found")


class AccountNotFound(Refusal):
    """No billing account with that id."""

    code = "ACCOUNT_NOT_FOUND"
    category = Category.NOT_FOUND
    title = "Billing account not found"

    def __init__(self, account_id: object) -> None:
        super().__init__(f"billing account {account_id} not found")


class GrantNotFound(Refusal):
    """No permission with that id to bill another account."""

    code = "GRANT_NOT_FOUND"
    category = Category.NOT_FOUND
    title = "Grant not found"

    def __init__(self, grant_id: object) -> None:
        super().__init__(f"grant {grant_id} not found")


class ReceiptNotFound(Refusal):
    """No receipt with that id, and none of a request with it."""

    code = "RECEIPT_NOT_FOUND"
    category = Category.NOT_FOUND
    title = "Receipt not found"

    def __init__(self, given: object) -> None:
        super().__init__(f"receipt {given} not found")


class WebhookEndpointNotFound(Refusal):
    """No endpoint of webhooks with that id is visible to the caller."""

    code = "WEBHOOK_ENDPOINT_NOT_FOUND"
    category = Category.NOT_FOUND
    title = "Webhook endpoint not found"

    def __init__(self, endpoint_id: object) -> None:
        super().__init__(f"webhook endpoint {endpoint_id} not found")


class WebhookDeliveryNotFound(Refusal):
    """The endpoint has no delivery with that id."""

    code = "WEBHOOK_DELIVERY_NOT_FOUND"
    category = Category.NOT_FOUND
    title = "Webhook delivery not found"

    def __init__(self, delivery_id: object) -> None:
        super().__init__(f"webhook delivery {delivery_id} not found")


class WebhookEndpointStopped(Refusal):
    """Nothing is sent to the endpoint any more, because its receiver answered 410."""

    code = "WEBHOOK_ENDPOINT_STOPPED"
    category = Category.CONFLICT
    title = "The webhook endpoint is stopped"

    def __init__(self, endpoint_id: object) -> None:
        super().__init__(f"webhook endpoint {endpoint_id} is stopped, its receiver answered 410: make another one")


class TooManyWebhookEndpoints(Refusal):
    """The account has as many endpoints as it may have."""

    code = "TOO_MANY_WEBHOOK_ENDPOINTS"
    category = Category.CONFLICT
    title = "The account has too many webhook endpoints"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the account has {limit} webhook endpoints, the most that it may have: delete one first")


class RemedyRefused(Refusal):
    """The remedy does not apply to this finding, or the finding is already resolved."""

    code = "REMEDY_REFUSED"
    category = Category.CONFLICT
    title = "The remedy does not apply to this finding, or the finding is already resolved"


class RateLimited(Refusal):
    """Too many requests. `retry_after_seconds` says when to retry."""

    code = "RATE_LIMITED"
    category = Category.RATE_LIMITED
    title = "Too many requests"

    def __init__(self, retry_after_seconds: float, what: str) -> None:
        super().__init__(f"too many {what}; try again in {ceil(max(retry_after_seconds, 1))} s")
        self.retry_after_seconds = ceil(max(retry_after_seconds, 1))

    def facts(self) -> dict[str, Any]:
        """Seconds until the next request is accepted."""
        return {"retryAfterSeconds": self.retry_after_seconds}

    def _take(self, facts: Mapping[str, Any]) -> None:
        self.retry_after_seconds = int(facts.get("retryAfterSeconds", 1))


class Unavailable(SettleError):
    """A dependency does not answer now; the call should be retried."""

    code = "UNAVAILABLE"
    category = Category.UNAVAILABLE
    title = "A required service is unavailable"


class ChainUnavailable(Unavailable):
    """No chain node gave a usable answer."""

    code = "CHAIN_UNAVAILABLE"
    title = "The chain is unavailable"


class PreconditionNotMet(ChainUnavailable):
    """A precondition on chain or token is not confirmed, so nothing is credited.

    `is_broken` means that most nodes contradict it, which only an operator can fix.
    """

    code = "PRECONDITION_NOT_MET"
    title = "Chain and token are not confirmed to be the configured ones"

    def __init__(self, message: str, *, is_broken: bool = False) -> None:
        super().__init__(message)
        self.is_broken = is_broken

    def facts(self) -> dict[str, Any]:
        """Whether most nodes contradict it."""
        return {"isBroken": self.is_broken}

    def _take(self, facts: Mapping[str, Any]) -> None:
        self.is_broken = bool(facts.get("isBroken", False))


class DatabaseUnavailable(Unavailable):
    """PostgreSQL cannot be reached."""

    code = "DATABASE_UNAVAILABLE"
    title = "The database cannot be reached"


class DatabaseBusy(DatabaseUnavailable):
    """A lock was held too long by another transaction, or a deadlock was resolved by aborting this one."""

    code = "DATABASE_BUSY"
    title = "The database is busy"


class TemporalUnavailable(Unavailable):
    """The Temporal service cannot be reached."""

    code = "TEMPORAL_UNAVAILABLE"
    title = "Payments cannot be processed now"


class TemporalBusy(TemporalUnavailable):
    """Temporal answers that it is overloaded."""

    code = "TEMPORAL_BUSY"
    title = "Payments cannot be processed now: the service is overloaded"


class TemporalRefused(TemporalUnavailable):
    """Temporal has no such namespace or refuses this process's credentials; an operator has to fix it."""

    code = "TEMPORAL_REFUSED"
    title = "Payments cannot be processed until an operator fixes the service"


class AddressBudgetExhausted(Unavailable):
    """So many addresses of a key wait unpaid that wallets would not find a payment to the next one."""

    code = "ADDRESS_BUDGET_EXHAUSTED"
    title = "No new address can be given out until one is paid"


class PriceUnavailable(Unavailable):
    """There is no price of a token that is not registered as a dollar token.

    `problem` is one of `domain.deposits.prices.PriceProblem`; the message says what it is about.
    """

    code = "PRICE_UNAVAILABLE"
    title = "The token's price is not known now"

    def __init__(self, message: str, *, problem: str = "no_source") -> None:
        super().__init__(message)
        self.problem = problem


class ProviderUnavailable(Unavailable):
    """An AI provider does not say what it has on record. Names the upstream, and nothing of its address."""

    code = "PROVIDER_UNAVAILABLE"
    title = "The provider's records cannot be read now"


class EventNotDelivered(Unavailable):
    """The event sink did not accept an event. Names its host and nothing else of its address."""

    code = "EVENT_NOT_DELIVERED"
    title = "The event sink does not accept events now"

    def __init__(self, sink: str, what: str) -> None:
        super().__init__(f"event sink {sink} {what}")


class ApiNotReady(Unavailable):
    """The HTTP interface is not reachable, or reports that it is not ready."""

    code = "API_NOT_READY"
    title = "The HTTP interface is not ready"


class TransferAlreadySettled(SettleError):
    """The on-chain transfer has already paid another attempt (unique in `settled_transfers`)."""

    code = "TX_ALREADY_SETTLED"
    category = Category.CONFLICT
    title = "The transfer has already paid another payment"


class OperatorError(SettleError):
    """Only an operator can fix it."""

    code = "OPERATOR_ERROR"
    category = Category.MISCONFIGURED
    title = "The service needs an operator"


class ConfigurationError(OperatorError):
    """A setting is missing or invalid; the message names the variable, the value and what is expected."""

    code = "CONFIGURATION"
    title = "A setting is missing or invalid"
    setting: str | None = None
    """The variable, where the error is about a single one."""

    @classmethod
    def invalid(cls, setting: str, got: object, expected: str) -> Self:
        """A value that cannot be used. `got` is shown: it must not hold a secret."""
        return cls._of(setting, f"{setting} is invalid: got {got}, expected {expected}")

    @classmethod
    def missing(cls, setting: str, expected: str) -> Self:
        """A setting without a value."""
        return cls._of(setting, f"{setting} is not set: expected {expected}")

    @classmethod
    def incomplete(cls, setting: str, given: str, expected: str) -> Self:
        """A setting without a value that another one requires."""
        return cls._of(setting, f"{setting} is not set, but {given} is: expected {expected}")

    @classmethod
    def _of(cls, setting: str, message: str) -> Self:
        error = cls(message)
        error.setting = setting
        return error


class StartupCheckFailed(OperatorError):
    """The database is not what the code needs; the message names the command to run."""

    code = "STARTUP_CHECK_FAILED"
    title = "The service is not set up correctly"


class WorkerOfAnotherChain(OperatorError):
    """A worker was given work of another chain. It decides nothing; a worker of that chain has to do it."""

    code = "WORKER_OF_ANOTHER_CHAIN"
    category = Category.UNAVAILABLE
    title = "This worker belongs to another chain"

    def __init__(self, what: str, chain_id: int, own_chain_id: int) -> None:
        super().__init__(
            f"{what} belongs to chain {chain_id}, this worker's CHAIN_ID is {own_chain_id}: "
            f"expected a worker with CHAIN_ID={chain_id}"
        )


class WatcherBehind(OperatorError):
    """The chain has not been followed as far as the request asks about."""

    code = "WATCHER_BEHIND"
    category = Category.UNAVAILABLE
    title = "The chain has not been followed that far"


class TemporalRequestInvalid(OperatorError):
    """Temporal will never accept this request: its server is too old, or the request is a fault of ours."""

    code = "TEMPORAL_REQUEST_INVALID"
    title = "The workflow service does not accept this request"


class BookkeepingError(OperatorError):
    """The ledger contradicts the request."""

    code = "BOOKKEEPING"
    category = Category.BOOKKEEPING
    title = "The ledger contradicts the request"


class BooksDoNotBalance(OperatorError):
    """An invariant of the ledger is violated."""

    code = "BOOKS_DO_NOT_BALANCE"
    category = Category.BOOKKEEPING
    title = "The ledger does not balance"


class HoldsNotResolved(OperatorError):
    """Holds of calls whose gateway has died are open for longer than their resolution takes."""

    code = "HOLDS_NOT_RESOLVED"
    title = "Lapsed holds are not resolved"


class RelayNotWorking(OperatorError):
    """What payers have signed is not sent, or soon will not be: no relay works, or its account lacks gas."""

    code = "RELAY_NOT_WORKING"
    title = "The relay does not work"


class ClocksApart(OperatorError):
    """The clocks of host, database and chain differ by more than the payment rules tolerate."""

    code = "CLOCKS_APART"
    title = "The clocks differ too much"


class DemoFailed(OperatorError):
    """A step of the demo did not happen in time."""

    code = "DEMO_FAILED"
    title = "The demo did not finish"


class SettlementFailed(OperatorError):
    """A settlement that the bench started did not end CREDITED with its bonus."""

    code = "BENCH_SETTLEMENT_FAILED"
    title = "A settlement of the bench did not end as expected"
