"""The relay: nothing is sent that is not stored, and nothing twice, wherever it is interrupted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from eth_account import Account

from chain.authorizations import DEPLOYING_GAS_MAX, TRANSFER_GAS_MAX
from chain.transactions import ExecutionRefused, TransactionCalls
from composition import chain_reader
from db.payments import relay as books
from devstack.processes import wait_until
from domain.errors import ChainUnavailable, ConfigurationError, Unavailable
from domain.payments.attempt import AttemptStatus
from relay.fees import BUMP_PERCENT, PRIORITY_FEE_WEI, Fees, first_fees, replacing_fees, with_margin
from relay.process import STALE_AFTER_SECONDS, RelayLoop, RelayOptions, running_relay
from relay.signing import RelayKey
from tests.support.engine import MIN_CONFIRMATIONS, Engine
from tests.support.sql import connect
from tests.topups.conftest import OTHER, PAYER, STRANGER, Till, new_key, opened_relay, relay_policy, with_worker

SECRET = "0x" + "42" * 32
CURVE_ORDER = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"
SLOW = timedelta(minutes=1)
"""The time of a block with which nothing is replaced."""


class Killed(Exception):
    """The process ends here."""


# Interrupted ---------------------------------------------------------------------------------------------------------


def kill(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool) -> None:
    """End the process once, before the call of `name` or directly after it."""
    original: Callable[..., Any] = getattr(owner, name)
    killed: list[bool] = []

    async def call(*args: Any, **options: Any) -> Any:
        if killed:
            return await original(*args, **options)
        killed.append(True)
        if after:
            await original(*args, **options)
        raise Killed

    monkeypatch.setattr(owner, name, call)


POINTS = [
    pytest.param(books, "lock_next_nonce", False, id="before the nonce"),
    pytest.param(books, "store", False, id="before it is stored"),
    pytest.param(books, "store", True, id="while it is stored: rolled back"),
    pytest.param(TransactionCalls, "send", False, id="stored, not sent"),
    pytest.param(TransactionCalls, "send", True, id="sent, not recorded"),
    pytest.param(books, "note_sent", True, id="while that is recorded: rolled back"),
]


@with_worker
@pytest.mark.slow(but=("before it is stored", "stored, not sent", "sent, not recorded"))
@pytest.mark.parametrize(("owner", "name", "after"), POINTS)
async def test_killed_at_each_commit_it_sends_each_authorization_once(
    till: Till, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool
) -> None:
    async with till.engine.worker():
        attempt_id, _ = await till.claimed()
        key = await new_key(till.chain)
        with monkeypatch.context() as patched:
            kill(patched, owner, name, after=after)
            async with opened_relay(till.engine, key, block_time=SLOW) as relay:
                with pytest.raises(Killed):
                    await relay.run_once()
        stored = await till.rows("SELECT tx_hash FROM relay_transactions")
        async with opened_relay(till.engine, key, block_time=SLOW) as relay:
            await relay.run_once()
            await till.settle(attempt_id)
            await relay.run_once()
    assert await till.status(attempt_id) is AttemptStatus.CREDITED
    sent = await till.rows("SELECT tx_hash, sent_at IS NOT NULL FROM relay_transactions")
    assert len(sent) == 1
    assert sent[0][1]
    if stored:
        assert sent[0][0] == stored[0][0], "the same bytes"
    assert await till.rows("SELECT nonce, outcome FROM relay_nonces") == [(0, "succeeded")]


@pytest.mark.parametrize("after", [False, True], ids=["before it is recorded", "while it is recorded"])
async def test_killed_when_an_outcome_is_recorded_it_records_it_once(
    till: Till, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    await till.claimed()
    key = await new_key(till.chain)
    async with opened_relay(till.engine, key) as relay:
        await relay.run_once()
        await till.chain.mine(MIN_CONFIRMATIONS)
        with monkeypatch.context() as patched:
            kill(patched, books, "end_nonce", after=after)
            with pytest.raises(Killed):
                await relay.run_once()
        await relay.run_once()
    assert await till.rows("SELECT outcome, spent_wei > 0 FROM relay_nonces") == [("succeeded", True)]


async def test_nodes_that_do_not_answer_lose_nothing(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt_id, _ = await till.claimed()

    async def fail(*_: Any) -> None:
        raise ChainUnavailable("no usable chain endpoint")

    with monkeypatch.context() as patched:
        patched.setattr(TransactionCalls, "send", fail)
        with pytest.raises(ChainUnavailable):
            await till.relay.run_once()
    assert await till.claims.submit_relayed() == 0, "nothing was sent"
    await till.relay.run_once()
    assert await till.claims.submit_relayed() == 1
    assert (await till.engine.attempt(attempt_id)).tx_hash is not None


# At once -------------------------------------------------------------------------------------------------------------


async def test_two_relays_of_one_key_at_once_use_no_nonce_twice(till: Till) -> None:
    claims = [await till.claimed(wallet=wallet) for wallet in (PAYER, OTHER) * 4]
    key = await new_key(till.chain)
    async with (
        opened_relay(till.engine, key, block_time=SLOW) as first,
        opened_relay(till.engine, key, block_time=SLOW) as second,
    ):
        for _ in range(3):
            await asyncio.gather(first.run_once(), second.run_once())
        await till.chain.mine(MIN_CONFIRMATIONS)
        await asyncio.gather(first.run_once(), second.run_once())
    nonces = await till.rows("SELECT nonce, attempt_id, outcome FROM relay_nonces ORDER BY nonce")
    assert [nonce for nonce, _, _ in nonces] == list(range(len(claims)))
    assert {attempt_id for _, attempt_id, _ in nonces} == {attempt_id for attempt_id, _ in claims}
    assert {outcome for _, _, outcome in nonces} == {"succeeded"}
    assert len(await till.rows("SELECT 1 FROM relay_transactions")) == len(claims)


async def test_two_relays_of_two_keys_send_an_authorization_once(till: Till) -> None:
    await till.claimed()
    keys = [await new_key(till.chain), await new_key(till.chain)]
    async with opened_relay(till.engine, keys[0]) as first, opened_relay(till.engine, keys[1]) as second:
        await asyncio.gather(first.run_once(), second.run_once())
    assert len(await till.rows("SELECT 1 FROM relay_transactions")) == 1


# Stuck ---------------------------------------------------------------------------------------------------------------


@with_worker
async def test_a_transaction_that_is_not_mined_is_replaced_on_its_nonce_and_all_hashes_are_known(till: Till) -> None:
    attempt_id, _ = await till.claimed()
    await till.relay.run_once()
    await _stored(till, 2)
    rows = await till.rows(
        "SELECT nonce, max_fee_wei, priority_fee_wei, tx_hash FROM relay_transactions ORDER BY stored_at"
    )
    assert {row[0] for row in rows} == {0}
    assert rows[1][1] * 100 >= rows[0][1] * (100 + BUMP_PERCENT)
    assert rows[1][2] * 100 >= rows[0][2] * (100 + BUMP_PERCENT)
    assert await till.chain.rpc("eth_getTransactionByHash", rows[0][3]) is None
    async with till.engine.worker():
        await till.settle(attempt_id)
        await till.relay.run_once()
    assert (await till.engine.attempt(attempt_id)).tx_hash in {row[3] for row in rows}
    assert await till.status(attempt_id) is AttemptStatus.CREDITED


@with_worker
async def test_a_replacement_that_comes_too_late_changes_nothing(till: Till) -> None:
    """The first transaction was mined while the second one was signed: its hash is still known."""
    async with till.engine.worker():
        attempt_id, _ = await till.claimed()
        await till.relay.run_once()
        [(first, raw)] = await till.rows("SELECT tx_hash, raw FROM relay_transactions")
        await _stored(till, 2)
        [(second,)] = await till.rows(f"SELECT tx_hash FROM relay_transactions WHERE tx_hash <> '{first}'")
        await till.claims.submit_relayed()
        assert (await till.engine.attempt(attempt_id)).tx_hash == second
        await till.chain.rpc("anvil_dropTransaction", second)
        await till.chain.rpc("eth_sendRawTransaction", "0x" + bytes(raw).hex())
        await till.chain.mine(MIN_CONFIRMATIONS)
        await till.relay.run_once()
        await till.claims.submit_relayed()
        await till.engine.result(attempt_id)
    assert (await till.engine.attempt(attempt_id)).tx_hash == first
    assert await till.rows("SELECT outcome, mined_tx_hash FROM relay_nonces") == [("succeeded", first)]


async def test_a_fee_spike_is_not_followed_beyond_what_the_relay_pays(till: Till) -> None:
    await till.claimed()
    key = await new_key(till.chain)
    base_fee = int((await till.chain.rpc("eth_getBlockByNumber", "latest", False))["baseFeePerGas"], 16)
    bound = 2 * base_fee + 2 * PRIORITY_FEE_WEI
    async with opened_relay(till.engine, key, max_fee_wei=bound) as relay:
        await relay.run_once()
        for _ in range(12):
            await asyncio.sleep(0.1)
            await relay.run_once()
    assert len(await till.rows("SELECT 1 FROM relay_transactions")) == 1
    async with opened_relay(till.engine, await new_key(till.chain), max_fee_wei=base_fee // 2) as relay:
        await till.claimed()
        await relay.run_once()
    assert len(await till.rows("SELECT 1 FROM relay_transactions")) == 1


async def test_an_outcome_is_one_once_it_is_confirmed(till: Till) -> None:
    await till.claimed()
    async with opened_relay(till.engine, await new_key(till.chain), block_time=SLOW) as relay:
        await relay.run_once()
        for mined, outcome in ((1, None), (MIN_CONFIRMATIONS - 2, None), (1, "succeeded")):
            await till.chain.mine(mined)
            await relay.run_once()
            assert await till.rows("SELECT outcome FROM relay_nonces") == [(outcome,)]


async def test_what_no_node_has_taken_is_not_sent_and_not_replaced(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    await till.claimed()
    async with opened_relay(till.engine, await new_key(till.chain), block_time=SLOW) as relay:
        with monkeypatch.context() as patched:
            patched.setattr(TransactionCalls, "send", _answering("not now"))
            for _ in range(2):
                await relay.run_once()
                assert await till.rows("SELECT sent_at FROM relay_transactions") == [(None,)]
                _grow_old(till)
        await relay.run_once()
        assert await till.rows("SELECT sent_at IS NULL FROM relay_transactions") == [(False,)]


async def test_a_replacement_that_another_relay_has_stored_first_is_not_sent(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    await till.claimed()
    sent: list[bytes] = []
    async with opened_relay(till.engine, await new_key(till.chain), block_time=SLOW) as relay:
        await relay.run_once()
        _grow_old(till)
        monkeypatch.setattr(books, "store", _answering(False))
        monkeypatch.setattr(TransactionCalls, "send", _answering(None, sent))
        await relay.run_once()
    assert [(raw,) for raw in sent] == [
        (bytes(raw),) for (raw,) in await till.rows("SELECT raw FROM relay_transactions")
    ]


async def test_what_would_revert_is_not_tried_with_each_pass(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    await till.claimed()
    tried: list[bytes] = []

    async def refuse(_: object, sender: str, to: str | None, data: bytes) -> int:
        tried.append(data)
        raise ExecutionRefused("it would revert")

    monkeypatch.setattr(TransactionCalls, "estimate_gas", refuse)
    async with opened_relay(till.engine, await new_key(till.chain)) as relay:
        for _ in range(2):
            await relay.run_once()
        assert len(tried) == 1
        monkeypatch.setattr("relay.relay.RETRY_AFTER_SECONDS", (0.0,))
        relay._refused.clear()
        for _ in range(3):
            await relay.run_once()
        assert len(tried) == 4, "the last pause is that of every later time"
    assert await till.rows("SELECT 1 FROM relay_nonces") == []


@with_worker
async def test_a_nonce_that_another_program_has_used_is_given_up_and_the_authorization_sent_again(till: Till) -> None:
    async with till.engine.worker():
        attempt_id, _ = await till.claimed()
        key = RelayKey.parse(SECRET, setting="X")
        await till.chain.set_balance(key.address, 10**18)
        async with opened_relay(till.engine, key) as relay:
            await relay.run_once()
            [(first,)] = await till.rows("SELECT tx_hash FROM relay_transactions")
            await till.chain.rpc("anvil_dropTransaction", first)
            await till.chain.send(SECRET, STRANGER.address, "0x", nonce=0)
            await till.chain.mine(MIN_CONFIRMATIONS)
            await relay.run_once()
            assert await till.rows("SELECT nonce, outcome FROM relay_nonces") == [(0, None)], "not confirmed yet"
            await till.chain.mine(1)
            await relay.run_once()
            await till.settle(attempt_id)
    assert await till.rows("SELECT nonce, outcome FROM relay_nonces ORDER BY nonce") == [(0, "lost"), (1, None)]
    assert await till.status(attempt_id) is AttemptStatus.CREDITED


# Limits --------------------------------------------------------------------------------------------------------------


async def test_the_days_gas_is_a_bound_for_all_accounts_together(till: Till) -> None:
    for _ in range(2):
        await till.claimed()
    key = await new_key(till.chain)
    async with opened_relay(till.engine, key) as relay:
        await relay.run_once()
    # Of the second one: the first may have given the treasury its balance's place, which costs more.
    [(cost,)] = await till.rows("SELECT gas * max_fee_wei FROM relay_transactions WHERE nonce = 1")
    for _ in range(3):
        await till.claimed()
    async with opened_relay(till.engine, await new_key(till.chain), gas_per_day_wei=int(cost) * 5 // 2) as relay:
        await relay.run_once()
    assert len(await till.rows("SELECT 1 FROM relay_transactions")) == 2 + 2


async def test_without_gas_nothing_is_stored(till: Till) -> None:
    await till.claimed()
    async with opened_relay(till.engine, await new_key(till.chain, gas_wei=1000)) as relay:
        await relay.run_once()
    assert await till.rows("SELECT 1 FROM relay_nonces") == []


async def test_the_day_and_the_account_may_be_used_up_to_the_last_wei(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wei less on either side, and nothing is stored."""
    monkeypatch.setattr(TransactionCalls, "estimate_gas", _answering(100_000))
    await till.claimed()
    max_fee = relay_policy(till.engine).max_fee_wei
    async with opened_relay(till.engine, await new_key(till.chain), gas_per_day_wei=0) as relay:
        await relay.run_once()
        assert relay.account is not None
        fees = first_fees(relay.account.base_fee_wei, max_fee_wei=max_fee)
    assert fees is not None
    cost = with_margin(100_000) * fees.max_fee_wei
    for balance, day, stored in ((cost, cost - 1, 0), (cost - 1, cost, 0), (cost, cost, 1)):
        key = await new_key(till.chain, gas_wei=balance)
        async with opened_relay(till.engine, key, gas_per_day_wei=day) as relay:
            await relay.run_once()
        assert len(await till.rows("SELECT 1 FROM relay_nonces")) == stored, (balance - cost, day - cost)


