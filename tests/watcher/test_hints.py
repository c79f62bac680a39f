"""The watcher's rows as a hint for a payment that waits: they save requests, and never decide.

The activity itself, on a real chain and database, with a watcher that reads when a test says so. A payment's time
passes by moving its submission back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.messages import PaymentToVerify
from activities.payments.verification import VerificationActivities
from chain.preconditions import SettlementPreconditions
from chain.reader import ChainReader
from devstack.chain import payer_wallets
from domain.payments.attempt import AttemptStatus, ErrorCode, PaymentAttempt
from domain.payments.verification import Refused, Verified, Waiting, WaitReason, terms_of
from domain.payments.watched import fresh_for, watched_for
from tests.chain.faulty_node import FaultyNode
from tests.watcher.conftest import MIN_CONFIRMATIONS, Watch

BLOCK_TIME: Final = timedelta(seconds=2)
WATCHED: Final = watched_for(MIN_CONFIRMATIONS, block_time=BLOCK_TIME)
DAY: Final = timedelta(days=1)
UNKNOWN: Final = "0x" + "ab" * 32
BY_WATCHER: Final = " by the chain watcher, head "
MOMENT: Final = timedelta(seconds=1)
"""A test's own time between two polls is below this."""


@dataclass
class Poller:
    """One payment's polls, as its workflow's activity makes them."""

    watch: Watch
    node: FaultyNode
    activities: VerificationActivities
    attempt: PaymentAttempt
    is_last_look: bool = False
    details: tuple[Any, ...] = field(default=())
    delay: timedelta = timedelta(0)

    async def poll(self) -> Waiting | Verified | Refused:
        """One poll; what it remembers is given to the next one."""
        environment = ActivityEnvironment()
        environment.info = dataclasses.replace(environment.info, heartbeat_details=self.details)

        def remember(*details: Any) -> None:
            self.details = details

        environment.on_heartbeat = remember
        now = datetime.now(UTC)
        payment = PaymentToVerify(
            attempt_id=self.attempt.id,
            owner_user_id=self.attempt.owner_user_id,
            billing_account_id=self.attempt.billing_account_id,
            terms=terms_of(self.attempt),
            submitted_at=now,
            verify_until=now + DAY,
            is_last_look=self.is_last_look,
        )
        try:
            return await environment.run(self.activities.await_confirmation, payment)
        except ApplicationError as error:
            self.delay = error.next_retry_delay or timedelta(0)
            (waiting,) = error.details
            return cast("Waiting", waiting)

    async def asked(self) -> tuple[Waiting | Verified | Refused, int]:
        """One poll, and how often the node was asked about the payment in it."""
        before = len(self._requests())
        found = await self.poll()
        return found, len(self._requests()) - before

    def _requests(self) -> list[list[str]]:
        return [batch for batch in self.node.requests if "eth_getTransactionReceipt" in batch]

    async def submit(self, tx_hash: str) -> None:
        """Submit a hash; another one replaces it."""
        await self.watch.submit(self.attempt, tx_hash)
        self.details = ()

    async def later(self, passed: timedelta) -> None:
        """So much time passes for the payment, but not for the watcher's rows."""
        await self.watch.change(
            "SET session_replication_role = replica; UPDATE payment_attempts "
            f"SET submitted_at = submitted_at - interval '{passed.total_seconds()} s' WHERE id = '{self.attempt.id}'"
        )
        if len(self.details) > 1:
            self.details = (self.details[0], (datetime.fromisoformat(self.details[1]) - passed).isoformat())


@pytest.fixture
async def poller(watch: Watch, faulty: FaultyNode) -> AsyncIterator[Poller]:
    """An intent, not yet submitted; the payment's own polls see the chain through a node that counts requests."""
    scope = watch.scan.scope
    async with ChainReader([faulty.url], scope.chain_id, timeout_seconds=5.0, join_seconds=0.0) as reader:
        activities = VerificationActivities(
            reader,
            watch.matcher_of_payers.service,
            SettlementPreconditions(reader.contracts, scope.treasury),
            min_confirmations=MIN_CONFIRMATIONS,
            block_time=BLOCK_TIME,
            verification_timeout=DAY,
            own_destination=scope,
        )
        await watch.catch_up()
        yield Poller(watch, faulty, activities, await watch.intent())


