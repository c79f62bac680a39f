"""Output of commands: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

DONE: Final = 0
EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2

WIDTH_IN_A_FILE: Final = 200
"""Columns where the output is not a terminal: ids and hashes stay on one line, so that they can be found and copied."""

# A process may be started with its standard output closed.
is_terminal = sys.stdout is not None and sys.stdout.isatty()
stdout = Console(width=None if is_terminal else WIDTH_IN_A_FILE, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def print_json(document: object) -> None:
    """One JSON document on standard output, in the field names of the HTTP interface."""

    def default(value: object) -> Any:
        if isinstance(value, BaseModel):
            return value.model_dump(mode="json", by_alias=True)
        if isinstance(value, Decimal):
            return str(value)
        raise TypeError(f"{type(value).__name__} has no JSON form")

    if sys.stdout is not None:
        sys.stdout.write(json.dumps(document, indent=2, default=default) + "\n")
        sys.stdout.flush()


def progress(words: str) -> None:
    """Print one line of progress to standard error."""
    stderr.print(words, markup=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """Format a table; `right` names the columns of figures. None shows as a dash."""
    made = Table(title=title or None, title_justify="left", title_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*("–" if cell is None else str(cell) for cell in row))
    return made


def grouped(number: int) -> str:
    """Format a number with thousands separators: 1,000,000."""
    return f"{number:,}"