@pytest.mark.parametrize(
    "policy",
    [
        {"treasury": STRANGER.address},
        {"token": STRANGER.address},
        pytest.param({"block_time": timedelta(days=1)}, id="over before the next block"),
    ],
)
async def test_what_is_not_of_its_treasury_and_token_or_ends_before_it_is_mined_is_not_sent(
    till: Till, policy: dict[str, Any]
) -> None:
    await till.claimed()
    async with opened_relay(till.engine, await new_key(till.chain), **policy) as relay:
        await relay.run_once()
    assert await till.rows("SELECT 1 FROM relay_nonces") == []


def test_fees_are_bounded_in_first_and_replacing_transactions() -> None:
    tip = PRIORITY_FEE_WEI
    assert first_fees(100, max_fee_wei=tip + 99) is None
    assert first_fees(100, max_fee_wei=tip + 100) == Fees(tip + 100, tip)
    assert first_fees(100, max_fee_wei=10 * tip) == Fees(tip + 200, tip)
    before = Fees(1_000, 100)
    assert replacing_fees(before, 0, max_fee_wei=1_130) is None
    bumped = replacing_fees(before, 0, max_fee_wei=1_131)
    assert bumped == Fees(1_131, 114)
    risen = replacing_fees(before, 10 * tip, max_fee_wei=15 * tip)
    assert risen == Fees(15 * tip, 114), "as far as it pays"
    assert replacing_fees(before, 100, max_fee_wei=15 * tip) == Fees(tip + 200, 114), "or to what a first one offers"


