"""Everything that can go wrong, as one tree, and the registry that everything else about an error comes from.

SettleError                     has a stable `code`; knows nothing of HTTP or Temporal
├── Refusal                     the request is answered "no"; nothing is lost, the caller can mend it
│   ├── InvalidInput            a value is malformed; names the field
│   ├── AttemptNotFound         no such attempt, or somebody else's
│   ├── HashInUse               another attempt of the same payer holds that transaction hash
│   ├── TooManyReplacements     the hash of one attempt was replaced too often
│   ├── PayerRefused            no payment is taken from that address: it is the treasury's, or nobody's
│   ├── WrongChain              the attempt belongs to another chain than this process settles
│   ├── NotSignedIn             nobody is signed in, or no longer
│   ├── SignInRefused           the signature is not the wallet's, or its challenge is used up or too old
│   ├── NotAnOperator           somebody is signed in who may not see this
│   ├── IdempotencyKeyReused    the key came with another request before
│   ├── FindingNotFound         no such finding, or an abbreviated id that several have
│   ├── RemedyRefused           that remedy is not for this finding, or it is resolved otherwise
│   └── RateLimited             too many requests; says when to come back
├── Unavailable                 something outside does not answer now; the same call may go through later
│   ├── ChainUnavailable        no chain node gave an answer that can be used (`chain/` has finer ones)
│   │   └── PreconditionNotMet  what must be true of chain and token before money is credited is not confirmed
│   ├── DatabaseUnavailable     PostgreSQL cannot be reached
│   │   └── DatabaseBusy        it answers, but somebody held what was needed for too long
│   ├── TemporalUnavailable     the Temporal service cannot be reached
│   │   ├── TemporalBusy        it answers that it has too much to do
│   │   └── TemporalRefused     it knows no such namespace, or does not let this process in
│   ├── EventNotDelivered       the receiver of events did not take one
│   └── ApiNotReady             the HTTP interface is not there, or says that it cannot work
├── TransferAlreadySettled      that on-chain transfer has paid another attempt
└── OperatorError               only somebody who runs the system can mend it
    ├── ConfigurationError      a setting is missing or has a bad value
    ├── StartupCheckFailed      schema, system tenant or rights are not what the code needs
    ├── WorkerOfAnotherChain    a worker was given what only a worker of another chain may look after
    ├── WatcherBehind           the chain has not been followed as far as is asked about
    ├── TemporalRequestInvalid  Temporal will never take this request: an older server, or a fault of ours
    ├── BookkeepingError        the books contradict the request
    ├── BooksDoNotBalance       the invariants of the ledger do not hold
    ├── ClocksApart             host, database and chain are further apart than the rules allow for
    ├── DemoFailed              something that the demo waits for did not happen
    └── SettlementFailed        a settlement that the bench started did not end as it has to

A class is an error's one place: its `code`, its `category` and its `title`. From these come the HTTP status and the
document (`api/http/problems.py`), the way through Temporal and back (`activities/interceptors.py`) and
`docs/errors.md`. A new class is in all of them because it is here; a test demands it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from math import ceil
from types import MappingProxyType
from typing import Any, ClassVar, Final, Self


class Category(StrEnum):
    """What kind of "no" an error is, for whoever maps errors to something else."""

    INVALID = "invalid"
    """The request is malformed, or contradicts an earlier one."""

    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    """The request is well-formed, and what it is about does not allow it."""

    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    """Something outside does not answer now."""

    MISCONFIGURED = "misconfigured"
    """Somebody who runs the system has to change something."""

    BOOKKEEPING = "bookkeeping"
    """What the database says contradicts itself or the request."""

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
"""A "no" stays a "no": nothing repeats such a request by itself, a Temporal activity neither."""

REPEATABLE: Final = frozenset({Category.RATE_LIMITED, Category.UNAVAILABLE, Category.INTERNAL})
"""The very same request may go through later by itself. What waits for a person is no reason to ask again and again."""

_registry: dict[str, type[SettleError]] = {}


class SettleError(Exception):
    """Base of all errors of the product; `code` is stable and may be shown to callers.

    A subclass with a `code` of its own is registered under it; one without is a finer kind of its parent, and leaves
    the process as that. `title` is what the code means, in words that hold at every occurrence.
    """

    code: str = "INTERNAL"
    category: ClassVar[Category] = Category.INTERNAL
    title: ClassVar[str] = "Internal server error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Register the class. Raises `TypeError` where another one has its code."""
        super().__init_subclass__(**kwargs)
        if "code" in vars(cls):
            other = _registry.setdefault(cls.code, cls)
            if other is not cls and other.__qualname__ != cls.__qualname__:
                raise TypeError(f"code {cls.code} of {cls.__qualname__} is {other.__qualname__}'s already")

    @property
    def is_refusal(self) -> bool:
        """Whether it is a "no", which asking again does not change."""
        return self.category in REFUSALS

    @property
    def is_repeatable(self) -> bool:
        """Whether the very same request may go through later."""
        return self.category in REPEATABLE

    def facts(self) -> dict[str, Any]:
        """What it knows beside its message, for another process to have again. JSON only."""
        return {}

    @classmethod
    def restored(cls, message: str, facts: Mapping[str, Any] = MappingProxyType({})) -> Self:
        """The error as another process raised it; what is missing in `facts` is as good as the message allows."""
        error = cls.__new__(cls)
        SettleError.__init__(error, message)
        error._take(facts)
        return error

    def _take(self, facts: Mapping[str, Any]) -> None:
        """Take the facts of a restored error."""

    @staticmethod
    def from_code(code: str, message: str, facts: Mapping[str, Any] = MappingProxyType({})) -> SettleError | None:
        """The error of that code, of its own class; None where no class has it."""
        kind = registered().get(code)
        return kind.restored(message, facts) if kind else None


