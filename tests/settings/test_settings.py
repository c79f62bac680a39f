"""Every setting: its default, what it takes, and the one line that a bad value gets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from domain.errors import ConfigurationError
from settings import Settings, environment, load

PASSWORD = "hunter2hunter2"
CHECKSUMMED = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
OTHER_ADDRESS = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
POSTGRES = (
    "DATABASE_URL",
    "SETTLEMENT_DATABASE_URL",
    "SERVICE_DATABASE_URL",
    "MIGRATION_DATABASE_URL",
    "OPERATOR_DATABASE_URL",
    "RELAY_DATABASE_URL",
)
ADDRESSES = ("USDC_TOKEN_ADDRESS", "TREASURY_ADDRESS")

RATE_LIMITS = [
    *(
        f"RATE_LIMIT_{kind}_PER_{whom}"
        for kind in ("LOGINS", "INTENTS", "SUBMITS", "KEYS", "CHARGES", "TOPUPS")
        for whom in ("ADDRESS", "ACCOUNT")
    ),
    *(f"RATE_LIMIT_{kind}_PER_ACCOUNT" for kind in ("CHAT", "EMBEDDINGS", "IMAGES", "AUDIO")),
]
BAD_POSTGRES = (
    f"mysql://settle_app:{PASSWORD}@localhost/settle",
    f"postgresql://settle_app:{PASSWORD}@/settle",
    f"postgresql://settle_app:{PASSWORD}@localhost",
    f"postgresql://settle_app:{PASSWORD}@localhost:port/settle",
    f"postgresql://settle_app:{PASSWORD}@localhost:99999/settle",
    f"settle_app {PASSWORD}",
)
BAD_ADDRESSES = (
    "0x",
    CHECKSUMMED[:-1],
    "0x" + "0" * 40,
    CHECKSUMMED + "0",
    CHECKSUMMED.swapcase().replace("0X", "0x"),
    "0x" + "g" * 40,
)

BAD: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(POSTGRES, BAD_POSTGRES),
    **dict.fromkeys(ADDRESSES, BAD_ADDRESSES),
    "CHAIN_ID": ("0", "-1", "base", "1.5", str(2**53)),
    "PRICE_FEED_CHAIN_ID": ("0", "-1", "base", "1.5", str(2**53)),
    "PRICE_FEED_RPC_URLS": (f"ws://node.example/{PASSWORD}", f"node.example/{PASSWORD}", ","),
    "CHAIN_RPC_URLS": (
        f"ws://node.example/{PASSWORD}",
        f"node.example/{PASSWORD}",
        f"https://node.example/{PASSWORD},ftp://x",
        f"https://node.example:port/{PASSWORD}",
        ",",
    ),
    "MIN_CONFIRMATIONS": ("0", "-5", "10001", "five", "2.5"),
    "FINALITY": ("final", "latest", "5"),
    "FINALITY_CONFIRMATIONS": ("0", "-5", "100001", "five", "2.5"),
    "FINALITY_LARGE": ("final", "latest", "5"),
    "FINALITY_LARGE_FROM_USD_CENTS": ("0", "-1", "1.5", "much"),
    "CHAIN_WATCH_FROM_BLOCK": ("-1", "latest", "1.5", str(2**53)),
    "CHAIN_LOG_RANGE_MAX": ("0", "-1", "100001", "all"),
    "WEBHOOK_ALLOW_PRIVATE": ("2", "maybe", "loopback"),
    "NATIVE_COIN_DEPOSITS": ("1", "yes", "eth"),
    "EVENT_SINK_URL": ("ftp://x", "events", "https://"),
    "CHAIN_BLOCK_TIME_SECONDS": ("0", "-1", "601", "nan", "inf", "soon"),
    "CHAIN_RPC_TIMEOUT_SECONDS": ("0", "-1", "61", "nan", "inf", "soon"),
    "CHARGE_PRICE_TTL_SECONDS": ("0", "-1", "2678401", "1.5", "30m"),
    "PAYMENT_INTENT_TTL_SECONDS": ("0", "-1", "2678401", "1.5", "30m"),
    "VERIFICATION_TIMEOUT_SECONDS": ("0", "-1", "2678401", "1.5", "24h"),
    "PAYMENT_MIN_USD_CENTS": ("0", "-1", "1.5", "1 USD", "1000001"),
    "PAYMENT_MAX_USD_CENTS": ("0", "-1", "1.5", "1 USD", str(10**12 + 1)),
    "DUST_BELOW_RAW": ("-1", "1.5", "1 cent", "1000001"),
    "SYSTEM_TENANT_REVENUE_SHARE": ("-0.01", "1.01", "75%", "nan", "inf", "a half", "1e-400"),
    "TEMPORAL_UI_URL": ("localhost:8233", "ftp://ui.example", "http://"),
    "WORKER_HEALTH_PORT": ("-1", "65536", "http"),
    "API_URL": (
        "pay.example.com",
        "ftp://pay.example.com",
        "https://",
        "https://pay.example.com/shop",
        "https://pay.example.com?x=1",
        "https://pay.example.com#x",
        f"https://me:{PASSWORD}@pay.example.com",
        "https://pay.example.com:port",
    ),
    "API_PORT": ("-1", "65536", "http"),
    "TRUSTED_PROXIES": ("10.0.0.0/99", "proxy", "10.0.0.1,proxy", "*"),
    "SESSION_TTL_SECONDS": ("59", "2678401", "1d"),
    "LOGIN_CHALLENGE_TTL_SECONDS": ("9", "3601", "5m"),
    **dict.fromkeys(RATE_LIMITS, ("0", "-1", "1000001", "1.5", "many")),
    "PLATFORM_NAME": (" ", "x" * 41, "two\nlines", "\x1b[31mred"),
    "EXPLORER_TX_URL": ("https://explorer.example/tx/", "explorer.example/{tx_hash}", "javascript:{tx_hash}"),
    "PUBLIC_RPC_URL": ("node.example", "ws://node.example"),
    "OPERATOR_WALLETS": BAD_ADDRESSES,
    "GATEWAY_URL": ("ai.example.com", "ftp://ai.example.com", "https://", "https://ai.example.com/v1"),
    "GATEWAY_PORT": ("-1", "65536", "http"),
    "GATEWAY_MAX_CONNECTIONS": ("0", "-1", "100001", "1.5", "many"),
    "UPSTREAM_READ_TIMEOUT_SECONDS": ("0", "-1", "3601", "nan", "inf", "soon"),
    "USER_PRICE_MARKUP_FACTOR": ("0", "0.99", "-2", "1001", "200%", "nan", "inf", "two"),
    "GRACE_CREDITS": ("-1", "1.5", "much", str(10**15 + 1)),
    "HOLD_LEASE_SECONDS": ("0", "2", "3601", "1.5", "1m"),
    "OUTPUT_TOKENS_ASSUMED": ("0", "-1", "10000001", "1.5", "many"),
    "UNPRICED_HOLD_CREDITS": ("-1", "1.5", "much", str(10**15 + 1)),
    "CLAMP_OUTPUT_TOKENS": ("2", "maybe", "strict"),
    "BILLING_INGEST_SECRET": ("short",),
    "GOVERNANCE_MODEL": ("m" * 201,),
    "GOVERNANCE_BUDGET_CREDITS_PER_DAY": ("0", "-1", "1.5", "much", str(10**15 + 1)),
    "GOVERNANCE_SERVICE_KEY": ("short",),
    "RELAY_PRIVATE_KEY": ("0x12", "4" * 67),
    "RELAY_PER_ACCOUNT_PER_DAY": ("-1", "1000001", "1.5", "many"),
    "RELAY_FAILED_PER_ACCOUNT_PER_DAY": ("0", "-1", "1000001", "1.5", "many"),
    "RELAY_PER_CHARGE_PER_DAY": ("-1", "1000001", "1.5", "many"),
    "RELAY_FAILED_PER_CHARGE_PER_DAY": ("0", "-1", "1000001", "1.5", "many"),
    "RELAY_GAS_PER_DAY_WEI": ("0", "-1", "1.5", "0.1 ETH", str(10**24 + 1)),
    "RELAY_MAX_FEE_WEI": ("0", "-1", "1.5", "10 gwei", str(10**15 + 1)),
    "RELAY_BALANCE_ALERT_WEI": ("-1", "1.5", "0.1 ETH", str(10**24 + 1)),
    "SMART_WALLET_FACTORIES": (*BAD_ADDRESSES, f"{OTHER_ADDRESS},0x12", f"{OTHER_ADDRESS},{CHECKSUMMED}"),
    "RELAY_HEALTH_PORT": ("-1", "65536", "http"),
    "LOG_LEVEL": ("TRACE", "10", "LOUD"),
    "LOG_FORMAT": ("xml", "1"),
}
ANY_VALUE_IS_GOOD = {
    "WORKER_HEALTH_HOST",
    "RELAY_HEALTH_HOST",
    "RELAY_PRIVATE_KEY_FILE",
    "API_HOST",
    "GATEWAY_HOST",
    "UPSTREAMS_FILE",
    "GOVERNANCE_PROMPT_FILE",
    "SCHEDULES_FILE",
    "RECONCILIATION_DIR",
}
"""Whether one can listen there, or read and write there, shows when the process does."""


def test_every_setting_has_bad_values_here() -> None:
    aliases = {str(field.alias) for field in Settings.model_fields.values()}
    assert aliases == set(BAD) | ANY_VALUE_IS_GOOD


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_gets_one_line_that_names_it_and_what_is_expected(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load({name: value})
    message = refused.value.message
    assert message.startswith(f"{name} is invalid: got ")
    assert ", expected " in message
    assert "\n" not in message
    assert PASSWORD not in message


def test_a_value_of_many_lines_or_characters_still_gets_one_short_line() -> None:
    with pytest.raises(ConfigurationError) as refused:
        load({"LOG_LEVEL": "INFO\nDEBUG" * 1_000})
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 200


def test_the_defaults_are_base_mainnet_and_its_usdc() -> None:
    settings = load({})
    assert (settings.chain_id, settings.usdc_token_address) == (8453, CHECKSUMMED)
    assert settings.min_confirmations == 5
    assert settings.payment_intent_ttl == timedelta(minutes=30)
    assert settings.verification_timeout == timedelta(hours=24)
    assert settings.block_time == timedelta(seconds=2)
    assert settings.system_tenant_revenue_share == Decimal("0.75")
    assert (settings.payment_min_usd_cents, settings.payment_max_usd_cents) == (100, 1_000_000)
    assert (settings.log_level, settings.log_format) == ("INFO", "json")


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("MIN_CONFIRMATIONS", "1", "min_confirmations", 1),
        ("MIN_CONFIRMATIONS", "10000", "min_confirmations", 10_000),
        ("CHAIN_ID", "1", "chain_id", 1),
        ("PAYMENT_INTENT_TTL_SECONDS", "1", "payment_intent_ttl_seconds", 1),
        ("VERIFICATION_TIMEOUT_SECONDS", "2678400", "verification_timeout_seconds", 2_678_400),
        ("SYSTEM_TENANT_REVENUE_SHARE", "0", "system_tenant_revenue_share", Decimal(0)),
        ("SYSTEM_TENANT_REVENUE_SHARE", "1", "system_tenant_revenue_share", Decimal(1)),
        ("SYSTEM_TENANT_REVENUE_SHARE", " 0.123456789 ", "system_tenant_revenue_share", Decimal("0.123456789")),
        ("USDC_TOKEN_ADDRESS", CHECKSUMMED.lower(), "usdc_token_address", CHECKSUMMED),
        ("TREASURY_ADDRESS", OTHER_ADDRESS, "treasury_address", OTHER_ADDRESS),
        ("CHAIN_RPC_URLS", " https://a.example , http://b.example:8545/x,", "chain_rpc_urls",
         ("https://a.example", "http://b.example:8545/x")),
        ("DATABASE_URL", "postgres://u:p@h/d", "database_url", "postgresql://u:p@h/d"),
        ("TEMPORAL_UI_URL", "http://127.0.0.1:8233", "temporal_ui_url", "http://127.0.0.1:8233"),
        ("WORKER_HEALTH_PORT", "0", "worker_health_port", 0),
        ("WORKER_HEALTH_PORT", "65535", "worker_health_port", 65_535),
        ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("LOG_FORMAT", "CONSOLE", "log_format", "console"),
        ("MIN_CONFIRMATIONS", "", "min_confirmations", 5),
    ],
)  # fmt: skip
def test_a_good_value_is_taken(name: str, value: str, field: str, expected: object) -> None:
    assert getattr(load({name: value}), field) == expected


def test_a_share_that_is_a_float_has_lost_its_exactness() -> None:
    with pytest.raises(ConfigurationError, match="SYSTEM_TENANT_REVENUE_SHARE"):
        load({"SYSTEM_TENANT_REVENUE_SHARE": 0.75})  # type: ignore[dict-item]


def test_a_minimum_above_the_maximum_names_both() -> None:
    with pytest.raises(ConfigurationError, match="500.*PAYMENT_MAX_USD_CENTS, 499") as refused:
        load({"PAYMENT_MIN_USD_CENTS": "500", "PAYMENT_MAX_USD_CENTS": "499"})
    assert refused.value.setting == "PAYMENT_MIN_USD_CENTS"
    assert load({"PAYMENT_MIN_USD_CENTS": "500", "PAYMENT_MAX_USD_CENTS": "500"}).payment_max_usd_cents == 500


def test_no_payment_is_dust() -> None:
    assert load({}).dust_below_raw == 10_000
    assert load({"DUST_BELOW_RAW": "0"}).dust_below_raw == 0
    assert load({"DUST_BELOW_RAW": "1000000"}).dust_below_raw == 1_000_000
    with pytest.raises(ConfigurationError, match="20000.*PAYMENT_MIN_USD_CENTS.* 10000") as refused:
        load({"DUST_BELOW_RAW": "20000", "PAYMENT_MIN_USD_CENTS": "1"})
    assert refused.value.setting == "DUST_BELOW_RAW"


def test_a_setting_that_is_missing_is_named_when_it_is_needed() -> None:
    settings = load({})
    for name, required in {
        "DATABASE_URL": settings.require_database_url,
        "SETTLEMENT_DATABASE_URL": settings.require_settlement_database_url,
        "SERVICE_DATABASE_URL": settings.require_service_database_url,
        "MIGRATION_DATABASE_URL": settings.require_migration_database_url,
        "CHAIN_RPC_URLS": settings.require_chain_rpc_urls,
        "TREASURY_ADDRESS": settings.require_treasury_address,
    }.items():
        with pytest.raises(ConfigurationError) as refused:
            required()
        assert refused.value.setting == name
        assert "\n" not in refused.value.message


def test_the_settings_do_not_show_addresses_that_carry_secrets() -> None:
    secret = {name: f"postgresql://u:{PASSWORD}@h/d" for name in POSTGRES}
    settings = load({**secret, "CHAIN_RPC_URLS": f"https://node.example/{PASSWORD}"})
    assert PASSWORD not in repr(settings) + str(settings)


def test_unknown_variables_are_nobodys_business() -> None:
    assert load({"PATH": "/bin", "chain_id": "nonsense"}) == load({})


# -- where settings come from


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and an environment without our settings."""
    monkeypatch.chdir(tmp_path)
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.alias), raising=False)
    return tmp_path