# The process ---------------------------------------------------------------------------------------------------------


def test_it_signs_what_a_wallet_would() -> None:
    key, account = RelayKey.parse(SECRET, setting="X"), Account.from_key(SECRET)
    for to, calldata in (
        (OTHER.address, b""),
        (OTHER.address, b"\x01"),
        (OTHER.address, b"\x80"),
        (OTHER.address, b"\x07" * 55),
        (OTHER.address, b"\x07" * 56),
        (OTHER.address, b"\x07" * 5_000),
        (None, b"\x99"),
    ):
        for nonce, fee, tip in ((0, 10**9, 0), (127, 10**18, 5), (2**40, 2**64, 2**64)):
            signed = key.sign(
                chain_id=8453, nonce=nonce, to=to, calldata=calldata, gas=90_000, max_fee_wei=fee, priority_fee_wei=tip
            )
            fields = {"type": 2, "chainId": 8453, "nonce": nonce, "data": calldata, "value": 0}
            fields |= {} if to is None else {"to": to}
            fees = {"gas": 90_000, "maxFeePerGas": fee, "maxPriorityFeePerGas": tip}
            expected = account.sign_transaction({**fields, **fees})
            assert signed.raw == bytes(expected.raw_transaction)
            assert signed.tx_hash == "0x" + bytes(expected.hash).hex()
            more = {**fees, "maxFeePerGas": fee + 1, "maxPriorityFeePerGas": tip + 1}
            replaced = account.sign_transaction({**fields, **more})
            assert key.resign(signed.raw, fee + 1, tip + 1).raw == bytes(replaced.raw_transaction)