def words(found: Waiting | Verified | Refused) -> str:
    assert isinstance(found, Waiting), found
    return found.message


def is_not_found_by_node(found: Waiting | Verified | Refused, tx_hash: str = "", *, head: int | None = None) -> bool:
    """Whether a node, and not the watcher's rows, has answered that the transaction is unknown."""
    said = words(found)
    assert isinstance(found, Waiting)
    is_of_node = BY_WATCHER not in said and tx_hash in said and (head is None or said.endswith(f" {head}"))
    return found.reason is WaitReason.NOT_FOUND and is_of_node


async def mined(poller: Poller, blocks: int = 1) -> str:
    """A payment with so many confirmations, submitted, that the watcher has seen."""
    sent = await poller.watch.pay(blocks=blocks)
    await poller.watch.catch_up()
    await poller.submit(sent)
    return sent


async def write(poller: Poller, changes: str) -> None:
    """Another state of the watcher's own row."""
    await poller.watch.change(f"UPDATE chain_cursors SET {changes}")


async def observe(poller: Poller, tx_hash: str, block: int, *, value_raw: int = 100_000_000) -> None:
    """A row about a transfer that no node has shown."""
    scope = poller.watch.scan.scope
    await poller.watch.change(
        "INSERT INTO observed_transfers (chain_id, tx_hash, log_index, block_number, block_hash, block_time, token, "
        "from_address, to_address, value_raw) VALUES "
        f"({scope.chain_id}, '{tx_hash}', 0, {block}, '0x{'cd' * 32}', now(), '{scope.token}', "
        f"'{poller.attempt.from_address}', '{scope.treasury}', {value_raw})"
    )


# What is saved --------------------------------------------------------------------------------------------------------


async def test_confirmations_are_counted_by_the_watcher_and_the_verdict_is_one_request(poller: Poller) -> None:
    await mined(poller)
    for confirmations in (1, 2):
        found, requests = await poller.asked()
        head = await poller.watch.head()
        assert requests == 0
        assert words(found) == f"{confirmations} of 3 confirmations{BY_WATCHER}{head}"
        due = (MIN_CONFIRMATIONS - confirmations) * BLOCK_TIME
        assert due - MOMENT < poller.delay <= due
        await poller.watch.chain.mine(1)
        await poller.watch.catch_up()
    found, requests = await poller.asked()
    assert isinstance(found, Verified)
    assert requests == 1, "the watcher's block is the hint"


async def test_a_payment_that_is_due_is_asked_for_before_the_watcher_has_read_its_last_block(poller: Poller) -> None:
    await mined(poller, 2)
    await write(poller, "updated_at = now() - interval '2 s'")
    await poller.watch.chain.mine(1)
    found, requests = await poller.asked()
    assert isinstance(found, Verified)
    assert requests == 1


async def test_a_payment_just_sent_is_asked_for_when_it_could_be_confirmed(
    poller: Poller,
) -> None:
    sent = await poller.watch.pay(blocks=0)
    await poller.submit(sent)
    found, requests = await poller.asked()
    assert requests == 0
    assert words(found) == f"transaction {sent} not found yet{BY_WATCHER}{await poller.watch.head()}"
    assert WATCHED - MOMENT < poller.delay <= WATCHED

    await poller.later(WATCHED)
    found, requests = await poller.asked()
    assert requests == 1
    assert is_not_found_by_node(found, sent, head=await poller.watch.head())

    await poller.later(BLOCK_TIME)
    found, requests = await poller.asked()
    assert requests == 0, "asked a block ago"
    await poller.later(BLOCK_TIME)
    assert (await poller.asked())[1] == 1


