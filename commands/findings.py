"""`settle findings list|show|resolve` and `settle attempt retry`: what is left to an operator, and what he does."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from commands.connections import payments_client, service_database
from commands.output import grouped, print_json, stdout, table
from db import attempts, findings, remedies
from db.engine import ServiceConnection
from db.remedies import Action
from domain.errors import AttemptNotFound, RemedyRefused
from domain.findings import REMEDIES, FindingKind, Remedy
from domain.remedies import StoredFinding, TakenRemedy, describe, parse_operator, parse_reason, parse_request
from settings import Settings
from starter.remedies import carry_out
from starter.temporal import connect

LISTED_MAX: Final = 1_000


class Answer(BaseModel):
    """Immutable answer, in camelCase on the wire."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, from_attributes=True)


class FindingView(Answer):
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


class ActionView(Answer):
    """What an operator did."""

    action: str
    operator: str
    reason: str
    outcome: dict[str, Any]
    created_at: datetime


class RemedyView(Answer):
    """What can be done, and the command that does it."""

    remedy: Remedy
    meaning: str
    command: str


class FindingInFull(FindingView):
    """A finding with what can be done, and what was."""

    remedies: tuple[RemedyView, ...]
    actions: tuple[ActionView, ...]


MEANINGS: Final = {
    Remedy.RETRY: "look at it again",
    Remedy.CREDIT: "credit it to an account, with the bonus on top",
    Remedy.REFUND_RECORDED: "the money was sent back by hand: write it down",
    Remedy.WRITE_OFF: "leave it as it is",
}


async def list_findings(settings: Settings, *, kind: FindingKind | None, with_resolved: bool, as_json: bool) -> None:
    """Findings, newest first."""
    async with service_database(settings) as database, database.transaction() as connection:
        found = await findings.list_findings(connection, kind=kind, with_resolved=with_resolved, limit=LISTED_MAX)
    if as_json:
        print_json([FindingView.model_validate(finding) for finding in found])
        return
    if not found:
        stdout.print("no findings" if with_resolved else "no open findings")
        return
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
                for finding in found
            ],
            right=("raw units",),
        )
    )
    stdout.print("settle findings show ID says what can be done about one", markup=False)


async def show(settings: Settings, *, prefix: str, as_json: bool) -> None:
    """One finding, with its remedies and what operators have done about it. Raises `FindingNotFound`."""
    async with service_database(settings) as database, database.transaction() as connection:
        finding = await _find(connection, prefix)
        actions = await remedies.list_actions(connection, finding_id=finding.id)
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
    """Have a remedy carried out. Raises `InvalidInput`, `FindingNotFound` and `RemedyRefused`."""
    # What is wrong with the words is wrong use, whatever is running.
    parse_operator(operator)
    parse_reason(reason)
    async with service_database(settings) as database, database.transaction() as connection:
        finding_id = (await _find(connection, prefix)).id
    request = parse_request(
        finding_id,
        remedy,
        operator=operator,
        reason=reason,
        billing_account_id=account,
        refund_tx_hash=refund_tx,
    )
    taken = await carry_out(await connect(variables, lazy=True), request)
    if as_json:
        print_json(TakenView.of(taken))
    else:
        again = " (it was before)" if taken.is_repeated else ""
        stdout.print(f"{finding_id} is resolved{again}: {describe(taken)}", markup=False)
        if taken.bonus_credits:
            stdout.print(f"{grouped(taken.bonus_credits)} credits to the system tenant on top", markup=False)
    return True


class TakenView(Answer):
    """What was done about a finding."""

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
    """Start an attempt's workflow again where none is at work on it; in the audit trail either way.

    Raises `InvalidInput`, `AttemptNotFound`, and `RemedyRefused` where there is nothing to do again.
    """
    operator, reason = parse_operator(operator), parse_reason(reason)
    async with service_database(settings) as service, payments_client(settings, variables) as client:
        async with service.transaction() as connection:
            attempt = await attempts.find_attempt(connection, attempt_id)
        if attempt is None:
            raise AttemptNotFound(attempt_id)
        if attempt.tx_hash is None or attempt.error_code is not None:
            end = f" / {attempt.error_code.value}" if attempt.error_code else ", and nothing was submitted for it"
            raise RemedyRefused(f"attempt {attempt_id} is {attempt.status.value}{end}: there is nothing to try again")
        # First who wants it: nothing is done that is not in the audit trail.
        async with service.transaction() as connection:
            await remedies.insert_action(
                connection, action=Remedy.RETRY, operator=operator, reason=reason, attempt_id=attempt_id
            )
        started = await client.pick_up(attempt.owner_user_id, attempt_id)
    if as_json:
        print_json({"attemptId": str(attempt_id), "workflowStarted": started})
    else:
        words = "its workflow is started again" if started else "its workflow is at work on it already"
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
    Remedy.RETRY: "have the worker ask for the blocks again, now",
    Remedy.WRITE_OFF: "acknowledge it: the blocks are not asked for any more",
}


def _meaning(finding: StoredFinding, remedy: Remedy) -> str:
    if finding.kind is FindingKind.CHAIN_GAP:
        return GAP_MEANINGS[remedy]
    if remedy is not Remedy.CREDIT:
        return MEANINGS[remedy]
    whose = finding.billing_account_id or "the sender's own, opened where he has none"
    return f"{MEANINGS[remedy]}; without --account: {whose}"


def _command(finding: StoredFinding, remedy: Remedy) -> str:
    words = ["settle", "findings", "resolve", str(finding.id), "--remedy", remedy.value]
    if remedy is Remedy.CREDIT and finding.kind is FindingKind.WRONG_SENDER:
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
