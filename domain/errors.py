"""Everything that can go wrong, as one tree.

SettleError                     has a stable `code`; knows nothing of HTTP or Temporal
├── Refusal                     the request is answered "no"; nothing is lost, the caller can mend it
│   ├── InvalidInput            a value is malformed; names the field
│   ├── AttemptNotFound         no such attempt, or somebody else's
│   ├── HashInUse               another attempt of the same payer holds that transaction hash
│   ├── TooManyReplacements     the hash of one attempt was replaced too often
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
│   └── EventNotDelivered       the receiver of events did not take one
├── TransferAlreadySettled      that on-chain transfer has paid another attempt
└── OperatorError               only somebody who runs the system can mend it
    ├── ConfigurationError      a setting is missing or has a bad value
    ├── StartupCheckFailed      schema, system tenant or rights are not what the code needs
    ├── WatcherBehind           the chain has not been followed as far as is asked about
    └── BookkeepingError        the books contradict the request
"""

from __future__ import annotations

from math import ceil
from typing import ClassVar


class SettleError(Exception):
    """Base of all errors of the product; `code` is stable and may be shown to callers."""

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Refusal(SettleError):
    """The request is answered "no"; asking again the same way gives the same answer."""

    code = "REFUSED"


class InvalidInput(Refusal):
    """A value is malformed. `field` is the name the caller used for it."""

    code = "INVALID_INPUT"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class AttemptNotFound(Refusal):
    """No attempt with that id is visible to the caller."""

    code = "ATTEMPT_NOT_FOUND"

    def __init__(self, attempt_id: object) -> None:
        super().__init__(f"no payment attempt {attempt_id}")


class HashInUse(Refusal):
    """Another attempt of the same payer holds the transaction hash."""

    code = "TX_HASH_IN_USE"

    def __init__(self, tx_hash: str) -> None:
        super().__init__(f"transaction {tx_hash} is already submitted for another of your payments")


class TooManyReplacements(Refusal):
    """The hash of one attempt was replaced more often than any wallet needs to."""

    code = "TOO_MANY_REPLACEMENTS"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the transaction hash of this payment was already replaced {limit} times")


class WrongChain(Refusal):
    """The attempt was made for another chain than the one this process settles."""

    code = "INVALID_CHAIN"

    def __init__(self, attempt_chain_id: int, chain_id: int) -> None:
        super().__init__(f"this payment is for chain {attempt_chain_id}; this service settles chain {chain_id}")


class NotSignedIn(Refusal):
    """Nobody is signed in, or no longer."""

    code = "UNAUTHENTICATED"

    def __init__(self) -> None:
        super().__init__("sign in with your wallet first")


class SignInRefused(Refusal):
    """The signature is not the wallet's, or its challenge was used already, expired, or was never given."""

    code = "SIGN_IN_REFUSED"


class NotAnOperator(Refusal):
    """Somebody is signed in who may not see this."""

    code = "FORBIDDEN"

    def __init__(self) -> None:
        super().__init__("this page is for operators")


class IdempotencyKeyReused(Refusal):
    """The same key came with another request before."""

    code = "IDEMPOTENCY_KEY_REUSED"

    def __init__(self, key: str) -> None:
        super().__init__(f"Idempotency-Key {key!r:.80} was used for another request before; take a new one")


class FindingNotFound(Refusal):
    """No finding with that id, or several with an id that begins so."""

    code = "FINDING_NOT_FOUND"

    def __init__(self, finding_id: object, found: int = 0) -> None:
        super().__init__(f"{found} findings begin with {finding_id}" if found else f"no finding {finding_id}")


class RemedyRefused(Refusal):
    """The remedy is not for this finding, or the finding was resolved otherwise."""

    code = "REMEDY_REFUSED"


class RateLimited(Refusal):
    """Too many requests. `retry_after_seconds` says when the next one is welcome."""

    code = "RATE_LIMITED"

    def __init__(self, retry_after_seconds: float, what: str) -> None:
        super().__init__(f"too many {what}; try again in {ceil(max(retry_after_seconds, 1))} s")
        self.retry_after_seconds = ceil(max(retry_after_seconds, 1))


class Unavailable(SettleError):
    """Something outside does not answer now; retrying is right."""

    code = "UNAVAILABLE"


class ChainUnavailable(Unavailable):
    """No chain node gave an answer that can be used."""

    code = "CHAIN_UNAVAILABLE"


class PreconditionNotMet(ChainUnavailable):
    """What must be true of chain and token before money is credited is not confirmed; nothing is, until it is.

    `is_broken` says that most nodes contradict it, and that only an operator can mend it.
    """

    code = "PRECONDITION_NOT_MET"

    def __init__(self, message: str, *, is_broken: bool = False) -> None:
        super().__init__(message)
        self.is_broken = is_broken


class DatabaseUnavailable(Unavailable):
    """PostgreSQL cannot be reached."""

    code = "DATABASE_UNAVAILABLE"


class DatabaseBusy(DatabaseUnavailable):
    """A lock that somebody else held for too long, or a deadlock that was resolved at this caller's cost."""

    code = "DATABASE_BUSY"


class TemporalUnavailable(Unavailable):
    """The Temporal service cannot be reached."""

    code = "TEMPORAL_UNAVAILABLE"


class EventNotDelivered(Unavailable):
    """The receiver of events did not take one. Names its host and nothing else of its address."""

    code = "EVENT_NOT_DELIVERED"

    def __init__(self, sink: str, what: str) -> None:
        super().__init__(f"the event receiver {sink} {what}")


class TransferAlreadySettled(SettleError):
    """The on-chain transfer has already paid another attempt (unique in `settled_transfers`)."""

    code = "TX_ALREADY_SETTLED"


class OperatorError(SettleError):
    """Only somebody who runs the system can mend it."""

    code = "OPERATOR_ERROR"


class ConfigurationError(OperatorError):
    """A setting is missing or has a bad value; the message names the variable, what it got and wants."""

    code = "CONFIGURATION"


class StartupCheckFailed(OperatorError):
    """The database is not what the code needs; the message says what to run."""

    code = "STARTUP_CHECK_FAILED"


class WatcherBehind(OperatorError):
    """The chain has not been followed as far as is asked about."""

    code = "WATCHER_BEHIND"


class BookkeepingError(OperatorError):
    """What was asked contradicts what the books say."""

    code = "BOOKKEEPING"
