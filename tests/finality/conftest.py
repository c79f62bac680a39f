"""A chain of one's own: its reorganisations disturb no other test's payments."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from typing import Final as Constant
from uuid import UUID

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.messages import Settlement, Submission
from activities.payments.finality import NOT_FINAL_YET, FinalityActivities
from chain.reader import ChainReader
from db.accounts.wallets import Payer
from devstack.chain import LocalChain
from devstack.processes import wait_until
from domain.payments.attempt import PaymentAttempt
from domain.payments.finality import Final, FinalityLevel, FinalityPolicy, ReorgedOut
from domain.payments.verification import terms_of
from services.payments.finality import FinalityDecider
from settings import load
from starter.models import Intent
from tests.chain.faulty_node import FaultyNode
from tests.support.engine import PATIENCE_SECONDS, Engine, open_engine
from tests.support.payments import RolePair, transfer_for
from tests.support.servers import TASK_QUEUE, Namespace, running_chain
from tests.support.sql import query
from workflows.naming import workflow_id
from workflows.verify_and_settle import VerifyAndSettle

FINAL_AFTER: Constant = 12
"""Confirmations that make a payment final here; it is credited after two."""

POLICY: Constant = FinalityPolicy(
    level=FinalityLevel.CONFIRMATIONS, large_level=FinalityLevel.CONFIRMATIONS, confirmations=FINAL_AFTER
)


@pytest.fixture(scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalChain]:
    """It mines only on request; `safe` trails by 8 blocks, `finalized` by 16."""
    async with running_chain(tmp_path_factory.mktemp("own-chain"), slots_in_an_epoch=8) as running:
        yield running


@pytest.fixture
async def engine(namespace: Namespace, roles: RolePair, chain: LocalChain) -> AsyncIterator[Engine]:
    """An engine that tracks a payment for some blocks."""
    async with open_engine(
        namespace, roles, chain, FINALITY="confirmations", FINALITY_CONFIRMATIONS=str(FINAL_AFTER)
    ) as opened:
        yield opened


async def start_as_before(engine: Engine, payer: Payer, intent: Intent, sent: str, *, queue: str = TASK_QUEUE) -> None:
    """Submit as a starter up to schema revision 0006 does: the run records the hash, and tracks the payment itself."""
    attempt = await engine.attempt(intent.attempt_id)
    submission = Submission(
        attempt_id=attempt.id,
        owner_user_id=payer.user_id,
        billing_account_id=attempt.billing_account_id,
        chain_id=attempt.chain_id,
        tx_hash=sent,
        submitted_at=datetime.now(UTC),
    )
    await engine.namespace.client.start_workflow(
        VerifyAndSettle.run,
        Settlement(
            submission=submission,
            purpose=attempt.purpose,
            amount_usd_cents=attempt.amount_usd_cents,
            terms=terms_of(attempt),
        ),
        id=workflow_id(attempt.id),
        task_queue=queue,
    )


@dataclass
class Polls:
    """Polls for one credited payment as a run has them made, without the run: what one remembers the next is given."""

    engine: Engine
    attempt_id: UUID
    changes: Mapping[str, str] = field(default_factory=dict)
    """Settings of the worker by their variables' names."""
    remembered: Sequence[Any] = ()

    async def poll(self) -> Final | ReorgedOut | str:
        """The answer, or why the payment is to be asked about again."""
        settings = load({**self.engine.variables, **self.changes})
        activities = FinalityActivities(
            self.engine.reader, self.engine.service, policy=settings.finality_policy, block_time=settings.block_time
        )
        payment = await self.engine.credited_payment(self.attempt_id)
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, heartbeat_details=self.remembered)
        environment.on_heartbeat = self._remember
        try:
            return await environment.run(activities.await_finality, payment)
        except ApplicationError as waits:
            if waits.type != NOT_FINAL_YET:
                raise
            return waits.message

    async def find_final(self) -> None:
        """Returns when a poll has found it final: a block that a tag names is remembered for a second."""

        async def is_final() -> bool:
            return isinstance(await self.poll(), Final)

        await wait_until(is_final, timeout_seconds=PATIENCE_SECONDS, what="a final payment")

    def _remember(self, *details: Any) -> None:
        self.remembered = details


@dataclass
class Reversals:
    """Stands in for Temporal: which payments were handed over, and whose runs have completed before."""

    started: list[tuple[UUID, bool]] = field(default_factory=list)
    """Attempt, and whether again."""
    completed: set[UUID] = field(default_factory=set)
    before: Callable[[UUID], Awaitable[None]] | None = None
    """What happens before each."""

    async def start_reversal(self, _: str, attempt_id: UUID, *, again: bool) -> bool:
        """As `PaymentsClient.start_reversal` answers."""
        if self.before is not None:
            await self.before(attempt_id)
        self.started.append((attempt_id, again))
        return again or attempt_id not in self.completed


@dataclass
class Bulk:
    """Credited payments in blocks of the chain, and passes over them; only Temporal is not there."""

    chain: LocalChain
    roles: RolePair
    stack: AsyncExitStack
    reversals: Reversals = field(default_factory=Reversals)
    nodes: list[FaultyNode] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    async def decider(self, *, nodes: int = 1, policy: FinalityPolicy = POLICY) -> FinalityDecider:
        """What decides, by so many nodes, each a proxy in front of the chain's own."""
        self.nodes = [
            await self.stack.enter_async_context(FaultyNode.in_front_of(self.chain.url)) for _ in range(nodes)
        ]
        reader = await self.stack.enter_async_context(
            ChainReader([node.url for node in self.nodes], self.chain.chain_id, timeout_seconds=5.0)
        )
        return FinalityDecider(reader, self.roles.service, self.reversals, policy=policy, pause_seconds=0.0)

    async def block(self, number: int) -> str:
        """Hash of the block at that height."""
        return str((await self.chain.rpc("eth_getBlockByNumber", hex(number), False))["hash"])

    async def credited(
        self, block_number: int, *, cents: int = 10_000, block_hash: str | None = None
    ) -> PaymentAttempt:
        """A purchase that is credited in that block, with its bonus."""
        number = next(self._numbers)
        payer = await self.roles.open_account(1)
        attempt = await self.roles.create_submitted(payer, number, cents=cents)
        transfer = transfer_for(
            attempt, block_number=block_number, block_hash=block_hash or await self.block(block_number)
        )
        credited = await self.roles.credit(attempt, transfer)
        await self.roles.mint(attempt)
        return credited.attempt

    def outcomes(self) -> dict[UUID, tuple[str, str, int]]:
        """Outcome, level and block of each payment that has one."""
        rows = query(
            self.roles.database.service_url, "SELECT attempt_id, outcome, level, block_number FROM transfer_finality"
        )
        return {attempt_id: (outcome, level, number) for attempt_id, outcome, level, number in rows}

    async def head(self, *, at_least: int = 40) -> int:
        """The chain's height, with so many blocks at the least."""
        if (missing := at_least - await self.chain.block_number()) > 0:
            await self.chain.mine(missing)
        return await self.chain.block_number()


@pytest.fixture
async def bulk(chain: LocalChain, roles: RolePair) -> AsyncIterator[Bulk]:
    """Payments on the chain's blocks."""
    async with AsyncExitStack() as stack:
        yield Bulk(chain, roles, stack)
