"""Sweeps on a real chain: planned, signed, sent and confirmed; what was moved is booked once, also by a stranger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from typing import Any, Final

import pytest
from bip_utils import Bip32Slip10Secp256k1
from eth_account import Account

from chain.collection import collect_call, collector_address, flush_call, forwarder_deployment
from chain.derivation.create2 import CREATE2_DEPLOYER
from chain.reader import ChainReader
from commands.sweep import read_plan
from commands.sweep import sign as sign_file
from commands.sweep_signing import check_signed, sign_plan
from db.deposits.sweeps import SignedSweepTransaction, insert_sweep, list_sweeps
from db.engine import ServiceDatabase
from devstack.chain import LocalChain, Wallet, call_data, dev_wallets, payer_wallets
from domain.deposits.methods import AddressRing
from domain.deposits.sweeps import Plan, StepKind
from domain.errors import InvalidInput, OperatorError
from services.deposits.sweep_plans import PlanTerms, SweepPlanner
from services.deposits.sweeps import SweepProgress, Sweeps
from tests.support.addresses import (
    EVM_PATH,
    add_create2_address,
    add_ring_address,
    bitcoin_zpub,
    evm_xpub,
    stored_ring,
)
from tests.support.deposits import add_method, add_ring, see_deposit
from tests.support.postgres import Database
from tests.support.spending import open_wallets_account
from tests.support.sql import query, scalar

CONFIRMATIONS: Final = 3
GAS: Final = payer_wallets()[6]
"""Pays the gas."""
STRANGER: Final = payer_wallets()[5]
BLOCKS_MAX: Final = 30
CAP_WEI: Final = 10**11
DOLLAR: Final = 1_000_000


@pytest.fixture
async def service(database: Database) -> AsyncIterator[ServiceDatabase]:
    opened = ServiceDatabase(database.service_url, application_name="test")
    yield opened
    await opened.dispose()


@pytest.fixture
async def reader(chain: LocalChain) -> AsyncIterator[ChainReader]:
    async with ChainReader([chain.url], chain.chain_id, join_seconds=0.0) as opened:
        yield opened


class Sweeping:
    """What an operator, a signer and a worker do, one after the other."""

    def __init__(self, database: Database, service: ServiceDatabase, chain: LocalChain, reader: ChainReader) -> None:
        self.database, self.service, self.chain, self.reader = database, service, chain, reader
        self.sweeps = Sweeps(service, reader, treasury=chain.treasury_address, min_confirmations=CONFIRMATIONS)

    async def plan(self, **terms: Any) -> Plan:
        values: dict[str, Any] = {
            "treasury": self.chain.treasury_address,
            "max_fee_wei": CAP_WEI,
            "batch_size": 20,
            "sender": GAS.address,
        } | terms
        return await SweepPlanner(self.service, self.reader).plan(PlanTerms(**values))

    async def store(self, plan: Plan) -> None:
        signed = [SignedSweepTransaction(*one) for one in check_signed(plan)]
        async with self.service.transaction() as connection:
            await insert_sweep(connection, plan.id, plan.chain_id, plan.model_dump(mode="json", by_alias=True), signed)

    async def advance(self, plan: Plan) -> SweepProgress:
        return await self.sweeps.advance(plan.id)

    async def finish(self, plan: Plan) -> SweepProgress:
        """Send, mine, confirm."""
        for _ in range(BLOCKS_MAX):
            if (progress := await self.advance(plan)).is_done:
                return progress
            await self.chain.mine()
        raise AssertionError(f"the sweep does not end: {progress.waits_for}")

    async def balance(self, address: str) -> int:
        return await self.chain.token_balance_raw(address)

    def cash(self) -> dict[str, int]:
        """Debits less credits of the two accounts of USDC."""
        found = query(
            self.database.service_url,
            "SELECT account_code, sum(CASE side WHEN 'debit' THEN amount ELSE -amount END)::bigint FROM journal_lines"
            " WHERE account_code LIKE 'cash:usdc%%' GROUP BY 1 ORDER BY 1",
        )
        return dict(found)

    def booked(self) -> list[tuple[Any, ...]]:
        return query(
            self.database.service_url, "SELECT value_raw::bigint, credits FROM swept_transfers ORDER BY value_raw"
        )


@pytest.fixture
def sweeping(database: Database, service: ServiceDatabase, chain: LocalChain, reader: ChainReader) -> Sweeping:
    add_method(database, address=chain.token_address, chain_id=chain.chain_id)
    return Sweeping(database, service, chain, reader)


async def paid_address(sweeping: Sweeping, number: int, amount_raw: int) -> tuple[str, str]:
    """An account's create2 address with a deposit that the watcher has seen; its salt, too."""
    account = open_wallets_account(sweeping.database, Account.create(f"payer {number}").address)
    _, address = add_create2_address(sweeping.database, sweeping.chain, account)
    await sweeping.chain.mint(address, amount_raw)
    await sweeping.chain.mine()
    see_deposit(sweeping.database, address, amount_raw, block_number=await sweeping.chain.block_number())
    salt = scalar(sweeping.database.service_url, "SELECT salt FROM deposit_addresses WHERE address = %s", address)
    return address, str(salt)


