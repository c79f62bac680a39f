"""Verification of a payment: a pure function from the attempt's terms and a node's answer.

Only two results are final, "verified" and "refused", and both require a confirmed block on the canonical chain. Any
lagging, false or contradictory answer short of that means: wait.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.chain import ChainView, Receipt, Transfer, TransferLog, TransferScope
from domain.identifiers import Address, Recipient, TxHash, same_address
from domain.payments.attempt import AttemptKind, AttemptStatus, ErrorCode, PaymentAttempt
from domain.transfers.identity import PaidTransfer, Place, is_alike, is_paid, place_of
from domain.transfers.income import NON_PAYER_DESCRIPTIONS, NonPayer, is_too_old, non_payer

POLL_DELAY_MAX: Final = timedelta(seconds=60)
"""Slowest poll interval: 1,440 polls a day."""

SHOWN_TRANSFERS_MAX: Final = 10
"""Most transfers that a message lists; a bundle may hold thousands."""

CONFIRMATION_DELAY_MIN: Final = timedelta(milliseconds=500)


class Value(BaseModel):
    """Immutable value that also travels through Temporal."""

    model_config = ConfigDict(frozen=True)


class PaymentTerms(Value):
    """Terms fixed when the intent was made; later changes of settings do not affect them."""

    chain_id: int
    token: Address
    payer: Address
    treasury: Recipient
    amount_raw: int
    exact: bool = False
    """Whether only a transfer of exactly that value pays: of a deposit, which is one transfer."""
    nonce: str | None = None
    """Of a payment by signature: only the transfer that its authorization has caused pays it, from any sender."""

    @property
    def scope(self) -> TransferScope:
        """Which transfers may be what was agreed."""
        return TransferScope(chain_id=self.chain_id, token=self.token, treasury=self.treasury)


def terms_of(attempt: PaymentAttempt) -> PaymentTerms:
    """The terms of an attempt."""
    return PaymentTerms(
        chain_id=attempt.chain_id,
        token=attempt.token,
        payer=attempt.from_address,
        treasury=attempt.to_address,
        amount_raw=attempt.expected_raw,
        exact=attempt.kind is AttemptKind.DEPOSIT,
        nonce=attempt.authorization_nonce,
    )


class KnownTransfers(Value):
    """What the database knows of a transaction's transfers of one token to one treasury."""

    held_log_indexes: frozenset[int] = frozenset()
    """Log indexes that other attempts were paid at: the database holds each for one attempt, whatever the block."""
    paid: tuple[PaidTransfer, ...] = ()
    """Those that have paid other attempts, or that an operator has credited or sent back."""
    observed: tuple[Transfer, ...] = ()
    """Those that the watcher has seen."""
    claimed_nonces: frozenset[str] = frozenset()
    """Nonces of authorizations that pay other attempts: their transfers pay nothing else."""


NOTHING_KNOWN: Final = KnownTransfers()


class SettledTransfer(Value):
    """The one on-chain transfer that pays the attempt."""

    chain_id: int
    tx_hash: TxHash
    log_index: int
    block_number: int
    block_hash: TxHash
    from_address: Address
    value_raw: int
    expected_raw: int
    unapplied_raw: int = 0
    """Transfers from the payer to the treasury in the same transaction that pay nothing."""

    @property
    def surplus_raw(self) -> int:
        """Raw token units above the amount due: recorded for the operator."""
        return self.value_raw - self.expected_raw


class WaitReason(StrEnum):
    """Why there is no final result yet."""

    CHAIN_UNAVAILABLE = "chain_unavailable"
    WRONG_CHAIN = "wrong_chain"
    NOT_FOUND = "not_found"
    PRE_CONFIRMED = "pre_confirmed"
    NOT_CANONICAL = "not_canonical"
    CONTRADICTION = "contradiction"
    CONFIRMATIONS = "confirmations"
    UNKNOWN_TREASURY = "unknown_treasury"
    """The intent names a token or treasury that no worker has been configured with, so that its owner is unknown."""
    AUTHORIZATION_OPEN = "authorization_open"
    """The transaction did not use the payer's authorization, which another one may still use."""
    PRECONDITION = "precondition"
    """The payment itself is evaluated, but a precondition on token or chain is not confirmed."""


