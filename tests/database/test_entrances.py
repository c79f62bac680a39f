"""Every rule of the right transfer at every entrance by which one could be credited: a table, and each cell tried.

Rules that only a node can answer (status, token, receiver, confirmations) are tried against real chains in
tests/crash/test_verdicts.py and tests/watcher; here are those that the database knows something about.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final

import psycopg
import pytest

from db.accounts import wallets as accounts
from db.payments import attempts
from db.transfers import destinations, observed
from db.transfers.identity import find_known_transfers
from domain.chain import BlockHeader, ChainView, Receipt, TransferLog, TransferScope
from domain.errors import RemedyRefused, TransferAlreadySettled
from domain.operations.findings import Remedy
from domain.payments.attempt import AttemptStatus, PaymentAttempt
from domain.payments.verification import SettledTransfer, Verified, evaluate, terms_of
from domain.transfers.income import ZERO_ADDRESS
from domain.transfers.matching import Pays, Renews, decide
from tests.reconciliation.planting import find_transfer, observe, take
from tests.support.payments import CHAIN_ID, NOW, TOKEN, TREASURY, RolePair, transfer_for, tx_hash, wallet
from tests.support.sql import connect, scalar

FORMER_TREASURY: Final = "0x" + "7A" * 20
FIRST_BLOCK: Final = 5
VALUE_RAW: Final = 100_000_000
SCOPE: Final = TransferScope(chain_id=CHAIN_ID, token=TOKEN, treasury=TREASURY)

Fact = dict[str, Any]

RULES: Final[dict[str, Fact]] = {
    "right": {},
    "another sender": {"from_address": wallet(2)},
    "the treasury": {"payer": TREASURY},
    "a former treasury": {"payer": FORMER_TREASURY},
    "nobody": {"payer": ZERO_ADDRESS},
    "the token": {"payer": TOKEN},
    "too little": {"value_raw": VALUE_RAW - 1},
    "another chain": {"chain_id": CHAIN_ID + 1},
    "too old": {"block_number": FIRST_BLOCK - 1},
    "has paid already": {"paid": True},
    "was sent back": {"refunded": True},
}
OPERATORS: Final = {"right", "another sender", "too little"}
"""What an operator may credit without naming an account: it is the sender's own, whatever they asked for."""