def registered() -> Mapping[str, type[SettleError]]:
    """Every error that leaves a process, by its code, the base first."""
    return MappingProxyType({SettleError.code: SettleError} | _registry)


class Refusal(SettleError):
    """The request is answered "no"; asking again the same way gives the same answer."""

    code = "REFUSED"
    category = Category.CONFLICT
    title = "The request was refused"

    @classmethod
    def of_unknown_code(cls, code: str, message: str) -> Refusal:
        """A "no" of a process that knows more kinds of it than this one does: its code stays."""
        error = cls.restored(message)
        error.code = code
        return error


class InvalidInput(Refusal):
    """A value is malformed. `field` is the name the caller used for it."""

    code = "INVALID_INPUT"
    category = Category.INVALID
    title = "A value is malformed or out of bounds"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field

    def facts(self) -> dict[str, Any]:
        """The field."""
        return {"field": self.field}

    def _take(self, facts: Mapping[str, Any]) -> None:
        self.field = str(facts.get("field") or self.message.partition(": ")[0])


class AttemptNotFound(Refusal):
    """No attempt with that id is visible to the caller."""

    code = "ATTEMPT_NOT_FOUND"
    category = Category.NOT_FOUND
    title = "There is no such payment of yours"

    def __init__(self, attempt_id: object) -> None:
        super().__init__(f"no payment attempt {attempt_id}")


class HashInUse(Refusal):
    """Another attempt of the same payer holds the transaction hash."""

    code = "TX_HASH_IN_USE"
    category = Category.CONFLICT
    title = "The transaction is submitted for another of your payments"

    def __init__(self, tx_hash: str) -> None:
        super().__init__(f"transaction {tx_hash} is already submitted for another of your payments")


class TooManyReplacements(Refusal):
    """The hash of one attempt was replaced more often than any wallet needs to."""

    code = "TOO_MANY_REPLACEMENTS"
    category = Category.CONFLICT
    title = "The hash was replaced too often"

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
    """No payment of that address can be credited: it is the treasury's own, the zero address, or a token's."""

    code = "PAYER_REFUSED"
    category = Category.FORBIDDEN
    title = "No payment is taken from this address"


