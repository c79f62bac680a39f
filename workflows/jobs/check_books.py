"""Integrity scan of the ledger: violations are recorded, and each is published once."""

from __future__ import annotations

from temporalio import workflow

from workflows.publish import publish

with workflow.unsafe.imports_passed_through():
    from pydantic import Field

    from activities.ledger.signatures import (
        AnnouncedChanges,
        BookkeepingSignatures,
        BooksChange,
        BooksReport,
        BooksToCheck,
    )
    from activities.messages import Message
    from domain.operations.events import BOOKS_RESTORED, BOOKS_VIOLATED, PlatformEvent
    from workflows.naming import CHECK_BOOKS
    from workflows.policies import (
        BATCHES_HEARTBEAT,
        BATCHES_RETRY,
        BOOKS_START_TO_CLOSE,
        JOB_RETRY,
        JOB_SCHEDULE_TO_CLOSE,
        JOB_START_TO_CLOSE,
    )


class CheckBooksInput(Message):
    """Which check."""

    full: bool = Field(default=False, description="true to check every row, not only new and some old ones")


@workflow.defn(name=CHECK_BOOKS)
class CheckBooks:
    """One integrity scan, and one event for each violation that is new or resolved."""

    @workflow.run
    async def run(self, wanted: CheckBooksInput) -> BooksReport:
        """Lifecycle of a scan."""
        report = await self._check(wanted)
        announced = [change for change in report.changes if await self._announce(change)]
        if announced:
            await self._note_announced(announced)
        self._set_status(report)
        return report

    async def _check(self, wanted: CheckBooksInput) -> BooksReport:
        return await workflow.execute_activity_method(
            BookkeepingSignatures.check_books,
            BooksToCheck(full=wanted.full),
            start_to_close_timeout=BOOKS_START_TO_CLOSE,
            heartbeat_timeout=BATCHES_HEARTBEAT,
            retry_policy=BATCHES_RETRY,
            summary="check every row of the ledger" if wanted.full else "check new rows of the ledger",
        )

    async def _announce(self, change: BooksChange) -> bool:
        """Publish a change; if that fails, the next run does."""
        summary = f"publish: {change.detail}"[:200]
        return await publish(_event(change), summary=summary, what="a change of the books")

    async def _note_announced(self, announced: list[BooksChange]) -> None:
        await workflow.execute_activity_method(
            BookkeepingSignatures.note_books_announced,
            AnnouncedChanges(
                opened=tuple(change.id for change in announced if not change.is_resolved),
                resolved=tuple(change.id for change in announced if change.is_resolved),
            ),
            start_to_close_timeout=JOB_START_TO_CLOSE,
            schedule_to_close_timeout=JOB_SCHEDULE_TO_CLOSE,
            retry_policy=JOB_RETRY,
            summary="mark changes as published",
        )

    def _set_status(self, report: BooksReport) -> None:
        words = f"{report.entries_checked} new entries checked, {report.violations_open} violations are open"
        workflow.set_current_details(words)
        (workflow.logger.error if report.violations_open else workflow.logger.info)(words)


def _event(change: BooksChange) -> PlatformEvent:
    kind = BOOKS_RESTORED if change.is_resolved else BOOKS_VIOLATED
    return PlatformEvent(
        # A violation that comes back after it was resolved is another one, with another number.
        id=f"{kind}:{change.check}:{change.subject}:{change.id}",
        type=kind,
        subject=change.subject,
        time=change.at,
        data={"check": change.check, "detail": change.detail},
    )
