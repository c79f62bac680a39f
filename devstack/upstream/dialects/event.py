"""An event of a stream, before it is bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """`data` is JSON, or text that is sent as it is; bytes are sent without any frame."""

    data: Mapping[str, Any] | str | bytes
    name: str | None = None
    tokens: int = 0
    """Output tokens that it brings."""
    is_last: bool = False
    """The stream's regular end."""


def named(data: Mapping[str, Any], tokens: int = 0, *, is_last: bool = False) -> Event:
    """An event that is called what its data's `type` says."""
    return Event(data, data["type"], tokens, is_last)