async def deep(chain: LocalChain) -> None:
    await chain.mine(CONFIRMATIONS)


async def test_what_is_at_create2_addresses_is_collected_and_booked_once(sweeping: Sweeping) -> None:
    amounts = [5 * DOLLAR, 3 * DOLLAR, 2 * DOLLAR]
    paid = [await paid_address(sweeping, number, amount) for number, amount in enumerate(amounts)]
    before = await sweeping.balance(sweeping.chain.treasury_address)
    plan = await sweeping.plan()
    assert [step.kind for step in plan.steps][-1] is StepKind.COLLECT
    assert [one.amount_raw for one in plan.steps[-1].addresses] == amounts
    signed = sign_plan(plan, GAS.private_key, nonce=None)
    assert signed.id == plan.id
    await sweeping.store(signed)
    assert await sweeping.finish(signed) == SweepProgress(len(plan.steps), len(plan.steps))
    assert await sweeping.balance(sweeping.chain.treasury_address) == before + sum(amounts)
    assert [await sweeping.balance(address) for address, _ in paid] == [0, 0, 0]
    assert await sweeping.sweeps.book() == 3
    assert await sweeping.sweeps.book() == 0
    credits = sum(amounts) * 10
    assert sweeping.cash() == {"cash:usdc": credits, "cash:usdc:deposits": -credits}
    assert sweeping.booked() == [(amount, amount * 10) for amount in sorted(amounts)]
    assert scalar(sweeping.database.service_url, "SELECT status FROM sweeps") == "done"
    assert (await sweeping.plan()).steps == ()
    cost = query(
        sweeping.database.service_url, "SELECT tx_hash, gas_used, spent_wei, l1_fee_wei FROM sweep_transactions"
    )
    receipts = [await sweeping.chain.rpc("eth_getTransactionReceipt", tx_hash) for tx_hash, *_ in cost]
    gas = [int(receipt["gasUsed"], 16) for receipt in receipts]
    spent = [used * int(receipt["effectiveGasPrice"], 16) for used, receipt in zip(gas, receipts, strict=True)]
    assert [tuple(rest) for _, *rest in cost] == [(used, wei, None) for used, wei in zip(gas, spent, strict=True)]
    async with sweeping.service.transaction() as connection:
        [listed] = await list_sweeps(connection, sweeping.chain.chain_id, limit=10)
    assert (listed.status, listed.nonces, listed.decided) == ("done", len(plan.steps), len(plan.steps))
    assert (listed.gas_used, listed.spent_wei, listed.l1_fee_wei) == (sum(gas), sum(spent), None)


