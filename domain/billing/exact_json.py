"""JSON from outside: numbers as exact decimals, nesting bounded, and nothing that is not JSON."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Final

from pydantic_core import from_json


class NotJson(ValueError):
    """The text is not JSON; the message says where, or what of it is not."""


def _refuse_constant(name: str) -> Any:
    raise NotJson(f"{name} is not JSON")


DECODER: Final = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse_constant)
"""For text that `require_json` has passed. Alone, its depth is bounded by the interpreter's recursion limit only, and
libraries raise that so far that deeply nested text ends the process."""


def require_json(data: bytes) -> str:
    """The text of JSON in UTF-8. Raises `NotJson`."""
    try:
        from_json(data, allow_inf_nan=True, cache_strings="none")
        return data.decode()
    except ValueError as error:
        raise NotJson(str(error).partition("\n")[0]) from None


def loads(data: bytes) -> Any:
    """Read JSON with exact decimals. Raises `NotJson`, also for NaN and Infinity."""
    try:
        return DECODER.decode(require_json(data))
    except NotJson:
        raise
    except ValueError:
        # An integer of thousands of digits is refused by Python itself.
        raise NotJson("a number has too many digits") from None
