"""What an operator sees who opens the workflow: what it waits for, messages, search attributes, readable payloads."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client, WorkflowHandle

from activities.interceptors import to_application_error
from activities.messages import (
    AttemptOutcomeMessage,
    BonusToMint,
    MintedBonus,
    PaymentToCredit,
    PaymentToVerify,
    Settlement,
    SettlementResult,
)
from devstack.chain import LocalChain, payer_wallets
from devstack.processes import wait_until
from domain import errors
from domain.errors import Refusal, SettleError, TransferAlreadySettled
from domain.payments.attempt import Purpose
from domain.payments.verification import Refused, Verified
from starter.progress import read_workflow
from tests.support.engine import PATIENCE_SECONDS, Engine
from tests.support.servers import TASK_QUEUE
from tests.workflow.paths import Stage
from tests.workflow.scripted import Script, not_yet, scripted_worker, verified
from workflows.naming import (
    BILLING_ACCOUNT_ID,
    CHAIN_ID,
    PAYMENT_PURPOSE,
    PAYMENT_STATUS,
    TX_HASH,
    attempt_id_of,
    workflow_id,
)
from workflows.verify_and_settle import VerifyAndSettle

POLLS = 12
"""The development server hands out more retries than that slowly; `test_time` shows it for 200."""


async def test_waiting_adds_no_history_and_says_what_it_waits_for(client: Client) -> None:
    script = Script()

    async def look(_: PaymentToVerify) -> Verified | Refused:
        looks = len(script.named("await_confirmation"))
        if looks <= POLLS:
            raise not_yet(f"{looks} of {POLLS} polls", again_in=timedelta(milliseconds=2))
        if looks == POLLS + 1:
            raise not_yet("3 of 5 confirmations", again_in=timedelta(seconds=3))
        return verified()

    script.look = look
    stage = Stage(client, "waiting", "waiting", script, uuid4())
    lengths = set()
    async with scripted_worker(client, script, stage.task_queue):
        await stage.submit()

        async def polled() -> bool:
            state = await read_workflow(client, stage.attempt_id)
            assert state is not None
            lengths.add(state.history_length)
            return bool(state.pending) and state.pending[0].last_failure == "3 of 5 confirmations"

        await wait_until(polled, timeout_seconds=PATIENCE_SECONDS, what=f"{POLLS} polls")
        state = await read_workflow(client, stage.attempt_id)
        assert state is not None
        [pending] = state.pending
        assert (pending.name, pending.last_failure) == ("await_confirmation", "3 of 5 confirmations")
        assert pending.attempt > POLLS
        assert pending.next_attempt_at is not None
        assert pending.waiting is not None
        assert (pending.waiting.confirmations, pending.waiting.confirmations_needed) == (1, 5)
        before_the_end = len((await stage.handle.fetch_history()).events)
        await stage.credited()
    assert max(lengths) == before_the_end < 15


async def test_the_pending_activity_says_how_many_confirmations_are_there(engine: Engine, chain: LocalChain) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        sent = await engine.pay(intent)
        await engine.submit(payer, intent, sent)
        await chain.mine(1)
        state = await engine.polled(intent.attempt_id, "1 of 2 confirmations")
        view = await engine.payments.status(payer.user_id, intent.attempt_id)
        assert (view.confirmations, view.confirmations_needed) == (1, 2)
        assert view.waiting_for == "1 of 2 confirmations"
        await chain.mine(1)
        await engine.result(intent.attempt_id)
    assert state.pending[0].waiting is not None


async def _attributes(engine: Engine, handle: WorkflowHandle[Any, Any]) -> dict[str, object]:
    return {pair.key.name: pair.value for pair in (await handle.describe()).typed_search_attributes}


async def _found(engine: Engine, query: str) -> set[str]:
    return {execution.id async for execution in engine.namespace.client.list_workflows(query)}


async def test_search_attributes_follow_the_payment_and_find_it(engine: Engine, chain: LocalChain) -> None:
    async with engine.worker():
        payer, intent = await engine.intent()
        slow = await engine.pay(intent)
        await engine.submit(payer, intent, slow)
        handle = engine.handle(intent.attempt_id)
        started = {
            PAYMENT_PURPOSE.name: "self",
            PAYMENT_STATUS.name: "PENDING_UNVERIFIED",
            BILLING_ACCOUNT_ID.name: payer.billing_account_id,
            CHAIN_ID.name: chain.chain_id,
            TX_HASH.name: slow,
        }
        ours = {*started}
        assert {name: value for name, value in (await _attributes(engine, handle)).items() if name in ours} == started

        fast = await chain.speed_up(payer_wallets()[0].private_key, slow)
        await engine.submit(payer, intent, fast)

        async def replaced() -> bool:
            attributes = await _attributes(engine, handle)
            assert attributes[PAYMENT_STATUS.name] == "PENDING_UNVERIFIED"
            return attributes[TX_HASH.name] == fast

        await wait_until(replaced, timeout_seconds=PATIENCE_SECONDS, what="the new hash")

        await chain.mine(2)
        await engine.result(intent.attempt_id)
    ended = await _attributes(engine, handle)
    assert (ended[TX_HASH.name], ended[PAYMENT_STATUS.name]) == (fast, "CREDITED")
    for query in (
        f"PaymentStatus = 'CREDITED' AND TxHash = '{fast}'",
        f"BillingAccountId = '{payer.billing_account_id}' AND PaymentPurpose = 'self' AND ChainId = {chain.chain_id}",
    ):

        async def listed(query: str = query) -> bool:
            return await _found(engine, query) == {workflow_id(intent.attempt_id)}

        await wait_until(listed, timeout_seconds=PATIENCE_SECONDS, what=query)
    assert await _found(engine, f"TxHash = '{slow}'") == set()


async def test_summaries_and_details_report_progress_as_text(engine: Engine, chain: LocalChain) -> None:
    async with engine.worker():
        payer, intent = await engine.intent(cents=12_345)
        sent = await engine.pay(intent)
        await engine.submit(payer, intent, sent)
        handle = engine.handle(intent.attempt_id)
        description = await handle.describe()
        assert await description.static_summary() == f"purchase of 123.45 USD by {payer.wallet_address}"
        assert f"{sent[:10]}… to be confirmed, until 20" in await _current_details(handle)
        await chain.mine(2)
        await engine.result(intent.attempt_id)
        details = await _current_details(handle)
        assert details.startswith("CREDITED: 1234500000 credits") and " 925875000 " in details
    wait, credit, bonus = await _summaries(handle)
    assert sent[:10] in wait
    assert "buyer" in credit
    assert "bonus" in bonus


async def test_a_donations_summary_says_donation(engine: Engine) -> None:
    async with engine.worker():
        payer, intent, sent = await engine.buy(cents=100, purpose=Purpose.SYSTEM)
        await engine.submit(payer, intent, sent)
        await engine.result(intent.attempt_id)
        description = await engine.handle(intent.attempt_id).describe()
        assert await description.static_summary() == f"donation of 1.00 USD by {payer.wallet_address}"


async def _current_details(handle: WorkflowHandle[VerifyAndSettle, SettlementResult]) -> str:
    metadata: WorkflowMetadata = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return metadata.current_details


async def _summaries(handle: WorkflowHandle[VerifyAndSettle, SettlementResult]) -> list[str]:
    return [
        json.loads(event.user_metadata.summary.data)
        for event in (await handle.fetch_history()).events
        if event.event_type in {EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED, EventType.EVENT_TYPE_MARKER_RECORDED}
        and event.user_metadata.summary.data
    ]


def _decoded(payload: Payload) -> Any:
    assert payload.metadata["encoding"] == b"json/plain"
    return json.loads(payload.data)


MODELS = {
    "await_confirmation": (PaymentToVerify, Verified),
    "credit_buyer": (PaymentToCredit, AttemptOutcomeMessage),
    "mint_bonus": (BonusToMint, MintedBonus),
}


async def test_every_payload_is_plain_json_of_one_model(engine: Engine) -> None:
    async with engine.worker():
        payer, intent, sent = await engine.buy()
        await engine.submit(payer, intent, sent)
        await engine.result(intent.attempt_id)
    history = await engine.handle(intent.attempt_id).fetch_history()
    scheduled: dict[int, str] = {}
    seen = set()
    for event in history.events:
        match event.event_type:
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
                [payload] = event.workflow_execution_started_event_attributes.input.payloads
                assert Settlement.model_validate(_decoded(payload)).submission.tx_hash == sent
                assert event.workflow_execution_started_event_attributes.task_queue.name == TASK_QUEUE
            case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                attributes = event.activity_task_scheduled_event_attributes
                scheduled[event.event_id] = attributes.activity_type.name
                [payload] = attributes.input.payloads
                given, _ = MODELS[attributes.activity_type.name]
                _exactly(given, _decoded(payload))
            case EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                completed = event.activity_task_completed_event_attributes
                name = scheduled[completed.scheduled_event_id]
                [payload] = completed.result.payloads
                _exactly(MODELS[name][1], _decoded(payload))
                seen.add(name)
            case EventType.EVENT_TYPE_MARKER_RECORDED:
                marker = event.marker_recorded_event_attributes
                if marker.marker_name != "core_local_activity":
                    continue
                [payload] = marker.details["data"].payloads
                name = _decoded(payload)["activity_type"]
                [payload] = marker.details["result"].payloads
                _exactly(MODELS[name][1], _decoded(payload))
                seen.add(name)
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
                [payload] = event.workflow_execution_completed_event_attributes.result.payloads
                _exactly(SettlementResult, _decoded(payload))
    assert seen == set(MODELS)


def _exactly(model: type[Any], document: Any) -> None:
    assert set(document) == set(model.model_fields)
    assert model.model_validate(document).model_dump(mode="json") == document


def test_a_workflows_id_and_its_attempt_are_found_from_each_other() -> None:
    attempt_id = uuid4()
    assert workflow_id(attempt_id) == f"verify-and-settle-{attempt_id}"
    assert attempt_id_of(workflow_id(attempt_id)) == attempt_id
    for other in ("verify-and-settle-", str(attempt_id), "other-" + str(attempt_id)):
        with pytest.raises(ValueError, match=r"not the id of|badly formed"):
            attempt_id_of(other)


def _leaves(base: type[SettleError]) -> list[type[SettleError]]:
    return [base, *(leaf for child in base.__subclasses__() for leaf in _leaves(child))]


@pytest.mark.parametrize("kind", [kind for kind in _leaves(SettleError) if kind.__module__ == errors.__name__])
def test_a_domain_error_leaves_an_activity_with_its_code_and_only_a_no_is_final(kind: type[SettleError]) -> None:
    failure = to_application_error(kind.restored("why"))
    assert (failure.type, failure.message) == (kind.code, "why")
    assert failure.non_retryable == issubclass(kind, (Refusal, TransferAlreadySettled))
