"""Holds, captures, releases and crashes in any order, by two gateways and a worker: no call is charged twice,
nothing is lost, and no account is overdrawn by more than the one grace that all its calls share.
"""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from db.engine import ServiceDatabase
from db.ledger.invariants import find_violations
from tests.support.oracle import check_books
from tests.support.postgres import Database
from tests.support.spending import Spender, call, to_capture
from tests.support.sql import connect, query, scalar

GRACE: Final = 50
CREDITS: Final = 1_000

Amounts = st.integers(1, 600)


@dataclass
class ModelHold:
    """What the database must say of a hold."""

    amount: int
    owner: str
    state: str = "held"
    has_lapsed: bool = False
    charged: int = 0


@dataclass
class Process:
    """A gateway or a worker: a connection of its own, and the name under which it holds."""

    url: str
    name: str = field(default_factory=lambda: str(uuid4()))
    connection: psycopg.Connection[Any] | None = None

    def call(self, function: str, **values: Any) -> dict[str, Any]:
        """One transaction, whose answer arrives."""
        if self.connection is None:
            self.connection = psycopg.connect(self.url, autocommit=True)
        return call(self.connection, function, **values)

    def crash_in(self, function: str, **values: Any) -> None:
        """The process is killed after the database did its part, and before it committed."""
        with psycopg.connect(self.url) as doomed:
            call(doomed, function, **values)
            doomed.rollback()

    def restart(self) -> None:
        """Another process in its place, which knows nothing of its calls."""
        if self.connection is not None:
            self.connection.close()
        self.connection, self.name = None, str(uuid4())


async def violations(database: Database) -> list[str]:
    """Of the product's checks and of the tests' own."""
    service = ServiceDatabase(database.service_url)
    try:
        async with service.autocommit() as connection:
            return [*await find_violations(connection), *await check_books(database.superuser_url)]
    finally:
        await service.dispose()


