"""The ledger's invariants, each as one query and its message: for some rows, or for the whole ledger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import INTERVAL

from db.engine import ServiceConnection

GRACE: Final = timedelta(minutes=10)
"""Grace period of what follows a credit, a reversal or an expiry automatically."""

SHOWN_MAX: Final = 20
"""Violations of one kind that are listed; one is already one too many."""


class About(StrEnum):
    """Subject of a check: a row of one table, or the whole ledger."""

    ENTRY = "entry"
    GENERAL_ENTRY = "general_entry"
    LINE = "line"
    ACCOUNT = "account"
    ATTEMPT = "attempt"
    LEDGER = "ledger"


_TABLES: Final[dict[About, tuple[str, str]]] = {
    About.ENTRY: ("credit_ledger", "uuid"),
    About.GENERAL_ENTRY: ("general_entries", "uuid"),
    About.LINE: ("journal_lines", "bigint"),
    About.ACCOUNT: ("billing_accounts", "text"),
    About.ATTEMPT: ("payment_attempts", "uuid"),
}

WHOLE_LEDGER: Final = "ledger"
"""The subject of a check that concerns no single row."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A violated invariant, of one subject; `detail` is one line for operators."""

    check: str
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant. Its query returns the rows of `subject` that violate it, as `value`.

    Each row is checked against few others, all found by an index, so that a check of a thousand rows costs the same
    whatever the ledger's age. `whole` is another query for the same on all rows, "" where there is none.
    """

    name: str
    about: About
    words: str
    query: str
    whole: str | None = None

    def describe(self, row: Any) -> Violation:
        """Format a row of the query's result."""
        return Violation(self.name, str(row.value), self.words.format_map(row._mapping))


_CREDITED_CREDITS: Final = "credits_of_attempt(a.amount_credits, a.amount_usd_cents)"

TRIAL_WORDS: Final = "debits and credits differ by {value}"
TRIAL: Final = Check(
    "trial_balance",
    About.LEDGER,
    TRIAL_WORDS,
    "",
    """SELECT coalesce(sum(CASE side WHEN 'debit' THEN amount ELSE -amount END), 0) AS value
         FROM journal_lines HAVING coalesce(sum(CASE side WHEN 'debit' THEN amount ELSE -amount END), 0) <> 0""",
)
RECOUNT: Final = Check(
    "recount",
    About.LEDGER,
    "journal lines that were checked have been changed or removed since: debits, credits {value}",
    "",
    "",
)

