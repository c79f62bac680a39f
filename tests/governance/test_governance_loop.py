"""The governance loop before a real gateway and upstream: billed like any client, once, within its budget."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.operations.governance_loop import CALL_REFUSED, GATEWAY_UNAVAILABLE, GovernanceLoopActivities
from activities.operations.signatures import CallToMake, CallToPrepare
from commands.schedules import wanted_schedules
from db.ledger import entries as ledger
from domain.errors import ConfigurationError
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.ledger.entries import Posting, Reason
from domain.operations.events import GOVERNANCE_CALL
from domain.operations.governance import HeartbeatStatus
from domain.operations.governance_call import CallOutcome, GovernanceCall, GovernanceLoopPolicy
from settings import load
from tests.gateway.support import MODEL, Account, Served, add_key, open_account, served
from tests.governance.conftest import Heard, working
from tests.governance.test_heartbeat import beat
from tests.support.engine import RESULT_TIMEOUT, Engine
from tests.support.servers import TASK_QUEUE
from tests.support.sql import connect, query
from workflows.jobs.governance_loop import GovernanceLoop, GovernanceLoopInput
from workflows.naming import GOVERNANCE_LOOP

PROMPT = "You run the platform. Answer in a sentence."
BUDGET = 10_000_000
GIVEN = 100_000_000


@dataclass
class Loop:
    """A gateway with the system tenant's key, and the loop's settings."""

    engine: Engine
    served: Served
    variables: dict[str, str]

    @property
    def activities(self) -> GovernanceLoopActivities:
        """The activities, without a workflow around them."""
        settings = load({**self.engine.variables, **self.variables})
        return GovernanceLoopActivities(self.engine.settlement, self.engine.service, settings.governance_loop)

    async def prepare(self) -> str:
        """A call's body."""
        now = datetime.now(UTC)
        wanted = CallToPrepare(since=now - timedelta(days=1), until=now + timedelta(minutes=1), output_tokens_max=100)
        prepared: str = await ActivityEnvironment().run(self.activities.prepare_governance_call, wanted)
        return prepared

    async def call(self, key: str, body: str) -> GovernanceCall:
        """The call itself."""
        wanted = CallToMake(key=key, scheduled_at=datetime.now(UTC), body=body)
        made: GovernanceCall = await ActivityEnvironment().run(self.activities.call_governance_model, wanted)
        return made

    def charged(self) -> list[int]:
        """What each receipt charged."""
        return [receipt["charged_credits"] for receipt in self.served.books.receipts()]

    def rows(self) -> list[tuple[Any, ...]]:
        """Everything on record."""
        return query(
            self.engine.database.service_url,
            "SELECT outcome, charged_credits, limit_source FROM governance_calls ORDER BY id",
        )


@asynccontextmanager
async def looping(
    engine: Engine, folder: Path, *, credits: int = GIVEN, limit_day: int | None = BUDGET, key: str | None = None
) -> AsyncIterator[Loop]:
    if credits:
        gift = Posting(
            billing_account_id=SYSTEM_TENANT_ACCOUNT_ID,
            amount_credits=credits,
            reason=Reason.SYSTEM_DONATION,
            reference=str(uuid4()),
        )
        async with engine.service.autocommit() as connection:
            await ledger.post(connection, gift, {})
    account: Account = add_key(engine.database, SYSTEM_TENANT_ACCOUNT_ID, limit_day=limit_day)
    prompt = folder / "prompt.txt"
    prompt.write_text(PROMPT)
    async with served(engine.database, account=account) as gateway:
        variables = {
            "GOVERNANCE_MODEL": MODEL,
            "GOVERNANCE_PROMPT_FILE": str(prompt),
            "GOVERNANCE_BUDGET_CREDITS_PER_DAY": str(BUDGET),
            "GOVERNANCE_SERVICE_KEY": key or account.key,
            "GATEWAY_URL": gateway.client.url,
        }
        yield Loop(engine, gateway, variables)


