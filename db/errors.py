"""Names of the constraints that the code reacts to, and how to read the name from an error."""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import IntegrityError

from db.tables.ledger import LEDGER_REFERENCE_INDEXES, ONE_OPERATOR_CREDIT

HASH_HELD_BY_ACCOUNT: Final = "payment_attempts_hash_held_by_account"
ONE_ATTEMPT_PER_TRANSFER: Final = "settled_transfers_one_attempt_per_transfer"
NOT_CREDITED_BY_OPERATOR: Final = "settled_transfers_not_credited_by_operator"
FROM_A_PAYER: Final = "settled_transfers_from_a_payer"
NOT_TOO_OLD: Final = "settled_transfers_not_too_old"
WALLET_IS_SOMEBODYS: Final = "users_wallet_is_somebodys"
POSTED_ONCE: Final = frozenset(LEDGER_REFERENCE_INDEXES.values()) | {ONE_OPERATOR_CREDIT}


def violated_constraint(error: IntegrityError) -> str | None:
    """Name of the constraint or unique index that refused the statement, or None where the server gives none."""
    diagnostic = getattr(error.orig, "diag", None)
    name = getattr(diagnostic, "constraint_name", None)
    return name if isinstance(name, str) else None
