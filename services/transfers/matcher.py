"""Matching of observed transfers: linked to the attempt they paid, submitted for one, or left to an operator."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog

from chain.reader import ChainReader
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
from services.ports import PaymentSubmitter
from services.transfers.receipts import find_receipt, transfers_in
from telemetry.metrics.worker import DUST_RAW, DUST_TRANSFERS, FINDINGS_OPENED, WATCHER_SUBMISSIONS

log = structlog.get_logger(__name__)

PAGE: Final = 100
"""Transfers per query."""

SENDERS_AT_ONCE_MAX: Final = 4
"""Concurrent submissions: each waits for its workflow to start, so four take as long as one and leave connections
free.
"""

ANNOUNCE_MAX: Final = 50
"""Findings published one by one per pass, largest value first; the remaining ones are published in one event."""

ANNOUNCE_TOGETHER_MAX: Final = 10_000

ACT_SECONDS_MAX: Final = 10.0
ANNOUNCE_SECONDS_MAX: Final = 3.0
"""Time limit of a pass, after which the chain is followed again; the rest follows in the next pass."""

ANNOUNCE_AGAIN_SECONDS: Final = 30.0
"""Pause after an event sink did not accept an event."""


class _MovedMeanwhile(Exception):
    """The transfer has moved to another block, or was decided about concurrently."""


@dataclass(frozen=True, slots=True)
class _Paid:
    """What a transfer pays: the attempt that it was found for, and the id of the attempt that takes it."""

    attempt: Candidate
    attempt_id: UUID
    """The attempt itself, or the one that replaces it."""


class TransferMatcher:
    """Matches transfers, one after the other. Two matchers running concurrently decide the same and apply it once."""

    def __init__(
        self,
        database: ServiceDatabase,
        scope: TransferScope,
        starter: PaymentSubmitter,
        publish: Publish,
        *,
        chain: ChainReader,
        min_confirmations: int,
        dust_below_raw: int = 0,
    ) -> None:
        """A transfer of less than `dust_below_raw` that pays nothing is recorded and counted, without a finding."""
        self._dust_below_raw = dust_below_raw
        self._database = database
        self._chain = chain
        self._scope = scope
        self._starter = starter
        self._publish = publish
        self._min_confirmations = min_confirmations
        self._announces_from = 0.0

    async def act(self, head: int) -> None:
        """Decide about every transfer that is confirmed at this chain height, and publish new findings.

        Before it is confirmed a transfer is left to its payer to submit. Raises `Unavailable` where the database or
        Temporal cannot be reached; the rest is decided in the next pass.
        """
        async with self._database.autocommit() as connection:
            await observed.mark_settled_handled(connection, self._scope)
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
        """Senders concurrently, each one's transfers in order: what one transfer pays, the next one cannot."""
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
        """Decide about one transfer, so that an error in it does not keep others from being credited."""
        try:
            await self._decide(transfer)
        except Unavailable:
            raise
        except Exception:
            log.exception("could not decide about the transfer", tx_hash=transfer.tx_hash, log_index=transfer.log_index)

    async def _decide(self, transfer: Transfer) -> None:
        refused: set[UUID] = set()
        nonce = await self._find_nonce(transfer)
        while (paid := await self._write_decision(transfer, nonce, refused)) is not None:
            if await self._submit_for(transfer, paid):
                return
            refused.add(paid.attempt.attempt_id)

    async def _find_nonce(self, transfer: Transfer) -> str | None:
        """The nonce of the authorization that has caused the transfer, by its receipt, on which the nodes agree.

        Only where an attempt is open that it may pay: for all others it makes no difference. One that was broadcast
        before it was shown here is claimed by that. Raises `ChainUnavailable`.
        """
        async with self._database.autocommit() as connection:
            if not await observed.may_be_signed_for(connection, self._scope, transfer):
                return None
        receipt, _ = await find_receipt(self._chain, transfer.tx_hash, transfer.block_number)
        for log in transfers_in(receipt, self._scope):
            if log.log_index == transfer.log_index and log.authorization_nonce is not None:
                async with self._database.transaction() as connection:
                    await observed.claim_by_transfer(connection, self._scope, transfer, log.authorization_nonce)
                return log.authorization_nonce
        return None

    async def _write_decision(self, transfer: Transfer, nonce: str | None, refused: Iterable[UUID]) -> _Paid | None:
        """Decide and record it in one transaction, or return what the transfer is to be submitted for."""
        try:
            async with self._database.transaction() as connection:
                context = await observed.find_match_context(connection, self._scope, transfer, nonce=nonce)
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
        """Submit on the payer's behalf; False where this attempt does not accept the transaction.

        The result shows in the next pass: an attempt that waits for a transaction decides about its transfers.
        """
        attempt = paid.attempt
        try:
            await self._starter.submit(
                attempt.owner_user_id, paid.attempt_id, transfer.tx_hash, mined_at=transfer.block_time
            )
        except HashInUse:
            # The payer has just submitted it for another attempt.
            return True
        except Refusal as refusal:
            log.warning(
                "payment found, but not accepted by its attempt",
                attempt_id=str(paid.attempt_id),
                tx_hash=transfer.tx_hash,
                error=refusal.message,
            )
            return False
        WATCHER_SUBMISSIONS.inc()
        log.info(
            "payment found and submitted automatically",
            attempt_id=str(paid.attempt_id),
            in_place_of=str(attempt.attempt_id) if paid.attempt_id != attempt.attempt_id else None,
            billing_account_id=attempt.billing_account_id,
            tx_hash=transfer.tx_hash,
            mined_at=transfer.block_time.isoformat(),
        )
        return True

    # Publishing findings ----------------------------------------------------------------------------------------------

    async def _announce(self) -> None:
        """Publish findings, whichever process opened them, until they are accepted.

        A sender who causes a thousand of them neither floods the event sink nor delays a larger one: those of the
        largest value are published first, and the rest beyond `ANNOUNCE_MAX` in one event.
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
                # An error in the event sink, or in an event, must not prevent crediting.
                known = isinstance(error, SettleError)
                words = str(error) if known else type(error).__name__
                log.warning("finding not published yet", finding=finding.key, error=words, exc_info=not known)
                self._announces_from = time.monotonic() + ANNOUNCE_AGAIN_SECONDS
                return
            async with self._database.autocommit() as connection:
                await mark_published(connection, finding)
            if time.monotonic() > until:
                return
        if len(findings) == ANNOUNCE_MAX:
            await self._announce_together()

    async def _announce_together(self) -> None:
        """One event for the findings beyond the limit; the same findings give the same event."""
        async with self._database.autocommit() as connection:
            findings = await list_unpublished(connection, limit=ANNOUNCE_TOGETHER_MAX)
        if not findings:
            return
        try:
            await self._publish(_event_of_many(findings))
        except SettleError as error:
            log.warning("findings not published yet", findings=len(findings), error=error.message)
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
