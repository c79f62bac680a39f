"""Which credited transfers are without an outcome: a trigger keeps the list, whichever role writes."""

from __future__ import annotations

from tests.database.conftest import TwoTenants
from tests.support.sql import connect, query

INSERT_OUTCOME = """
    INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number, block_hash, level)
    SELECT attempt_id, 'final', chain_id, tx_hash, log_index, block_number, block_hash, 'safe'
      FROM settled_transfers ORDER BY id LIMIT 1
    RETURNING attempt_id
"""
AWAITING = "SELECT attempt_id, chain_id, block_number FROM transfers_awaiting_finality ORDER BY attempt_id"
SETTLED = "SELECT attempt_id, chain_id, block_number FROM settled_transfers ORDER BY attempt_id"


def test_a_credit_begins_the_wait_and_an_outcome_ends_its_own(two_tenants: TwoTenants) -> None:
    url = two_tenants.database.service_url
    settled = query(url, SETTLED)
    assert query(url, AWAITING) == settled
    assert len(settled) > 1
    with connect(url) as service:
        [final] = service.execute(INSERT_OUTCOME).fetchall()
    assert query(url, AWAITING) == [row for row in settled if row[0] != final[0]]