class NotSignedIn(Refusal):
    """Nobody is signed in, or no longer."""

    code = "UNAUTHENTICATED"
    category = Category.UNAUTHENTICATED
    title = "Nobody is signed in"

    def __init__(self) -> None:
        super().__init__("sign in with your wallet first")


class SignInRefused(Refusal):
    """The signature is not the wallet's, or its challenge was used already, expired, or was never given."""

    code = "SIGN_IN_REFUSED"
    category = Category.UNAUTHENTICATED
    title = "The sign-in was refused"


class NotAnOperator(Refusal):
    """Somebody is signed in who may not see this."""

    code = "FORBIDDEN"
    category = Category.FORBIDDEN
    title = "This is for operators"

    def __init__(self) -> None:
        super().__init__("this page is for operators")


class IdempotencyKeyReused(Refusal):
    """The same key came with another request before."""

    code = "IDEMPOTENCY_KEY_REUSED"
    category = Category.INVALID
    title = "The key was used for another request"

    def __init__(self, key: str) -> None:
        super().__init__(f"Idempotency-Key {key!r:.80} was used for another request before; take a new one")


class FindingNotFound(Refusal):
    """No finding with that id, or several with an id that begins so."""

    code = "FINDING_NOT_FOUND"
    category = Category.NOT_FOUND
    title = "There is no such finding"

    def __init__(self, finding_id: object, found: int = 0) -> None:
        super().__init__(f"{found} findings begin with {finding_id}" if found else f"no finding {finding_id}")


class RemedyRefused(Refusal):
    """The remedy is not for this finding, or the finding was resolved otherwise."""

    code = "REMEDY_REFUSED"
    category = Category.CONFLICT
    title = "The remedy is not for this finding, or the finding is resolved"


class RateLimited(Refusal):
    """Too many requests. `retry_after_seconds` says when the next one is welcome."""

    code = "RATE_LIMITED"
    category = Category.RATE_LIMITED
    title = "Too many requests"

    def __init__(self, retry_after_seconds: float, what: str) -> None:
        super().__init__(f"too many {what}; try again in {ceil(max(retry_after_seconds, 1))} s")
        self.retry_after_seconds = ceil(max(retry_after_seconds, 1))

    def facts(self) -> dict[str, Any]:
        """When the next one is welcome."""
        return {"retryAfterSeconds": self.retry_after_seconds}

    def _take(self, facts: Mapping[str, Any]) -> None:
        self.retry_after_seconds = int(facts.get("retryAfterSeconds", 1))


class Unavailable(SettleError):
    """Something outside does not answer now; retrying is right."""

    code = "UNAVAILABLE"
    category = Category.UNAVAILABLE
    title = "Something that this needs does not answer now"


class ChainUnavailable(Unavailable):
    """No chain node gave an answer that can be used."""

    code = "CHAIN_UNAVAILABLE"
    title = "The chain cannot be asked now"


class PreconditionNotMet(ChainUnavailable):
    """What must be true of chain and token before money is credited is not confirmed; nothing is, until it is.

    `is_broken` says that most nodes contradict it, and that only an operator can mend it.
    """

    code = "PRECONDITION_NOT_MET"
    title = "Chain and token are not confirmed to be what settlements need"

    def __init__(self, message: str, *, is_broken: bool = False) -> None:
        super().__init__(message)
        self.is_broken = is_broken

    def facts(self) -> dict[str, Any]:
        """Whether it is broken."""
        return {"isBroken": self.is_broken}

    def _take(self, facts: Mapping[str, Any]) -> None:
        self.is_broken = bool(facts.get("isBroken", False))


class DatabaseUnavailable(Unavailable):
    """PostgreSQL cannot be reached."""

    code = "DATABASE_UNAVAILABLE"
    title = "The database cannot be reached"


class DatabaseBusy(DatabaseUnavailable):
    """A lock that somebody else held for too long, or a deadlock that was resolved at this caller's cost."""

    code = "DATABASE_BUSY"
    title = "The database is busy"


