"""Whether a wallet has signed: wallets with a key, smart wallets on the chain and not yet on it, and nodes that lie."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress

import pytest
from aiohttp import web
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chain.contract_calls import DEPLOYLESS_CALL_GAS
from chain.quorum import EndpointsDisagree
from chain.reader import ChainReader
from chain.signatures import SIGNATURE_BYTES_MAX, signed_by
from devstack.chain import LocalChain, payer_wallets
from domain.errors import ChainUnavailable, InvalidInput
from tests.chain.conftest import Readers
from tests.chain.faulty_node import FaultyNode, Json
from tests.support.smart_wallets import (
    ACCEPTED,
    ACCEPTING_FROM_NOBODY,
    ACCEPTING_UNTIL_SET,
    ACCEPTING_WHEN_SET,
    INVALID,
    LOOPING,
    REVERTING_WITH_ACCEPTED,
    SIGNING_ON_CHAIN,
    WRAPPER_MAGIC,
    compact,
    personal_sign,
    put_contract,
    returning,
    sign_on_chain,
    wrap,
    wrap_with_factory,
)

OWNER, OTHER = payer_wallets()[:2]
MESSAGE = "example.org wants you to sign in with your Ethereum account: ✓"
SIGNATURE = personal_sign(OWNER.private_key, MESSAGE)
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
NOWHERE = "http://127.0.0.1:1"
YES, NO = "0x" + (1).to_bytes(32, "big").hex(), "0x" + bytes(32).hex()
PRECOMPILES = ["0x" + number.to_bytes(20, "big").hex() for number in (1, 2, 3, 4, 5, 0x100)]

numbers = itertools.count(1)
"""Of contracts and of salts: no test meets what another has put on the chain."""


@pytest.fixture(scope="module")
async def honest(chain: LocalChain) -> AsyncIterator[ChainReader]:
    """A reader of the chain as it is."""
    async with ChainReader([chain.url], chain.chain_id) as reader:
        yield reader


@pytest.fixture(scope="module")
async def offline() -> AsyncIterator[ChainReader]:
    """A reader whose nodes are all down."""
    async with ChainReader([NOWHERE, NOWHERE], 31337) as reader:
        yield reader


@pytest.fixture
async def nodes(chain: LocalChain) -> AsyncIterator[tuple[FaultyNode, FaultyNode]]:
    """Two nodes of the chain; without faults at first."""
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(FaultyNode.in_front_of(chain.url)) for _ in range(2)]
        yield first, second


@pytest.fixture
async def deployed(chain: LocalChain) -> str:
    """The owner's smart wallet, on the chain."""
    return await chain.deploy_smart_wallet(OWNER.address, next(numbers))


def with_byte(signature: str, position: int, value: int) -> str:
    raw = bytearray.fromhex(signature[2:])
    raw[position] = value
    return "0x" + raw.hex()


