"""CSV for spreadsheets, which run a cell that begins like a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Final

FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with its head as CSV (RFC 4180); None is an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue()


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    # A number is no formula, also where it is negative.
    is_text = isinstance(value, str)
    return f"'{text}" if is_text and text.startswith(FORMULA_STARTS) else text
