"""What must be true of the chain before money is credited: which answers of which nodes decide it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chain.preconditions import LIFETIME_SECONDS, RETRY_SECONDS, SettlementPreconditions, State, TokenAnswer, evaluate
from chain.quorum import NoResponse
from domain.errors import PreconditionNotMet, StartupCheckFailed
from tests.chain.anvil import TREASURY, Clock, Node, word
from tests.chain.conftest import FaultyNodes, Readers
from tests.chain.faulty_node import FaultyNode, Refusal
from tests.chain.test_reader import STRING, answering

TOKEN = "0x" + "70" * 20
DECIMALS, SYMBOL, BALANCE_OF = "313ce567", "95d89b41", "70a08231"
USDC = {DECIMALS: word(6), SYMBOL: STRING, BALANCE_OF: word(5)}


def answer(endpoint: str, **changes: Any) -> TokenAnswer:
    """USDC, as a node reports it."""
    values: dict[str, Any] = {"chain_id": 1, "head_number": 10, "has_code": True, "decimals": 6}
    return TokenAnswer(endpoint, **values | {"symbol": "USDC", "treasury_balance_raw": 0} | changes)


def silent(endpoint: str) -> NoResponse:
    """A node that does not answer."""
    return NoResponse(endpoint, "no answer within 5 s")


NOT_USDC: dict[str, dict[str, Any]] = {
    "no contract at": {"has_code": False, "decimals": None, "treasury_balance_raw": None},
    "18 decimals": {"decimals": 18},
    "no decimals()": {"decimals": None},
    "0 decimals": {"decimals": 0},
    "5 decimals": {"decimals": 5},
    "7 decimals": {"decimals": 7},
    "no balanceOf()": {"treasury_balance_raw": None},
}


@pytest.mark.parametrize("what", NOT_USDC)
def test_a_token_that_most_nodes_say_is_not_usdc_is_refused_by_the_name_of_its_setting(what: str) -> None:
    answers = [answer("a"), answer("b", **NOT_USDC[what]), answer("c", **NOT_USDC[what])]
    found = evaluate(1, TOKEN, TREASURY, answers, [])
    assert found.state is State.BROKEN
    assert found.message.startswith("USDC_TOKEN_ADDRESS is invalid: ")
    assert what in found.message
    assert "\n" not in found.message
    assert [one.partition(":")[0] for one in found.dissenters] == ["a"]


@pytest.mark.parametrize(
    ("usdc", "named"),
    [(TOKEN.upper().replace("X", "x"), "USDC_TOKEN_ADDRESS is"), ("0x" + "71" * 20, "the token of a payment method")],
)
async def test_a_token_of_a_payment_method_is_not_refused_in_the_settings_name(usdc: str, named: str) -> None:
    class Nodes:
        chain_id = 1

        async def ask_about_token(self, token: str, treasury: str) -> tuple[list[TokenAnswer], list[NoResponse]]:
            return [answer("a", decimals=18)], []

    found = await SettlementPreconditions(Nodes(), TREASURY, usdc=usdc).check(TOKEN)
    assert found.state is State.BROKEN
    assert found.message.startswith(named)


@pytest.mark.parametrize(
    ("answers", "silences", "state"),
    [
        ([answer("a")], [], State.MET),
        ([answer("a"), answer("b")], [silent("c")], State.MET),
        ([answer("a"), answer("b"), answer("c", decimals=18)], [], State.MET),
        ([answer("a"), answer("b", decimals=18)], [], State.UNKNOWN),
        ([answer("a"), answer("b", decimals=18), answer("c", decimals=8)], [], State.UNKNOWN),
        ([answer("a", decimals=18)], [silent("b"), silent("c")], State.BROKEN),
        ([], [silent("a")], State.UNKNOWN),
        ([answer("a", chain_id=2)], [silent("b")], State.BROKEN),
        ([answer("a"), answer("b", chain_id=2)], [], State.MET),
        ([answer("a"), answer("b", chain_id=2), answer("c", chain_id=3)], [], State.BROKEN),
        ([answer("a"), answer("b", decimals=18), answer("c", chain_id=2)], [], State.UNKNOWN),
    ],
)
def test_a_claim_counts_when_it_outnumbers_all_others(
    answers: list[TokenAnswer], silences: list[NoResponse], state: State
) -> None:
    for order in (answers, answers[::-1]):
        assert evaluate(1, TOKEN, TREASURY, order, silences).state is state


def test_nodes_of_another_chain_are_a_fault_of_the_setting_of_the_chain() -> None:
    found = evaluate(1, TOKEN, TREASURY, [answer("a", chain_id=2), answer("b", chain_id=2)], [])
    assert found.message.startswith("CHAIN_ID is 1, but ")
    assert "CHAIN_RPC_URLS" in found.message


@pytest.mark.parametrize("treasury", [TOKEN, "0x" + "0" * 40, f"0x{1:040x}", f"0x{0x100:040x}", f"0x{0xDEAD:040x}"])
def test_a_treasury_without_a_possible_owner_is_refused(treasury: str) -> None:
    found = evaluate(1, TOKEN, treasury, [answer("a")], [])
    assert found.state is State.BROKEN
    assert found.message.startswith("TREASURY_ADDRESS is invalid: ")
    assert evaluate(1, TOKEN, f"0x{0x10000:040x}", [answer("a")], []).state is State.MET


def test_an_answer_is_as_new_as_the_head_that_most_of_those_who_give_it_have_reached() -> None:
    heads = [answer("a", head_number=9), answer("b", head_number=12), answer("c", head_number=1_000)]
    assert evaluate(1, TOKEN, TREASURY, heads, []).head_number == 12


# -- real nodes -------------------------------------------------------------------------------------------------------


async def _put(node: Node, **changes: bytes) -> None:
    await node.call("anvil_setCode", TOKEN, answering(USDC | changes))


def lie_about_decimals(node: FaultyNode, decimals: int) -> None:
    """Another answer to `decimals()`."""

    def lie(method: str, params: list[Any], result: Any) -> Any:
        asked = method == "eth_call" and params[0].get("data") == f"0x{DECIMALS}"
        return "0x" + word(decimals).hex() if asked else result

    node.answers(lie)


async def test_a_token_that_is_upgraded_is_noticed_by_the_next_payment_of_a_later_block(
    node: Node, readers: Readers, clock: Clock
) -> None:
    await _put(node)
    preconditions = SettlementPreconditions((await readers(node)).contracts, TREASURY, clock=clock)
    head = int(await node.call("eth_blockNumber"), 16)
    await preconditions.require(TOKEN, at_block=head)
    await _put(node, **{DECIMALS: word(18)})
    await preconditions.require(TOKEN, at_block=head)  # as of that block it was USDC
    await node.call("anvil_mine", "0x1")
    with pytest.raises(PreconditionNotMet, match="18 decimals") as refused:
        await preconditions.require(TOKEN, at_block=head + 1)
    assert refused.value.is_broken
    await _put(node)
    await preconditions.require(TOKEN, at_block=head + 1)


async def test_a_token_that_is_upgraded_between_payments_is_noticed_in_time(
    node: Node, readers: Readers, clock: Clock
) -> None:
    await _put(node)
    preconditions = SettlementPreconditions((await readers(node)).contracts, TREASURY, clock=clock)
    await preconditions.require_known(TOKEN)
    await _put(node, **{DECIMALS: word(18)})
    await preconditions.require_known(TOKEN)
    clock.now += LIFETIME_SECONDS
    with pytest.raises(PreconditionNotMet):
        await preconditions.require_known(TOKEN)
    await _put(node)
    clock.now += RETRY_SECONDS
    await preconditions.require_known(TOKEN)


async def test_one_question_serves_all_payments_of_the_blocks_up_to_its_head(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    await _put(node)
    (counted,) = await faulty_nodes(1)
    preconditions = SettlementPreconditions((await readers(counted)).contracts, TREASURY, clock=clock)
    await node.call("anvil_mine", "0xa")
    await asyncio.gather(*(preconditions.require(TOKEN, at_block=number) for number in range(10)))
    asked = len(counted.requests)
    assert asked <= 2, "one under way when the others came, and the one after it"
    await preconditions.require(TOKEN, at_block=10)
    assert len(counted.requests) == asked


async def test_one_lying_node_of_three_neither_stops_nor_starts_anything(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    await _put(node)
    nodes = await faulty_nodes(3)
    preconditions = SettlementPreconditions((await readers(*nodes)).contracts, TREASURY)
    lie_about_decimals(nodes[0], 18)
    found = await preconditions.require_at_start(TOKEN)
    assert found.state is State.MET
    assert len(found.dissenters) == 1
    await _put(node, **{DECIMALS: word(18)})
    nodes[0].heal()
    lie_about_decimals(nodes[0], 6)
    with pytest.raises(StartupCheckFailed, match="18 decimals"):
        await preconditions.require_at_start(TOKEN)


async def test_two_nodes_that_contradict_each_other_are_waited_for(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    await _put(node)
    nodes = await faulty_nodes(2)
    preconditions = SettlementPreconditions((await readers(*nodes)).contracts, TREASURY)
    lie_about_decimals(nodes[1], 18)
    assert (await preconditions.require_at_start(TOKEN)).state is State.UNKNOWN
    with pytest.raises(PreconditionNotMet, match="contradict") as refused:
        await preconditions.require(TOKEN, at_block=0)
    assert not refused.value.is_broken
    with pytest.raises(PreconditionNotMet):
        await preconditions.require_known(TOKEN)


async def test_a_node_that_cannot_run_calls_has_no_say(node: Node, faulty_nodes: FaultyNodes, readers: Readers) -> None:
    await _put(node)
    lame, sound = await faulty_nodes(2)
    lame.answers(lambda method, _, result: Refusal("method not found", -32601) if method == "eth_call" else result)
    assert (
        await SettlementPreconditions((await readers(lame, sound)).contracts, TREASURY).check(TOKEN)
    ).state is State.MET
    found = await SettlementPreconditions((await readers(lame)).contracts, TREASURY).check(TOKEN)
    assert found.state is State.UNKNOWN, "an error of the node's own is no word of the token's"


async def test_a_node_far_behind_has_no_say(node: Node, faulty_nodes: FaultyNodes, readers: Readers) -> None:
    await _put(node)
    await node.call("anvil_mine", "0x64")
    late, sound = await faulty_nodes(2)
    late.shift_head(-90)
    late.fixed("eth_getCode", "0x")
    assert (
        await SettlementPreconditions((await readers(late, sound)).contracts, TREASURY).check(TOKEN)
    ).state is State.MET


async def test_silent_nodes_make_a_process_wait_and_never_pass(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock
) -> None:
    await _put(node)
    (gone,) = await faulty_nodes(1)
    preconditions = SettlementPreconditions((await readers(gone)).contracts, TREASURY, clock=clock)
    gone.status(500)
    assert (await preconditions.require_at_start(TOKEN)).state is State.UNKNOWN
    for ask in (preconditions.require(TOKEN, at_block=0), preconditions.require_known(TOKEN)):
        with pytest.raises(PreconditionNotMet):
            await ask
    gone.heal()
    clock.now += LIFETIME_SECONDS
    await preconditions.require_known(TOKEN)
    gone.status(500)
    clock.now += LIFETIME_SECONDS
    await preconditions.require_known(TOKEN)  # what readiness says then is that the nodes do not answer
    with pytest.raises(PreconditionNotMet):
        await preconditions.require(TOKEN, at_block=0)


async def test_a_check_that_may_be_older_than_the_question_is_not_its_answer(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers
) -> None:
    await _put(node)
    (slow,) = await faulty_nodes(1)
    preconditions = SettlementPreconditions((await readers(slow)).contracts, TREASURY)
    slow.hang()
    before = asyncio.create_task(preconditions.check(TOKEN))
    await slow.received(1)
    after = asyncio.create_task(preconditions.check(TOKEN))
    await asyncio.sleep(0)
    slow.heal()
    assert (await before).state is State.UNKNOWN
    assert (await after).state is State.MET


async def test_nodes_that_hang_end_the_question_in_time(
    faulty_nodes: FaultyNodes, readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mute,) = await faulty_nodes(1)
    mute.hang()
    monkeypatch.setattr("chain.preconditions.CHECK_SECONDS_MAX", 0.1)
    found = await SettlementPreconditions((await readers(mute)).contracts, TREASURY).check(TOKEN)
    assert (found.state, found.is_answered) == (State.UNKNOWN, False)
    assert "in time" in found.message
    mute.heal()


async def test_answers_are_kept_of_so_many_tokens_and_no_more(
    node: Node, faulty_nodes: FaultyNodes, readers: Readers, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open intents name the tokens: their number is not the settings' to say."""
    await _put(node)
    (counted,) = await faulty_nodes(1)
    preconditions = SettlementPreconditions((await readers(counted)).contracts, TREASURY, clock=clock)
    monkeypatch.setattr("chain.preconditions.TOKENS_MAX", 1)
    await preconditions.known(TOKEN)
    await preconditions.known("0x" + "71" * 20)
    asked = len(counted.requests)
    await preconditions.known(TOKEN)
    assert len(counted.requests) > asked
