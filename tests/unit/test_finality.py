"""Final, not yet, or reorged out: the pure decision after the credit."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.chain import Receipt, TransferLog
from domain.payments.finality import (
    POLL_DELAY_MAX,
    Final,
    FinalityLevel,
    FinalityPolicy,
    InclusionReport,
    NotFinal,
    ReorgedOut,
    evaluate_absence,
    evaluate_presence,
    locate,
    next_poll_delay,
)
from domain.payments.verification import PaymentTerms, SettledTransfer

TERMS = PaymentTerms(
    chain_id=31_337,
    token="0x" + "70" * 20,
    payer="0x" + "72" * 20,
    treasury="0x" + "71" * 20,
    amount_raw=100_000_000,
)
OLD_BLOCK, NEW_BLOCK = "0x" + "0a" * 32, "0x" + "0b" * 32
SETTLED = SettledTransfer(
    chain_id=31_337,
    tx_hash="0x" + "aa" * 32,
    log_index=3,
    block_number=100,
    block_hash=OLD_BLOCK,
    from_address=TERMS.payer,
    value_raw=100_000_500,
    expected_raw=TERMS.amount_raw,
)
LEVEL = FinalityLevel.FINALIZED


def _log(log_index: int = 3, **changes: object) -> TransferLog:
    values: dict[str, object] = {
        "log_index": log_index,
        "emitter": TERMS.token,
        "from_address": TERMS.payer,
        "to_address": TERMS.treasury,
        "value_raw": SETTLED.value_raw,
    }
    return TransferLog.model_validate(values | changes)


def _receipt(*logs: TransferLog, block: int = 100, block_hash: str = OLD_BLOCK, succeeded: bool = True) -> Receipt:
    return Receipt(
        tx_hash=SETTLED.tx_hash, succeeded=succeeded, block_number=block, block_hash=block_hash, transfers=logs
    )


def _inclusion_report(
    name: str = "a",
    head: int = 200,
    receipt: Receipt | None = None,
    at_height: str | None = NEW_BLOCK,
    chain_id: int = SETTLED.chain_id,
) -> InclusionReport:
    return InclusionReport(
        endpoint=name, chain_id=chain_id, head_number=head, receipt=receipt, block_at_height=at_height
    )


def _absence(
    *inclusion_reports: InclusionReport, endpoints: int = 1, final_up_to: int = 200, since: int | None = 150
) -> ReorgedOut | NotFinal:
    return evaluate_absence(
        TERMS,
        SETTLED,
        inclusion_reports,
        LEVEL,
        endpoints=endpoints,
        final_up_to=final_up_to,
        missing_since_head=since,
    )


# -- the policy


@pytest.mark.parametrize(
    ("cents", "level"),
    [(99_999, FinalityLevel.SAFE), (100_000, FinalityLevel.FINALIZED), (100_001, FinalityLevel.FINALIZED)],
)
def test_a_larger_payment_may_need_a_stronger_level(cents: int, level: FinalityLevel) -> None:
    policy = FinalityPolicy(level=FinalityLevel.SAFE, large_from_usd_cents=100_000)
    assert policy.level_for(cents) is level


def test_without_a_bound_no_payment_is_large() -> None:
    assert FinalityPolicy(level=FinalityLevel.SAFE).level_for(10**12) is FinalityLevel.SAFE


def test_the_levels_are_in_order() -> None:
    assert FinalityLevel.CONFIRMATIONS.rank < FinalityLevel.SAFE.rank < FinalityLevel.FINALIZED.rank


# -- where the transfer is now


def test_a_transfer_that_did_not_move_is_where_it_was() -> None:
    assert locate(TERMS, SETTLED, _receipt(_log(1), _log(3), _log(5))) == SETTLED


def test_its_twin_in_its_own_block_is_not_the_transfer() -> None:
    """A block's hash commits to its logs: an answer without the one that paid is a contradiction."""
    assert locate(TERMS, SETTLED, _receipt(_log(5))) is None
    moved = locate(TERMS, SETTLED, _receipt(_log(5), block=103, block_hash=NEW_BLOCK))
    assert moved is not None
    assert moved.log_index == 5


def test_a_transfer_that_moved_has_another_block_and_another_index() -> None:
    found = locate(TERMS, SETTLED, _receipt(_log(9), block=103, block_hash=NEW_BLOCK))
    assert found == SETTLED.model_copy(update={"log_index": 9, "block_number": 103, "block_hash": NEW_BLOCK})


@pytest.mark.parametrize(
    "changes",
    [
        {"emitter": "0x" + "01" * 20},
        {"from_address": "0x" + "01" * 20},
        {"to_address": "0x" + "01" * 20},
        {"value_raw": SETTLED.value_raw - 1},
        {"value_raw": SETTLED.value_raw + 1},
    ],
)
def test_another_transfer_is_not_taken_for_it(changes: dict[str, object]) -> None:
    assert locate(TERMS, SETTLED, _receipt(_log(**changes))) is None  # type: ignore[arg-type]


def test_a_transaction_that_reverts_in_its_new_block_does_not_pay_any_more() -> None:
    assert locate(TERMS, SETTLED, _receipt(_log(), block=103, succeeded=False)) is None


# -- present


@pytest.mark.parametrize(("final_up_to", "final"), [(99, False), (100, True), (101, True)])
def test_a_transfer_is_final_as_soon_as_its_block_is(final_up_to: int, final: bool) -> None:
    verdict = evaluate_presence(SETTLED, LEVEL, final_up_to=final_up_to)
    assert isinstance(verdict, Final if final else NotFinal)


