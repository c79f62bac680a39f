"""The committed artifacts are what the sources give, and the smart wallet is one."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from devstack.chain import LocalChain, call_data, payer_wallets
from devstack.contracts import FOLDER, load_artifact
from devstack.errors import ChainCallError, DevstackError
from tests.devstack.conftest import ROOT

OWNER, OTHER, RELAYER = payer_wallets()[:3]
CONTRACTS = {
    "chain/contracts": [
        "CoinBalances",
        "Collector",
        "FirstPayment",
        "Forwarder",
        "PriceRounds",
        "SignatureValidator",
        "TokenBalances",
    ],
    "devstack/contracts": [
        "CoinSender",
        "FeeToken",
        "LyingToken",
        "Multisend",
        "PlainToken",
        "PriceFeed",
        "SilentToken",
        "SmartWallet",
        "SmartWalletFactory",
        "TestUSDC",
    ],
}


@pytest.mark.slow
def test_the_committed_artifacts_are_what_the_sources_compile_to(tmp_path: Path) -> None:
    node = shutil.which("node")
    assert node is not None, "Node.js is needed to compile; run: make install"
    done = subprocess.run(
        [node, str(FOLDER / "compile.mjs"), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for folder, names in CONTRACTS.items():
        committed, compiled = ROOT / folder / "artifacts", tmp_path / folder / "artifacts"
        assert sorted(path.stem for path in committed.iterdir()) == names
        assert sorted(path.stem for path in compiled.iterdir()) == names
        for path in compiled.iterdir():
            assert path.read_bytes() == (committed / path.name).read_bytes(), f"{path.name}: compile again"


@pytest.mark.parametrize("folder", CONTRACTS)
def test_the_sources_are_ours_and_their_artifacts_name_them(folder: str) -> None:
    sources = sorted((ROOT / folder).glob("*.sol"))
    assert [source.stem for source in sources] == CONTRACTS[folder]
    for source in sources:
        assert source.read_text().startswith("// SPDX-License-Identifier: UNLICENSED")
        artifact = json.loads((ROOT / folder / "artifacts" / f"{source.stem}.json").read_text())
        assert artifact["sourceSha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert artifact["compiler"].startswith("0.8.37+")


def test_an_unknown_contract_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DevstackError, match="FeeToken, LyingToken, Multisend, PlainToken"):
        load_artifact("Other")


async def test_a_smart_wallet_lies_where_it_was_said_to(chain: LocalChain) -> None:
    address = chain.smart_wallet_address(OWNER.address)
    assert await chain.deploy_smart_wallet(OWNER.address) == address
    assert await chain.read("SmartWallet", "owner", address=address) == OWNER.address.lower()
    factory = chain.smart_wallet_factory_address
    told = await chain.read("SmartWalletFactory", "addressOf", OWNER.address, bytes(32), address=factory)
    assert told == address.lower()
    others = {
        address,
        chain.smart_wallet_address(OWNER.address, 1),
        chain.smart_wallet_address(OTHER.address),
    }
    assert len(others) == 3


async def test_deploying_a_smart_wallet_twice_changes_nothing(chain: LocalChain) -> None:
    address = await chain.deploy_smart_wallet(OWNER.address)
    code = await chain.rpc("eth_getCode", address, "latest")
    assert await chain.deploy_smart_wallet(OWNER.address) == address
    assert await chain.rpc("eth_getCode", address, "latest") == code != "0x"


@pytest.mark.parametrize("relayer_key", [None, RELAYER.private_key])
async def test_a_smart_wallet_pays_through_another_sender(chain: LocalChain, relayer_key: str | None) -> None:
    wallet = await chain.deploy_smart_wallet(OWNER.address)
    await chain.mint(wallet, 100)
    await chain.mine()
    before = [await chain.token_balance_raw(address) for address in (wallet, chain.treasury_address)]
    tx_hash = await chain.pay_from_smart_wallet(OWNER.private_key, chain.treasury_address, 30, relayer_key=relayer_key)
    await chain.mine()
    receipt = await chain.wait_for_receipt(tx_hash)
    assert int(receipt["status"], 16) == 1
    assert receipt["from"] == (RELAYER if relayer_key else OWNER).address.lower()
    assert receipt["to"] == wallet.lower()
    (log,) = receipt["logs"]
    assert log["address"] == chain.token_address.lower()
    assert log["topics"][1][26:] == wallet[2:].lower()
    after = [await chain.token_balance_raw(address) for address in (wallet, chain.treasury_address)]
    assert after == [before[0] - 30, before[1] + 30]


async def test_a_smart_wallet_obeys_its_owner_only_and_each_signature_once(chain: LocalChain) -> None:
    wallet = await chain.deploy_smart_wallet(OWNER.address)
    await chain.mint(wallet, 100)
    await chain.mine()

    async def refusal(sender: str, data: str) -> str:
        with pytest.raises(ChainCallError) as caught:
            await chain.rpc("eth_call", {"from": sender, "to": wallet, "data": data}, "latest")
        return str(caught.value)

    transfer = bytes.fromhex(call_data("TestUSDC", "transfer", OTHER.address, 1)[2:])
    execute = call_data("SmartWallet", "execute", chain.token_address, 0, transfer)
    assert "only the owner" in await refusal(OTHER.address, execute)
    signed = call_data("SmartWallet", "executeSigned", chain.token_address, 0, transfer, bytes(65))
    assert "not the owner's signature" in await refusal(OWNER.address, signed)
    tx_hash = await chain.pay_from_smart_wallet(OWNER.private_key, OTHER.address, 1, relayer_key=RELAYER.private_key)
    await chain.mine()
    assert int((await chain.wait_for_receipt(tx_hash))["status"], 16) == 1
    used = (await chain.rpc("eth_getTransactionByHash", tx_hash))["input"]
    assert "not the owner's signature" in await refusal(RELAYER.address, used)


async def test_what_a_smart_wallet_cannot_pay_reverts(chain: LocalChain) -> None:
    wallet = await chain.deploy_smart_wallet(OTHER.address)
    tx_hash = await chain.pay_from_smart_wallet(OTHER.private_key, chain.treasury_address, 1)
    await chain.mine()
    assert int((await chain.wait_for_receipt(tx_hash))["status"], 16) == 0
    assert await chain.token_balance_raw(wallet) == 0