def test_the_environment_goes_before_the_file_that_was_asked_for_and_that_before_dot_env(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").write_text("CHAIN_ID=1\nMIN_CONFIRMATIONS=1\nLOG_LEVEL=ERROR\n")
    asked_for = folder / "settings.env"
    asked_for.write_text("CHAIN_ID=2\nMIN_CONFIRMATIONS=2\n")
    assert load(environment()).chain_id == 1
    assert load(environment(asked_for)).chain_id == 2
    monkeypatch.setenv("CHAIN_ID", "3")
    settings = load(environment(asked_for))
    assert (settings.chain_id, settings.min_confirmations) == (3, 2)
    # The file that was asked for takes the place of .env; the two are not mixed.
    assert settings.log_level == "INFO"
    assert load(environment()).min_confirmations == 1


def test_without_a_file_there_is_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAIN_ID", "3")
    assert load(environment()).chain_id == 3


def test_a_file_that_was_asked_for_and_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="--env-file: file .*nowhere.env not found"):
        environment(folder / "nowhere.env")


def test_a_password_with_a_dollar_sign_is_taken_as_it_is(folder: Path) -> None:
    (folder / ".env").write_text("DATABASE_URL=postgresql://u:a$HOME${b}@h/d\n")
    assert load(environment()).database_url == "postgresql://u:a$HOME${b}@h/d"


