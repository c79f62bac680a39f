"""The weighing of several nodes' answers: both sides of each rule."""

from __future__ import annotations

import pytest

from chain.quorum import Abstention, Agreed, Disagreed, NoResponse, Reading, Vote, decide, is_included, opinion
from domain.chain import BlockHeader, ChainView, Receipt, TransferLog

TX = "0x" + "11" * 32
BLOCK = "0x" + "bb" * 32
FORK = "0x" + "cc" * 32
ADDRESS = "0x" + "a1" * 20


def log(value_raw: int = 100, log_index: int = 0) -> TransferLog:
    return TransferLog(
        log_index=log_index, emitter=ADDRESS, from_address=ADDRESS, to_address=ADDRESS, value_raw=value_raw
    )


def block(block_hash: str = BLOCK, *, number: int = 10, lists_it: bool = True) -> BlockHeader:
    return BlockHeader(number=number, block_hash=block_hash, tx_hashes=frozenset({TX} if lists_it else set()))


def paid(
    endpoint: str = "a",
    *,
    head: int = 20,
    number: int = 10,
    block_hash: str = BLOCK,
    succeeded: bool = True,
    transfers: tuple[TransferLog, ...] = (log(),),
    stalled: bool = False,
) -> Reading:
    """The transaction is in that block."""
    canonical = block(block_hash, number=number)
    receipt = Receipt(tx_hash=TX, succeeded=succeeded, block_number=number, block_hash=block_hash, transfers=transfers)
    view = ChainView(chain_id=1, endpoint=endpoint, head_number=head, receipt=receipt, canonical=canonical)
    return Reading(view, canonical, stalled)


def unknown(endpoint: str = "b", *, head: int = 20, asked: BlockHeader | None = None, stalled: bool = False) -> Reading:
    """No receipt; `asked` is the block at the candidate's height."""
    return Reading(ChainView(chain_id=1, endpoint=endpoint, head_number=head), asked, stalled)


def unconfirmed(endpoint: str = "b", *, asked: BlockHeader | None) -> Reading:
    """A receipt of a block that this node's own chain does not have."""
    view = paid(endpoint).view.model_copy(update={"canonical": asked})
    return Reading(view, asked)


CANDIDATE = paid("a").view

AGREES = [
    pytest.param(paid("b"), id="the same block and result"),
    pytest.param(paid("b", head=10), id="the same, the block just seen"),
    pytest.param(paid("b", head=5000), id="the same, far ahead"),
]
ABSTAINS = [
    pytest.param(unknown(head=9), id="its head is one below the block"),
    pytest.param(unknown(head=0), id="it has nothing yet"),
    pytest.param(unknown(head=10, asked=block()), id="it has the block that lists it, the receipt not yet"),
    pytest.param(Reading(paid("b", head=9).view), id="a receipt of a block above its own head"),
]
DISAGREES = [
    pytest.param(paid("b", block_hash=FORK), id="another block at that height"),
    pytest.param(paid("b", number=11), id="another height"),
    pytest.param(paid("b", succeeded=False), id="reverted"),
    pytest.param(paid("b", transfers=()), id="no transfers"),
    pytest.param(paid("b", transfers=(log(101),)), id="another value"),
    pytest.param(paid("b", transfers=(log(log_index=1),)), id="another log index"),
    pytest.param(paid("b", transfers=(log(), log(log_index=1))), id="one transfer more"),
    pytest.param(unknown(head=10, asked=block(lists_it=False)), id="the same block, which does not list it"),
    pytest.param(unknown(head=10, asked=block(FORK)), id="unknown, and another block at that height"),
    pytest.param(unknown(head=10, asked=None), id="a head that reaches the block, and no block"),
    pytest.param(unconfirmed(asked=block(FORK)), id="a receipt of a block that its chain has replaced"),
    pytest.param(unconfirmed(asked=block(lists_it=False)), id="a receipt of a block that does not list it"),
]


@pytest.mark.parametrize("reading", AGREES)
def test_who_shows_the_same_block_and_result_agrees(reading: Reading) -> None:
    vote, own = opinion(CANDIDATE, reading), opinion(CANDIDATE, Reading(CANDIDATE))
    assert isinstance(vote, Vote)
    assert isinstance(own, Vote)
    assert vote.claim == own.claim


@pytest.mark.parametrize("reading", ABSTAINS)
def test_who_cannot_know_has_no_say(reading: Reading) -> None:
    assert isinstance(opinion(CANDIDATE, reading), Abstention)
    outcome = decide(CANDIDATE, [reading])
    assert isinstance(outcome, Agreed)
    assert outcome.votes == 1


@pytest.mark.parametrize("reading", DISAGREES)
def test_who_shows_anything_else_disagrees(reading: Reading) -> None:
    outcome = decide(CANDIDATE, [reading])
    assert isinstance(outcome, Disagreed)
    assert "a: in block 10 (0xbbbbbbbb…)" in outcome.message and "b: " in outcome.message
    assert "\n" not in outcome.message


def test_the_order_of_the_logs_carries_no_meaning() -> None:
    first, second = log(), log(log_index=1)
    outcome = decide(paid("a", transfers=(first, second)).view, [paid("b", transfers=(second, first))])
    assert isinstance(outcome, Agreed)


