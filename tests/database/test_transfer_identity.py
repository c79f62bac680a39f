"""PostgreSQL and Python say the same of which transfer is which, and of which have paid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db.transfers.identity import find_known_transfers
from domain.chain import Receipt, TransferLog
from domain.payments.verification import find_paid_logs, terms_of
from domain.transfers.identity import PaidTransfer, Place, is_alike, is_paid
from tests.support.payments import CHAIN_ID, TOKEN, TREASURY, RolePair, tx_hash, wallet
from tests.support.postgres import Database
from tests.support.sql import Connection, connect

ON_ONE_DATABASE: Final = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HERE, THERE = tx_hash(7), tx_hash(8)
INDEXES: Final = st.integers(min_value=0, max_value=5)
SENDERS: Final = st.sampled_from([wallet(1), wallet(1).lower(), wallet(2)])
VALUES: Final = st.sampled_from([5_000_000, 5_000_001])


@ON_ONE_DATABASE
@given(SENDERS, VALUES, SENDERS, VALUES)
def test_alike_is_the_same_in_both(database: Database, sender: str, value: int, other: str, other_value: int) -> None:
    one = PaidTransfer(log_index=0, from_address=sender, value_raw=value)
    two = PaidTransfer(log_index=1, from_address=other, value_raw=other_value)
    with connect(database.superuser_url) as owner:
        row = owner.execute("SELECT is_alike(%s, %s, %s, %s)", (sender, value, other, other_value)).fetchone()
    assert row == (is_alike(one, two),)


@ON_ONE_DATABASE
@given(INDEXES, st.sets(INDEXES), st.lists(st.builds(Place, st.sampled_from([HERE, THERE, None]), INDEXES), max_size=6))
def test_a_place_is_paid_in_both_or_in_neither(
    database: Database, log_index: int, observed: set[int], paid: list[Place]
) -> None:
    with connect(database.superuser_url) as owner:
        row = owner.execute(
            "SELECT is_place_paid(%s, %s::bigint[], %s::bigint[])",
            (log_index, sorted(observed), [place.log_index for place in paid]),
        ).fetchone()
    assert row == (is_paid(Place(HERE, log_index), observed, paid),)


@dataclass(frozen=True, slots=True)
class Known:
    """A row that says that a transfer is there, or has paid."""

    sort: str
    """observed, settled, reversed, whole, refund, surplus."""
    block_hash: str
    log_index: int
    sender: str
    value_raw: int
    token: str
    moved_to: int | None = None
    """Of a settled one: the log index that its finality names, in the other block."""


KNOWN: Final = st.lists(
    st.builds(
        Known,
        st.sampled_from(["observed", "observed", "settled", "reversed", "whole", "refund", "surplus"]),
        st.sampled_from([HERE, THERE]),
        INDEXES,
        SENDERS,
        VALUES,
        st.sampled_from([TOKEN, TOKEN.lower(), "0x" + "99" * 20]),
        st.one_of(st.none(), INDEXES),
    ),
    max_size=9,
    # As the keys of the three tables have it.
    unique_by=lambda one: (
        {"observed": "observed", "settled": "attempt", "reversed": "attempt"}.get(one.sort, "credit"),
        one.log_index,
    ),
)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("lists", [15, 300])
async def test_what_has_paid_is_the_same_in_both(roles: RolePair, lists: int) -> None:
    attempt = await roles.create_submitted(await roles.open_account(1), 1)
    others = [await roles.create(await roles.open_account(number)) for number in range(2, 12)]
    terms = terms_of(attempt)

    def plant(owner: Connection, known: list[Known]) -> None:
        for table in ("observed_transfers", "settled_transfers", "transfer_credits", "transfer_finality"):
            owner.execute(f"DELETE FROM {table}")
        for number, one in enumerate(known):
            where = (CHAIN_ID, attempt.tx_hash, one.log_index, 7, one.block_hash)
            if one.sort == "observed":
                owner.execute(
                    "INSERT INTO observed_transfers (chain_id, tx_hash, log_index, block_number, block_hash,"
                    " block_time, token, to_address, from_address, value_raw)"
                    " VALUES (%s, %s, %s, %s, %s, now(), %s, %s, %s, %s)",
                    (*where, one.token, TREASURY, one.sender, one.value_raw),
                )
            elif one.sort in {"settled", "reversed"}:
                _plant_settled(owner, one, others[number].id, where)
            else:
                owner.execute(
                    "INSERT INTO transfer_credits (chain_id, tx_hash, log_index, block_number, block_hash, part,"
                    " from_address, finding_id, billing_account_id, value_raw, amount_credits, revenue_share,"
                    " reference)"
                    " VALUES (%s, %s, %s, %s, %s, %s, %s, gen_random_uuid(), %s, %s, %s, 0, %s)",
                    (
                        *where,
                        one.sort,
                        one.sender,
                        None if one.sort == "refund" else "somebody",
                        one.value_raw,
                        0 if one.sort == "refund" else one.value_raw * 10,
                        None if one.sort == "refund" else f"transfer:{CHAIN_ID}:{attempt.tx_hash}:{one.log_index}",
                    ),
                )

    examples: list[list[Known]] = []

    @settings(ON_ONE_DATABASE, max_examples=lists)
    @given(KNOWN)
    def keep(known: list[Known]) -> None:
        examples.append(known)

    keep()
    logs = tuple(
        TransferLog(
            log_index=log_index,
            emitter=terms.token,
            from_address=terms.payer,
            to_address=terms.treasury,
            value_raw=5_000_000,
        )
        for log_index in range(8)
    )
    receipt = Receipt(tx_hash=tx_hash(1), succeeded=True, block_number=7, block_hash=HERE, transfers=logs)
    for known in examples:
        with connect(roles.database.superuser_url, triggers=False) as owner:
            plant(owner, known)
            by_database = {
                log.log_index
                for log in logs
                if owner.execute(
                    "SELECT transfer_is_paid(%s, %s, %s, %s, %s, %s, %s, %s, true)",
                    (
                        *(CHAIN_ID, attempt.tx_hash, log.log_index, HERE),
                        *(log.from_address, log.value_raw, terms.token, terms.treasury),
                    ),
                ).fetchone()
                == (True,)
            }
        async with roles.service.autocommit() as connection:
            transfers = await find_known_transfers(connection, terms.scope, tx_hash(1), of_others_than=attempt.id)
        assert by_database == find_paid_logs(terms, receipt, transfers), known


def _plant_settled(owner: Connection, one: Known, attempt_id: UUID, where: tuple[object, ...]) -> None:
    owner.execute(
        "UPDATE payment_attempts SET status = %s, token = %s, tx_hash = %s, submitted_at = now(), expires_at = NULL,"
        " revenue_share = 0.75 WHERE id = %s",
        ("CREDITED" if one.sort == "settled" else "REVERSED", one.token, where[1], attempt_id),
    )
    owner.execute(
        "INSERT INTO settled_transfers (chain_id, tx_hash, log_index, block_number, block_hash, from_address,"
        " value_raw, surplus_raw, attempt_id) VALUES (%s, %s, %s, %s, %s, %s, %s, 0, %s)",
        (*where, one.sender, one.value_raw, attempt_id),
    )
    if one.moved_to is not None:
        moved = THERE if one.block_hash == HERE else HERE
        owner.execute(
            "INSERT INTO transfer_finality (chain_id, tx_hash, log_index, block_number, block_hash, attempt_id,"
            " outcome, level) VALUES (%s, %s, %s, 7, %s, %s, 'final', 'safe')",
            (where[0], where[1], one.moved_to, moved, attempt_id),
        )