async def test_a_stranger_who_flushes_first_is_booked_and_does_not_stop_the_sweep(sweeping: Sweeping) -> None:
    first, salt = await paid_address(sweeping, 1, 4 * DOLLAR)
    second, _ = await paid_address(sweeping, 2, 6 * DOLLAR)
    plan = sign_plan(await sweeping.plan(), GAS.private_key, nonce=None)
    await sweeping.store(plan)
    deployment = "0x" + forwarder_deployment(salt, sweeping.chain.treasury_address).hex()
    await sweeping.chain.send(STRANGER.private_key, CREATE2_DEPLOYER, deployment, gas=500_000)
    await sweeping.chain.mine()
    flush = "0x" + flush_call([sweeping.chain.token_address]).hex()
    await sweeping.chain.send(STRANGER.private_key, first, flush, gas=500_000)
    await deep(sweeping.chain)
    assert await sweeping.sweeps.book() == 1
    assert sweeping.booked() == [(4 * DOLLAR, 40 * DOLLAR)]
    assert (await sweeping.finish(plan)).problems == ()
    assert await sweeping.balance(second) == 0
    assert await sweeping.sweeps.book() == 1
    assert sweeping.cash()["cash:usdc"] == 100 * DOLLAR


async def test_a_transfer_is_booked_only_once_its_block_is_deep_enough(sweeping: Sweeping) -> None:
    address, salt = await paid_address(sweeping, 1, DOLLAR)
    call = "0x" + collect_call(sweeping.chain.treasury_address, [salt], [sweeping.chain.token_address]).hex()
    await sweeping.finish(await _deployed_collector(sweeping))
    await sweeping.chain.send(STRANGER.private_key, collector_address(), call, gas=1_000_000)
    await sweeping.chain.mine()
    assert await sweeping.balance(address) == 0
    await sweeping.chain.mine(CONFIRMATIONS - 2)
    assert await sweeping.sweeps.book() == 0
    await sweeping.chain.mine()
    assert await sweeping.sweeps.book() == 1


async def _deployed_collector(sweeping: Sweeping) -> Plan:
    """A sweep of nothing but the collector's deployment, or of an address that is empty by then."""
    plan = sign_plan(await sweeping.plan(), GAS.private_key, nonce=None)
    only = plan.model_copy(update={"steps": tuple(s for s in plan.steps if s.kind is StepKind.DEPLOY_COLLECTOR)})
    await sweeping.store(only)
    return only


async def test_money_from_others_to_the_treasury_is_not_booked_as_swept(sweeping: Sweeping) -> None:
    await paid_address(sweeping, 1, DOLLAR)
    await sweeping.chain.pay(STRANGER.private_key, sweeping.chain.treasury_address, 7)
    await deep(sweeping.chain)
    assert await sweeping.sweeps.book() == 0
    assert sweeping.booked() == []


async def test_a_token_that_refuses_one_address_stops_no_other(sweeping: Sweeping) -> None:
    listed, _ = await paid_address(sweeping, 1, 2 * DOLLAR)
    free, _ = await paid_address(sweeping, 2, 3 * DOLLAR)
    owner = dev_wallets()[0].private_key
    await sweeping.chain.send(owner, sweeping.chain.token_address, call_data("TestUSDC", "blacklist", listed))
    await sweeping.chain.mine()
    plan = sign_plan(await sweeping.plan(), GAS.private_key, nonce=None)
    await sweeping.store(plan)
    assert (await sweeping.finish(plan)).problems == ()
    assert (await sweeping.balance(listed), await sweeping.balance(free)) == (2 * DOLLAR, 0)
    assert await sweeping.sweeps.book() == 1
    await sweeping.chain.send(owner, sweeping.chain.token_address, call_data("TestUSDC", "unBlacklist", listed))
    await sweeping.chain.mine()
    again = sign_plan(await sweeping.plan(), GAS.private_key, nonce=None)
    assert [one.address for one in again.steps[-1].addresses] == [listed]