async def test_a_payment_not_mined_for_an_hour_is_asked_for_every_five_minutes(poller: Poller) -> None:
    await poller.submit(UNKNOWN)
    await poller.later(timedelta(hours=1))
    requests = 0
    for _ in range(20):
        requests += (await poller.asked())[1]
        assert poller.delay == timedelta(minutes=1)
        await poller.later(poller.delay)
    assert requests == 4


async def test_a_replaced_hash_is_waited_for_in_place_of_the_first(poller: Poller) -> None:
    await mined(poller)
    assert "1 of 3" in words(await poller.poll())
    await poller.submit(UNKNOWN)
    assert words(await poller.poll()).startswith(f"transaction {UNKNOWN} not found yet{BY_WATCHER}")


# Whose word it is not -------------------------------------------------------------------------------------------------

NOT_FRESH: Final = {
    "stalled": f"updated_at = now() - interval '{fresh_for(BLOCK_TIME).total_seconds()} s'",
    "waiting itself": "waits_for = 'no usable chain endpoint', waits_since = now()",
    "behind": "head_number = block_number + 4",
    "not followed any more": "retired_at = now()",
}


@pytest.mark.parametrize("state", NOT_FRESH)
async def test_a_watcher_that_is_not_fresh_leaves_the_payment_to_its_own_polls(poller: Poller, state: str) -> None:
    sent = await mined(poller)
    await write(poller, NOT_FRESH[state])
    found, requests = await poller.asked()
    assert requests >= 1
    assert words(found) == "1 of 3 confirmations"
    await poller.submit(UNKNOWN)
    found, requests = await poller.asked()
    assert requests == 1
    assert is_not_found_by_node(found, UNKNOWN)
    await poller.submit(sent)
    await poller.watch.chain.mine(2)
    assert isinstance(await poller.poll(), Verified)


async def test_without_a_watcher_the_payment_polls_by_itself(poller: Poller) -> None:
    sent = await poller.watch.pay()
    await poller.watch.change("DELETE FROM chain_cursors")
    await poller.submit(sent)
    found, requests = await poller.asked()
    assert requests == 2, "the first without a block"
    assert words(found) == "1 of 3 confirmations"


async def test_the_final_poll_asks_the_nodes_whatever_the_watcher_says(poller: Poller) -> None:
    await poller.submit(UNKNOWN)
    poller.is_last_look = True
    found, requests = await poller.asked()
    assert requests == 1
    assert is_not_found_by_node(found, UNKNOWN, head=await poller.watch.head())


async def test_the_wait_by_the_watcher_leaves_time_for_the_last_poll(poller: Poller) -> None:
    await poller.submit(UNKNOWN)
    await poller.later(DAY - 2 * BLOCK_TIME)
    await poller.poll()
    await poller.poll()
    assert poller.delay <= BLOCK_TIME


# Reorganisations ------------------------------------------------------------------------------------------------------


async def test_a_payment_reorged_out_is_not_found_and_credited_when_it_is_back(poller: Poller) -> None:
    sent = await poller.watch.pay(blocks=0)
    raw = await poller.watch.chain.raw_transaction(sent)
    await poller.watch.chain.mine(2)
    await poller.watch.chain.wait_for_receipt(sent)
    await poller.watch.catch_up()
    await poller.submit(sent)
    assert "2 of 3" in words(await poller.poll())
    await poller.watch.chain.reorg(2)
    await poller.watch.chain.mine(3)
    await poller.watch.catch_up()
    found, requests = await poller.asked()
    assert requests == 0
    assert "not found yet" in words(found)
    if await poller.watch.chain.rpc("eth_getTransactionByHash", sent) is None:
        await poller.watch.chain.rpc("eth_sendRawTransaction", raw)
    await poller.watch.chain.mine(MIN_CONFIRMATIONS)
    await poller.watch.chain.wait_for_receipt(sent)
    await poller.watch.catch_up()
    assert isinstance(await poller.poll(), Verified)


