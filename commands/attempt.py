"""`settle attempt create|submit|show`, for scripts and operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from chain.addresses import checksum_address
from commands.output import grouped, print_json, stdout, table
from composition import chain_reader, payments_client, service_database
from db.operations import findings
from db.payments import attempts
from domain.errors import AttemptNotFound, InvalidInput, PayerRefused
from domain.identifiers import parse_tx_hash
from domain.money import format_usd
from domain.payments.attempt import OPEN_STATUSES, AttemptStatus, Purpose
from settings import Settings
from starter.diagnosis import Diagnosis, EventView, LedgerRowView, diagnose
from starter.models import AttemptView
from starter.temporal import connect


async def create(
    settings: Settings, variables: Mapping[str, str], *, wallet: str, cents: int, purpose: Purpose, as_json: bool
) -> None:
    """Create an intent, and print what to send where."""
    address = checksum_address(wallet, field="--wallet")
    settings.require_evm_chain()
    async with payments_client(settings, variables) as client:
        try:
            await client.require_payer(address)
        except PayerRefused as refusal:
            raise InvalidInput("--wallet", f"is invalid: {refusal.message}; expected the paying wallet") from None
        intent = await client.create_intent(await client.provision(address), cents, purpose)
    if as_json:
        print_json(intent)
        return
    stdout.print(f"attempt {intent.attempt_id}", markup=False)
    stdout.print(
        f"send {intent.amount_raw} raw units of token {intent.token} on chain {intent.chain_id}\n"
        f"from {address} to {intent.to}, before {intent.expires_at:%Y-%m-%d %H:%M:%S} UTC,\n"
        f"then: settle attempt submit {intent.attempt_id} TX_HASH",
        markup=False,
    )


async def submit(
    settings: Settings, variables: Mapping[str, str], *, attempt_id: UUID, tx_hash: str, as_json: bool
) -> bool:
    """Submit on behalf of the attempt's payer. False when the attempt has ended without credits."""
    parse_tx_hash(tx_hash, field="TX_HASH")
    async with service_database(settings) as service, payments_client(settings, variables) as client:
        async with service.transaction() as connection:
            attempt = await attempts.find_attempt(connection, attempt_id)
        if attempt is None:
            raise AttemptNotFound(attempt_id)
        view = await client.submit(attempt.owner_user_id, attempt_id, tx_hash)
    if as_json:
        print_json(view)
    else:
        stdout.print(_line(view), markup=False)
    return view.status in OPEN_STATUSES or view.status is AttemptStatus.CREDITED


async def show(settings: Settings, variables: Mapping[str, str], *, attempt_id: UUID, as_json: bool) -> bool:
    """Explain why the payment is, or is not, credited. Raises where there is no such attempt."""
    async with service_database(settings) as service, chain_reader(settings) as chain:
        temporal = await connect(variables, lazy=True)
        diagnosis = await diagnose(
            attempt_id,
            database=service,
            temporal=temporal,
            chain=chain,
            min_confirmations=settings.min_confirmations,
            ui_url=settings.temporal_ui_url,
        )
        async with service.transaction() as connection:
            found = await findings.list_findings_of_attempt(connection, attempt_id)
    if as_json:
        print_json(diagnosis)
        return True
    _print(diagnosis)
    for finding in found:
        if finding.is_open:
            stdout.print(f"{finding.kind.value}: settle findings show {finding.id}", markup=False)
    return True


def _line(view: AttemptView) -> str:
    error = f" / {view.error_code.value}" if view.error_code else ""
    return f"{view.attempt_id} {view.status.value}{error} ({view.client_status.value}) {view.tx_hash or ''}".rstrip()


def _print(diagnosis: Diagnosis) -> None:
    stdout.print(diagnosis.explanation, style="bold", markup=False)
    facts = [
        ("attempt", diagnosis.attempt_id),
        ("status", f"{diagnosis.status.value} (the payer sees {diagnosis.client_status.value})"),
        ("error", diagnosis.error_code.value if diagnosis.error_code else None),
        ("purpose", diagnosis.purpose.value),
        ("amount", f"{format_usd(diagnosis.amount_usd_cents)} USD = {grouped(diagnosis.amount_raw)} raw units"),
        ("payer", diagnosis.from_address),
        ("treasury", diagnosis.to),
        ("token", f"{diagnosis.token} on chain {diagnosis.chain_id}"),
        ("account", diagnosis.billing_account_id),
        ("transaction", diagnosis.tx_hash),
        ("created", diagnosis.created_at.isoformat(timespec="seconds")),
        ("submitted", diagnosis.submitted_at.isoformat(timespec="seconds") if diagnosis.submitted_at else None),
        ("expires", diagnosis.expires_at.isoformat(timespec="seconds") if diagnosis.expires_at else None),
        ("surplus", f"{grouped(diagnosis.surplus_raw)} raw units" if diagnosis.surplus_raw else None),
        ("unapplied", f"{grouped(diagnosis.unapplied_raw)} raw units" if diagnosis.unapplied_raw else None),
        ("chain says", diagnosis.chain),
        ("workflow", diagnosis.workflow),
        ("finality", diagnosis.finality),
        ("in Temporal's UI", diagnosis.workflow_url),
    ]
    stdout.print(table("", ("fact", "value"), [(name, value) for name, value in facts if value is not None]))
    _print_events(diagnosis.events)
    _print_ledger(diagnosis.ledger)


def _print_events(events: Sequence[EventView]) -> None:
    stdout.print(
        table(
            "Events",
            ("when", "event", "from", "to", "error", "details"),
            [
                (
                    event.created_at.isoformat(timespec="seconds"),
                    event.event_type,
                    event.from_status,
                    event.to_status,
                    event.error_code,
                    ", ".join(f"{key}={value}" for key, value in event.metadata.items()),
                )
                for event in events
            ],
        )
    )


def _print_ledger(rows: Sequence[LedgerRowView]) -> None:
    stdout.print(
        table(
            "Ledger",
            ("when", "account", "reason", "credits", "balance after"),
            [
                (
                    row.created_at.isoformat(timespec="seconds"),
                    row.billing_account_id,
                    row.reason,
                    grouped(row.amount),
                    grouped(row.balance_after),
                )
                for row in rows
            ],
            right=("credits", "balance after"),
        )
    )
