"""Checking the ledger's invariants."""

from __future__ import annotations

from abc import abstractmethod
from datetime import datetime

from temporalio import activity

from activities.messages import Message
from activities.signatures import Signatures


class BooksToCheck(Message):
    """Which check: of new rows, or of all."""

    full: bool = False


class BooksChange(Message):
    """A violation that is new, or resolved."""

    id: int
    check: str
    subject: str
    detail: str
    at: datetime
    is_resolved: bool


class BooksReport(Message):
    """Result of a run. `changes` are not published yet."""

    entries_checked: int
    violations_open: int
    changes: tuple[BooksChange, ...] = ()


class AnnouncedChanges(Message):
    """The violations that were published, as new and as resolved."""

    opened: tuple[int, ...] = ()
    resolved: tuple[int, ...] = ()


class BookkeepingSignatures(Signatures):
    """Implemented by `activities.ledger.integrity_scan`."""

    @activity.defn(name="check_books")
    @abstractmethod
    async def check_books(self, wanted: BooksToCheck) -> BooksReport:
        """One run. Violations are recorded, and stay recorded until they are resolved."""

    @activity.defn(name="note_books_announced")
    @abstractmethod
    async def note_books_announced(self, announced: AnnouncedChanges) -> None:
        """Mark changes as published, so that the next run does not publish them again."""
