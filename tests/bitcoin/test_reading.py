"""Blocks and transactions as a node has them: what is paid to whom, where it is, and what no node is believed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from chain.bitcoin.blocks import BlockMalformed, read_block
from chain.quorum import is_included
from chain.reader import ChainReader
from devstack.bitcoin_chain import COINBASE_MATURITY, BitcoinChain
from domain.chain import DepositLane, DepositScope, TransferRange
from domain.coin import NATIVE_COIN
from domain.errors import ChainUnavailable, InvalidInput
from domain.payments.verification import PaymentTerms, Waiting, evaluate
from domain.utxo import (
    COINBASE_SENDER,
    UNNAMED_SENDER,
    UTXO_CHAINS,
    UTXO_CHAINS_FROM,
    chain_id_of_genesis,
)
from tests.bitcoin.given import REGTEST, address_of
from tests.bitcoin.scripts import script_of

SATOSHIS = 5_000_000


async def transfers(
    reader: ChainReader, first: int, last: int, to: Sequence[str], anchor: int | None = None
) -> TransferRange:
    """What is paid to these addresses in these blocks."""
    scope = DepositScope.of(REGTEST.chain_id, DepositLane.BUSY, [NATIVE_COIN], to)
    return await reader.logs.transfers(scope, first, last, anchor=anchor)


@pytest.mark.parametrize("purpose", [44, 49, 84])
async def test_every_output_to_a_derived_address_is_a_transfer(
    bitcoin: BitcoinChain, reader: ChainReader, purpose: int
) -> None:
    ours, other = address_of(purpose=purpose), address_of(1, purpose)
    before = await bitcoin.height()
    payment = await bitcoin.pay((script_of(ours), SATOSHIS), (script_of(other), 800), (script_of(ours), SATOSHIS))
    [block_hash] = await bitcoin.mine()

    found = await transfers(reader, before + 1, before + 1, [ours], anchor=before)

    assert [(one.log_index, one.value_raw, one.to_address) for one in found.transfers] == [
        (0, SATOSHIS, ours), (2, SATOSHIS, ours),
    ]  # fmt: skip
    assert {(one.tx_hash, one.block_hash) for one in found.transfers} == {("0x" + payment.txid, "0x" + block_hash)}
    assert {(one.token, one.from_address) for one in found.transfers} == {(NATIVE_COIN, UNNAMED_SENDER)}
    assert found.anchor is not None
    assert found.anchor.block_hash == "0x" + await bitcoin.rpc("getblockhash", before)


async def test_a_transaction_is_found_where_it_is_now(bitcoin: BitcoinChain, reader: ChainReader) -> None:
    payment = await bitcoin.pay((script_of(address_of()), SATOSHIS))
    tx_hash = "0x" + payment.txid
    waiting = await reader.payments.look(tx_hash)
    await bitcoin.mine()
    mined = await reader.payments.look(tx_hash)
    [first, _] = await bitcoin.reorganise(1, drop=False)
    moved = await reader.payments.look(tx_hash)
    await bitcoin.reorganise(2, drop=True)
    dropped = await reader.payments.look(tx_hash)

    assert waiting.receipt is None
    assert is_included(mined)
    assert is_included(moved)
    assert moved.receipt is not None
    assert mined.receipt is not None
    assert moved.receipt.block_hash == "0x" + first != mined.receipt.block_hash
    assert dropped.receipt is None
    [report] = await reader.payments.inclusion_reports(tx_hash, mined.receipt.block_number)
    assert report.receipt is None
    assert report.block_at_height not in {None, mined.receipt.block_hash, moved.receipt.block_hash}


async def test_a_reward_matures(bitcoin: BitcoinChain, reader: ChainReader) -> None:
    ours = address_of(7)
    await bitcoin.mine_to(script_of(ours))
    height = await bitcoin.height()

    [reward] = (await transfers(reader, height, height, [ours])).transfers

    assert reward.from_address == COINBASE_SENDER
    view = await reader.payments.look(reward.tx_hash)
    assert view.receipt is not None
    terms = PaymentTerms(
        chain_id=REGTEST.chain_id,
        token=NATIVE_COIN,
        payer=COINBASE_SENDER,
        treasury=ours,
        amount_raw=reward.value_raw,
        exact=True,
    )
    waiting = evaluate(terms, reward.tx_hash, view, min_confirmations=1)
    assert isinstance(waiting, Waiting)
    assert waiting.confirmations_needed == COINBASE_MATURITY


async def test_many_blocks_are_read_in_parts(bitcoin: BitcoinChain, reader: ChainReader) -> None:
    found = await transfers(reader, 1, 100, [address_of()])
    assert (found.first, found.last) == (1, 10)
    with pytest.raises(ChainUnavailable):
        await transfers(reader, await bitcoin.height() + 1, await bitcoin.height() + 2, [address_of()])


async def test_a_block_is_what_its_hash_says(bitcoin: BitcoinChain) -> None:
    await bitcoin.pay((script_of(address_of()), SATOSHIS))
    [block_hash] = await bitcoin.mine()
    data = bytes.fromhex(await bitcoin.rpc("getblock", block_hash, False))
    script = bytes.fromhex(script_of(address_of()))

    assert any(output.script == script for one in read_block(data, block_hash).transactions for output in one.outputs)
    stolen = data.replace(script, bytes.fromhex(script_of(address_of(1))))
    for forged in (stolen, data[:-1], data + b"\0", b"\1" + data[1:], data[:79]):
        with pytest.raises(BlockMalformed):
            read_block(forged, block_hash)


async def test_a_block_with_a_transaction_repeated_is_refused(bitcoin: BitcoinChain) -> None:
    """Three transactions have the Merkle root of the same with the last one repeated (CVE-2012-2459)."""
    sent = [await bitcoin.pay((script_of(address_of()), SATOSHIS + number)) for number in range(2)]
    [block_hash] = await bitcoin.mine()
    data = bytes.fromhex(await bitcoin.rpc("getblock", block_hash, False))
    [last] = [raw for raw in (bytes.fromhex(payment.raw) for payment in sent) if data.endswith(raw)]
    assert data[80] == len(sent) + 1
    with pytest.raises(BlockMalformed):
        read_block(data[:80] + b"\4" + data[81:] + last, block_hash)


Answer = Callable[[str, list[Any]], Awaitable[Any]]
"""Of a call's method and parameters; raises `NodeError` for a refusal."""


