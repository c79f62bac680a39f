"""`settle findings list|show|resolve` and `settle attempt retry`: findings and their resolution by an operator."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from temporalio.client import Client

from commands.output import grouped, print_json, progress, stdout, table
from composition import payments_client, service_database
from db.engine import ServiceConnection, ServiceDatabase
from db.operations import findings, resolutions
from db.operations.findings import FindingFilter, FindingsPage, FindingTotals, Sort
from db.operations.resolutions import Action
from db.payments import attempts
from domain.errors import AttemptNotFound, InvalidInput, Refusal, RemedyRefused, WrongChain
from domain.operations.findings import ALARMS, REMEDIES, FindingKind, Remedy
from domain.operations.resolutions import (
    RemedyRequest,
    StoredFinding,
    TakenRemedy,
    describe,
    parse_operator,
    parse_reason,
    parse_request,
)
from settings import Settings
from starter.resolutions import execute
from starter.temporal import connect

LISTED_MAX: Final = 1_000
"""Rows of a list for a program, and at most of any list."""

SHOWN_MAX: Final = 100
"""Rows of a list for a terminal."""

BULK_PAGE: Final = 500
BULK_AT_ONCE: Final = 8
"""Workflows that a bulk resolution waits for concurrently."""

SAMPLE: Final = 5

BULK_REMEDIES: Final = (Remedy.WRITE_OFF, Remedy.REFUND_RECORDED, Remedy.RETRY)
"""Remedies that apply to many findings at once. A credit is decided one by one, because it gives money away."""


class ResponseModel(BaseModel):
    """Immutable answer, in camelCase on the wire."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, from_attributes=True)


class FindingView(ResponseModel):
    """A finding."""

    id: UUID
    kind: FindingKind
    detail: str
    chain_id: int | None
    tx_hash: str | None
    log_index: int | None
    attempt_id: UUID | None
    billing_account_id: str | None
    value_raw: int | None
    details: dict[str, Any]
    created_at: datetime
    last_seen_at: datetime
    opened_at: datetime
    times_opened: int
    resolved_at: datetime | None
    resolution: str | None


class TotalsView(ResponseModel):
    """The matching findings of one kind."""

    kind: FindingKind
    findings: int
    value_raw: int
    without_value: int
    oldest_at: datetime


class ListView(ResponseModel):
    """A page of findings, and the totals. `next` is the value for `--after`; None on the last page."""

    findings: tuple[FindingView, ...]
    shown: int
    shown_value_raw: int
    total: int
    total_value_raw: int
    by_kind: tuple[TotalsView, ...]
    next: UUID | None

    @classmethod
    def of(cls, page: FindingsPage, totals: Sequence[FindingTotals]) -> ListView:
        """The page as an answer."""
        return cls(
            findings=tuple(FindingView.model_validate(finding) for finding in page.findings),
            shown=len(page.findings),
            shown_value_raw=sum(finding.value_raw or 0 for finding in page.findings),
            total=sum(one.findings for one in totals),
            total_value_raw=sum(one.value_raw for one in totals),
            by_kind=tuple(TotalsView.model_validate(one) for one in totals),
            next=page.next,
        )


class ActionView(ResponseModel):
    """An operator's action."""

    action: str
    operator: str
    reason: str
    outcome: dict[str, Any]
    created_at: datetime


class RemedyView(ResponseModel):
    """A remedy that applies, and the command for it."""

    remedy: Remedy
    meaning: str
    command: str


class FindingInFull(FindingView):
    """A finding with its remedies and actions."""

    remedies: tuple[RemedyView, ...]
    actions: tuple[ActionView, ...]


MEANINGS: Final = {
    Remedy.RETRY: "check it again",
    Remedy.CREDIT: "credit it to an account, with the bonus on top",
    Remedy.REFUND_RECORDED: "record that the money was sent back by hand",
    Remedy.WRITE_OFF: "take no action",
}