async def run(engine: Engine) -> GovernanceCall:
    """The job from start to end."""
    return await engine.namespace.client.execute_workflow(
        GovernanceLoop.run,
        GovernanceLoopInput(output_tokens_max=100),
        id=f"loop-{uuid4()}",
        task_queue=TASK_QUEUE,
        rpc_timeout=RESULT_TIMEOUT,
    )


async def test_a_call_is_held_charged_recorded_and_published_as_any_clients_is(
    engine: Engine, heard: Heard, tmp_path: Path
) -> None:
    async with looping(engine, tmp_path) as loop, working(engine, heard.publish, **loop.variables):
        made = await run(engine)
        receipt = loop.served.books.receipt()
        assert made.outcome is CallOutcome.ANSWERED
        assert made.answer
        assert (made.charged_credits, made.request_id) == (receipt["charged_credits"], receipt["request_id"])
        assert made.charged_credits > 0
        assert receipt["billing_account_id"] == SYSTEM_TENANT_ACCOUNT_ID
        assert loop.served.books.balance(SYSTEM_TENANT_ACCOUNT_ID) == (GIVEN - made.charged_credits, 0)
        assert loop.served.books.states() == ["captured"]
        assert loop.rows() == [("answered", made.charged_credits, None)]
        [event] = heard.of_type(GOVERNANCE_CALL)
        assert event.data["answer"] == made.answer
        assert event.data["chargedCredits"] == made.charged_credits
        [call] = loop.served.calls()
        messages = json.loads(call.body)["messages"]
        assert messages[0] == {"role": "system", "content": PROMPT}
        assert json.loads(messages[1]["content"])["balanceCredits"] == GIVEN


async def test_a_call_whose_worker_died_before_recording_it_is_not_made_or_charged_again(
    engine: Engine, tmp_path: Path
) -> None:
    async with looping(engine, tmp_path) as loop:
        body = await loop.prepare()
        first = await loop.call("loop/run", body)
        with connect(engine.database.superuser_url) as connection:
            connection.execute("DELETE FROM governance_calls")  # as if it had died in between
        again = await loop.call("loop/run", body)
        assert again.model_copy(update={"scheduled_at": first.scheduled_at}) == first
        assert loop.charged() == [first.charged_credits]
        assert len(loop.served.calls()) == 1
        assert loop.rows() == [("answered", first.charged_credits, None)]


async def test_a_call_on_record_is_answered_from_there(engine: Engine, tmp_path: Path) -> None:
    async with looping(engine, tmp_path) as loop:
        first = await loop.call("loop/run", await loop.prepare())
    assert await loop.call("loop/run", "{}") == first  # the gateway has stopped


async def test_without_credits_it_is_refused_like_any_client_and_the_heartbeat_reports_it(
    engine: Engine, heard: Heard, tmp_path: Path
) -> None:
    async with looping(engine, tmp_path, credits=0) as loop, working(engine, heard.publish, **loop.variables):
        made = await run(engine)
        assert (made.outcome, made.charged_credits, made.limit_source) == (CallOutcome.REFUSED, 0, "balance")
        assert loop.served.calls() == []
        assert loop.charged() == []
        taken = await beat(engine)
    assert taken.status is HeartbeatStatus.FAILED
    [problem] = taken.problems
    assert "402 insufficient_credits (balance)" in problem


async def test_the_budget_of_a_day_is_the_keys_limit_and_no_problem_of_the_heartbeats(
    engine: Engine, heard: Heard, tmp_path: Path
) -> None:
    async with looping(engine, tmp_path, limit_day=1) as loop, working(engine, heard.publish, **loop.variables):
        made = await run(engine)
        assert (made.outcome, made.limit_source) == (CallOutcome.REFUSED, "key_limit")
        assert loop.charged() == []
        taken = await beat(engine)
    assert taken.problems == ()


@pytest.mark.parametrize("limit_day", [None, BUDGET + 1])
async def test_a_key_that_may_spend_more_than_the_budget_is_not_used(
    engine: Engine, tmp_path: Path, limit_day: int | None
) -> None:
    async with looping(engine, tmp_path, limit_day=limit_day) as loop:
        with pytest.raises(ConfigurationError, match="expected at most GOVERNANCE_BUDGET_CREDITS_PER_DAY, 10000000"):
            await loop.prepare()