@pytest.mark.parametrize("stopped", ["stored", "sent", "mined", "confirmed", "ended", "booked"])
async def test_a_sweep_that_stops_after_any_commit_goes_on_where_it_was(sweeping: Sweeping, stopped: str) -> None:
    """The worker dies after what is named; another one begins from the database and the chain alone.

    Fault 19: sweeps kept no state.
    """
    await paid_address(sweeping, 1, 9 * DOLLAR)
    plan = sign_plan(await sweeping.plan(), GAS.private_key, nonce=None)
    await sweeping.store(plan)
    await sweeping.store(plan)
    if stopped in ("sent", "mined", "confirmed", "ended", "booked"):
        await sweeping.advance(plan)
    if stopped in ("mined", "confirmed", "ended", "booked"):
        await sweeping.chain.mine()
    if stopped in ("confirmed", "ended", "booked"):
        await deep(sweeping.chain)
    if stopped in ("ended", "booked"):
        await sweeping.advance(plan)
    if stopped == "booked":
        await sweeping.sweeps.book()
    another = Sweeping(sweeping.database, sweeping.service, sweeping.chain, sweeping.reader)
    assert (await another.finish(plan)).problems == ()
    await another.sweeps.book()
    assert another.booked() == [(9 * DOLLAR, 90 * DOLLAR)]
    assert another.cash() == {"cash:usdc": 90 * DOLLAR, "cash:usdc:deposits": -90 * DOLLAR}
    nonces = query(sweeping.database.service_url, "SELECT count(*), count(outcome) FROM sweep_transactions")
    assert nonces == [(len(plan.steps), len(plan.steps))]


async def test_a_stuck_nonce_is_replaced_by_the_same_plan_signed_for_more(sweeping: Sweeping) -> None:
    address, _ = await paid_address(sweeping, 1, DOLLAR)
    plan = await sweeping.plan()
    low = sign_plan(
        plan.model_copy(update={"max_fee_per_gas_wei": 1, "max_priority_fee_per_gas_wei": 1}),
        GAS.private_key,
        nonce=None,
    )
    await sweeping.store(low)
    stuck = await sweeping.advance(low)
    assert not stuck.is_done and "not accepted" in stuck.waits_for
    high = sign_plan(plan, GAS.private_key, nonce=None)
    assert high.id == low.id
    await sweeping.store(high)
    assert (await sweeping.finish(high)).problems == ()
    assert await sweeping.balance(address) == 0
    outcomes = query(
        sweeping.database.service_url, "SELECT outcome, count(*) FROM sweep_transactions GROUP BY 1 ORDER BY 1"
    )
    assert outcomes == [("replaced", len(plan.steps)), ("succeeded", len(plan.steps))]


async def test_a_nonce_that_another_transaction_has_used_ends_the_sweep_as_failed(sweeping: Sweeping) -> None:
    await paid_address(sweeping, 1, DOLLAR)
    plan = sign_plan(await sweeping.plan(), GAS.private_key, nonce=None)
    for _ in plan.steps:
        await sweeping.chain.pay(GAS.private_key, STRANGER.address, 1)
    await sweeping.store(plan)
    await deep(sweeping.chain)
    ended = await sweeping.finish(plan)
    assert len(ended.problems) == len(plan.steps) and all("replaced" in one for one in ended.problems)
    assert scalar(sweeping.database.service_url, "SELECT status FROM sweeps") == "failed"
    fresh = sign_plan(await sweeping.plan(), GAS.private_key, nonce=None)
    assert fresh.steps[-1].addresses == plan.steps[-1].addresses