class Case:
    """One transfer, and an attempt that a caller says it pays."""

    def __init__(self, roles: RolePair, fact: Fact) -> None:
        self.roles = roles
        self.payer = fact.get("payer", wallet(1))
        self.has_paid = fact.get("paid", False)
        self.transfer: Fact = {
            "chain_id": CHAIN_ID,
            "from_address": self.payer,
            "value_raw": VALUE_RAW,
            "block_number": 7,
        } | {
            name: value
            for name, value in fact.items()
            if name in {"chain_id", "from_address", "value_raw", "block_number"}
        }

    async def prepare(self, fact: Fact) -> None:
        """Settings are noted, the chain is followed, the transfer was used before where the rule is about that."""
        with connect(self.roles.database.superuser_url, triggers=False) as owner:
            # An account without a payer's wallet is there from before.
            owner.execute("INSERT INTO users (id, wallet_address) VALUES ('u', %s)", (self.payer,))
            owner.execute("INSERT INTO billing_accounts (id, owner_user_id) VALUES ('b', 'u')")
            owner.execute("INSERT INTO virtual_keys (billing_account_id, is_default) VALUES ('b', true)")
            owner.execute(
                "INSERT INTO ledger_accounts (code, name, type, normal_side, billing_account_id)"
                " VALUES ('credits:b', 'x', 'liability', 'credit', 'b')"
            )
            owner.execute(
                "INSERT INTO chain_cursors (chain_id, token, to_address, first_block, block_number, block_hash,"
                " head_number) VALUES (%s, %s, %s, %s, 90, %s, 90)",
                (CHAIN_ID, TOKEN, TREASURY, FIRST_BLOCK, tx_hash(90)),
            )
        async with self.roles.service.autocommit() as connection:
            await destinations.note_destination(connection, SCOPE)
        async with self.roles.service.autocommit() as connection:
            await destinations.note_destination(connection, SCOPE.model_copy(update={"treasury": FORMER_TREASURY}))
        if fact.get("refunded"):
            finding = await find_transfer(self.roles.service, 1, sender=self.payer, value_raw=VALUE_RAW)
            await take(self.roles.service, finding, Remedy.REFUND_RECORDED)
        if fact.get("paid"):
            other = await self.roles.create_submitted(self._payer, 1)
            await self.roles.credit(other)
            await observe(self.roles.service, tx_hash(1), self.payer, VALUE_RAW, handled=False)

    @property
    def _payer(self) -> accounts.Payer:
        return accounts.Payer("u", "b", self.payer)

    async def attempt(self, status: AttemptStatus = AttemptStatus.PENDING_UNVERIFIED) -> PaymentAttempt:
        """What it is said to pay: an attempt that waits for it, or an open intent."""
        intent = await self.roles.create(self._payer)
        if status is AttemptStatus.CREATED_INTENT:
            return intent
        if self.has_paid:
            # The database lets an account hold a hash once; the worst case is a row that bypassed that.
            with connect(self.roles.database.superuser_url, triggers=False) as owner:
                owner.execute("DROP INDEX payment_attempts_hash_held_by_account")
        return (await self.roles.submit(intent, tx_hash(1))).attempt

    async def observe(self) -> None:
        """The watcher has seen the transfer."""
        known = scalar(self.roles.database.service_url, "SELECT count(*) FROM observed_transfers")
        if not known:
            values = dict(self.transfer)
            sender, value_raw = values.pop("from_address"), values.pop("value_raw")
            await observe(self.roles.service, tx_hash(1), sender, value_raw, handled=False, at=NOW, **values)

    # -- entrances; each says whether it would credit the attempt, or the transfer

    async def by_verification(self) -> bool:
        """What HTTP, command and watcher end in: a hash was submitted."""
        attempt = await self.attempt()
        async with self.roles.service.autocommit() as connection:
            known = await attempts.find_under_verification(connection, attempt.id)
            transfers = await find_known_transfers(connection, SCOPE, tx_hash(1), of_others_than=attempt.id)
        assert known is not None
        log = TransferLog(
            log_index=0,
            emitter=TOKEN,
            from_address=self.transfer["from_address"],
            to_address=TREASURY,
            value_raw=self.transfer["value_raw"],
        )
        number = self.transfer["block_number"]
        block = BlockHeader(number=number, block_hash=tx_hash(number), tx_hashes=frozenset({tx_hash(1)}))
        receipt = Receipt(
            tx_hash=tx_hash(1), succeeded=True, block_number=number, block_hash=tx_hash(number), transfers=(log,)
        )
        view = ChainView(
            chain_id=self.transfer["chain_id"], endpoint="node", head_number=90, receipt=receipt, canonical=block
        )
        verdict = evaluate(
            terms_of(attempt),
            tx_hash(1),
            view,
            min_confirmations=5,
            known=transfers.model_copy(update={"held_log_indexes": known.settled_log_indexes}),
            first_block=known.first_block,
            payer_kind=known.payer_kind,
        )
        return isinstance(verdict, Verified)

    async def by_watcher(self) -> bool:
        """It was not submitted."""
        attempt = await self.attempt(AttemptStatus.CREATED_INTENT)
        await self.observe()
        async with self.roles.service.transaction() as connection:
            in_scope = await observed.list_observed(connection, SCOPE, first=0, last=90)
            if not in_scope:
                return False
            [one] = in_scope
            around = await observed.find_match_context(connection, SCOPE, one)
        decision = decide(CHAIN_ID, one, around)
        return isinstance(decision, Pays | Renews) and decision.attempt.attempt_id == attempt.id

    async def by_database(self) -> bool:
        """A caller writes the credit itself."""
        attempt = await self.attempt()
        values = self.transfer | {"block_hash": tx_hash(self.transfer["block_number"])}
        paid: SettledTransfer = transfer_for(attempt, **values, expected_raw=min(VALUE_RAW, values["value_raw"]))
        try:
            await self.roles.credit(attempt, paid)
        except (TransferAlreadySettled, psycopg.Error):
            return False
        return True

    async def by_operator(self) -> bool:
        """A finding is resolved, without a word about the account."""
        await self.observe()
        finding = await find_transfer(
            self.roles.service,
            1,
            sender=self.transfer["from_address"],
            value_raw=self.transfer["value_raw"],
            observed=False,
        )
        before = scalar(self.roles.database.service_url, "SELECT count(*) FROM credit_ledger")
        try:
            await take(self.roles.service, finding, Remedy.CREDIT)
        except RemedyRefused:
            return False
        return bool(scalar(self.roles.database.service_url, "SELECT count(*) FROM credit_ledger") > before)


ENTRANCES: Final[dict[str, Callable[[Case], Awaitable[bool]]]] = {
    "verification": Case.by_verification,
    "watcher": Case.by_watcher,
    "database": Case.by_database,
    "operator": Case.by_operator,
}


@pytest.mark.slow(but=22)
@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("rule", RULES)
async def test_a_transfer_that_is_not_right_is_credited_through_no_entrance(
    roles: RolePair, rule: str, entrance: str
) -> None:
    case = Case(roles, RULES[rule])
    await case.prepare(RULES[rule])
    is_credited = await ENTRANCES[entrance](case)
    assert is_credited is (rule in (OPERATORS if entrance == "operator" else {"right"}))


async def test_the_intents_of_the_table_are_open_when_the_transfer_is_mined(roles: RolePair) -> None:
    """Else the watcher's column would say nothing."""
    attempt = await roles.create(await roles.open_account(1))
    assert attempt.expires_at is not None
    assert attempt.created_at <= NOW < attempt.expires_at - timedelta(minutes=1)
