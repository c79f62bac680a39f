"""The wire shapes of each API: the answer as one document, and as a stream of events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from devstack.upstream.dialects import chat, embeddings, media, messages, responses
from devstack.upstream.dialects.event import Event
from devstack.upstream.generation import Generation
from devstack.upstream.requests import Dialect


@dataclass(frozen=True, slots=True)
class Wire:
    """How a dialect shows a generation. Embeddings are not streamed."""

    document: Callable[[Generation], dict[str, Any]]
    """Of a generation that is produced."""
    events: Callable[[Generation], Iterator[Event]]
    usage_events: Callable[[Generation], Iterator[Event]]
    """The usage so far, before the stream's end."""
    error_events: Callable[[Generation, dict[str, Any]], Iterator[Event]]


def _none(*_: object) -> Iterator[Event]:
    return iter(())


_CHAT: Final = Wire(chat.document, chat.events, chat.usage_events, chat.error_events)

WIRES: Final[Mapping[Dialect, Wire]] = {
    Dialect.CHAT: _CHAT,
    Dialect.COMPLETIONS: _CHAT,
    Dialect.RESPONSES: Wire(responses.document, responses.events, responses.usage_events, responses.error_events),
    Dialect.MESSAGES: Wire(messages.document, messages.events, messages.usage_events, messages.error_events),
    Dialect.EMBEDDINGS: Wire(embeddings.document, _none, _none, _none),
    Dialect.IMAGES: Wire(media.images, media.image_events, _none, _none),
    Dialect.SPEECH: Wire(media.images, media.speech_events, _none, _none),
    Dialect.TRANSCRIPTIONS: Wire(media.transcription, media.transcription_events, _none, _none),
}
