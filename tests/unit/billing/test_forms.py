"""Forms with files: their fields are read, their files counted, and nothing of them changed."""

from __future__ import annotations

import pytest

from domain.billing.forms import FIELD_BYTES_MAX, PARTS_MAX, FormBody
from domain.billing.media import parse_call
from domain.billing.requests import InvalidRequest
from domain.billing.usage import Dialect

TYPE = 'multipart/form-data; boundary="--a b"'


def part(content: bytes, name: str | None = "model", filename: str | None = None) -> bytes:
    """One part."""
    head = "form-data" + (f'; name="{name}"' if name else "") + (f'; filename="{filename}"' if filename else "")
    return b"----a b\r\nContent-Disposition: " + head.encode() + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    """A whole form."""
    return b"".join(parts) + b"----a b--\r\n"


def test_fields_are_read_and_files_counted() -> None:
    content = b"\x00\r\n--a b\r\n----a\r\n\r\n"
    body = form(part("é".encode()), part(content, "file", "a.mp3"), part(b"", "prompt"), part(b"x", "file2", "b"))
    read = FormBody.parse(body, TYPE)
    assert read.names() == {"model", "prompt"}
    assert (read.get("model"), read.get("prompt"), read.get("file")) == ("é", "", None)
    assert read.file_bytes == len(content) + 1
    assert read.replaced({}) is body


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/mixed; boundary=a",
        f"multipart/form-data; boundary={'x' * 71}",
    ],
)
def test_what_is_no_form_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidRequest, match="expected multipart/form-data"):
        FormBody.parse(form(part(b"m")), content_type)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "does not begin"),
        (b"preamble\r\n" + form(part(b"m")), "does not begin"),
        (part(b"m"), "not complete"),
        (form(part(b"m"))[:-20], "not complete"),
        (b"----a b\r\nContent-Disposition: " + b"x" * 5_000 + b"\r\n\r\n\r\n----a b--", "not complete"),
        (form(part(b"m", None)), "no name"),
        (form(part(b"m"), part(b"another")), "given twice"),
        (form(part(b"m" * (FIELD_BYTES_MAX + 1))), "too long"),
        (form(*(part(b"", f"field{number}") for number in range(PARTS_MAX))), "more than"),
    ],
    ids=str,
)
def test_a_form_that_another_parser_could_read_otherwise_is_refused(body: bytes, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        FormBody.parse(body, TYPE)


def test_a_transcription_needs_a_model_and_a_recording() -> None:
    for parts, param in (
        ([part(b"x", "file", "a")], "model"),
        ([part(b"m")], "file"),
        ([part(b"m"), part(b"", "file", "a")], "file"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            parse_call(Dialect.TRANSCRIPTIONS, form(*parts), TYPE)
        assert refused.value.param == param


def test_a_recording_is_held_for_by_its_bytes() -> None:
    asked = parse_call(
        Dialect.TRANSCRIPTIONS, form(part(b"m"), part(bytes(8_001), "file", "a"), part(b"12345", "prompt")), TYPE
    )
    assert asked.other_units == {"audio_seconds": 3, "input_audio_seconds": 3}
    assert (asked.input_tokens_estimate, asked.output_tokens_limit) == (32, 115)
    assert asked.upstream_body(output_tokens_max=1) is asked.body.replaced({})
    assert not asked.is_streamed