async def list_findings(
    settings: Settings,
    wanted: FindingFilter,
    *,
    sort: Sort,
    after: str | None,
    limit: int | None,
    with_totals: bool,
    as_json: bool,
) -> None:
    """A page of findings, largest value first, with the totals.

    As JSON a list; `with_totals` wraps it into a document that also counts what it omits. A truncated list is reported
    on standard error in both cases. Raises `FindingNotFound` for an unknown position.
    """
    rows_max = limit or (LISTED_MAX if as_json else SHOWN_MAX)
    async with service_database(settings) as database, database.snapshot() as connection:
        behind = await findings.find_id_beginning_with(connection, after) if after else None
        page = await findings.page_findings(connection, wanted, sort=sort, after=behind, limit=rows_max)
        totals = await findings.total_findings(connection, wanted)
    shown = ListView.of(page, totals)
    if shown.next is not None:
        progress(f"{_shown_of(shown)}; for the next page repeat with --after {shown.next}")
    if as_json:
        print_json(shown if with_totals else list(shown.findings))
        return
    if not totals:
        stdout.print("no findings" if wanted.with_resolved else "no open findings")
        return
    _print_page(page.findings)
    _print_totals(totals)
    stdout.print(_shown_of(shown), markup=False)
    stdout.print("settle findings show ID lists the remedies for a finding", markup=False)


def _print_page(listed: Sequence[StoredFinding]) -> None:
    stdout.print(
        table(
            "",
            ("finding", "kind", "since", "raw units", "detail", "resolved"),
            [
                (
                    finding.id,
                    finding.kind.value,
                    f"{finding.opened_at:%Y-%m-%d %H:%M}",
                    None if finding.value_raw is None else grouped(finding.value_raw),
                    finding.detail,
                    finding.resolution,
                )
                for finding in listed
            ],
            right=("raw units",),
        )
    )


def _shown_of(shown: ListView) -> str:
    return (
        f"{grouped(shown.shown)} of {grouped(shown.total)} shown, "
        f"{grouped(shown.shown_value_raw)} of {grouped(shown.total_value_raw)} raw units"
    )


def _print_totals(totals: Sequence[FindingTotals]) -> None:
    stdout.print(
        table(
            "In all",
            ("kind", "findings", "raw units", "of unknown value", "oldest"),
            [
                (
                    one.kind.value,
                    grouped(one.findings),
                    grouped(one.value_raw),
                    grouped(one.without_value) if one.without_value else None,
                    f"{one.oldest_at:%Y-%m-%d %H:%M}",
                )
                for one in totals
            ],
            right=("findings", "raw units", "of unknown value"),
        )
    )


async def show(settings: Settings, *, prefix: str, as_json: bool) -> None:
    """One finding, with its remedies and the operators' actions. Raises `FindingNotFound`."""
    async with service_database(settings) as database, database.transaction() as connection:
        finding = await _find(connection, prefix)
        actions = await resolutions.list_actions(connection, finding_id=finding.id)
    can = _remedies(finding) if finding.is_open else ()
    if as_json:
        print_json(
            FindingInFull(
                **FindingView.model_validate(finding).model_dump(),
                remedies=can,
                actions=tuple(ActionView.model_validate(action) for action in actions),
            )
        )
        return
    _print(finding, can, actions)


async def resolve(
    settings: Settings,
    variables: Mapping[str, str],
    *,
    prefix: str,
    remedy: Remedy,
    operator: str,
    reason: str,
    account: str | None,
    refund_tx: str | None,
    as_json: bool,
) -> bool:
    """Resolve a finding. Raises `InvalidInput`, `FindingNotFound` and `RemedyRefused`."""
    # Invalid input is a usage error, whether or not the servers are running.
    parse_operator(operator)
    parse_reason(reason)
    async with service_database(settings) as database, database.transaction() as connection:
        finding = await _find(connection, prefix)
    request = parse_request(
        finding.id,
        remedy,
        operator=operator,
        reason=reason,
        billing_account_id=account,
        refund_tx_hash=refund_tx,
        chain_id=finding.chain_id,
    )
    taken = await execute(await connect(variables, lazy=True), request)
    if as_json:
        print_json(TakenView.of(taken))
    else:
        again = " (repeated request)" if taken.is_repeated else ""
        stdout.print(f"{finding.id} is resolved{again}: {describe(taken)}", markup=False)
        if taken.bonus_credits:
            stdout.print(f"{grouped(taken.bonus_credits)} credits to the system tenant on top", markup=False)
    return True


