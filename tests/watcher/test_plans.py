"""What the watcher asks of the database with every block does not get slower with the number of payments."""

from __future__ import annotations

from typing import Final

import psycopg
from sqlalchemy import event

from tests.support.sql import connect
from tests.watcher.conftest import MIN_CONFIRMATIONS, Watch

PAYMENTS: Final = 2_500

# Straight into the tables, with triggers off: only the number of rows matters here.
FILL: Final = f"""
    SET session_replication_role = replica;
    INSERT INTO users (id, wallet_address)
    SELECT 'user-' || n, '0x' || lpad(to_hex(n), 40, '0') FROM generate_series(1, {PAYMENTS}) n;
    INSERT INTO billing_accounts (id, owner_user_id) SELECT 'account-' || n, 'user-' || n
      FROM generate_series(1, {PAYMENTS}) n;
    INSERT INTO payment_attempts (billing_account_id, from_address, chain_id, token, to_address, amount_raw,
                                  amount_usd_cents, expires_at, status, tx_hash, submitted_at, revenue_share)
    SELECT 'account-' || n, '0x' || lpad(to_hex(n), 40, '0'), c.chain_id, c.token, c.to_address, 100000000, 10000,
           NULL, 'CREDITED', '0x' || lpad(to_hex(n), 64, '0'), now(), 0
      FROM generate_series(1, {PAYMENTS}) n, chain_cursors c;
    INSERT INTO settled_transfers (chain_id, tx_hash, log_index, attempt_id, block_number, block_hash, from_address,
                                   value_raw, surplus_raw)
    SELECT a.chain_id, a.tx_hash, 0, a.id, 1, a.tx_hash, a.from_address, a.amount_raw, 0
      FROM payment_attempts a WHERE a.status = 'CREDITED';
    INSERT INTO observed_transfers (chain_id, tx_hash, log_index, block_number, block_hash, block_time, token,
                                    from_address, to_address, value_raw, handled_at, attempt_id)
    SELECT a.chain_id, a.tx_hash, 0, 1, a.tx_hash, now(), a.token, a.from_address, a.to_address, a.amount_raw, now(),
           a.id
      FROM payment_attempts a WHERE a.status = 'CREDITED';
    INSERT INTO findings (key, kind, detail, announced_at)
    SELECT 'transfer:' || n, 'transfer_without_intent', 'x', now() FROM generate_series(1, {PAYMENTS}) n;
    SET session_replication_role = origin;
    ANALYZE users, payment_attempts, settled_transfers, observed_transfers, findings;
"""


async def test_nothing_that_is_asked_with_every_block_reads_all_payments(watch: Watch) -> None:
    await watch.catch_up()
    with connect(watch.matcher_of_payers.database.superuser_url) as superuser:
        superuser.execute(FILL)
    await watch.intent()
    await watch.pay(blocks=0)
    await watch.pay(12_300, blocks=MIN_CONFIRMATIONS)
    asked: list[tuple[str, dict[str, object]]] = []

    def note(_: object, cursor: object, statement: str, values: dict[str, object], *rest: object) -> None:
        asked.append((statement, values))

    event.listen(watch.matcher_of_payers.service.engine.sync_engine, "before_cursor_execute", note)
    await watch.act()
    assert len(watch.submitted) == 1
    assert len(await watch.findings()) > PAYMENTS
    with psycopg.connect(watch.matcher_of_payers.database.superuser_url) as superuser:
        assert len(asked) > 10
        for statement, values in asked:
            plan = "\n".join(str(row[0]) for row in superuser.execute(f"EXPLAIN {statement}".encode(), values))
            for table in ("payment_attempts", "observed_transfers", "settled_transfers", "findings", "users"):
                assert f"Seq Scan on {table}" not in plan, f"{statement}\n{plan}"
