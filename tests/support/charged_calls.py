"""Calls charged as the gateway charges them: decided by the rules, held and captured in the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from domain.billing.charges import CallEnd, Charge, Terms, charge
from domain.billing.keys import KeySecret, make_key
from domain.billing.pricing import ModelRates
from domain.billing.usage import Usage
from tests.support.postgres import Database
from tests.support.sql import connect, scalar

RATES: Final = ModelRates.model_validate(
    {"rates": {"input_tokens": {"usd": "2.5"}, "cache_read_tokens": {"usd": "1.25"}, "output_tokens": {"usd": "10"}}}
)
GRACE_CREDITS: Final = 5_000_000


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
        grace_credits: int = GRACE_CREDITS,
        markup: str = "2",
    ) -> UUID:
        """The receipt's id of a call that ended so."""
        hold_id, factor = uuid4(), Decimal(markup)
        charged = charge(end, reported, produced or Usage(), Terms(RATES, factor, held_credits, None))
        with connect(self.database.app_url) as app:
            held = app.execute(_HOLD, self._hold(hold_id, held_credits, factor)).fetchone()
            assert held == ("held",), held
            row = app.execute(_CAPTURE, _capture(hold_id, end, charged, grace_credits, factor)).fetchone()
        assert row is not None and row[0] == "captured", row
        return UUID(str(row[1]))

    def _hold(self, hold_id: UUID, amount: int, factor: Decimal) -> Mapping[str, Any]:
        return {
            "id": hold_id,
            "hash": self.secret.key_hash,
            "request": f"req-{hold_id.hex[:8]}",
            "amount": amount,
            "factor": factor,
            "rates": Jsonb(json.loads(RATES.model_dump_json())["rates"]),
        }


def open_caller(database: Database, account_id: str, credits: int) -> Caller:
    """A key of an account, which gets credits from nowhere by a balanced entry."""
    key_id, secret = uuid4(), make_key()
    with connect(database.service_url) as service:
        service.execute("SELECT post_entry(%s, %s, 'gift', %s, 'cash:usdc', '{}')", (account_id, credits, str(uuid4())))
        service.execute(
            "SELECT create_key(%s, %s, 'test', %s, %s, NULL, NULL, NULL, NULL, false)",
            (key_id, account_id, secret.key_hash, secret.key_hint),
        )
    return Caller(database, account_id, key_id, secret)


def open_wallets_account(database: Database, wallet: str) -> str:
    """The personal account of a wallet."""
    return str(scalar(database.service_url, "SELECT billing_account_id FROM provision_wallet(%s)", wallet))


def _capture(hold_id: UUID, end: CallEnd, charged: Charge, grace: int, factor: Decimal) -> Mapping[str, Any]:
    used = charged.usage
    lines = [{**line.model_dump(mode="json"), "usd": format(line.usd, "f")} for line in charged.lines]
    return {
        "id": hold_id,
        "charged": charged.charged_credits,
        "grace": grace,
        "user": charged.user_cost_usd,
        "provider": charged.provider_cost_usd,
        "absorbed": charged.absorbed_cost_usd,
        "reason": end.value,
        "tokens": [used.input_tokens, used.cached_input_tokens, used.cache_write_tokens, used.output_tokens, 0],
        "estimated": charged.is_estimated,
        "prices": Jsonb({"markup_factor": format(factor, "f"), "lines": lines}),
    }


_HOLD: Final = """
    SELECT outcome FROM hold_credits(
        p_hold_id => %(id)s, p_key_hash => %(hash)s, p_request_id => %(request)s, p_amount => %(amount)s,
        p_amount_min => NULL, p_dialect => 'chat', p_model => 'gpt-4o', p_upstream => 'local', p_is_streamed => false,
        p_attribute_to => NULL, p_bill_to => NULL, p_owner => 'gateway-1', p_lease_seconds => 60,
        p_rate_bucket => 'chat', p_rate_per_minute => 100000, p_markup_factor => %(factor)s, p_price_version => '1',
        p_rates => %(rates)s, p_input_tokens => 10, p_output_tokens_limit => NULL)
"""
_CAPTURE: Final = """
    SELECT outcome, receipt_id FROM capture_hold(
        p_hold_id => %(id)s, p_only_lapsed => false, p_charged => %(charged)s, p_grace => %(grace)s,
        p_user_cost_usd => %(user)s, p_provider_cost_usd => %(provider)s, p_absorbed_cost_usd => %(absorbed)s,
        p_charge_reason => %(reason)s, p_provider => 'openai', p_upstream_id => NULL, p_tokens => %(tokens)s,
        p_estimated => %(estimated)s, p_doubt => NULL, p_doubt_detail => NULL, p_unit_prices => %(prices)s)
"""
