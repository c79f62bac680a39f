"""Queries on what payers sign to charges' addresses, all by functions (db/functions/authorizations.sql)."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final
from uuid import UUID

from sqlalchemy import text

from db.engine import ReadAllConnection, ServiceConnection, TenantConnection
from domain.deposits.charges import SignedPayment, SignedState
from domain.payments.authorizations import SignedAuthorization


class ChargeClaimOutcome(StrEnum):
    """What `claim_charge_authorization` answers."""

    NEW = "new"
    SAME = "same"
    """It was kept for this charge before."""
    NOT_FOUND = "not_found"
    """There is no such charge, or its token or address is another one."""
    IN_USE = "in_use"
    """Its payer has signed something else with this nonce."""
    ON_ITS_WAY = "on_its_way"
    """Something else that was signed for this charge may arrive any moment."""
    ANOTHER_AMOUNT = "another_amount"
    """The charge lacks another amount by now."""
    LIMIT = "limit"
    """The charge or its account has used up its signatures of the day, or too many of them have failed."""


@dataclass(frozen=True, slots=True)
class ChargeLimits:
    """A day's signatures that are relayed, and the relay's transactions that may revert: of a charge, of an account."""

    relayed_per_charge: int
    failed_per_charge: int
    relayed_per_account: int
    failed_per_account: int


@dataclass(frozen=True, slots=True)
class OpenSignature:
    """What was signed for a charge, of which it is not known yet what became of it."""

    id: UUID
    token: str
    payer: str
    nonce: str
    valid_before: int
    from_block: int
    """It was unused at this block."""


_SIGNED: Final = text("SELECT * FROM charge_authorizations_of(:charge_id)")

_CLAIM: Final = text(
    """
    SELECT claim_charge_authorization(:charge_id, :chain_id, :token, :payer, :to, CAST(:value AS numeric), :valid_after,
                                      :valid_before, :nonce, :signature, :is_contract, :from_block,
                                      :relayed_per_charge, :failed_per_charge, :relayed_per_account,
                                      :failed_per_account)
    """
)

# By the relay's transactions and the payer's time: what was executed is known once it is confirmed, what was not when
# it has expired.
_OPEN: Final = text(
    """
    SELECT c.id, c.token, c.payer, c.nonce, c.valid_before, c.from_block FROM charge_authorizations c
     WHERE c.outcome IS NULL AND c.chain_id = :chain_id
       AND (to_timestamp(c.valid_before) < now() OR EXISTS (
            SELECT FROM relay_nonces n WHERE n.charge_authorization_id = c.id AND n.outcome IS NOT NULL))
     ORDER BY c.valid_before LIMIT :limit
    """
)

_END: Final = text("SELECT end_charge_authorization(:id, :executed_by)")


async def list_signed(connection: TenantConnection, charge_id: UUID) -> tuple[SignedPayment, ...]:
    """What was signed for a charge in the tenant's scope, the newest first, at most 50."""
    rows = await connection.connection.execute(_SIGNED, {"charge_id": charge_id})
    return tuple(
        SignedPayment(
            id=row.id,
            payer=row.payer,
            nonce=row.nonce,
            value_raw=int(row.value_raw),
            valid_before=row.valid_before,
            state=SignedState(row.state),
            tx_hash=row.tx_hash,
            is_on_its_way=row.is_on_its_way,
            is_seen=row.is_seen,
        )
        for row in rows
    )


async def claim(
    connection: TenantConnection,
    charge_id: UUID,
    signed: SignedAuthorization,
    *,
    chain_id: int,
    token: str,
    is_contract: bool,
    from_block: int,
    limits: ChargeLimits,
) -> ChargeClaimOutcome:
    """Keep what was signed for a charge in the tenant's scope, once: nothing is sent before it is kept."""
    authorization = signed.authorization
    values = {
        "charge_id": charge_id,
        "chain_id": chain_id,
        "token": token,
        "payer": authorization.payer,
        "to": authorization.to,
        "value": Decimal(authorization.value_raw),
        "valid_after": authorization.valid_after,
        "valid_before": authorization.valid_before,
        "nonce": authorization.nonce,
        "signature": signed.signature,
        "is_contract": is_contract,
        "from_block": from_block,
        "relayed_per_charge": limits.relayed_per_charge,
        "failed_per_charge": limits.failed_per_charge,
        "relayed_per_account": limits.relayed_per_account,
        "failed_per_account": limits.failed_per_account,
    }
    return ChargeClaimOutcome((await connection.connection.execute(_CLAIM, values)).scalar_one())


async def list_open(connection: ReadAllConnection, chain_id: int, *, limit: int) -> list[OpenSignature]:
    """Those that are to be decided: the relay's transaction is confirmed, or their time is up."""
    rows = await connection.connection.execute(_OPEN, {"chain_id": chain_id, "limit": limit})
    return [OpenSignature(**row._mapping) for row in rows]


async def end(connection: ServiceConnection, signature_id: UUID, *, executed_by: str | None) -> bool:
    """Record what became of it, once: executed by a transaction, or (None) never to be."""
    values = {"id": signature_id, "executed_by": executed_by}
    return bool((await connection.connection.execute(_END, values)).scalar_one())
