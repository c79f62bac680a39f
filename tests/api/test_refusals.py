"""A refusal from an inner layer arrives as that refusal: never as "ask again", which a page would do indefinitely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from structlog.testing import capture_logs
from temporalio.service import RPCError, RPCStatusCode

from api.http.problems import STATUSES
from domain.errors import (
    BookkeepingError,
    Category,
    InvalidInput,
    Refusal,
    SettleError,
    StartupCheckFailed,
    TemporalBusy,
    TemporalRefused,
    TemporalRequestInvalid,
    TemporalUnavailable,
    TransferAlreadySettled,
)
from services.payments import lifecycle as payments
from starter.temporal import to_temporal_unavailable
from tests.support.api import RunningApi, SharedApi, Visitor

HASH = "0x" + "ab" * 32

Raise = Callable[..., Any]


def _raising(error: Exception) -> Raise:
    async def submit(*_: object, **__: object) -> NoReturn:
        raise error

    return submit


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("txHash", "expected better"),
        TransferAlreadySettled("it has paid another"),
        Refusal.of_unknown_code("CLOSED_ON_SUNDAYS", "not on Sundays"),
    ],
    ids=lambda e: e.code,
)
async def test_a_refusal_of_an_inner_layer_is_a_refusal_with_its_code(
    shared_payer: Visitor, monkeypatch: pytest.MonkeyPatch, error: SettleError
) -> None:
    intent = await shared_payer.intent()
    monkeypatch.setattr(payments, "submit_locked", _raising(error))
    reply = await shared_payer.submit(intent["attemptId"], HASH)
    assert (reply.status, reply.code) == (STATUSES[error.category], error.code)
    assert reply.body["retryable"] is False
    assert error.message in reply.body["detail"]
    assert "Retry-After" not in reply.headers


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("error", [StartupCheckFailed("run x"), BookkeepingError("secret facts")], ids=lambda e: e.code)
async def test_an_operators_error_is_reported_and_logged_and_reveals_nothing(
    shared_api: RunningApi, shared_payer: Visitor, monkeypatch: pytest.MonkeyPatch, error: SettleError
) -> None:
    monkeypatch.setattr(shared_api.services.payments, "create_intent", _raising(error))
    with capture_logs() as lines:
        reply = await shared_payer.post("/api/v1/payments/intents", {"amountUsdCents": 500})
    assert (reply.status, reply.code, reply.body["retryable"]) == (500, error.code, False)
    assert error.message not in str(reply.body)
    [line] = [line for line in lines if line["event"] == "request failed"]
    assert line["exc_info"] is error


def _rpc_error(status: RPCStatusCode) -> RPCError:
    return RPCError("words", status, b"")


@pytest.mark.parametrize(
    ("status", "kind", "category"),
    [
        (RPCStatusCode.PERMISSION_DENIED, TemporalRefused, Category.UNAVAILABLE),
        (RPCStatusCode.UNAUTHENTICATED, TemporalRefused, Category.UNAVAILABLE),
        (RPCStatusCode.RESOURCE_EXHAUSTED, TemporalBusy, Category.UNAVAILABLE),
        (RPCStatusCode.INVALID_ARGUMENT, TemporalRequestInvalid, Category.MISCONFIGURED),
        (RPCStatusCode.UNIMPLEMENTED, TemporalRequestInvalid, Category.MISCONFIGURED),
        (RPCStatusCode.UNAVAILABLE, TemporalUnavailable, Category.UNAVAILABLE),
        (RPCStatusCode.DEADLINE_EXCEEDED, TemporalUnavailable, Category.UNAVAILABLE),
    ],
)
def test_what_temporal_says_is_said_as_what_it_is(
    status: RPCStatusCode, kind: type[SettleError], category: Category
) -> None:
    error = to_temporal_unavailable(_rpc_error(status))
    assert (type(error), error.category) == (kind, category)
    assert "words" in error.message


async def test_a_namespace_that_is_not_there_is_named(module_api: SharedApi) -> None:
    engine = module_api.running.engine
    lost = await engine.namespace.client.connect(
        engine.namespace.client.service_client.config.target_host, namespace="nowhere"
    )
    with pytest.raises(RPCError) as refused:
        await lost.get_workflow_handle("x").describe()
    error = to_temporal_unavailable(refused.value)
    assert isinstance(error, TemporalRefused)
    assert "TEMPORAL_NAMESPACE" in error.message
    # A workflow that is not there is no such thing.
    with pytest.raises(RPCError) as missing:
        await engine.namespace.client.get_workflow_handle("x").describe()
    assert not isinstance(to_temporal_unavailable(missing.value), TemporalRefused)