class NodeError(Exception):
    """What a node refuses a call with."""


@asynccontextmanager
async def node_that(answers: Answer) -> AsyncIterator[str]:
    """A node of its own mind; its address."""

    async def answer(request: web.Request) -> web.Response:
        replies: list[dict[str, Any]] = []
        for call in await request.json():
            try:
                reply = {"result": await answers(call["method"], call["params"]), "error": None}
            except NodeError as error:
                reply = {"result": None, "error": {"code": -5, "message": str(error)}}
            replies.append({"id": call["id"], **reply})
        return web.json_response(replies)

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_an_index_that_is_not_complete_proves_no_absence(bitcoin: BitcoinChain) -> None:
    """A node without `txindex` knows its memory pool only: it is no witness that a payment was reorged out."""

    async def answers(method: str, parameters: list[Any]) -> Any:
        if method == "getrawtransaction":
            raise NodeError("No such mempool transaction. Use -txindex or provide a block hash to enable queries")
        return await bitcoin.rpc(method, *parameters)

    async with node_that(answers) as url, ChainReader([url], REGTEST.chain_id) as reader:
        with pytest.raises(ChainUnavailable, match="-txindex"):
            await reader.payments.look("0x" + "ab" * 32)
        assert await reader.payments.inclusion_reports("0x" + "ab" * 32, 1) == []


async def test_an_index_that_names_another_place_is_not_believed(bitcoin: BitcoinChain) -> None:
    """The block that it names is not at that height on the node's chain."""
    payment = await bitcoin.pay((script_of(address_of()), SATOSHIS))
    await bitcoin.mine(2)

    async def answers(method: str, parameters: list[Any]) -> Any:
        answer = await bitcoin.rpc(method, *parameters)
        return {**answer, "confirmations": 1} if method == "getrawtransaction" else answer

    async with node_that(answers) as url, ChainReader([url], REGTEST.chain_id) as reader:
        with pytest.raises(ChainUnavailable, match="in another block"):
            await reader.payments.look("0x" + payment.txid)


