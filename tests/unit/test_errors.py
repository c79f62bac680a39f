"""The registry of errors: each has a code of its own, and everything else about it comes from there."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from temporalio.api.failure.v1 import Failure
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError

import activities
import api
import bench
import chain
import commands
import db
import starter
import telemetry
import workflows
from activities.interceptors import RUN_ENDED_TYPE, from_application_error, to_application_error
from api.http.problems import KINDS, STATUSES, kind_of
from domain import errors
from domain.errors import (
    AttemptNotFound,
    Category,
    HashInUse,
    InvalidInput,
    RateLimited,
    Refusal,
    SettleError,
    TemporalUnavailable,
    registered,
)
from domain.payments.attempt import ErrorCode
from tests.api import write_errors

ROOT = Path(errors.__file__).parents[1]

STABLE_CODES = {
    "SettleError": "INTERNAL",
    "Refusal": "REFUSED",
    "InvalidInput": "INVALID_INPUT",
    "AttemptNotFound": "ATTEMPT_NOT_FOUND",
    "HashInUse": "TX_HASH_IN_USE",
    "TooManyReplacements": "TOO_MANY_REPLACEMENTS",
    "WrongChain": "INVALID_CHAIN",
    "PayerRefused": "PAYER_REFUSED",
    "NotSignedIn": "UNAUTHENTICATED",
    "KeyRefused": "KEY_REFUSED",
    "SignInRefused": "SIGN_IN_REFUSED",
    "NotAnOperator": "FORBIDDEN",
    "IdempotencyKeyReused": "IDEMPOTENCY_KEY_REUSED",
    "RateLimited": "RATE_LIMITED",
    "Unavailable": "UNAVAILABLE",
    "ChainUnavailable": "CHAIN_UNAVAILABLE",
    "DatabaseUnavailable": "DATABASE_UNAVAILABLE",
    "DatabaseBusy": "DATABASE_BUSY",
    "TemporalUnavailable": "TEMPORAL_UNAVAILABLE",
    "EventNotDelivered": "EVENT_NOT_DELIVERED",
    "MethodNotFound": "METHOD_NOT_FOUND",
    "MethodDisabled": "METHOD_DISABLED",
    "ChargeNotFound": "CHARGE_NOT_FOUND",
    "RequestOfKeyDiffers": "IDEMPOTENCY_CONFLICT",
    "AddressBudgetExhausted": "ADDRESS_BUDGET_EXHAUSTED",
    "PriceUnavailable": "PRICE_UNAVAILABLE",
    "FindingNotFound": "FINDING_NOT_FOUND",
    "AccountNotFound": "ACCOUNT_NOT_FOUND",
    "GrantNotFound": "GRANT_NOT_FOUND",
    "ReceiptNotFound": "RECEIPT_NOT_FOUND",
    "RemedyRefused": "REMEDY_REFUSED",
    "WatcherBehind": "WATCHER_BEHIND",
    "WorkerOfAnotherChain": "WORKER_OF_ANOTHER_CHAIN",
    "TransferAlreadySettled": "TX_ALREADY_SETTLED",
    "OperatorError": "OPERATOR_ERROR",
    "ConfigurationError": "CONFIGURATION",
    "StartupCheckFailed": "STARTUP_CHECK_FAILED",
    "BookkeepingError": "BOOKKEEPING",
    "BooksDoNotBalance": "BOOKS_DO_NOT_BALANCE",
    "ClocksApart": "CLOCKS_APART",
    "HoldsNotResolved": "HOLDS_NOT_RESOLVED",
    "RelayNotWorking": "RELAY_NOT_WORKING",
    "ApiNotReady": "API_NOT_READY",
    "DemoFailed": "DEMO_FAILED",
    "SettlementFailed": "BENCH_SETTLEMENT_FAILED",
}
STABLE_STATUSES = {
    "INVALID_INPUT": 422,
    "UNAUTHENTICATED": 401,
    "KEY_REFUSED": 401,
    "SIGN_IN_REFUSED": 401,
    "FORBIDDEN": 403,
    "ATTEMPT_NOT_FOUND": 404,
    "TX_HASH_IN_USE": 409,
    "TOO_MANY_REPLACEMENTS": 409,
    "INVALID_CHAIN": 409,
    "IDEMPOTENCY_KEY_REUSED": 422,
    "IDEMPOTENCY_CONFLICT": 409,
    "METHOD_NOT_FOUND": 404,
    "METHOD_DISABLED": 409,
    "CHARGE_NOT_FOUND": 404,
    "ADDRESS_BUDGET_EXHAUSTED": 503,
    "PRICE_UNAVAILABLE": 503,
    "RATE_LIMITED": 429,
    "CHAIN_UNAVAILABLE": 503,
    "TEMPORAL_UNAVAILABLE": 503,
    "DATABASE_BUSY": 503,
    "DATABASE_UNAVAILABLE": 503,
    "INTERNAL": 500,
}


def _tree(base: type[SettleError] = SettleError) -> Iterator[type[SettleError]]:
    yield base
    for child in base.__subclasses__():
        yield from _tree(child)


def _all() -> list[type[SettleError]]:
    """Every error of the product, wherever it is defined: all modules are loaded first."""
    for package in (activities, api, bench, chain, commands, db, starter, telemetry, workflows):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.startswith("db.migrations."):
                importlib.import_module(found.name)
    return [kind for kind in _tree() if not kind.__module__.startswith("tests.")]


OF_THE_TREE = list(registered().values())


@pytest.mark.parametrize(("name", "code"), STABLE_CODES.items())
def test_a_code_is_a_promise(name: str, code: str) -> None:
    error_type = getattr(errors, name)
    assert issubclass(error_type, SettleError)
    assert error_type.code == code


def test_a_status_is_a_promise() -> None:
    statuses = {kind.code: kind.status for kind in KINDS}
    assert {code: statuses[code] for code in STABLE_STATUSES} == STABLE_STATUSES


def test_the_tree_at_the_top_of_the_file_names_every_error() -> None:
    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, SettleError)
    }
    assert set(STABLE_CODES) <= defined
    assert all(re.search(rf"\b{name}\b", errors.__doc__ or "") for name in defined)


def test_every_error_of_the_product_is_in_the_tree_or_a_finer_kind_of_one_that_is() -> None:
    for kind in _all():
        if kind.__module__ != errors.__name__:
            # `chain` has finer kinds of "unavailable"; to all other layers they are that.
            assert "code" not in vars(kind), f"{kind.__module__}.{kind.__name__} belongs into domain/errors.py"
            assert registered()[kind.code] in kind.__mro__
        else:
            assert "code" in vars(kind)
            assert "title" in vars(kind)
            assert registered()[kind.code] is kind


def test_a_code_is_one_class_only() -> None:
    with pytest.raises(TypeError, match="TX_HASH_IN_USE"):
        type("Another", (Refusal,), {"code": HashInUse.code})
    assert registered()[HashInUse.code] is HashInUse
    assert [code for code, count in Counter(kind.code for kind in KINDS).items() if count > 1] == []


@pytest.mark.parametrize("kind", OF_THE_TREE, ids=lambda kind: kind.__name__)
def test_every_error_has_its_row_in_http(kind: type[SettleError]) -> None:
    answer = kind_of(kind.restored("why"))
    assert (answer.code, answer.title) == (kind.code, kind.title)
    assert answer in KINDS
    # A refusal is the caller's to fix, and repeating it is not how.
    assert (answer.status < 500) == kind.restored("why").is_refusal
    assert answer.is_repeatable == (answer.status in {429, 503} or kind.category is Category.INTERNAL)


def test_every_category_has_a_status() -> None:
    assert set(STATUSES) == set(Category)


async def _through_temporal(error: BaseException) -> ApplicationError:
    """As it arrives on the other side, through the data converter that the product uses."""
    failure = Failure()
    await pydantic_data_converter.encode_failure(error, failure)
    back = await pydantic_data_converter.decode_failure(Failure.FromString(failure.SerializeToString()))
    assert isinstance(back, ApplicationError)
    return back


@pytest.mark.parametrize("kind", OF_THE_TREE, ids=lambda kind: kind.__name__)
async def test_every_error_comes_back_from_temporal_as_what_it_was(kind: type[SettleError]) -> None:
    failure = await _through_temporal(to_application_error(kind.restored("field: why")))
    back = from_application_error(failure)
    assert (type(back), back.code, back.message) == (kind, kind.code, "field: why")
    assert failure.non_retryable == back.is_refusal
    # Raised in a workflow or a validator as it is, it has its class for a type.
    raw = from_application_error(await _through_temporal(kind.restored("field: why")))
    assert type(raw) is kind


async def test_what_an_error_knows_comes_back_with_it() -> None:
    field = from_application_error(
        await _through_temporal(to_application_error(InvalidInput("txHash", "expected: hex")))
    )
    limited = from_application_error(await _through_temporal(to_application_error(RateLimited(17.2, "requests"))))
    assert isinstance(field, InvalidInput)
    assert isinstance(limited, RateLimited)
    assert (field.field, limited.retry_after_seconds) == ("txHash", 18)
    # A worker of an earlier version sends no details.
    bare = from_application_error(ApplicationError("txHash: expected hex", type="INVALID_INPUT", non_retryable=True))
    assert isinstance(bare, InvalidInput)
    assert bare.field == "txHash"


def test_an_unknown_refusal_stays_a_refusal_with_its_code() -> None:
    error = from_application_error(ApplicationError("not on Sundays", type="CLOSED_ON_SUNDAYS", non_retryable=True))
    assert (type(error), error.code, error.message) == (Refusal, "CLOSED_ON_SUNDAYS", "not on Sundays")
    answer = kind_of(error)
    assert (answer.code, answer.status, answer.is_repeatable) == ("CLOSED_ON_SUNDAYS", 409, False)
    assert error.is_refusal
    # Passed on, it is still that.
    assert to_application_error(error).type == "CLOSED_ON_SUNDAYS"
    assert Refusal("no").code == "REFUSED"


@pytest.mark.parametrize("failure_type", ["ValueError", "ValidationError", "RuntimeError", None])
def test_a_fault_in_a_workflow_is_a_fault_and_no_refusal(failure_type: str | None) -> None:
    error = from_application_error(ApplicationError("boom", type=failure_type))
    assert (type(error), error.code) == (SettleError, "INTERNAL")
    assert kind_of(error).status == 500


def test_a_run_that_ended_under_a_submission_is_worth_another_call() -> None:
    # The server says that it is final: it is so for that run only.
    error = from_application_error(ApplicationError("completed", type=RUN_ENDED_TYPE, non_retryable=True))
    assert isinstance(error, TemporalUnavailable)


def test_the_table_in_the_documents_is_the_registry() -> None:
    assert write_errors.DOCUMENT.read_text(encoding="utf-8") == write_errors.as_text(), (
        "run: python -m tests.api.write_errors"
    )


def test_every_way_for_an_attempt_to_end_has_words() -> None:
    for code in ErrorCode:
        assert code.for_the_payer
        assert code.for_the_operator
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    assert "errors.md" in runbook


def test_codes_that_the_page_knows_are_codes_that_there_are() -> None:
    script = (ROOT / "api" / "static" / "credits.js").read_text(encoding="utf-8")
    [listed] = re.findall(r"HASH_REFUSED = (\[.*?\]);", script, re.S)
    codes = json.loads(listed.replace("'", '"'))
    assert codes
    assert all(registered()[code].restored("").is_refusal for code in codes)
    compared = set(re.findall(r"\.code === '([A-Z_]+)'", script)) | set(
        re.findall(r"errorCode === '([A-Z_]+)'", script)
    )
    assert compared <= set(registered()) | set(ErrorCode)


def test_another_accounts_attempt_reads_like_none() -> None:
    assert AttemptNotFound("x").category is Category.NOT_FOUND
