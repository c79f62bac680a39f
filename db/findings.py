"""Queries on findings: what the chain watcher or a reconciliation leaves to an operator."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from db.engine import ServiceConnection
from domain.findings import Finding

_OPEN: Final = text(
    """
    INSERT INTO findings AS f (key, kind, chain_id, tx_hash, log_index, attempt_id, billing_account_id, value_raw,
                               detail, metadata)
    VALUES (:key, :kind, :chain_id, :tx_hash, :log_index, :attempt_id, :billing_account_id, :value_raw,
            :detail, :metadata)
    ON CONFLICT (key) DO UPDATE SET last_seen_at = now()
    RETURNING (f.xmax = 0) AS is_new
    """
).bindparams(bindparam("metadata", type_=JSONB))


async def open_finding(connection: ServiceConnection, finding: Finding) -> bool:
    """Write a finding down; True where it is new. One that is known already, resolved or not, stays as it is."""
    metadata = dict(finding.details) | ({"sender": finding.sender} if finding.sender else {})
    row = (
        await connection.connection.execute(
            _OPEN,
            {
                "key": finding.key,
                "kind": finding.kind.value,
                "chain_id": finding.chain_id,
                "tx_hash": finding.tx_hash,
                "log_index": finding.log_index,
                "attempt_id": finding.attempt_id,
                "billing_account_id": finding.billing_account_id,
                "value_raw": None if finding.value_raw is None else Decimal(finding.value_raw),
                "detail": finding.detail,
                "metadata": metadata,
            },
        )
    ).one()
    return bool(row.is_new)
