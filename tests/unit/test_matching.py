"""What a transfer pays that was not submitted: exactly the amount, in time, the oldest first, nothing inferred."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.chain import Transfer
from domain.operations.findings import Finding, FindingKind
from domain.payments.attempt import AttemptStatus, ErrorCode
from domain.transfers.identity import PaidTransfer
from domain.transfers.income import NonPayer
from domain.transfers.matching import (
    CLOCK_SLACK,
    RECENT,
    AlreadyPaid,
    Candidate,
    Decision,
    MatchContext,
    NoIncome,
    Pays,
    Renews,
    Undecided,
    decide,
    renewal_id,
)

CHAIN_ID = 31_337
MINED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECOND = timedelta(seconds=1)
TTL = timedelta(minutes=30)
ALICE, MALLORY = "0x" + "aA" * 20, "0x" + "33" * 20
HASH, OTHER_HASH = "0x" + "11" * 32, "0x" + "22" * 32


def transfer(**changes: Any) -> Transfer:
    values = {
        "tx_hash": HASH,
        "log_index": 0,
        "block_number": 100,
        "block_hash": "0x" + "cc" * 32,
        "block_time": MINED,
        "from_address": ALICE,
        "value_raw": 100,
    }
    return Transfer(**{**values, **changes})


def intent(number: int = 1, **changes: Any) -> Candidate:
    """An open intent of 100, made a minute before the transfer was mined."""
    values = {
        "attempt_id": UUID(int=number),
        "owner_user_id": "alice",
        "billing_account_id": "account",
        "from_address": ALICE.lower(),
        "amount_raw": 100,
        "status": AttemptStatus.CREATED_INTENT,
        "created_at": MINED - timedelta(minutes=1),
        "expires_at": MINED - timedelta(minutes=1) + TTL,
    }
    return Candidate(**{**values, **changes})


def expired(number: int = 1, **changes: Any) -> Candidate:
    status = {"status": AttemptStatus.FAILED, "error_code": ErrorCode.INTENT_EXPIRED}
    return intent(number, **{**status, **changes})


def pending(number: int = 1, **changes: Any) -> Candidate:
    status = {"status": AttemptStatus.PENDING_UNVERIFIED, "expires_at": None, "tx_hash": OTHER_HASH}
    return intent(number, **{**status, **changes})


def rejected(code: ErrorCode, number: int = 1, **changes: Any) -> Candidate:
    return pending(number, **{"status": AttemptStatus.REJECTED, "error_code": code, "tx_hash": HASH, **changes})


def paid(number: int = 1, **changes: Any) -> PaidTransfer:
    values = {"attempt_id": UUID(int=number), "status": AttemptStatus.CREDITED, "log_index": 0}
    return PaidTransfer(**{**values, "from_address": ALICE, "value_raw": 100, **changes})


def decision(*candidates: Candidate, of: Transfer | None = None, **around: Any) -> Decision:
    of = of or transfer()
    known = {"candidates": candidates, "siblings": (of,), **around}
    return decide(CHAIN_ID, of, MatchContext(**known))


def pays(number: int, *candidates: Candidate, **options: Any) -> bool:
    decided = decision(*candidates, **options)
    return isinstance(decided, Pays) and decided.attempt.attempt_id == UUID(int=number)


def finding(*candidates: Candidate, **options: Any) -> tuple[FindingKind, int | None]:
    decided = decision(*candidates, **options)
    assert isinstance(decided, Finding), decided
    return decided.kind, decided.attempt_id.int if decided.attempt_id else None


# What it pays --------------------------------------------------------------------------------------------------------


def test_an_open_intent_of_exactly_that_amount_is_paid() -> None:
    assert pays(1, intent())


@pytest.mark.parametrize("amount_raw", [99, 101])
def test_one_unit_more_or_less_is_another_amount(amount_raw: int) -> None:
    assert finding(intent(amount_raw=amount_raw)) == (FindingKind.WRONG_AMOUNT, 1)


def test_another_payers_intent_is_not_paid() -> None:
    assert finding(intent(from_address=MALLORY)) == (FindingKind.TRANSFER_WITHOUT_INTENT, None)


def test_of_two_intents_the_oldest_is_paid_in_whatever_order_they_are_listed() -> None:
    older, newer = intent(2, created_at=MINED - timedelta(minutes=2)), intent(1)
    assert pays(2, older, newer)
    assert pays(2, newer, older)


@pytest.mark.parametrize(("ends", "in_time"), [(MINED + SECOND, True), (MINED, False)])
@pytest.mark.parametrize("make", [intent, expired])
def test_mined_before_the_expiry_is_in_time_whatever_has_become_of_the_intent(
    make: Any, ends: datetime, in_time: bool
) -> None:
    if in_time:
        assert pays(1, make(expires_at=ends))
    else:
        assert finding(make(expires_at=ends)) == (FindingKind.LATE_PAYMENT, 1)


def test_an_expired_intent_that_was_paid_in_time_comes_before_a_younger_open_one() -> None:
    assert pays(1, expired(1, created_at=MINED - TTL + SECOND, expires_at=MINED + SECOND), intent(2))


def test_an_older_intent_that_was_over_leaves_the_payment_to_the_open_one() -> None:
    assert pays(2, expired(1, created_at=MINED - 2 * TTL, expires_at=MINED - TTL), intent(2))


@pytest.mark.parametrize(("after", "is_paid"), [(CLOCK_SLACK, True), (CLOCK_SLACK + SECOND, False)])
def test_an_intent_made_after_the_transfer_is_not_what_it_was_for(after: timedelta, is_paid: bool) -> None:
    made = intent(created_at=MINED + after, expires_at=MINED + after + TTL)
    if is_paid:
        assert pays(1, made)
    else:
        assert finding(made) == (FindingKind.TRANSFER_WITHOUT_INTENT, None)


def test_a_transaction_that_was_sped_up_replaces_the_hash_that_never_appears() -> None:
    assert pays(1, pending())


def test_a_hash_that_has_appeared_is_not_replaced() -> None:
    assert finding(pending(hash_is_observed=True)) == (FindingKind.TRANSFER_WITHOUT_INTENT, None)


def test_a_sped_up_payment_has_to_be_of_the_amount_too() -> None:
    assert finding(pending(amount_raw=99)) == (FindingKind.TRANSFER_WITHOUT_INTENT, None)


def test_an_open_intent_comes_before_a_pending_hash_that_has_not_appeared() -> None:
    assert pays(2, pending(1, created_at=MINED - timedelta(minutes=9)), intent(2))


def test_of_two_sped_up_payments_the_oldest_is_paid() -> None:
    assert pays(2, pending(1), pending(2, created_at=MINED - timedelta(minutes=2)))


def test_an_attempt_that_did_not_take_it_is_passed_over() -> None:
    around = MatchContext(candidates=(intent(1, created_at=MINED - TTL), intent(2)))
    decided = decide(CHAIN_ID, transfer(), around, refused={UUID(int=1)})
    assert isinstance(decided, Pays)
    assert decided.attempt.attempt_id == UUID(int=2)


# What it has paid already --------------------------------------------------------------------------------------------


def test_a_transfer_that_has_paid_is_not_decided_about_again() -> None:
    assert decision(intent(2), paid=(paid(1),)) == AlreadyPaid(attempt_id=UUID(int=1))


def test_a_payment_that_moved_to_another_block_is_known_by_what_it_is() -> None:
    moved = transfer(log_index=7)
    assert decision(of=moved, paid=(paid(log_index=3),)) == AlreadyPaid(attempt_id=UUID(int=1))


def test_of_two_alike_one_has_paid_and_the_other_is_left_over() -> None:
    first, second = transfer(log_index=4), transfer(log_index=5)
    credited = pending(1, status=AttemptStatus.CREDITED, tx_hash=HASH)
    around = {"paid": (paid(1, log_index=2),), "siblings": (second, first)}
    assert decision(credited, of=first, **around) == AlreadyPaid(attempt_id=UUID(int=1))
    assert finding(credited, of=second, **around) == (FindingKind.TRANSFER_WITHOUT_INTENT, 1)


def test_two_that_paid_at_one_index_of_two_blocks_are_two() -> None:
    first, second = transfer(log_index=4), transfer(log_index=5)
    by_operator = paid(attempt_id=None, status=None, log_index=5, block_hash=OTHER_HASH)
    around = {"paid": (paid(1, log_index=5), by_operator), "siblings": (first, second)}
    assert isinstance(decision(intent(2), of=first, **around), AlreadyPaid)
    assert isinstance(decision(intent(2), of=second, **around), AlreadyPaid)


def test_what_an_operator_has_credited_is_paid() -> None:
    assert decision(intent(), paid=(paid(attempt_id=None, status=None),)) == AlreadyPaid(attempt_id=None)


def test_a_transfer_that_an_attempt_waits_for_is_left_to_it() -> None:
    assert decision(pending(tx_hash=HASH), intent(2)) == Undecided(attempt_id=UUID(int=1))


def test_another_amount_beside_a_payment_is_not_submitted_for_another_intent() -> None:
    credited = pending(1, status=AttemptStatus.CREDITED, tx_hash=HASH, amount_raw=50)
    others = (paid(1, log_index=1, value_raw=50),)
    assert finding(credited, intent(2), paid=others) == (FindingKind.TRANSFER_WITHOUT_INTENT, 1)


def test_a_reversed_payment_that_comes_back_is_an_operators_whichever_attempts_fit() -> None:
    back = paid(1, status=AttemptStatus.REVERSED)
    assert finding(intent(2), paid=(back,)) == (FindingKind.RETURNED_AFTER_REVERSAL, 1)


# What is left to an operator -----------------------------------------------------------------------------------------


def test_nothing_is_known_of_the_sender() -> None:
    assert finding() == (FindingKind.TRANSFER_WITHOUT_INTENT, None)


def test_an_own_payment_that_was_refused_as_too_little() -> None:
    refused = rejected(ErrorCode.INSUFFICIENT_AMOUNT, amount_raw=150)
    assert finding(refused) == (FindingKind.UNDERPAYMENT, 1)


def test_too_little_for_what_it_was_submitted_for_may_be_right_for_another_intent() -> None:
    assert pays(2, rejected(ErrorCode.INSUFFICIENT_AMOUNT, amount_raw=150), intent(2))


def test_a_payment_that_was_found_after_its_attempt_had_failed() -> None:
    given_up = rejected(ErrorCode.RECEIPT_NOT_FOUND, status=AttemptStatus.FAILED)
    assert finding(given_up) == (FindingKind.LATE_PAYMENT, 1)


@pytest.mark.parametrize(("ago", "is_named"), [(RECENT - SECOND, True), (RECENT, False)])
def test_an_old_intent_of_another_amount_says_nothing(ago: timedelta, is_named: bool) -> None:
    old = expired(amount_raw=99, created_at=MINED - ago - TTL, expires_at=MINED - ago)
    wanted = (FindingKind.WRONG_AMOUNT, 1) if is_named else (FindingKind.TRANSFER_WITHOUT_INTENT, None)
    assert finding(old) == wanted


def test_a_stranger_who_submitted_it_is_named() -> None:
    stranger = rejected(ErrorCode.SENDER_MISMATCH, from_address=MALLORY)
    assert finding(stranger) == (FindingKind.WRONG_SENDER, 1)


def test_a_stranger_whose_submission_is_not_judged_yet_is_waited_for() -> None:
    assert decision(pending(tx_hash=HASH, from_address=MALLORY)) == Undecided(attempt_id=UUID(int=1))


def test_a_strangers_submission_keeps_no_payer_from_being_credited() -> None:
    assert pays(2, pending(1, tx_hash=HASH, from_address=MALLORY), intent(2))
    assert pays(2, rejected(ErrorCode.SENDER_MISMATCH, from_address=MALLORY), intent(2))


def test_the_senders_own_intents_say_more_than_a_stranger() -> None:
    stranger = rejected(ErrorCode.SENDER_MISMATCH, 1, from_address=MALLORY)
    assert finding(stranger, intent(2, amount_raw=99)) == (FindingKind.WRONG_AMOUNT, 2)


def test_a_finding_says_all_that_an_operator_needs() -> None:
    decided = decision(
        expired(expires_at=MINED - SECOND), of=transfer(value_raw=100), senders_account_id="account-of-alice"
    )
    assert isinstance(decided, Finding)
    assert decided.key == f"transfer:{CHAIN_ID}:{HASH}:0"
    assert decided.billing_account_id == "account-of-alice"
    assert decided.sender == ALICE
    assert decided.value_raw == 100
    assert decided.details["minedAt"] == MINED.isoformat()
    for said in (f"0.0001 USDC from {ALICE}", "2026-01-02 03:04:05 UTC", str(UUID(int=1)), "2026-01-02 03:04:04 UTC"):
        assert said in decided.detail


@pytest.mark.parametrize(
    ("value_raw", "shown"),
    [
        (1, "0.000001"),
        (1_000_000, "1.00"),
        (100_000_000, "100.00"),
        (12_340_000, "12.34"),
        (10**60 + 1, "1" + ",000" * 18 + ".000001"),
    ],
)
def test_amounts_are_shown_exactly(value_raw: int, shown: str) -> None:
    decided = decision(of=transfer(value_raw=value_raw))
    assert isinstance(decided, Finding)
    assert decided.detail.startswith(f"{shown} USDC from ")


# Who cannot be a payer ----------------------------------------------------------------------------------------


def test_what_the_treasury_pays_itself_is_no_income_whichever_attempt_claims_it() -> None:
    around: dict[str, Any] = {"sender_kind": NonPayer.TREASURY}
    assert isinstance(decision(**around), NoIncome)
    assert isinstance(decision(intent(), **around), NoIncome)
    assert isinstance(decision(rejected(ErrorCode.SENDER_MISMATCH, payable_until=MINED + SECOND), **around), NoIncome)


@pytest.mark.parametrize("kind", [NonPayer.NOBODY, NonPayer.TOKEN])
def test_what_has_no_payer_is_an_operators_and_pays_no_attempt(kind: NonPayer) -> None:
    assert finding(intent(), sender_kind=kind) == (FindingKind.TRANSFER_WITHOUT_INTENT, None)
    decided = decision(intent(), sender_kind=kind)
    assert isinstance(decided, Finding)
    assert decided.details["senderKind"] == kind.value


@pytest.mark.parametrize(("first_block", "is_paid"), [(None, True), (99, True), (100, True), (101, False)])
def test_what_was_mined_before_the_first_block_pays_nothing(first_block: int | None, is_paid: bool) -> None:
    decided = decision(intent(), first_block=first_block)
    assert isinstance(decided, Pays if is_paid else NoIncome)


def test_what_has_paid_stays_paid_when_the_first_block_is_moved() -> None:
    assert decision(paid=(paid(1),), first_block=101) == AlreadyPaid(attempt_id=UUID(int=1))


# A wrong hash was submitted -------------------------------------------------------------------------------------------

REFUSALS = [
    (AttemptStatus.REJECTED, code)
    for code in ErrorCode
    if code not in {ErrorCode.INTENT_EXPIRED, ErrorCode.TX_REVERTED, ErrorCode.RECEIPT_NOT_FOUND}
] + [(AttemptStatus.FAILED, ErrorCode.TX_REVERTED), (AttemptStatus.FAILED, ErrorCode.RECEIPT_NOT_FOUND)]


def refused_for_another(number: int = 1, **changes: Any) -> Candidate:
    """Refused for its submitted hash, of another transaction; it could have been paid for a second more."""
    values = {"tx_hash": OTHER_HASH, "payable_until": MINED + SECOND}
    return rejected(ErrorCode.SENDER_MISMATCH, number, **{**values, **changes})


def renews(number: int, *candidates: Candidate, **options: Any) -> bool:
    decided = decision(*candidates, **options)
    return isinstance(decided, Renews) and decided.attempt.attempt_id == UUID(int=number)


@pytest.mark.parametrize(("status", "code"), REFUSALS)
def test_an_exact_payment_in_time_of_an_attempt_that_was_refused_is_credited(
    status: AttemptStatus, code: ErrorCode
) -> None:
    assert renews(1, refused_for_another(status=status, error_code=code))


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"payable_until": MINED}, FindingKind.LATE_PAYMENT),
        ({"payable_until": None}, FindingKind.TRANSFER_WITHOUT_INTENT),
        ({"amount_raw": 99}, FindingKind.WRONG_AMOUNT),
        ({"from_address": MALLORY}, FindingKind.TRANSFER_WITHOUT_INTENT),
        ({"created_at": MINED + CLOCK_SLACK + SECOND}, FindingKind.TRANSFER_WITHOUT_INTENT),
        ({"is_renewed": True}, FindingKind.TRANSFER_WITHOUT_INTENT),
        # Refused for this very transaction.
        ({"tx_hash": HASH}, FindingKind.TRANSFER_WITHOUT_INTENT),
    ],
)
def test_one_that_is_not_exact_or_not_in_time_or_paid_already_is_an_operators(
    changes: dict[str, Any], kind: FindingKind
) -> None:
    assert finding(refused_for_another(**changes))[0] is kind


def test_nothing_else_fits_better_than_a_refused_attempt_of_the_amount() -> None:
    older: dict[str, Any] = {"created_at": MINED - timedelta(minutes=9)}
    assert pays(2, refused_for_another(1, **older), intent(2))
    assert pays(2, refused_for_another(1, **older), pending(2))
    assert renews(1, refused_for_another(1, **older), refused_for_another(2))
    assert renews(2, refused_for_another(1, **older, is_renewed=True), refused_for_another(2))


def test_one_that_failed_before_its_transaction_was_found_is_credited_by_it() -> None:
    failed: dict[str, Any] = {"status": AttemptStatus.FAILED, "error_code": ErrorCode.RECEIPT_NOT_FOUND}
    assert renews(1, refused_for_another(**failed, tx_hash=HASH))


def test_an_attempt_that_is_about_to_be_refused_for_a_strangers_transaction_is_waited_for() -> None:
    waits = pending(hash_is_observed=True, hash_is_own_payment=False, payable_until=MINED + SECOND)
    assert decision(waits) == Undecided(attempt_id=UUID(int=1))


def test_an_attempt_that_did_not_take_it_in_place_of_another_is_passed_over() -> None:
    around = MatchContext(candidates=(refused_for_another(1), refused_for_another(2)))
    decided = decide(CHAIN_ID, transfer(), around, refused={UUID(int=1)})
    assert isinstance(decided, Renews)
    assert decided.attempt.attempt_id == UUID(int=2)


@pytest.mark.parametrize(
    "known",
    [
        refused_for_another(1, is_renewed=True),
        refused_for_another(1, tx_hash=HASH),
        pending(1, hash_is_observed=True),
        pending(1, amount_raw=99),
    ],
)
def test_a_finding_names_what_is_known_of_its_sender(known: Candidate) -> None:
    decided = decision(known)
    assert isinstance(decided, Finding)
    assert str(known.attempt_id) in decided.detail
    [named] = decided.details["sendersAttempts"]
    assert named["attemptId"] == str(known.attempt_id)
    assert (named["status"], named["txHash"]) == (known.status.value, known.tx_hash)
    assert (named["amountRaw"], named["createdAt"]) == (str(known.amount_raw), known.created_at.isoformat())


def test_one_attempt_is_made_in_the_place_of_another() -> None:
    assert renewal_id(UUID(int=1)) == renewal_id(UUID(int=1))
    assert len({renewal_id(UUID(int=number)) for number in range(100)}) == 100


# Whatever happens ----------------------------------------------------------------------------------------------------

AMOUNTS = st.sampled_from([100, 200])
MOMENTS = st.integers(min_value=-60, max_value=60).map(lambda minutes: MINED + timedelta(minutes=minutes))


@st.composite
def towns(draw: st.DrawFn) -> tuple[list[Candidate], list[Transfer]]:
    """Attempts of one sender (and a stranger) in any state, and their transfers in the chain's order."""
    attempts = []
    for number in range(draw(st.integers(0, 6))):
        made = draw(MOMENTS)
        common = {
            "amount_raw": draw(AMOUNTS),
            "created_at": made,
            "from_address": draw(st.sampled_from([ALICE, ALICE, MALLORY])),
        }
        match draw(st.sampled_from(["open", "expired", "pending", "refused"])):
            case "open":
                attempts.append(intent(number, expires_at=made + TTL, **common))
            case "expired":
                attempts.append(expired(number, expires_at=made + TTL, **common))
            case "refused":
                wrong = f"0x{number + 500:064x}"
                attempts.append(refused_for_another(number, tx_hash=wrong, payable_until=made + TTL, **common))
            case _:
                attempts.append(pending(number, tx_hash=f"0x{number + 500:064x}", **common))
    moments = sorted(draw(st.lists(MOMENTS, max_size=6)))
    transfers = [
        transfer(tx_hash=f"0x{number:064x}", block_number=100 + number, block_time=moment, value_raw=draw(AMOUNTS))
        for number, moment in enumerate(moments)
    ]
    return attempts, transfers