@pytest.mark.parametrize("text", ["", "0x12", "42" * 33, "zz" * 32, "00" * 32, "ff" * 32, CURVE_ORDER])
def test_what_is_no_key_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RelayKey.parse(text, setting="RELAY_PRIVATE_KEY")
    assert "RELAY_PRIVATE_KEY" in caught.value.message
    assert not text or text not in caught.value.message


def test_a_key_shows_its_address_only_and_its_file_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(SECRET + "\n")
    for mode in (0o644, 0o640, 0o604):
        path.chmod(mode)
        with pytest.raises(ConfigurationError, match="others may read"):
            RelayKey.read(path, setting="RELAY_PRIVATE_KEY_FILE")
    path.chmod(0o600)
    key = RelayKey.read(path, setting="RELAY_PRIVATE_KEY_FILE")
    assert repr(key) == f"RelayKey({Account.from_key(SECRET).address})"
    with pytest.raises(ConfigurationError, match="No such file"):
        RelayKey.read(tmp_path / "none", setting="RELAY_PRIVATE_KEY_FILE")
    path.write_bytes(SECRET.encode("ascii") + b"\xff")
    with pytest.raises(ConfigurationError, match="not text") as caught:
        RelayKey.read(path, setting="RELAY_PRIVATE_KEY_FILE")
    assert caught.value.__suppress_context__, "what could not be decoded holds the key, and is in no traceback"
    assert RelayKey.parse(SECRET[2:], setting="X").address == key.address