def test_a_silent_endpoint_neither_agrees_nor_disagrees() -> None:
    outcome = decide(CANDIDATE, [NoResponse("b", "no answer within 5 s")])
    assert isinstance(outcome, Agreed)
    assert (outcome.view, outcome.votes) == (CANDIDATE, 1)


FORKED = paid("x", block_hash=FORK)
UNSEEN = unknown("x", asked=block(FORK))


def named(reading: Reading, endpoint: str) -> Reading:
    return Reading(reading.view.model_copy(update={"endpoint": endpoint}), reading.asked, reading.stalled)


@pytest.mark.parametrize(
    ("others", "winner"),
    [
        ([paid("b"), FORKED], "a"),
        ([FORKED, paid("b")], "a"),
        ([FORKED, named(FORKED, "y")], "x"),
        ([UNSEEN, named(UNSEEN, "y")], "x"),
        ([UNSEEN, FORKED], None),
        ([paid("b"), FORKED, named(FORKED, "y")], None),
        ([paid("b"), paid("c"), FORKED, UNSEEN], "a"),
        ([paid("b"), FORKED, UNSEEN], None),
        ([FORKED, NoResponse("y", "down"), NoResponse("z", "down")], None),
        ([FORKED, named(FORKED, "y"), named(FORKED, "z"), paid("b")], "x"),
        ([unconfirmed("y", asked=block(FORK)), unconfirmed("z", asked=block(FORK))], None),
    ],
)
def test_a_claim_wins_when_it_strictly_outnumbers_all_others(
    others: list[Reading | NoResponse], winner: str | None
) -> None:
    outcome = decide(CANDIDATE, others)
    assert (outcome.view.endpoint if isinstance(outcome, Agreed) else None) == winner


def test_the_outvoted_are_named() -> None:
    outcome = decide(CANDIDATE, [FORKED, named(FORKED, "y")])
    assert isinstance(outcome, Agreed)
    assert (outcome.outvoted, outcome.votes) == (("a",), 2)


def test_a_majority_that_does_not_know_the_transaction_wins_with_a_view_without_receipt() -> None:
    outcome = decide(CANDIDATE, [UNSEEN, named(UNSEEN, "y")])
    assert isinstance(outcome, Agreed)
    assert outcome.view.receipt is None


@pytest.mark.parametrize(
    ("others", "head"),
    [
        ([paid("b", head=30)], 20),
        ([paid("b", head=13)], 13),
        ([paid("b", head=13, stalled=True)], 20),
        ([paid("b", head=13), paid("c", head=12)], 13),
        ([paid("b", head=9999), paid("c", head=19)], 20),
        ([paid("b", head=9999), paid("c", head=9998)], 9998),
        ([paid("b", head=19), unknown("c", head=1)], 19),
        ([paid("b", head=19), paid("c", head=18), unknown("d", head=1)], 18),
        ([paid("b", head=19), unknown("c", head=1), unknown("d", head=0)], 1),
        ([paid("b", head=30), paid("c", head=13, stalled=True)], 20),
        ([unknown("b", head=9), unknown("c", head=8)], 9),
        ([unknown("b", head=9)], 9),
        ([unknown("b", head=9, stalled=True)], 20),
        ([unknown("b", head=13, asked=block())], 13),
        ([unknown("b", head=13, asked=block(), stalled=True)], 20),
        ([NoResponse("b", "down")], 20),
        ([paid("b"), paid("c", head=12, block_hash=FORK)], 20),
    ],
)
def test_the_head_that_most_of_those_who_do_not_contradict_have_reached_counts_without_the_stuck(
    others: list[Reading | NoResponse], head: int
) -> None:
    outcome = decide(CANDIDATE, others)
    assert isinstance(outcome, Agreed)
    assert outcome.view.head_number == head


@pytest.mark.parametrize(
    ("heads", "reached"),
    [([104, 9999], 104), ([9999, 104, 103], 104), ([40001, 40000, 11], 40000), ([104], 104), ([104, 9999, 9999], 9999)],
)
def test_one_head_alone_neither_adds_confirmations_nor_withholds_them_from_a_majority(
    heads: list[int], reached: int
) -> None:
    for turn in range(len(heads)):
        candidate, *others = [paid(f"node{head}", head=head) for head in heads[turn:] + heads[:turn]]
        outcome = decide(candidate.view, others)
        assert isinstance(outcome, Agreed)
        assert outcome.view.head_number == reached


def test_where_all_who_agree_are_stuck_the_first_one_s_head_counts() -> None:
    outcome = decide(CANDIDATE, [paid("x", block_hash=FORK, stalled=True), paid("y", block_hash=FORK, stalled=True)])
    assert isinstance(outcome, Agreed)
    assert (outcome.view.endpoint, outcome.view.head_number) == ("x", 20)


def test_a_view_is_included_only_with_a_receipt_on_its_own_canonical_block() -> None:
    assert is_included(CANDIDATE)
    assert not is_included(unknown().view)
    assert not is_included(unconfirmed(asked=block(FORK)).view)
    assert not is_included(unconfirmed(asked=block(lists_it=False)).view)
    assert not is_included(unconfirmed(asked=block(number=11)).view)
    assert not is_included(unconfirmed(asked=None).view)
    assert is_included(CANDIDATE.model_copy(update={"head_number": 10}))
    assert not is_included(CANDIDATE.model_copy(update={"head_number": 9}))