@given(towns())
def test_each_transfer_pays_one_attempt_exactly_in_time_and_the_oldest(
    two_tenants: tuple[list[Candidate], list[Transfer]],
) -> None:
    attempts, transfers = two_tenants
    renewed: list[UUID] = []
    for one in transfers:
        around = MatchContext(candidates=tuple(attempts), siblings=(one,))
        decided = decide(CHAIN_ID, one, around)
        exact = [
            candidate
            for candidate in attempts
            if candidate.from_address == ALICE
            and candidate.amount_raw == one.value_raw
            and candidate.created_at <= one.block_time + CLOCK_SLACK
        ]
        if isinstance(decided, Renews):
            chosen = decided.attempt
            assert chosen in exact
            assert chosen.ended_without_payment
            assert chosen.payable_until is not None
            assert one.block_time < chosen.payable_until
            assert not any(candidate.status is AttemptStatus.PENDING_UNVERIFIED for candidate in exact)
            renewed.append(chosen.attempt_id)
            attempts = [
                attempt.model_copy(update={"is_renewed": True}) if attempt.attempt_id == chosen.attempt_id else attempt
                for attempt in attempts
            ]
            continue
        if not isinstance(decided, Pays):
            assert isinstance(decided, Finding)
            assert not any(
                candidate.ended_without_payment
                and not candidate.is_renewed
                and candidate.payable_until is not None
                and one.block_time < candidate.payable_until
                for candidate in exact
            ), "a refused attempt that was paid in time is left to an operator"
            may_be_paid = [
                candidate
                for candidate in attempts
                if candidate.from_address == ALICE
                and candidate.amount_raw == one.value_raw
                and candidate.created_at <= one.block_time
                and candidate.tx_hash is None
                and candidate.expires_at is not None
                and candidate.expires_at > one.block_time
            ]
            assert not may_be_paid, "an intent that was paid in time is left to an operator"
            continue
        chosen = decided.attempt
        assert chosen.from_address == ALICE
        assert chosen.amount_raw == one.value_raw
        assert chosen.created_at <= one.block_time + CLOCK_SLACK
        if chosen.expires_at is not None:
            assert one.block_time < chosen.expires_at
            older = [
                candidate
                for candidate in attempts
                if candidate.status is chosen.status
                and candidate.from_address == ALICE
                and candidate.amount_raw == one.value_raw
                and candidate.created_at < chosen.created_at
                and candidate.expires_at is not None
                and candidate.expires_at > one.block_time
            ]
            assert not older, "an older one was paid in time as well"
        # It is submitted, confirmed and credited before the next transfer is decided about.
        credited = chosen.model_copy(
            update={"status": AttemptStatus.CREDITED, "tx_hash": one.tx_hash, "expires_at": None, "error_code": None}
        )
        attempts = [credited if attempt.attempt_id == chosen.attempt_id else attempt for attempt in attempts]
    paid_with = [attempt.tx_hash for attempt in attempts if attempt.status is AttemptStatus.CREDITED]
    assert len(paid_with) == len(set(paid_with)), "one transfer has paid two attempts"
    assert len(renewed) == len(set(renewed)), "two attempts were made in the place of one"