async def test_no_plan_is_made_while_gas_costs_more_than_the_cap(sweeping: Sweeping) -> None:
    await paid_address(sweeping, 1, DOLLAR)
    await sweeping.chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(50 * 10**9))
    await sweeping.chain.mine()
    with pytest.raises(OperatorError, match="50000000000 wei .* 5000000000"):
        await sweeping.plan(max_fee_wei=5 * 10**9)
    capped = await sweeping.plan(max_fee_wei=60 * 10**9)
    assert capped.max_fee_per_gas_wei == 60 * 10**9
    base = int((await sweeping.chain.rpc("eth_getBlockByNumber", "latest", False))["baseFeePerGas"], 16)
    offered = await sweeping.plan(max_fee_wei=10**12)
    assert offered.max_fee_per_gas_wei == 2 * base + offered.max_priority_fee_per_gas_wei
    await sweeping.chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(10**9))
    await sweeping.chain.mine()


async def test_a_plan_for_no_one_is_signed_by_the_key_that_names_its_next_nonce(sweeping: Sweeping) -> None:
    address, _ = await paid_address(sweeping, 1, DOLLAR)
    plan = await sweeping.plan(sender=None)
    assert (plan.sender, plan.nonce) == (None, None)
    with pytest.raises(InvalidInput, match="--nonce: .* --from"):
        sign_plan(plan, GAS.private_key, nonce=None)
    number = int(await sweeping.chain.rpc("eth_getTransactionCount", GAS.address, "latest"), 16)
    signed = sign_plan(plan, GAS.private_key, nonce=number)
    await sweeping.store(signed)
    assert (await sweeping.finish(signed)).problems == ()
    assert await sweeping.balance(address) == 0


async def test_a_plan_is_of_the_method_and_the_amounts_that_were_asked_for(sweeping: Sweeping) -> None:
    paid, _ = await paid_address(sweeping, 1, DOLLAR)
    other = await sweeping.chain.deploy_token("PlainToken", "USDT", 6)
    add_method(sweeping.database, "USDT:other", address=other, chain_id=sweeping.chain.chain_id)
    assert (await sweeping.plan(method_id="USDT:other")).steps == ()
    assert [one.address for one in (await sweeping.plan(min_raw=DOLLAR)).steps[-1].addresses] == [paid]
    assert (await sweeping.plan(min_raw=DOLLAR + 1)).steps == ()


async def test_an_address_that_does_not_derive_is_left_out_and_named(sweeping: Sweeping) -> None:
    good, _ = await paid_address(sweeping, 1, DOLLAR)
    bad, _ = await paid_address(sweeping, 2, DOLLAR)
    query(
        sweeping.database.superuser_url,
        "UPDATE deposit_addresses SET treasury = %s WHERE address = %s RETURNING id",
        "0x" + "11" * 20,
        bad,
    )
    plan = await sweeping.plan()
    assert [one.address for one in plan.steps[-1].addresses] == [good]
    assert [refusal.reason for refusal in plan.refused if bad in refusal.reason]


SEED: Final = bytes(range(32))


def account_key(seed: bytes = SEED) -> str:
    return str(Bip32Slip10Secp256k1.FromSeedAndPath(seed, EVM_PATH).PrivateKey().ToExtended())


async def paid_ring(
    sweeping: Sweeping, amounts: list[int], token: str | None = None, method: str = "USDC:wallet"
) -> AddressRing:
    """Addresses of a key with deposits that the watcher has seen."""
    ring = stored_ring(sweeping.database, xpub=evm_xpub(SEED))
    token = token or sweeping.chain.token_address
    decimals = 18 if method.startswith("DAI") else 6
    add_method(
        sweeping.database, method, address=token, chain_id=sweeping.chain.chain_id, ring_id=ring.id, decimals=decimals
    )
    for index, amount in enumerate(amounts):
        owner = open_wallets_account(sweeping.database, Account.create(f"owner {index}").address)
        _, address = add_ring_address(sweeping.database, sweeping.chain.chain_id, owner, ring, index)
        minter: Wallet | None = None if token == sweeping.chain.token_address else payer_wallets()[-1]
        await sweeping.chain.mint(address, amount, token=token, owner=minter)
        await sweeping.chain.mine()
        see_deposit(
            sweeping.database, address, amount, method_id=method, block_number=await sweeping.chain.block_number()
        )
    return ring


