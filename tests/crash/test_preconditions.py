"""A token that is not what an intent's amount assumes, or is not known to be it, gets nothing credited or refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from devstack.chain import LocalChain
from devstack.processes import wait_until
from domain.payments.attempt import AttemptStatus
from domain.payments.verification import WaitReason
from telemetry.metrics.worker import PRECONDITIONS_MET
from tests.chain.faulty_node import FaultyNode
from tests.chain.test_preconditions import lie_about_decimals
from tests.cli.command import settle
from tests.crash.conftest import Systems
from tests.support.system import PATIENCE_SECONDS, Payment, PaymentSystem
from tests.worker.process import running_worker

START_SECONDS_MAX = 30.0


@pytest.fixture
async def node(chain: LocalChain) -> AsyncIterator[FaultyNode]:
    """The only node, which says what a test sets."""
    async with FaultyNode.in_front_of(chain.url) as faulty:
        yield faulty


@pytest.fixture
async def system(systems: Systems, node: FaultyNode) -> PaymentSystem:
    """A system that asks that node."""
    return await systems(CHAIN_RPC_URLS=node.url)


async def _waits_for_the_precondition(system: PaymentSystem, payment: Payment) -> None:
    def is_held(state: object) -> bool:
        pending = state.pending  # type: ignore[attr-defined]
        return any(one.waiting and one.waiting.reason is WaitReason.PRECONDITION for one in pending)

    await system.waits(payment.attempt_id, is_held, what="a payment that is held")
    assert (await system.attempt(payment.attempt_id)).status is AttemptStatus.PENDING_UNVERIFIED
    assert await system.entries(payment.attempt_id) == []


async def test_a_token_that_changes_under_a_running_worker_credits_nothing_until_it_is_right_again(
    system: PaymentSystem, node: FaultyNode
) -> None:
    async with system.worker():
        before = await system.purchase()
        await system.submit_payment(before)
        await system.must_be_settled(before)
        lie_about_decimals(node, 18)
        after = await system.purchase()
        await system.submit_payment(after)
        await _waits_for_the_precondition(system, after)
        view = await system.payments.status(after.payer.user_id, after.attempt_id)
        assert view.waiting_for is not None
        assert "decimals" not in view.waiting_for, "whose fault it is, is for operators"
        node.heal()
        await system.must_be_settled(after)
    await system.books_are_right()


async def test_a_wrong_payment_is_not_refused_either_while_the_token_is_not_known(
    system: PaymentSystem, node: FaultyNode
) -> None:
    lie_about_decimals(node, 18)
    async with system.worker():
        payment = await system.purchase(amount_raw=1)
        await system.submit_payment(payment)
        await _waits_for_the_precondition(system, payment)
        node.heal()
        await system.wait_for_status(payment.attempt_id, AttemptStatus.REJECTED)


async def test_a_payment_that_is_there_is_not_given_up_because_of_the_token(systems: Systems, node: FaultyNode) -> None:
    system = await systems(CHAIN_RPC_URLS=node.url, VERIFICATION_TIMEOUT_SECONDS="1")
    lie_about_decimals(node, 18)
    async with system.worker():
        payment = await system.purchase()
        await system.submit_payment(payment)

        async def last_look_was_taken() -> bool:
            state = await system.state(payment.attempt_id)
            assert state.is_running, "it has been given up"
            details = await system.handle(payment.attempt_id).describe()
            history = await system.handle(payment.attempt_id).fetch_history()
            looks = [
                event.activity_task_scheduled_event_attributes
                for event in history.events
                if event.activity_task_scheduled_event_attributes.activity_type.name == "await_confirmation"
            ]
            held = [one for one in state.pending if one.waiting and one.waiting.reason is WaitReason.PRECONDITION]
            return details.status is not None and len(looks) > 1 and bool(held) and held[0].attempt > 1

        await wait_until(last_look_was_taken, timeout_seconds=PATIENCE_SECONDS, what="polls after the time is up")
        node.heal()
        await system.must_be_settled(payment)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ("USDC_TOKEN_ADDRESS", {"USDC_TOKEN_ADDRESS": "0x" + "12" * 20}),
        ("CHAIN_ID", {"CHAIN_ID": "1"}),
    ],
)
async def test_a_worker_refuses_to_start_with_a_setting_that_doctor_calls_wrong(
    systems: Systems, tmp_path: Path, setting: str, changes: dict[str, str]
) -> None:
    system = await systems()
    assert settle(("doctor", "--json"), {**system.variables, **changes}, tmp_path).exit_code == 1
    async with running_worker(tmp_path, system.variables, **changes) as worker:
        exit_code, _ = await worker.ends(timeout_seconds=START_SECONDS_MAX)
    [line] = [line for line in worker.log.splitlines() if line.startswith("settle: ")]
    assert exit_code == 1
    assert setting in line


async def test_a_worker_refuses_to_start_with_a_token_of_other_decimals(
    system: PaymentSystem, node: FaultyNode, tmp_path: Path
) -> None:
    lie_about_decimals(node, 18)
    async with running_worker(tmp_path, system.variables) as worker:
        exit_code, _ = await worker.ends(timeout_seconds=START_SECONDS_MAX)
    [line] = [line for line in worker.log.splitlines() if line.startswith("settle: ")]
    assert exit_code == 1
    assert "USDC_TOKEN_ADDRESS" in line
    assert "18 decimals" in line


@pytest.mark.slow
async def test_a_worker_that_starts_while_no_node_answers_credits_nothing_before_it_knows_the_token(
    system: PaymentSystem, node: FaultyNode, tmp_path: Path
) -> None:
    payment = await system.purchase()
    node.status(500)
    async with running_worker(tmp_path, system.variables) as worker:
        status, checks = await worker.readiness()
        assert status == 503
        assert checks["token"] != "ok"
        await system.submit_payment(payment)
        node.heal()
        lie_about_decimals(node, 18)
        await _waits_for_the_precondition(system, payment)
        assert (await worker.readiness())[1]["token"] != "ok"
        node.heal()
        await system.must_be_settled(payment)

        async def is_ready() -> bool:
            return (await worker.readiness())[0] == 200

        await wait_until(is_ready, timeout_seconds=PATIENCE_SECONDS, what="readiness")
        assert f'{PRECONDITIONS_MET._name}{{chain="{system.chain.chain_id}"}}' in (await worker.get("/metrics"))[1]
