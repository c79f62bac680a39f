"""Each CHECK of the schema, as PostgreSQL evaluates it, by rows on both sides of its edge.

Lists of values that are a type of the product are compared in `test_value_sets.py`; columns that take no NULL, unique
indexes and foreign keys in `test_migrate.py`, which builds the tables from the models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from psycopg.types.json import Jsonb

from tests.database.edges_of_columns import (
    ADDRESS,
    BASE58,
    BECH32,
    HASH,
    NO_ADDRESS,
    NOT_NEGATIVE,
    OF_ONE_COLUMN,
    Sides,
    hexadecimal,
)
from tests.database.test_value_sets import TYPES
from tests.support.postgres import Database
from tests.support.sql import connect, query

TIME: Final = "2026-01-01T00:00:00Z"
LATER: Final = "2026-01-01T00:00:01Z"
ID: Final = "00000000-0000-0000-0000-000000000001"
HEX: Final = "0x" + "0f" * 32
BIGINT_MAX: Final = 2**63 - 1


def _rows(*, accepted: Sequence[Mapping[str, Any]], refused: Sequence[Mapping[str, Any]]) -> Sides:
    return Sides(accepted, refused)


def _all_or_none(**values: Any) -> Sides:
    """Either all of these or none: refused is each set that lacks one, and each one alone."""
    lacking = [{column: value for column, value in values.items() if column != left} for left in values]
    return Sides([{}, values], [*lacking, *({column: value} for column, value in values.items())])


def _only_where(where: Mapping[str, Any], elsewhere: Mapping[str, Any], **value: Any) -> Sides:
    """There is a value in these rows, and in no others."""
    return Sides([{**where, **value}, elsewhere], [where, {**elsewhere, **value}])


def _part_of(part: str, whole: str) -> Sides:
    """From 0 to another column's value."""
    pairs = [(0, 0), (5, 5), (0, 5)], [(-1, 5), (6, 5)]
    return Sides(*([{part: small, whole: large} for small, large in side] for side in pairs))


