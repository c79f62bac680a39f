"""Which coin a transaction moves, by the calls of its trace."""

from __future__ import annotations

from domain.chain import DepositLane, DepositScope, TransferScope
from domain.coin import COIN_PLACES_FROM, NATIVE_COIN, CoinMovement, Frame, coin_movements

PAYER, EXCHANGE, PAYEE, OTHER = ("0x" + digit * 40 for digit in "abcd")


def frame(*path: int, to: str = PAYEE, value_raw: int = 1, moves: bool = True, failed: bool = False) -> Frame:
    """A call of the exchange's contract, at a place in the trace."""
    sender = PAYER if not path else EXCHANGE
    return Frame(tuple(path), sender, to, value_raw, moves=moves, failed=failed)


def moved(*frames: Frame) -> list[tuple[int, str, int]]:
    """Place, recipient and value of each movement."""
    return [(one.place - COIN_PLACES_FROM, one.recipient, one.value_raw) for one in coin_movements(frames)]


def test_every_call_that_gives_value_is_a_movement_in_the_order_of_the_calls() -> None:
    calls = [frame(1, value_raw=3), frame(0, 0, value_raw=2), frame(0, to=OTHER, value_raw=7), frame(to=EXCHANGE)]
    assert moved(*calls) == [(0, EXCHANGE, 1), (1, OTHER, 7), (2, PAYEE, 2), (3, PAYEE, 3)]
    assert coin_movements([frame()]) == [CoinMovement(COIN_PLACES_FROM, PAYER, PAYEE, 1)]


def test_a_call_of_a_failed_call_has_moved_nothing_however_deep_and_although_it_succeeded() -> None:
    failing = frame(0, to=OTHER, failed=True)
    assert moved(frame(to=EXCHANGE), failing, frame(0, 0), frame(0, 0, 0), frame(1, value_raw=5)) == [
        (0, EXCHANGE, 1),
        (1, PAYEE, 5),
    ]
    assert moved(frame(to=EXCHANGE, failed=True), frame(0)) == []


def test_borrowed_code_calls_without_value_and_payments_to_oneself_move_nothing() -> None:
    assert moved(frame(to=EXCHANGE, value_raw=0), frame(0, moves=False), frame(1, value_raw=0)) == []
    assert moved(Frame((), PAYEE, PAYEE, 5)) == []


def test_places_count_movements_only_so_that_calls_which_a_client_leaves_out_shift_none() -> None:
    all_calls = [frame(to=EXCHANGE, value_raw=0), frame(0, to=OTHER, value_raw=0), frame(1, failed=True), frame(2)]
    assert moved(*all_calls) == moved(all_calls[0], all_calls[3]) == [(0, PAYEE, 1)]


def test_the_coins_lane_selects_what_comes_to_its_addresses_and_what_these_send_to_a_treasury() -> None:
    lane = DepositScope.of(1, DepositLane.COIN, [NATIVE_COIN], [PAYEE]).model_copy(update={"treasuries": (OTHER,)})
    coin = NATIVE_COIN.lower()
    assert lane.selects(coin, PAYER, PAYEE)
    assert lane.selects(coin, PAYEE, OTHER)
    assert not lane.selects(coin, PAYER, OTHER), "what others send to the treasury is no deposit and no sweep"
    assert not lane.selects("0x" + "70" * 20, PAYEE, OTHER)
    assert not lane.selects("0x" + "70" * 20, PAYER, PAYEE)


def test_a_scope_is_of_the_coin_or_of_tokens() -> None:
    assert DepositScope.of(1, DepositLane.COIN, [NATIVE_COIN], [PAYEE]).is_of_coin
    assert TransferScope(chain_id=1, token=NATIVE_COIN, treasury=PAYEE).is_of_coin
    assert not TransferScope(chain_id=1, token=OTHER, treasury=PAYEE).is_of_coin
    assert not DepositScope.of(1, DepositLane.BUSY, [OTHER], [PAYEE]).is_of_coin
