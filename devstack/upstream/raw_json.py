"""JSON with numbers exactly as written: decimals, and what is no JSON number at all."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any, Final

_MARK: Final = "\ue000"
_MARKED: Final = re.compile(f'"{_MARK}([^"]*)"')


def raw(token: str) -> str:
    """A value that is written as this token, without quotes: `NaN`, `1e400`, `0.00012`."""
    return _MARK + token


def decimal(value: Decimal) -> str:
    """A number with all of its digits."""
    return raw(format(value.normalize(), "f"))


def dumps(value: Any, *, indent: int | None = None) -> bytes:
    """Encode it, in UTF-8 and without blanks."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":") if indent is None else None, indent=indent)
    if _MARK in text:
        text = _MARKED.sub(r"\1", text)
    return text.encode()