async def resolve_all(
    settings: Settings,
    variables: Mapping[str, str],
    wanted: FindingFilter,
    *,
    remedy: Remedy,
    operator: str,
    reason: str,
    refund_tx: str | None,
    confirmed: bool,
    as_json: bool,
) -> bool:
    """The same remedy for every open finding that passes the filter; without `confirmed` only a preview.

    Each gets its own workflow and its own row in the audit trail, smallest value first. Safe to repeat and to be killed
    half-way: the next call does the rest. Findings opened after the call began are not touched, because they
    were not in the preview. False where some were not resolved. Raises `InvalidInput` and `TemporalUnavailable`.
    """
    operator, reason = parse_operator(operator), parse_reason(reason)
    _check_bulk(wanted, remedy)
    async with service_database(settings) as database:
        wanted, preview = await _preview(database, wanted, remedy)
        if not confirmed or not preview.matching:
            _tell_preview(preview, confirmed=confirmed, as_json=as_json)
            return True
        if not as_json:
            progress(f"{remedy.value} of {grouped(preview.matching)} findings, by {operator}: {reason}")
        bulk = _Bulk(await connect(variables, lazy=True), preview.matching)
        async for page in _pages(database, wanted):
            await bulk.resolve(
                [
                    parse_request(
                        finding.id,
                        remedy,
                        operator=operator,
                        reason=reason,
                        refund_tx_hash=refund_tx,
                        chain_id=finding.chain_id,
                    )
                    for finding in page
                ]
            )
    _print_done(preview, bulk, as_json=as_json)
    return not bulk.refused


async def _preview(database: ServiceDatabase, wanted: FindingFilter, remedy: Remedy) -> tuple[FindingFilter, BulkView]:
    """What the remedy is for, among what is open now; and how much that is."""
    async with database.snapshot() as connection:
        wanted = replace(
            wanted,
            kinds=wanted.kinds or tuple(kind for kind in FindingKind if _is_for_bulk(kind, remedy)),
            opened_until=await findings.read_clock(connection),
        )
        totals = await findings.total_findings(connection, wanted)
        largest = (await findings.page_findings(connection, wanted, limit=SAMPLE)).findings
    return wanted, BulkView.of(remedy, totals, largest)


async def _pages(database: ServiceDatabase, wanted: FindingFilter) -> AsyncIterator[Sequence[StoredFinding]]:
    """The open findings, a page at a time. Oldest first is an order that new findings do not change, and resolving one
    moves none of the others.
    """
    after: UUID | None = None
    while True:
        async with database.transaction() as connection:
            page = await findings.page_findings(connection, wanted, sort=Sort.OLDEST, after=after, limit=BULK_PAGE)
        yield page.findings
        if page.next is None:
            return
        after = page.next


def _print_done(preview: BulkView, bulk: _Bulk, *, as_json: bool) -> None:
    if as_json:
        done = {"resolved": bulk.resolved, "refused": tuple(bulk.refused), "confirmed": True}
        print_json(preview.model_copy(update=done))
        return
    for refusal in bulk.refused[:SAMPLE]:
        stdout.print(f"{refusal.finding_id}: {refusal.detail}", markup=False)
    stdout.print(f"{grouped(bulk.resolved)} resolved, {grouped(len(bulk.refused))} not", markup=False)


class _Bulk:
    """Executes one remedy after another, a few concurrently, and reports progress."""

    def __init__(self, temporal: Client, matching: int) -> None:
        self._temporal = temporal
        self._matching = matching
        self._turns = asyncio.Semaphore(BULK_AT_ONCE)
        self.resolved = 0
        self.refused: list[RefusalView] = []

    async def resolve(self, requests: Sequence[RemedyRequest]) -> None:
        """Execute all of them. Raises immediately what is not a refusal, such as `TemporalUnavailable`."""
        try:
            async with asyncio.TaskGroup() as group:
                for request in requests:
                    group.create_task(self._resolve(request))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        done = self.resolved + len(self.refused)
        progress(f"{grouped(done)} of {grouped(self._matching)}")

    async def _resolve(self, request: RemedyRequest) -> None:
        async with self._turns:
            try:
                await execute(self._temporal, request)
            except Refusal as refusal:
                self.refused.append(
                    RefusalView(finding_id=request.finding_id, code=refusal.code, detail=refusal.message)
                )
            else:
                self.resolved += 1