CHECKS: Final = (
    TRIAL,
    RECOUNT,
    Check(
        "line_without_entry",
        About.LINE,
        "journal line {value} has no entry",
        """SELECT s.id AS value FROM subject s
            WHERE NOT EXISTS (SELECT 1 FROM credit_ledger e WHERE e.id = s.entry_id)
              AND NOT EXISTS (SELECT 1 FROM general_entries g WHERE g.id = s.entry_id)""",
    ),
    Check(
        "general_entry_balanced",
        About.GENERAL_ENTRY,
        "general entry {value} does not balance, has no lines, or moves an account's credits",
        """SELECT s.id AS value FROM subject s LEFT JOIN journal_lines l ON l.entry_id = s.id
            GROUP BY s.id
           HAVING coalesce(sum(CASE l.side WHEN 'debit' THEN l.amount ELSE -l.amount END), 0) <> 0
               OR count(l.id) = 0
               OR bool_or(starts_with(l.account_code, 'credits:'))""",
    ),
    Check(
        "sweep_without_transfer",
        About.GENERAL_ENTRY,
        "sweep {value} is not that of its transfer from a deposit address, or of another amount",
        """SELECT s.id AS value FROM subject s
            WHERE s.reason = 'sweep' AND NOT EXISTS (
                  SELECT 1 FROM swept_transfers t
                   WHERE t.entry_id = s.id
                     AND s.reference = 'transfer:' || t.chain_id || ':' || t.tx_hash || ':' || t.log_index
                     AND t.credits = (SELECT coalesce(sum(l.amount), 0) FROM journal_lines l
                                       WHERE l.entry_id = s.id AND l.side = 'debit'))""",
    ),
    Check(
        "entry_balanced",
        About.ENTRY,
        "journal entry {value} does not balance",
        """SELECT s.id AS value FROM subject s LEFT JOIN journal_lines l ON l.entry_id = s.id
            GROUP BY s.id, s.amount, s.reason, s.billing_account_id
           HAVING coalesce(sum(CASE l.side WHEN 'debit' THEN l.amount ELSE -l.amount END), 0) <> 0
               OR coalesce(sum(l.amount) FILTER (WHERE CASE s.reason
                                                       WHEN 'llm_usage' THEN l.account_code = 'revenue:usage'
                                                       ELSE l.side = 'debit' END), 0) <> abs(s.amount::numeric)
               OR coalesce(sum(CASE l.side WHEN 'credit' THEN l.amount ELSE -l.amount END)
                           FILTER (WHERE l.account_code = 'credits:' || s.billing_account_id), 0) <> s.amount
               OR bool_or(starts_with(l.account_code, 'credits:')
                          AND l.account_code <> 'credits:' || s.billing_account_id)""",
    ),
    Check(
        "running_balance",
        About.ENTRY,
        "entry {value} does not go on from the balance before it",
        """SELECT s.id AS value FROM subject s
            WHERE s.balance_after::numeric - s.amount <> coalesce(
                  (SELECT p.balance_after FROM credit_ledger p
                    WHERE p.billing_account_id = s.billing_account_id AND p.entry_seq < s.entry_seq
                    ORDER BY p.entry_seq DESC LIMIT 1), 0)""",
    ),
    Check(
        "account_balance",
        About.ACCOUNT,
        "balance of account {value} is not the sum of its entries",
        # By induction: each entry continues from the previous one, and the first from zero.
        """SELECT s.id AS value FROM subject s
            WHERE s.balance_credits <> coalesce(
                  (SELECT e.balance_after FROM credit_ledger e
                    WHERE e.billing_account_id = s.id ORDER BY e.entry_seq DESC LIMIT 1), 0)""",
        """SELECT b.id AS value FROM billing_accounts b LEFT JOIN credit_ledger e ON e.billing_account_id = b.id
            GROUP BY b.id, b.balance_credits HAVING b.balance_credits <> coalesce(sum(e.amount), 0)""",
    ),
    Check(
        "held_credits",
        About.ACCOUNT,
        "held credits of account {value} are not the sum of its open holds",
        """SELECT s.id AS value FROM subject s
            WHERE s.held_credits <> coalesce(
                  (SELECT sum(h.amount_credits) FROM credit_holds h
                    WHERE h.billing_account_id = s.id AND h.state = 'held'), 0)""",
    ),
    Check(
        "usage_without_receipt",
        About.ENTRY,
        "usage entry {value} has no receipt of the same price and cost",
        """SELECT s.id AS value FROM subject s
            WHERE s.reason = 'llm_usage' AND NOT EXISTS (
                  SELECT 1 FROM charge_references f
                    JOIN charge_receipts r ON r.id = f.receipt_id AND r.created_at = f.receipt_created_at
                   WHERE f.source_system = split_part(s.reference, ':', 1)
                     AND f.source_reference = substr(s.reference, strpos(s.reference, ':') + 1)
                     AND r.charged_credits = -s.amount AND r.billing_account_id = s.billing_account_id
                     AND r.entry_id = s.id
                     AND credits_of_usd(r.provider_cost_usd) - s.amount =
                         (SELECT sum(l.amount) FROM journal_lines l WHERE l.entry_id = s.id AND l.side = 'debit'))""",
    ),
    Check(
        "credited_attempt",
        About.ATTEMPT,
        "attempt {value} is {status} without its ledger row or its transfer",
        # Joins, where EXISTS under an OR would be answered from a hash of the whole table.
        f"""SELECT a.id AS value, a.status FROM subject a
              LEFT JOIN settled_transfers t ON t.attempt_id = a.id
              LEFT JOIN credit_ledger e
                ON e.reference = a.id::text AND e.amount = {_CREDITED_CREDITS}
               AND e.reason = CASE a.purpose WHEN 'self' THEN 'credits_purchase' ELSE 'system_donation' END
               AND e.billing_account_id = CASE a.purpose WHEN 'self' THEN a.billing_account_id ELSE 'cogni_system' END
             WHERE a.status IN ('CREDITED', 'REVERSED') AND (t.attempt_id IS NULL OR e.id IS NULL)""",  # noqa: S608 - ours
    ),
    Check(
        "reversed_attempt",
        About.ATTEMPT,
        "attempt {value} is REVERSED and its credits are not reversed: submit its hash again",
        """SELECT a.id AS value FROM subject a
            WHERE a.status = 'REVERSED' AND (
                  NOT EXISTS (SELECT 1 FROM transfer_finality f WHERE f.attempt_id = a.id AND f.outcome = 'reversed')
               OR EXISTS (SELECT 1 FROM credit_ledger e
                           WHERE e.reference = a.id::text
                             AND (e.reason IN ('credits_purchase', 'system_donation')
                                  OR (e.reason = 'platform_revenue_share' AND a.updated_at < now() - :grace))
                             AND NOT EXISTS (SELECT 1 FROM credit_ledger r
                                              WHERE r.reference = e.reference AND r.reason = 'payment_reversal'
                                                AND r.billing_account_id = e.billing_account_id
                                                AND r.amount = -e.amount)))""",
    ),
    Check(
        "bonus_without_purchase",
        About.ENTRY,
        "bonus {value} has no credited purchase",
        """SELECT s.id AS value FROM subject s
            WHERE s.reason = 'platform_revenue_share'
              AND NOT EXISTS (SELECT 1 FROM payment_attempts a
                               WHERE a.id = attempt_of_reference(s.reference)
                                 AND a.status IN ('CREDITED', 'REVERSED') AND a.purpose = 'self')
              AND NOT EXISTS (SELECT 1 FROM transfer_credits c WHERE c.reference = s.reference)""",
    ),
    Check(
        "bonus_amount",
        About.ENTRY,
        "bonus {value} is not its purchase's share",
        f"""SELECT s.id AS value FROM subject s
              LEFT JOIN payment_attempts a ON a.id = attempt_of_reference(s.reference)
              LEFT JOIN transfer_credits c ON c.reference = s.reference
             WHERE s.reason = 'platform_revenue_share'
               AND (s.billing_account_id <> 'cogni_system'
                    OR s.amount <> coalesce(bonus_of_credits({_CREDITED_CREDITS}, a.revenue_share),
                                            bonus_of_credits(c.amount_credits, c.revenue_share), s.amount))""",  # noqa: S608 - ours
    ),
    Check(
        "bonus_missing",
        About.ATTEMPT,
        "attempt {value} was credited over ten minutes ago and its bonus is missing: submit its hash again",
        # Attempt by attempt: a condition of a join does not reach into the function, and it would be read whole.
        """SELECT a.id AS value FROM subject a
             JOIN LATERAL (SELECT u.since FROM unfinished_payments() u
                            WHERE u.attempt_id = a.id AND u.due = 'bonus_missing' OFFSET 0) u ON true
            WHERE u.since < now() - :grace""",
    ),
    Check(
        "operator_bonus_missing",
        About.ENTRY,
        "an operator's credit {value} is over ten minutes old and its bonus is missing: give the same remedy again",
        """SELECT s.id AS value FROM subject s JOIN credits_without_bonus() c ON c.reference = s.reference
            WHERE s.reason = 'operator_credit' AND s.created_at < now() - :grace""",
    ),
    Check(
        "intent_overdue",
        About.ATTEMPT,
        "attempt {value} is CREATED_INTENT over ten minutes after its expiry: nothing expires intents",
        """SELECT a.id AS value FROM subject a
            WHERE a.status = 'CREATED_INTENT' AND a.expires_at < now() - :grace""",
        "",
    ),
    Check(
        "pending_overdue",
        About.ATTEMPT,
        "attempt {value} is PENDING_UNVERIFIED past its time: submit its hash again",
        """SELECT a.id AS value FROM subject a
            WHERE a.status = 'PENDING_UNVERIFIED' AND a.submitted_at < now() - :pending_max""",
        "",
    ),
)

