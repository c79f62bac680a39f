"""SQLAlchemy's view of the tables, by subject. Migrations create them; a test compares the two."""

from __future__ import annotations

from db.tables import (
    accounts,
    billing,
    compatibility,
    deposits,
    ledger,
    operations,
    payments,
    sweeps,
    transfers,
    webhooks,
)
from db.tables.base import Base

__all__ = [
    "Base",
    "accounts",
    "billing",
    "compatibility",
    "deposits",
    "ledger",
    "operations",
    "payments",
    "sweeps",
    "transfers",
    "webhooks",
]
