"""The oracle: whether the books of a whole database are right, whatever has happened to it before.

It reads the tables alone, with queries and numbers of its own, so that it shares no mistake with the code that it
judges. Each violation is one sentence that begins with what it is about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from itertools import groupby
from typing import Any, Final
from uuid import UUID

from psycopg.rows import dict_row

from tests.support.sql import lent

WRONG_BONUSES: Final = "attempt {id}: CREDITED with {entries} bonuses of {amount}, not with 1"

EXPECTED_ENTRIES: Final = """
    WITH worth AS (
        SELECT a.id, a.purpose, a.status, a.billing_account_id,
               CASE a.kind WHEN 'deposit' THEN div(d.value_raw * coalesce(q.answer_raw, 1) * 10000000,
                                                   power(10::numeric, m.decimals + coalesce(q.decimals, 0)))
                           ELSE a.amount_usd_cents::numeric * 100000 END AS credits
          FROM payment_attempts a LEFT JOIN deposits d ON d.attempt_id = a.id AND a.kind = 'deposit'
          LEFT JOIN payment_methods m ON m.id = d.method_id
          LEFT JOIN price_quotes q ON q.id = d.quote_id
         WHERE a.status IN ('CREDITED', 'REVERSED')
    ), expected AS (
        SELECT id, 'credits_purchase' AS reason, billing_account_id AS account, credits AS amount
          FROM worth WHERE purpose = 'self'
        UNION ALL
        SELECT id, 'system_donation', 'cogni_system', credits FROM worth WHERE purpose = 'system'
        UNION ALL
        SELECT id, 'platform_revenue_share', 'cogni_system', floor(credits * %(expected_share)s::numeric)
          FROM worth WHERE purpose = 'self'
    )
