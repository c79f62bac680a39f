"""Settlements by the product, end to end: from the submitted hash to the completed run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar
from uuid import UUID

from temporalio.client import Client
from temporalio.exceptions import TemporalError

from activities.messages import SettlementResult
from bench.rounds import Side, at_once
from db.accounts.wallets import Payer
from devstack.chain import LocalChain, Wallet, payer_wallets
from domain.errors import SettlementFailed, TemporalUnavailable
from domain.money import credits_for_usd_cents
from domain.payments.attempt import AttemptStatus
from starter.models import Intent
from starter.payments import PaymentsClient
from workflows.naming import workflow_id

IN_FLIGHT_MAX: Final = 32
"""Settlements at once, on every side: enough to keep two cores busy, few enough that none waits for long."""

AMOUNT_CENTS: Final = 10_000

COMPLETION_TIMEOUT: Final = timedelta(seconds=120)
"""Far above what a settlement takes: one that is not completed by then has failed, and so has the bench."""

RECEIPTS_BATCH: Final = 100
TRANSACTIONS_PER_BLOCK: Final = 100
PREPARED_AT_ONCE: Final = 8

REPEAT_SECONDS: Final = 1.0

Submit = Callable[[str, UUID, str], Awaitable[object]]

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
    """The product's side: what `PaymentsClient` and the worker do with a payment.

    `submit_seconds` are those of each submit, `repeated_submits` included.
    """

    def __init__(self, till: Till, payments: PaymentsClient, temporal: Client) -> None:
        self._till = till
        self._payments = payments
        self._temporal = temporal
        self._paid: list[Paid] = []
        self.settled: list[UUID] = []
        self.submit_seconds: list[float] = []
        self.repeated_submits = 0

    def side(self, payments: PaymentsClient | None = None, *, clients: int = IN_FLIGHT_MAX) -> Side:
        """Submit (by another client, where one is given) and wait for the completed run, so many at a time."""
        submit = (payments or self._payments).submit

        async def work(_count: int) -> None:
            paid, self._paid = self._paid, []
            await in_flight(partial(self._settle, submit), paid, max_at_once=clients)

        return Side("settle", self._prepare, work)

    async def _prepare(self, count: int) -> None:
        self._paid = await self._till.pay(count)

    async def _settle(self, submit: Submit, paid: Paid) -> None:
        attempt_id = paid.intent.attempt_id
        started = time.perf_counter()
        self.repeated_submits += await submit_as_a_client(submit, paid.payer.user_id, attempt_id, paid.tx_hash)
        self.submit_seconds.append(time.perf_counter() - started)
        result = await self._temporal.get_workflow_handle(
            workflow_id(attempt_id), result_type=SettlementResult
        ).result()
        _require_credited(result)
        self.settled.append(attempt_id)


async def submit_as_a_client(submit: Submit, user_id: str, attempt_id: UUID, tx_hash: str) -> int:
    """Submit, and again as long as the answer is that Temporal is not available; how often again."""
    repeated = 0
    while True:
        try:
            await submit(user_id, attempt_id, tx_hash)
        except TemporalUnavailable:
            repeated += 1
            await asyncio.sleep(REPEAT_SECONDS)
        else:
            return repeated


async def in_flight(
    work: Callable[[_T], Awaitable[None]], items: Sequence[_T], *, max_at_once: int = IN_FLIGHT_MAX
) -> None:
    """Each item's work, so many at a time. Raises `SettlementFailed` for one that fails or takes too long."""
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

    await at_once(run() for _ in range(max_at_once))


def _require_credited(result: SettlementResult) -> None:
    credits = credits_for_usd_cents(AMOUNT_CENTS)
    if (result.status, result.buyer_credits) != (AttemptStatus.CREDITED, credits) or not result.system_tenant_credits:
        raise SettlementFailed(
            f"attempt {result.attempt_id} ended {result.status.value} with {result.buyer_credits} credits for the "
            f"buyer and {result.system_tenant_credits} for the system tenant"
        )
