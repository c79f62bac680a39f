"""A refusal from an inner layer arrives as that refusal: never as "ask again", which a page would do indefinitely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from structlog.testing import capture_logs
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from api.http.problems import STATUSES
from devstack.chain import payer_wallets
from domain.errors import (
    BookkeepingError,
    Category,
    InvalidInput,
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
from tests.support.api import Reply, running_api
from tests.support.engine import Engine

HASH = "0x" + "ab" * 32

Raise = Callable[..., Any]


def _raising(error: Exception) -> Raise:
    async def submit(*_: object, **__: object) -> NoReturn:
        raise error

    return submit


async def _submit_where_the_worker_says(engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception) -> Reply:
    """What the interface answers where recording the submission raises `error` in the worker's activity."""
    async with running_api(engine) as api, api.visitor(wallet=payer_wallets()[0]) as visitor:
        intent = await visitor.post("/api/v1/payments/intents", {"amountUsdCents": 500})
        monkeypatch.setattr(payments, "submit", _raising(error))
        async with engine.worker():
            path = f"/api/v1/payments/attempts/{intent.body['attemptId']}/submit"
            return await visitor.post(path, {"txHash": HASH})


async def test_a_refusal_that_only_the_worker_knows_is_a_refusal_with_its_code(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = ApplicationError("not on Sundays", type="CLOSED_ON_SUNDAYS", non_retryable=True)
    reply = await _submit_where_the_worker_says(engine, monkeypatch, refusal)
    assert (reply.status, reply.code, reply.body["retryable"]) == (409, "CLOSED_ON_SUNDAYS", False)
    assert "not on Sundays" in reply.body["detail"]
    assert "Retry-After" not in reply.headers


@pytest.mark.parametrize(
    "error",
    [InvalidInput("txHash", "expected better"), TransferAlreadySettled("it has paid another")],
    ids=lambda e: e.code,
)
async def test_a_refusal_of_the_registry_has_its_own_row(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: SettleError
) -> None:
    reply = await _submit_where_the_worker_says(engine, monkeypatch, error)
    assert (reply.status, reply.code) == (STATUSES[error.category], error.code)
    assert reply.body["retryable"] is False


@pytest.mark.parametrize("error", [StartupCheckFailed("run x"), BookkeepingError("secret facts")], ids=lambda e: e.code)
async def test_an_operators_error_is_reported_and_logged_and_reveals_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: SettleError
) -> None:
    async with running_api(engine) as api, api.visitor(wallet=payer_wallets()[0]) as visitor:
        monkeypatch.setattr(api.services.payments, "create_intent", _raising(error))
        with capture_logs() as lines:
            reply = await visitor.post("/api/v1/payments/intents", {"amountUsdCents": 500})
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


async def test_a_namespace_that_is_not_there_is_named(engine: Engine) -> None:
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
