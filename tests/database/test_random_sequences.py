"""Random sequences of everything that can happen to payments, with the oracle asked again and again."""

from __future__ import annotations

import random

import pytest

from db.ledger.entries import PostedMeanwhile
from domain.errors import BookkeepingError, HashInUse, TooManyReplacements, TransferAlreadySettled
from domain.payments.attempt import AttemptStatus, PaymentAttempt, Purpose
from tests.support.payments import INTENT_TTL, NOW, REVERTED, WRONG_PAYMENT, RolePair, transfer_for, tx_hash

OPERATIONS_BETWEEN_CHECKS = 10
PAYERS = 4
HASHES = 12
"""Few, so that payers meet at the same transaction often."""


class RandomOperations:
    """What some payers do in some order, and what must be true whatever the order was."""

    def __init__(self, roles: RolePair, seed: int) -> None:
        self.roles = roles
        self.random = random.Random(seed)
        self.attempts: list[PaymentAttempt] = []
        self.done: dict[str, int] = {}

    async def step(self) -> None:
        """One operation on one attempt; a refusal by rule is an answer like any other."""
        actions = [self.create, self.submit, self.submit, self.credit, self.credit, self.mint, self.refuse]
        action = self.random.choice(actions) if self.attempts else self.create
        try:
            outcome = await action()
        except (HashInUse, TransferAlreadySettled, BookkeepingError, TooManyReplacements, PostedMeanwhile) as error:
            outcome = type(error).__name__
        self.done[outcome] = self.done.get(outcome, 0) + 1

    async def create(self) -> str:
        payer = await self.roles.open_account(self.random.randrange(PAYERS))
        purpose = self.random.choice([Purpose.SELF, Purpose.SELF, Purpose.SYSTEM])
        cents = self.random.choice([100, 101, 9_999, 10_000, 1_000_000, self.random.randint(100, 1_000_000)])
        self.attempts.append(await self.roles.create(payer, cents=cents, purpose=purpose))
        return "created"

    async def submit(self) -> str:
        number = self.random.randrange(len(self.attempts))
        late = self.random.random() < 0.1
        ending = await self.roles.submit(
            self.attempts[number], tx_hash(self.random.randrange(HASHES)), at=NOW + INTENT_TTL if late else NOW
        )
        self.attempts[number] = ending.attempt
        return f"submit changed {ending.changed}"

    async def credit(self) -> str:
        attempt = self.pick(AttemptStatus.PENDING_UNVERIFIED)
        if attempt.tx_hash is None:
            return "nothing to credit"
        surplus = self.random.choice([0, 0, 1])
        transfer = transfer_for(attempt, log_index=self.random.randrange(2), value_raw=attempt.amount_raw + surplus)
        # Sometimes twice in a row, as a retry after a lost answer does.
        endings = [await self.roles.credit(attempt, transfer) for _ in range(self.random.choice([1, 2]))]
        self.replace(endings[0].attempt)
        return f"credit changed {endings[0].changed}"

    async def mint(self) -> str:
        entry = await self.roles.mint(self.pick(AttemptStatus.CREDITED))
        assert entry is not None
        return f"mint posted {entry.posted}"

    async def refuse(self) -> str:
        attempt = self.pick(self.random.choice([AttemptStatus.CREDITED, AttemptStatus.PENDING_UNVERIFIED]))
        if attempt.status is AttemptStatus.CREATED_INTENT:
            return "nothing to refuse"
        ending = await self.roles.refuse(attempt, self.random.choice([WRONG_PAYMENT, REVERTED]))
        self.replace(ending.attempt)
        return f"refuse changed {ending.changed}"

    def pick(self, status: AttemptStatus) -> PaymentAttempt:
        """Mostly an attempt in this status, sometimes any: what is out of place is tried too."""
        fitting = [attempt for attempt in self.attempts if attempt.status is status]
        anywhere = self.random.random() < 0.3
        return self.random.choice(self.attempts if anywhere or not fitting else fitting)

    def replace(self, attempt: PaymentAttempt) -> None:
        """Remember how an attempt stands now."""
        self.attempts = [attempt if known.id == attempt.id else known for known in self.attempts]


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(("seed", "number_of_operations"), [(3, 150), (0, 300), (1, 300), (2, 300)])
async def test_the_books_hold_after_any_sequence_of_operations(
    roles: RolePair, seed: int, number_of_operations: int
) -> None:
    operations = RandomOperations(roles, seed)
    for number in range(number_of_operations):
        await operations.step()
        if number % OPERATIONS_BETWEEN_CHECKS == 0:
            assert await roles.books(pending_bonus_ok=True) == [], f"seed {seed}, operation {number}"
    for attempt in operations.attempts:
        try:
            await roles.mint(attempt)
        except BookkeepingError:
            continue
    assert await roles.books() == []
    # A sequence in which nothing happens proves nothing.
    for outcome in ("submit changed True", "submit changed False", "credit changed True",
                    "TransferAlreadySettled", "mint posted True",
                    "mint posted False", "refuse changed True", "HashInUse", "BookkeepingError"):  # fmt: skip
        assert operations.done.get(outcome, 0) > 0, (outcome, operations.done)
