"""Log lines: one JSON object each, on standard error, with their fields and without secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from telemetry.logs import configure, redact

KEY = "sekret"


@pytest.fixture
def _configuration_of_its_own() -> Iterator[None]:
    """The process's logging as it was before, afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    before = structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()


pytestmark = pytest.mark.usefixtures("_configuration_of_its_own")


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"postgresql://user:{KEY}@host:5432/db", "postgresql://host:5432/db"),
        (f"https://user:{KEY}@node.example", "https://node.example"),
        (f"GET https://node.example/v2/{KEY} failed", "GET https://node.example/… failed"),
        (f"https://node.example?apikey={KEY}", "https://node.example/…"),
        (f"'https://node.example/{KEY}', 'http://b:8545/{KEY}'", "'https://node.example/…', 'http://b:8545/…'"),
        ("https://node.example:8545", "https://node.example:8545"),
        ("3 of 5 confirmations", "3 of 5 confirmations"),
    ],
)
def test_addresses_lose_what_may_be_secret(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_ours_and_libraries_lines_are_json_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure(level="INFO", log_format="json")
    structlog.get_logger("ours").info("it happened", attempt_id="1")
    logging.getLogger("theirs").warning("it %s", "broke", extra={"endpoint": "a"})
    ours, theirs = _lines(capsys)
    assert (ours["event"], ours["level"], ours["logger"], ours["attempt_id"]) == ("it happened", "info", "ours", "1")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("it broke", "warning", "theirs")
    assert theirs["endpoint"] == "a"
    assert ours["timestamp"].endswith("Z")


@pytest.mark.parametrize(("level", "expected"), [("DEBUG", 4), ("INFO", 3), ("WARNING", 2), ("ERROR", 1)])
def test_what_is_below_the_level_is_not_said(capsys: pytest.CaptureFixture[str], level: str, expected: int) -> None:
    configure(level=level, log_format="json")
    for name in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger("ours"), name)("words")
    assert len(_lines(capsys)) == expected


def test_secrets_do_not_appear_wherever_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    configure(level="DEBUG", log_format="json")
    url = f"postgresql://user:{KEY}@host/db"
    ours = structlog.get_logger("ours")
    ours.info(f"connecting to {url}", urls=[url], nested={"url": url, "password": KEY}, api_key=KEY, token=KEY)
    logging.getLogger("theirs").error("cannot reach %s", f"https://node.example/v2/{KEY}")
    try:
        raise ValueError(url)
    except ValueError:
        ours.exception("failed")
        logging.getLogger("theirs").exception("failed")
    captured = capsys.readouterr()
    assert KEY not in captured.err + captured.out
    assert len(captured.err.splitlines()) == 4


def test_what_the_sdk_says_about_a_workflow_or_an_activity_becomes_our_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(level="INFO", log_format="json")
    about_workflow = {"workflow_id": "w", "run_id": "r"}
    about_activity = {"workflow_id": "w", "workflow_run_id": "r", "activity_type": "mint_bonus", "attempt": 2}
    logging.getLogger("temporalio.workflow").info("one", extra={"temporal_workflow": about_workflow})
    logging.getLogger("temporalio.activity").info("two", extra={"temporal_activity": about_activity})
    one, two = _lines(capsys)
    assert (one["workflow_id"], one["workflow_run_id"]) == ("w", "r")
    assert (two["workflow_id"], two["workflow_run_id"], two["activity"], two["activity_attempt"]) == (
        "w",
        "r",
        "mint_bonus",
        2,
    )
    assert not {"temporal_workflow", "temporal_activity"} & {*one, *two}


def test_on_a_terminal_lines_are_words(capsys: pytest.CaptureFixture[str]) -> None:
    configure(level="INFO", log_format="console")
    structlog.get_logger("ours").info("it happened", attempt_id="1")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "it happened" in captured.err
    assert "attempt_id=1" in captured.err