def _signed(reason: str, sign: int) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Entries of a reason that gives (or takes) and has a reference."""
    right = {"reason": reason, "amount": sign, "reference": "x"}
    return [right], [{**right, "amount": -sign}, {**right, "amount": 0}, {**right, "reference": None}]


def _entries(*reasons: str, sign: int) -> Sides:
    sides = [_signed(reason, sign) for reason in reasons]
    others = [{"reason": "gift", "amount": -sign}]
    return Sides(others + [row for right, _ in sides for row in right], [row for _, wrong in sides for row in wrong])


DEPOSIT: Final = {"kind": "deposit", "value_raw": 7, "amount_credits": 250_000, "cash_account": "cash:usdc:deposits"}
SUBMITTED: Final = {"tx_hash": HEX, "submitted_at": TIME}
CREDIT: Final = {"part": "whole", "value_raw": 1_500_000, "price_raw": 2, "token_decimals": 6, "price_decimals": 0}
NOBODY: Final = "0x" + "0" * 40
SOMEBODY: Final = "0x" + "1" * 40
QUOTED: Final = {"second_round_id": 1, "second_answer_raw": 1, "second_decimals": 8, "second_updated_at": TIME}
CLAIMED: Final = {"signature": "\\x00", "is_contract": False, "from_block": 1, "claimed_at": TIME}

OF_ROWS: Final[Mapping[str, Sides]] = {
    "balance_assertions_check": _rows(
        accepted=[{"period_from": TIME, "period_to": LATER}],
        refused=[{"period_from": TIME, "period_to": TIME}, {"period_from": LATER, "period_to": TIME}],
    ),
    "billing_accounts_held_from_zero": NOT_NEGATIVE.of("held_credits"),
    "billing_accounts_limit_day": NOT_NEGATIVE.of("limit_day_credits"),
    "billing_accounts_limit_month": NOT_NEGATIVE.of("limit_month_credits"),
    "billing_accounts_tier_of_service": _only_where({"kind": "platform_service"}, {"kind": "personal"}, tier="demo"),
    "billing_alerts_of_limit": _only_where({"kind": "key_limit"}, {"kind": "balance_exhausted"}, period="day"),
    "billing_grants_between_two": _rows(
        accepted=[{"payer_account_id": "a", "grantee_account_id": "b"}],
        refused=[{"payer_account_id": "a", "grantee_account_id": "a"}],
    ),
    "books_checkpoints_check": _rows(
        accepted=[{"checked_to": low, "safe_to": safe, "mark": mark} for low, safe, mark in [(0, 0, 0), (1, 2, 3)]],
        refused=[
            {"checked_to": low, "safe_to": safe, "mark": mark} for low, safe, mark in [(-1, 0, 0), (2, 1, 3), (1, 3, 2)]
        ],
    ),
    "chain_cursors_check": _rows(
        accepted=[{"first_block": 5, "block_number": 4}], refused=[{"first_block": 5, "block_number": 3}]
    ),
    "chain_gaps_check": _rows(
        accepted=[{"first_block": 5, "last_block": 5}], refused=[{"first_block": 5, "last_block": 4}]
    ),
    "charge_authorizations_ended_whole": _all_or_none(outcome="expired", ended_at=TIME),
    "charge_authorizations_executed_by_one": _rows(
        accepted=[{}, {"outcome": "expired"}, {"outcome": "executed", "executed_by": HEX}],
        refused=[{"outcome": "executed"}, {"outcome": "expired", "executed_by": HEX}, {"executed_by": HEX}],
    ),
    "charge_receipts_check": _part_of("absorbed_cost_usd", "provider_cost_usd"),
    "charge_receipts_check1": _part_of("cached_input_tokens", "input_tokens"),
    "charge_receipts_check2": _part_of("cache_write_tokens", "input_tokens"),
    "charge_receipts_check3": _part_of("reasoning_tokens", "output_tokens"),
    "credit_holds_resolved_has_time": _rows(
        accepted=[{"state": "held"}, *({"state": state, "resolved_at": TIME} for state in ("captured", "voided"))],
        refused=[{"state": "held", "resolved_at": TIME}, {"state": "captured"}, {"state": "voided"}],
    ),
    "credit_ledger_check": _entries("credits_purchase", "platform_revenue_share", "system_donation", sign=1),
    "credit_ledger_operator_credit_gives": _entries("operator_credit", sign=1),
    "credit_ledger_reversal_takes": _entries("payment_reversal", sign=-1),
    "credit_ledger_usage_takes": _entries("llm_usage", sign=-1),
    "deposit_addresses_of_scheme": _rows(
        accepted=[
            {"scheme": "create2", "salt": HEX, "treasury": SOMEBODY},
            {"scheme": "xpub", "ring_id": ID, "index": 0},
        ],
        refused=[
            {"scheme": "create2", "treasury": SOMEBODY},
            {"scheme": "create2", "salt": HEX},
            {"scheme": "create2", "salt": HEX, "treasury": SOMEBODY, "ring_id": ID},
            {"scheme": "create2", "salt": HEX, "treasury": SOMEBODY, "index": 0},
            {"scheme": "xpub", "ring_id": ID},
            {"scheme": "xpub", "index": 0},
            {"scheme": "xpub", "ring_id": ID, "index": 0, "salt": HEX},
            {"scheme": "xpub", "ring_id": ID, "index": 0, "treasury": SOMEBODY},
        ],
    ),
    "findings_check": _all_or_none(resolved_at=TIME, resolution="x"),
    "governance_calls_refused_is_free": _rows(
        accepted=[{"outcome": "answered", "charged_credits": 1}, {"outcome": "refused", "charged_credits": 0}],
        refused=[{"outcome": "refused", "charged_credits": 1}],
    ),
    "governance_heartbeats_check": _rows(
        accepted=[
            {"is_low": low, "crossed": crossed} for low, crossed in [(True, True), (True, False), (False, False)]
        ],
        refused=[{"is_low": False, "crossed": True}],
    ),
    "ledger_accounts_check": _rows(
        accepted=[
            *({"normal_side": "debit", "type": kind} for kind in ("asset", "expense")),
            *({"normal_side": "credit", "type": kind} for kind in ("liability", "equity", "revenue")),
        ],
        refused=[
            *({"normal_side": "credit", "type": kind} for kind in ("asset", "expense")),
            *({"normal_side": "debit", "type": kind} for kind in ("liability", "equity", "revenue")),
        ],
    ),
    "observed_transfers_to_address_check": _rows(
        accepted=[{"to_address": address} for address in (*ADDRESS.accepted, *BASE58, *BECH32)],
        refused=[{"to_address": address} for address in NO_ADDRESS],
    ),
    "operator_actions_check": _all_or_none(finding_id=ID, opening=1),
    "operator_actions_check1": _rows(accepted=[{"finding_id": ID}, {"attempt_id": ID}], refused=[{}]),
    "payment_attempts_amount_usd_cents_check": _rows(
        accepted=[{"kind": "wallet", "amount_usd_cents": 1}, {"kind": "deposit", "amount_usd_cents": 0}],
        refused=[
            *({"kind": kind, "amount_usd_cents": 0} for kind in ("wallet", "authorization")),
            *({"kind": kind, "amount_usd_cents": -1} for kind in ("wallet", "deposit")),
        ],
    ),
    "payment_attempts_amounts_agree": _rows(
        accepted=[
            {"kind": "wallet", "amount_usd_cents": 3, "amount_raw": 30_000},
            {**DEPOSIT, "amount_raw": 7, "amount_usd_cents": 2},
            {**DEPOSIT, "value_raw": str(10**30), "amount_raw": BIGINT_MAX, "amount_usd_cents": 2},
        ],
        refused=[
            *({"kind": "wallet", "amount_usd_cents": 3, "amount_raw": raw} for raw in (29_999, 30_001)),
            *({**DEPOSIT, "amount_raw": raw, "amount_usd_cents": 2} for raw in (6, 8)),
            *({**DEPOSIT, "amount_raw": 7, "amount_usd_cents": cents} for cents in (1, 3)),
        ],
    ),
    "payment_attempts_authorization_has_payer": _rows(
        accepted=[
            {"kind": "wallet", "from_address": SOMEBODY, "status": "CREDITED"},
            {"kind": "authorization", "from_address": SOMEBODY, "authorization_nonce": HEX, "status": "CREDITED"},
            *(
                {"kind": "authorization", "from_address": NOBODY, "status": status}
                for status in ("CREATED_INTENT", "FAILED")
            ),
        ],
        refused=[
            {"kind": "wallet", "from_address": SOMEBODY, "authorization_nonce": HEX, "status": "CREDITED"},
            {"kind": "authorization", "from_address": SOMEBODY, "status": "CREATED_INTENT"},
            {"kind": "authorization", "from_address": NOBODY, "authorization_nonce": HEX, "status": "CREDITED"},
            *(
                {"kind": "authorization", "from_address": NOBODY, "status": status}
                for status in ("PENDING_UNVERIFIED", "CREDITED", "REJECTED", "REVERSED")
            ),
        ],
    ),
    "payment_attempts_authorization_nonce": HASH.of("authorization_nonce"),
    "payment_attempts_deposit_has_worth": _rows(
        accepted=[{"kind": "wallet"}, DEPOSIT],
        refused=[
            *({**DEPOSIT, column: None} for column in ("value_raw", "amount_credits", "cash_account")),
            *({**DEPOSIT, column: 0} for column in ("value_raw", "amount_credits")),
            *({**DEPOSIT, "cash_account": code} for code in ("cash:usdc", "income:usdc:deposits", "")),
            *({"kind": "wallet", column: 1} for column in ("value_raw", "amount_credits")),
            {"kind": "wallet", "cash_account": "cash:usdc:deposits"},
        ],
    ),
    "payment_attempts_error_iff_refused": _rows(
        accepted=[
            {"status": "REJECTED", "error_code": "x"},
            {"status": "FAILED", "error_code": "x"},
            {"status": "CREDITED"},
        ],
        refused=[{"status": "REJECTED"}, {"status": "FAILED"}, {"status": "CREDITED", "error_code": "x"}],
    ),
    "payment_attempts_intent_has_expiry": _rows(
        accepted=[{"status": "CREATED_INTENT", "expires_at": TIME}, {"status": "CREDITED", "tx_hash": HEX}],
        refused=[{"status": "CREATED_INTENT"}, {"status": "CREATED_INTENT", "expires_at": TIME, "tx_hash": HEX}],
    ),
    "payment_attempts_purchase_has_share": _rows(
        accepted=[
            *({"status": status, "purpose": "self", "revenue_share": 1} for status in ("CREDITED", "REVERSED")),
            *({"status": status, "purpose": "system"} for status in ("CREDITED", "REVERSED")),
            {"status": "PENDING_UNVERIFIED", "purpose": "self"},
        ],
        refused=[
            *({"status": status, "purpose": "self"} for status in ("CREDITED", "REVERSED")),
            {"status": "CREDITED", "purpose": "system", "revenue_share": 1},
            {"status": "PENDING_UNVERIFIED", "purpose": "self", "revenue_share": 1},
        ],
    ),
    "payment_attempts_submitted_has_hash": _rows(
        accepted=[{"status": "FAILED"}, {"status": "PENDING_UNVERIFIED", **SUBMITTED}],
        refused=[
            *({"status": status} for status in ("PENDING_UNVERIFIED", "CREDITED", "REVERSED")),
            *({"status": "CREDITED", **SUBMITTED, column: None} for column in SUBMITTED),
            {"status": "CREDITED", **SUBMITTED, "expires_at": TIME},
        ],
    ),
    "payment_attempts_to_address_check": _rows(
        accepted=[
            *({"kind": "wallet", "to_address": address} for address in ADDRESS.accepted),
            *({"kind": "deposit", "to_address": address} for address in (*ADDRESS.accepted, *BASE58, *BECH32)),
        ],
        refused=[
            *({"kind": "wallet", "to_address": address} for address in (*ADDRESS.refused, *BASE58, *BECH32)),
            *({"kind": "deposit", "to_address": address} for address in NO_ADDRESS),
        ],
    ),
    "payment_authorizations_claimed_whole": _all_or_none(valid_after=0, valid_before=1, **CLAIMED),
    "payment_methods_token_has_contract": _rows(
        accepted=[{"kind": "erc20", "address": SOMEBODY}, {"kind": "native"}, {"kind": "utxo"}],
        refused=[{"kind": "erc20"}, *({"kind": kind, "address": SOMEBODY} for kind in ("native", "utxo"))],
    ),
    "payment_methods_xpub_has_ring": _only_where({"scheme": "xpub"}, {"scheme": "create2"}, ring_id=ID),
    "price_quotes_of_the_past": _rows(
        accepted=[{"feed_updated_at": TIME, "block_time": time} for time in (TIME, LATER)],
        refused=[{"feed_updated_at": LATER, "block_time": TIME}],
    ),
    "price_quotes_second_whole": _all_or_none(**QUOTED),
    "price_sources_check": _rows(
        accepted=[{"min_answer_raw": 5, "max_answer_raw": 5}], refused=[{"min_answer_raw": 5, "max_answer_raw": 4}]
    ),
    "price_sources_second_has_decimals": _all_or_none(second_feed=SOMEBODY, second_decimals=8),
    "relay_nonces_ended_whole": _all_or_none(outcome="lost", ended_at=TIME),
    "relay_nonces_for_one": _rows(
        accepted=[{"attempt_id": ID}, {"charge_authorization_id": ID}],
        refused=[{}, {"attempt_id": ID, "charge_authorization_id": ID}],
    ),
    "schema_compatibility_check": _rows(
        accepted=[{"compatible_from": "0009", "revision": "0009"}, {"compatible_from": "0008", "revision": "0009"}],
        refused=[{"compatible_from": "0010", "revision": "0009"}],
    ),
    "sweeps_ended_whole": _rows(
        accepted=[{"status": "sent"}, *({"status": status, "ended_at": TIME} for status in ("done", "failed"))],
        refused=[{"status": "sent", "ended_at": TIME}, {"status": "done"}, {"status": "failed"}],
    ),
    "swept_transfers_booked": _only_where({"credits": 1}, {"credits": 0}, entry_id=ID),
    "transfer_credits_amounts_agree": _rows(
        accepted=[
            {**CREDIT, "amount_credits": 30_000_000},
            {**CREDIT, "part": "surplus", "amount_credits": 30_000_000},
            {**CREDIT, "part": "refund", "amount_credits": 0},
            {**CREDIT, "value_raw": 1, "price_raw": 19, "price_decimals": 2, "amount_credits": 1},
        ],
        refused=[
            *({**CREDIT, "amount_credits": credits} for credits in (29_999_999, 30_000_001, 0)),
            {**CREDIT, "part": "refund", "amount_credits": 30_000_000},
            {**CREDIT, "value_raw": 1, "price_raw": 19, "price_decimals": 2, "amount_credits": 2},
        ],
    ),
    "transfer_credits_reference_is_transfer": _rows(
        accepted=[{"chain_id": 8453, "tx_hash": HEX, "log_index": 3, "reference": f"transfer:8453:{HEX}:3"}],
        refused=[
            {"chain_id": 8453, "tx_hash": HEX, "log_index": 3, "reference": reference}
            for reference in (f"transfer:1:{HEX}:3", f"transfer:8453:{HEX}:4", f"transfer:8453:{HEX[:-1]}0:3", HEX)
        ],
    ),
    "transfer_credits_refund_credits_nobody": _rows(
        accepted=[{"part": "refund"}, {"part": "whole", "billing_account_id": "a", "reference": "x"}],
        refused=[
            {"part": "refund", "billing_account_id": "a"},
            {"part": "refund", "reference": "x"},
            {"part": "whole", "reference": "x"},
            {"part": "whole", "billing_account_id": "a"},
        ],
    ),
    "virtual_keys_hash_has_hint": _all_or_none(key_hash="0" * 64, key_hint="sk-…"),
    "virtual_keys_key_hash": hexadecimal(64, prefix="", upper=False).of("key_hash"),
    "virtual_keys_limit_day": NOT_NEGATIVE.of("limit_day_credits"),
    "virtual_keys_limit_month": NOT_NEGATIVE.of("limit_month_credits"),
    "webhook_deliveries_ended_has_time": _only_where({"state": "failed"}, {"state": "pending"}, ended_at=TIME),
    "webhook_deliveries_pending_is_due": _only_where({"state": "pending"}, {"state": "stopped"}, due_at=TIME),
    "webhook_endpoints_disabled_has_reason": _all_or_none(disabled_at=TIME, disabled_reason="deleted"),
    "webhook_tries_answer_or_error": _rows(
        accepted=[{"status_code": 200}, {"error": "x"}], refused=[{}, {"status_code": 200, "error": "x"}]
    ),
}

SIDES: Final[Mapping[str, Sides]] = {
    **{
        name.replace(".", "_") + "_check": sides.of(name.partition(".")[2])
        for sides, names in OF_ONE_COLUMN
        for name in names.split()
    },
    **OF_ROWS,
}
OF_TYPES: Final = {column.replace(".", "_") + end for column in TYPES for end in ("", "_check")}

ENFORCED: Final = """
    SELECT conname::text, conrelid::regclass::text, pg_get_expr(conbin, conrelid) FROM pg_constraint
     WHERE contype = 'c' AND connamespace = 'public'::regnamespace AND conrelid <> 0 AND coninhcount = 0 AND conenforced
"""


def test_every_check_accepts_and_refuses_what_it_should(database: Database) -> None:
    checks = {name: rest for name, *rest in query(database.superuser_url, ENFORCED)}
    assert checks.keys() - OF_TYPES == SIDES.keys()
    wrong = {}
    with connect(database.superuser_url) as superuser:
        for name, sides in SIDES.items():
            table, expression = checks[name]
            rows = [*sides.accepted, *sides.refused]
            holds = superuser.execute(
                f"SELECT ({expression}) IS NOT FALSE FROM jsonb_populate_recordset(NULL::{table}, %s)".encode(),
                (Jsonb(rows),),
            ).fetchall()
            expected = [True] * len(sides.accepted) + [False] * len(sides.refused)
            if differing := [row for row, (held,), right in zip(rows, holds, expected, strict=True) if held != right]:
                wrong[name] = differing
    assert wrong == {}
