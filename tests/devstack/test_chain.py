"""The local chain forgets nothing that it confirmed, and can be made to misbehave on request."""

import asyncio
import gzip
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from devstack import chain as module
from devstack.chain import MINT_RAW, LocalChain, created_address, dev_wallets, locate_anvil, payer_wallets
from devstack.contracts import load_artifact
from devstack.errors import ChainCallError, MissingPartError, PartFailedError
from devstack.processes import wait_until

PAYER, OTHER, THIRD = payer_wallets()[:3]


async def status_of(chain: LocalChain, tx_hash: str) -> int:
    return int((await chain.wait_for_receipt(tx_hash))["status"], 16)


async def test_blocks_receipts_logs_and_nonces_survive_a_kill(tmp_path: Path) -> None:
    chain = LocalChain(tmp_path, block_time_seconds=1)
    await chain.start()
    try:
        tx_hash = await chain.pay(PAYER.private_key, chain.treasury_address, 5_000_000)
        receipt = await chain.wait_for_receipt(tx_hash)
        assert await chain.save_if_advanced()
        before = await facts(chain, receipt)
        url = chain.url
        await chain.kill()
        await chain.start()
        assert chain.url == url
        assert await facts(chain, receipt) == before
        head = await chain.rpc("eth_getBlockByNumber", "latest", False)
        newer = await chain.pay(PAYER.private_key, chain.treasury_address, 1)
        mined = await chain.wait_for_receipt(newer)
        assert int(mined["blockNumber"], 16) == int(head["number"], 16) + 1
        block = await chain.rpc("eth_getBlockByHash", mined["blockHash"], False)
        assert block["parentHash"] == head["hash"]
        assert abs(int(block["timestamp"], 16) - time.time()) < 5
        await chain.stop()
        await chain.start()
        assert await chain.wait_for_receipt(newer) == mined
    finally:
        await chain.stop()


async def facts(chain: LocalChain, receipt: dict[str, object]) -> list[object]:
    block = str(receipt["blockNumber"])
    return await chain.rpc_batch(
        [
            ("eth_getTransactionReceipt", (receipt["transactionHash"],)),
            ("eth_getBlockByNumber", (block, True)),
            ("eth_getLogs", ({"fromBlock": "0x0", "toBlock": block, "address": chain.token_address},)),
            ("eth_getTransactionCount", (PAYER.address, "latest")),
            ("eth_getCode", (chain.token_address, "latest")),
        ]
    )


async def test_a_block_mined_after_the_last_save_is_kept_by_a_polite_end(tmp_path: Path) -> None:
    chain = LocalChain(tmp_path, block_time_seconds=None)
    await chain.start()
    await chain.mine(3)
    head = await chain.rpc("eth_getBlockByNumber", "latest", False)
    assert chain._child is not None
    await chain._child.stop()  # as the kernel does when the supervisor dies: the state was not requested
    await chain.start()
    try:
        assert await chain.rpc("eth_getBlockByNumber", "latest", False) == head
    finally:
        await chain.stop()


async def test_a_half_written_state_is_not_loaded(tmp_path: Path) -> None:
    chain = LocalChain(tmp_path, block_time_seconds=None)
    await chain.start()
    await chain.mine(3)
    number = await chain.block_number()
    await chain.stop()
    (tmp_path / "chain" / "at-exit.json").write_text('{"block": {"number": "0x9')
    await chain.start()
    assert await chain.block_number() == number
    await chain.stop()
    saved = tmp_path / "chain" / "state.json.gz"
    (tmp_path / "chain" / "at-exit.json").unlink()
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(PartFailedError, match="is damaged"):
        await chain.start()


async def test_only_a_head_that_moved_is_saved(chain: LocalChain) -> None:
    await chain.mine()
    await chain.save_if_advanced(even_empty_blocks=True)
    assert not await chain.save_if_advanced()
    tx_hash = await chain.pay(PAYER.private_key, chain.treasury_address, 1)
    await chain.mine()
    assert await chain.save_if_advanced()
    assert tx_hash.encode() in gzip.decompress((chain.state_dir / "chain" / "state.json.gz").read_bytes())


async def test_empty_blocks_of_a_long_chain_are_queued(chain: LocalChain) -> None:
    await chain.mine()
    await chain.save()
    chain._next_save_of_empty_blocks = time.monotonic() + 60
    await chain.mine()
    assert not await chain.save_if_advanced()
    await chain.pay(PAYER.private_key, chain.treasury_address, 1)
    await chain.mine()
    assert await chain.save_if_advanced()


async def test_deploying_twice_changes_nothing(chain: LocalChain) -> None:
    deployer = dev_wallets()[0]
    assert chain.token_address == created_address(deployer.address, 0)
    assert await chain.rpc("eth_getCode", chain.token_address, "latest") != "0x"
    count = await chain.rpc("eth_getTransactionCount", deployer.address, "latest")
    supply = await chain.read("TestUSDC", "totalSupply")
    await chain.deploy()
    assert await chain.rpc("eth_getTransactionCount", deployer.address, "latest") == count
    assert await chain.read("TestUSDC", "totalSupply") == supply == MINT_RAW * len(payer_wallets())


