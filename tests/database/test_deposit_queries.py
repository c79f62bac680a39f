"""Queries on deposits, charges, prices and sweeps, beside rows of other chains, tokens, accounts and blocks."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from db.accounts.wallets import Payer
from db.deposits import addresses, balances, charges, deposits, lanes, prices, registry, sweeps
from db.deposits.deposits import ConfirmedDeposit
from db.deposits.methods import find_method
from db.deposits.sweeps import SignedSweepTransaction, SweepScope
from devstack.processes import wait_until
from domain.chain import DEPOSITS_TOKEN
from domain.deposits.charges import ChargeStatus
from domain.payments.attempt import AttemptStatus
from domain.utxo import COINBASE_MATURITY, COINBASE_SENDER
from tests.database.signed_rows import ELSEWHERE, OTHER_TOKEN, PAYER, TOKEN, Rows, as_api, hash_, planted
from tests.support.deposits import METHOD, add_method, add_ring
from tests.support.payments import CHAIN_ID, TREASURY, RolePair
from tests.support.sql import connect, query, scalar, waits_for_lock

HEAD, NEEDED = 1_000, 3
CONFIRMED = HEAD - NEEDED + 1
"""The last block that is confirmed at `HEAD`."""

OTHER_TREASURY = "0x" + "4" * 40
HOUR = timedelta(hours=1)


@dataclass
class Books:
    """Two accounts, and rows as no trigger has seen them."""

    roles: RolePair
    rows: Rows
    alice: Payer
    bob: Payer
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def method(self, method_id: str, **values: Any) -> str:
        return add_method(self.roles.database, method_id, **values)

    def address(
        self,
        owner: Payer | None = None,
        *,
        account: str | None = None,
        chain_id: int = CHAIN_ID,
        charge_id: UUID | None = None,
        own: bool = False,
        ring_id: UUID | None = None,
        treasury: str = TREASURY,
        active_ago: timedelta = timedelta(0),
    ) -> UUID:
        """An address of an account: of a charge, or its own."""
        address_id, number = uuid4(), next(self.numbers)
        made_of = {"ring_id": ring_id, "index": number} if ring_id else {"salt": hash_(number), "treasury": treasury}
        self.rows.add(
            "deposit_addresses",
            id=address_id,
            chain_id=chain_id,
            address=f"0x{number:040x}",
            scheme="xpub" if ring_id else "create2",
            billing_account_id=account or (owner or self.alice).billing_account_id,
            charge_id=None if own else charge_id or uuid4(),
            active_at=datetime.now(UTC) - active_ago,
            **made_of,
        )
        return address_id

    def deposit(
        self,
        address_id: UUID,
        value_raw: int = 1,
        *,
        method: str = METHOD,
        chain_id: int = CHAIN_ID,
        block: int = CONFIRMED,
        log_index: int = 0,
        credits: int = 1,
        token: str = TOKEN,
        sender: str = PAYER,
        attempt: AttemptStatus | None = None,
        observed: bool = True,
        handled: bool = False,
        quote_id: UUID | None = None,
        operator_credits: int | None = None,
        ago: timedelta = timedelta(0),
    ) -> UUID:
        """A transfer to an address, as it is observed."""
        deposit_id, number = uuid4(), next(self.numbers)
        place = {"chain_id": chain_id, "tx_hash": hash_(number), "log_index": log_index}
        values = {
            "block_number": block,
            "block_hash": hash_(block),
            "block_time": datetime.now(UTC),
            "token": token,
            "from_address": sender,
            "value_raw": value_raw,
        }
        if attempt is not None:
            self._attempt(deposit_id, attempt)
        self.rows.add(
            "deposits",
            id=deposit_id,
            address_id=address_id,
            method_id=method,
            credits=credits,
            attempt_id=None if attempt is None else deposit_id,
            quote_id=quote_id,
            operator_credits=operator_credits,
            created_at=datetime.now(UTC) - ago,
            **place,
            **values,
        )
        if observed:
            handled_at = datetime.now(UTC) if handled else None
            self.rows.add("observed_transfers", to_address=TREASURY, handled_at=handled_at, **place, **values)
        return deposit_id

    def _attempt(self, attempt_id: UUID, status: AttemptStatus) -> None:
        self.rows.add(
            "payment_attempts",
            id=attempt_id,
            billing_account_id=self.alice.billing_account_id,
            from_address=PAYER,
            chain_id=CHAIN_ID,
            token=TOKEN,
            to_address=TREASURY,
            amount_raw=1,
            value_raw=1,
            amount_usd_cents=0,
            amount_credits=1,
            cash_account="cash:usdc:deposits",
            kind="deposit",
            status=status.value,
            tx_hash=hash_(next(self.numbers)),
            submitted_at=datetime.now(UTC),
            error_code="TX_REVERTED" if status in {AttemptStatus.REJECTED, AttemptStatus.FAILED} else None,
            revenue_share=0 if status in {AttemptStatus.CREDITED, AttemptStatus.REVERSED} else None,
        )

    def swept(
        self, address_id: UUID, value_raw: int, *, method: str = METHOD, block: int = 1, credits: int = 0
    ) -> None:
        number = next(self.numbers)
        self.rows.add(
            "swept_transfers",
            chain_id=CHAIN_ID,
            tx_hash=hash_(number),
            log_index=0,
            address_id=address_id,
            method_id=method,
            treasury=TREASURY,
            value_raw=value_raw,
            credits=credits,
            entry_id=uuid4() if credits else None,
            block_number=block,
            block_hash=hash_(1),
        )

    def charge(self, owner: Payer | None = None, *, quoted_raw: int = 100, method: str = METHOD) -> tuple[UUID, UUID]:
        """A charge, and its address."""
        charge_id = uuid4()
        address_id = self.address(owner, charge_id=charge_id)
        self.rows.add(
            "charges",
            id=charge_id,
            billing_account_id=(owner or self.alice).billing_account_id,
            method_id=method,
            amount_usd_cents=1,
            quoted_amount_raw=quoted_raw,
            address_id=address_id,
            price_expires_at=datetime.now(UTC) + HOUR,
        )
        return charge_id, address_id

    async def confirmed(self, limit: int = 99) -> list[ConfirmedDeposit]:
        async with self.roles.service.transaction() as connection:
            return await deposits.list_confirmed(connection, CHAIN_ID, head=HEAD, min_confirmations=NEEDED, limit=limit)


@pytest.fixture
async def books(roles: RolePair) -> AsyncIterator[Books]:
    add_method(roles.database, address=TOKEN)
    alice, bob = await roles.open_account(1), await roles.open_account(2)
    with planted(roles.database) as rows:
        yield Books(roles, rows, alice, bob)


# -- confirmed deposits ----------------------------------------------------------------------------------------------


async def test_decided_is_about_what_is_confirmed_worth_something_on_its_place_and_not_decided_yet(
    books: Books,
) -> None:
    books.method("SLOW:local", address=OTHER_TOKEN)
    books.rows.change("payment_methods", "confirmations = 5", id="SLOW:local")
    books.method("FAST:local", address=OTHER_TOKEN)
    books.rows.change("payment_methods", "confirmations = 1", id="FAST:local")
    at = books.address()
    slow = books.deposit(at, method="SLOW:local", block=CONFIRMED - 2)
    coinbase = books.deposit(at, sender=COINBASE_SENDER, block=HEAD - COINBASE_MATURITY + 1)
    paid = books.deposit(at, attempt=AttemptStatus.FAILED, block=CONFIRMED)
    first = books.deposit(books.address(books.bob), log_index=2)
    fast = books.deposit(at, method="FAST:local", log_index=3)
    books.deposit(at, method="SLOW:local", block=CONFIRMED - 1)
    books.deposit(at, sender=COINBASE_SENDER, block=HEAD - COINBASE_MATURITY + 2)
    for method in (METHOD, "FAST:local"):
        books.deposit(at, method=method, block=CONFIRMED + 1)
    books.deposit(at, handled=True)
    books.deposit(at, credits=0)
    books.deposit(at, chain_id=ELSEWHERE)
    moved = books.deposit(at)
    books.rows.change("deposits", "log_index = 9", id=moved)
    books.deposit(at, observed=False)
    found = await books.confirmed()
    assert [one.id for one in found] == [coinbase, slow, paid, first, fast]
    assert [one.billing_account_id for one in found][3] == books.bob.billing_account_id
    assert found[3].owner_user_id == books.bob.user_id
    assert [one.attempt_status for one in found] == [None, None, AttemptStatus.FAILED, None, None]
    assert [one.id for one in await books.confirmed(limit=2)] == [coinbase, slow]


async def test_deposits_below_the_minimum_are_summed_by_address_and_token(books: Books) -> None:
    books.method("USDC:other", address=OTHER_TOKEN, min_raw=100)
    books.method("DAI:local", address="0x" + "a" * 40, min_raw=100)
    books.rows.change("payment_methods", "min_amount_raw = 100", id=METHOD)
    together, apart, mixed, paid = (books.address() for _ in range(4))
    both = [books.deposit(together, 60, log_index=0), books.deposit(together, 40, method="USDC:other", log_index=1)]
    books.deposit(apart, 60)
    books.deposit(mixed, 60)
    books.deposit(mixed, 60, method="DAI:local")
    books.deposit(paid, 60)
    earlier = books.deposit(paid, 60, attempt=AttemptStatus.REVERSED, log_index=2)
    assert [one.id for one in await books.confirmed()] == [*both, earlier]


async def test_a_deposit_is_assigned_and_handled_where_it_is_and_as_it_was_read(books: Books) -> None:
    at = books.address()
    books.deposit(at)
    for _ in range(2):
        books.deposit(at, log_index=1)
    one, beside, _ = await books.confirmed()
    moved, renewed = replace(one, block_hash=hash_(7)), replace(one, attempt_id=beside.id)
    async with books.roles.service.transaction() as connection:
        for wrong in (moved, renewed):
            assert not await deposits.assign_attempt(connection, wrong, uuid4())
        assert not await deposits.mark_deposit_handled(connection, moved, None)
        assert [await deposits.mark_deposit_handled(connection, one, None) for _ in range(2)] == [True, False]
    assert [row.tx_hash for row in await books.confirmed()][0:1] == [beside.tx_hash]
    assert len(await books.confirmed()) == 2
    books.rows.change("observed_transfers", f"block_hash = '{hash_(8)}'", tx_hash=beside.tx_hash)
    async with books.roles.service.transaction() as connection:
        assert not await deposits.mark_deposit_handled(connection, beside, None)


def test_a_deposits_id_follows_from_its_place_and_stays() -> None:
    ids = [deposits.deposit_id(8453, hash_(1), 2, number) for number in (0, 1)]
    assert [str(one) for one in ids] == [
        "84680878-799a-592f-bc85-334e53a6519e",
        "594aa07b-ed04-5fa4-9880-1a78fc3f0e48",
    ]


async def test_what_is_known_of_a_transfer_is_that_of_its_place(books: Books) -> None:
    books.method("ETHX:local", address=OTHER_TOKEN, decimals=18)
    mine, other = books.address(), books.address(books.bob)
    one = books.deposit(mine, method="ETHX:local", credits=7, attempt=AttemptStatus.CREDITED)
    beside = books.deposit(other, credits=8)
    tx_hash = scalar(books.roles.database.service_url, "SELECT tx_hash FROM deposits WHERE id = %s", one)
    for changed in ({"log_index": 1}, {"chain_id": ELSEWHERE}):
        place = {"chain_id": CHAIN_ID, "log_index": 0, **changed}
        books.rows.change("deposits", f"tx_hash = '{tx_hash}'", id=beside)
        for name, value in place.items():
            books.rows.change("deposits", f"{name} = {value}", id=beside)
        async with books.roles.service.transaction() as connection:
            found = await deposits.find_deposit_of_transfer(connection, CHAIN_ID, tx_hash, 0)
            assert await deposits.find_decimals_of_deposit(connection, one) == 18
        assert found is not None
        assert (found.billing_account_id, found.token, found.decimals, found.credits, found.is_priced) == (
            *(books.alice.billing_account_id, "ETHX", 18, 7),
            False,
        )


async def test_what_is_expected_at_addresses_is_known_up_to_where_all_have_read(books: Books) -> None:
    async def read_to() -> int | None:
        async with books.roles.service.transaction() as connection:
            return await balances.find_block_read_to(connection, CHAIN_ID, is_coin=False)

    def cursor(block: int, **changes: Any) -> None:
        values = {"chain_id": CHAIN_ID, "token": DEPOSITS_TOKEN, "first_block": 0, "head_number": 99, **changes}
        place = {"to_address": f"0x{next(books.numbers):040x}", "block_number": block, "block_hash": hash_(1)}
        books.rows.add("chain_cursors", **values, **place)

    assert await read_to() is None
    cursor(9)
    cursor(1, chain_id=ELSEWHERE)
    cursor(1, token=TOKEN)
    cursor(1, retired_at=datetime.now(UTC))
    assert await read_to() == 9
    for chain_id, block in ((CHAIN_ID, 5), (ELSEWHERE, 1)):
        books.rows.add("sweep_cursors", chain_id=chain_id, token=TOKEN, treasury=TREASURY, block_number=block)
    assert await read_to() == 5
    at, other = books.address(), books.address()
    for address_id in (at, other):
        books.deposit(address_id, 50, block=7)
    books.deposit(at, 9, block=8)
    books.deposit(at, 9, block=7, token=OTHER_TOKEN)
    books.deposit(at, 9, block=7, log_index=-1, observed=False)
    books.method("DAI:local", address=OTHER_TOKEN)
    for block, method in ((7, METHOD), (8, METHOD), (7, "DAI:local")):
        books.swept(at, 20, block=block, method=method)
    async with books.roles.service.transaction() as connection:
        expected = await balances.expected_balances(connection, TOKEN, [at], block=7)
    assert expected == {at: 30}


# -- addresses and the registry ----------------------------------------------------------------------------------------


async def test_what_is_read_closely_are_tokens_and_addresses_of_the_chain_that_were_asked_for_lately(
    books: Books,
) -> None:
    books.method("DAI:elsewhere", address=OTHER_TOKEN, chain_id=ELSEWHERE)
    async with books.roles.service.transaction() as connection:
        assert await lanes.list_tokens(connection, CHAIN_ID) == [TOKEN]
        assert not await lanes.has_addresses(connection, CHAIN_ID)
    books.address(chain_id=ELSEWHERE)
    async with books.roles.service.transaction() as connection:
        assert not await lanes.has_addresses(connection, CHAIN_ID)
    active = [books.address(active_ago=HOUR / 2), books.address()]
    books.address(active_ago=2 * HOUR)
    async with books.roles.service.transaction() as connection:
        assert await lanes.has_addresses(connection, CHAIN_ID)
        found = await lanes.list_active_addresses(connection, CHAIN_ID, within=HOUR)
        assert [one.id for one in found] == active
        assert [one.id for one in await lanes.list_addresses(connection, active[:1])] == active[:1]


async def test_addresses_are_paged_of_all_or_of_an_account_or_chain(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "PAGE", 2)
    mine = [books.address(), books.address(chain_id=ELSEWHERE), books.address()]
    other = books.address(books.bob)

    async def paged(**of: Any) -> list[UUID]:
        async with books.roles.service.transaction() as connection:
            return [one.id async for page in registry.page_addresses(connection, **of) for one in page]

    assert await paged() == sorted([*mine, other])
    assert await paged(account=books.bob.billing_account_id) == [other]
    assert await paged(chain_id=ELSEWHERE) == [mine[1]]
    assert await paged(account=books.alice.billing_account_id) == sorted(mine)


async def test_an_own_address_is_the_accounts_for_a_chain_and_treasury_or_key_and_of_no_charge(books: Books) -> None:
    key, other_key = add_ring(books.roles.database), uuid4()
    books.method("USDC:wallet", ring_id=key, address=TOKEN)
    books.method("USDC:elsewhere", address=TOKEN, chain_id=ELSEWHERE)
    books.rows.add("billing_accounts", id="organization", owner_user_id=books.alice.user_id)
    books.address(account="organization", own=True)
    for owner in (books.bob, None):
        books.address(owner, charge_id=uuid4())
        books.address(owner, own=True, treasury=OTHER_TREASURY)
    books.address(books.bob, own=True)
    books.address(books.bob, own=True, ring_id=key)
    books.address(own=True, ring_id=other_key)
    expected = {
        METHOD: books.address(own=True, active_ago=HOUR),
        "USDC:wallet": books.address(own=True, ring_id=key, active_ago=HOUR),
        "USDC:elsewhere": books.address(own=True, chain_id=ELSEWHERE, active_ago=HOUR),
    }

    def text(address_id: UUID) -> str:
        found = "SELECT address FROM deposit_addresses WHERE id = %s"
        return str(scalar(books.roles.database.service_url, found, address_id))

    def asleep() -> set[UUID]:
        found = "SELECT id FROM deposit_addresses WHERE active_at < now() - interval '30 minutes'"
        return {row[0] for row in query(books.roles.database.service_url, found)}

    account = books.alice.billing_account_id
    for method_id, address_id in expected.items():
        asleep_before = asleep()
        async with books.roles.app.transaction(books.alice.user_id) as connection:
            method = await find_method(connection, method_id)
            assert method is not None
            assert await addresses.find_own_address(connection, account, method, TREASURY.lower()) == text(address_id)
        assert asleep_before - asleep() == {address_id}
    sleeping = [*expected.values(), books.address(books.bob, own=True, chain_id=ELSEWHERE)]
    for address_id in sleeping:
        books.rows.change("deposit_addresses", "active_at = now() - interval '1 hour'", id=address_id)
    async with books.roles.app.transaction(books.alice.user_id) as connection:
        own = await addresses.list_own_addresses(connection, account, TREASURY.upper().replace("0X", "0x"))
    assert own == {method_id: text(address_id) for method_id, address_id in expected.items()}
    assert asleep() == {sleeping[-1]}


async def test_interest_in_a_charge_is_in_its_address_alone(books: Books) -> None:
    (charge_id, address_id), (_, other) = books.charge(), books.charge()
    for one in (address_id, other):
        books.rows.change("deposit_addresses", "active_at = now() - interval '1 hour'", id=one)
    async with books.roles.app.transaction(books.alice.user_id) as connection:
        await addresses.note_interest(connection, charge_id)
    active = "SELECT id FROM deposit_addresses WHERE active_at > now() - interval '1 minute'"
    assert query(books.roles.database.service_url, active) == [(address_id,)]


def test_of_a_key_those_count_as_unpaid_that_come_after_the_last_that_was_paid(books: Books) -> None:
    key, other = add_ring(books.roles.database), uuid4()
    books.rows.add("address_rings", id=other, path="m/1", xpub="other", fingerprint="00000000", next_index=9)
    books.rows.change("address_rings", "next_index = 40", id=key)

    def unpaid() -> int:
        [(count,)] = as_api(books.roles.database, "SELECT unpaid_at_the_end(%s)", key, user_id=books.alice.user_id)
        return int(count)

    assert unpaid() == 40
    first, last = books.address(ring_id=key), books.address(books.bob, ring_id=key)
    of_other = books.address(ring_id=other)
    books.address(ring_id=key)
    for paid in (first, last, of_other):
        books.deposit(paid)
    [(index,)] = query(books.roles.database.service_url, "SELECT index FROM deposit_addresses WHERE id = %s", last)
    assert unpaid() == 40 - index - 1, "of all accounts"


def test_an_index_is_of_one_key_and_its_accounts_are_opened_once(books: Books) -> None:
    key, other = add_ring(books.roles.database), uuid4()
    books.rows.add("address_rings", id=other, path="m/1", xpub="other", fingerprint="00000000", next_index=9)
    assert [scalar(books.roles.database.app_url, "SELECT allocate_index(%s)", key) for _ in range(2)] == [0, 1]
    assert scalar(books.roles.database.service_url, "SELECT next_index FROM address_rings WHERE id = %s", other) == 9
    for method_id in ("DAI:local", "dai:again"):
        books.method(method_id, address=OTHER_TOKEN)
    codes = query(books.roles.database.service_url, "SELECT code FROM ledger_accounts WHERE code LIKE 'cash:%'")
    assert {code for (code,) in codes} >= {"cash:usdc", "cash:usdc:deposits", "cash:dai", "cash:dai:deposits"}


# -- charges ---------------------------------------------------------------------------------------------------------


async def test_a_charge_is_paid_by_deposits_at_its_address_in_its_token(books: Books) -> None:
    books.method("DAI:local", address=OTHER_TOKEN)
    books.method("USDC:again", address=TOKEN)
    (charge_id, at), (other, beside) = books.charge(), books.charge()

    def status(of: UUID) -> str:
        query(books.roles.database.service_url, "SELECT refresh_charge(%s), 1", of)
        return str(scalar(books.roles.database.service_url, "SELECT status FROM charges WHERE id = %s", of))

    books.deposit(at, 500, method="DAI:local")
    books.deposit(at, 500, attempt=AttemptStatus.REJECTED)
    assert status(charge_id) == "new"
    books.deposit(at, 10, attempt=AttemptStatus.REJECTED, operator_credits=5)
    assert status(charge_id) == "partial"
    credited = books.deposit(at, 60, method="USDC:again", attempt=AttemptStatus.CREDITED)
    books.rows.add("transfers_awaiting_finality", attempt_id=credited, chain_id=CHAIN_ID, block_number=1)
    books.deposit(at, 30)
    assert status(charge_id) == "confirming"
    assert status(other) == "new"
    async with books.roles.app.transaction(books.alice.user_id) as connection:
        account = books.alice.billing_account_id
        found = await charges.find_charge(connection, charge_id, account)
        assert await charges.find_charge(connection, charge_id, books.bob.billing_account_id) is None
        none = await charges.find_charge(connection, other, account)
    assert found is not None
    assert none is not None
    received = found.received
    assert (found.status, received.seen_raw, received.credited_raw, received.waiting_raw, received.credits) == (
        *(ChargeStatus.CONFIRMING, 100, 70, 530),
        1 + 5,
    )
    states = [(one.value_raw, one.is_of_charge, one.attempt_status, one.is_awaiting_finality) for one in found.deposits]
    assert sorted(states, key=str) == [
        (10, True, AttemptStatus.CREDITED, False),
        (30, True, None, False),
        (500, False, None, False),
        (500, True, AttemptStatus.REJECTED, False),
        (60, True, AttemptStatus.CREDITED, True),
    ]
    assert (none.status, none.deposits, none.received.credits) == (ChargeStatus.NEW, (), 0)
    assert beside


def test_a_status_that_stays_is_not_written_and_no_other_charge_is_waited_for(books: Books) -> None:
    (charge_id, at), (other, _) = books.charge(), books.charge()
    books.deposit(at, 10)
    written = "SELECT xmin::text FROM charges WHERE id = %s"
    refresh = "SELECT refresh_charge(%s)"
    with connect(books.roles.database.superuser_url) as blocker:
        blocker.execute("SELECT FROM charges WHERE id = %s FOR UPDATE", (other,))
        with connect(books.roles.database.service_url) as service:
            service.execute("SET lock_timeout = '5s'")
            service.execute(refresh, (charge_id,))
            service.execute("UPDATE deposits SET value_raw = 11 WHERE address_id = %s", (at,))
    before = scalar(books.roles.database.service_url, written, charge_id)
    query(books.roles.database.service_url, f"{refresh}, 1", charge_id)
    assert scalar(books.roles.database.service_url, written, charge_id) == before


@contextmanager
def with_trigger(books: Books, table: str, trigger: str) -> Iterator[psycopg.Connection[Any]]:
    """A transaction in which a table has one of its triggers, and no other; it is rolled back."""
    with closing(psycopg.connect(books.roles.database.superuser_url)) as connection:
        connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
        connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER {trigger}".encode())
        yield connection
        connection.rollback()


def test_an_operators_credit_is_of_the_deposit_at_its_place_and_of_its_addresss_account(books: Books) -> None:
    at = books.address()
    mine, beside, sent_back, to_bob, nothing = (books.deposit(at) for _ in range(5))
    tx_hash = scalar(books.roles.database.service_url, "SELECT tx_hash FROM deposits WHERE id = %s", mine)
    elsewhere = books.deposit(at, chain_id=ELSEWHERE)
    books.rows.change("deposits", f"tx_hash = '{tx_hash}'", id=elsewhere)
    books.rows.change("deposits", f"tx_hash = '{tx_hash}', log_index = 1", id=beside)
    for owner in (books.alice, books.bob):
        endpoint = {"billing_account_id": owner.billing_account_id, "url": "https://example.com"}
        books.rows.add("webhook_endpoints", id=uuid4(), **endpoint)
    with with_trigger(books, "transfer_credits", "transfer_credits_note_deposit") as connection:
        own = books.alice.billing_account_id
        credited = {mine: own, to_bob: books.bob.billing_account_id, sent_back: None, nothing: own}
        for deposit_id, account in credited.items():
            finding_id = uuid4()
            books.rows.add("findings", id=finding_id, key=str(finding_id), kind="x", detail="x")
            connection.execute(
                "INSERT INTO transfer_credits (chain_id, tx_hash, log_index, part, block_number, block_hash,"
                " from_address, finding_id, billing_account_id, value_raw, token_decimals, amount_credits,"
                " revenue_share, reference)"
                " SELECT d.chain_id, d.tx_hash, d.log_index, %(part)s, 1, d.block_hash, d.from_address, %(finding)s,"
                " %(account)s, 7, %(decimals)s, %(credits)s, 0, CASE WHEN %(account)s::text IS NOT NULL"
                " THEN format('transfer:%%s:%%s:%%s', d.chain_id, d.tx_hash, d.log_index) END"
                " FROM deposits d WHERE d.id = %(id)s",
                {
                    "part": "whole" if account else "refund",
                    "finding": finding_id,
                    "account": account,
                    "decimals": 18 if deposit_id == nothing else 6,
                    "credits": 70 if account and deposit_id != nothing else 0,
                    "id": deposit_id,
                },
            )
        noted = connection.execute("SELECT id, operator_credits FROM deposits WHERE operator_credits IS NOT NULL")
        assert noted.fetchall() == [(mine, 70)]
        events = connection.execute("SELECT type, subject, body::json #>> '{data,amountCredits}' FROM webhook_events")
        assert events.fetchall() == [("deposit.credited", f"deposit:{mine}", "70")]


def test_what_a_worker_decides_about_an_attempt_is_seen_at_its_charge(books: Books) -> None:
    (charge_id, at), (other, beside) = books.charge(), books.charge()
    deposit_id = books.deposit(at, 100, attempt=AttemptStatus.PENDING_UNVERIFIED)
    own = books.deposit(books.address(own=True), attempt=AttemptStatus.PENDING_UNVERIFIED)
    books.deposit(beside, 100, attempt=AttemptStatus.CREDITED)
    with with_trigger(books, "payment_attempts", "payment_attempts_refresh_charge") as connection:
        connection.execute("SELECT set_config('settle.user_id', %s, true)", (books.alice.user_id,))
        connection.execute("SET LOCAL ROLE settle_settlement")
        for one in (deposit_id, own):
            connection.execute(
                "UPDATE payment_attempts SET status = 'CREDITED', revenue_share = 0 WHERE id = %s", (one,)
            )
        connection.execute("RESET ROLE")
        statuses = connection.execute("SELECT id, status FROM charges").fetchall()
    assert dict(statuses) == {charge_id: "paid", other: "new"}


async def test_what_waits_is_the_accounts_own_without_an_attempt_and_summed_by_address_and_method(books: Books) -> None:
    books.method("DAI:local", address=OTHER_TOKEN, min_raw=100)
    at, other = books.address(), books.address()
    books.rows.change("payment_methods", "min_amount_raw = 100", id=METHOD)
    seen = [books.deposit(at, 60, ago=HOUR), books.deposit(at, 40), books.deposit(other, 50, ago=2 * HOUR)]
    seen.append(books.deposit(at, 70, method="DAI:local", ago=3 * HOUR))
    books.deposit(at, attempt=AttemptStatus.CREDITED)
    books.deposit(at, operator_credits=1)
    books.deposit(books.address(books.bob))

    async def waiting(limit: int = 99) -> list[tuple[UUID, bool]]:
        async with books.roles.app.transaction(books.alice.user_id) as connection:
            account = books.alice.billing_account_id
            found = await charges.list_waiting_deposits(connection, account, limit=limit)
        return [(one.deposit.id, one.is_below_minimum) for one in found]

    assert await waiting() == [(seen[1], False), (seen[0], False), (seen[2], True), (seen[3], True)]
    assert await waiting(limit=1) == [(seen[1], False)]


async def test_charges_expire_that_are_new_and_over_the_oldest_first(books: Books) -> None:
    (over, _), (newer, _), (_, _), (partial, paid_at) = (books.charge() for _ in range(4))
    for charge_id, ago in ((newer, "1 minute"), (over, "2 minutes"), (partial, "3 minutes")):
        books.rows.change("charges", f"price_expires_at = now() - interval '{ago}'", id=charge_id)
    books.deposit(paid_at)
    books.rows.change("charges", "status = 'partial'", id=partial)

    async with books.roles.service.transaction() as connection:
        assert [await charges.list_due(connection, limit=limit) for limit in (1, 9)] == [[over], [over, newer]]


async def test_the_owner_of_a_charge_is_its_accounts(books: Books) -> None:
    (charge_id, _), _ = books.charge(books.bob), books.charge()
    async with books.roles.app.unscoped_statement() as connection:
        owner = await charges.find_owner(connection, charge_id)
        assert await charges.find_owner(connection, uuid4()) is None
    assert owner is not None
    assert (owner.user_id, owner.billing_account_id) == (books.bob.user_id, books.bob.billing_account_id)


# -- prices ----------------------------------------------------------------------------------------------------------


async def test_without_a_price_are_confirmed_deposits_of_a_token_that_is_no_dollar(books: Books) -> None:
    coin = books.method("ETHX:local", address=OTHER_TOKEN, decimals=18)
    books.method("ETHX:slow", address="0x" + "b" * 40)
    books.rows.change("payment_methods", "confirmations = 5", id="ETHX:slow")
    (charge_id, at), quote_id, source_id = books.charge(method=coin), uuid4(), uuid4()
    books.rows.add("price_sources", id=source_id, **_source(coin))
    quoted = {"round_id": 1, "answer_raw": 1, "decimals": 8, "feed_updated_at": datetime.now(UTC) - HOUR}
    books.rows.add("price_quotes", id=quote_id, source_id=source_id, block_time=datetime.now(UTC), **quoted)
    books.rows.change("charges", f"quote_id = '{quote_id}'", id=charge_id)
    books.charge(method=coin)

    def deposit(**values: Any) -> UUID:
        return books.deposit(values.pop("address_id", at), **{"method": coin, "credits": 0, **values})

    first = deposit(log_index=1, block=CONFIRMED - 2, method="ETHX:slow")
    second = deposit(log_index=0, value_raw=7, ago=HOUR)
    third = deposit(log_index=1, address_id=books.address(), value_raw=8)
    skipped = deposit()
    deposit(block=CONFIRMED - 1, method="ETHX:slow")
    deposit(block=CONFIRMED + 1, value_raw=100)
    for other in (
        *({"chain_id": ELSEWHERE}, {"quote_id": uuid4()}, {"credits": 1}, {"attempt": AttemptStatus.CREDITED}),
        *({"log_index": -1, "observed": False}, {"method": METHOD}, {"value_raw": 0, "observed": False}),
    ):
        deposit(**other)

    async def unpriced(limit: int = 99) -> list[prices.UnpricedDeposit]:
        async with books.roles.service.transaction() as connection:
            return await prices.list_unpriced(
                connection, CHAIN_ID, head=HEAD, min_confirmations=NEEDED, but=[skipped], limit=limit
            )

    found = await unpriced()
    assert [one.id for one in found] == [first, second, third]
    assert [one.charge_quote_id for one in found] == [quote_id, quote_id, None]
    assert [one.id for one in await unpriced(limit=1)] == [first]

    async def without(lasting: timedelta) -> tuple[int, int, bool]:
        async with books.roles.service.transaction() as connection:
            got = await prices.find_without_price(connection, CHAIN_ID, coin, lasting=lasting)
        return got.count, got.value_raw, got.is_lasting

    assert await without(HOUR / 2) == (4, 7 + 8 + 1 + 100, True)
    assert (await without(2 * HOUR))[2] is False
    one = found[1]
    async with books.roles.service.transaction() as connection:
        assert not await prices.set_price(connection, replace(one, block_hash=hash_(5)), quote_id, 9)
        assert [await prices.set_price(connection, one, quote_id, 9) for _ in range(2)] == [True, False]
    books.rows.change("deposits", f"attempt_id = '{uuid4()}'", id=third)
    async with books.roles.service.transaction() as connection:
        assert not await prices.set_price(connection, found[2], quote_id, 9)
    assert [one.id for one in await unpriced()] == [first]


async def test_what_is_moved_takes_its_share_of_what_its_address_and_token_is_on_the_books(books: Books) -> None:
    coin = books.method("ETHX:local", address=OTHER_TOKEN, decimals=18)
    at, other = books.address(), books.address()

    async def worth(value_raw: int) -> int:
        async with books.roles.service.transaction() as connection:
            return await prices.booked_worth(connection, at, "ETHX", value_raw)

    assert await worth(1) == 0
    for address_id in (at, other):
        books.deposit(address_id, 100, method=coin, credits=1_000)
        books.swept(address_id, 40, method=coin, credits=100)
    books.deposit(at, 100, credits=5_000)
    books.deposit(at, 60, method=coin, credits=0)
    books.deposit(at, 60, method=coin, credits=600, log_index=-1, observed=False)
    books.swept(at, 60, credits=700)
    books.swept(at, 9, method=coin)
    assert [await worth(value_raw) for value_raw in (10, 60, 61)] == [150, 900, 900]


def _source(method_id: str) -> dict[str, Any]:
    return {
        "method_id": method_id,
        "chain_id": CHAIN_ID,
        "feed": TOKEN,
        "description": "a feed",
        "decimals": 8,
        "max_age_seconds": 1,
        "max_divergence_bps": 1,
        "sequencer_grace_seconds": 1,
    }


async def test_a_methods_source_is_its_newest(books: Books) -> None:
    coin, other = books.method("ETHX:local", address=OTHER_TOKEN), books.method("BTCX:local", address=OTHER_TOKEN)
    old, new, of_other = uuid4(), uuid4(), uuid4()
    for source_id, method_id in ((old, coin), (new, coin), (of_other, other)):
        books.rows.add("price_sources", id=source_id, **_source(method_id))
    async with books.roles.service.transaction() as connection:
        found = await prices.find_source(connection, coin)
        assert found is not None
        assert found.id == new
        assert await prices.find_source(connection, METHOD) is None
        listed = await prices.list_sources(connection)
    assert {method_id: source.id for method_id, source in listed.items()} == {coin: new, other: of_other}


# -- sweeps ----------------------------------------------------------------------------------------------------------


async def test_holders_are_addresses_to_which_more_of_the_token_came_than_was_moved(books: Books) -> None:
    books.method("DAI:local", address=OTHER_TOKEN)
    key, other_key = uuid4(), uuid4()
    holders = [books.address(), books.address(books.bob)]
    empty, nothing, of_key, of_other_key = (
        books.address(),
        books.address(),
        *(books.address(ring_id=ring_id) for ring_id in (key, other_key)),
    )
    for address_id in (*holders, empty, of_key, of_other_key, books.address(chain_id=ELSEWHERE)):
        books.deposit(address_id, 50)
    books.deposit(nothing, 50, method="DAI:local")
    books.deposit(nothing, 50, log_index=-1, observed=False)
    books.deposit(empty, 50, method="DAI:local")
    books.swept(empty, 50)
    books.swept(holders[0], 49)
    books.swept(holders[1], 50, method="DAI:local")

    async def held(scheme: str, ring_id: UUID | None = None) -> list[UUID]:
        async with books.roles.service.transaction() as connection:
            found = await sweeps.list_holders(
                connection, chain_id=CHAIN_ID, scheme=scheme, ring_id=ring_id, token=TOKEN.upper().replace("X", "x")
            )
        return [one.id for one in found]

    assert await held("create2") == sorted(holders)
    assert await held("xpub", key) == [of_key]
    assert await held("xpub") == sorted([of_key, of_other_key])


def _signed(number: int, nonce: int = 7, sender: str = PAYER) -> SignedSweepTransaction:
    return SignedSweepTransaction(hash_(number), sender, nonce, b"raw")


async def test_a_sweeps_transactions_and_outcomes_are_its_chains_own(books: Books) -> None:
    mine, other, elsewhere = uuid4(), uuid4(), uuid4()
    async with books.roles.service.transaction() as connection:
        await sweeps.insert_sweep(connection, mine, CHAIN_ID, {"a": 1}, [_signed(3), _signed(2, 6), _signed(1)])
        await sweeps.insert_sweep(connection, mine, CHAIN_ID, {"a": 2}, [_signed(3)])
        await sweeps.insert_sweep(connection, other, CHAIN_ID, {}, [_signed(4)])
        await sweeps.insert_sweep(connection, elsewhere, ELSEWHERE, {}, [_signed(3)])
        found = await sweeps.list_transactions(connection, mine)
        assert [(one.nonce, one.tx_hash) for one in found] == [(6, hash_(2)), (7, hash_(1)), (7, hash_(3))]
        await sweeps.note_outcome(connection, CHAIN_ID, hash_(3), "reverted")
        await sweeps.end_sweep(connection, other, "done")
        await sweeps.end_sweep(connection, other, "failed")
        await sweeps.insert_sweep(connection, mine, CHAIN_ID, {}, [_signed(5)])
    outcomes = "SELECT sweep_id, tx_hash FROM sweep_transactions WHERE outcome IS NOT NULL"
    assert query(books.roles.database.service_url, outcomes) == [(mine, hash_(3))]
    ended = "SELECT id, status FROM sweeps WHERE ended_at IS NOT NULL"
    assert query(books.roles.database.service_url, ended) == [(other, "done")]
    plan = "SELECT plan FROM sweeps WHERE id = %s"
    assert scalar(books.roles.database.service_url, plan, mine) == {"a": 1}

    async def left(grace: timedelta) -> list[UUID]:
        async with books.roles.service.transaction() as connection:
            return await sweeps.list_left(connection, CHAIN_ID, grace=grace)

    assert await left(timedelta(0)) == [mine]
    assert await left(HOUR) == []
    books.rows.change("sweeps", "created_at = created_at - interval '1 day'", id=elsewhere)
    books.rows.change("sweeps", "created_at = created_at + interval '1 second'", id=other)
    books.rows.change(
        "sweep_transactions", "gas_used = 5, spent_wei = 50, l1_fee_wei = 3, outcome = 'succeeded'", tx_hash=hash_(2)
    )
    async with books.roles.service.transaction() as connection:
        listed = await sweeps.list_sweeps(connection, CHAIN_ID, limit=9)
        assert [one.id for one in await sweeps.list_sweeps(connection, CHAIN_ID, limit=1)] == [other]
    assert [(one.id, one.nonces, one.decided, one.gas_used, one.spent_wei, one.l1_fee_wei) for one in listed] == [
        (other, 1, 0, 0, 0, None),
        (mine, 2, 2, 5, 50, 3),
    ]


async def test_scopes_are_every_token_with_deposits_and_every_treasury_that_anything_pays_to(books: Books) -> None:
    later = books.method("USDC:again", address=TOKEN.upper().replace("X", "x"))
    books.rows.change("payment_methods", "created_at = now() + interval '1 day'", id=later)
    books.method("DAI:local", address=OTHER_TOKEN)
    books.method("EUR:elsewhere", address=TOKEN, chain_id=ELSEWHERE)
    at = books.address(treasury=OTHER_TREASURY)
    books.address(chain_id=ELSEWHERE, treasury="0x" + "6" * 40)
    for block, values in ((9, {"method": later}), (8, {}), (1, {"chain_id": ELSEWHERE, "method": "EUR:elsewhere"})):
        books.deposit(at, block=block, **values)
    destination = {"chain_id": CHAIN_ID, "token": TOKEN}
    for noted_by, digit in (("worker", "c"), ("intent", "d")):
        books.rows.add("payment_destinations", to_address=f"0x{digit * 40}", noted_by=noted_by, **destination)
    for place in (
        {"treasury": OTHER_TREASURY},
        {"treasury": "0x" + "c" * 40, "chain_id": ELSEWHERE},
        {"treasury": "0x" + "c" * 40, "token": OTHER_TOKEN},
    ):
        books.rows.add("sweep_cursors", **{"chain_id": CHAIN_ID, "token": TOKEN, "block_number": 20, **place})
    async with books.roles.service.transaction() as connection:
        found = await sweeps.list_scopes(connection, CHAIN_ID, TREASURY)
    assert [(one.method_id, one.treasury, one.first_block, one.cursor) for one in found] == [
        (METHOD, treasury, 21 if treasury == OTHER_TREASURY else 8, 20 if treasury == OTHER_TREASURY else None)
        for treasury in sorted({OTHER_TREASURY, TREASURY.lower(), "0x" + "c" * 40})
    ]


async def test_senders_and_cursors_are_a_chains_own(books: Books) -> None:
    at = books.address()
    books.address(chain_id=ELSEWHERE)
    every = query(books.roles.database.service_url, "SELECT address FROM deposit_addresses")
    scope = SweepScope(METHOD, CHAIN_ID, TOKEN.upper().replace("X", "x"), TREASURY, first_block=1, cursor=None)
    async with books.roles.service.transaction() as connection:
        found = await sweeps.find_senders(connection, CHAIN_ID, [row[0].upper().replace("X", "x") for row in every])
        assert [one.id for one in found.values()] == [at]
        assert await sweeps.move_sweep_cursor(connection, scope, 5)
        assert await sweeps.move_sweep_cursor(connection, replace(scope, chain_id=ELSEWHERE), 6)
    rows = query(books.roles.database.service_url, "SELECT chain_id, token, treasury, block_number FROM sweep_cursors")
    assert rows == [(CHAIN_ID, TOKEN, TREASURY.lower(), 5), (ELSEWHERE, TOKEN, TREASURY.lower(), 6)]


def book(
    books: Books, number: int, at: UUID, *, log_index: int = 0, chain_id: int = CHAIN_ID, credits: int = 5
) -> bool:
    """What a worker does with a transfer from a deposit address."""
    return bool(
        query(
            books.roles.database.service_url,
            "SELECT book_swept_transfer(%s, %s, %s, %s, %s, %s, 5, %s, 1, %s), now()",
            *(chain_id, hash_(number), log_index, at, METHOD, TREASURY, credits, hash_(1)),
        )[0][0]
    )


async def test_a_transfer_is_booked_once_by_its_place_and_what_is_worth_no_credit_in_no_entry(books: Books) -> None:
    at = books.address()
    assert [book(books, 1, at) for _ in range(2)] == [True, False]
    assert [book(books, 2, at), book(books, 1, at, log_index=1), book(books, 1, at, chain_id=ELSEWHERE)] == [True] * 3
    assert book(books, 3, at, credits=0)
    assert scalar(books.roles.database.service_url, "SELECT count(*) FROM general_entries") == 4
    place = f"swept:{CHAIN_ID}:{hash_(4)}:0"
    with connect(books.roles.database.superuser_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (place,))
        waiting = asyncio.create_task(asyncio.to_thread(book, books, 4, at))
        superuser_url = books.roles.database.superuser_url
        await wait_until(lambda: waits_for_lock(superuser_url), timeout_seconds=10, what="its wait")
    assert await waiting
