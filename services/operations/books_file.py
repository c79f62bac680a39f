"""The CSV of a reconciliation: each transfer of a period, and how it was applied."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from domain.operations.reconciliation.comparison import Line

CSV_COLUMNS: Final = (
    "time", "chain_id", "tx_hash", "log_index", "block_number", "from_address", "value_raw", "kind", "attempt_id",
    "billing_account_id", "purchase_credits", "donation_credits", "operator_credits", "unapplied_raw", "finding_id",
)  # fmt: skip


class BookLines:
    """The CSV of a period; none where no file is wanted."""

    def __init__(self, file: IO[str] | None) -> None:
        self._writer = csv.writer(file) if file else None
        if self._writer:
            self._writer.writerow(CSV_COLUMNS)

    def write(self, chain_id: int, tx_hash: str, line: Line) -> None:
        """One transfer and how it was applied; the four parts make up its value."""
        if self._writer is None:
            return
        transfer = line.observed
        self._writer.writerow(
            (
                transfer.block_time,
                chain_id,
                tx_hash,
                transfer.log_index,
                transfer.block_number,
                transfer.from_address,
                transfer.value_raw,
                line.kind,
                line.attempt_id or "",
                line.billing_account_id or "",
                line.purchase_credits,
                line.donation_credits,
                line.operator_credits,
                line.unapplied_raw,
                line.finding_id or "",
            )
        )


@contextmanager
def open_books(path: Path | None) -> Iterator[BookLines]:
    """A file that is there as a whole or not at all: a concurrent reader sees the one before."""
    if path is None:
        yield BookLines(None)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
            yield BookLines(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def books_file_name(chain_id: int, from_time: datetime, to_time: datetime) -> str:
    """The name of a period's CSV."""

    def stamp(moment: datetime) -> str:
        return f"{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}"

    return f"reconciliation-{chain_id}-{stamp(from_time)}-{stamp(to_time)}.csv"
