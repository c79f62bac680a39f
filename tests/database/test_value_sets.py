"""Each column that takes one of a list of values: the CHECKs of the schema against the types of the product."""

from __future__ import annotations

import re
from enum import StrEnum

import pytest

from domain.billing.accounts import AccountKind, MemberRole, Tier
from domain.deposits.charges import ChargeStatus
from domain.deposits.methods import MethodKind, Scheme
from domain.ledger.entries import Side
from domain.operations.findings import Remedy
from domain.operations.governance import HeartbeatStatus
from domain.operations.governance_call import CallOutcome
from domain.payments.attempt import AttemptKind, AttemptStatus, Purpose
from domain.payments.finality import FinalityLevel
from tests.support.postgres import Database
from tests.support.sql import query

TYPES: dict[str, type[StrEnum]] = {
    "account_members.role": MemberRole,
    "billing_accounts.kind": AccountKind,
    "billing_accounts.tier": Tier,
    "charges.status": ChargeStatus,
    "deposit_addresses.scheme": Scheme,
    "finality_progress.level": FinalityLevel,
    "governance_calls.outcome": CallOutcome,
    "governance_heartbeats.status": HeartbeatStatus,
    "journal_lines.side": Side,
    "ledger_accounts.normal_side": Side,
    "operator_actions.action": Remedy,
    "payment_attempts.kind": AttemptKind,
    "payment_attempts.purpose": Purpose,
    "payment_attempts.status": AttemptStatus,
    "payment_methods.kind": MethodKind,
    "payment_methods.scheme": Scheme,
    "transfer_finality.level": FinalityLevel,
}

WITHOUT_A_TYPE = {
    "billing_alerts.kind",
    "billing_alerts.period",
    "books_checkpoints.stream",
    "charge_authorizations.outcome",
    "credit_holds.state",
    "general_entries.reason",
    "ledger_accounts.type",
    "payment_destinations.noted_by",
    "relay_nonces.outcome",
    "sweep_transactions.outcome",
    "sweeps.status",
    "transfer_credits.part",
    "transfer_finality.outcome",
    "webhook_deliveries.state",
    "webhook_endpoints.disabled_reason",
}
"""Written and read as text, by one module each."""

_VALUES = re.compile(r"CHECK \(\((\w+) = ANY \(ARRAY\[((?:'\w+'::text(?:, )?)+)\]\)\)\)(?: NOT VALID)?", re.ASCII)


@pytest.fixture
def allowed(database: Database) -> dict[str, set[str]]:
    """The values that each column takes."""
    rows = query(
        database.superuser_url,
        """SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint
            WHERE contype = 'c' AND connamespace = 'public'::regnamespace""",
    )
    found = [(table, _VALUES.fullmatch(check)) for table, check in rows]
    return {f"{table}.{match[1]}": set(re.findall(r"'(\w+)'", match[2])) for table, match in found if match}


def test_every_list_of_values_is_the_same_in_schema_and_product(allowed: dict[str, set[str]]) -> None:
    assert {column: allowed.get(column) for column in TYPES} == {
        column: {str(value) for value in values} for column, values in TYPES.items()
    }


def test_every_list_of_values_has_its_type_named_here(allowed: dict[str, set[str]]) -> None:
    assert allowed.keys() == TYPES.keys() | WITHOUT_A_TYPE