class Waiting(Value):
    """No final result yet; `message` is shown to operators."""

    kind: Literal["waiting"] = "waiting"
    reason: WaitReason
    message: str
    confirmations: int = 0
    confirmations_needed: int = 0
    block_number: int | None = None


class Verified(Value):
    """The payment is present, correct and confirmed."""

    kind: Literal["verified"] = "verified"
    transfer: SettledTransfer
    confirmations: int
    confirmed_at: datetime | None = None
    """Timestamp of the block that confirmed it, where known: for a metric."""


class Refused(Value):
    """The confirmed transaction does not pay this attempt: REJECTED when it is wrong, FAILED when it reverted."""

    kind: Literal["refused"] = "refused"
    status: Literal[AttemptStatus.REJECTED, AttemptStatus.FAILED]
    error_code: ErrorCode
    message: str
    tx_hash: TxHash | None = None
    """The transaction that was evaluated, where the poll refused it."""


def confirmations_message(confirmations: int, needed: int) -> str:
    """How many confirmations there are, as text."""
    return f"{confirmations} of {needed} confirmations"


VerificationResult = Annotated[Waiting | Verified | Refused, Field(discriminator="kind")]


def evaluate(
    terms: PaymentTerms,
    tx_hash: str,
    view: ChainView,
    *,
    min_confirmations: int,
    known: KnownTransfers = NOTHING_KNOWN,
    first_block: int | None = None,
    payer_kind: NonPayer | None = None,
) -> Waiting | Verified | Refused:
    """Evaluate `tx_hash` as `view` shows it.

    `known` is what the database knows of the transaction's transfers. `first_block` is the first accepted block,
    `payer_kind` the database's record of the payer's address (`domain.transfers.income`). A transaction in the head
    block has one confirmation.
    """
    needed = max(min_confirmations, view.receipt.matures_after) if view.receipt is not None else min_confirmations
    waiting = _not_yet(terms, tx_hash, view, needed)
    if waiting is not None:
        return waiting
    receipt = view.receipt
    assert receipt is not None, "without a receipt the result is always to wait"
    if terms.nonce is not None and not _uses_authorization(receipt, terms):
        return _authorization_open(receipt, min_confirmations)
    if not receipt.succeeded:
        return Refused(
            status=AttemptStatus.FAILED,
            error_code=ErrorCode.TX_REVERTED,
            message=f"transaction reverted in block {receipt.block_number}",
        )
    verdict = _find_payment(terms, receipt, view, find_paid_logs(terms, receipt, known), payer_kind)
    if isinstance(verdict, Verified) and is_too_old(receipt.block_number, first_block):
        return Refused(
            status=AttemptStatus.REJECTED,
            error_code=ErrorCode.TRANSFER_TOO_OLD,
            message=f"mined in block {receipt.block_number}, payments are accepted from block {first_block} on",
        )
    return verdict


def find_paid_logs(terms: PaymentTerms, receipt: Receipt, known: KnownTransfers) -> frozenset[int]:
    """The logs of a transaction that pay nothing any more: they have paid, or the database holds their place."""
    paying = [log for log in receipt.transfers if pays(log, terms)]
    claimed = {log.log_index for log in paying if log.authorization_nonce in known.claimed_nonces}
    return known.held_log_indexes | claimed | {log.log_index for log in paying if _has_paid(log, receipt, known)}


def _has_paid(log: TransferLog, receipt: Receipt, known: KnownTransfers) -> bool:
    paid = [place_of(one) for one in known.paid if one.in_scope and is_alike(one, log)]
    observed = [one for one in known.observed if one.block_hash == receipt.block_hash and is_alike(one, log)]
    return is_paid(Place(receipt.block_hash, log.log_index), [one.log_index for one in observed], paid)


def pays(log: TransferLog, terms: PaymentTerms) -> bool:
    """Whether a log is what was agreed, of whatever value: of that token, from the payer, to the treasury.

    Of a payment by signature it is the one that its authorization has caused, and no other.
    """
    return (
        same_address(log.emitter, terms.token)
        and same_address(log.from_address, terms.payer)
        and same_address(log.to_address, terms.treasury)
        and (terms.nonce is None or log.authorization_nonce == terms.nonce)
    )