"""
"""The entries that the attempts ask for: every one once, and no other."""

CHECKS: Final = (
    (
        "journal line {id}: its entry {entry_id} does not exist",
        """
        SELECT l.id, l.entry_id FROM journal_lines l
         WHERE l.entry_id NOT IN (SELECT id FROM credit_ledger UNION ALL SELECT id FROM general_entries)
        """,
    ),
    (
        "general entry {id}: moves {moved} of account's credits, in {lines} lines",
        """
        SELECT g.id, count(l.id) AS lines, count(l.id) FILTER (WHERE l.account_code LIKE 'credits:%%') AS moved
          FROM general_entries g LEFT JOIN journal_lines l ON l.entry_id = g.id GROUP BY g.id
        HAVING count(l.id) < 2 OR count(l.id) FILTER (WHERE l.account_code LIKE 'credits:%%') > 0
        """,
    ),
    (
        "account {id}: held {held_credits}, its open holds sum to {total}",
        """
        SELECT * FROM (
            SELECT b.id, b.held_credits, coalesce(sum(h.amount_credits), 0) AS total FROM billing_accounts b
              LEFT JOIN credit_holds h ON h.billing_account_id = b.id AND h.state = 'held'
             GROUP BY b.id, b.held_credits) held
         WHERE held_credits <> total
        """,
    ),
    (
        "hold {id}: {state} with {receipts} receipts",
        """
        SELECT h.id, h.state, count(r.id) AS receipts FROM credit_holds h
          LEFT JOIN charge_receipts r ON r.hold_id = h.id
         GROUP BY h.id, h.state HAVING count(r.id) <> CASE h.state WHEN 'captured' THEN 1 ELSE 0 END
        """,
    ),
    (
        "charge {source_system}:{source_reference}: {receipts} receipts",
        """
        SELECT source_system, source_reference, count(*) AS receipts FROM charge_receipts
         GROUP BY source_system, source_reference HAVING count(*) <> 1
        """,
    ),
    (
        "receipt {id}: charged {charged_credits}, its entry takes {taken} and owes its provider {owed} of {cost}",
        """
        SELECT * FROM (
            SELECT r.id, r.charged_credits, ceil(r.provider_cost_usd * 10000000) AS cost,
                   coalesce((SELECT -sum(e.amount) FROM credit_ledger e
                              WHERE e.reason = 'llm_usage' AND e.billing_account_id = r.billing_account_id
                                AND e.reference = r.source_system || ':' || r.source_reference), 0) AS taken,
                   coalesce((SELECT sum(l.amount) FROM journal_lines l
                              WHERE l.entry_id = r.entry_id AND l.account_code = 'payable:providers'), 0) AS owed
              FROM charge_receipts r) receipts
         WHERE charged_credits <> taken OR cost <> owed
        """,
    ),
    (
        "usage entry {id}: no receipt",
        """
        SELECT e.id FROM credit_ledger e LEFT JOIN charge_receipts r ON r.entry_id = e.id
         WHERE e.reason = 'llm_usage' AND r.id IS NULL
        """,
    ),
    (
        "usage of {billing_account_id} in {model}: {sums} by day, {receipts} in receipts",
        """
        SELECT coalesce(u.billing_account_id, r.billing_account_id) AS billing_account_id,
               coalesce(u.model, r.model) AS model, u.sums, r.receipts
          FROM (SELECT billing_account_id, model, (sum(calls), sum(charged_credits), sum(input_tokens))::text AS sums
                  FROM usage_by_day GROUP BY 1, 2) u
          FULL JOIN (SELECT billing_account_id, model,
                            (count(*), sum(charged_credits), sum(input_tokens))::text AS receipts
                       FROM charge_receipts GROUP BY 1, 2) r USING (billing_account_id, model)
         WHERE u.sums IS DISTINCT FROM r.receipts
        """,
    ),
    (
        "entry {entry_id}: debits {debits}, credits {credits}",
        """
        SELECT entry_id, coalesce(sum(amount) FILTER (WHERE side = 'debit'), 0) AS debits,
               coalesce(sum(amount) FILTER (WHERE side = 'credit'), 0) AS credits
          FROM journal_lines GROUP BY entry_id
        HAVING sum(CASE side WHEN 'debit' THEN amount ELSE -amount END) <> 0
        """,
    ),
    (
        "trial balance: debits {debits}, credits {credits}",
        """
        SELECT coalesce(sum(amount) FILTER (WHERE side = 'debit'), 0) AS debits,
               coalesce(sum(amount) FILTER (WHERE side = 'credit'), 0) AS credits
          FROM journal_lines HAVING sum(CASE side WHEN 'debit' THEN amount ELSE -amount END) <> 0
        """,
    ),
    (
        "entry {id}: header says {amount}, its liability lines say {moved}",
        """
        SELECT * FROM (
            SELECT e.id, e.amount, coalesce(sum(CASE l.side WHEN 'credit' THEN l.amount ELSE -l.amount END), 0) AS moved
              FROM credit_ledger e
              LEFT JOIN journal_lines l ON l.entry_id = e.id AND l.account_code = 'credits:' || e.billing_account_id
             GROUP BY e.id, e.amount) entries
         WHERE amount <> moved
        """,
    ),
    (
        "entry {id}: is of account {billing_account_id} and moves {account_code}",
        """
        SELECT e.id, e.billing_account_id, l.account_code FROM credit_ledger e
          JOIN journal_lines l ON l.entry_id = e.id
         WHERE l.account_code LIKE 'credits:%%' AND l.account_code <> 'credits:' || e.billing_account_id
        """,
    ),
    (
        "account {id}: balance {balance_credits}, its entries sum to {total}",
        """
        SELECT * FROM (
            SELECT b.id, b.balance_credits, coalesce(sum(e.amount), 0) AS total
              FROM billing_accounts b LEFT JOIN credit_ledger e ON e.billing_account_id = b.id
             GROUP BY b.id, b.balance_credits) balances
         WHERE balance_credits <> total
        """,
    ),
    (
        "entry {id}: balance_after {balance_after}, the entries up to it sum to {total}",
        """
        SELECT * FROM (
            SELECT id, balance_after, sum(amount) OVER (PARTITION BY billing_account_id ORDER BY entry_seq) AS total
              FROM credit_ledger) running
         WHERE balance_after <> total
        """,
    ),
    (
        "system tenant: flagged are {flagged}",
        """
        SELECT array_agg(id ORDER BY id) AS flagged FROM billing_accounts WHERE is_system_tenant
        HAVING coalesce(array_agg(id), '{}') <> ARRAY['cogni_system']
        """,
    ),
    (
        "attempt {id}: CREDITED with {entries} entries {reason} of {amount} on {account}, not with 1",
        EXPECTED_ENTRIES
        + """
        SELECT x.id, x.reason, x.amount, x.account, count(e.id) AS entries FROM expected x
          LEFT JOIN credit_ledger e ON e.reference = x.id::text AND e.reason = x.reason
                AND e.billing_account_id = x.account AND e.amount = x.amount
         WHERE x.reason <> 'platform_revenue_share'
         GROUP BY x.id, x.reason, x.amount, x.account HAVING count(e.id) <> 1
        """,
    ),
    (
        WRONG_BONUSES,
        EXPECTED_ENTRIES
        + """
        SELECT x.id, x.amount, count(e.id) AS entries FROM expected x
          LEFT JOIN credit_ledger e ON e.reference = x.id::text AND e.reason = x.reason
                AND e.billing_account_id = x.account AND e.amount = x.amount
         WHERE x.reason = 'platform_revenue_share' AND x.amount > 0
         GROUP BY x.id, x.amount HAVING count(e.id) > 1 OR (count(e.id) = 0 AND NOT %(pending_bonus_ok)s AND EXISTS (
                    SELECT 1 FROM payment_attempts a WHERE a.id = x.id AND a.status = 'CREDITED'))
        """,
    ),
    (
        "entry {id}: {reason} of {amount} on {billing_account_id} is what no CREDITED attempt asks for",
        EXPECTED_ENTRIES
        + """
        SELECT e.id, e.reason, e.amount, e.billing_account_id FROM credit_ledger e
         WHERE e.reason IN ('credits_purchase', 'platform_revenue_share', 'system_donation')
           AND NOT EXISTS (
               SELECT 1 FROM expected x WHERE x.id::text = e.reference AND x.reason = e.reason
                  AND x.account = e.billing_account_id AND x.amount = e.amount)
           AND NOT EXISTS (
               SELECT 1 FROM transfer_credits c WHERE c.reference = e.reference
                  AND e.reason = 'platform_revenue_share' AND e.billing_account_id = 'cogni_system'
                  AND e.amount = floor(c.amount_credits * c.revenue_share))
        """,
    ),
    (
        "attempt {id}: {status} with {transfers} settled transfers",
        """
        SELECT a.id, a.status, count(s.id) AS transfers FROM payment_attempts a
          LEFT JOIN settled_transfers s ON s.attempt_id = a.id
         GROUP BY a.id, a.status HAVING count(s.id) <> CASE WHEN a.status IN ('CREDITED', 'REVERSED') THEN 1 ELSE 0 END
        """,
    ),
    (
        "transfer {chain_id}/{tx_hash}/{log_index}: pays {attempts} attempts",
        """
        SELECT chain_id, tx_hash, log_index, count(*) AS attempts FROM settled_transfers
         GROUP BY chain_id, tx_hash, log_index HAVING count(*) <> 1
        """,
    ),
    (
        "transfer {chain_id}/{tx_hash}/{log_index}: is not what attempt {attempt_id} asked for",
        """
        SELECT s.chain_id, s.tx_hash, s.log_index, s.attempt_id FROM settled_transfers s
          LEFT JOIN payment_attempts a ON a.id = s.attempt_id
         WHERE (s.chain_id = a.chain_id AND s.tx_hash = a.tx_hash AND lower(s.from_address) = lower(a.from_address)
                AND CASE a.kind WHEN 'deposit' THEN s.value_raw = a.value_raw AND s.surplus_raw = 0
                    ELSE s.value_raw >= a.amount_raw AND s.surplus_raw = s.value_raw - a.amount_raw END) IS NOT TRUE
        """,
    ),
    (
        "deposit {id}: attempt {attempt_id} is not of what came, from whom, to whom",
        """
        SELECT d.id, d.attempt_id FROM deposits d
          JOIN deposit_addresses k ON k.id = d.address_id
          LEFT JOIN payment_attempts a ON a.id = d.attempt_id
         WHERE d.attempt_id IS NOT NULL
           AND (a.kind = 'deposit' AND a.chain_id = d.chain_id AND a.value_raw = d.value_raw
                AND a.billing_account_id = k.billing_account_id AND lower(a.to_address) = lower(k.address)
                AND lower(a.from_address) = lower(d.from_address) AND lower(a.token) = lower(d.token)
                AND a.tx_hash = d.tx_hash) IS NOT TRUE
        """,
    ),
    (
        "attempt {id}: of kind deposit, {deposits} deposits name it",
        """
        SELECT a.id, count(d.id) AS deposits FROM payment_attempts a LEFT JOIN deposits d ON d.attempt_id = a.id
         WHERE a.kind = 'deposit' AND a.status NOT IN ('FAILED', 'REJECTED') GROUP BY a.id HAVING count(d.id) <> 1
        """,
    ),
    (
        "entry {entry_id}: {reason} of a deposit is not on the account of deposit addresses, or another's is",
        """
        SELECT e.id AS entry_id, e.reason FROM credit_ledger e
          JOIN payment_attempts a ON a.id::text = e.reference
          JOIN journal_lines l ON l.entry_id = e.id AND l.account_code LIKE 'cash:%%'
          LEFT JOIN deposits d ON d.attempt_id = a.id LEFT JOIN payment_methods m ON m.id = d.method_id
         WHERE l.account_code <> coalesce('cash:' || lower(m.token) || ':deposits', 'cash:usdc')
        """,
    ),
    (
        "attempt {id}: {status}, its entry {reason} is reversed {entries} times",
        """
        SELECT a.id, a.status, e.reason, count(r.id) AS entries FROM payment_attempts a
          JOIN credit_ledger e ON e.reference = a.id::text AND e.reason <> 'payment_reversal'
          LEFT JOIN credit_ledger r ON r.reference = e.reference AND r.reason = 'payment_reversal'
                AND r.billing_account_id = e.billing_account_id AND r.amount = -e.amount
         GROUP BY a.id, a.status, e.id, e.reason
        HAVING count(r.id) <> CASE a.status WHEN 'REVERSED' THEN 1 ELSE 0 END AND NOT (
            %(pending_bonus_ok)s AND a.status = 'REVERSED' AND e.reason = 'platform_revenue_share' AND count(r.id) = 0)
        """,
    ),
    (
        "entry {id}: reverses what was not credited",
        """
        SELECT r.id FROM credit_ledger r WHERE r.reason = 'payment_reversal' AND NOT EXISTS (
            SELECT 1 FROM credit_ledger e WHERE e.reference = r.reference AND e.reason <> 'payment_reversal'
               AND e.billing_account_id = r.billing_account_id AND r.amount = -e.amount)
        """,
    ),
    (
        "attempt {id}: {status}, its transfer is on record as {outcome}",
        """
        SELECT a.id, a.status, f.outcome FROM payment_attempts a
          LEFT JOIN transfer_finality f ON f.attempt_id = a.id
         WHERE (a.status = 'REVERSED') <> (coalesce(f.outcome, 'none') = 'reversed')
            OR (f.outcome = 'final' AND a.status <> 'CREDITED')
        """,
    ),
    (
        "transfer {reference}: an operator credited {amount_credits} to {billing_account_id}, posted {entries} times",
        """
        SELECT c.reference, c.amount_credits, c.billing_account_id, count(e.id) AS entries FROM transfer_credits c
          LEFT JOIN credit_ledger e ON e.reference = c.reference AND e.reason = 'operator_credit'
                AND e.billing_account_id = c.billing_account_id AND e.amount = c.amount_credits
         WHERE c.part <> 'refund'
         GROUP BY c.reference, c.amount_credits, c.billing_account_id HAVING count(e.id) <> 1
        """,
    ),
    (
        "transfer {reference}: bonus of {bonus} posted {entries} times",
        """
        SELECT c.reference, floor(c.amount_credits * c.revenue_share) AS bonus, count(e.id) AS entries
          FROM transfer_credits c
          LEFT JOIN credit_ledger e ON e.reference = c.reference AND e.reason = 'platform_revenue_share'
         GROUP BY c.reference, c.amount_credits, c.revenue_share
        HAVING count(e.id) > 1 OR (count(e.id) = 0 AND floor(c.amount_credits * c.revenue_share) > 0
                                   AND NOT %(pending_bonus_ok)s)
        """,
    ),
    (
        "entry {id}: {reason} of {amount} on {billing_account_id} is no operator's credit of a transfer",
        """
        SELECT e.id, e.reason, e.amount, e.billing_account_id FROM credit_ledger e
         WHERE e.reason = 'operator_credit' AND NOT EXISTS (
               SELECT 1 FROM transfer_credits c WHERE c.reference = e.reference AND c.amount_credits = e.amount
                  AND c.billing_account_id = e.billing_account_id)
        """,
    ),
    (
        "transfer {tx_hash}/{log_index}: pays an attempt and was credited by an operator",
        """
        SELECT c.tx_hash, c.log_index FROM transfer_credits c
          JOIN settled_transfers s USING (chain_id, tx_hash, log_index)
          JOIN payment_attempts a ON a.id = s.attempt_id
         WHERE c.part = 'whole' AND a.status <> 'REVERSED' AND c.block_hash = s.block_hash
        """,
    ),
    (
        "sweep's nonce {sender}/{nonce}: {mined} of its transactions were mined, {open} are open",
        """
        SELECT * FROM (
            SELECT sender, nonce, count(*) FILTER (WHERE outcome IS NULL) AS open,
                   count(*) FILTER (WHERE outcome IN ('succeeded', 'reverted')) AS mined
              FROM sweep_transactions GROUP BY chain_id, sender, nonce) nonces
         WHERE mined > 1 OR (open > 0 AND %(nothing_stuck)s)
        """,
    ),
    (
        "swept transfer {tx_hash}/{log_index}: {credits} credits, its entry {entry_id} moves {lines}",
        """
        SELECT * FROM (
            SELECT s.tx_hash, s.log_index, s.credits, s.entry_id, m.token,
                   coalesce((SELECT string_agg(format('%%s %%s %%s', l.side, l.account_code, l.amount), ', '
                                               ORDER BY l.side DESC)
                               FROM journal_lines l JOIN general_entries g ON g.id = l.entry_id
                              WHERE l.entry_id = s.entry_id AND g.reason = 'sweep'), 'nothing') AS lines
              FROM swept_transfers s JOIN payment_methods m ON m.id = s.method_id) swept
         WHERE lines <> CASE WHEN credits = 0 THEN 'nothing'
                             ELSE format('debit cash:%%s %%s, credit cash:%%s:deposits %%s', lower(token), credits,
                                         lower(token), credits) END
        """,
    ),
    (
        "swept transfer {tx_hash}/{log_index}: booked with {credits} credits, worth {worth}",
        """
        SELECT * FROM (
            SELECT s.tx_hash, s.log_index, s.credits, m.token,
                   floor(s.value_raw * 10000000 / power(10::numeric, m.decimals)) AS worth
              FROM swept_transfers s JOIN payment_methods m ON m.id = s.method_id) swept
         WHERE token = 'USDC' AND credits <> worth
        """,
    ),
    (
        "sweep entry {id}: {transfers} swept transfers name it",
        """
        SELECT g.id, count(s.tx_hash) AS transfers FROM general_entries g
          LEFT JOIN swept_transfers s ON s.entry_id = g.id
         WHERE g.reason = 'sweep' GROUP BY g.id HAVING count(s.tx_hash) <> 1
        """,
    ),
    (
        "address {address_id}: {swept} of token {token} was swept, {came} came",
        """
        WITH moved AS (
            SELECT s.address_id, coalesce(lower(m.address), '0xeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee') AS token,
                   sum(s.value_raw) AS swept
              FROM swept_transfers s JOIN payment_methods m ON m.id = s.method_id GROUP BY 1, 2
        ), known AS (
            SELECT m.address_id, m.token, m.swept,
                   coalesce((SELECT sum(d.value_raw) FROM deposits d
                              WHERE d.address_id = m.address_id AND lower(d.token) = m.token), 0) AS came FROM moved m)
        SELECT * FROM known WHERE swept > came
        """,
    ),
    (
        "attempt {attempt_id}: {succeeded} relayed transactions of it succeeded",
        """
        SELECT attempt_id, count(*) AS succeeded FROM relay_nonces WHERE outcome = 'succeeded'
         GROUP BY attempt_id HAVING count(*) > 1
        """,
    ),
    (
        "relay's nonce {relayer}/{nonce}: {outcome} by {mined_tx_hash}, which is none of its transactions",
        """
        SELECT n.relayer, n.nonce, n.outcome, n.mined_tx_hash FROM relay_nonces n
         WHERE n.outcome IN ('succeeded', 'reverted') AND NOT EXISTS (
               SELECT 1 FROM relay_transactions t WHERE t.chain_id = n.chain_id AND t.relayer = n.relayer
                  AND t.nonce = n.nonce AND t.tx_hash = n.mined_tx_hash AND t.sent_at IS NOT NULL)
        """,
    ),
    (
        "relayer {address}: its next nonce is {next_nonce}, its last one {last}",
        """
        SELECT * FROM (
            SELECT r.address, r.next_nonce, (SELECT max(n.nonce) FROM relay_nonces n
                                              WHERE n.chain_id = r.chain_id AND n.relayer = r.address) AS last
              FROM relayers r) relayers
         WHERE next_nonce <= last
        """,
    ),
    (
        "attempt {id}: still PENDING_UNVERIFIED",
        "SELECT id FROM payment_attempts WHERE status = 'PENDING_UNVERIFIED' AND %(nothing_stuck)s",
    ),
)
"""Sentence and the query whose rows are the violations."""

TRAIL: Final = """
    SELECT a.id, a.status, a.error_code, e.id AS event_id, e.from_status, e.to_status, e.error_code AS event_error_code
      FROM payment_attempts a LEFT JOIN payment_events e ON e.attempt_id = a.id ORDER BY a.id, e.id
