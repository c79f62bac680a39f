"""Calls that spend credits, in plain SQL: what gateway and worker ask the database, one transaction each."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
from eth_utils.address import to_checksum_address
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.support.postgres import Database
from tests.support.sql import connect

GRACE: Final = 5_000_000
LEASE_SECONDS: Final = 60.0

HELD: Final[Mapping[str, Any]] = {
    "amount": 1_000,
    "amount_min": None,
    "request_id": "req-1",
    "dialect": "chat",
    "model": "gpt-4o-mini",
    "upstream": "local",
    "is_streamed": True,
    "attribute_to": None,
    "bill_to": None,
    "owner": "gateway-1",
    "lease_seconds": LEASE_SECONDS,
    "rate_bucket": "chat",
    "rate_per_minute": 1_000_000,
    "markup_factor": Decimal(2),
    "price_version": "test",
    "rates": Jsonb({"input_tokens": {"usd": "1"}, "output_tokens": {"usd": "2"}}),
    "input_tokens": 100,
    "output_tokens_limit": 1_000,
}

CAPTURED: Final[Mapping[str, Any]] = {
    "only_lapsed": False,
    "grace": GRACE,
    "user_cost_usd": None,
    "provider_cost_usd": None,
    "absorbed_cost_usd": Decimal(0),
    "charge_reason": "completed",
    "provider": "local",
    "upstream_id": None,
    "tokens": [100, 0, 0, 20, 0],
    "estimated": False,
    "doubt": None,
    "doubt_detail": None,
    "unit_prices": Jsonb({"markup_factor": "2", "lines": []}),
}


def call(connection: psycopg.Connection[Any], function: str, **values: Any) -> dict[str, Any]:
    """The row that a function answers; values are its parameters without `p_`."""
    arguments = ", ".join(f"p_{name} => %({name})s" for name in values)
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(f"SELECT * FROM {function}({arguments})".encode(), values).fetchone()
    assert row is not None
    return row


@dataclass(frozen=True, slots=True)
class Spender:
    """An account with a service key."""

    database: Database
    account: str
    key_id: UUID = field(default_factory=uuid4)

    @property
    def key_hash(self) -> str:
        """What the gateway makes of the key that its caller sends."""
        return sha256(str(self.key_id).encode()).hexdigest()

    @classmethod
    def open(cls, database: Database, *, credits: int = 0, wallet: str | None = None) -> Spender:
        """A new account, its service key, and what it has to spend."""
        address = wallet or to_checksum_address(f"0x{secrets.token_hex(20)}")
        with connect(database.service_url) as service:
            account = call(service, "provision_wallet", wallet_address=address)["billing_account_id"]
        spender = cls(database, account)
        spender.create_key()
        if credits:
            spender.add_credits(credits)
        return spender

    def create_key(self, *, limit_day: int | None = None) -> None:
        """Write the key, as an operator does."""
        with connect(self.database.service_url) as service:
            call(
                service,
                "create_key",
                id=self.key_id,
                billing_account_id=self.account,
                label="test",
                key_hash=self.key_hash,
                key_hint="sk-…",
                expires_at=None,
                limit_day=limit_day,
                limit_month=None,
                models=None,
                may_attribute=False,
            )

    def add_credits(self, amount: int) -> None:
        """Credits from nowhere, with a balanced entry."""
        with connect(self.database.service_url) as service:
            service.execute(
                "SELECT post_entry(%s, %s, 'gift', %s, 'cash:usdc', '{}')", (self.account, amount, str(uuid4()))
            )

    def hold(self, amount: int = 1_000, **changes: Any) -> UUID:
        """An open hold."""
        hold_id = uuid4()
        with connect(self.database.app_url) as app:
            held = call(app, "hold_credits", **self.to_hold(hold_id, amount=amount, **changes))
        assert held["outcome"] == "held", held
        return hold_id

    def to_hold(self, hold_id: UUID, **changes: Any) -> dict[str, Any]:
        """The arguments of `hold_credits`."""
        return {**HELD, "hold_id": hold_id, "key_hash": self.key_hash, **changes}

    def capture(self, hold_id: UUID, charged: int, **changes: Any) -> dict[str, Any]:
        """The answer of a capture by the gateway."""
        with connect(self.database.app_url) as app:
            return call(app, "capture_hold", **to_capture(hold_id, charged, **changes))

    def void(self, hold_id: UUID) -> bool:
        """Whether this call has released it."""
        with connect(self.database.app_url) as app:
            return bool(call(app, "void_hold", hold_id=hold_id)["void_hold"])

    def lapse(self, hold_id: UUID) -> None:
        """Let the owner not have been heard of for a minute."""
        with connect(self.database.superuser_url) as superuser:
            superuser.execute(
                "UPDATE credit_holds SET lease_until = clock_timestamp() - interval '1 minute' WHERE id = %s",
                (hold_id,),
            )


def to_capture(hold_id: UUID, charged: int, **changes: Any) -> dict[str, Any]:
    """The arguments of `capture_hold`: a price of twice the provider's cost, where nothing else is said."""
    user_cost = Decimal(charged) / 10_000_000
    return {
        **CAPTURED,
        "hold_id": hold_id,
        "charged": charged,
        **{"user_cost_usd": user_cost, "provider_cost_usd": user_cost / 2},
        **changes,
    }