def _uses_authorization(receipt: Receipt, terms: PaymentTerms) -> bool:
    return receipt.succeeded and any(
        log.authorization_nonce == terms.nonce
        and same_address(log.emitter, terms.token)
        and same_address(log.from_address, terms.payer)
        for log in receipt.transfers
    )


def _authorization_open(receipt: Receipt, min_confirmations: int) -> Waiting:
    """A hash is a hint. Whether a signature pays is decided by what becomes of it, not by one transaction."""
    happened = "does not use" if receipt.succeeded else "reverted, and did not use"
    return Waiting(
        reason=WaitReason.AUTHORIZATION_OPEN,
        message=f"transaction {receipt.tx_hash} {happened} the payer's authorization, which another one may use",
        confirmations_needed=min_confirmations,
        block_number=receipt.block_number,
    )


def suffices(log: TransferLog, terms: PaymentTerms) -> bool:
    """Whether a log that pays is of enough; of a deposit, whether it is that deposit."""
    return log.value_raw == terms.amount_raw if terms.exact else log.value_raw >= terms.amount_raw


def _not_yet(terms: PaymentTerms, tx_hash: str, view: ChainView, min_confirmations: int) -> Waiting | None:
    """Why it is too early for a final result, or None when receipt and block are reliable."""

    def wait(reason: WaitReason, message: str, confirmations: int = 0) -> Waiting:
        return Waiting(
            reason=reason,
            message=message,
            confirmations=confirmations,
            confirmations_needed=min_confirmations,
            block_number=view.receipt.block_number if view.receipt else None,
        )

    if view.chain_id != terms.chain_id:
        # The node or the worker's configuration is wrong, not the payment: no final result may follow from it.
        return wait(WaitReason.WRONG_CHAIN, f"payment is on chain {terms.chain_id}, node answers for {view.chain_id}")
    receipt = view.receipt
    if receipt is None:
        return wait(WaitReason.NOT_FOUND, f"transaction {tx_hash} not found yet, head is {view.head_number}")
    if receipt.tx_hash != tx_hash:
        return wait(
            WaitReason.CONTRADICTION, f"node answered with the receipt of another transaction {receipt.tx_hash}"
        )
    if receipt.block_number > view.head_number or view.canonical is None:
        return wait(
            WaitReason.PRE_CONFIRMED,
            f"receipt names block {receipt.block_number}, which does not exist yet (head is {view.head_number})",
        )
    if view.canonical.number != receipt.block_number:
        return wait(
            WaitReason.CONTRADICTION,
            f"node answered with block {view.canonical.number} when asked for {receipt.block_number}",
        )
    if view.canonical.block_hash != receipt.block_hash:
        return wait(
            WaitReason.NOT_CANONICAL,
            f"receipt's block {receipt.block_number} is not on the canonical chain (reorganised, or the node lags)",
        )
    if receipt.tx_hash not in view.canonical.tx_hashes:
        return wait(
            WaitReason.CONTRADICTION, f"block {receipt.block_number} does not list the transaction of its receipt"
        )
    confirmations = view.head_number - receipt.block_number + 1
    if confirmations < min_confirmations:
        return wait(WaitReason.CONFIRMATIONS, confirmations_message(confirmations, min_confirmations), confirmations)
    return None


def _find_payment(
    terms: PaymentTerms,
    receipt: Receipt,
    view: ChainView,
    paid_log_indexes: frozenset[int],
    payer_kind: NonPayer | None,
) -> Verified | Refused:
    """Find the log that pays, or the code that best explains why none does.

    All logs are considered: those of other payers in the same transaction neither pay nor prevent a payment.
    """
    no_payer = non_payer(terms.payer, treasury=terms.treasury, token=terms.token, known=payer_kind)
    matching = [] if no_payer else [log for log in receipt.transfers if pays(log, terms)]
    enough = [log for log in matching if suffices(log, terms)]
    unspent = [log for log in enough if log.log_index not in paid_log_indexes]
    if unspent:
        # The smallest sufficient log minimizes the overpayment; the log index makes the choice unambiguous.
        paid_by = min(unspent, key=lambda log: (log.value_raw, log.log_index))
        return Verified(
            transfer=SettledTransfer(
                chain_id=view.chain_id,
                tx_hash=receipt.tx_hash,
                log_index=paid_by.log_index,
                block_number=receipt.block_number,
                block_hash=receipt.block_hash,
                from_address=paid_by.from_address,
                value_raw=paid_by.value_raw,
                expected_raw=terms.amount_raw,
                unapplied_raw=0 if terms.exact else _unspent_raw(matching, paid_log_indexes) - paid_by.value_raw,
            ),
            confirmations=view.head_number - receipt.block_number + 1,
        )
    if enough:
        return _rejected(ErrorCode.TX_ALREADY_SETTLED, "the transfer has already paid another attempt")
    if matching:
        in_order = sorted(matching, key=lambda log: log.log_index)
        sent = " and ".join(str(log.value_raw) for log in in_order[:SHOWN_TRANSFERS_MAX])
        return _rejected(
            ErrorCode.INSUFFICIENT_AMOUNT, f"{sent} raw units were sent, {terms.amount_raw} are needed in one transfer"
        )
    return _why_none_pays(terms, receipt, no_payer)


