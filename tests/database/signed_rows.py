"""Rows of payments by signature, as no trigger has seen them, beside those of other chains, relayers and days."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from tests.support.deposits import METHOD
from tests.support.payments import CHAIN_ID
from tests.support.postgres import Database
from tests.support.sql import connect, lent

ELSEWHERE: Final = CHAIN_ID + 1
RELAYER, OTHER_RELAYER, TOKEN, OTHER_TOKEN, PAYER, PAY_TO = (f"0x{digit * 40}" for digit in "785613")
MANY: Final = 99
DAY: Final = timedelta(days=1)
A_WHILE: Final = timedelta(hours=1)


def hash_(number: int) -> str:
    """A transaction's hash, or a nonce that was signed."""
    return f"0x{number:064x}"


@dataclass
class Rows:
    """Rows as no trigger has seen them, and the relay's calls."""

    superuser: psycopg.Connection[Any]
    relay: psycopg.Connection[Any]
    number: int = 0

    def add(self, table: str, **values: Any) -> None:
        names = sql.SQL(", ").join(map(sql.Identifier, values))
        places = sql.SQL(", ").join(sql.Placeholder() * len(values))
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(sql.Identifier(table), names, places)
        self.superuser.execute(statement, list(values.values()))

    def change(self, table: str, values: str, **where: Any) -> None:
        conditions = " AND ".join(f"{name} = %s" for name in where)
        self.superuser.execute(f"UPDATE {table} SET {values} WHERE {conditions}".encode(), list(where.values()))

    def call(self, function: str, *values: Any) -> list[Any]:
        """What the relay is answered: rows, or single values."""
        places = ", ".join(["%s"] * len(values))
        rows = self.relay.execute(f"SELECT * FROM {function}({places})".encode(), values).fetchall()
        return [row[0] if len(row) == 1 else row for row in rows]

    def claim(
        self,
        account: str,
        *,
        status: str = "CREATED_INTENT",
        chain_id: int = CHAIN_ID,
        is_claimed: bool = True,
        valid_for: timedelta = A_WHILE,
        expires_in: timedelta = A_WHILE,
        claimed_ago: timedelta = timedelta(0),
    ) -> UUID:
        """An attempt that is paid by signature; of two, the later one was claimed later."""
        self.number += 1
        attempt_id, now, is_open = uuid4(), datetime.now(UTC), status == "CREATED_INTENT"
        self.add(
            "payment_attempts",
            id=attempt_id,
            billing_account_id=account,
            from_address=PAYER if is_claimed else f"0x{'0' * 40}",
            chain_id=chain_id,
            token=TOKEN,
            to_address=PAY_TO,
            amount_raw=10_000,
            amount_usd_cents=1,
            status=status,
            kind="authorization",
            authorization_nonce=hash_(self.number) if is_claimed else None,
            expires_at=now + expires_in if is_open else None,
            tx_hash=None if is_open or status == "FAILED" else hash_(self.number),
            submitted_at=None if is_open else now,
            revenue_share=0 if status == "CREDITED" else None,
            error_code="RECEIPT_NOT_FOUND" if status == "FAILED" else None,
        )
        claimed = {
            "valid_after": 0,
            "valid_before": int((now + valid_for).timestamp()),
            "signature": b"",
            "is_contract": False,
            "from_block": 1,
            "claimed_at": now - claimed_ago + timedelta(seconds=self.number - MANY),
        }
        self.add(
            "payment_authorizations",
            attempt_id=attempt_id,
            own_nonce=hash_(self.number),
            **(claimed if is_claimed else {}),
        )
        return attempt_id

    def signed(
        self,
        account: str,
        *,
        charge_id: UUID | None = None,
        chain_id: int = CHAIN_ID,
        valid_for: timedelta = A_WHILE,
        ended: str | None = None,
        value_raw: int = 1,
        claimed_ago: timedelta = timedelta(0),
        executed_by: str | None = None,
        nonce: int | None = None,
        token: str = TOKEN,
        wallet: str = PAYER,
    ) -> UUID:
        """What was signed for a charge, one of its own where none is named."""
        self.number += 1
        now, signed_id = datetime.now(UTC), uuid4()
        if charge_id is None:
            charge_id = self.charge(account)
        self.add(
            "charge_authorizations",
            id=signed_id,
            charge_id=charge_id,
            chain_id=chain_id,
            token=token,
            payer=wallet,
            to_address=PAY_TO,
            value_raw=value_raw,
            valid_after=0,
            valid_before=int((now + valid_for).timestamp()),
            nonce=hash_(self.number if nonce is None else nonce),
            signature=b"",
            is_contract=False,
            from_block=1,
            claimed_at=now - claimed_ago + timedelta(seconds=self.number - MANY),
            outcome=ended,
            executed_by=(executed_by or hash_(self.number)) if ended == "executed" else None,
            ended_at=now if ended else None,
        )
        return signed_id

    def charge(self, account: str, *, quoted_raw: int = 1, address: str = PAY_TO) -> UUID:
        """A charge with its address."""
        charge_id, address_id = uuid4(), uuid4()
        self.add(
            "deposit_addresses",
            id=address_id,
            chain_id=CHAIN_ID,
            address=address[:34] + address_id.hex[:8] if address == PAY_TO else address,
            scheme="create2",
            salt=hash_(address_id.int),
            treasury=PAY_TO,
            billing_account_id=account,
            charge_id=charge_id,
        )
        self.add(
            "charges",
            id=charge_id,
            billing_account_id=account,
            method_id=METHOD,
            amount_usd_cents=1,
            quoted_amount_raw=quoted_raw,
            address_id=address_id,
            price_expires_at=datetime.now(UTC),
        )
        return charge_id

    def nonce(
        self,
        nonce: int,
        of: UUID,
        outcome: str | None = None,
        *,
        chain_id: int = CHAIN_ID,
        relayer: str = RELAYER,
        is_of_charge: bool = False,
        ago: timedelta = timedelta(0),
        spent_wei: int | None = None,
        mined: str | None = None,
    ) -> None:
        now = datetime.now(UTC)
        self.add(
            "relay_nonces",
            chain_id=chain_id,
            relayer=relayer,
            nonce=nonce,
            outcome=outcome,
            ended_at=now if outcome else None,
            created_at=now - ago,
            spent_wei=spent_wei,
            mined_tx_hash=mined,
            **{"charge_authorization_id" if is_of_charge else "attempt_id": of},
        )

    def transaction(
        self,
        nonce: int,
        tx_hash: str,
        *,
        chain_id: int = CHAIN_ID,
        relayer: str = RELAYER,
        gas: int = 1,
        max_fee_wei: int = 1,
        is_sent: bool = False,
    ) -> None:
        """Of two, the later one was stored later."""
        self.number += 1
        self.add(
            "relay_transactions",
            chain_id=chain_id,
            relayer=relayer,
            nonce=nonce,
            tx_hash=tx_hash,
            raw=b"",
            gas=gas,
            max_fee_wei=max_fee_wei,
            priority_fee_wei=1,
            stored_at=datetime.now(UTC) + timedelta(seconds=self.number - MANY),
            sent_at=datetime.now(UTC) if is_sent else None,
        )

    def elsewhere(self, nonce: int, of: Sequence[UUID], **transaction: Any) -> None:
        """The same nonce of another relayer, and of the same one on another chain: each with a transaction."""
        places: tuple[dict[str, Any], ...] = ({"relayer": OTHER_RELAYER}, {"chain_id": ELSEWHERE})
        for number, (other, place) in enumerate(zip(of, places, strict=True)):
            self.nonce(nonce, other, **place)
            self.transaction(nonce, hash_(900 + 10 * nonce + number), **place, **transaction)


@contextmanager
def planted(database: Database) -> Iterator[Rows]:
    """Rows are planted as the superuser, without triggers; the relay is asked in its own role."""
    with lent(database.superuser_url) as superuser, lent(database.relay_url) as relay:
        superuser.execute("SET session_replication_role = replica")
        try:
            yield Rows(superuser, relay)
        finally:
            superuser.execute("RESET session_replication_role")


def as_api(database: Database, statement: str, *values: Any, user_id: str = "") -> list[Any]:
    """What a process that people reach is answered, in a user's scope."""
    with connect(database.app_url, user_id=user_id) as connection:
        return connection.execute(statement.encode(), values).fetchall()