async def test_blocks_that_do_not_follow_each_other_are_refused(bitcoin: BitcoinChain) -> None:
    async def answers(method: str, parameters: list[Any]) -> Any:
        if method == "getblockhash" and parameters == [5]:
            parameters = [7]
        return await bitcoin.rpc(method, *parameters)

    async with node_that(answers) as url, ChainReader([url], REGTEST.chain_id) as reader:
        await transfers(reader, 1, 4, [address_of()])
        for first, anchor in ((4, None), (5, 4), (6, 5)):
            with pytest.raises(ChainUnavailable, match="does not follow"):
                await transfers(reader, first, 6, [address_of()], anchor=anchor)


async def test_a_node_without_a_new_block_for_an_hour_is_a_witness(bitcoin: BitcoinChain) -> None:
    """Blocks come every ten minutes, and by chance. Of an EVM chain such a node would be stuck, and have no vote."""
    now = 0.0
    async with ChainReader([bitcoin.url], REGTEST.chain_id, clock=lambda: now) as reader:
        assert len(await reader.payments.inclusion_reports("0x" + "ab" * 32, 1)) == 1
        now = 3_600.0
        assert len(await reader.payments.inclusion_reports("0x" + "ab" * 32, 1)) == 1
        now = 4 * 3_600.0
        assert await reader.payments.inclusion_reports("0x" + "ab" * 32, 1) == []


async def test_a_node_of_another_chain_is_refused_by_its_first_block(bitcoin: BitcoinChain) -> None:
    main = next(chain for chain in UTXO_CHAINS.values() if chain.name == "Bitcoin")
    async with ChainReader([bitcoin.url], main.chain_id) as reader:
        [health] = await reader.health()
        assert health.chain_id == REGTEST.chain_id
        assert health.error is not None
        with pytest.raises(ChainUnavailable):
            await reader.heads.height()


async def test_two_nodes_with_other_blocks_decide_nothing(
    bitcoin: BitcoinChain, tmp_path_factory: pytest.TempPathFactory
) -> None:
    second = BitcoinChain(tmp_path_factory.mktemp("second"), bitcoin.port + 100, name="second", coins=False)
    await second.start()
    try:
        height = await bitcoin.height()
        await bitcoin.share(second, await bitcoin.hashes(1, height))
        payment = await bitcoin.pay((script_of(address_of(3)), SATOSHIS))
        [paid_in] = await bitcoin.mine()
        await second.mine()
        async with ChainReader([bitcoin.url, second.url], REGTEST.chain_id) as reader:
            view = await reader.payments.look("0x" + payment.txid)
            with pytest.raises(ChainUnavailable):
                await reader.payments.cross_check("0x" + payment.txid, view)
            assert (await reader.blocks.canonical([height + 1])).hash_at(height + 1) is None
            await bitcoin.mine()
            await bitcoin.share(second, [paid_in, await bitcoin.rpc("getbestblockhash")])
            agreed = await reader.payments.cross_check(
                "0x" + payment.txid, await reader.payments.look("0x" + payment.txid)
            )
            assert is_included(agreed)
    finally:
        await second.stop()


def test_a_chain_is_numbered_by_its_first_block() -> None:
    assert {chain.name: chain_id for chain_id, chain in UTXO_CHAINS.items()} == {
        "Bitcoin": 6855323558289043,
        "Bitcoin testnet": 8701002993072570,
        "Bitcoin regtest": 7374829192725288,
    }
    assert all(UTXO_CHAINS_FROM <= chain_id < 2**53 for chain_id in UTXO_CHAINS)
    with pytest.raises(InvalidInput):
        chain_id_of_genesis("0x" + "00" * 32)
    with pytest.raises(InvalidInput, match="CHAIN_ID"):
        ChainReader(["http://127.0.0.1:1"], UTXO_CHAINS_FROM)