def _rejected(code: ErrorCode, message: str) -> Refused:
    return Refused(status=AttemptStatus.REJECTED, error_code=code, message=message)


def _why_none_pays(terms: PaymentTerms, receipt: Receipt, no_payer: NonPayer | None) -> Refused:
    """Of a transaction without a log that pays what was agreed: by what it has instead."""
    ours = [
        log
        for log in receipt.transfers
        if same_address(log.emitter, terms.token) and terms.nonce in {None, log.authorization_nonce}
    ]
    to_treasury = [log for log in ours if same_address(log.to_address, terms.treasury)]
    from_payer = [log for log in ours if same_address(log.from_address, terms.payer)]
    if no_payer is not None and any(same_address(log.from_address, terms.payer) for log in to_treasury):
        return _rejected(ErrorCode.SENDER_MISMATCH, f"the sender is {NON_PAYER_DESCRIPTIONS[no_payer]}")
    # A zero-value transfer can be emitted in any address's name, so that it proves nothing about who paid whom.
    if any(log.value_raw > 0 for log in to_treasury):
        return _rejected(ErrorCode.SENDER_MISMATCH, "the treasury was paid, but not by the wallet that signed in")
    if any(log.value_raw > 0 for log in from_payer):
        return _rejected(ErrorCode.RECIPIENT_MISMATCH, "the payer's transfer did not go to the treasury")
    if any(_pays_in_another_token(log, terms) for log in receipt.transfers):
        return _rejected(ErrorCode.INVALID_TOKEN, f"the transfer is not of token {terms.token}")
    return _rejected(ErrorCode.TOKEN_TRANSFER_NOT_FOUND, f"no transfer of token {terms.token} in the transaction")


def _unspent_raw(logs: list[TransferLog], paid_log_indexes: frozenset[int]) -> int:
    return sum(log.value_raw for log in logs if log.log_index not in paid_log_indexes)


def _pays_in_another_token(log: TransferLog, terms: PaymentTerms) -> bool:
    return not same_address(log.emitter, terms.token) and same_address(log.to_address, terms.treasury)


def next_poll_delay(waiting: Waiting, *, waited: timedelta, remaining: timedelta, block_time: timedelta) -> timedelta:
    """Delay until the next poll.

    Timed from what is missing: confirmations take one block each; for an unknown hash or a silent node the delay grows
    to a tenth of the time waited so far, between one block and a minute. While more than a block of `remaining`, the
    time until the verification times out, is left, one more poll is scheduled before the end.
    """
    if waiting.reason is WaitReason.CONFIRMATIONS:
        missing = waiting.confirmations_needed - waiting.confirmations
        delay = min(max(block_time * missing, CONFIRMATION_DELAY_MIN), POLL_DELAY_MAX)
    else:
        delay = back_off(waited, block_time=block_time)
    return before_timeout(delay, remaining=remaining, block_time=block_time)


def back_off(waited: timedelta, *, block_time: timedelta) -> timedelta:
    """The delay where nothing says when there will be more to know."""
    return min(max(waited / 10, block_time), POLL_DELAY_MAX)


def before_timeout(delay: timedelta, *, remaining: timedelta, block_time: timedelta) -> timedelta:
    """The delay, shortened so that one more poll is made a block before the verification times out."""
    last_look = remaining - block_time
    return min(delay, last_look) if last_look > timedelta(0) else delay