class Calls(RuleBasedStateMachine):
    """One account's calls. `database` is set by the test."""

    database: Database
    holds = Bundle("holds")

    @initialize()
    def open_account(self) -> None:
        self.spender = Spender.open(self.database, credits=CREDITS)
        self.gateways = [Process(self.database.app_url), Process(self.database.app_url)]
        self.worker = Process(self.database.service_url)
        self.balance = CREDITS
        self.model: dict[UUID, ModelHold] = {}
        self.over_hold = False

    @property
    def held(self) -> int:
        return sum(hold.amount for hold in self.model.values() if hold.state == "held")

    @rule(target=holds, number=st.sampled_from([0, 1]), amount=Amounts)
    def hold(self, number: int, amount: int) -> UUID:
        gateway, hold_id = self.gateways[number], uuid4()
        asked = self.spender.to_hold(hold_id, amount=amount, owner=gateway.name)
        answer = gateway.call("hold_credits", **asked)
        is_enough = self.balance - self.held >= amount
        assert answer["outcome"] == ("held" if is_enough else "insufficient_credits")
        if is_enough:
            self.model[hold_id] = ModelHold(amount, gateway.name)
        return hold_id

    @rule(number=st.sampled_from([0, 1]), amount=Amounts)
    def crash_while_holding(self, number: int, amount: int) -> None:
        self.gateways[number].crash_in("hold_credits", **self.spender.to_hold(uuid4(), amount=amount))

    @rule(number=st.sampled_from([0, 1]), hold_id=holds, charged=st.integers(0, 900))
    def capture(self, number: int, hold_id: UUID, charged: int) -> None:
        answer = self.gateways[number].call("capture_hold", **to_capture(hold_id, charged, grace=GRACE))
        self.expect_captured(hold_id, charged, answer)

    @rule(number=st.sampled_from([0, 1]), hold_id=holds, charged=st.integers(0, 900))
    def crash_while_capturing(self, number: int, hold_id: UUID, charged: int) -> None:
        self.gateways[number].crash_in("capture_hold", **to_capture(hold_id, charged, grace=GRACE))

    @rule(hold_id=holds, charged=st.integers(0, 900))
    def resolve(self, hold_id: UUID, charged: int) -> None:
        answer = self.worker.call("capture_hold", **to_capture(hold_id, charged, grace=GRACE, only_lapsed=True))
        hold = self.model.get(hold_id)
        if hold is not None and hold.state == "held" and not hold.has_lapsed:
            assert answer["outcome"] == "not_lapsed"
        else:
            self.expect_captured(hold_id, charged, answer)

    def expect_captured(self, hold_id: UUID, charged: int, answer: dict[str, Any]) -> None:
        hold = self.model.get(hold_id)
        if hold is None:
            assert answer["outcome"] == "unknown_hold"
        elif hold.state == "captured":
            assert (answer["outcome"], answer["charged"]) == ("repeated", hold.charged)
        elif hold.state == "voided":
            assert (answer["outcome"], answer["charged"]) == ("voided", None)
        else:
            others = self.held - hold.amount
            hold.charged = min(charged, max(hold.amount, self.balance - others + GRACE))
            hold.state = "captured"
            self.over_hold = self.over_hold or hold.charged > hold.amount
            self.balance -= hold.charged
            assert (answer["outcome"], answer["charged"]) == ("captured", hold.charged)
            assert answer["uncollected"] == charged - hold.charged
            assert answer["balance"] == self.balance

    @rule(number=st.sampled_from([0, 1]), hold_id=holds)
    def void(self, number: int, hold_id: UUID) -> None:
        hold = self.model.get(hold_id)
        is_open = hold is not None and hold.state == "held"
        assert self.gateways[number].call("void_hold", hold_id=hold_id)["void_hold"] == is_open
        if hold is not None and is_open:
            hold.state = "voided"

    @rule(hold_id=holds)
    def lapse(self, hold_id: UUID) -> None:
        hold = self.model.get(hold_id)
        if hold is not None and hold.state == "held":
            self.spender.lapse(hold_id)
            hold.has_lapsed = True

    @rule(number=st.sampled_from([0, 1]), hold_id=holds)
    def renew(self, number: int, hold_id: UUID) -> None:
        gateway, hold = self.gateways[number], self.model.get(hold_id)
        is_own = hold is not None and hold.state == "held" and hold.owner == gateway.name
        renewed = gateway.call(
            "renew_hold", hold_id=hold_id, owner=gateway.name, lease_seconds=60.0, output_bytes=1, upstream_id=None
        )
        assert renewed["renew_hold"] == is_own
        if hold is not None and is_own:
            hold.has_lapsed = False

    @rule(number=st.sampled_from([0, 1]))
    def restart(self, number: int) -> None:
        self.gateways[number].restart()

    @rule()
    def buy(self) -> None:
        self.spender.add_credits(100)
        self.balance += 100

    @invariant()
    def the_account_is_as_it_must_be(self) -> None:
        if not hasattr(self, "spender"):
            return
        [(balance, held, open_holds)] = query(
            self.database.service_url,
            "SELECT b.balance_credits, b.held_credits, (SELECT coalesce(sum(h.amount_credits), 0) FROM credit_holds h"
            " WHERE h.billing_account_id = b.id AND h.state = 'held') FROM billing_accounts b WHERE b.id = %s",
            self.spender.account,
        )
        assert (balance, held, open_holds) == (self.balance, self.held, self.held)
        assert balance - held >= -GRACE
        if not self.over_hold:
            assert balance - held >= 0

    def teardown(self) -> None:
        """Every hold that is left is resolved, and then all is accounted for."""
        if not hasattr(self, "spender"):
            return
        for hold_id, hold in self.model.items():
            if hold.state == "held":
                self.lapse(hold_id)
                self.resolve(hold_id, hold.amount)
        for process in (*self.gateways, self.worker):
            process.restart()
        receipts = query(
            self.database.service_url,
            "SELECT hold_id, charged_credits FROM charge_receipts WHERE billing_account_id = %s",
            self.spender.account,
        )
        assert sorted(receipts) == sorted(
            (hold_id, hold.charged) for hold_id, hold in self.model.items() if hold.state == "captured"
        )
        assert self.held == 0
        self.the_account_is_as_it_must_be()
        assert asyncio.run(violations(self.database)) == []


