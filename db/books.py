"""The books check: what must be true of the whole ledger, asked of the database in words."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text

from db.engine import ServiceConnection

_CHECKS: Final = (
    (
        "debits and credits differ by {value}",
        """SELECT coalesce(sum(CASE side WHEN 'debit' THEN amount ELSE -amount END), 0) AS value
             FROM journal_lines HAVING coalesce(sum(CASE side WHEN 'debit' THEN amount ELSE -amount END), 0) <> 0""",
    ),
    (
        "journal entry {value} does not balance",
        """SELECT e.id AS value FROM credit_ledger e LEFT JOIN journal_lines l ON l.entry_id = e.id
            GROUP BY e.id, e.amount
           HAVING coalesce(sum(CASE l.side WHEN 'debit' THEN l.amount ELSE -l.amount END), 0) <> 0
               OR coalesce(sum(l.amount) FILTER (WHERE l.side = 'debit'), 0) <> abs(e.amount)""",
    ),
    (
        "balance of account {value} is not the sum of its entries",
        """SELECT b.id AS value FROM billing_accounts b LEFT JOIN credit_ledger e ON e.billing_account_id = b.id
            GROUP BY b.id, b.balance_credits HAVING b.balance_credits <> coalesce(sum(e.amount), 0)""",
    ),
    (
        "attempt {value} is CREDITED without its ledger row or its transfer",
        """SELECT a.id AS value FROM payment_attempts a
            WHERE a.status = 'CREDITED' AND NOT (
                  EXISTS (SELECT 1 FROM settled_transfers s WHERE s.attempt_id = a.id)
              AND EXISTS (SELECT 1 FROM credit_ledger e WHERE e.reference = a.id::text
                             AND e.reason IN ('credits_purchase', 'system_donation')))""",
    ),
    (
        "bonus {value} has no credited purchase",
        """SELECT e.id AS value FROM credit_ledger e
            WHERE e.reason = 'platform_revenue_share' AND NOT EXISTS (
                  SELECT 1 FROM payment_attempts a
                   WHERE a.id::text = e.reference AND a.status = 'CREDITED' AND a.purpose = 'self')""",
    ),
    (
        "attempt {value} was credited over ten minutes ago and its bonus is missing: submit its hash again",
        """SELECT a.id AS value FROM payment_attempts a
            WHERE a.status = 'CREDITED' AND a.purpose = 'self' AND a.updated_at < now() - interval '10 minutes'
              AND floor(a.amount_usd_cents * 100000 * a.revenue_share) > 0
              AND NOT EXISTS (SELECT 1 FROM credit_ledger e
                               WHERE e.reference = a.id::text AND e.reason = 'platform_revenue_share')""",
    ),
)

SHOWN_MAX: Final = 20
"""Violations of one kind that are named; one is already one too many."""


async def find_violations(connection: ServiceConnection) -> list[str]:
    """Every invariant of the books that does not hold, in words; empty when all is well.

    It reads the whole ledger, so its cost grows with it.
    """
    found: list[str] = []
    for words, query in _CHECKS:
        rows = await connection.connection.execute(text(f"{query} LIMIT :shown_max"), {"shown_max": SHOWN_MAX})
        found.extend(words.format(value=row.value) for row in rows)
    return found