async def test_the_process_relays_and_says_how_it_is(till: Till) -> None:
    key = await new_key(till.chain)
    options = RelayOptions(
        till.engine.database.relay_url, chain_reader(till.engine.settings), key, relay_policy(till.engine),
        "127.0.0.1", 0,
    )  # fmt: skip
    attempt_id, _ = await till.claimed()
    async with running_relay(options) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

        async def is_sent() -> bool:
            return bool(await till.rows("SELECT 1 FROM relay_transactions WHERE sent_at IS NOT NULL"))

        await wait_until(is_sent, timeout_seconds=15, what=f"broadcast of {attempt_id}")
        async with session.get("/readyz") as ready:
            fine = dict.fromkeys(("database", "chain", "passes", "gas"), "ok")
            assert (ready.status, (await ready.json())["checks"]) == (200, fine)
        await till.chain.set_balance(key.address, 1)

        async def is_out_of_gas() -> bool:
            async with session.get("/readyz") as answer:
                return answer.status == 503 and "send it gas" in (await answer.json())["checks"]["gas"]

        await wait_until(is_out_of_gas, timeout_seconds=15, what="unready relay")
        async with session.get("/metrics") as metrics:
            assert "settle_relay_balance_coins" in await metrics.text()
        async with session.get("/livez") as alive:
            assert alive.status == 200