def explore(database: Database, *, examples: int, steps: int) -> None:
    """Run the machine on this database."""
    machine = type("CallsHere", (Calls,), {"database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_calls_in_any_order_are_charged_once_and_never_overdraw(database: Database) -> None:
    explore(database, examples=4, steps=25)


@pytest.mark.slow
def test_calls_in_any_order_are_charged_once_and_never_overdraw_for_long(database: Database) -> None:
    explore(database, examples=100, steps=50)


# -- at the same time


def race(database: Database, *, seed: int, calls: int, workers: int = 6) -> None:
    """So many calls of one account, and for each of them gateway, release and resolution at the same time."""
    chance = random.Random(seed)
    spender = Spender.open(database, credits=CREDITS)
    acts: list[tuple[str, str, dict[str, Any]]] = []
    for _ in range(calls):
        hold_id, amount = uuid4(), chance.randint(1, 300)
        with connect(database.app_url) as app:
            held = call(app, "hold_credits", **spender.to_hold(hold_id, amount=amount))
        if held["outcome"] != "held":
            continue
        if chance.random() < 0.7:
            spender.lapse(hold_id)
        for _ in range(2):
            charged = chance.randint(0, 400)
            acts.append((database.app_url, "capture_hold", to_capture(hold_id, charged, grace=GRACE)))
        late = to_capture(hold_id, chance.randint(0, 400), grace=GRACE, only_lapsed=True)
        acts.append((database.service_url, "capture_hold", late))
        if chance.random() < 0.3:
            acts.append((database.app_url, "void_hold", {"hold_id": hold_id}))
        acts.append((database.app_url, "hold_credits", spender.to_hold(uuid4(), amount=chance.randint(1, 300))))
    chance.shuffle(acts)
    barrier = Barrier(workers)

    def work(number: int) -> list[tuple[Any, Any]]:
        answers = []
        with (
            psycopg.connect(database.app_url, autocommit=True) as app,
            psycopg.connect(database.service_url, autocommit=True) as service,
        ):
            barrier.wait()
            for url, function, values in acts[number::workers]:
                answer = call(app if url == database.app_url else service, function, **values)
                if function == "capture_hold":
                    answers.append((values["hold_id"], answer))
        return answers

    with ThreadPoolExecutor(workers) as pool:
        answers = [answer for answers in pool.map(work, range(workers)) for answer in answers]
    captured = {hold_id: answer["charged"] for hold_id, answer in answers if answer["outcome"] == "captured"}
    assert sum(answer["outcome"] == "captured" for _, answer in answers) == len(captured), "one captures, once"
    assert all(answer["charged"] == captured[id_] for id_, answer in answers if answer["outcome"] == "repeated")
    balance, held = query(
        database.service_url,
        "SELECT balance_credits, held_credits FROM billing_accounts WHERE id = %s",
        spender.account,
    )[0]
    assert balance == CREDITS - sum(captured.values())
    assert balance - held >= -GRACE
    left = query(
        database.service_url,
        "SELECT id, amount_credits FROM credit_holds WHERE billing_account_id = %s AND state = 'held'",
        spender.account,
    )
    for hold_id, amount in left:
        spender.capture(hold_id, amount, grace=GRACE)
    assert scalar(database.service_url, "SELECT held_credits FROM billing_accounts WHERE id = %s", spender.account) == 0
    assert asyncio.run(violations(database)) == []


def test_gateways_and_workers_at_the_same_time_charge_each_call_once(database: Database) -> None:
    for seed in range(2):
        race(database, seed=seed, calls=12)


@pytest.mark.slow
def test_gateways_and_workers_at_the_same_time_charge_each_call_once_for_long(database: Database) -> None:
    for seed in range(100, 150):
        race(database, seed=seed, calls=30)


def test_captures_at_the_same_time_share_one_grace(database: Database) -> None:
    """Ten calls, each of which cost far more than was held: together they are charged balance and grace, not ten."""
    spender = Spender.open(database, credits=CREDITS)
    holds = [spender.hold(CREDITS // 10) for _ in range(10)]
    barrier = Barrier(len(holds))

    def capture(hold_id: UUID) -> dict[str, Any]:
        with psycopg.connect(database.app_url, autocommit=True) as app:
            barrier.wait()
            return call(app, "capture_hold", **to_capture(hold_id, 10 * CREDITS, grace=GRACE))

    with ThreadPoolExecutor(len(holds)) as pool:
        answers = list(pool.map(capture, holds))
    assert {answer["outcome"] for answer in answers} == {"captured"}
    assert sum(answer["charged"] for answer in answers) == CREDITS + GRACE
    assert sum(answer["uncollected"] for answer in answers) == 100 * CREDITS - CREDITS - GRACE
    assert (
        scalar(database.service_url, "SELECT balance_credits FROM billing_accounts WHERE id = %s", spender.account)
        == -GRACE
    )
    assert asyncio.run(violations(database)) == []