def replies_with_error(node: FaultyNode, code: int, message: str) -> None:
    """`eth_call` is refused, the rest of the batch is not."""

    def fault(requests: list[Json], replies: list[Json]) -> Json:
        return [
            {"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message}}
            if request["method"] == "eth_call"
            else reply
            for request, reply in zip(requests, replies, strict=True)
        ]

    node.batches(fault)


# Wallets with a key --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["", "hello", MESSAGE, "line\nline\0", "x" * 10_000, "0x" + "ab" * 32])
async def test_a_wallet_with_a_key_needs_no_node(offline: ChainReader, message: str) -> None:
    assert await signed_by(offline, OWNER.address, message, personal_sign(OWNER.private_key, message))


async def test_the_case_of_address_and_signature_does_not_matter(offline: ChainReader) -> None:
    assert await signed_by(offline, OWNER.address.lower(), MESSAGE, SIGNATURE)
    assert await signed_by(offline, "0x" + OWNER.address[2:].upper(), MESSAGE, "0x" + SIGNATURE[2:].upper())


@pytest.mark.parametrize("v_offset", [0, 27])
async def test_both_ways_to_count_v_are_known_and_no_other(
    offline: ChainReader, honest: ChainReader, v_offset: int
) -> None:
    parity = int(SIGNATURE[-2:], 16) - 27
    assert await signed_by(offline, OWNER.address, MESSAGE, with_byte(SIGNATURE, 64, parity + v_offset))
    assert not await signed_by(honest, OWNER.address, MESSAGE, with_byte(SIGNATURE, 64, 1 - parity + v_offset))
    for v in (2, 3, 26, 29, 30, 31, 32, 35, 36, 255):
        assert not await signed_by(honest, OWNER.address, MESSAGE, with_byte(SIGNATURE, 64, v))


async def test_the_compact_form_is_known_with_either_parity(offline: ChainReader) -> None:
    messages = [f"message {number}" for number in range(8)]
    signatures = [personal_sign(OWNER.private_key, message) for message in messages]
    assert {signature[-2:] for signature in signatures} == {"1b", "1c"}
    for message, signature in zip(messages, signatures, strict=True):
        assert await signed_by(offline, OWNER.address, message, compact(signature))


async def test_another_signer_another_message_or_another_form_is_refused(honest: ChainReader) -> None:
    assert not await signed_by(honest, OTHER.address, MESSAGE, SIGNATURE)
    assert not await signed_by(honest, OWNER.address, MESSAGE + " ", SIGNATURE)
    assert not await signed_by(honest, OWNER.address, MESSAGE, SIGNATURE[:-2])
    assert not await signed_by(honest, OWNER.address, MESSAGE, SIGNATURE + "00")
    assert not await signed_by(honest, OWNER.address, MESSAGE, SIGNATURE + SIGNATURE[2:])


@pytest.mark.parametrize("position", [0, 15, 31, 32, 47, 63])
async def test_an_altered_byte_is_refused(honest: ChainReader, position: int) -> None:
    raw = bytes.fromhex(SIGNATURE[2:])
    assert not await signed_by(honest, OWNER.address, MESSAGE, with_byte(SIGNATURE, position, raw[position] ^ 1))


@pytest.mark.parametrize("r", [0, 1, CURVE_ORDER, 2**256 - 1])
@pytest.mark.parametrize("s", [0, 1, CURVE_ORDER, 2**256 - 1])
async def test_numbers_that_are_no_signature_are_refused(honest: ChainReader, r: int, s: int) -> None:
    signature = "0x" + (r.to_bytes(32, "big") + s.to_bytes(32, "big")).hex()
    for ending in ("1b", "1c", ""):
        assert not await signed_by(honest, OWNER.address, MESSAGE, signature + ending)
    assert not await signed_by(honest, "0x" + "00" * 20, MESSAGE, signature + "1b")


# Input ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "0",
        "0x1",
        SIGNATURE[2:],
        SIGNATURE[:-1],
        "0X" + SIGNATURE[2:],
        SIGNATURE + "\n",
        " " + SIGNATURE,
        SIGNATURE[:-2] + "zz",
        SIGNATURE[:-2] + "١٢",
        "0x" + "00" * (SIGNATURE_BYTES_MAX + 1),
        None,
        b"0x00",
    ],
)
async def test_a_malformed_signature_is_the_callers_mistake(offline: ChainReader, signature: str) -> None:
    with pytest.raises(InvalidInput, match="^signature: ") as caught:
        await signed_by(offline, OWNER.address, MESSAGE, signature)
    assert caught.value.field == "signature"
    assert len(str(caught.value)) < 200


async def test_the_longest_signature_is_put_to_the_contract(chain: LocalChain, honest: ChainReader) -> None:
    address = await put_contract(chain, next(numbers), returning(ACCEPTED))
    assert await signed_by(honest, address, MESSAGE, "0x" + "00" * SIGNATURE_BYTES_MAX)


@pytest.mark.parametrize("address", ["", "0x12", OWNER.address[2:], OWNER.address + "00", "vitalik.eth"])
async def test_a_malformed_address_is_the_callers_mistake(offline: ChainReader, address: str) -> None:
    with pytest.raises(InvalidInput, match="^address: "):
        await signed_by(offline, address, MESSAGE, SIGNATURE)


async def test_a_message_that_is_no_text_is_the_callers_mistake(offline: ChainReader) -> None:
    with pytest.raises(InvalidInput, match="^message: "):
        await signed_by(offline, OWNER.address, "half a character: \ud83d", SIGNATURE)


