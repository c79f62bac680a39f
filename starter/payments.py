"""The payments client: create an intent, submit a hash, ask for status."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

from temporalio.client import Client
from temporalio.common import (
    WorkflowIDReusePolicy,
)
from temporalio.service import RPCError

from db.accounts import idempotency
from db.accounts.wallets import Payer, find_non_payer_kind, provision_wallet
from db.clock import read_clock
from db.engine import TenantDatabase
from db.payments import attempts
from db.payments.finality import find_awaiting
from domain.errors import AttemptNotFound, WrongChain
from domain.identifiers import parse_tx_hash
from domain.money import check_payment_amount, raw_for_usd_cents
from domain.payments.attempt import AttemptStatus, PaymentAttempt, Purpose
from domain.payments.finality import FinalityPolicy, FinalityState, finality_of
from domain.payments.verification import Waiting, WaitReason, confirmations_message
from domain.transfers.income import NonPayer, require_payer
from services.payments import lifecycle as payments
from starter.models import AttemptView, Intent
from starter.progress import ProgressReader, read_reversal, read_workflow
from starter.reversals import start_reversal
from starter.submission import START_TIMEOUT, SubmitPayment, find_in
from starter.temporal import to_temporal_unavailable


@dataclass(frozen=True, slots=True)
class PaymentPolicy:
    """Terms of new intents. `treasury` receives `token` on chain `chain_id`."""

    chain_id: int
    token: str
    treasury: str
    intent_ttl: timedelta
    min_usd_cents: int
    max_usd_cents: int
    min_confirmations: int
    verification_timeout: timedelta
    """How long a submitted hash is waited for."""
    finality: FinalityPolicy = field(default_factory=FinalityPolicy)
    """When a credited payment is final."""


CREDITED_ONCE: Final = (AttemptStatus.CREDITED, AttemptStatus.REVERSED)

CHAIN_UNREADABLE: Final = "the chain cannot be read right now"
"""What payers see while no chain node gives a usable answer."""


class PaymentsClient:
    """The typed client. It uses a database of role settle_app and a Temporal client, and owns neither."""

    def __init__(
        self,
        database: TenantDatabase,
        temporal: Client,
        policy: PaymentPolicy,
        *,
        read_head: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        """With `read_head`, the chain's height, confirmations are counted block by block between two polls."""
        self._database = database
        self._temporal = temporal
        self._policy = policy
        self._progress = ProgressReader(temporal, read_head)
        self._submissions = SubmitPayment(
            database, temporal, chain_id=policy.chain_id, verification_timeout=policy.verification_timeout
        )

    async def provision(self, wallet_address: str) -> Payer:
        """The payer behind a wallet (EIP-55 checksum form); creates user, account and key when it has none."""
        async with self._database.unscoped() as connection:
            return await provision_wallet(connection, wallet_address)

    async def require_payer(self, wallet_address: str) -> None:
        """Refuse a wallet whose payments cannot be credited, such as the treasury's own. Raises `PayerRefused`."""
        async with self._database.unscoped() as connection:
            self._require_payer(wallet_address, await find_non_payer_kind(connection, wallet_address))

    def _require_payer(self, wallet_address: str, known: NonPayer | None) -> None:
        require_payer(wallet_address, treasury=self._policy.treasury, token=self._policy.token, known=known)

    async def create_intent(
        self,
        payer: Payer,
        amount_usd_cents: int,
        purpose: Purpose = Purpose.SELF,
        *,
        idempotency_key: str | None = None,
    ) -> Intent:
        """Create an attempt that waits to be paid; for a repeated `idempotency_key`, return the stored answer.

        Raises `InvalidInput` for an amount out of bounds, `PayerRefused` for a wallet that cannot be a payer, and
        `IdempotencyKeyReused`.
        """
        policy = self._policy
        amount = check_payment_amount(amount_usd_cents, minimum=policy.min_usd_cents, maximum=policy.max_usd_cents)
        async with self._database.transaction(payer.user_id) as connection:
            known = await find_non_payer_kind(connection.connection, payer.wallet_address)
            self._require_payer(payer.wallet_address, known)
            now = await read_clock(connection.connection)
            attempt = self._new_attempt(payer, amount, purpose, now)
            intent = Intent.of(attempt, now + policy.intent_ttl)
            if idempotency_key is not None:
                answered = await idempotency.keep_answer(
                    connection,
                    payer.billing_account_id,
                    idempotency_key,
                    _request_hash(amount, purpose),
                    intent.model_dump(mode="json"),
                )
                if answered is not None:
                    return Intent.model_validate(answered)
            await payments.create_intent(connection, attempt)
        return intent

    def _new_attempt(self, payer: Payer, amount_usd_cents: int, purpose: Purpose, now: datetime) -> PaymentAttempt:
        policy = self._policy
        return PaymentAttempt(
            id=uuid4(),
            billing_account_id=payer.billing_account_id,
            owner_user_id=payer.user_id,
            from_address=payer.wallet_address,
            chain_id=policy.chain_id,
            token=policy.token,
            to_address=policy.treasury,
            amount_raw=raw_for_usd_cents(amount_usd_cents),
            amount_usd_cents=amount_usd_cents,
            purpose=purpose,
            status=AttemptStatus.CREATED_INTENT,
            expires_at=now + policy.intent_ttl,
            created_at=now,
        )

    async def submit(
        self,
        user_id: str,
        attempt_id: UUID,
        tx_hash: str,
        *,
        request_id: str | None = None,
        mined_at: datetime | None = None,
    ) -> AttemptView:
        """Submit `tx_hash` for the attempt. Safe to repeat: the same answer, one workflow.

        When this returns, the hash is recorded and the durable workflow is running, independently of the chain and of
        workers. Where Temporal does not answer, the hash is recorded all the same, and a run is started for it later.

        A finished attempt answers with its result; so does an expired intent. A credited purchase whose workflow was
        terminated before the bonus gets a new run, which mints it.

        An intent whose payment was mined before it expired was paid in time, whenever it is submitted: `mined_at` says
        so, or the chain watcher's record.

        Raises `InvalidInput`, `AttemptNotFound`, `HashInUse`, `TooManyReplacements`, `WrongChain`,
        `DatabaseUnavailable` and `TemporalUnavailable`.
        """
        attempt = await self._submissions.submit(
            user_id, attempt_id, parse_tx_hash(tx_hash), request_id=request_id, mined_at=mined_at
        )
        return self._answer(attempt)

    async def resume_payment(self, user_id: str, attempt_id: UUID) -> bool:
        """Start a run for an attempt for which something is due by the ledger; False where one is running.

        Of a reversed attempt it is the run that completes the reversal, else the one that settles it. Also after a
        completed run: the database may have been restored since. The new run finds in the database what is done, and
        does the rest. Raises `AttemptNotFound`, `DatabaseUnavailable`, `TemporalUnavailable` and what `submit` raises.
        """
        state = await read_workflow(self._temporal, attempt_id)
        if state is not None and state.is_running:
            return False
        attempt = await self._find(user_id, attempt_id)
        if attempt.chain_id != self._policy.chain_id:
            raise WrongChain(attempt.chain_id, self._policy.chain_id)
        if attempt.status is AttemptStatus.PENDING_UNVERIFIED and attempt.tx_hash is not None:
            await self.submit(user_id, attempt_id, attempt.tx_hash)
            return True
        if attempt.status is AttemptStatus.REVERSED:
            reversal = await read_reversal(self._temporal, attempt_id)
            if reversal is not None and reversal.is_running:
                return False
            return await start_reversal(self._temporal, attempt, again=True)
        if attempt.status is not AttemptStatus.CREDITED:
            return False
        try:
            async with asyncio.timeout(START_TIMEOUT.total_seconds()):
                await self._submissions.start(attempt, WorkflowIDReusePolicy.ALLOW_DUPLICATE)
        except (RPCError, RuntimeError, TimeoutError) as error:
            raise to_temporal_unavailable(error) from error
        return True

    async def start_reversal(self, user_id: str, attempt_id: UUID, *, again: bool) -> bool:
        """Start or join the run that reverses a credited payment, unless the chain has it for good.

        After a completed run only `again`; False where there is one and none was started. Raises `AttemptNotFound`,
        `WrongChain`, `DatabaseUnavailable` and `TemporalUnavailable`.
        """
        attempt = await self._find(user_id, attempt_id)
        if attempt.chain_id != self._policy.chain_id:
            raise WrongChain(attempt.chain_id, self._policy.chain_id)
        return await start_reversal(self._temporal, attempt, again=again)

    def _answer(self, attempt: PaymentAttempt) -> AttemptView:
        """A submission's answer, the same on every path: the chain has not been polled yet."""
        view = AttemptView.of(attempt)
        if view.status is not AttemptStatus.PENDING_UNVERIFIED:
            return view
        return view.model_copy(update={"confirmations": 0, "confirmations_needed": self._policy.min_confirmations})

    async def status(self, user_id: str, attempt_id: UUID, *, only_account: str | None = None) -> AttemptView:
        """Status of the attempt, with the confirmations so far while it waits; of one account only where it is given.

        Raises `AttemptNotFound`, also for another account's attempt, and `DatabaseUnavailable`.
        """
        attempt = await self._find(user_id, attempt_id)
        if only_account is not None and attempt.billing_account_id != only_account:
            raise AttemptNotFound(attempt_id)
        return await self.with_progress(attempt)

    async def with_progress(
        self, attempt: PaymentAttempt, *, awaiting_finality: frozenset[UUID] | None = None
    ) -> AttemptView:
        """The view of an attempt that was read already: the confirmations so far while it waits, then its finality.

        `awaiting_finality`: those of several attempts that await it, where that was read already.
        """
        view = AttemptView.of(attempt)
        if attempt.status in CREDITED_ONCE:
            return await self._with_finality(view, attempt, awaiting_finality)
        if attempt.status is not AttemptStatus.PENDING_UNVERIFIED or attempt.tx_hash is None:
            return view
        # Blocks of another chain confirm nothing: of its payments only the last poll's result is known.
        is_own = attempt.chain_id == self._policy.chain_id
        look = await self._progress.read(attempt.id, attempt.tx_hash, counts_blocks=is_own)
        waiting = look.waiting if look else None
        if is_own and waiting is not None and waiting.reason is WaitReason.NOT_FOUND:
            waiting = await self._counted_since(attempt, attempt.tx_hash, waiting)
        return view.model_copy(
            update={
                "confirmations": waiting.confirmations if waiting else 0,
                "confirmations_needed": waiting.confirmations_needed if waiting else self._policy.min_confirmations,
                "waiting_for": _payer_message(waiting) if waiting else None,
                "next_look_at": look.next_attempt_at if look else None,
            }
        )

    async def _with_finality(
        self, view: AttemptView, attempt: PaymentAttempt, awaiting: frozenset[UUID] | None
    ) -> AttemptView:
        if awaiting is None:
            async with self._database.transaction(attempt.owner_user_id) as connection:
                awaiting = await find_awaiting(connection, [attempt.id])
        state = finality_of(attempt.status, is_awaited=attempt.id in awaiting)
        is_pending = state is FinalityState.PENDING
        level = self._policy.finality.level_for(attempt.amount_usd_cents) if is_pending else None
        return view.model_copy(update={"finality_state": state, "finality_level": level})

    async def _counted_since(self, attempt: PaymentAttempt, tx_hash: str, waiting: Waiting) -> Waiting:
        """The confirmations since the chain watcher has seen the transfer, which the last poll came too early for."""
        async with self._database.transaction(attempt.owner_user_id) as connection:
            block = await attempts.find_observed_payment_block(connection, attempt.id, tx_hash)
        return waiting if block is None else await self._progress.count_blocks(waiting, since=block)

    async def _find(self, user_id: str, attempt_id: UUID) -> PaymentAttempt:
        async with self._database.transaction(user_id) as connection:
            return await find_in(connection, attempt_id)


def _payer_message(waiting: Waiting) -> str:
    """What the payment waits for, for the payer. The nodes' answers are for operators: they name our servers."""
    match waiting.reason:
        case WaitReason.CHAIN_UNAVAILABLE | WaitReason.WRONG_CHAIN | WaitReason.CONTRADICTION | WaitReason.PRECONDITION:
            return CHAIN_UNREADABLE
        case WaitReason.CONFIRMATIONS:
            return confirmations_message(waiting.confirmations, waiting.confirmations_needed)
        case _:
            return waiting.message


def _request_hash(amount_usd_cents: int, purpose: Purpose) -> bytes:
    """Equal for equal requests for an intent."""
    return hashlib.sha256(f"intent:{amount_usd_cents}:{purpose.value}".encode()).digest()
