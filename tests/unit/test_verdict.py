"""The verdict: both sides of every rule, and what no set of logs can bring about."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.chain import BlockHeader, ChainView, Receipt, TransferLog
from domain.payments.attempt import AttemptStatus, ErrorCode
from domain.payments.verification import (
    CONFIRMATION_DELAY_MIN,
    POLL_DELAY_MAX,
    KnownTransfers,
    PaymentTerms,
    Refused,
    SettledTransfer,
    Verified,
    Waiting,
    WaitReason,
    evaluate,
    next_poll_delay,
)
from domain.transfers.income import ZERO_ADDRESS, NonPayer

CHAIN_ID = 8453
NEEDED = 5
BLOCK = 100
EXPECTED_RAW = 100_000_000


def _address(digit: str) -> str:
    return "0x" + digit * 40


def _hash(digit: str) -> str:
    return "0x" + digit * 64


TOKEN, LOOKALIKE = _address("a"), _address("b")
TREASURY, SOMEWHERE = _address("c"), _address("d")
PAYER, STRANGER = _address("e"), _address("f")
TX, OTHER_TX = _hash("1"), _hash("2")
BLOCK_HASH, OTHER_BLOCK_HASH = _hash("3"), _hash("4")

TERMS = PaymentTerms(chain_id=CHAIN_ID, token=TOKEN, payer=PAYER, treasury=TREASURY, amount_raw=EXPECTED_RAW)


def log(**changes: Any) -> TransferLog:
    """The log that pays exactly, changed in what a case is about."""
    values: dict[str, Any] = {
        "log_index": 0,
        "emitter": TOKEN,
        "from_address": PAYER,
        "to_address": TREASURY,
        "value_raw": EXPECTED_RAW,
    }
    return TransferLog(**values | changes)


def receipt(*transfers: TransferLog, **changes: Any) -> Receipt:
    """A receipt in block 100 with these logs."""
    values: dict[str, Any] = {
        "tx_hash": TX,
        "succeeded": True,
        "block_number": BLOCK,
        "block_hash": BLOCK_HASH,
        "transfers": transfers,
    }
    return Receipt(**values | changes)


def header(**changes: Any) -> BlockHeader:
    """The block of the receipt, as the canonical chain has it."""
    values: dict[str, Any] = {"number": BLOCK, "block_hash": BLOCK_HASH, "tx_hashes": frozenset({TX, OTHER_TX})}
    return BlockHeader(**values | changes)


def view(*transfers: TransferLog, **changes: Any) -> ChainView:
    """A node that shows the receipt with as many confirmations as are needed."""
    values: dict[str, Any] = {
        "chain_id": CHAIN_ID,
        "endpoint": "node",
        "head_number": BLOCK + NEEDED - 1,
        "receipt": receipt(*transfers),
        "canonical": header(),
    }
    return ChainView(**values | changes)


def decide(seen: ChainView, *, terms: PaymentTerms = TERMS, settled: frozenset[int] = frozenset(), **rules: Any) -> Any:
    """The verdict with the usual number of confirmations."""
    return evaluate(terms, TX, seen, min_confirmations=NEEDED, known=KnownTransfers(held_log_indexes=settled), **rules)


# -- verified


def test_an_exact_payment_is_verified_with_all_its_facts() -> None:
    assert decide(view(log(log_index=7))) == Verified(
        transfer=SettledTransfer(
            chain_id=CHAIN_ID,
            tx_hash=TX,
            log_index=7,
            block_number=BLOCK,
            block_hash=BLOCK_HASH,
            from_address=PAYER,
            value_raw=EXPECTED_RAW,
            expected_raw=EXPECTED_RAW,
        ),
        confirmations=NEEDED,
    )


@pytest.mark.parametrize("surplus", [0, 1, EXPECTED_RAW, 2**256 - 1 - EXPECTED_RAW])
def test_what_is_above_the_amount_is_recorded_as_surplus(surplus: int) -> None:
    assert decide(view(log(value_raw=EXPECTED_RAW + surplus))).transfer.surplus_raw == surplus


def test_what_a_bundle_sends_beside_the_transfer_that_pays_is_recorded_too() -> None:
    bundle = (
        log(log_index=0, value_raw=EXPECTED_RAW + 7),
        log(log_index=1),
        log(log_index=2, value_raw=5),
        log(log_index=3, from_address=STRANGER, value_raw=1_000),
        log(log_index=4, to_address=SOMEWHERE, value_raw=1_000),
        log(log_index=5, emitter=SOMEWHERE, value_raw=1_000),
        log(log_index=6, value_raw=11),
    )
    transfer = decide(view(*bundle), settled=frozenset({6})).transfer
    assert (transfer.log_index, transfer.surplus_raw, transfer.unapplied_raw) == (1, 0, EXPECTED_RAW + 7 + 5)


def test_halves_are_both_named_and_do_not_pay_together() -> None:
    verdict = decide(view(log(value_raw=EXPECTED_RAW - 1), log(log_index=1, value_raw=1)))
    assert verdict.error_code is ErrorCode.INSUFFICIENT_AMOUNT
    assert verdict.message.startswith(f"{EXPECTED_RAW - 1} and 1 raw units")
    assert str(EXPECTED_RAW) in verdict.message


def test_the_case_of_an_address_carries_no_meaning() -> None:
    shouted = log(emitter="0x" + "A" * 40, from_address="0x" + "E" * 40, to_address="0x" + "C" * 40)
    assert isinstance(decide(view(shouted)), Verified)


def test_another_payers_transfer_in_the_same_transaction_neither_pays_nor_spoils() -> None:
    theirs = log(log_index=0, from_address=STRANGER, value_raw=EXPECTED_RAW)
    assert decide(view(theirs, log(log_index=1))).transfer.log_index == 1
    assert decide(view(log(log_index=1), theirs.model_copy(update={"log_index": 2}))).transfer.log_index == 1


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ([EXPECTED_RAW - 1, EXPECTED_RAW], 1),
        ([EXPECTED_RAW + 5, EXPECTED_RAW], 1),
        ([EXPECTED_RAW, EXPECTED_RAW], 0),
        ([2 * EXPECTED_RAW, EXPECTED_RAW + 1, EXPECTED_RAW + 2], 1),
    ],
)
def test_of_several_own_transfers_the_smallest_that_suffices_pays(values: list[int], chosen: int) -> None:
    logs = [log(log_index=index, value_raw=value) for index, value in enumerate(values)]
    assert decide(view(*logs)).transfer.log_index == chosen
    assert decide(view(*reversed(logs))).transfer.log_index == chosen


def test_two_transfers_that_suffice_only_together_do_not_pay() -> None:
    half = EXPECTED_RAW // 2
    refused = decide(view(log(value_raw=half), log(log_index=1, value_raw=half)))
    assert refused.error_code is ErrorCode.INSUFFICIENT_AMOUNT


def test_a_log_that_paid_another_attempt_does_not_pay_again_and_its_neighbour_does() -> None:
    both = view(log(log_index=0), log(log_index=1))
    assert decide(both, settled=frozenset({0})).transfer.log_index == 1
    assert decide(both, settled=frozenset({0, 1})).error_code is ErrorCode.TX_ALREADY_SETTLED
    assert decide(both, settled=frozenset({2})).transfer.log_index == 0


# -- refused

CODES: list[tuple[str, list[TransferLog], frozenset[int], ErrorCode]] = [
    ("no log at all", [], frozenset(), ErrorCode.TOKEN_TRANSFER_NOT_FOUND),
    (
        "others trade the token elsewhere",
        [log(from_address=STRANGER, to_address=SOMEWHERE)],
        frozenset(),
        ErrorCode.TOKEN_TRANSFER_NOT_FOUND,
    ),
    (
        "another token goes elsewhere",
        [log(emitter=LOOKALIKE, to_address=SOMEWHERE)],
        frozenset(),
        ErrorCode.TOKEN_TRANSFER_NOT_FOUND,
    ),
    ("a look-alike pays the treasury", [log(emitter=LOOKALIKE)], frozenset(), ErrorCode.INVALID_TOKEN),
    ("a stranger paid", [log(from_address=STRANGER)], frozenset(), ErrorCode.SENDER_MISMATCH),
    ("the payer paid another wallet", [log(to_address=SOMEWHERE)], frozenset(), ErrorCode.RECIPIENT_MISMATCH),
    ("one unit is missing", [log(value_raw=EXPECTED_RAW - 1)], frozenset(), ErrorCode.INSUFFICIENT_AMOUNT),
    ("nothing was sent", [log(value_raw=0)], frozenset(), ErrorCode.INSUFFICIENT_AMOUNT),
    ("it has paid already", [log()], frozenset({0}), ErrorCode.TX_ALREADY_SETTLED),
    (
        "a stranger's poison to no treasury",
        [log(from_address=STRANGER, value_raw=0)],
        frozenset(),
        ErrorCode.TOKEN_TRANSFER_NOT_FOUND,
    ),
    (
        "poison in the payer's name",
        [log(to_address=SOMEWHERE, value_raw=0)],
        frozenset(),
        ErrorCode.TOKEN_TRANSFER_NOT_FOUND,
    ),
    (
        "poison beside a look-alike",
        [log(to_address=SOMEWHERE, value_raw=0), log(log_index=1, emitter=LOOKALIKE)],
        frozenset(),
        ErrorCode.INVALID_TOKEN,
    ),
    (
        "too little of the token beside enough of a look-alike",
        [log(value_raw=EXPECTED_RAW - 1), log(log_index=1, emitter=LOOKALIKE)],
        frozenset(),
        ErrorCode.INSUFFICIENT_AMOUNT,
    ),
    (
        "too little beside a stranger's payment",
        [log(value_raw=1), log(log_index=1, from_address=STRANGER)],
        frozenset(),
        ErrorCode.INSUFFICIENT_AMOUNT,
    ),
]


@pytest.mark.parametrize(("logs", "settled", "code"), [case[1:] for case in CODES], ids=[case[0] for case in CODES])
def test_a_payment_that_is_there_and_wrong_is_rejected(
    logs: list[TransferLog], settled: frozenset[int], code: ErrorCode
) -> None:
    refused = decide(view(*logs), settled=settled)
    assert (refused.status, refused.error_code) == (AttemptStatus.REJECTED, code)
    assert "\n" not in refused.message


@pytest.mark.parametrize(
    ("payer", "known"),
    [
        (TREASURY, None),
        (TREASURY.upper().replace("0X", "0x"), None),
        (ZERO_ADDRESS, None),
        (TOKEN, None),
        (PAYER, NonPayer.TREASURY),
        (PAYER, NonPayer.TOKEN),
    ],
)
@pytest.mark.parametrize("value_raw", [EXPECTED_RAW - 1, EXPECTED_RAW, 10 * EXPECTED_RAW, 0])
def test_a_sender_that_cannot_be_a_payer_is_rejected_whatever_they_send(
    payer: str, known: NonPayer | None, value_raw: int
) -> None:
    terms = TERMS.model_copy(update={"payer": payer})
    seen = view(log(from_address=payer, value_raw=value_raw))
    verdict = decide(seen, terms=terms, payer_kind=known)
    assert (verdict.status, verdict.error_code) == (AttemptStatus.REJECTED, ErrorCode.SENDER_MISMATCH)


@pytest.mark.parametrize(
    ("first_block", "too_old"), [(None, False), (BLOCK - 1, False), (BLOCK, False), (BLOCK + 1, True)]
)
def test_a_payment_from_before_the_first_block_is_too_old(first_block: int | None, too_old: bool) -> None:
    verdict = decide(view(log()), first_block=first_block)
    if too_old:
        assert (verdict.status, verdict.error_code) == (AttemptStatus.REJECTED, ErrorCode.TRANSFER_TOO_OLD)
    else:
        assert isinstance(verdict, Verified)


def test_that_it_is_too_old_is_said_of_what_would_have_paid_and_when_it_is_confirmed() -> None:
    too_little = view(log(value_raw=1))
    verdict = decide(too_little, first_block=BLOCK + 1)
    assert verdict.error_code is ErrorCode.INSUFFICIENT_AMOUNT
    early = view(log(), head_number=BLOCK)
    # A reorganisation may still take it to the other side of the first block.
    assert isinstance(decide(early, first_block=BLOCK + 1), Waiting)


def test_a_zero_value_poison_log_does_not_spoil_a_payment() -> None:
    poison = [
        log(log_index=0, value_raw=0),
        log(log_index=1, value_raw=0, to_address=SOMEWHERE),
        log(log_index=2, value_raw=0, from_address=STRANGER),
    ]
    assert decide(view(*poison, log(log_index=3))).transfer.log_index == 3


NONCE, OTHER_NONCE = _hash("5"), _hash("6")
BY_SIGNATURE = TERMS.model_copy(update={"nonce": NONCE})


def test_of_a_signature_the_transfer_that_it_has_caused_pays_whatever_is_beside_it() -> None:
    logs = [
        log(log_index=1, authorization_nonce=OTHER_NONCE),
        log(log_index=3),
        log(log_index=5, authorization_nonce=NONCE),
        log(log_index=7, authorization_nonce=NONCE, from_address=STRANGER),
    ]
    assert decide(view(*logs), terms=BY_SIGNATURE).transfer.log_index == 5
    assert isinstance(decide(view(*logs[:2], logs[3]), terms=BY_SIGNATURE), Waiting)


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(view(), id="a transaction without it"),
        pytest.param(view(log()), id="an ordinary transfer of the payer"),
        pytest.param(view(log(authorization_nonce=OTHER_NONCE)), id="another authorization of the payer"),
        pytest.param(view(log(authorization_nonce=NONCE, emitter=LOOKALIKE)), id="another token's"),
        pytest.param(view(receipt=receipt(log(authorization_nonce=NONCE), succeeded=False)), id="reverted"),
    ],
)
def test_a_transaction_that_does_not_use_the_authorization_proves_nothing(seen: ChainView) -> None:
    assert decide(seen, terms=BY_SIGNATURE).reason is WaitReason.AUTHORIZATION_OPEN


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"to_address": SOMEWHERE}, ErrorCode.RECIPIENT_MISMATCH), ({"value_raw": 1}, ErrorCode.INSUFFICIENT_AMOUNT)],
)
def test_an_authorization_that_was_used_for_something_else_never_pays(changes: dict[str, Any], code: ErrorCode) -> None:
    verdict = decide(view(log(authorization_nonce=NONCE, **changes)), terms=BY_SIGNATURE)
    assert (verdict.status, verdict.error_code) == (AttemptStatus.REJECTED, code)


def test_a_transfer_that_a_claimed_authorization_has_caused_pays_no_attempt_by_its_sender() -> None:
    known = KnownTransfers(claimed_nonces=frozenset({NONCE}))
    claimed, others = (
        evaluate(TERMS, TX, view(log(authorization_nonce=nonce)), min_confirmations=NEEDED, known=known)
        for nonce in (NONCE, OTHER_NONCE)
    )
    assert isinstance(claimed, Refused)
    assert claimed.error_code is ErrorCode.TX_ALREADY_SETTLED
    assert isinstance(others, Verified)


def test_a_reverted_transaction_fails_and_is_not_rejected() -> None:
    seen = view(receipt=receipt(log(), succeeded=False))
    assert decide(seen) == Refused(
        status=AttemptStatus.FAILED,
        error_code=ErrorCode.TX_REVERTED,
        message=f"transaction reverted in block {BLOCK}",
    )


# -- waiting

HEAD = BLOCK + NEEDED - 1
WAITS: list[tuple[str, ChainView, WaitReason]] = [
    ("the node is of another chain", view(log(), chain_id=1), WaitReason.WRONG_CHAIN),
    ("no node knows the hash", view(receipt=None, canonical=None), WaitReason.NOT_FOUND),
    ("the receipt is another transaction's", view(receipt=receipt(log(), tx_hash=OTHER_TX)), WaitReason.CONTRADICTION),
    ("the receipt is ahead of the head", view(log(), head_number=BLOCK - 1), WaitReason.PRE_CONFIRMED),
    ("there is no block at its height yet", view(log(), canonical=None), WaitReason.PRE_CONFIRMED),
    ("the block is of another height", view(log(), canonical=header(number=BLOCK + 1)), WaitReason.CONTRADICTION),
    (
        "the block is not canonical any more",
        view(log(), canonical=header(block_hash=OTHER_BLOCK_HASH)),
        WaitReason.NOT_CANONICAL,
    ),
    (
        "the block does not list the transaction",
        view(log(), canonical=header(tx_hashes=frozenset({OTHER_TX}))),
        WaitReason.CONTRADICTION,
    ),
    ("one confirmation is missing", view(log(), head_number=HEAD - 1), WaitReason.CONFIRMATIONS),
    ("it is in the head block", view(log(), head_number=BLOCK), WaitReason.CONFIRMATIONS),
]


@pytest.mark.parametrize(("seen", "reason"), [case[1:] for case in WAITS], ids=[case[0] for case in WAITS])
def test_what_is_not_certain_yet_is_waited_for(seen: ChainView, reason: WaitReason) -> None:
    waiting = decide(seen)
    assert isinstance(waiting, Waiting)
    assert waiting.reason is reason
    assert waiting.confirmations_needed == NEEDED
    assert waiting.message
    assert "\n" not in waiting.message


@pytest.mark.parametrize(("seen", "reason"), [case[1:] for case in WAITS], ids=[case[0] for case in WAITS])
def test_a_revert_that_is_not_certain_yet_is_waited_for_too(seen: ChainView, reason: WaitReason) -> None:
    if seen.receipt is not None:
        seen = seen.model_copy(update={"receipt": seen.receipt.model_copy(update={"succeeded": False})})
    assert decide(seen).reason is reason


@pytest.mark.parametrize("needed", [1, 2, 5, 12])
def test_the_confirmations_are_counted_to_the_last_one(needed: int) -> None:
    before = evaluate(TERMS, TX, view(log(), head_number=BLOCK + needed - 2), min_confirmations=needed)
    assert before.kind == "waiting"
    exactly = evaluate(TERMS, TX, view(log(), head_number=BLOCK + needed - 1), min_confirmations=needed)
    assert isinstance(exactly, Verified)
    assert exactly.confirmations == needed
    later = evaluate(TERMS, TX, view(log(), head_number=BLOCK + needed), min_confirmations=needed)
    assert isinstance(later, Verified)
    assert later.confirmations == needed + 1


def test_an_operator_reads_how_many_confirmations_are_there() -> None:
    waiting = decide(view(log(), head_number=BLOCK + 2))
    assert waiting.message == "3 of 5 confirmations"
    assert (waiting.confirmations, waiting.confirmations_needed, waiting.block_number) == (3, 5, BLOCK)


# -- any set of logs

ADDRESSES = [PAYER, STRANGER, TREASURY, SOMEWHERE, PAYER.upper().replace("X", "x"), TREASURY.upper().replace("X", "x")]
VALUES = st.sampled_from([0, 1, EXPECTED_RAW - 1, EXPECTED_RAW, EXPECTED_RAW + 1, 2 * EXPECTED_RAW, 2**256 - 1])


@st.composite
def log_sets(draw: st.DrawFn, *, max_size: int = 8) -> list[TransferLog]:
    """Logs of one transaction: any emitters, senders, recipients and values; each index once."""
    drawn = draw(
        st.lists(
            st.builds(
                TransferLog,
                log_index=st.integers(min_value=0, max_value=15),
                emitter=st.sampled_from([TOKEN, TOKEN.upper().replace("X", "x"), LOOKALIKE]),
                from_address=st.sampled_from(ADDRESSES),
                to_address=st.sampled_from(ADDRESSES),
                value_raw=VALUES,
            ),
            max_size=max_size,
            unique_by=lambda drawn_log: drawn_log.log_index,
        )
    )
    return list(drawn)


SETTLED = st.frozensets(st.integers(min_value=0, max_value=15), max_size=8)


def _pays(candidate: TransferLog) -> bool:
    return (
        candidate.emitter.lower() == TOKEN.lower()
        and candidate.from_address.lower() == PAYER.lower()
        and candidate.to_address.lower() == TREASURY.lower()
        and candidate.value_raw >= EXPECTED_RAW
    )


@given(log_sets(), SETTLED)
def test_a_payment_is_verified_exactly_when_a_right_log_has_not_paid_yet(
    logs: list[TransferLog], settled: frozenset[int]
) -> None:
    verdict = decide(view(*logs), settled=settled)
    able = {candidate.log_index for candidate in logs if _pays(candidate)} - settled
    assert isinstance(verdict, Verified) == bool(able)
    if isinstance(verdict, Verified):
        assert verdict.transfer.log_index in able
        [named] = [candidate for candidate in logs if candidate.log_index == verdict.transfer.log_index]
        assert (verdict.transfer.value_raw, verdict.transfer.from_address) == (named.value_raw, named.from_address)
        assert verdict.transfer.surplus_raw >= 0
    else:
        assert verdict.status is AttemptStatus.REJECTED


@given(log_sets(), log_sets(), SETTLED)
def test_other_payers_logs_never_change_the_verdict_on_ours(
    own: list[TransferLog], theirs: list[TransferLog], settled: frozenset[int]
) -> None:
    ours = [entry for entry in own if entry.from_address.lower() == PAYER.lower()]
    strangers = [
        entry.model_copy(update={"log_index": entry.log_index + 100})
        for entry in theirs
        if entry.from_address.lower() != PAYER.lower()
    ]
    alone, together = decide(view(*ours), settled=settled), decide(view(*ours, *strangers), settled=settled)
    paid_treasury = any(entry.emitter.lower() == TOKEN and entry.to_address.lower() == TREASURY for entry in ours)
    if paid_treasury:
        assert together == alone
    else:
        # Nothing of ours reached the treasury: others may explain that better, but never make it right.
        assert isinstance(alone, Refused)
        assert isinstance(together, Refused)


def test_a_refusal_reads_the_same_in_whatever_order_a_node_lists_the_logs() -> None:
    short = [log(log_index=index, value_raw=EXPECTED_RAW - 1 - index) for index in range(2)]
    refused = decide(view(*short))
    assert refused.message.startswith("99999999 and 99999998 raw units")
    assert decide(view(*reversed(short))) == refused


@given(log_sets(), SETTLED, st.randoms(use_true_random=False))
def test_the_order_of_the_logs_carries_no_meaning(logs: list[TransferLog], settled: frozenset[int], order: Any) -> None:
    shuffled = list(logs)
    order.shuffle(shuffled)
    assert decide(view(*logs), settled=settled) == decide(view(*shuffled), settled=settled)


@given(
    log_sets(),
    st.integers(min_value=0, max_value=2 * BLOCK),
    st.booleans(),
    st.one_of(
        st.none(),
        st.builds(
            header,
            number=st.sampled_from([BLOCK - 1, BLOCK]),
            block_hash=st.sampled_from([BLOCK_HASH, OTHER_BLOCK_HASH]),
            tx_hashes=st.sampled_from([frozenset({TX}), frozenset()]),
        ),
    ),
    st.sampled_from([CHAIN_ID, 1]),
    st.booleans(),
)
def test_nothing_final_follows_from_a_block_that_is_not_confirmed(
    logs: list[TransferLog],
    head: int,
    succeeded: bool,
    canonical: BlockHeader | None,
    chain_id: int,
    known: bool,
) -> None:
    seen = view(
        chain_id=chain_id,
        head_number=head,
        receipt=receipt(*logs, succeeded=succeeded) if known else None,
        canonical=canonical,
    )
    certain = (
        known and chain_id == CHAIN_ID and canonical == header(tx_hashes=frozenset({TX})) and head - BLOCK + 1 >= NEEDED
    )
    assert isinstance(decide(seen), Waiting) is not certain


# -- when to poll again

BLOCK_TIME = timedelta(seconds=2)
DAY = timedelta(days=1)


def _waiting(reason: WaitReason, *, confirmations: int = 0) -> Waiting:
    return Waiting(reason=reason, message="", confirmations=confirmations, confirmations_needed=NEEDED)


@pytest.mark.parametrize(("confirmations", "seconds"), [(0, 10), (1, 8), (4, 2)])
def test_confirmations_take_a_block_each(confirmations: int, seconds: int) -> None:
    waiting = _waiting(WaitReason.CONFIRMATIONS, confirmations=confirmations)
    delay = next_poll_delay(waiting, waited=DAY / 2, remaining=DAY / 2, block_time=BLOCK_TIME)
    assert delay == timedelta(seconds=seconds)


@pytest.mark.parametrize(("block_seconds", "seconds"), [(11.9, 59.5), (12, 60), (12.1, 60), (600, 60)])
def test_confirmations_of_a_slow_chain_are_polled_once_a_minute(block_seconds: float, seconds: float) -> None:
    waiting = _waiting(WaitReason.CONFIRMATIONS)
    block_time = timedelta(seconds=block_seconds)
    delay = next_poll_delay(waiting, waited=DAY / 2, remaining=DAY / 2, block_time=block_time)
    assert delay == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("block_time", "delay"),
    [
        (timedelta(0), CONFIRMATION_DELAY_MIN),
        (CONFIRMATION_DELAY_MIN, CONFIRMATION_DELAY_MIN),
        (CONFIRMATION_DELAY_MIN + timedelta(milliseconds=1), CONFIRMATION_DELAY_MIN + timedelta(milliseconds=1)),
    ],
)
def test_a_fast_chain_is_not_asked_without_pause(block_time: timedelta, delay: timedelta) -> None:
    waiting = _waiting(WaitReason.CONFIRMATIONS, confirmations=NEEDED - 1)
    assert next_poll_delay(waiting, waited=timedelta(0), remaining=DAY, block_time=block_time) == delay


@pytest.mark.parametrize("reason", [reason for reason in WaitReason if reason is not WaitReason.CONFIRMATIONS])
@pytest.mark.parametrize(
    ("waited", "delay"),
    [
        (timedelta(0), BLOCK_TIME),
        (10 * BLOCK_TIME, BLOCK_TIME),
        (10 * BLOCK_TIME + timedelta(seconds=1), BLOCK_TIME + timedelta(milliseconds=100)),
        (timedelta(seconds=599), timedelta(seconds=59.9)),
        (timedelta(seconds=600), POLL_DELAY_MAX),
        (timedelta(hours=20), POLL_DELAY_MAX),
    ],
)
def test_what_is_unknown_is_asked_for_in_a_slow_back_off(
    reason: WaitReason, waited: timedelta, delay: timedelta
) -> None:
    assert next_poll_delay(_waiting(reason), waited=waited, remaining=DAY, block_time=BLOCK_TIME) == delay


def test_the_final_poll_is_one_block_before_the_end() -> None:
    waiting = _waiting(WaitReason.NOT_FOUND)
    remaining = timedelta(seconds=30)
    delay = next_poll_delay(waiting, waited=timedelta(hours=23), remaining=remaining, block_time=BLOCK_TIME)
    assert delay == remaining - BLOCK_TIME
    after_it = next_poll_delay(waiting, waited=timedelta(hours=24), remaining=BLOCK_TIME, block_time=BLOCK_TIME)
    assert after_it == POLL_DELAY_MAX


SPANS = st.timedeltas(min_value=timedelta(0), max_value=DAY)


@given(
    st.sampled_from(WaitReason),
    st.integers(min_value=0, max_value=NEEDED - 1),
    SPANS,
    SPANS,
    st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(seconds=30)),
)
def test_there_is_always_a_pause_and_never_one_beyond_the_final_poll(
    reason: WaitReason, confirmations: int, waited: timedelta, remaining: timedelta, block_time: timedelta
) -> None:
    waiting = _waiting(reason, confirmations=confirmations)
    delay = next_poll_delay(waiting, waited=waited, remaining=remaining, block_time=block_time)
    assert delay > timedelta(0)
    if remaining > block_time:
        assert delay <= remaining - block_time