class TemporalUnavailable(Unavailable):
    """The Temporal service cannot be reached."""

    code = "TEMPORAL_UNAVAILABLE"
    title = "Settlements cannot be started now"


class TemporalBusy(TemporalUnavailable):
    """Temporal answers that it has too much to do."""

    code = "TEMPORAL_BUSY"
    title = "Settlements cannot be started now: too much is asked at once"


class TemporalRefused(TemporalUnavailable):
    """Temporal knows no such namespace, or does not let this process in: nothing goes on until an operator mends it."""

    code = "TEMPORAL_REFUSED"
    title = "Settlements cannot be started until the operator mends it"


class EventNotDelivered(Unavailable):
    """The receiver of events did not take one. Names its host and nothing else of its address."""

    code = "EVENT_NOT_DELIVERED"
    title = "The receiver of events does not take them now"

    def __init__(self, sink: str, what: str) -> None:
        super().__init__(f"the event receiver {sink} {what}")


class ApiNotReady(Unavailable):
    """The HTTP interface is not there, or says that it cannot work."""

    code = "API_NOT_READY"
    title = "The HTTP interface cannot work now"


class TransferAlreadySettled(SettleError):
    """The on-chain transfer has already paid another attempt (unique in `settled_transfers`)."""

    code = "TX_ALREADY_SETTLED"
    category = Category.CONFLICT
    title = "The transfer has paid another payment"


class OperatorError(SettleError):
    """Only somebody who runs the system can mend it."""

    code = "OPERATOR_ERROR"
    category = Category.MISCONFIGURED
    title = "The service needs its operator"


class ConfigurationError(OperatorError):
    """A setting is missing or has a bad value; the message names the variable, what it got and wants."""

    code = "CONFIGURATION"
    title = "A setting is missing or has a bad value"


class StartupCheckFailed(OperatorError):
    """The database is not what the code needs; the message says what to run."""

    code = "STARTUP_CHECK_FAILED"
    title = "The service is not set up as it has to be"


class WorkerOfAnotherChain(OperatorError):
    """A worker was given what belongs to another chain. Nothing is decided: a worker of that chain has to do it."""

    code = "WORKER_OF_ANOTHER_CHAIN"
    category = Category.UNAVAILABLE
    title = "No worker of the payment's chain has taken this yet"

    def __init__(self, what: str, chain_id: int, own_chain_id: int) -> None:
        super().__init__(
            f"{what} belongs to chain {chain_id}, this worker's CHAIN_ID is {own_chain_id}: "
            f"expected a worker with CHAIN_ID={chain_id}"
        )


class WatcherBehind(OperatorError):
    """The chain has not been followed as far as is asked about."""

    code = "WATCHER_BEHIND"
    category = Category.UNAVAILABLE
    title = "The chain has not been followed that far"


class TemporalRequestInvalid(OperatorError):
    """Temporal will never take this request: its server is too old, or the request is a fault of ours."""

    code = "TEMPORAL_REQUEST_INVALID"
    title = "The settlement service does not take this request"


class BookkeepingError(OperatorError):
    """What was asked contradicts what the books say."""

    code = "BOOKKEEPING"
    category = Category.BOOKKEEPING
    title = "The books contradict the request"


class BooksDoNotBalance(OperatorError):
    """The invariants of the ledger do not hold."""

    code = "BOOKS_DO_NOT_BALANCE"
    category = Category.BOOKKEEPING
    title = "The books do not balance"


class ClocksApart(OperatorError):
    """The clocks of host, database and chain are further apart than the rules for payments allow for."""

    code = "CLOCKS_APART"
    title = "The clocks are too far apart"


class DemoFailed(OperatorError):
    """Something that the demo waits for did not happen."""

    code = "DEMO_FAILED"
    title = "The demo did not come to its end"


class SettlementFailed(OperatorError):
    """A settlement that the bench started did not end CREDITED with its bonus."""

    code = "BENCH_SETTLEMENT_FAILED"
    title = "A settlement of the bench did not end as it has to"