def test_the_interpreters_recursion_limit_stays_as_it_is() -> None:
    # Raised to 100,000, as eth_account's import does, a request's "[[[[…" overflows the stack of the process.
    script = (
        "import sys; before = sys.getrecursionlimit(); import chain.signatures; print(sys.getrecursionlimit() - before)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "0\n"


HEX = st.binary(max_size=300).map(lambda raw: "0x" + raw.hex())
WORDS = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.sampled_from([0, 1, 31, 32, 64, 96, 97, 128, 2**16, 2**32, 2**63, 2**64 - 1, 2**64, 2**255, 2**256 - 1]).map(
        lambda number: number.to_bytes(32, "big")
    ),
    st.just(OWNER.address).map(lambda address: bytes(12) + bytes.fromhex(address[2:])),
)
HOSTILE = st.lists(WORDS, max_size=12).map(lambda words: "0x" + (b"".join(words) + WRAPPER_MAGIC).hex())


WHAT_A_CALLER_SENDS = given(
    signature=st.one_of(st.text(), HEX, HOSTILE),
    message=st.one_of(st.just(MESSAGE), st.text(st.characters(exclude_categories=()))),
    address=st.text(),
)
A_FEW = settings(max_examples=25)
"""Of each property's hundred, which the slow ones have."""


async def gets_not_through(honest: ChainReader, signature: str, message: str, address: str) -> None:
    for wallet in (address, OWNER.address, PRECOMPILES[3]):
        with suppress(InvalidInput):
            assert not await signed_by(honest, wallet, message, signature)


@A_FEW
@WHAT_A_CALLER_SENDS
async def test_nothing_a_caller_sends_gets_through(
    honest: ChainReader, signature: str, message: str, address: str
) -> None:
    await gets_not_through(honest, signature, message, address)


@pytest.mark.slow
@WHAT_A_CALLER_SENDS
async def test_nothing_of_all_that_a_caller_sends_gets_through(
    honest: ChainReader, signature: str, message: str, address: str
) -> None:
    await gets_not_through(honest, signature, message, address)


@given(HOSTILE)
@example("0x" + WRAPPER_MAGIC.hex())
@example("0x" + (bytes(31) + WRAPPER_MAGIC).hex())
@example("0x" + (bytes(8160) + WRAPPER_MAGIC).hex())
async def test_a_malformed_wrapper_is_refused(honest: ChainReader, signature: str) -> None:
    assert not await signed_by(honest, OWNER.address, MESSAGE, signature)


async def no_recovery_is_broken(honest: ChainReader, raw: bytes) -> None:
    for v in (0, 1, 27, 28):
        assert not await signed_by(honest, OWNER.address, MESSAGE, "0x" + raw[:64].hex() + f"{v:02x}")


@A_FEW
@given(st.binary(min_size=65, max_size=65))
async def test_no_65_bytes_break_the_recovery(honest: ChainReader, raw: bytes) -> None:
    await no_recovery_is_broken(honest, raw)


@pytest.mark.slow
@given(st.binary(min_size=65, max_size=65))
async def test_none_of_many_65_bytes_breaks_the_recovery(honest: ChainReader, raw: bytes) -> None:
    await no_recovery_is_broken(honest, raw)


# Smart wallets -------------------------------------------------------------------------------------------------------


async def test_a_smart_wallet_accepts_its_owners_signature_only(honest: ChainReader, deployed: str) -> None:
    assert await signed_by(honest, deployed, MESSAGE, SIGNATURE)
    assert not await signed_by(honest, deployed, MESSAGE, personal_sign(OTHER.private_key, MESSAGE))
    assert not await signed_by(honest, deployed, MESSAGE + "!", SIGNATURE)
    assert not await signed_by(honest, deployed, MESSAGE, compact(SIGNATURE))  # ours knows 65 bytes only
    assert not await signed_by(honest, deployed, MESSAGE, "0x00")


async def test_a_wallet_that_is_not_on_the_chain_yet_can_sign_and_stays_off_it(
    chain: LocalChain, honest: ChainReader
) -> None:
    await chain.deploy_smart_wallet_factory()
    salt = next(numbers)
    address = chain.smart_wallet_address(OWNER.address, salt)
    assert await signed_by(honest, address, MESSAGE, wrap_with_factory(chain, OWNER.address, SIGNATURE, salt))
    assert await chain.rpc("eth_getCode", address, "latest") == "0x"
    assert not await signed_by(honest, address, MESSAGE, SIGNATURE)


