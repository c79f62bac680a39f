"""Calls for images, speech and transcriptions: what they may cost at most, by tokens and by other units.

Their answers are not text, so that what was produced is counted otherwise: images as such, speech by the characters
that are read out, a recording by its length. Where only its bytes are known, the assumptions are below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from domain.billing.forms import FormBody
from domain.billing.requests import (
    BYTES_PER_TOKEN,
    REFUSED_FIELDS,
    CallRequest,
    InvalidRequest,
    choices_of,
    model_of,
    parse_request,
)
from domain.billing.usage import Dialect

IMAGE_TOKENS: Final[Mapping[Any, int]] = {"low": 500, "medium": 2_000, "high": 7_000}
"""Of output, for an image of each quality, at most; the largest of them where the request does not say."""

SPEECH_TOKENS_PER_CHARACTER: Final = 2
"""Of output, at most: some fifteen characters are a second of speech, which is some twenty tokens."""

RECORDING_BYTES_PER_SECOND: Final = 4_000
"""32 kbit/s, as most codecs store speech. It counts for the hold, and where neither answer nor record says how long the
recording is.
"""
RECORDING_TOKENS_PER_SECOND: Final = 10
SPOKEN_TOKENS_PER_SECOND: Final = 5

FORMATS_WITHOUT_USAGE: Final = frozenset({"text", "srt", "vtt"})


def parse_call(dialect: Dialect, body: bytes, content_type: str) -> CallRequest:
    """Parse the body of a call of any API. Raises `InvalidRequest`."""
    match dialect:
        case Dialect.IMAGES:
            return _parse_images(body)
        case Dialect.SPEECH:
            return _parse_speech(body)
        case Dialect.TRANSCRIPTIONS:
            return _parse_transcription(body, content_type)
    return parse_request(dialect, body)


def _parse_images(body: bytes) -> CallRequest:
    asked = parse_request(Dialect.IMAGES, body)
    images = choices_of(asked.body)
    most = IMAGE_TOKENS.get(asked.body.get("quality"), max(IMAGE_TOKENS.values()))
    return asked.with_output(images * most, {"images": images})


def _parse_speech(body: bytes) -> CallRequest:
    asked = parse_request(Dialect.SPEECH, body)
    text = asked.body.get("input")
    if not isinstance(text, str) or not text:
        raise InvalidRequest("input is invalid: expected a text", "input")
    return replace(
        asked.with_output(SPEECH_TOKENS_PER_CHARACTER * len(text), {"input_characters": len(text)}),
        is_streamed=True,
        input_tokens_estimate=-(-len(text) // BYTES_PER_TOKEN),
    )


def _parse_transcription(body: bytes, content_type: str) -> CallRequest:
    form = FormBody.parse(body, content_type)
    refused = sorted(REFUSED_FIELDS & form.names())
    if refused:
        raise InvalidRequest(f"{refused[0]} is not accepted: the gateway chooses where a call goes", refused[0])
    model = model_of(form)
    if not form.file_bytes:
        raise InvalidRequest("file is missing: expected a recording", "file")
    if form.get("response_format") in FORMATS_WITHOUT_USAGE:
        # What the recording is charged by is in none of them.
        raise InvalidRequest("response_format is not supported: expected json, verbose_json or none", "response_format")
    seconds = -(-form.file_bytes // RECORDING_BYTES_PER_SECOND)
    prompt = len((form.get("prompt") or "").encode(errors="replace"))
    return CallRequest(
        dialect=Dialect.TRANSCRIPTIONS,
        model=model,
        is_streamed=form.get("stream") == "true",
        asks_for_usage=True,
        input_tokens_estimate=RECORDING_TOKENS_PER_SECOND * seconds + -(-prompt // BYTES_PER_TOKEN),
        output_tokens_limit=SPOKEN_TOKENS_PER_SECOND * seconds + 100,
        body=form,
        other_units=_seconds(seconds),
    )


def units_of_input(dialect: str, input_tokens_estimate: int) -> Mapping[str, int]:
    """Units besides tokens that follow from the estimate of the input, where a call has left no more than that."""
    if dialect == Dialect.SPEECH:
        return {"input_characters": BYTES_PER_TOKEN * input_tokens_estimate}
    return _seconds(input_tokens_estimate // RECORDING_TOKENS_PER_SECOND) if dialect == Dialect.TRANSCRIPTIONS else {}


def _seconds(count: int) -> Mapping[str, int]:
    return {"audio_seconds": count, "input_audio_seconds": count}
