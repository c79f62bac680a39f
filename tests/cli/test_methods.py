"""`settle methods` and `settle addresses`: what is registered is checked first, what is given out can be computed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import pytest
from eth_utils.crypto import keccak

from chain.derivation.addresses import address_of_key
from chain.derivation.bip32 import parse_account_key
from chain.derivation.create2 import CREATE2_DEPLOYER
from chain.derivation.networks import parse_account_path
from commands.chain_checks import check_native_coin
from commands.local_method import PRICED_METHOD, PRICED_MINT_RAW, seed_local_method, seed_priced_method
from devstack.chain import LocalChain, payer_wallets
from domain.errors import ChainUnavailable
from services.deposits.price_sources import AGE_SECONDS_MAX
from settings import load
from tests.chain.faulty_node import FaultyNode, Refusal
from tests.cli.command import ResponseModel, settle
from tests.deposits.feeds import Feed, deploy_feed
from tests.support.addresses import (
    BITCOIN_PATH,
    EVM_PATH,
    add_create2_address,
    add_ring_address,
    bitcoin_zpub,
    chain_variables,
    evm_xpub,
    stored_ring,
)
from tests.support.postgres import Database
from tests.support.spending import open_wallets_account
from tests.support.sql import query, scalar

WALLET: Final = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
SEED: Final = bytes(range(32))

Run = Any


@pytest.fixture
def run(database: Database, chain: LocalChain, tmp_path: Path) -> Run:
    """Runs a command with the settings of the local chain."""
    variables = chain_variables(database, chain)

    async def settled(*arguments: str, **changes: str) -> ResponseModel:
        return await asyncio.to_thread(settle, arguments, {**variables, **changes}, tmp_path)

    return settled


def add(local: LocalChain, *more: str, **changes: str) -> list[str]:
    """The arguments of a create2 method for the local USDC, with changes to its options."""
    options = {
        "id": "USDC:local",
        "chain": str(local.chain_id),
        "token": local.token_address,
        "decimals": "6",
        "scheme": "create2",
    } | changes
    return ["methods", "add", *(part for name, value in options.items() for part in (f"--{name}", value)), *more]


def methods_of(database: Database) -> list[tuple[Any, ...]]:
    return query(database.superuser_url, "SELECT id, token, scheme, enabled FROM payment_methods ORDER BY id")


async def test_a_method_is_registered_with_its_two_ledger_accounts(
    run: Run, database: Database, chain: LocalChain
) -> None:
    done = await run(*add(chain, "--json", **{"min-raw": "1000000", "confirmations": "3"}))
    assert done.exit_code == 0, done.stderr
    made = done.json()
    assert [made[name] for name in ("id", "chainId", "token", "address", "decimals", "kind", "scheme")] == [
        *("USDC:local", chain.chain_id, "USDC", chain.token_address, 6, "erc20", "create2"),
    ]
    assert (made["minAmountRaw"], made["confirmations"], made["enabled"]) == (1_000_000, 3, True)
    accounts = query(database.superuser_url, "SELECT code FROM ledger_accounts WHERE code LIKE 'cash:%' ORDER BY code")
    assert accounts == [("cash:usdc",), ("cash:usdc:deposits",)]
    listed = await run("methods", "list", "--json")
    assert [method["id"] for method in listed.json()] == ["USDC:local"]
    assert "USDC:local" in (await run("methods", "list")).stdout


async def test_a_second_token_gets_ledger_accounts_of_its_own(run: Run, database: Database, chain: LocalChain) -> None:
    token = await chain.deploy_token("PlainToken", "DAI", 18)
    done = await run(*add(chain, id="DAI:local", token=token, decimals="18"))
    assert done.exit_code == 0, done.stderr
    sql = "SELECT count(*) FROM ledger_accounts WHERE code IN ('cash:dai', 'cash:dai:deposits')"
    assert scalar(database.superuser_url, sql) == 2


async def test_adding_a_method_again_enables_it_and_changes_its_minimum(
    run: Run, database: Database, chain: LocalChain
) -> None:
    assert (await run(*add(chain))).exit_code == 0
    disabled = await run("methods", "disable", "USDC:local", "--json")
    assert (disabled.exit_code, disabled.json()["enabled"]) == (0, False)
    assert methods_of(database) == [("USDC:local", "USDC", "create2", False)]
    again = await run(*add(chain, "--json", **{"min-raw": "7"}))
    assert (again.json()["enabled"], again.json()["minAmountRaw"]) == (True, 7)


async def test_disabling_an_unknown_method_is_refused(run: Run) -> None:
    assert (await run("methods", "disable", "USDC:moon")).exit_code == 1
    assert (await run("methods", "disable")).exit_code == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id": "USDC"}, "expected SYMBOL:CHAIN"),
        ({"chain": "1"}, "the settings are of chain 31337"),
        ({"token": "0x" + "12" * 20}, "there is no contract at"),
        ({"token": "USDC"}, "expected the address of a token's contract"),
        ({"token": "0x1234"}, "expected 0x and 40 hex digits"),
        ({"decimals": "18"}, "has 6, got 18"),
        ({"decimals": "99"}, "expected 0 to 36"),
        ({"min-raw": "0"}, "expected 1 to"),
        ({"confirmations": "0"}, "expected 1 to"),
        ({"xpub": evm_xpub()}, "belongs to --scheme xpub"),
        ({"scheme": "xpub"}, "is needed with --scheme xpub"),
        ({"id": "USDT:local"}, "is registered as USDC"),
        ({"id": "usdc:local"}, "writes the symbol as USDC"),
    ],
)
async def test_a_method_that_contradicts_itself_or_the_chain_is_refused(
    run: Run, database: Database, chain: LocalChain, changes: dict[str, str], says: str
) -> None:
    done = await run(*add(chain, **changes))
    assert done.exit_code == 2
    assert says in done.stderr
    assert methods_of(database) == []


async def test_a_symbol_that_means_another_contract_is_refused(run: Run, database: Database, chain: LocalChain) -> None:
    """A worthless token that is registered as USDC would be credited as dollars."""
    worthless = await chain.deploy_token("PlainToken", "USDC", 6)
    done = await run(*add(chain, token=worthless))
    assert done.exit_code == 2
    assert f"on chain {chain.chain_id} USDC is {chain.token_address}" in done.stderr
    assert methods_of(database) == []


async def test_two_methods_share_a_contract_but_never_a_symbol(run: Run, database: Database, chain: LocalChain) -> None:
    token = await chain.deploy_token("PlainToken", "DAI", 18)
    other = await chain.deploy_token("PlainToken", "DAI", 18)
    assert (await run(*add(chain, id="DAI:local", token=token, decimals="18"))).exit_code == 0
    second = await run(*add(chain, id="DAI:other", token=other, decimals="18"))
    assert second.exit_code == 2 and f"DAI is {token}" in second.stderr
    renamed = await run(*add(chain, id="SAI:local", token=token, decimals="18"))
    assert renamed.exit_code == 2 and "is registered as DAI" in renamed.stderr
    moved = await run(*add(chain, id="DAI:local", token=other, decimals="18"))
    assert moved.exit_code == 2 and "a change needs another --id" in moved.stderr


async def test_a_key_is_registered_once_its_owner_has_confirmed_its_first_address(
    run: Run, database: Database, chain: LocalChain
) -> None:
    """Fault 17: a key was stored unchecked. Fault 4: registering a chain always failed."""
    of_key = {"id": "USDC:wallet", "scheme": "xpub", "xpub": evm_xpub(SEED), "path": EVM_PATH}
    external = parse_account_key(of_key["xpub"], EVM_PATH).child(0)
    path = parse_account_path(EVM_PATH)
    shown = [address_of_key(external.child(number).public_key, path) for number in range(3)]
    wrong = await run(*add(chain, "--confirm", shown[1], **of_key))
    assert methods_of(database) == []
    assert wrong.exit_code == 2 and "first address" in wrong.stderr
    done = await run(*add(chain, "--confirm", shown[0], "--json", **of_key))
    assert done.exit_code == 0, done.stderr
    assert done.json()["firstAddresses"] == shown and all(address in done.stderr for address in shown)
    # Another method with the key needs no second confirmation, and shares its counter.
    token = await chain.deploy_token("PlainToken", "DAI", 18)
    second = await run(*add(chain, "--json", **(of_key | {"id": "DAI:wallet", "token": token, "decimals": "18"})))
    assert second.exit_code == 0, second.stderr
    assert second.json()["ringId"] == done.json()["ringId"]
    assert scalar(database.superuser_url, "SELECT count(*) FROM address_rings") == 1


async def test_without_a_terminal_the_addresses_are_shown_to_be_compared(run: Run, chain: LocalChain) -> None:
    of_key = {"id": "USDC:wallet", "scheme": "xpub", "xpub": evm_xpub(SEED), "path": EVM_PATH}
    done = await run(*add(chain, "--json", **of_key))
    assert done.exit_code == 0, done.stderr
    assert len(done.json()["firstAddresses"]) == 3
    assert "compare the addresses" in done.stderr


async def test_the_same_key_under_another_path_or_prefix_is_refused(run: Run, database: Database) -> None:
    """Two counters over one key would give the same address to two customers."""
    from chain.derivation.bip32 import ExtendedKey, parse_extended_key

    key = parse_extended_key(bitcoin_zpub(SEED))
    as_xpub = str(
        ExtendedKey(0x0488B21E, key.depth, key.parent_fingerprint, key.child_number, key.chain_code, key.public_key)
    )
    bitcoin = ["methods", "add", "--id", "BTC:bitcoin", "--chain", "2147483648", "--token", "BTC", "--decimals", "8"]
    of_key = ["--scheme", "xpub", "--xpub", bitcoin_zpub(SEED), "--path", BITCOIN_PATH, "--yes"]
    assert (await run(*bitcoin, *of_key)).exit_code == 0
    other = ["--scheme", "xpub", "--xpub", as_xpub, "--path", "m/44'/0'/0'", "--yes"]
    refused = await run(*("BTC:legacy" if part == "BTC:bitcoin" else part for part in bitcoin), *other)
    assert refused.exit_code == 2
    assert "zpub… at m/84'/0'/0'" in refused.stderr
    assert scalar(database.superuser_url, "SELECT count(*) FROM address_rings") == 1


@pytest.mark.parametrize(
    ("xpub", "path", "says"),
    [
        (bitcoin_zpub(SEED), EVM_PATH, "expected xpub for EVM"),
        (evm_xpub(SEED), "m/44'/60'/1'", "expected 1'"),
        (evm_xpub(SEED)[:-1] + "x", EVM_PATH, "the checksum is wrong"),
    ],
)
async def test_a_key_that_is_not_the_accounts_is_refused_by_its_option(
    run: Run, chain: LocalChain, xpub: str, path: str, says: str
) -> None:
    done = await run(*add(chain, "--yes", id="USDC:wallet", scheme="xpub", xpub=xpub, path=path))
    assert done.exit_code == 2
    assert says in done.stderr and "--xpub" in done.stderr


async def test_a_private_key_is_refused_and_not_repeated(run: Run, database: Database, chain: LocalChain) -> None:
    from bip_utils import Bip32Slip10Secp256k1

    private = Bip32Slip10Secp256k1.FromSeedAndPath(SEED, EVM_PATH).PrivateKey().ToExtended()
    done = await run(*add(chain, "--yes", id="USDC:wallet", scheme="xpub", xpub=private, path=EVM_PATH))
    assert done.exit_code == 2
    assert "private key" in done.stderr and private[10:40] not in done.stderr + done.stdout
    assert scalar(database.superuser_url, "SELECT count(*) FROM address_rings") == 0


async def test_a_chain_without_the_deployer_gives_no_create2_addresses(
    run: Run, chain: LocalChain, database: Database
) -> None:
    code = await chain.rpc("eth_getCode", CREATE2_DEPLOYER, "latest")
    await chain.rpc("anvil_setCode", CREATE2_DEPLOYER, "0x")
    try:
        done = await run(*add(chain))
    finally:
        await chain.rpc("anvil_setCode", CREATE2_DEPLOYER, code)
    assert done.exit_code == 2 and "the deterministic deployer" in done.stderr
    assert methods_of(database) == []


async def test_verify_finds_a_method_whose_contract_is_another(run: Run, database: Database, chain: LocalChain) -> None:
    assert (await run(*add(chain))).exit_code == 0
    right = await run("methods", "verify", "--json")
    assert (right.exit_code, right.json()) == (
        0,
        [{"id": "USDC:local", "enabled": True, "problem": None, "price": None}],
    )
    query(database.superuser_url, "UPDATE payment_methods SET decimals = 5 RETURNING id")
    wrong = await run("methods", "verify", "USDC:local", "--json")
    assert wrong.exit_code == 1
    assert "has 6, got 5" in wrong.json()[0]["problem"]


async def test_an_exported_create2_address_can_be_computed_by_anyone(
    run: Run, database: Database, chain: LocalChain
) -> None:
    account = open_wallets_account(database, WALLET)
    _, address = add_create2_address(database, chain, account)
    (row,) = (await run("addresses", "export", "--json")).json()
    assert (row["address"], row["billingAccountId"], row["scheme"]) == (address, account, "create2")
    assert row["deployer"] == CREATE2_DEPLOYER
    code = bytes.fromhex(row["initCode"][2:])
    assert "0x" + keccak(code).hex() == row["initCodeHash"]
    parts = [b"\xff", *(bytes.fromhex(row[name][2:]) for name in ("deployer", "salt", "initCodeHash"))]
    assert keccak(b"".join(parts))[12:].hex() == address[2:].lower()
    assert code[-20:].hex() == chain.treasury_address[2:].lower()
    assert (await run("addresses", "export", "--account", "another", "--json")).json() == []


async def test_an_exported_key_has_a_descriptor_with_its_range(run: Run, database: Database, chain: LocalChain) -> None:
    account = open_wallets_account(database, WALLET)
    ring = stored_ring(database, path=BITCOIN_PATH, xpub=bitcoin_zpub(SEED))
    query(database.superuser_url, "UPDATE address_rings SET next_index = 5 RETURNING id")
    _, address = add_ring_address(database, 2147483648, account, ring, 4)
    (row,) = (await run("addresses", "export", "--json")).json()
    assert (row["address"], row["path"], row["index"]) == (address, "m/84'/0'/0'/0/4", 4)
    assert row["descriptor"].startswith("wpkh(xpub") and "/0/*)#" in row["descriptor"]
    assert row["range"] == [0, 4]


async def test_verify_exits_with_1_where_one_address_derives_differently(
    run: Run, database: Database, chain: LocalChain
) -> None:
    account = open_wallets_account(database, WALLET)
    add_create2_address(database, chain, account)
    ring = stored_ring(database, xpub=evm_xpub(SEED))
    row_id, _ = add_ring_address(database, chain.chain_id, account, ring, 0)
    right = await run("addresses", "verify", "--json")
    assert (right.exit_code, right.json()) == (0, {"checked": 2, "wrongCount": 0, "wrong": []})
    query(database.superuser_url, "UPDATE address_rings SET xpub = %s RETURNING id", evm_xpub(SEED, account=1))
    wrong = await run("addresses", "verify", "--json")
    assert wrong.exit_code == 1
    assert [one["id"] for one in wrong.json()["wrong"]] == [str(row_id)]


async def test_an_address_under_a_strangers_treasury_is_found(run: Run, database: Database, chain: LocalChain) -> None:
    account = open_wallets_account(database, WALLET)
    add_create2_address(database, chain, account, treasury="0x" + "11" * 20)
    wrong = await run("addresses", "verify", "--json")
    assert wrong.exit_code == 1
    assert "not a treasury" in wrong.json()["wrong"][0]["problem"]


async def test_a_local_system_has_a_method_unless_it_was_disabled(database: Database, chain: LocalChain) -> None:
    settings = load(chain_variables(database, chain))
    await seed_local_method(settings)
    assert methods_of(database) == [("USDC:local", "USDC", "create2", True)]
    query(database.superuser_url, "UPDATE payment_methods SET enabled = false RETURNING id")
    await seed_local_method(settings)
    assert methods_of(database) == [("USDC:local", "USDC", "create2", False)]


async def test_a_local_system_has_a_token_with_a_price_that_is_no_dollar(
    run: Run, database: Database, chain: LocalChain
) -> None:
    settings = load(chain_variables(database, chain))
    await seed_priced_method(settings, chain)
    [listed] = (await run("methods", "list", "--json")).json()
    assert (listed["id"], listed["price"]["priceUsd"], listed["price"]["problem"]) == (PRICED_METHOD, "2500", None)
    assert await chain.token_balance_raw(payer_wallets()[0].address, token=listed["address"]) == PRICED_MINT_RAW
    # Started again after a pause: the same token and feed, and a new round of the price that was said last.
    feed = Feed(chain, listed["price"]["feed"], last=1)
    await feed.answer(2_600, age=AGE_SECONDS_MAX + 60)
    assert (await run("methods", "verify")).exit_code == 1
    await seed_priced_method(settings, chain)
    [again] = (await run("methods", "list", "--json")).json()
    assert (again["address"], again["price"]["priceUsd"]) == (listed["address"], "2600")
    assert (await run("methods", "verify")).exit_code == 0


async def test_a_key_whose_unpaid_addresses_a_wallet_would_not_find_is_named(
    run: Run, database: Database, chain: LocalChain
) -> None:
    """On EVM chains such a key is not closed: its owner raises the limit of the wallet."""
    account = open_wallets_account(database, WALLET)
    ring = stored_ring(database, xpub=evm_xpub(SEED), gap_limit=6)
    add_ring_address(database, chain.chain_id, account, ring, 0)
    query(database.superuser_url, "UPDATE address_rings SET next_index = 6 RETURNING id")
    assert "wallets search" not in (await run("addresses", "verify")).stderr
    query(database.superuser_url, "UPDATE address_rings SET next_index = 7 RETURNING id")
    verified = await run("addresses", "verify")
    assert verified.exit_code == 0
    assert "7 addresses" in verified.stderr and EVM_PATH in verified.stderr and "wallets search 6" in verified.stderr


# -- a chain's own coin

COIN: Final = {"id": "ETH:local", "token": "ETH", "decimals": "18"}
ENABLED: Final = {"NATIVE_COIN_DEPOSITS": "true"}


async def test_a_chains_own_coin_is_refused_unless_the_settings_say_that_it_is_read(
    run: Run, database: Database, chain: LocalChain
) -> None:
    done = await run(*add(chain, **COIN))
    assert done.exit_code == 2
    assert "NATIVE_COIN_DEPOSITS=true" in done.stderr and "trace_block" in done.stderr
    assert methods_of(database) == []


async def test_a_chains_own_coin_is_registered_with_its_feed_where_every_node_traces(
    run: Run, database: Database, chain: LocalChain
) -> None:
    feed = await deploy_feed(chain, 2_500)
    done = await run(*add(chain, "--json", **COIN, **{"price-feed": feed.address}), **ENABLED)
    assert done.exit_code == 0, done.stderr
    made = done.json()
    assert [made[name] for name in ("kind", "address", "scheme", "enabled")] == ["native", None, "create2", True]
    assert made["price"]["priceUsd"] == "2500"
    [check] = (await run("methods", "verify", "--json", **ENABLED)).json()
    assert check["problem"] is None
    [check] = (await run("methods", "verify", "--json")).json()
    assert "NATIVE_COIN_DEPOSITS" in check["problem"], "it is registered, and no longer read"
    again = await run(*add(chain, **(COIN | {"id": "XETH:local", "token": "XETH"})), **ENABLED)
    assert again.exit_code == 2 and "is registered as ETH" in again.stderr


async def test_a_chains_own_coin_is_refused_where_one_node_does_not_trace_and_doctor_says_which(
    run: Run, database: Database, chain: LocalChain
) -> None:
    async def doctor(**changes: str) -> str:
        return await check_native_coin(load({**chain_variables(database, chain), **changes}))

    async with FaultyNode.in_front_of(chain.url) as node:
        both = ENABLED | {"CHAIN_RPC_URLS": f"{chain.url},{node.url}"}
        for refused in ("trace_block", "trace_transaction"):
            node.heal()
            node.fixed(refused, Refusal(f"the method {refused} does not exist/is not available", code=-32601))
            done = await run(*add(chain, **COIN), **both)
            assert done.exit_code == 2
            assert f"{refused} does not exist" in done.stderr and node.url.rsplit(":")[-1] in done.stderr
        assert methods_of(database) == []
        assert "no payment method" in await doctor(**both)
        assert (await run(*add(chain, **COIN), **ENABLED)).exit_code == 0
        with pytest.raises(ChainUnavailable, match="trace_transaction does not exist"):
            await doctor(**both)
        assert "every node traces" in await doctor(**ENABLED)
        with pytest.raises(ChainUnavailable, match="NATIVE_COIN_DEPOSITS is not true"):
            await doctor()
        assert (await run("methods", "disable", "ETH:local")).exit_code == 0
        assert "is not read" in await doctor()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"decimals": "6"}, "expected 18"),
        ({"token": "ETHER"}, "expected the address of a token's contract, or ETH as in --id"),
        ({"id": "USDC:coin", "token": "USDC"}, "is a dollar token"),
        ({"scheme": "xpub", "xpub": evm_xpub(), "path": EVM_PATH}, "expected create2"),
    ],
)
async def test_a_chains_own_coin_is_never_a_dollar_and_never_at_a_keys_address(
    run: Run, database: Database, chain: LocalChain, changes: dict[str, str], says: str
) -> None:
    done = await run(*add(chain, **(COIN | changes)), **ENABLED)
    assert done.exit_code == 2
    assert says in done.stderr
    assert methods_of(database) == []


# -- prices


WETH: Final = {"id": "WETH:local", "decimals": "18"}


async def test_a_token_that_is_no_dollar_is_registered_with_its_feed(
    run: Run, database: Database, chain: LocalChain
) -> None:
    token, feed = await chain.deploy_token("PlainToken", "WETH", 18), await deploy_feed(chain, 2_500)
    second = await deploy_feed(chain, 2_510)
    of_price = {"price-feed": feed.address, "second-feed": second.address, "max-age": "7200", "max-price": "9000"}
    done = await run(*add(chain, "--json", token=token, **WETH, **of_price))
    assert done.exit_code == 0, done.stderr
    price = done.json()["price"]
    assert (price["priceUsd"], price["source"], price["maxAgeSeconds"]) == ("2500", "ETH / USD", 7_200)
    assert price["ageSeconds"] >= 0
    [(stored,)] = query(database.superuser_url, "SELECT max_answer_raw FROM price_sources")
    assert int(stored) == 9_000 * 10**8

    again = await run(*add(chain, "--json", token=token, **WETH, **of_price))
    assert again.exit_code == 0, again.stderr
    assert scalar(database.superuser_url, "SELECT count(*) FROM price_sources") == 1, "nothing has changed"
    [listed] = (await run("methods", "list", "--json")).json()
    assert listed["price"]["priceUsd"] == "2500"

    await feed.answer(0)
    [check] = (await run("methods", "verify", "--json")).json()
    assert feed.address in check["problem"]
    refused = await run(*add(chain, token=token, **WETH, **of_price))
    assert (refused.exit_code, feed.address in refused.stderr) == (1, True)
    alone = await run(*add(chain, **{"max-age": "60"}))
    assert (alone.exit_code, "belongs to --price-feed" in alone.stderr) == (2, True)
