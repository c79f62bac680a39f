"""What becomes of an observed transfer: it is found to be an attempt's, submitted for one, or left to an operator."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

import structlog

from db.engine import ServiceConnection, ServiceDatabase
from db.operations.findings import list_unpublished, mark_published, open_finding
from db.transfers import observed
from domain.chain import Transfer, TransferScope
from domain.errors import HashInUse, Refusal, SettleError, Unavailable
from domain.operations.events import FINDING_OPENED, FINDINGS_OPENED_TOGETHER, PlatformEvent, Publish
from domain.operations.findings import Finding, is_dust
from domain.operations.resolutions import StoredFinding
from domain.transfers.matching import AlreadyPaid, Candidate, NoIncome, Pays, Renews, Undecided, decide
from services.payments import lifecycle as payments
from telemetry.metrics.worker import DUST_RAW, DUST_TRANSFERS, FINDINGS_OPENED, WATCHER_SUBMISSIONS

log = structlog.get_logger(__name__)

PAGE: Final = 100
"""Transfers read at once."""

SENDERS_AT_ONCE_MAX: Final = 4
"""A submission waits for its workflow to begin: four at once take as long as one, and leave connections to others."""

ANNOUNCE_MAX: Final = 50
"""Findings that are told one by one at once, those worth most first; of more, the others are told together."""

ANNOUNCE_TOGETHER_MAX: Final = 10_000

ACT_SECONDS_MAX: Final = 10.0
ANNOUNCE_SECONDS_MAX: Final = 3.0
"""Then the chain is followed again; what was not decided about, or told, is so the next time."""

ANNOUNCE_AGAIN_SECONDS: Final = 30.0
"""How long a receiver that did not take an event is left alone."""


class Submit(Protocol):
    """Hands a payment in as its payer would have; safe to repeat. Raises `SettleError`."""

    async def __call__(self, user_id: str, attempt_id: UUID, tx_hash: str, *, mined_at: datetime | None) -> object: ...


class _MovedMeanwhile(Exception):
    """The transfer is in another block by now, or somebody has decided about it."""


@dataclass(frozen=True, slots=True)
class _Paid:
    """What a transfer pays: the attempt that it was found for, and the id of the one that takes it."""

    attempt: Candidate
    attempt_id: UUID
    """The attempt's own, or that of one made in its place."""