async def test_a_set_up_that_was_interrupted_is_completed(tmp_path: Path) -> None:
    chain = LocalChain(tmp_path, block_time_seconds=None, deploy_contracts=False)
    await chain.start()
    try:
        deployer = dev_wallets()[0]
        await chain.send(deployer.private_key, None, load_artifact("TestUSDC").bytecode, gas=module.DEPLOY_GAS)
        await chain.mine()
        await chain.deploy()
        assert await chain.token_balance_raw(THIRD.address) == MINT_RAW
    finally:
        await chain.stop()


async def test_many_payments_of_one_key_at_once_all_arrive(chain: LocalChain) -> None:
    before = await chain.token_balance_raw(chain.treasury_address)
    hashes = await asyncio.gather(*(chain.pay(OTHER.private_key, chain.treasury_address, 10) for _ in range(8)))
    await chain.mine()
    assert [await status_of(chain, tx_hash) for tx_hash in hashes] == [1] * 8
    assert await chain.token_balance_raw(chain.treasury_address) == before + 80


async def test_a_payment_beyond_the_balance_is_mined_and_reverts(chain: LocalChain) -> None:
    tx_hash = await chain.pay(PAYER.private_key, chain.treasury_address, 10 * MINT_RAW)
    await chain.mine()
    assert await status_of(chain, tx_hash) == 0


async def test_a_transaction_that_was_sped_up_is_mined_under_its_new_hash(chain: LocalChain) -> None:
    slow = await chain.pay(PAYER.private_key, chain.treasury_address, 77)
    fast = await chain.speed_up(PAYER.private_key, slow)
    await chain.mine()
    assert await status_of(chain, fast) == 1
    assert await chain.rpc("eth_getTransactionReceipt", slow) is None


async def test_a_reorganisation_removes_or_moves_a_transaction(chain: LocalChain) -> None:
    await chain.mine(2)
    gone = await chain.pay(PAYER.private_key, chain.treasury_address, 1)
    await chain.mine()
    await chain.wait_for_receipt(gone)
    moved = await chain.pay(OTHER.private_key, chain.treasury_address, 2)
    await chain.mine()
    old = await chain.wait_for_receipt(moved)
    raw = await chain.raw_transaction(moved)
    await chain.mine()
    await chain.reorg(4, [(raw, 2)])
    new = await chain.wait_for_receipt(moved)
    assert new["blockHash"] != old["blockHash"]
    assert await chain.rpc("eth_getTransactionReceipt", gone) is None
    assert await chain.rpc("eth_getBlockByHash", old["blockHash"], False) is None


async def test_blocks_of_before_a_restart_can_be_undone_when_history_is_kept(tmp_path: Path) -> None:
    chain = LocalChain(tmp_path, block_time_seconds=None, keep_history=True)
    await chain.start()
    try:
        tx_hash = await chain.pay(PAYER.private_key, chain.treasury_address, 1)
        await chain.mine(3)
        await chain.wait_for_receipt(tx_hash)
        await chain.save()
        await chain.kill()
        await chain.start()
        assert await status_of(chain, tx_hash) == 1
        await chain.reorg(3)
        assert await chain.rpc("eth_getTransactionReceipt", tx_hash) is None
    finally:
        await chain.stop()


async def test_a_snapshot_brings_the_past_back(chain: LocalChain) -> None:
    snapshot = await chain.snapshot()
    before = await chain.block_number()
    await chain.mine(4)
    await chain.set_balance(chain.token_address, 123)
    assert int(await chain.rpc("eth_getBalance", chain.token_address, "latest"), 16) == 123
    await chain.revert(snapshot)
    assert await chain.block_number() == before
    with pytest.raises(ChainCallError, match="no snapshot"):
        await chain.revert("0xdead")


async def test_interval_mining_goes_on_by_itself(tmp_path: Path) -> None:
    chain = LocalChain(tmp_path, block_time_seconds=0.5)
    await chain.start()
    try:
        before = await chain.block_number()

        async def advanced() -> bool:
            return await chain.block_number() >= before + 2

        await wait_until(advanced, timeout_seconds=5, what="two blocks")
    finally:
        await chain.stop()


async def test_a_node_that_is_down_is_one_clear_error(tmp_path: Path) -> None:
    chain = LocalChain(tmp_path, block_time_seconds=None)
    await chain.start()
    await chain.stop()
    with pytest.raises(ChainCallError, match="eth_blockNumber: no answer from"):
        await chain.block_number()


def test_a_missing_binary_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETTLE_NODE_MODULES", str(tmp_path))
    with pytest.raises(MissingPartError, match="run: npm install"):
        locate_anvil()
    monkeypatch.setattr(
        module, "platform", SimpleNamespace(system=lambda: "Plan9", machine=lambda: "mips"), raising=True
    )
    with pytest.raises(MissingPartError, match="Plan9 on mips"):
        locate_anvil()


async def test_no_other_user_reads_the_state(chain: LocalChain) -> None:
    assert (chain.state_dir / "chain").stat().st_mode & 0o077 == 0