def test_the_token_does_not_receive_the_payments() -> None:
    with pytest.raises(ConfigurationError, match=f"{CHECKSUMMED}.*USDC_TOKEN_ADDRESS") as refused:
        load({"TREASURY_ADDRESS": CHECKSUMMED})
    assert refused.value.setting == "TREASURY_ADDRESS"


@pytest.mark.parametrize("name", ["USDC_TOKEN_ADDRESS", "TREASURY_ADDRESS"])
def test_neither_the_token_nor_the_treasury_deploys_wallets(name: str) -> None:
    with pytest.raises(ConfigurationError, match=OTHER_ADDRESS) as refused:
        load({name: OTHER_ADDRESS, "SMART_WALLET_FACTORIES": f"{'0x' + '77' * 20},{OTHER_ADDRESS.lower()}"})
    assert refused.value.setting == "SMART_WALLET_FACTORIES"


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://pay.example.com", "https://pay.example.com"),
        ("https://Pay.Example.com/", "https://pay.example.com"),
        ("https://pay.example.com:443", "https://pay.example.com"),
        ("http://pay.example.com:443", "http://pay.example.com:443"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_the_apis_address_is_written_as_browsers_write_an_origin(given: str, origin: str) -> None:
    assert load({"API_URL": given}).api_url == origin


def test_operators_are_named_by_their_wallets() -> None:
    database = "postgresql://settle_operator:x@localhost/settle"
    settings = load({"OPERATOR_WALLETS": f"{CHECKSUMMED.lower()}, {CHECKSUMMED}", "OPERATOR_DATABASE_URL": database})
    assert settings.operator_wallets == (CHECKSUMMED, CHECKSUMMED)


@pytest.mark.parametrize(
    ("variables", "explorer"),
    [
        ({}, "https://basescan.org/tx/{tx_hash}"),
        ({"CHAIN_ID": "31337"}, None),
        ({"CHAIN_ID": "31337", "EXPLORER_TX_URL": "http://x.example/{tx_hash}"}, "http://x.example/{tx_hash}"),
    ],
)
def test_a_well_known_chain_has_its_explorer(variables: dict[str, str], explorer: str | None) -> None:
    assert load(variables).explorer == explorer


def test_a_proxys_network_is_written_as_the_server_expects_it() -> None:
    assert load({"TRUSTED_PROXIES": "10.1.2.3/8, ::1, 192.168.1.7"}).trusted_proxies == (
        "10.0.0.0/8",
        "::1/128",
        "192.168.1.7/32",
    )