async def test_a_payment_that_moved_is_counted_from_its_new_block(poller: Poller) -> None:
    sent = await poller.watch.pay(blocks=0)
    raw = await poller.watch.chain.raw_transaction(sent)
    await poller.watch.chain.mine(2)
    await poller.watch.chain.wait_for_receipt(sent)
    await poller.watch.catch_up()
    await poller.submit(sent)
    assert "2 of 3" in words(await poller.poll())
    await poller.watch.chain.reorg(2, [(raw, 1)])
    after = await poller.watch.chain.wait_for_receipt(sent)
    await poller.watch.chain.mine(1)
    await poller.watch.catch_up()
    found = await poller.poll()
    assert isinstance(found, Waiting)
    assert found.block_number == int(after["blockNumber"], 16)
    assert BY_WATCHER in found.message


async def test_a_reorganisation_that_the_watcher_has_not_read_credits_nothing(poller: Poller) -> None:
    await mined(poller, MIN_CONFIRMATIONS)
    await poller.watch.chain.reorg(MIN_CONFIRMATIONS)
    await poller.watch.chain.mine(5)
    found, requests = await poller.asked()
    assert requests == 1
    assert is_not_found_by_node(found, head=await poller.watch.head())


# Rows that lie --------------------------------------------------------------------------------------------------------


async def test_a_row_about_a_transaction_that_no_node_has_credits_nothing(poller: Poller) -> None:
    head = await poller.watch.head()
    await poller.submit(UNKNOWN)
    await observe(poller, UNKNOWN, head - 10)
    for _ in range(3):
        found, requests = await poller.asked()
        assert requests >= 1
        assert is_not_found_by_node(found, UNKNOWN)


async def test_a_row_that_makes_a_wrong_payment_right_does_not_credit_it(poller: Poller) -> None:
    sent = await poller.watch.pay(cents=1, blocks=MIN_CONFIRMATIONS)
    await poller.watch.catch_up()
    await poller.watch.change(f"UPDATE observed_transfers SET value_raw = 10^12 WHERE tx_hash = '{sent}'")
    await poller.submit(sent)
    found = await poller.poll()
    assert isinstance(found, Refused)
    assert found.error_code is ErrorCode.INSUFFICIENT_AMOUNT


async def test_a_row_that_makes_a_right_payment_wrong_does_not_refuse_it(poller: Poller) -> None:
    sent = await mined(poller, MIN_CONFIRMATIONS)
    await poller.watch.change(
        "UPDATE observed_transfers SET value_raw = 1, from_address = '0x" + "99" * 20 + f"' WHERE tx_hash = '{sent}'"
    )
    assert isinstance(await poller.poll(), Verified)


@pytest.mark.parametrize("cursor", ["head_number = 10^15, block_number = 10^15", "head_number = 10^15"])
async def test_an_invented_head_confirms_nothing(poller: Poller, cursor: str) -> None:
    await mined(poller)
    await write(poller, cursor.replace("10^15", str(10**15)))
    found, requests = await poller.asked()
    assert requests == 1
    assert words(found) == "1 of 3 confirmations"


async def test_a_row_that_calls_a_payment_new_again_and_again_delays_it_for_a_while_only(poller: Poller) -> None:
    sent = await mined(poller, MIN_CONFIRMATIONS)
    head = await poller.watch.head()
    await poller.watch.change(f"UPDATE observed_transfers SET block_number = {head} WHERE tx_hash = '{sent}'")
    assert BY_WATCHER in words(await poller.poll())
    patience = 2 * MIN_CONFIRMATIONS * BLOCK_TIME + fresh_for(BLOCK_TIME)
    await poller.watch.change(
        f"UPDATE observed_transfers SET observed_at = observed_at - interval '{patience.total_seconds()} s'"
    )
    assert isinstance(await poller.poll(), Verified)


async def test_a_row_above_the_head_hides_nothing(poller: Poller) -> None:
    sent = await mined(poller, MIN_CONFIRMATIONS)
    await poller.watch.change(f"UPDATE observed_transfers SET block_number = {10**12} WHERE tx_hash = '{sent}'")
    assert isinstance(await poller.poll(), Verified)


