"""What the chain watcher would have written, and findings about it, in one call each."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import text

from db.engine import ServiceDatabase
from db.operations import findings
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.operations.findings import Finding, FindingKind, Remedy
from domain.operations.resolutions import StoredFinding, TakenRemedy, parse_request
from domain.payments.attempt import PaymentAttempt
from services.operations import resolutions as remedies
from tests.support.engine import Engine
from tests.support.payments import CHAIN_ID, NOW, SHARE, TOKEN, TREASURY, RolePair, tx_hash, wallet
from tests.support.sql import connect

BLOCK = 7
OPERATOR = "ada"
REASON = "the payer wrote to us"

_OBSERVE = text(
    """
    INSERT INTO observed_transfers (chain_id, tx_hash, log_index, block_number, block_hash, block_time, token,
                                    from_address, to_address, value_raw, observed_at, handled_at, attempt_id)
    VALUES (:chain_id, :tx_hash, :log_index, :block_number, :block_hash, :block_time, :token, :from_address,
            :to_address, :value_raw, :block_time, CASE WHEN :handled THEN now() END, :attempt_id)
    """
)


async def observe(
    service: ServiceDatabase,
    hash_: str,
    sender: str,
    value_raw: int,
    *,
    log_index: int = 0,
    block_number: int = BLOCK,
    at: datetime = NOW,
    handled: bool = True,
    attempt_id: UUID | None = None,
    chain_id: int = CHAIN_ID,
) -> None:
    """A transfer to the treasury, as the watcher has seen it."""
    async with service.transaction() as connection:
        await connection.connection.execute(
            _OBSERVE,
            {
                "chain_id": chain_id,
                "tx_hash": hash_,
                "log_index": log_index,
                "block_number": block_number,
                "block_hash": tx_hash(block_number),
                "block_time": at,
                "token": TOKEN,
                "from_address": sender,
                "to_address": TREASURY,
                "value_raw": Decimal(value_raw),
                "handled": handled,
                "attempt_id": attempt_id,
            },
        )


async def observe_payment(roles: RolePair, attempt: PaymentAttempt, **changes: Any) -> None:
    """The transfer that paid an attempt, as the payments helper settles it."""
    assert attempt.tx_hash is not None
    values: dict[str, Any] = {"value_raw": attempt.amount_raw, "attempt_id": attempt.id} | changes
    await observe(roles.service, attempt.tx_hash, attempt.from_address, **values)


async def find_transfer(
    service: ServiceDatabase,
    number: int,
    *,
    kind: FindingKind = FindingKind.TRANSFER_WITHOUT_INTENT,
    sender: str | None = None,
    value_raw: int = 5_000_000,
    log_index: int = 0,
    at: datetime = NOW,
    observed: bool = True,
) -> UUID:
    """A transfer without an attempt, with its finding; the finding's id."""
    sender = sender or wallet(number)
    if observed:
        await observe(service, tx_hash(number), sender, value_raw, log_index=log_index, at=at)
    finding = Finding(
        kind=kind,
        detail="a payment",
        chain_id=CHAIN_ID,
        tx_hash=tx_hash(number),
        log_index=log_index,
        sender=sender,
        value_raw=value_raw,
    )
    async with service.transaction() as connection:
        return (await findings.write_finding(connection, finding)).finding_id


def confirm_all(roles: RolePair) -> None:
    """Every settled payment is on record as final, where it was settled."""
    with connect(roles.database.service_url) as service:
        service.execute(
            "INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number,"
            " block_hash, level) SELECT attempt_id, 'final', chain_id, tx_hash, log_index, block_number, block_hash,"
            " 'finalized' FROM settled_transfers"
        )


async def find_receipt(engine: Engine, sent: str, sender: str, value_raw: int) -> UUID:
    """A real transfer, observed as its receipt has it, with a finding; the finding's id."""
    receipt = await engine.chain.wait_for_receipt(sent)
    [log_index] = [int(log["logIndex"], 16) for log in receipt["logs"]]
    with connect(engine.database.service_url) as service:
        service.execute(
            "INSERT INTO observed_transfers (chain_id, tx_hash, log_index, block_number, block_hash, block_time, token,"
            " from_address, to_address, value_raw, handled_at)"
            " VALUES (%s, %s, %s, %s, %s, now(), %s, %s, %s, %s, now())",
            (
                engine.chain.chain_id,
                sent,
                log_index,
                int(receipt["blockNumber"], 16),
                receipt["blockHash"],
                engine.chain.token_address,
                sender,
                engine.chain.treasury_address,
                value_raw,
            ),
        )
    finding = Finding(
        kind=FindingKind.TRANSFER_WITHOUT_INTENT,
        detail="a payment",
        chain_id=engine.chain.chain_id,
        tx_hash=sent,
        log_index=log_index,
        sender=sender,
        value_raw=value_raw,
    )
    async with engine.service.transaction() as connection:
        return (await findings.write_finding(connection, finding)).finding_id


async def stored(service: ServiceDatabase, finding_id: UUID) -> StoredFinding:
    """The finding as it stands."""
    async with service.transaction() as connection:
        return await findings.find_finding(connection, finding_id)


async def take(
    service: ServiceDatabase, finding_id: UUID, remedy: Remedy, *, operator: str = OPERATOR, **options: Any
) -> TakenRemedy:
    """One remedy, in a transaction as its activity opens it."""
    request = parse_request(finding_id, remedy, operator=operator, reason=REASON, **options)
    async with service.transaction() as connection:
        return await remedies.take_remedy(connection, request, revenue_share=SHARE)


async def mint(service: ServiceDatabase, finding_id: UUID) -> int:
    """The bonus of a credit, in a transaction of its own; what is posted for it."""
    async with service.transaction() as connection:
        entry = await remedies.mint_bonus_of_credit(connection, finding_id)
    return entry.amount_credits if entry else 0


async def system_tenant_balance(roles: RolePair) -> int:
    """What the platform's own account is owed."""
    return await roles.balance(SYSTEM_TENANT_ACCOUNT_ID)