async def test_a_key_of_another_account_is_not_used(engine: Engine, tmp_path: Path) -> None:
    other = await open_account(engine.database, limit_day=1)
    async with looping(engine, tmp_path, key=other.key) as loop:
        with pytest.raises(ConfigurationError, match="of account cogni_system"):
            await loop.prepare()


async def test_a_gateway_that_is_away_is_asked_again_and_one_that_refuses_is_not(
    engine: Engine, tmp_path: Path
) -> None:
    async with looping(engine, tmp_path) as loop:
        body = await loop.prepare()
        unknown = json.dumps(json.loads(body) | {"model": "no-such-model"})
        with pytest.raises(ApplicationError) as refused:
            await loop.call("loop/unknown", unknown)
        assert (refused.value.type, refused.value.non_retryable) == (CALL_REFUSED, True)
        loop.served.gateway.is_stopping = True
        with pytest.raises(ApplicationError) as stopping:
            await loop.call("loop/run", body)
        assert (stopping.value.type, stopping.value.non_retryable) == (GATEWAY_UNAVAILABLE, False)
    with pytest.raises(ApplicationError) as away:
        await loop.call("loop/run", body)
    assert (away.value.type, away.value.non_retryable) == (GATEWAY_UNAVAILABLE, False)
    assert loop.rows() == []


async def test_without_settings_each_step_says_what_is_missing(engine: Engine) -> None:
    unconfigured = GovernanceLoopActivities(engine.settlement, engine.service, None)
    now = datetime.now(UTC)
    with pytest.raises(ConfigurationError, match="GOVERNANCE_MODEL is not set"):
        await unconfigured.prepare_governance_call(CallToPrepare(since=now, until=now, output_tokens_max=100))
    with pytest.raises(ConfigurationError, match="GOVERNANCE_MODEL is not set"):
        await unconfigured.call_governance_model(CallToMake(key="loop/run", scheduled_at=now, body="{}"))


@pytest.mark.slow  # it is retried for some time
async def test_a_run_without_settings_fails_and_says_what_is_missing(engine: Engine, heard: Heard) -> None:
    async with working(engine, heard.publish):
        with pytest.raises(WorkflowFailureError) as failed:
            await run(engine)
    assert "GOVERNANCE_MODEL is not set" in str(failed.value.cause.__cause__)


def test_it_has_a_schedule_only_where_it_is_configured(engine_variables: dict[str, str], tmp_path: Path) -> None:
    on = {
        **engine_variables,
        "GOVERNANCE_MODEL": MODEL,
        "GOVERNANCE_PROMPT_FILE": str(tmp_path / "prompt.txt"),
        "GOVERNANCE_BUDGET_CREDITS_PER_DAY": "1",
        "GOVERNANCE_SERVICE_KEY": "sk-settle-0123456789",
        "GATEWAY_URL": "http://127.0.0.1:1",
    }
    assert GOVERNANCE_LOOP not in {schedule.job for schedule in wanted_schedules(load(engine_variables))}
    assert GOVERNANCE_LOOP in {schedule.job for schedule in wanted_schedules(load(on))}
    for missing in ("GOVERNANCE_PROMPT_FILE", "GOVERNANCE_BUDGET_CREDITS_PER_DAY", "GOVERNANCE_SERVICE_KEY"):
        with pytest.raises(ConfigurationError, match=f"{missing} is not set"):
            _ = load({name: value for name, value in on.items() if name != missing}).governance_loop


@pytest.fixture
def engine_variables() -> dict[str, str]:
    """The least that settings need."""
    return {"CHAIN_ID": "31337"}


def test_the_policy_hides_its_key() -> None:
    policy = GovernanceLoopPolicy("m", Path("p"), 1, "http://a", "sk-settle-secret")
    assert "sk-settle-secret" not in repr(policy)