class RefusalView(ResponseModel):
    """A finding that a bulk resolution did not resolve."""

    finding_id: UUID
    code: str
    detail: str


class BulkView(ResponseModel):
    """Result, or preview, of a bulk resolution."""

    remedy: Remedy
    confirmed: bool = False
    matching: int
    matching_value_raw: int
    by_kind: tuple[TotalsView, ...]
    largest: tuple[FindingView, ...]
    resolved: int = 0
    refused: tuple[RefusalView, ...] = ()

    @classmethod
    def of(cls, remedy: Remedy, totals: Sequence[FindingTotals], largest: Sequence[StoredFinding]) -> BulkView:
        """The matching findings."""
        return cls(
            remedy=remedy,
            matching=sum(one.findings for one in totals),
            matching_value_raw=sum(one.value_raw for one in totals),
            by_kind=tuple(TotalsView.model_validate(one) for one in totals),
            largest=tuple(FindingView.model_validate(finding) for finding in largest),
        )


def _check_bulk(wanted: FindingFilter, remedy: Remedy) -> None:
    if remedy not in BULK_REMEDIES:
        allowed = ", ".join(one.value for one in BULK_REMEDIES)
        raise InvalidInput("--remedy", f"{remedy.value} is decided one by one, expected one of {allowed} with --all")
    narrowed = (wanted.kinds, wanted.sender, wanted.billing_account_id, wanted.below_raw, wanted.min_value_raw)
    if all(one is None for one in narrowed):
        raise InvalidInput(
            "--all", "cannot be used without a filter: expected --kind, --below, --min-value, --sender or --account"
        )
    for kind in wanted.kinds or ():
        if remedy not in REMEDIES[kind]:
            raise InvalidInput("--remedy", f"{remedy.value} does not apply to {kind.value}")


def _is_for_bulk(kind: FindingKind, remedy: Remedy) -> bool:
    """Alarms are never included implicitly: they must be named."""
    return remedy in REMEDIES[kind] and kind not in ALARMS


def _tell_preview(preview: BulkView, *, confirmed: bool, as_json: bool) -> None:
    if as_json:
        print_json(preview)
        return
    if not preview.matching:
        stdout.print("no open findings match: nothing to do")
        return
    if preview.by_kind:
        _print_totals([FindingTotals(**dict(one)) for one in preview.by_kind])
    stdout.print("largest:", style="bold")
    for finding in preview.largest:
        value = "of unknown value" if finding.value_raw is None else f"{grouped(finding.value_raw)} raw units"
        stdout.print(f"  {finding.id}  {value}: {finding.detail}", markup=False)
    stdout.print(
        f"{preview.remedy.value} of {grouped(preview.matching)} findings, {grouped(preview.matching_value_raw)} raw "
        "units in all: nothing was done; repeat with --yes to apply it",
        markup=False,
    )


class TakenView(ResponseModel):
    """Recorded action on a finding."""

    finding_id: UUID
    kind: FindingKind
    remedy: Remedy
    operator: str
    reason: str
    taken_at: datetime
    billing_account_id: str | None
    reference: str | None
    amount_credits: int
    bonus_credits: int
    refund_tx_hash: str | None
    is_repeated: bool

    @classmethod
    def of(cls, taken: TakenRemedy) -> TakenView:
        """The answer for a remedy."""
        return cls.model_validate(taken.model_dump())