async def test_a_wallet_that_is_not_on_the_chain_yet_accepts_nothing_else(
    chain: LocalChain, honest: ChainReader
) -> None:
    factory = await chain.deploy_smart_wallet_factory()
    salt = next(numbers)
    address = chain.smart_wallet_address(OWNER.address, salt)
    wrong_owner = wrap_with_factory(chain, OWNER.address, personal_sign(OTHER.private_key, MESSAGE), salt)
    assert not await signed_by(honest, address, MESSAGE, wrong_owner)
    own_wallet = wrap_with_factory(chain, OTHER.address, personal_sign(OTHER.private_key, MESSAGE), salt)
    assert not await signed_by(honest, address, MESSAGE, own_wallet)
    assert not await signed_by(honest, address, MESSAGE + "!", wrap_with_factory(chain, OWNER.address, SIGNATURE, salt))
    assert not await signed_by(honest, address, MESSAGE, wrap_with_factory(chain, OWNER.address, SIGNATURE, salt + 1))
    assert not await signed_by(honest, address, MESSAGE, wrap(factory, b"no such function", SIGNATURE))
    assert not await signed_by(honest, address, MESSAGE, wrap(OTHER.address, b"", SIGNATURE))
    good = wrap_with_factory(chain, OWNER.address, SIGNATURE, salt)
    for magic in (good[:-2] + "93", good[:-64], good + "00", good[:-64] + "00" * 32 + good[-64:-2]):
        assert not await signed_by(honest, address, MESSAGE, magic)
    assert await signed_by(honest, address, MESSAGE, good)


async def test_a_wrapped_signature_stays_good_after_the_deployment(chain: LocalChain, honest: ChainReader) -> None:
    salt = next(numbers)
    wrapped = wrap_with_factory(chain, OWNER.address, SIGNATURE, salt)
    address = await chain.deploy_smart_wallet(OWNER.address, salt)
    assert await signed_by(honest, address, MESSAGE, wrapped)
    assert not await signed_by(honest, address, MESSAGE + "!", wrapped)


async def test_a_caller_cannot_choose_the_state_in_which_a_contract_wallet_accepts(
    chain: LocalChain, honest: ChainReader
) -> None:
    settable = await put_contract(chain, next(numbers), ACCEPTING_WHEN_SET)
    spoilable = await put_contract(chain, next(numbers), ACCEPTING_UNTIL_SET)
    assert not await signed_by(honest, settable, MESSAGE, SIGNATURE)
    assert not await signed_by(honest, settable, MESSAGE, wrap(settable, b"", SIGNATURE))
    assert await signed_by(honest, spoilable, MESSAGE, wrap(spoilable, b"", SIGNATURE))
    for address in (settable, spoilable):
        assert int(await chain.rpc("eth_getStorageAt", address, "0x0", "latest"), 16) == 0