# By signature --------------------------------------------------------------------------------------------------------

NONCE, OTHER_NONCE = "0x" + "44" * 32, "0x" + "55" * 32


def signed(number: int = 1, **changes: Any) -> Candidate:
    return intent(number, **{"nonce": NONCE, **changes})


@pytest.mark.parametrize("candidate", [signed(), signed(expires_at=MINED - TTL), pending(nonce=NONCE)])
def test_a_claimed_authorization_pays_its_attempt_from_any_transaction_and_at_any_time(candidate: Candidate) -> None:
    older = intent(2, created_at=MINED - timedelta(minutes=20))
    assert decision(older, candidate, nonce=NONCE) == Pays(attempt=candidate)


def test_the_transaction_that_such_an_attempt_waits_for_is_left_to_its_workflow() -> None:
    waiting = pending(nonce=NONCE, tx_hash=HASH)
    assert decision(waiting, nonce=NONCE) == Undecided(attempt_id=waiting.attempt_id)


@pytest.mark.parametrize("nonce", [None, OTHER_NONCE])
def test_a_transfer_without_that_authorization_does_not_pay_it_by_sender_and_amount(nonce: str | None) -> None:
    found = decision(signed(), pending(2, nonce=NONCE, tx_hash=HASH), nonce=nonce)
    assert isinstance(found, Finding)
    assert decision(signed(), intent(2), nonce=nonce) == Pays(attempt=intent(2))


def test_another_payers_nonce_of_the_same_value_pays_nothing() -> None:
    assert isinstance(decision(signed(from_address=MALLORY), nonce=NONCE), Finding)


def test_an_authorization_of_an_attempt_that_has_ended_is_for_an_operator() -> None:
    ended = signed(status=AttemptStatus.FAILED, error_code=ErrorCode.AUTHORIZATION_EXPIRED, expires_at=None)
    assert isinstance(decision(ended, nonce=NONCE), Finding)