def test_who_waits_reads_how_many_blocks_are_to_go() -> None:
    verdict = evaluate_presence(SETTLED, LEVEL, final_up_to=92)
    assert isinstance(verdict, NotFinal)
    assert "block 92, 8 to go" in verdict.message
    assert next_poll_delay(verdict, block_time=timedelta(seconds=2)) == timedelta(seconds=16)
    assert next_poll_delay(verdict, block_time=timedelta(minutes=5)) == POLL_DELAY_MAX


# -- absent


def test_a_transfer_is_reorged_out_when_its_height_and_the_head_that_missed_it_are_final_without_it() -> None:
    assert isinstance(_absence(_inclusion_report(), final_up_to=150, since=150), ReorgedOut)


@pytest.mark.parametrize(("final_up_to", "since"), [(149, 150), (99, 50)])
def test_it_has_until_then_to_come_back(final_up_to: int, since: int) -> None:
    verdict = _absence(_inclusion_report(), final_up_to=final_up_to, since=since)
    assert isinstance(verdict, NotFinal)
    assert (verdict.missing_blocks, verdict.missing_since_head) == (1, since)


def test_the_time_to_come_back_begins_with_the_first_poll_that_misses_it() -> None:
    verdict = _absence(_inclusion_report(head=200), final_up_to=190, since=None)
    assert isinstance(verdict, NotFinal)
    assert (verdict.missing_since_head, verdict.missing_blocks) == (200, 10)


@pytest.mark.parametrize(
    ("inclusion_reports", "endpoints", "gone"), [(1, 1, True), (1, 2, False), (2, 3, True), (1, 3, False)]
)
def test_most_nodes_have_to_say_so(inclusion_reports: int, endpoints: int, gone: bool) -> None:
    verdict = _absence(*(_inclusion_report(str(n)) for n in range(inclusion_reports)), endpoints=endpoints)
    assert isinstance(verdict, ReorgedOut if gone else NotFinal)


def test_no_answer_is_no_proof() -> None:
    assert isinstance(_absence(), NotFinal)


def test_one_node_that_has_it_is_enough_to_wait_and_the_time_begins_again() -> None:
    moved = _inclusion_report("b", receipt=_receipt(_log(), block=103, block_hash=NEW_BLOCK))
    verdict = _absence(_inclusion_report("a"), moved, _inclusion_report("c"), endpoints=3)
    assert isinstance(verdict, NotFinal)
    assert verdict.missing_since_head is None


def test_a_node_that_has_the_block_and_not_the_payment_contradicts_itself() -> None:
    assert isinstance(_absence(_inclusion_report(at_height=OLD_BLOCK)), NotFinal)
    lie = _inclusion_report(at_height=OLD_BLOCK, receipt=_receipt(block=100))
    assert isinstance(_absence(lie), NotFinal)


def test_a_node_that_does_not_have_the_height_yet_cannot_know() -> None:
    assert isinstance(_absence(_inclusion_report(at_height=None)), NotFinal)


def test_a_payment_that_failed_in_its_new_block_is_reorged_out() -> None:
    failed = _inclusion_report(receipt=_receipt(block=103, block_hash=NEW_BLOCK, succeeded=False))
    assert isinstance(_absence(failed), ReorgedOut)


SIGHTINGS = st.lists(
    st.builds(
        _inclusion_report,
        st.sampled_from("abcde"),
        st.integers(90, 300),
        st.sampled_from([None, _receipt(_log()), _receipt(_log(), block=103, block_hash=NEW_BLOCK), _receipt()]),
        st.sampled_from([OLD_BLOCK, NEW_BLOCK, None]),
    ),
    max_size=5,
)


@given(SIGHTINGS, st.integers(1, 5), st.integers(0, 300), st.one_of(st.none(), st.integers(90, 300)))
def test_nothing_is_reorged_out_that_one_node_shows_or_that_is_not_final(
    inclusion_reports: list[InclusionReport], endpoints: int, final_up_to: int, since: int | None
) -> None:
    verdict = _absence(*inclusion_reports, endpoints=endpoints, final_up_to=final_up_to, since=since)
    if isinstance(verdict, ReorgedOut):
        assert all(inclusion_report.block_at_height == NEW_BLOCK for inclusion_report in inclusion_reports)
        assert not any(
            inclusion_report.receipt and locate(TERMS, SETTLED, inclusion_report.receipt)
            for inclusion_report in inclusion_reports
        )
        assert final_up_to >= SETTLED.block_number
        assert len(inclusion_reports) > endpoints / 2


@pytest.mark.parametrize("strangers", [1, 2, 3])
def test_a_payment_is_not_reorged_out_because_another_chain_does_not_have_it(strangers: int) -> None:
    """One such answer among the nodes is enough: which of them the load balancer asked is not known either."""
    others = [_inclusion_report(f"other {n}", head=2_000, chain_id=SETTLED.chain_id + 1) for n in range(strangers)]
    own = [_inclusion_report(f"own {n}") for n in range(3 - strangers)]
    verdict = _absence(*own, *others, endpoints=3, final_up_to=2_000, since=150)
    assert isinstance(verdict, NotFinal)
    # Nor does its height count as the one at which the payment was first missed.
    assert verdict.missing_since_head == 150
    first = _absence(*own, *others, endpoints=3, since=None)
    assert isinstance(first, NotFinal)
    assert first.missing_since_head is None