CHECK_NAMES: Final = tuple(check.name for check in CHECKS)


def _ask_some(check: Check) -> TextClause:
    table, id_type = _TABLES[check.about]
    # Materialized: by their ids, and not by an index that a check's own condition would allow.
    scope = f"WITH subject AS MATERIALIZED (SELECT * FROM {table} WHERE id = ANY (CAST(:ids AS {id_type}[])))"  # noqa: S608 - ours
    return _bound(f"{scope} {check.query}")


def _ask_all(check: Check) -> TextClause:
    if check.whole is not None:
        return _bound(f"{check.whole} LIMIT :shown_max")
    table, _ = _TABLES[check.about]
    return _bound(f"WITH subject AS (SELECT * FROM {table}) {check.query} LIMIT :shown_max")  # noqa: S608 - ours


def _bound(query: str) -> TextClause:
    return text(query).bindparams(*(bindparam(name, type_=INTERVAL) for name in _times(query)))


def _times(query: str) -> list[str]:
    return [name for name in ("grace", "pending_max") if f":{name}" in query]


_OF_SOME: Final = {check: _ask_some(check) for check in CHECKS if check.about is not About.LEDGER}
_OF_ALL: Final = {check: _ask_all(check) for check in CHECKS if check.whole != ""}


async def find_violations_of(
    connection: ServiceConnection, about: About, ids: str, *, pending_max: timedelta
) -> list[Violation]:
    """Every invariant that is violated by the rows with these ids, an array in PostgreSQL's format.

    `pending_max` is how long a payment may wait.
    """
    found: list[Violation] = []
    times = {"grace": GRACE, "pending_max": pending_max}
    for check, statement in _OF_SOME.items():
        if check.about is about:
            values = {"ids": ids} | {name: times[name] for name in _times(check.query)}
            found.extend(check.describe(row) for row in await connection.connection.execute(statement, values))
    return found


async def find_violations(connection: ServiceConnection) -> list[str]:
    """Every violated invariant of the ledger, as text; empty when all hold.

    It reads the whole ledger, so its cost grows with it: `db.ledger.integrity_scan` is for regular use. Overdue
    attempts are not checked, since their time limit depends on settings.
    """
    found: list[str] = []
    for check, statement in _OF_ALL.items():
        values = {"shown_max": SHOWN_MAX} | dict.fromkeys(_times(check.whole or check.query), GRACE)
        found.extend(check.describe(row).detail for row in await connection.connection.execute(statement, values))
    return found
