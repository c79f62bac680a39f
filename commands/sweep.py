"""`settle sweep plan|sign|send|list`: collects what deposit addresses hold, by a file that travels to the key."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from chain.addresses import checksum_address
from commands.output import grouped, print_json, progress, stdout, table
from commands.sweep_signing import SECRET_EXPECTED, check_signed, sign_plan
from composition import chain_reader, service_database
from db.deposits.methods import find_method
from db.deposits.sweeps import ListedSweep, SignedSweepTransaction, insert_sweep, list_sweeps
from domain.deposits.sweeps import BATCH_MAX, Plan, StepKind
from domain.errors import InvalidInput, MethodNotFound
from domain.identifiers import same_address
from services.deposits.sweep_plans import PlanTerms, SweepPlanner
from settings import Settings
from starter.sweeps import start_sweep
from starter.temporal import connect
from workflows.naming import sweep_workflow_id

WEI_PER_GWEI: Final = 10**9
LISTED_MAX: Final = 100


async def plan(
    settings: Settings,
    *,
    method_id: str | None,
    sender: str | None,
    min_raw: int,
    batch: int,
    max_fee_gwei: str,
    valid_hours: int,
    as_json: bool,
) -> None:
    """Print a plan of what can be collected now. Raises `InvalidInput`, `OperatorError` and `ChainUnavailable`."""
    if not 1 <= batch <= BATCH_MAX:
        raise InvalidInput("--batch", f"expected 1 to {BATCH_MAX}, got {batch}")
    if not 1 <= valid_hours <= 24 * 30:
        raise InvalidInput("--valid-hours", f"expected 1 to 720, got {valid_hours}")
    terms = PlanTerms(
        treasury=settings.require_treasury_address(),
        max_fee_wei=_wei(max_fee_gwei),
        batch_size=batch,
        min_raw=min_raw,
        method_id=method_id,
        sender=None if sender is None else checksum_address(sender, field="--from"),
        valid_for=timedelta(hours=valid_hours),
    )
    async with service_database(settings) as database, chain_reader(settings) as chain:
        if method_id is not None:
            async with database.transaction() as connection:
                if await find_method(connection, method_id) is None:
                    raise MethodNotFound(method_id)
        made = await SweepPlanner(database, chain).plan(terms)
    for refusal in made.refused:
        progress(f"{refusal.method}: {refusal.reason}")
    if as_json:
        print_json(made)
        return
    rows = [(step.kind.value, len(step.addresses), step.token, step.treasury, grouped(step.gas)) for step in made.steps]
    if rows:
        stdout.print(table("", ("transaction", "addresses", "token", "treasury", "gas at most"), rows))
        progress("the file: settle sweep plan --json > plan.json")
    else:
        stdout.print("nothing to collect")


def _wei(gwei: str) -> int:
    try:
        wei = Decimal(gwei) * WEI_PER_GWEI
    except ArithmeticError:
        raise InvalidInput("--max-fee-gwei", f"expected a number, got {gwei!r:.40}") from None
    if not wei.is_finite() or not 1 <= wei <= 10**15:
        raise InvalidInput("--max-fee-gwei", f"expected more than 0 and at most 1,000,000, got {gwei!r:.40}")
    return int(wei)


def sign(file: Path, *, treasury: str | None, nonce: int | None, max_fee_gwei: str | None, output: Path | None) -> None:
    """Sign a plan with the secret on standard input; print the signed plan, or write it to `output`.

    Raises `InvalidInput`.
    """
    made = read_plan(file)
    if max_fee_gwei is not None:
        # Raised to replace what is not mined: nodes ask for more of both.
        raised = _wei(max_fee_gwei)
        tip = max(
            made.max_priority_fee_per_gas_wei, raised * made.max_priority_fee_per_gas_wei // made.max_fee_per_gas_wei
        )
        made = made.model_copy(update={"max_fee_per_gas_wei": raised, "max_priority_fee_per_gas_wei": min(tip, raised)})
    secret = sys.stdin.readline().strip() if sys.stdin is not None else ""
    if not secret:
        raise InvalidInput("key", f"expected {SECRET_EXPECTED} on standard input")
    _require_treasury(made, treasury, moves_by_key=not secret.startswith("0x") and len(secret) != 64)
    signed = sign_plan(made, secret, nonce=nonce)
    authorized = sum(1 for step in signed.steps if step.authorization and step.authorization.signature)
    ready = sum(1 for step in signed.steps if step.raw_transaction)
    wanted = sum(1 for step in signed.steps if step.authorization)
    progress(f"{authorized} of {wanted} authorizations and {ready} of {len(signed.steps)} transactions are signed")
    if output is None:
        print_json(signed)
    else:
        output.write_text(signed.model_dump_json(by_alias=True, indent=2) + "\n")


def _require_treasury(made: Plan, treasury: str | None, *, moves_by_key: bool) -> None:
    """An address's key sends wherever it is asked to: who signs says where the treasury is, not the file.

    A forwarder's treasury is part of its address, and the key of the gas moves nothing else.
    """
    if treasury is None:
        if moves_by_key and any(step.kind is StepKind.AUTHORIZATION for step in made.steps):
            raise InvalidInput("--treasury", "is needed to sign for addresses: the file alone must not say where to")
        return
    expected = checksum_address(treasury, field="--treasury")
    for step in made.steps:
        if not same_address(step.treasury, expected):
            raise InvalidInput("FILE", f"pays to {step.treasury}, expected {expected}")


async def send(settings: Settings, variables: Mapping[str, str], file: Path, *, as_json: bool) -> None:
    """Store a signed plan and start sending it; safe to repeat. Raises `InvalidInput` and `TemporalUnavailable`.

    Signed again with a higher fee, its transactions replace those that are not mined.
    """
    made = read_plan(file)
    if made.chain_id != settings.chain_id:
        raise InvalidInput("FILE", f"is of chain {made.chain_id}, CHAIN_ID is {settings.chain_id}")
    if not made.steps:
        raise InvalidInput("FILE", "has no transactions: there is nothing to collect")
    own = settings.require_treasury_address()
    for step in made.steps:
        if step.kind is StepKind.AUTHORIZATION and not same_address(step.treasury, own):
            raise InvalidInput("FILE", f"pays to {step.treasury}, TREASURY_ADDRESS is {own}")
    signed = [SignedSweepTransaction(*one) for one in check_signed(made)]
    sweep_id = made.id
    async with service_database(settings) as database, database.transaction() as connection:
        stored = made.model_dump(mode="json", by_alias=True)
        await insert_sweep(connection, sweep_id, made.chain_id, stored, signed)
    addresses = sum(len(step.addresses) for step in made.steps)
    summary = f"collects from {addresses} deposit addresses in {len(signed)} transactions"
    is_new = await start_sweep(await connect(variables), sweep_id, made.chain_id, summary=summary)
    if as_json:
        document: dict[str, Any] = {
            "sweepId": str(sweep_id),
            "workflowId": sweep_workflow_id(sweep_id),
            "transactions": [{"txHash": one.tx_hash, "nonce": one.nonce} for one in signed],
        }
        print_json(document)
        return
    stdout.print(f"sweep {sweep_id} {'is being sent' if is_new else 'is under way already'}", markup=False)


async def list_all(settings: Settings, *, as_json: bool) -> None:
    """The chain's newest sweeps, with what they have cost."""
    async with service_database(settings) as database, database.transaction() as connection:
        found = await list_sweeps(connection, settings.chain_id, limit=LISTED_MAX)
    if as_json:
        print_json([_listed(one) for one in found])
    elif not found:
        stdout.print("no sweeps")
    else:
        rows = [
            (
                one.id,
                one.status,
                f"{one.created_at:%Y-%m-%d %H:%M:%S}",
                f"{one.decided} of {one.nonces}",
                one.gas_used,
                one.spent_wei,
            )
            for one in found
        ]
        columns = ("sweep", "status", "stored", "decided", "gas used", "spent, wei")
        stdout.print(table("", columns, rows, right=("decided", "gas used", "spent, wei")))


def _listed(one: ListedSweep) -> dict[str, Any]:
    """Amounts in wei as text: a JSON number does not keep them."""
    return {
        "sweepId": str(one.id),
        "chainId": one.chain_id,
        "status": one.status,
        "storedAt": one.created_at.isoformat(),
        "endedAt": one.ended_at and one.ended_at.isoformat(),
        "nonces": one.nonces,
        "decided": one.decided,
        "gasUsed": one.gas_used,
        "spentWei": str(one.spent_wei),
        "l1FeeWei": None if one.l1_fee_wei is None else str(one.l1_fee_wei),
    }


def read_plan(file: Path) -> Plan:
    """A plan's file. Raises `InvalidInput` naming what is wrong with it."""
    try:
        return Plan.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InvalidInput("FILE", f"{file}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput("FILE", f"{file} is no plan of settle: {where}: {first['msg']}") from None