@pytest.mark.parametrize("broken", [LOOPING, INVALID, REVERTING_WITH_ACCEPTED, returning(ACCEPTED, 10**6), b""])
async def test_a_factory_that_fails_is_no_answer_of_the_wallet(
    chain: LocalChain, honest: ChainReader, deployed: str, broken: bytes
) -> None:
    factory = await put_contract(chain, next(numbers), broken)
    assert not await signed_by(honest, OTHER.address, MESSAGE, wrap(factory, b"", SIGNATURE))
    assert not await signed_by(honest, deployed, MESSAGE + "!", wrap(factory, b"", SIGNATURE))
    assert await signed_by(honest, deployed, MESSAGE, wrap(factory, b"", SIGNATURE))


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(returning(bytes.fromhex("1626ba7f") + bytes(28)), id="a neighbour of the magic value"),
        pytest.param(returning(bytes.fromhex("20c13b0b") + bytes(28)), id="the magic value of an early draft"),
        pytest.param(returning(bytes.fromhex("ffffffff") + bytes(28)), id="the usual refusal"),
        pytest.param(returning(bytes(28) + ACCEPTED[:4]), id="the magic value at the wrong end"),
        pytest.param(returning(ACCEPTED[:4] + b"\xff" * 28), id="the magic value with something behind it"),
        pytest.param(returning(ACCEPTED[:31] + b"\x01"), id="the magic value with a bit behind it"),
        pytest.param(returning((1).to_bytes(32, "big")), id="true"),
        pytest.param(returning(ACCEPTED, 4), id="the magic value without padding"),
        pytest.param(returning(ACCEPTED, 31), id="a byte too little"),
        pytest.param(returning(ACCEPTED, 0), id="nothing"),
        pytest.param(REVERTING_WITH_ACCEPTED, id="a revert with the magic value"),
        pytest.param(LOOPING, id="an endless loop"),
        pytest.param(INVALID, id="an invalid opcode"),
    ],
)
async def test_a_contract_that_does_not_say_yes_says_no(chain: LocalChain, honest: ChainReader, code: bytes) -> None:
    address = await put_contract(chain, next(numbers), code)
    assert not await signed_by(honest, address, MESSAGE, SIGNATURE)
    assert not await signed_by(honest, address, MESSAGE, wrap(address, b"", SIGNATURE))


@pytest.mark.parametrize("size", [32, 33, 64, 10**6])
async def test_more_than_a_word_is_accepted_when_it_begins_with_yes(
    chain: LocalChain, honest: ChainReader, size: int
) -> None:
    address = await put_contract(chain, next(numbers), returning(ACCEPTED, size))
    assert await signed_by(honest, address, MESSAGE, SIGNATURE)


@pytest.mark.parametrize("address", ["0x" + "00" * 20, OTHER.address, *PRECOMPILES])
async def test_an_address_without_code_accepts_nothing(honest: ChainReader, address: str) -> None:
    assert not await signed_by(honest, address, MESSAGE, SIGNATURE)
    assert not await signed_by(honest, address, MESSAGE, wrap(address, b"", SIGNATURE))
    assert not await signed_by(honest, address, MESSAGE, "0x" + ACCEPTED.hex())
    assert not await signed_by(honest, address, MESSAGE, wrap(address, ACCEPTED, "0x" + ACCEPTED.hex()))


async def test_a_contract_is_not_asked_by_the_zero_address(chain: LocalChain, honest: ChainReader) -> None:
    address = await put_contract(chain, next(numbers), ACCEPTING_FROM_NOBODY)
    assert not await signed_by(honest, address, MESSAGE, SIGNATURE)


# Nodes ---------------------------------------------------------------------------------------------------------------


async def test_one_request_to_each_node_carries_everything(
    readers: Readers, nodes: tuple[FaultyNode, FaultyNode], deployed: str
) -> None:
    assert await signed_by(await readers(*nodes), deployed, MESSAGE, SIGNATURE)
    for node in nodes:
        assert node.requests == [["eth_chainId", "eth_call"]]


@pytest.mark.parametrize("faulty", [0, 1])
async def test_a_faulty_node_beside_an_honest_one_signs_no_wallet_in(
    readers: Readers, nodes: tuple[FaultyNode, FaultyNode], deployed: str, faulty: int
) -> None:
    nodes[faulty].fixed("eth_call", YES)
    with pytest.raises(EndpointsDisagree, match="endpoints disagree"):
        await signed_by(await readers(*nodes), deployed, MESSAGE, personal_sign(OTHER.private_key, MESSAGE))


@pytest.mark.parametrize("claim", [NO, "0x", "0x01", YES + "00", "0x" + "ff" * 100])
async def test_a_node_that_denies_beside_an_honest_one_is_a_reason_to_ask_again(
    readers: Readers, nodes: tuple[FaultyNode, FaultyNode], deployed: str, claim: str
) -> None:
    nodes[1].fixed("eth_call", claim)
    with pytest.raises(EndpointsDisagree):
        await signed_by(await readers(*nodes), deployed, MESSAGE, SIGNATURE)


