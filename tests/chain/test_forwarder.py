"""A deposit address really pays to the treasury, whatever the tokens do, and to no other place. Gas is exact."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from eth_utils.crypto import keccak

from chain.collection import (
    collect_call,
    collector_address,
    collector_deployment,
    flush_call,
    forwarder_deployment,
)
from chain.contracts import creation_code
from chain.derivation.addresses import derive_address
from chain.derivation.create2 import CREATE2_DEPLOYER, init_code, salt_of_account
from devstack.chain import LocalChain, call_data, dev_wallets, payer_wallets
from domain.deposits.methods import Scheme

OWNER: Final = payer_wallets()[-1]
STRANGER: Final = payer_wallets()[0]
GAS_MAX: Final = 3_000_000


# What eth_getCode returns, for comparison with other chains': its source is 69 bytes of Yul.
DEPLOYER_CODE: Final = (
    "0x7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe0"
    "3601600081602082378035828234f58015156039578182fd5b8082525050506014600cf3"
)
DEPLOY_GAS: Final = 172_866
FLUSH_GAS: Final = 57_409
FLUSH_COIN_GAS: Final = 31_078
RECEIVE_GAS: Final = 21_055
COLLECTOR_GAS: Final = 279_084
COLLECT_20_FIRST_GAS: Final = 2_968_611
COLLECT_20_AGAIN_GAS: Final = 291_413


@pytest.fixture(scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalChain]:
    """A chain that mines only on request."""
    node = LocalChain(tmp_path_factory.mktemp("chain"), block_time_seconds=None)
    await node.start()
    yield node
    await node.stop()


async def mined(chain: LocalChain, to: str, data: bytes, *, gas: int = GAS_MAX) -> dict[str, Any]:
    """The receipt of a transaction of a stranger."""
    tx_hash = await chain.send(STRANGER.private_key, to, "0x" + data.hex(), gas=gas)
    await chain.mine()
    receipt: dict[str, Any] = await chain.wait_for_receipt(tx_hash)
    return receipt


def succeeded(receipt: dict[str, Any]) -> int:
    """The gas that it used."""
    assert int(receipt["status"], 16) == 1
    return int(receipt["gasUsed"], 16)


class Addresses:
    """Deposit addresses of accounts that no test has used before."""

    def __init__(self, chain: LocalChain) -> None:
        self._chain = chain
        self._taken = 0

    def next(self) -> tuple[str, str]:
        """Salt and address."""
        self._taken += 1
        salt = salt_of_account(f"account-{self._taken}")
        return salt, derive_address(Scheme.CREATE2, treasury=self._chain.treasury_address, salt=salt)


@pytest.fixture(scope="module")
def addresses(chain: LocalChain) -> Addresses:
    return Addresses(chain)


async def with_runtime(chain: LocalChain, code: str) -> str:
    """A contract with that code, at an address of its own."""
    address = "0x" + keccak(text=code)[:20].hex()
    await chain.rpc("anvil_setCode", address, "0x" + code)
    return address


async def deploy(chain: LocalChain, salt: str) -> dict[str, Any]:
    return await mined(chain, CREATE2_DEPLOYER, forwarder_deployment(salt, chain.treasury_address))


async def code_at(chain: LocalChain, address: str) -> str:
    return str(await chain.rpc("eth_getCode", address, "latest"))


async def test_what_was_paid_before_the_contract_was_there_reaches_the_treasury(
    chain: LocalChain, addresses: Addresses
) -> None:
    salt, address = addresses.next()
    await chain.mint(address, 25_000_000)
    await chain.mine()
    assert await code_at(chain, address) == "0x"
    before = await chain.token_balance_raw(chain.treasury_address)
    deployed = succeeded(await deploy(chain, salt))
    assert (await code_at(chain, address)) != "0x"
    flushed = succeeded(await mined(chain, address, flush_call([chain.token_address])))
    assert await chain.token_balance_raw(chain.treasury_address) == before + 25_000_000
    assert await chain.token_balance_raw(address) == 0
    assert (deployed, flushed) == (DEPLOY_GAS, FLUSH_GAS)


async def test_the_treasury_can_be_read_and_not_changed(chain: LocalChain, addresses: Addresses) -> None:
    salt, address = addresses.next()
    await deploy(chain, salt)
    read = await chain.rpc("eth_call", {"to": address, "data": "0x" + keccak(text="treasury()")[:4].hex()}, "latest")
    assert read[26:] == chain.treasury_address[2:].lower()
    again = await deploy(chain, salt)
    assert int(again["status"], 16) == 0


async def test_the_address_has_no_function_but_two(chain: LocalChain, addresses: Addresses) -> None:
    salt, address = addresses.next()
    await deploy(chain, salt)
    for name in ("transfer(address,uint256)", "execute(address,bytes)", "init(address)", "owner()"):
        receipt = await mined(chain, address, keccak(text=name)[:4] + bytes(64))
        assert int(receipt["status"], 16) == 0


async def test_coins_are_received_with_the_least_gas_and_sent_on(chain: LocalChain, addresses: Addresses) -> None:
    """Exchanges send with 21,000 gas, as to a key: too little for any contract that does something on receipt."""
    salt, address = addresses.next()
    await deploy(chain, salt)
    payment = {"from": STRANGER.address, "to": address, "value": hex(10**18)}
    assert int(await chain.rpc("eth_estimateGas", payment), 16) == RECEIVE_GAS
    await chain.set_balance(address, 10**18)
    before = int(await chain.rpc("eth_getBalance", chain.treasury_address, "latest"), 16)
    gas = succeeded(await mined(chain, address, flush_call([])))
    assert int(await chain.rpc("eth_getBalance", chain.treasury_address, "latest"), 16) == before + 10**18
    assert int(await chain.rpc("eth_getBalance", address, "latest"), 16) == 0
    assert gas == FLUSH_COIN_GAS


@pytest.mark.parametrize(
    ("contract", "arrives"), [("PlainToken", 10_000), ("SilentToken", 10_000), ("FeeToken", 9_900)]
)
async def test_a_token_of_another_kind_is_collected(
    chain: LocalChain, addresses: Addresses, contract: str, arrives: int
) -> None:
    token = await chain.deploy_token(contract, "TKN", 18)
    salt, address = addresses.next()
    await chain.mint(address, 10_000, token=token, owner=OWNER)
    await deploy(chain, salt)
    succeeded(await mined(chain, address, flush_call([token])))
    assert await chain.token_balance_raw(chain.treasury_address, token=token) == arrives
    assert await chain.token_balance_raw(address, token=token) == 0


@pytest.mark.parametrize(
    "transfer",
    [
        pytest.param("5f5ffd", id="reverts"),
        pytest.param("fe", id="burns the gas it is given"),
        pytest.param("621000005ff3", id="returns a megabyte"),
        pytest.param("5f5ff3", id="returns nothing and moves nothing"),
    ],
)
async def test_a_token_that_misbehaves_does_not_stop_the_others(
    chain: LocalChain, addresses: Addresses, transfer: str
) -> None:
    # CALLDATASIZE == 36 is balanceOf, and its answer 1; everything else is what the token does in a transfer.
    bad = await with_runtime(chain, f"3660241460{7 + len(transfer) // 2:02x}57{transfer}5b60015f5260205ff3")
    salt, address = addresses.next()
    await chain.mint(address, 7)
    await chain.set_balance(address, 5)
    await deploy(chain, salt)
    before = await chain.token_balance_raw(chain.treasury_address)
    succeeded(await mined(chain, address, flush_call([bad, chain.token_address]), gas=20_000_000))
    assert await chain.token_balance_raw(chain.treasury_address) == before + 7
    assert int(await chain.rpc("eth_getBalance", address, "latest"), 16) == 0


async def test_an_address_that_is_no_token_does_not_stop_the_others(chain: LocalChain, addresses: Addresses) -> None:
    salt, address = addresses.next()
    await chain.mint(address, 7)
    await deploy(chain, salt)
    tokens = [STRANGER.address, await with_runtime(chain, "00"), chain.token_address]
    succeeded(await mined(chain, address, flush_call(tokens)))
    assert await chain.token_balance_raw(address) == 0


async def test_what_the_token_blocks_stays_and_is_collected_later(chain: LocalChain, addresses: Addresses) -> None:
    salt, address = addresses.next()
    await chain.mint(address, 7)
    await deploy(chain, salt)
    deployer = dev_wallets()[0].private_key
    await chain.send(deployer, chain.token_address, call_data("TestUSDC", "blacklist", address))
    succeeded(await mined(chain, address, flush_call([chain.token_address])))
    assert await chain.token_balance_raw(address) == 7
    await chain.send(deployer, chain.token_address, call_data("TestUSDC", "unBlacklist", address))
    succeeded(await mined(chain, address, flush_call([chain.token_address])))
    assert await chain.token_balance_raw(address) == 0


async def test_many_addresses_are_collected_in_one_transaction(chain: LocalChain, addresses: Addresses) -> None:
    gas = succeeded(await mined(chain, CREATE2_DEPLOYER, collector_deployment()))
    assert gas == COLLECTOR_GAS
    assert await code_at(chain, collector_address()) != "0x"
    pairs = [addresses.next() for _ in range(20)]
    salts = [salt for salt, _ in pairs]
    await deploy(chain, salts[3])  # a stranger was first
    for _, address in pairs:
        await chain.mint(address, 1_000_000)
    await chain.mine()
    before = await chain.token_balance_raw(chain.treasury_address)
    call = collect_call(chain.treasury_address, salts, [chain.token_address])
    first = succeeded(await mined(chain, collector_address(), call, gas=10_000_000))
    assert await chain.token_balance_raw(chain.treasury_address) == before + 20_000_000
    for _, address in pairs:
        await chain.mint(address, 1_000_000)
    await chain.mine()
    again = succeeded(await mined(chain, collector_address(), call, gas=10_000_000))
    assert await chain.token_balance_raw(chain.treasury_address) == before + 40_000_000
    assert (first, again) == (COLLECT_20_FIRST_GAS, COLLECT_20_AGAIN_GAS)


async def test_the_deterministic_deployer_is_what_the_chain_has(chain: LocalChain) -> None:
    assert await code_at(chain, CREATE2_DEPLOYER) == DEPLOYER_CODE


def test_the_creation_code_holds_the_treasury_and_nothing_else_that_varies(chain: LocalChain) -> None:
    code = init_code(chain.treasury_address)
    assert code == creation_code("Forwarder") + bytes(12) + bytes.fromhex(chain.treasury_address[2:])