class TransferMatcher:
    """Decides about transfers, one after the other. Two desks at once decide the same and do it once."""

    def __init__(
        self,
        database: ServiceDatabase,
        scope: TransferScope,
        submit: Submit,
        publish: Publish,
        *,
        min_confirmations: int,
        dust_below_raw: int = 0,
    ) -> None:
        """A transfer of less than `dust_below_raw` that pays nothing is recorded and counted, and no finding."""
        self._dust_below_raw = dust_below_raw
        self._database = database
        self._scope = scope
        self._submit = submit
        self._publish = publish
        self._min_confirmations = min_confirmations
        self._announces_from = 0.0

    async def act(self, head: int) -> None:
        """Decide about every transfer that is confirmed by a chain of this height, and tell of new findings.

        Before it is confirmed a transfer is the payer's own to submit. Raises `Unavailable` where the database or
        Temporal is gone; what was not decided then is decided next time.
        """
        async with self._database.autocommit() as connection:
            await observed.settle_unhandled(connection, self._scope)
        after = (-1, -1)
        until = time.monotonic() + ACT_SECONDS_MAX
        while page := await self._page(head - self._min_confirmations + 1, after):
            await self._decide_about(page)
            after = (page[-1].block_number, page[-1].log_index)
            if time.monotonic() > until:
                break
        await self._announce()

    async def _page(self, up_to_block: int, after: tuple[int, int]) -> list[Transfer]:
        async with self._database.autocommit() as connection:
            return await observed.page_unhandled(
                connection, self._scope, up_to_block=up_to_block, after=after, limit=PAGE
            )

    async def _decide_about(self, transfers: Sequence[Transfer]) -> None:
        """Several senders at once, each one's transfers in their order: what one pays, the next one does not."""
        of_senders: dict[str, list[Transfer]] = {}
        for transfer in transfers:
            of_senders.setdefault(transfer.from_address, []).append(transfer)
        turns = asyncio.Semaphore(SENDERS_AT_ONCE_MAX)

        async def decide_about_sender(of_sender: list[Transfer]) -> None:
            async with turns:
                for transfer in of_sender:
                    await self._decide_unhindered(transfer)

        try:
            async with asyncio.TaskGroup() as group:
                for of_sender in of_senders.values():
                    group.create_task(decide_about_sender(of_sender))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _decide_unhindered(self, transfer: Transfer) -> None:
        """One transfer, so that whatever is wrong with it does not keep the others from being credited."""
        try:
            await self._decide(transfer)
        except Unavailable:
            raise
        except Exception:
            log.exception("transfer not decided about", tx_hash=transfer.tx_hash, log_index=transfer.log_index)

    async def _decide(self, transfer: Transfer) -> None:
        refused: set[UUID] = set()
        while (paid := await self._write_decision(transfer, refused)) is not None:
            if await self._submit_for(transfer, paid):
                return
            refused.add(paid.attempt.attempt_id)

    async def _write_decision(self, transfer: Transfer, refused: Iterable[UUID]) -> _Paid | None:
        """Decide and write it down, in one transaction; or what the transfer is to be submitted for."""
        try:
            async with self._database.transaction() as connection:
                context = await observed.find_match_context(connection, self._scope, transfer)
                match decide(self._scope.chain_id, transfer, context, refused=frozenset(refused)):
                    case AlreadyPaid(attempt_id=attempt_id):
                        await observed.mark_handled(connection, self._scope, transfer, attempt_id)
                    case Undecided():
                        pass
                    case Pays(attempt=attempt):
                        return _Paid(attempt, attempt.attempt_id)
                    case Renews(attempt=attempt):
                        return _Paid(attempt, await payments.renew_attempt(connection, attempt.attempt_id))
                    case NoIncome(message=message):
                        await observed.mark_handled(connection, self._scope, transfer, None)
                        log.info("no income", tx_hash=transfer.tx_hash, log_index=transfer.log_index, reason=message)
                    case finding:
                        await self._open(connection, transfer, finding)
        except _MovedMeanwhile:
            return None
        return None

    async def _open(self, connection: ServiceConnection, transfer: Transfer, finding: Finding) -> None:
        if not await observed.mark_handled(connection, self._scope, transfer, None):
            raise _MovedMeanwhile
        if is_dust(finding, self._dust_below_raw):
            DUST_TRANSFERS.inc()
            DUST_RAW.inc(transfer.value_raw)
            return
        if await open_finding(connection, finding):
            FINDINGS_OPENED.labels(finding.kind.value).inc()

    async def _submit_for(self, transfer: Transfer, paid: _Paid) -> bool:
        """Submit as the payer would have; False where this attempt does not take the transaction.

        What comes of it is seen next time: an attempt that waits for a transaction decides about its transfers.
        """
        attempt = paid.attempt
        try:
            await self._submit(attempt.owner_user_id, paid.attempt_id, transfer.tx_hash, mined_at=transfer.block_time)
        except HashInUse:
            # The payer has just submitted it himself, for another of his attempts.
            return True
        except Refusal as refusal:
            log.warning(
                "payment found, and not taken by its attempt",
                attempt_id=str(paid.attempt_id),
                tx_hash=transfer.tx_hash,
                error=refusal.message,
            )
            return False
        WATCHER_SUBMISSIONS.inc()
        log.info(
            "payment found and submitted: nobody had done it",
            attempt_id=str(paid.attempt_id),
            in_place_of=str(attempt.attempt_id) if paid.attempt_id != attempt.attempt_id else None,
            billing_account_id=attempt.billing_account_id,
            tx_hash=transfer.tx_hash,
            mined_at=transfer.block_time.isoformat(),
        )
        return True

    # Findings are told ------------------------------------------------------------------------------------------------

    async def _announce(self) -> None:
        """Tell of findings, whoever has opened them, until they have been heard of.

        Somebody who makes a thousand of them does not keep the receiver busy, nor one that counts waiting: what is
        worth most is told first, and what is left over beyond `ANNOUNCE_MAX` in one event.
        """
        if time.monotonic() < self._announces_from:
            return
        async with self._database.autocommit() as connection:
            findings = await list_unpublished(connection, limit=ANNOUNCE_MAX)
        until = time.monotonic() + ANNOUNCE_SECONDS_MAX
        for finding in findings:
            try:
                await self._publish(_event(finding))
            except Exception as error:
                # Whatever is wrong with the receiver, or with what it is told, keeps nobody from being credited.
                known = isinstance(error, SettleError)
                words = str(error) if known else type(error).__name__
                log.warning("finding not announced yet", finding=finding.key, error=words, exc_info=not known)
                self._announces_from = time.monotonic() + ANNOUNCE_AGAIN_SECONDS
                return
            async with self._database.autocommit() as connection:
                await mark_published(connection, finding)
            if time.monotonic() > until:
                return
        if len(findings) == ANNOUNCE_MAX:
            await self._announce_together()

    async def _announce_together(self) -> None:
        """One event for all that were too many to be told one by one; the same again is the same event."""
        async with self._database.autocommit() as connection:
            findings = await list_unpublished(connection, limit=ANNOUNCE_TOGETHER_MAX)
        if not findings:
            return
        try:
            await self._publish(_event_of_many(findings))
        except SettleError as error:
            log.warning("findings not announced yet", findings=len(findings), error=error.message)
            self._announces_from = time.monotonic() + ANNOUNCE_AGAIN_SECONDS
            return
        async with self._database.autocommit() as connection:
            await mark_published(connection, *findings)


def _event(finding: StoredFinding) -> PlatformEvent:
    return PlatformEvent(
        id=f"{FINDING_OPENED}:{finding.key}:{finding.times_opened}",
        type=FINDING_OPENED,
        subject=finding.key,
        time=finding.opened_at,
        data={
            "findingId": str(finding.id),
            "kind": finding.kind.value,
            "detail": finding.detail,
            "chainId": finding.chain_id,
            "txHash": finding.tx_hash,
            "logIndex": finding.log_index,
            "attemptId": str(finding.attempt_id) if finding.attempt_id else None,
            "billingAccountId": finding.billing_account_id,
            "valueRaw": str(finding.value_raw) if finding.value_raw is not None else None,
        },
    )


def _event_of_many(findings: Sequence[StoredFinding]) -> PlatformEvent:
    names = sorted(f"{finding.key}:{finding.times_opened}" for finding in findings)
    by_kind: dict[str, list[StoredFinding]] = {}
    for finding in findings:
        by_kind.setdefault(finding.kind.value, []).append(finding)
    return PlatformEvent(
        id=f"{FINDINGS_OPENED_TOGETHER}:{hashlib.sha256(chr(10).join(names).encode()).hexdigest()}",
        type=FINDINGS_OPENED_TOGETHER,
        subject="findings",
        time=max(finding.opened_at for finding in findings),
        data={
            "findings": len(findings),
            "valueRaw": str(sum(finding.value_raw or 0 for finding in findings)),
            "byKind": {
                kind: {"findings": len(few), "valueRaw": str(sum(finding.value_raw or 0 for finding in few))}
                for kind, few in sorted(by_kind.items())
            },
        },
    )