async def test_usdc_at_a_wallets_addresses_is_moved_by_signatures_and_needs_no_gas_there(sweeping: Sweeping) -> None:
    await paid_ring(sweeping, [8 * DOLLAR, DOLLAR])
    code = await sweeping.chain.rpc("eth_getCode", collector_address(), "latest")
    await sweeping.chain.rpc("anvil_setCode", collector_address(), "0x")
    plan = await sweeping.plan()
    await sweeping.chain.rpc("anvil_setCode", collector_address(), code)
    assert [step.kind for step in plan.steps] == [StepKind.AUTHORIZATION] * 2
    with pytest.raises(InvalidInput, match="the account's xprv first"):
        sign_plan(plan, GAS.private_key, nonce=None)
    authorized = sign_plan(plan, account_key(), nonce=None)
    assert account_key()[10:60] not in authorized.model_dump_json()
    swapped = [step.authorization and step.authorization.signature for step in reversed(authorized.steps)]
    steps = tuple(
        step.model_copy(update={"authorization": step.authorization.model_copy(update={"signature": signature})})
        for step, signature in zip(authorized.steps, swapped, strict=True)
        if step.authorization is not None
    )
    with pytest.raises(InvalidInput, match=f"(?i){authorized.steps[0].addresses[0].address}"):
        sign_plan(authorized.model_copy(update={"steps": steps}), GAS.private_key, nonce=None)
    with pytest.raises(InvalidInput, match=STRANGER.address):
        sign_plan(authorized, STRANGER.private_key, nonce=None)
    signed = sign_plan(authorized, GAS.private_key, nonce=None)
    assert signed.id == plan.id
    before = await sweeping.balance(sweeping.chain.treasury_address)
    await sweeping.store(signed)
    assert (await sweeping.finish(signed)).problems == ()
    assert await sweeping.balance(sweeping.chain.treasury_address) == before + 9 * DOLLAR
    for step in plan.steps:
        coins = await sweeping.chain.rpc("eth_getBalance", step.addresses[0].address, "latest")
        assert int(coins, 16) == 0
    assert await sweeping.sweeps.book() == 2
    assert sweeping.cash() == {"cash:usdc": 90 * DOLLAR, "cash:usdc:deposits": -90 * DOLLAR}


async def test_the_key_of_another_account_signs_nothing(sweeping: Sweeping) -> None:
    await paid_ring(sweeping, [DOLLAR])
    plan = sign_plan(await sweeping.plan(), account_key(bytes(32)), nonce=None)
    assert [step.authorization and step.authorization.signature for step in plan.steps] == [None]


async def test_what_cannot_be_collected_is_refused_with_its_reason(sweeping: Sweeping) -> None:
    token = await sweeping.chain.deploy_token("PlainToken", "DAI", 18)
    await paid_ring(sweeping, [10**18], token=token, method="DAI:wallet")
    bitcoin = add_ring(sweeping.database, ("m/84'/0'/0'", bitcoin_zpub(SEED)))
    add_method(
        sweeping.database, "BTC:bitcoin", address=None, kind="utxo", chain_id=2147483648, decimals=8, ring_id=bitcoin
    )
    ring_id, chain_id = add_ring(sweeping.database), sweeping.chain.chain_id
    add_method(sweeping.database, "ETH:wallet", address=None, kind="native", chain_id=chain_id, ring_id=ring_id)
    plan = await sweeping.plan()
    assert plan.steps == ()
    reasons = {refusal.method: refusal.reason for refusal in plan.refused}
    assert "EIP-3009" in reasons["DAI:wallet"]
    assert "the wallet" in reasons["DAI:wallet"], "what to do"
    for method in ("BTC:bitcoin", "ETH:wallet"):
        assert "the wallet" in reasons[method]
    paid, _ = await paid_address(sweeping, 1, DOLLAR)
    beside = await sweeping.plan()
    assert [one.address for one in beside.steps[-1].addresses] == [paid], "the rest is collected"
    assert beside.refused == plan.refused


