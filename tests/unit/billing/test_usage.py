"""Usage reports: each dialect's shape, and the reports that cannot be true."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from domain.billing.usage import Dialect, ImplausibleUsage, Usage, merge_reports, read_usage, require_output_within

CHAT = {
    "prompt_tokens": 1_000,
    "completion_tokens": 200,
    "total_tokens": 1_200,
    "prompt_tokens_details": {"cached_tokens": 600, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 120},
}
RESPONSES = {
    "input_tokens": 1_000,
    "output_tokens": 200,
    "input_tokens_details": {"cached_tokens": 600},
    "output_tokens_details": {"reasoning_tokens": 120},
}
MESSAGES = {
    "input_tokens": 300,
    "cache_read_input_tokens": 600,
    "cache_creation_input_tokens": 100,
    "output_tokens": 200,
}


def as_read(report: str) -> Any:
    """As the gateway reads JSON."""
    return json.loads(report, parse_float=Decimal)


@pytest.mark.parametrize(
    ("dialect", "report", "counts"),
    [
        (Dialect.CHAT, CHAT, (1_000, 600, 0, 200, 120)),
        (Dialect.COMPLETIONS, {"prompt_tokens": 5, "completion_tokens": 7}, (5, 0, 0, 7, 0)),
        (
            Dialect.CHAT,
            {**CHAT, "prompt_tokens_details": None, "completion_tokens_details": None},
            (1_000, 0, 0, 200, 0),
        ),
        (Dialect.RESPONSES, RESPONSES, (1_000, 600, 0, 200, 120)),
        (Dialect.MESSAGES, MESSAGES, (1_000, 600, 100, 200, 0)),
        (Dialect.EMBEDDINGS, {"prompt_tokens": 5, "total_tokens": 5}, (5, 0, 0, 0, 0)),
        (Dialect.IMAGES, {"input_tokens": 5, "output_tokens": 7, "input_tokens_details": None}, (5, 0, 0, 7, 0)),
        (Dialect.SPEECH, {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}, (5, 0, 0, 7, 0)),
        (Dialect.TRANSCRIPTIONS, {"type": "tokens", "input_tokens": 5, "output_tokens": 7}, (5, 0, 0, 7, 0)),
        (Dialect.CHAT, {"prompt_tokens": 0, "completion_tokens": 0}, (0, 0, 0, 0, 0)),
    ],
)
def test_each_dialect_is_read_in_its_own_shape(
    dialect: Dialect, report: dict[str, Any], counts: tuple[int, ...]
) -> None:
    usage = read_usage(dialect, report)
    assert usage is not None
    assert counts == (
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
    )
    assert usage.is_empty is not any(counts)


@pytest.mark.parametrize(("seconds", "begun"), [(0, 0), (3, 3), (Decimal("3.000001"), 4)])
def test_a_recording_is_counted_in_seconds_that_have_begun(seconds: object, begun: int) -> None:
    usage = read_usage(Dialect.TRANSCRIPTIONS, {"type": "duration", "seconds": seconds})
    assert usage is not None
    assert usage.units == {"audio_seconds": begun, "input_audio_seconds": begun}


@pytest.mark.parametrize("seconds", [None, -1, True, "3", [], Decimal("1e400"), 1.5])
def test_a_length_that_is_none_is_implausible(seconds: object) -> None:
    with pytest.raises(ImplausibleUsage, match="seconds is"):
        read_usage(Dialect.TRANSCRIPTIONS, {"type": "duration", "seconds": seconds})


def test_the_parts_of_images_and_recordings_are_read() -> None:
    images = {"input_tokens": 9, "output_tokens": 7, "input_tokens_details": {"text_tokens": 5, "image_tokens": 4}}
    assert read_usage(Dialect.IMAGES, images).units["input_image_tokens"] == 4  # type: ignore[union-attr]
    spoken = {"type": "tokens", "input_tokens": 9, "output_tokens": 7, "input_token_details": {"audio_tokens": 8}}
    assert read_usage(Dialect.TRANSCRIPTIONS, spoken).units["input_audio_tokens"] == 8  # type: ignore[union-attr]


def test_no_report_is_no_usage() -> None:
    assert read_usage(Dialect.CHAT, None) is None


@pytest.mark.parametrize(
    "report",
    [
        "[]",
        '"12"',
        "{}",
        '{"prompt_tokens": 5}',
        '{"prompt_tokens": -1, "completion_tokens": 1}',
        '{"prompt_tokens": 1e400, "completion_tokens": 1}',
        '{"prompt_tokens": 1.5, "completion_tokens": 1}',
        '{"prompt_tokens": true, "completion_tokens": 1}',
        '{"prompt_tokens": "5", "completion_tokens": 1}',
        '{"prompt_tokens": null, "completion_tokens": 1}',
        '{"prompt_tokens": 1000000001, "completion_tokens": 1}',
        '{"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 6}}',
        '{"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": -6}}',
        '{"prompt_tokens": 5, "completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 2}}',
        '{"prompt_tokens": 5, "completion_tokens": 1, "cost": -0.01}',
        '{"prompt_tokens": 5, "completion_tokens": 1, "cost": 1e400}',
        '{"prompt_tokens": 5, "completion_tokens": 1, "cost": "free"}',
        '{"prompt_tokens": 5, "completion_tokens": 1, "cost": {"total_cost": -1}}',
    ],
)
def test_what_cannot_be_true_is_refused(report: str) -> None:
    with pytest.raises(ImplausibleUsage):
        read_usage(Dialect.CHAT, as_read(report))


@pytest.mark.parametrize("seconds", ["-1", "true", "null", '"7"', "1e400", r'"\u0000"'])
def test_a_length_that_is_none_is_refused_with_text_that_the_database_holds(seconds: str) -> None:
    report = as_read('{"type": "duration", "seconds": ' + seconds + "}")
    with pytest.raises(ImplausibleUsage) as refused:
        read_usage(Dialect.TRANSCRIPTIONS, report)
    assert str(refused.value).isprintable()


def test_whole_numbers_may_be_written_as_decimals() -> None:
    usage = read_usage(Dialect.CHAT, as_read('{"prompt_tokens": 5.0, "completion_tokens": 2e2}'))
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (5, 200)


@pytest.mark.parametrize(
    ("report", "stated"),
    [
        ("{}", None),
        ('{"cost": null}', None),
        ('{"cost": 0}', Decimal(0)),
        ('{"cost": 1.5e-07}', Decimal("1.5e-07")),
        (
            '{"cost": {"input_tokens_cost": 0.1, "total_cost": 0.30000000000000000004}}',
            Decimal("0.30000000000000000004"),
        ),
        ('{"cost": 0.01, "cost_details": {"upstream_inference_cost": 0.2}}', Decimal("0.01")),
        ('{"cost": 0.01, "is_byok": true, "cost_details": {"upstream_inference_cost": 0.2}}', Decimal("0.21")),
        ('{"cost": 0.01, "is_byok": true}', Decimal("0.01")),
    ],
)
def test_a_stated_cost_is_read_exactly(report: str, stated: Decimal | None) -> None:
    usage = read_usage(Dialect.CHAT, {"prompt_tokens": 5, "completion_tokens": 1, **as_read(report)})
    assert usage is not None
    assert usage.stated_cost_usd == stated


def test_a_stream_of_messages_reports_input_first_and_output_last() -> None:
    merged = merge_reports({**MESSAGES, "output_tokens": 1}, {"output_tokens": 200, "input_tokens": None})
    assert read_usage(Dialect.MESSAGES, merged) == read_usage(Dialect.MESSAGES, MESSAGES)
    assert merge_reports(None, MESSAGES) == MESSAGES == merge_reports(MESSAGES, None)
    assert merge_reports(None, None) is None


@pytest.mark.parametrize(
    ("output", "limit", "plausible"), [(3_000, 1_000, True), (3_001, 1_000, False), (10**8, None, True)]
)
def test_an_output_far_over_its_bound_is_refused(output: int, limit: int | None, plausible: bool) -> None:
    usage = Usage({"output_tokens": output})
    if plausible:
        require_output_within(usage, limit)
    else:
        with pytest.raises(ImplausibleUsage, match="the call allowed 1000"):
            require_output_within(usage, limit)