async def test_a_row_that_hides_a_payment_delays_it_for_a_few_blocks_only(poller: Poller) -> None:
    await mined(poller, MIN_CONFIRMATIONS)
    await poller.watch.change("DELETE FROM observed_transfers")
    assert "not found yet" in words(await poller.poll())
    await poller.later(WATCHED)
    assert isinstance(await poller.poll(), Verified)


# Refusals -------------------------------------------------------------------------------------------------------------


async def wrong_payment(poller: Poller, code: ErrorCode) -> str:
    """A transaction that is refused with this code, not yet mined."""
    chain, attempt = poller.watch.chain, poller.attempt
    payer, other = payer_wallets()[:2]
    treasury, amount_raw, key = chain.treasury_address, attempt.amount_raw, payer.private_key
    match code:
        case ErrorCode.INSUFFICIENT_AMOUNT:
            return await chain.pay(key, treasury, amount_raw - 1)
        case ErrorCode.SENDER_MISMATCH:
            return await chain.pay(other.private_key, treasury, amount_raw)
        case ErrorCode.RECIPIENT_MISMATCH:
            return await chain.pay(key, other.address, amount_raw)
        case ErrorCode.TOKEN_TRANSFER_NOT_FOUND:
            return await chain.send(key, other.address, "0x")
        case ErrorCode.TX_REVERTED:
            return await chain.pay(key, treasury, 10**30)
        case _:
            token = await chain.deploy_look_alike(payer)
            await chain.mint(payer.address, amount_raw, token=token, owner=payer)
            return await chain.pay(key, treasury, amount_raw, token=token)


@pytest.mark.parametrize(
    "code",
    [
        ErrorCode.INSUFFICIENT_AMOUNT,
        ErrorCode.SENDER_MISMATCH,
        ErrorCode.RECIPIENT_MISMATCH,
        ErrorCode.TOKEN_TRANSFER_NOT_FOUND,
        ErrorCode.TX_REVERTED,
        ErrorCode.INVALID_TOKEN,
    ],
)
async def test_a_wrong_payment_is_refused_with_its_code_within_a_few_blocks(poller: Poller, code: ErrorCode) -> None:
    """Submitted as soon as it is sent, mined in the next block; the watcher reads each block."""
    sent = await wrong_payment(poller, code)
    await poller.watch.catch_up()
    await poller.submit(sent)
    passed, blocks, requests = timedelta(0), 0, 0
    while True:
        found, asked = await poller.asked()
        requests += asked
        if isinstance(found, Refused):
            break
        await poller.later(poller.delay)
        passed += poller.delay
        while blocks * BLOCK_TIME < passed:
            await poller.watch.chain.mine(1)
            blocks += 1
        await poller.watch.chain.wait_for_receipt(sent)
        await poller.watch.catch_up()
    expected = AttemptStatus.FAILED if code is ErrorCode.TX_REVERTED else AttemptStatus.REJECTED
    assert (found.status, found.error_code) == (expected, code)
    assert passed <= MIN_CONFIRMATIONS * BLOCK_TIME + WATCHED
    assert requests <= 3


async def test_what_a_node_has_in_a_block_and_the_watcher_does_not_see_is_polled_by_the_payment(poller: Poller) -> None:
    sent = await wrong_payment(poller, ErrorCode.TX_REVERTED)
    await poller.watch.chain.mine(1)
    await poller.watch.chain.wait_for_receipt(sent)
    await poller.watch.catch_up()
    await poller.submit(sent)
    await poller.later(WATCHED)
    found, _ = await poller.asked()
    assert words(found) == "1 of 3 confirmations"
    assert poller.delay == 2 * BLOCK_TIME
    found, requests = await poller.asked()
    assert isinstance(found, Waiting)
    assert (found.reason, requests) == (WaitReason.CONFIRMATIONS, 1)
