"""`/v1/images/generations`, `/v1/audio/speech` and `/v1/audio/transcriptions`: what nothing can show or play."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Final

from devstack.upstream.dialects.event import Event, named
from devstack.upstream.generation import Generation
from devstack.upstream.usage import OMITTED, add_usage, usage_of

BYTES_PER_WORD: Final = 64
"""Of sound."""


def images(generation: Generation) -> dict[str, Any]:
    """The pictures as one document: each is the text of the answer."""
    data = [{"b64_json": _as_base64(generation.text.encode())} for _ in range(generation.asked.n)]
    return add_usage({"created": generation.created, "data": data}, usage_of(generation))


def image_events(generation: Generation) -> Iterator[Event]:
    """One picture, at first unfinished."""
    picture = _as_base64(generation.text.encode())
    partial = {"type": "image_generation.partial_image", "b64_json": picture[:4], "partial_image_index": 0}
    yield named(partial, generation.whole.output)
    completed = add_usage({"type": "image_generation.completed", "b64_json": picture}, usage_of(generation))
    yield named(completed, is_last=True)


def speech_events(generation: Generation) -> Iterator[Event]:
    """Bytes for each word; as events where the request asks for these."""
    is_sound = generation.asked.body.get("stream_format") != "sse"
    for word in generation.words:
        sound = word.encode().ljust(BYTES_PER_WORD, b".")
        yield Event(sound, tokens=1) if is_sound else named({"type": _DELTA, "audio": _as_base64(sound)}, 1)
    if not is_sound:
        yield named(add_usage({"type": "speech.audio.done"}, usage_of(generation)), is_last=True)


def transcription(generation: Generation) -> dict[str, Any]:
    """The text of a recording as one document."""
    document: dict[str, Any] = {"text": generation.text}
    usage = usage_of(generation)
    if generation.asked.body.get("response_format") == "verbose_json":
        document |= {"task": "transcribe", "language": "english", "segments": []}
        if usage is not OMITTED:
            document["duration"] = usage["seconds"]
            usage = OMITTED
    return add_usage(document, usage)


def transcription_events(generation: Generation) -> Iterator[Event]:
    """The same, word by word."""
    for word in generation.words:
        yield named({"type": "transcript.text.delta", "delta": word}, 1)
    done = {"type": "transcript.text.done", "text": generation.text}
    yield named(add_usage(done, usage_of(generation)), is_last=True)


_DELTA: Final = "speech.audio.delta"


def _as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