"""

LEGAL_STEPS: Final = frozenset(
    {
        (None, "CREATED_INTENT"),
        ("CREATED_INTENT", "CREATED_INTENT"),  # a signature is claimed
        ("CREATED_INTENT", "PENDING_UNVERIFIED"),
        ("CREATED_INTENT", "FAILED"),
        ("PENDING_UNVERIFIED", "PENDING_UNVERIFIED"),
        ("PENDING_UNVERIFIED", "CREDITED"),
        ("PENDING_UNVERIFIED", "REJECTED"),
        ("PENDING_UNVERIFIED", "FAILED"),
        ("CREDITED", "REVERSED"),
        ("FAILED", "PENDING_UNVERIFIED"),
    }
)


async def check_books(
    url: str,
    *,
    expected_share: Decimal = Decimal("0.75"),
    pending_bonus_ok: bool = False,
    nothing_stuck: bool = False,
) -> list[str]:
    """Violations as text, none when all invariants hold.

    `url` is the superuser's or settle_service's: it must see every row. `pending_bonus_ok` accepts a purchase
    whose bonus is still to come, `nothing_stuck` requires every submitted attempt to have ended.
    """
    values = {
        "expected_share": expected_share,
        "pending_bonus_ok": pending_bonus_ok,
        "nothing_stuck": nothing_stuck,
    }
    violations, rows = await asyncio.to_thread(_read, url, values)
    for _, trail in groupby(rows, key=lambda row: row["id"]):
        violations += _check_trail(list(trail))
    return violations


def _read(url: str, values: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    violations: list[str] = []
    with (
        lent(url, prepares=True) as connection,
        connection.transaction(),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        # One snapshot for all queries, so that concurrent payments do not appear as violations.
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for sentence, statement in CHECKS:
            cursor.execute(statement, values, prepare=True)
            violations += [sentence.format_map(row) for row in cursor.fetchall()]
        return violations, cursor.execute(TRAIL).fetchall()


def wrong_bonuses(attempt_id: UUID, entries: int, amount: int) -> str:
    """The violation of a purchase with another number of bonuses than one."""
    return WRONG_BONUSES.format(id=attempt_id, entries=entries, amount=amount)


def _check_trail(trail: list[dict[str, Any]]) -> list[str]:
    """Violations of one attempt's audit trail, whose rows are in order."""
    attempt = trail[0]
    if attempt["event_id"] is None:
        return [f"attempt {attempt['id']}: {attempt['status']} without an event"]
    found: list[str] = []
    before: str | None = None
    for event in trail:
        step = (event["from_status"], event["to_status"])
        if step not in LEGAL_STEPS:
            found.append(f"attempt {attempt['id']}: event says {step[0]} to {step[1]}, which is no legal step")
        elif event["from_status"] != before:
            found.append(f"attempt {attempt['id']}: event says {step[0]} to {step[1]} after {before}")
        before = event["to_status"]
    last = trail[-1]
    if (last["to_status"], last["event_error_code"]) != (attempt["status"], attempt["error_code"]):
        found.append(
            f"attempt {attempt['id']}: is {attempt['status']} ({attempt['error_code']}), "
            f"its last event says {last['to_status']} ({last['event_error_code']})"
        )
    return found