async def test_a_relay_is_ready_with_the_gas_of_its_dearest_transaction(engine: Engine) -> None:
    """At what it offers: twice the base fee, and no more than it pays."""
    key = await new_key(engine.chain)
    async with opened_relay(engine, key) as relay:
        loops = {factories: RelayLoop(relay, relay_policy(engine, wallet_factories=factories, max_fee_wei=1_000))
                 for factories in ((), (STRANGER.address,))}  # fmt: skip
        with pytest.raises(Unavailable, match="not read yet"):
            await loops[()].check_gas()
        await relay.run_once()
        assert relay.account is not None
        for factories, gas in (((), TRANSFER_GAS_MAX), ((STRANGER.address,), DEPLOYING_GAS_MAX)):
            for base_fee, fee in ((100, 200), (900, 1_000)):
                relay.account = replace(relay.account, base_fee_wei=base_fee, balance_wei=gas * fee)
                await loops[factories].check_gas()
                relay.account = replace(relay.account, balance_wei=gas * fee - 1)
                with pytest.raises(Unavailable, match="send it gas"):
                    await loops[factories].check_gas()


async def test_passes_that_fail_end_no_process_and_it_is_not_ready_until_one_is_completed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [KeyError("a fault"), ChainUnavailable("no usable chain endpoint")]
    monkeypatch.setattr("relay.process.PATIENCE_SECONDS_MAX", 0.01)
    async with opened_relay(engine, await new_key(engine.chain)) as relay:
        run_once, ready = relay.run_once, asyncio.Event()

        async def fail_first() -> None:
            if errors:
                raise errors.pop(0)
            await ready.wait()
            await run_once()

        monkeypatch.setattr(relay, "run_once", fail_first)
        loop = RelayLoop(relay, relay_policy(engine))
        await loop.check_passes()
        task = asyncio.create_task(loop.run())
        try:
            await wait_until(lambda: task.done() or not errors, timeout_seconds=15, what="failed passes")
            loop._completed_at -= STALE_AFTER_SECONDS
            with pytest.raises(Unavailable, match="no usable chain endpoint"):
                await loop.check_passes()
            ready.set()

            async def is_ready() -> bool:
                with contextlib.suppress(Unavailable):
                    await loop.check_passes()
                    return True
                return task.done()

            await wait_until(is_ready, timeout_seconds=15, what="a pass")
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def test_its_role_reads_no_table_and_writes_none(till: Till) -> None:
    with psycopg.connect(till.engine.database.relay_url) as connection:
        for table in ("payment_attempts", "payment_authorizations", "relay_transactions", "users", "credit_ledger"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(f"SELECT 1 FROM {table}")
        for call in (
            "post_entry('x', 1, 'gift', NULL, 'cash:usdc', '{}')",
            "claim_authorization(NULL, '', '', 1, 1, '', false, 1, 1, 1)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(f"SELECT {call}".encode())


def _answering(answer: object, seen: list[bytes] | None = None) -> Callable[..., Any]:
    """In place of a call that the relay makes; `seen` gets the bytes that it is to send."""

    async def call(*arguments: Any, **_: Any) -> Any:
        if seen is not None:
            seen.append(bytes(arguments[-1]))
        return answer

    return call


def _grow_old(till: Till) -> None:
    """As after hours without a block that has them."""
    with connect(till.engine.database.superuser_url) as superuser:
        superuser.execute("UPDATE relay_transactions SET stored_at = stored_at - interval '1 day'")


async def _stored(till: Till, count: int) -> None:
    """Passes, until so many transactions are stored."""

    async def are_stored() -> bool:
        await till.relay.run_once()
        return len(await till.rows("SELECT 1 FROM relay_transactions")) >= count

    await wait_until(are_stored, timeout_seconds=15, what="replacement")