async def test_a_node_that_has_not_seen_the_wallet_yet_is_a_reason_to_ask_again(
    chain: LocalChain, readers: Readers, nodes: tuple[FaultyNode, FaultyNode]
) -> None:
    before = hex(await chain.block_number())
    address = await chain.deploy_smart_wallet(OWNER.address, next(numbers))

    async def in_the_past(request: web.Request) -> web.StreamResponse:
        document = await request.json()
        for call in document:
            if call["method"] == "eth_call":
                call["params"][1] = before
        return web.json_response(await nodes[1].forward(document))

    nodes[1].wire(in_the_past)
    with pytest.raises(EndpointsDisagree):
        await signed_by(await readers(*nodes), address, MESSAGE, SIGNATURE)


async def test_a_node_with_an_invented_head_does_not_silence_the_others(
    readers: Readers, nodes: tuple[FaultyNode, FaultyNode], deployed: str
) -> None:
    nodes[1].shift_head(1000)
    nodes[1].fixed("eth_call", YES)
    reader = await readers(*reversed(nodes))
    await reader.heads.height()
    with pytest.raises(EndpointsDisagree):
        await signed_by(reader, deployed, MESSAGE, personal_sign(OTHER.private_key, MESSAGE))


@pytest.mark.slow(but=4)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda node: node.status(503), id="HTTP 503"),
        pytest.param(lambda node: node.status(429, retry_after="7"), id="HTTP 429"),
        pytest.param(lambda node: node.drop(), id="closed connection"),
        pytest.param(lambda node: node.hang(), id="silence"),
        pytest.param(lambda node: node.truncate(), id="half a document"),
        pytest.param(lambda node: node.body(b"[" * 100_000), id="deeply nested JSON"),
        pytest.param(lambda node: node.other_chain(1), id="another chain"),
        pytest.param(lambda node: node.lose_last_reply(), id="no reply"),
        pytest.param(lambda node: node.fixed("eth_call", None), id="null"),
        pytest.param(lambda node: node.fixed("eth_call", "0x1"), id="half a byte"),
        pytest.param(lambda node: node.fixed("eth_call", {"yes": 1}), id="an object"),
        pytest.param(lambda node: replies_with_error(node, -32005, "limit exceeded, revert later"), id="rate limit"),
        pytest.param(lambda node: replies_with_error(node, -32000, "header not found"), id="no state"),
        pytest.param(lambda node: replies_with_error(node, -32601, "the method does not exist"), id="no such method"),
        pytest.param(lambda node: replies_with_error(node, -32000, "invalid opcode: PUSH0"), id="an old node"),
    ],
)
async def test_a_node_that_does_not_answer_has_no_say(
    readers: Readers, nodes: tuple[FaultyNode, FaultyNode], deployed: str, fault: Callable[[FaultyNode], None]
) -> None:
    reader = await readers(*nodes, timeout_seconds=1.0)
    stranger = personal_sign(OTHER.private_key, MESSAGE)
    fault(nodes[0])
    assert await signed_by(reader, deployed, MESSAGE, SIGNATURE)
    assert not await signed_by(reader, deployed, MESSAGE, stranger)
    fault(nodes[1])
    for signature in (SIGNATURE, stranger):
        with pytest.raises(ChainUnavailable, match="no usable chain endpoint") as caught:
            await signed_by(reader, deployed, MESSAGE, signature)
        assert type(caught.value) is ChainUnavailable
        assert all(label in str(caught.value) for label in reader.labels)


async def test_a_faulty_node_of_another_chain_signs_no_wallet_in(
    readers: Readers, nodes: tuple[FaultyNode, FaultyNode], deployed: str
) -> None:
    for node in nodes:
        node.fixed("eth_call", YES)
        node.other_chain(1)
    with pytest.raises(ChainUnavailable, match="answers for chain 1"):
        await signed_by(await readers(*nodes), deployed, MESSAGE, personal_sign(OTHER.private_key, MESSAGE))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (3, "execution reverted"),
        (-32000, "execution reverted"),
        (-32000, "out of gas"),
        (-32003, "EVM error: OutOfGas"),
        (-32015, "VM execution error."),
    ],
)
async def test_code_that_fails_is_an_answer(
    readers: Readers, nodes: tuple[FaultyNode, FaultyNode], deployed: str, code: int, message: str
) -> None:
    for node in nodes:
        replies_with_error(node, code, message)
    assert not await signed_by(await readers(*nodes), deployed, MESSAGE, SIGNATURE)
    nodes[0].heal()
    with pytest.raises(EndpointsDisagree, match="reverted"):
        await signed_by(await readers(*nodes), deployed, MESSAGE, SIGNATURE)