async def retry_attempt(
    settings: Settings,
    variables: Mapping[str, str],
    *,
    attempt_id: UUID,
    operator: str,
    reason: str,
    as_json: bool,
) -> bool:
    """Restart an attempt's workflow where none is running; recorded in the audit trail either way.

    Raises `InvalidInput`, `AttemptNotFound`, `WrongChain`, and `RemedyRefused` where there is nothing to do.
    """
    operator, reason = parse_operator(operator), parse_reason(reason)
    async with service_database(settings) as service, payments_client(settings, variables) as client:
        async with service.transaction() as connection:
            attempt = await attempts.find_attempt(connection, attempt_id)
        if attempt is None:
            raise AttemptNotFound(attempt_id)
        if attempt.chain_id != settings.chain_id:
            raise WrongChain(attempt.chain_id, settings.chain_id)
        if attempt.tx_hash is None or attempt.error_code is not None:
            end = f" / {attempt.error_code.value}" if attempt.error_code else ", and nothing was submitted for it"
            raise RemedyRefused(f"attempt {attempt_id} is {attempt.status.value}{end}: there is nothing to retry")
        # The operator is recorded first: nothing is done that is not in the audit trail.
        async with service.transaction() as connection:
            await resolutions.insert_action(
                connection, action=Remedy.RETRY, operator=operator, reason=reason, attempt_id=attempt_id
            )
        started = await client.resume_payment(attempt.owner_user_id, attempt_id)
    if as_json:
        print_json({"attemptId": str(attempt_id), "workflowStarted": started})
    else:
        words = "its workflow was restarted" if started else "its workflow is at work on it already"
        stdout.print(f"{attempt_id}: {words}", markup=False)
    return True


async def _find(connection: ServiceConnection, prefix: str) -> StoredFinding:
    return await findings.find_finding(connection, await findings.find_id_beginning_with(connection, prefix))


def _remedies(finding: StoredFinding) -> tuple[RemedyView, ...]:
    return tuple(
        RemedyView(remedy=remedy, meaning=_meaning(finding, remedy), command=_command(finding, remedy))
        for remedy in REMEDIES[finding.kind]
    )


GAP_MEANINGS: Final = {
    Remedy.RETRY: "have the worker request the blocks again, now",
    Remedy.WRITE_OFF: "acknowledge it: the blocks are not requested any more",
}


def _meaning(finding: StoredFinding, remedy: Remedy) -> str:
    if finding.kind is FindingKind.CHAIN_GAP:
        return GAP_MEANINGS[remedy]
    if remedy is not Remedy.CREDIT:
        return MEANINGS[remedy]
    whose = finding.billing_account_id or "the sender's own, created if there is none"
    return f"{MEANINGS[remedy]}; without --account: {whose}"


def _command(finding: StoredFinding, remedy: Remedy) -> str:
    words = ["settle", "findings", "resolve", str(finding.id), "--remedy", remedy.value]
    if remedy is Remedy.CREDIT and (finding.kind is FindingKind.WRONG_SENDER or "senderKind" in finding.details):
        words += ["--account", "ACCOUNT"]
    if remedy is Remedy.REFUND_RECORDED:
        words += ["--refund-tx", "TX_HASH"]
    return f"{shlex.join(words)} --operator NAME --reason TEXT"


def _print(finding: StoredFinding, can: tuple[RemedyView, ...], actions: list[Action]) -> None:
    stdout.print(finding.detail, style="bold", markup=False)
    place = f"log {finding.log_index} of {finding.tx_hash} on chain {finding.chain_id}" if finding.tx_hash else None
    state = "open" if finding.is_open else f"resolved {finding.resolved_at:%Y-%m-%d %H:%M} UTC: {finding.resolution}"
    facts = [
        ("finding", finding.id),
        ("kind", finding.kind.value),
        ("state", state),
        ("transfer", place),
        ("raw units", None if finding.value_raw is None else grouped(finding.value_raw)),
        ("attempt", finding.attempt_id),
        ("account", finding.billing_account_id),
        ("found", f"{finding.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("last seen", f"{finding.last_seen_at:%Y-%m-%d %H:%M:%S} UTC"),
        *finding.details.items(),
    ]
    stdout.print(table("", ("fact", "value"), [(name, value) for name, value in facts if value is not None]))
    if can:
        stdout.print("What can be done:", style="bold")
        for remedy in can:
            stdout.print(f"  {remedy.meaning}\n    {remedy.command}", markup=False, soft_wrap=True)
    if actions:
        stdout.print(
            table(
                "What was done",
                ("when", "what", "by", "why", "outcome"),
                [
                    (
                        f"{action.created_at:%Y-%m-%d %H:%M:%S}",
                        action.action,
                        action.operator,
                        action.reason,
                        ", ".join(f"{key}={value}" for key, value in action.outcome.items()),
                    )
                    for action in actions
                ],
            )
        )
