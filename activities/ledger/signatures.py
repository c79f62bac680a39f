"""Checking the ledger's invariants."""

from __future__ import annotations

from abc import abstractmethod
from datetime import datetime

from temporalio import activity

from activities.messages import Message
from activities.signatures import Signatures


class BooksToCheck(Message):
    """Which check: of what is new, or of everything."""

    full: bool = False


class BooksChange(Message):
    """A violation that is new, or gone."""

    id: int
    check: str
    subject: str
    detail: str
    at: datetime
    is_resolved: bool


class BooksReport(Message):
    """What a run did. `changes` is what nobody has been told yet."""

    entries_checked: int
    violations_open: int
    changes: tuple[BooksChange, ...] = ()


class AnnouncedChanges(Message):
    """The violations that were announced, as new and as gone."""

    opened: tuple[int, ...] = ()
    resolved: tuple[int, ...] = ()


class BookkeepingSignatures(Signatures):
    """Implemented by `activities.ledger.integrity_scan`."""

    @activity.defn(name="check_books")
    @abstractmethod
    async def check_books(self, wanted: BooksToCheck) -> BooksReport:
        """One run. What it finds is on record, and stays there until it is gone."""

    @activity.defn(name="note_books_announced")
    @abstractmethod
    async def note_books_announced(self, announced: AnnouncedChanges) -> None:
        """Write down what was announced, so that the next run does not announce it again."""