@pytest.mark.parametrize("answer", ["0x", "0x01", "0x" + "00" * 31, YES + "00", "0x" + "00" * 31 + "02"])
async def test_an_answer_that_the_validator_never_gives_is_none(
    readers: Readers, nodes: tuple[FaultyNode, FaultyNode], deployed: str, answer: str
) -> None:
    for node in nodes:
        node.fixed("eth_call", answer)
    with pytest.raises(ChainUnavailable):
        await signed_by(await readers(*nodes), deployed, MESSAGE, SIGNATURE)


async def test_with_all_nodes_down_a_smart_wallet_waits_and_a_key_does_not(offline: ChainReader, deployed: str) -> None:
    with pytest.raises(ChainUnavailable, match="cannot connect"):
        await signed_by(offline, deployed, MESSAGE, SIGNATURE)
    assert await signed_by(offline, OWNER.address, MESSAGE, SIGNATURE)


async def test_a_strangers_signature_does_not_put_a_node_behind_the_others(
    readers: Readers, nodes: tuple[FaultyNode, FaultyNode], deployed: str
) -> None:
    reader = await readers(*nodes)
    replies_with_error(nodes[0], -32000, "whatever code can do to a node")
    assert await signed_by(reader, deployed, MESSAGE, SIGNATURE)
    nodes[0].requests.clear()
    nodes[1].requests.clear()
    await reader.heads.height()
    assert (len(nodes[0].requests), len(nodes[1].requests)) == (1, 0)


async def test_a_pause_that_a_node_asks_for_is_kept(
    readers: Readers, nodes: tuple[FaultyNode, FaultyNode], deployed: str
) -> None:
    reader = await readers(*nodes)
    nodes[0].status(429, retry_after="60")
    assert await signed_by(reader, deployed, MESSAGE, SIGNATURE)
    nodes[0].heal()
    nodes[0].requests.clear()
    assert await signed_by(reader, deployed, MESSAGE, SIGNATURE)
    assert not nodes[0].requests


# The call ------------------------------------------------------------------------------------------------------------


async def test_a_deployless_call_gives_back_what_the_creation_returns(honest: ChainReader) -> None:
    assert await honest.contracts.deployless_call(returning(ACCEPTED, 40)) == ACCEPTED + bytes(8)
    assert await honest.contracts.deployless_call(b"") == b""
    assert await honest.contracts.deployless_call(REVERTING_WITH_ACCEPTED) is None
    assert await honest.contracts.deployless_call(LOOPING) is None


async def test_a_deployless_call_has_the_same_gas_on_every_node(honest: ChainReader) -> None:
    gas_left = await honest.contracts.deployless_call(
        bytes.fromhex("5a60005260206000f3")
    )  # GAS PUSH1 0 MSTORE ... RETURN
    assert gas_left is not None
    assert DEPLOYLESS_CALL_GAS - 100_000 < int.from_bytes(gas_left, "big") < DEPLOYLESS_CALL_GAS


# Wallets that sign on the chain --------------------------------------------------------------------------------------


async def test_an_empty_signature_is_good_once_the_owners_have_signed_on_the_chain(
    chain: LocalChain, honest: ChainReader
) -> None:
    address = await put_contract(chain, next(numbers), SIGNING_ON_CHAIN)
    assert not await signed_by(honest, address, MESSAGE, "0x")
    await sign_on_chain(chain, OWNER.private_key, address, MESSAGE)
    assert await signed_by(honest, address, MESSAGE, "0x")
    assert not await signed_by(honest, address, MESSAGE + "!", "0x")
    assert not await signed_by(honest, address, MESSAGE, "0x00")
    assert not await signed_by(honest, address, MESSAGE, SIGNATURE)


async def test_an_empty_signature_is_nobodys_who_has_a_key(honest: ChainReader) -> None:
    for address in (OWNER.address, OTHER.address, *PRECOMPILES):
        assert not await signed_by(honest, address, MESSAGE, "0x")
