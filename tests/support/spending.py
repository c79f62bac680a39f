"""Calls that spend credits: what gateway and worker ask the database, one transaction each.

Keys and calls as functions (`create_key`, `hold`, `capture`), as an account with a key that spends (`Spender`), and as
a caller whose calls are charged by the product's own rules (`Caller`).
"""

from __future__ import annotations

import json
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

from domain.billing.charges import CallEnd, Charge, Terms, charge
from domain.billing.keys import KeySecret, make_key
from domain.billing.pricing import ModelRates
from domain.billing.usage import Usage
from tests.support.postgres import Database
from tests.support.sql import Connection, connect, lent, scalar

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
class ServiceKey:
    """A service key by its hash, and its account."""

    id: UUID
    key_hash: str
    billing_account_id: str


def add_credits(database: Database, billing_account_id: str, amount: int) -> None:
    """Credits from nowhere, with a balanced entry."""
    with lent(database.service_url) as service:
        service.execute(
            "SELECT post_entry(%s, %s::bigint, 'gift', %s, 'cash:usdc', '{}')",
            (billing_account_id, amount, str(uuid4())),
        )


def create_key(database: Database, billing_account_id: str, **columns: Any) -> ServiceKey:
    """A key of an account, as an operator makes it; `columns` are set on its row."""
    key = ServiceKey(uuid4(), sha256(uuid4().bytes).hexdigest(), billing_account_id)
    _store_key(database, key, limit_day=None)
    if columns:
        with connect(database.superuser_url) as superuser:
            for column, value in columns.items():
                superuser.execute(f"UPDATE virtual_keys SET {column} = %s WHERE id = %s".encode(), (value, key.id))
    return key


def _store_key(database: Database, key: ServiceKey, *, limit_day: int | None, hint: str = "sk-…") -> None:
    with lent(database.service_url) as service:
        created = call(
            service,
            "create_key",
            id=key.id,
            billing_account_id=key.billing_account_id,
            label="test",
            key_hash=key.key_hash,
            key_hint=hint,
            expires_at=None,
            limit_day=limit_day,
            limit_month=None,
            models=None,
            may_attribute=False,
        )
    assert created["create_key"]


def hold(on: Database | Connection, key: ServiceKey, amount: int, **changes: Any) -> dict[str, Any]:
    """Take a hold with the gateway's role; the function's answer, and `hold_id`."""
    hold_id = uuid4()
    values = {**HELD, "hold_id": hold_id, "key_hash": key.key_hash, "amount": amount, **changes}
    return _as_gateway(on, "hold_credits", values) | {"hold_id": hold_id}


def capture(on: Database | Connection, hold_id: UUID, charged: int, **changes: Any) -> dict[str, Any]:
    """Capture a hold with the gateway's role, for twice what the provider takes."""
    return _as_gateway(on, "capture_hold", to_capture(hold_id, charged, **changes))


def _as_gateway(on: Database | Connection, function: str, values: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(on, Database):
        with lent(on.app_url) as app:
            return call(app, function, **values)
    return call(on, function, **values)


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
        spender = cls(database, open_wallets_account(database, address))
        spender.create_key()
        if credits:
            spender.add_credits(credits)
        return spender

    def create_key(self, *, limit_day: int | None = None) -> None:
        """Write the key, as an operator does."""
        _store_key(self.database, ServiceKey(self.key_id, self.key_hash, self.account), limit_day=limit_day)

    def add_credits(self, amount: int) -> None:
        """Credits from nowhere, with a balanced entry."""
        add_credits(self.database, self.account, amount)

    def hold(self, amount: int = 1_000, **changes: Any) -> UUID:
        """An open hold."""
        hold_id = uuid4()
        held = _as_gateway(self.database, "hold_credits", self.to_hold(hold_id, amount=amount, **changes))
        assert held["outcome"] == "held", held
        return hold_id

    def to_hold(self, hold_id: UUID, **changes: Any) -> dict[str, Any]:
        """The arguments of `hold_credits`."""
        return {**HELD, "hold_id": hold_id, "key_hash": self.key_hash, **changes}

    def capture(self, hold_id: UUID, charged: int, **changes: Any) -> dict[str, Any]:
        """The answer of a capture by the gateway."""
        return capture(self.database, hold_id, charged, **changes)

    def void(self, hold_id: UUID) -> bool:
        """Whether this call has released it."""
        with lent(self.database.app_url) as app:
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


RATES: Final = ModelRates.model_validate(
    {"rates": {"input_tokens": {"usd": "2.5"}, "cache_read_tokens": {"usd": "1.25"}, "output_tokens": {"usd": "10"}}}
)


def usage(input_tokens: int, output_tokens: int, cached: int = 0) -> Usage:
    """Tokens of a call."""
    units = {"input_tokens": input_tokens, "cache_read_tokens": cached, "output_tokens": output_tokens}
    return Usage({name: count for name, count in units.items() if count})


@dataclass(frozen=True, slots=True)
class Caller:
    """A service key of an account."""

    database: Database
    account_id: str
    key_id: UUID
    secret: KeySecret

    def call(
        self,
        reported: Usage | None,
        *,
        end: CallEnd = CallEnd.COMPLETED,
        produced: Usage | None = None,
        held_credits: int = 1_000_000,
        grace_credits: int = GRACE,
        markup: str = "2",
    ) -> UUID:
        """The receipt's id of a call that ended so."""
        factor = Decimal(markup)
        charged = charge(end, reported, produced or Usage(), Terms(RATES, factor, held_credits, None))
        held = hold(
            self.database,
            ServiceKey(self.key_id, self.secret.key_hash, self.account_id),
            held_credits,
            markup_factor=factor,
            rates=Jsonb(json.loads(RATES.model_dump_json())["rates"]),
            model="gpt-4o",
        )
        assert held["outcome"] == "held", held
        captured = capture(self.database, held["hold_id"], **_charged(end, charged, factor), grace=grace_credits)
        assert captured["outcome"] == "captured", captured
        return UUID(str(captured["receipt_id"]))


def open_caller(database: Database, account_id: str, credits: int) -> Caller:
    """A key of an account, which gets credits from nowhere."""
    key_id, secret = uuid4(), make_key()
    add_credits(database, account_id, credits)
    _store_key(database, ServiceKey(key_id, secret.key_hash, account_id), limit_day=None, hint=secret.key_hint)
    return Caller(database, account_id, key_id, secret)


def open_wallets_account(database: Database, wallet: str) -> str:
    """The personal account of a wallet."""
    return str(scalar(database.service_url, "SELECT billing_account_id FROM provision_wallet(%s)", wallet))


def _charged(end: CallEnd, charged: Charge, factor: Decimal) -> dict[str, Any]:
    used = charged.usage
    lines = [{**line.model_dump(mode="json"), "usd": format(line.usd, "f")} for line in charged.lines]
    return {
        "charged": charged.charged_credits,
        "user_cost_usd": charged.user_cost_usd,
        "provider_cost_usd": charged.provider_cost_usd,
        "absorbed_cost_usd": charged.absorbed_cost_usd,
        "charge_reason": end.value,
        "provider": "openai",
        "tokens": [used.input_tokens, used.cached_input_tokens, used.cache_write_tokens, used.output_tokens, 0],
        "estimated": charged.is_estimated,
        "unit_prices": Jsonb({"markup_factor": format(factor, "f"), "lines": lines}),
    }