async def test_a_file_that_was_changed_on_its_way_is_refused(sweeping: Sweeping) -> None:
    await paid_address(sweeping, 1, DOLLAR)
    signed = sign_plan(await sweeping.plan(), GAS.private_key, nonce=None)
    last = signed.steps[-1]

    def with_last(**changes: Any) -> Plan:
        return signed.model_copy(update={"steps": (*signed.steps[:-1], last.model_copy(update=changes))})

    check_signed(signed)
    with pytest.raises(InvalidInput, match="that the plan describes"):
        check_signed(with_last(gas=last.gas + 1))
    with pytest.raises(InvalidInput, match="of its parts"):
        check_signed(with_last(treasury=STRANGER.address))
    with pytest.raises(InvalidInput, match="calls .*, expected"):
        check_signed(with_last(to=STRANGER.address))
    with pytest.raises(InvalidInput, match="is not signed"):
        check_signed(with_last(raw_transaction=None))
    with pytest.raises(InvalidInput, match="that the plan describes"):
        check_signed(signed.model_copy(update={"sender": STRANGER.address}))


async def test_the_signer_says_where_the_treasury_is_and_not_the_file(
    sweeping: Sweeping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await paid_ring(sweeping, [DOLLAR])
    plan = await sweeping.plan(treasury=STRANGER.address)
    (tmp_path / "plan.json").write_text(plan.model_dump_json(by_alias=True))
    own = sweeping.chain.treasury_address

    def sign(treasury: str | None) -> Plan:
        monkeypatch.setattr("sys.stdin", StringIO(account_key() + "\n"))
        signed = tmp_path / "signed.json"
        sign_file(tmp_path / "plan.json", treasury=treasury, nonce=None, max_fee_gwei=None, output=signed)
        return read_plan(signed)

    with pytest.raises(InvalidInput, match="needed to sign"):
        sign(None)
    with pytest.raises(InvalidInput, match=f"pays to {STRANGER.address}, expected {own}"):
        sign(own)
    assert sign(STRANGER.address).steps[0].authorization is not None


async def test_a_payers_wallet_that_is_written_as_a_deposit_address_is_not_booked(sweeping: Sweeping) -> None:
    """The API's password could write such a row."""
    await paid_address(sweeping, 1, DOLLAR)
    account = open_wallets_account(sweeping.database, STRANGER.address)
    add_create2_address(sweeping.database, sweeping.chain, account, address=STRANGER.address)
    await sweeping.chain.pay(STRANGER.private_key, sweeping.chain.treasury_address, DOLLAR)
    await deep(sweeping.chain)
    assert await sweeping.sweeps.book() == 0


async def test_what_was_stored_is_sent_although_no_workflow_was_started(sweeping: Sweeping) -> None:
    """`settle sweep send` died between the two."""
    address, _ = await paid_address(sweeping, 1, DOLLAR)
    plan = sign_plan(await sweeping.plan(), GAS.private_key, nonce=None)
    await sweeping.store(plan)
    assert await sweeping.sweeps.resume() == 0, "its workflow is about to be started"
    query(sweeping.database.superuser_url, "UPDATE sweeps SET created_at = now() - interval '2 minutes' RETURNING id")
    for _ in range(BLOCKS_MAX):
        if await sweeping.sweeps.resume() == 0:
            break
        await sweeping.chain.mine()
    assert await sweeping.balance(address) == 0
    assert scalar(sweeping.database.service_url, "SELECT status FROM sweeps") == "done"
