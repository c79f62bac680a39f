"""Settlements end to end, by the product and by the bare workflow: from the submitted hash to the completed run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, TypeVar
from uuid import UUID, uuid4

from temporalio.client import Client, WithStartWorkflowOperation
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import TemporalError

from activities.messages import RecordedSubmission, Settlement, SettlementResult, Submission
from bench.bare import BARE_TASK_QUEUE, BareSettlement, bare_workflow_id
from bench.rounds import Side, at_once
from db.accounts.wallets import Payer
from devstack.chain import LocalChain, Wallet, payer_wallets
from domain.errors import SettlementFailed
from domain.money import credits_for_usd_cents, raw_for_usd_cents
from domain.payments.attempt import AttemptStatus, Purpose
from domain.payments.verification import PaymentTerms
from starter.models import Intent
from starter.payments import PaymentsClient
from workflows.naming import (
    BILLING_ACCOUNT_ID,
    CHAIN_ID,
    PAYMENT_PURPOSE,
    PAYMENT_STATUS,
    SUBMIT_UPDATE,
    TX_HASH,
    submit_update_id,
    workflow_id,
)

IN_FLIGHT_MAX: Final = 32
"""Settlements at once, on both sides: enough to keep two cores busy, few enough that none waits for long."""

AMOUNT_CENTS: Final = 10_000

COMPLETION_TIMEOUT: Final = timedelta(seconds=60)
"""Far above what a settlement takes: one that is not completed by then has failed, and so has the bench."""

RECEIPTS_BATCH: Final = 100
TRANSACTIONS_PER_BLOCK: Final = 100
PREPARED_AT_ONCE: Final = 8

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Paid:
    """An intent whose transfer is mined and confirmed, waiting to be submitted."""

    payer: Payer
    intent: Intent
    tx_hash: str


class Till:
    """Makes intents and pays them on the chain, so that only the settlement itself is left to be timed."""

    def __init__(self, chain: LocalChain, payments: PaymentsClient, *, confirmations: int) -> None:
        self._chain = chain
        self._payments = payments
        self._confirmations = confirmations
        self._payers: list[tuple[Wallet, Payer]] = []
        self._nonces: dict[str, int] = {}

    async def open(self) -> None:
        """Provision the chain's funded wallets."""
        for wallet in payer_wallets():
            self._payers.append((wallet, await self._payments.provision(wallet.address)))
            count = await self._chain.rpc("eth_getTransactionCount", wallet.address, "latest")
            self._nonces[wallet.address] = int(count, 16)

    async def pay(self, count: int) -> list[Paid]:
        """So many intents, each paid by a transaction of its own that has all its confirmations."""
        numbers = iter(range(count))
        paid: list[Paid] = []

        async def run() -> None:
            for number in numbers:
                wallet, payer = self._payers[number % len(self._payers)]
                intent = await self._payments.create_intent(payer, AMOUNT_CENTS)
                nonce = self._nonces[wallet.address]
                self._nonces[wallet.address] = nonce + 1
                tx_hash = await self._chain.pay(wallet.private_key, intent.to, intent.amount_raw, nonce=nonce)
                paid.append(Paid(payer, intent, tx_hash))

        await at_once(run() for _ in range(PREPARED_AT_ONCE))
        await self._chain.mine(count // TRANSACTIONS_PER_BLOCK + 1)
        await self._require_mined([payment.tx_hash for payment in paid])
        await self._chain.mine(self._confirmations)
        return paid

    async def _require_mined(self, tx_hashes: Sequence[str]) -> None:
        for start in range(0, len(tx_hashes), RECEIPTS_BATCH):
            batch = tx_hashes[start : start + RECEIPTS_BATCH]
            await self._chain.wait_for_receipt(batch[-1])
            receipts = await self._chain.rpc_batch([("eth_getTransactionReceipt", (tx_hash,)) for tx_hash in batch])
            for tx_hash, receipt in zip(batch, receipts, strict=True):
                found = receipt or await self._chain.wait_for_receipt(tx_hash)
                if int(found["status"], 16) != 1:
                    raise SettlementFailed(f"payment {tx_hash} was reverted on the local chain")


class Settlements:
    """The product's side: what `PaymentsClient` and the worker do with a payment."""

    def __init__(self, till: Till, payments: PaymentsClient, temporal: Client) -> None:
        self._till = till
        self._payments = payments
        self._temporal = temporal
        self._paid: list[Paid] = []
        self.settled: list[UUID] = []

    def side(self, payments: PaymentsClient | None = None) -> Side:
        """Submit (by another client, where one is given) and wait for the completed run, many at a time."""
        submit = (payments or self._payments).submit

        async def work(_count: int) -> None:
            paid, self._paid = self._paid, []
            await in_flight(partial(self._settle, submit), paid)

        return Side("settlement", self._prepare, work)

    async def _prepare(self, count: int) -> None:
        self._paid = await self._till.pay(count)

    async def _settle(self, submit: Callable[[str, UUID, str], Awaitable[object]], paid: Paid) -> None:
        attempt_id = paid.intent.attempt_id
        await submit(paid.payer.user_id, attempt_id, paid.tx_hash)
        result = await self._temporal.get_workflow_handle(
            workflow_id(attempt_id), result_type=SettlementResult
        ).result()
        _require_credited(result)
        self.settled.append(attempt_id)


class BareSettlements:
    """The baseline: the same operations of Temporal, with nothing behind them."""

    def __init__(self, temporal: Client, *, chain_id: int) -> None:
        self._temporal = temporal
        self._chain_id = chain_id
        self._prepared: list[Settlement] = []
        self.completed: list[UUID] = []

    def side(self) -> Side:
        """As many at a time as the product has."""
        return Side("bare workflow of the same shape", self._prepare, self._work)

    async def _prepare(self, count: int) -> None:
        self._prepared = [self._payment() for _ in range(count)]

    async def _work(self, _count: int) -> None:
        prepared, self._prepared = self._prepared, []
        await in_flight(self._complete, prepared)

    def _payment(self) -> Settlement:
        """An input as large as the product's."""
        attempt_id = uuid4()
        wallet = payer_wallets()[0].address
        return Settlement(
            submission=Submission(
                attempt_id=attempt_id,
                owner_user_id=str(uuid4()),
                billing_account_id=str(uuid4()),
                tx_hash=f"0x{attempt_id.hex:0>64}",
                submitted_at=datetime.now(UTC),
            ),
            purpose=Purpose.SELF,
            amount_usd_cents=AMOUNT_CENTS,
            terms=PaymentTerms(
                chain_id=self._chain_id,
                token=wallet,
                payer=wallet,
                treasury=wallet,
                amount_raw=raw_for_usd_cents(AMOUNT_CENTS),
            ),
        )

    async def _complete(self, payment: Settlement) -> None:
        submission = payment.submission
        start = WithStartWorkflowOperation(
            BareSettlement.run,
            payment,
            id=bare_workflow_id(submission.attempt_id),
            task_queue=BARE_TASK_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
            search_attributes=_search_attributes(payment),
            static_summary=f"purchase of 100.00 USD by {payment.terms.payer}",
        )
        await self._temporal.execute_update_with_start_workflow(
            SUBMIT_UPDATE,
            submission,
            result_type=RecordedSubmission,
            id=submit_update_id(0, submission.tx_hash),
            start_workflow_operation=start,
        )
        await self._temporal.get_workflow_handle(
            bare_workflow_id(submission.attempt_id), result_type=SettlementResult
        ).result()
        self.completed.append(submission.attempt_id)


async def in_flight(work: Callable[[_T], Awaitable[None]], items: Sequence[_T]) -> None:
    """Each item's work, `IN_FLIGHT_MAX` at a time. Raises `SettlementFailed` for one that fails or takes too long."""
    waiting = iter(items)

    async def run() -> None:
        for item in waiting:
            try:
                async with asyncio.timeout(COMPLETION_TIMEOUT.total_seconds()):
                    await work(item)
            except TimeoutError:
                raise SettlementFailed(f"not completed within {COMPLETION_TIMEOUT.total_seconds():g} s") from None
            except TemporalError as error:
                raise SettlementFailed(f"{type(error).__name__}: {error}") from error

    await at_once(run() for _ in range(IN_FLIGHT_MAX))


def _require_credited(result: SettlementResult) -> None:
    credits = credits_for_usd_cents(AMOUNT_CENTS)
    if (result.status, result.buyer_credits) != (AttemptStatus.CREDITED, credits) or not result.system_tenant_credits:
        raise SettlementFailed(
            f"attempt {result.attempt_id} ended {result.status.value} with {result.buyer_credits} credits for the "
            f"buyer and {result.system_tenant_credits} for the system tenant"
        )


def _search_attributes(payment: Settlement) -> TypedSearchAttributes:
    """The five that `PaymentsClient.submit` sets."""
    return TypedSearchAttributes(
        [
            SearchAttributePair(PAYMENT_PURPOSE, payment.purpose.value),
            SearchAttributePair(PAYMENT_STATUS, AttemptStatus.PENDING_UNVERIFIED.value),
            SearchAttributePair(BILLING_ACCOUNT_ID, payment.submission.billing_account_id),
            SearchAttributePair(CHAIN_ID, payment.terms.chain_id),
            SearchAttributePair(TX_HASH, payment.submission.tx_hash),
        ]
    )
