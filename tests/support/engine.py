"""The whole engine inside the test's process: real database, real Temporal, real chain, and a worker when asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from temporalio.client import WorkflowHandle

from activities.messages import CreditedPayment, SettlementResult
from chain.reader import ChainReader
from composition import chain_reader, payment_policy
from db.accounts.wallets import Payer
from db.engine import RelayDatabase, ServiceDatabase, SettlementDatabase, TenantDatabase
from db.ledger import entries as ledger
from db.payments import attempts
from devstack.chain import LocalChain, Wallet, payer_wallets
from devstack.processes import wait_until
from domain.money import DEFAULT_REVENUE_SHARE
from domain.operations.events import Publish
from domain.payments.attempt import PaymentAttempt, Purpose
from domain.payments.verification import Verified, evaluate, terms_of
from services.payments import lifecycle as payments
from settings import Settings, load
from starter.models import AttemptView, Intent
from starter.payments import PaymentsClient
from starter.progress import WorkflowState, read_workflow
from tests.support.oracle import check_books
from tests.support.payments import RolePair
from tests.support.postgres import Database
from tests.support.servers import Namespace
from worker import build_worker
from workflows.naming import workflow_id
from workflows.verify_and_settle import VerifyAndSettle

MIN_CONFIRMATIONS: Final = 2
PATIENCE_SECONDS: Final = 30.0
RESULT_TIMEOUT: Final = timedelta(seconds=PATIENCE_SECONDS)


def variables_for(database: Database, chain: LocalChain, namespace: Namespace | None = None) -> dict[str, str]:
    """The environment variables of an engine on these servers."""
    return {
        "DATABASE_URL": database.app_url,
        "SETTLEMENT_DATABASE_URL": database.settlement_url,
        "SERVICE_DATABASE_URL": database.service_url,
        "MIGRATION_DATABASE_URL": database.migration_url,
        "CHAIN_ID": str(chain.chain_id),
        "CHAIN_RPC_URLS": chain.url,
        "USDC_TOKEN_ADDRESS": chain.token_address,
        "TREASURY_ADDRESS": chain.treasury_address,
        "MIN_CONFIRMATIONS": str(MIN_CONFIRMATIONS),
        "CHAIN_BLOCK_TIME_SECONDS": "0.05",
        # As soon as it is credited, so that a workflow ends then; what comes after it has tests of its own.
        "FINALITY": "confirmations",
        "FINALITY_CONFIRMATIONS": "1",
        **(namespace.variables if namespace else {}),
    }


@dataclass(frozen=True, slots=True)
class Engine:
    """Everything that one payment passes through, and both databases to check the outcome."""

    namespace: Namespace
    database: Database
    chain: LocalChain
    variables: Mapping[str, str]
    settings: Settings
    tenants: TenantDatabase
    settlement: SettlementDatabase
    service: ServiceDatabase
    relay: RelayDatabase
    reader: ChainReader
    payments: PaymentsClient

    @asynccontextmanager
    async def worker(self, **changes: str) -> AsyncIterator[None]:
        """The product's own worker, as long as the block runs; `changes` are settings by their variables' names."""
        async with self.publishing_worker(None, **changes):
            yield

    @asynccontextmanager
    async def publishing_worker(self, publish: Publish | None, **changes: str) -> AsyncIterator[None]:
        """The same, with what receives its events."""
        settings = load({**self.variables, **changes})
        async with build_worker(
            self.namespace.client,
            settings,
            chain=self.reader,
            settlement=self.settlement,
            service=self.service,
            publish=publish,
        ):
            yield

    async def payer(self, wallet: Wallet | None = None) -> Payer:
        """The payer behind one of the chain's funded wallets."""
        return await self.payments.provision((wallet or payer_wallets()[0]).address)

    async def intent(
        self, cents: int = 10_000, purpose: Purpose = Purpose.SELF, *, wallet: Wallet | None = None
    ) -> tuple[Payer, Intent]:
        """A payer with a new intent."""
        payer = await self.payer(wallet)
        return payer, await self.payments.create_intent(payer, cents, purpose)

    async def pay(self, intent: Intent, *, wallet: Wallet | None = None, amount_raw: int | None = None) -> str:
        """Send what an intent asks for (or another amount), without mining it; the transaction's hash."""
        key = (wallet or payer_wallets()[0]).private_key
        return await self.chain.pay(key, intent.to, intent.amount_raw if amount_raw is None else amount_raw)

    async def pay_and_confirm(self, intent: Intent, **options: Any) -> str:
        """The same, mined and confirmed."""
        sent = await self.pay(intent, **options)
        await self.chain.mine(MIN_CONFIRMATIONS)
        await self.chain.wait_for_receipt(sent)
        return sent

    async def buy(self, cents: int = 10_000, purpose: Purpose = Purpose.SELF) -> tuple[Payer, Intent, str]:
        """A confirmed payment that has not been submitted yet."""
        payer, intent = await self.intent(cents, purpose)
        return payer, intent, await self.pay_and_confirm(intent)

    async def credit_without_bonus(self, payer: Payer, intent: Intent, **options: Any) -> str:
        """Pay an intent and credit its buyer, as a run leaves it that was terminated between the two credits."""
        sent = await self.pay_and_confirm(intent, **options)
        await self.credit_transaction(payer, intent, sent)
        return sent

    async def credit_transaction(self, payer: Payer, intent: Intent, sent: str) -> None:
        """Submit a confirmed transaction and credit its payment, bonus excepted, without a workflow."""
        async with self.settlement.transaction(payer.user_id) as connection:
            submitted = await payments.submit(connection, intent.attempt_id, sent, submitted_at=datetime.now(UTC))
            verdict = evaluate(
                terms_of(submitted.attempt),
                sent,
                await self.reader.payments.look(sent),
                min_confirmations=MIN_CONFIRMATIONS,
            )
            assert isinstance(verdict, Verified)
            if submitted.attempt.purpose is Purpose.SELF:
                await payments.credit_buyer(
                    connection, intent.attempt_id, verdict.transfer, revenue_share=DEFAULT_REVENUE_SHARE
                )
        if submitted.attempt.purpose is Purpose.SYSTEM:
            async with self.service.transaction() as service:
                await payments.credit_donation(service, intent.attempt_id, verdict.transfer)

    async def submit(self, payer: Payer, intent: Intent, sent: str) -> AttemptView:
        """Submit as the payer."""
        return await self.payments.submit(payer.user_id, intent.attempt_id, sent)

    async def credited_payment(self, attempt_id: UUID) -> CreditedPayment:
        """What the activity that waits for its finality is given."""
        attempt = await self.attempt(attempt_id)
        return CreditedPayment(
            attempt_id=attempt.id,
            owner_user_id=attempt.owner_user_id,
            billing_account_id=attempt.billing_account_id,
            terms=terms_of(attempt),
        )

    def handle(self, attempt_id: UUID) -> WorkflowHandle[VerifyAndSettle, SettlementResult]:
        """The attempt's workflow, its latest run."""
        return self.namespace.client.get_workflow_handle_for(VerifyAndSettle.run, workflow_id(attempt_id))

    async def result(self, attempt_id: UUID) -> SettlementResult:
        """How the attempt's workflow ended, when it has."""
        return await self.handle(attempt_id).result(rpc_timeout=RESULT_TIMEOUT)

    async def state(self, attempt_id: UUID) -> WorkflowState:
        """The attempt's workflow as Temporal has it now."""
        state = await read_workflow(self.namespace.client, attempt_id)
        assert state is not None
        return state

    async def waits(self, attempt_id: UUID, condition: Callable[[WorkflowState], bool], *, what: str) -> WorkflowState:
        """The state of the attempt's workflow as soon as the condition holds."""
        seen: list[WorkflowState] = []

        async def holds() -> bool:
            state = await read_workflow(self.namespace.client, attempt_id)
            seen.extend([state] if state else [])
            return state is not None and condition(state)

        await wait_until(holds, timeout_seconds=PATIENCE_SECONDS, what=what)
        return seen[-1]

    async def polled(self, attempt_id: UUID, words: str) -> WorkflowState:
        """The workflow's state as soon as a poll of the chain has reported `words`."""
        return await self.waits(
            attempt_id,
            lambda state: any(words in (pending.last_failure or "") for pending in state.pending),
            what=f"a poll that reports {words!r}",
        )

    async def attempt(self, attempt_id: UUID) -> PaymentAttempt:
        """The attempt as the database has it."""
        async with self.service.transaction() as connection:
            attempt = await attempts.find_attempt(connection, attempt_id)
        assert attempt is not None
        return attempt

    async def events(self, attempt_id: UUID) -> list[attempts.Event]:
        """The attempt's audit trail."""
        async with self.service.transaction() as connection:
            return await attempts.list_events(connection, attempt_id)

    async def credits(self, attempt_id: UUID) -> dict[str, int]:
        """Credits that the attempt brought, by reason."""
        async with self.service.transaction() as connection:
            rows = await ledger.list_entries(connection, str(attempt_id))
        assert len({row.reason for row in rows}) == len(rows), "the same reason twice"
        return {row.reason: row.amount for row in rows}

    async def books(self, **options: Any) -> list[str]:
        """What the oracle has to complain about."""
        return await check_books(self.database.service_url, **options)


@asynccontextmanager
async def open_engine(
    namespace: Namespace, on: Database | RolePair, chain: LocalChain, **changes: str
) -> AsyncIterator[Engine]:
    """An engine without a worker; `changes` are settings by their variables' names.

    On a `RolePair` it uses that one's connections, which know the schema already.
    """
    opened = on if isinstance(on, RolePair) else RolePair(on)
    variables = variables_for(opened.database, chain, namespace) | changes
    settings = load(variables)
    try:
        async with chain_reader(settings) as reader:
            payments = PaymentsClient(opened.app, namespace.client, payment_policy(settings))
            yield Engine(
                *(namespace, opened.database, chain, variables, settings),
                *(opened.app, opened.settlement, opened.service, opened.relay),
                *(reader, payments),
            )
    finally:
        if opened is not on:
            await opened.dispose()
