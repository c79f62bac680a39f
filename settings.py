"""Settings: environment variables (and a `.env` file), read once at an entry point and passed down.

An invalid value raises `ConfigurationError` with one line: the variable, the value, and what is expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_args

import idna
from dotenv.parser import Original, parse_stream
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

import domain.setting_values as values
from chain.addresses import checksum_address
from db.address import EXPECTED as _POSTGRES_EXPECTED
from db.address import normalize_address
from domain.chain import DepositLane, DepositScope, TransferScope
from domain.coin import NATIVE_COIN
from domain.errors import ConfigurationError, InvalidInput
from domain.money import (
    DEFAULT_PAYMENT_MAX_USD_CENTS,
    DEFAULT_PAYMENT_MIN_USD_CENTS,
    DEFAULT_REVENUE_SHARE,
    raw_for_usd_cents,
)
from domain.operations.findings import DEFAULT_DUST_BELOW_RAW
from domain.operations.governance_call import GovernanceLoopPolicy
from domain.payments.finality import FinalityLevel, FinalityPolicy
from domain.transfers.income import ZERO_ADDRESS
from domain.utxo import UTXO_CHAINS, is_utxo_chain

BASE_CHAIN_ID: Final = 8453
BASE_USDC_ADDRESS: Final = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"

CHAIN_NAMES: Final = {8453: "Base", 84532: "Base Sepolia", 1: "Ethereum", 31337: "Local chain"}
EXPLORERS: Final = {
    8453: "https://basescan.org/tx/{tx_hash}",
    84532: "https://sepolia.basescan.org/tx/{tx_hash}",
    1: "https://etherscan.io/tx/{tx_hash}",
}

_T = TypeVar("_T")

_SHOWN_ADDRESSES: Final = frozenset({"EXPLORER_TX_URL"})
"""Addresses that are public."""

_NAMES_READ_ELSEWHERE: Final = frozenset(
    {
        "DEV_SERVICE_KEY",
        "DEV_SERVICE_WALLET_KEY",
        "DEV_UPSTREAM_URL",
        "DEV_WALLET_KEYS",
        "SETTLE_NODE_MODULES",
        *(
            f"TEMPORAL_{name}"
            for name in (
                "ADDRESS",
                "NAMESPACE",
                "API_KEY",
                "PROFILE",
                "CONFIG_FILE",
                "TLS",
                "TLS_CLIENT_CERT_PATH",
                "TLS_CLIENT_CERT_DATA",
                "TLS_CLIENT_KEY_PATH",
                "TLS_CLIENT_KEY_DATA",
                "TLS_SERVER_CA_CERT_PATH",
                "TLS_SERVER_CA_CERT_DATA",
                "TLS_SERVER_NAME",
                "TLS_DISABLE_HOST_VERIFICATION",
                "CODEC_ENDPOINT",
                "CODEC_AUTH",
            )
        ),
    }
)

_HOST: Final = re.compile(r"(?P<before>://(?:[^/?#,\s]*@)?)(?P<host>[^/?#,\s@:\[\]]+)")
_SECRET_WORDS: Final = ("URL", "KEY", "SECRET", "PASSWORD")


class LogFormat(StrEnum):
    """Format of log lines: one JSON object each, or text for a terminal."""

    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    """Lowest level that is logged."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


def _postgres_url(value: object) -> str:
    try:
        return normalize_address(str(value))
    except ValueError as error:
        raise values.Unusable(str(error)) from None


def _chain_address(value: object) -> str:
    """An address in its EIP-55 form; not the zero address."""
    try:
        address = checksum_address(str(value), field="address")
    except InvalidInput:
        raise ValueError from None
    if int(address, 16) == 0:
        raise ValueError
    return address


def _chain_addresses(value: object) -> tuple[str, ...]:
    return tuple(_chain_address(entry) for entry in values.split_list(value))


def _with_ascii_hosts(value: object) -> object:
    """The text with the hosts of its addresses in punycode, as browsers resolve them (UTS 46).

    Python's own codec implements the standard of 2003, which gives another address for a host with an ß.
    """
    if not isinstance(value, str):
        return value
    return _HOST.sub(lambda found: found["before"] + _punycode(found["host"]), value)


def _punycode(host: str) -> str:
    if host.isascii() and "xn--" not in host.lower():
        return host
    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        raise values.Unusable("an address whose host is not a valid international domain name") from None


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


PostgresUrl = Annotated[str, BeforeValidator(_postgres_url)]
_International: Final = BeforeValidator(_with_ascii_hosts)
HttpUrl = Annotated[str, BeforeValidator(values.http_url), _International]
HttpUrls = Annotated[tuple[str, ...], BeforeValidator(values.http_urls), _International]
PublicUrl = Annotated[str, BeforeValidator(values.public_url), _International]
ChecksumAddress = Annotated[str, BeforeValidator(_chain_address)]
ListeningHost = Annotated[str, BeforeValidator(values.listening_host)]
FilePath = Annotated[Path, BeforeValidator(values.path)]
PerMinute = Annotated[int, Field(ge=1, le=1_000_000)]
_PER_MINUTE_EXPECTED: Final = "requests per minute, a whole number from 1 to 1000000"
_NODES_EXPECTED: Final = "http or https addresses of different chain nodes, separated by commas"
_ADDRESS_EXPECTED: Final = (
    "an address that is not zero, 0x and 40 hex digits, with a valid EIP-55 checksum where the case is mixed"
)


class Settings(BaseModel):
    """Every setting. A field's description is what an error says is expected."""

    model_config = ConfigDict(frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_plain(cls, value: object, info: ValidationInfo) -> object:
        """Checks that apply to every setting, whatever its type."""
        if not isinstance(value, str):
            return value
        text = values.clean_text(value)
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = {annotation, *get_args(annotation)}
        if int in kinds:
            return values.plain_integer(text)
        return values.plain_decimal(text) if float in kinds else text

    database_url: PostgresUrl | None = Field(None, alias="DATABASE_URL", repr=False, description=_POSTGRES_EXPECTED)
    settlement_database_url: PostgresUrl | None = Field(
        None, alias="SETTLEMENT_DATABASE_URL", repr=False, description=_POSTGRES_EXPECTED
    )
    service_database_url: PostgresUrl | None = Field(
        None, alias="SERVICE_DATABASE_URL", repr=False, description=_POSTGRES_EXPECTED
    )
    migration_database_url: PostgresUrl | None = Field(
        None, alias="MIGRATION_DATABASE_URL", repr=False, description=_POSTGRES_EXPECTED
    )

    chain_id: int = Field(BASE_CHAIN_ID, alias="CHAIN_ID", gt=0, lt=2**53, description="a chain's number, 1 or more")
    chain_rpc_urls: HttpUrls | None = Field(
        None,
        alias="CHAIN_RPC_URLS",
        repr=False,
        description=_NODES_EXPECTED,
    )
    price_feed_chain_id: int | None = Field(
        None, alias="PRICE_FEED_CHAIN_ID", gt=0, lt=2**53, description="a chain's number, 1 or more"
    )
    price_feed_rpc_urls: HttpUrls | None = Field(
        None, alias="PRICE_FEED_RPC_URLS", repr=False, description=_NODES_EXPECTED
    )
    usdc_token_address: ChecksumAddress = Field(
        BASE_USDC_ADDRESS, alias="USDC_TOKEN_ADDRESS", description=_ADDRESS_EXPECTED
    )
    treasury_address: ChecksumAddress | None = Field(None, alias="TREASURY_ADDRESS", description=_ADDRESS_EXPECTED)
    min_confirmations: int = Field(
        5, alias="MIN_CONFIRMATIONS", ge=1, le=10_000, description="a whole number of blocks, 1 to 10000"
    )
    finality: Annotated[FinalityLevel, BeforeValidator(_lower)] = Field(
        FinalityLevel.FINALIZED, alias="FINALITY", description="confirmations, safe or finalized"
    )
    finality_confirmations: int = Field(
        64, alias="FINALITY_CONFIRMATIONS", ge=1, le=100_000, description="a whole number of blocks, 1 to 100000"
    )
    finality_large: Annotated[FinalityLevel, BeforeValidator(_lower)] = Field(
        FinalityLevel.FINALIZED, alias="FINALITY_LARGE", description="confirmations, safe or finalized"
    )
    finality_large_from_usd_cents: int | None = Field(
        None, alias="FINALITY_LARGE_FROM_USD_CENTS", ge=1, le=10**12, description="whole US cents"
    )
    chain_watch_from_block: int | None = Field(
        None, alias="CHAIN_WATCH_FROM_BLOCK", ge=0, lt=2**53, description="a block's number, 0 or more"
    )
    chain_log_range_max: int = Field(
        2000, alias="CHAIN_LOG_RANGE_MAX", ge=1, le=100_000, description="a whole number of blocks, 1 to 100000"
    )
    chain_block_time_seconds: float = Field(
        2.0, alias="CHAIN_BLOCK_TIME_SECONDS", gt=0, le=600, description="seconds between blocks, above 0 up to 600"
    )
    chain_rpc_timeout_seconds: float = Field(
        5.0, alias="CHAIN_RPC_TIMEOUT_SECONDS", gt=0, le=8, description="seconds, above 0 up to 8"
    )

    payment_intent_ttl_seconds: int = Field(
        1800, alias="PAYMENT_INTENT_TTL_SECONDS", ge=1, le=31 * 86_400, description="whole seconds, 1 to 2678400"
    )
    verification_timeout_seconds: int = Field(
        86_400, alias="VERIFICATION_TIMEOUT_SECONDS", ge=1, le=31 * 86_400, description="whole seconds, 1 to 2678400"
    )
    charge_price_ttl_seconds: int = Field(
        1800, alias="CHARGE_PRICE_TTL_SECONDS", ge=1, le=31 * 86_400, description="whole seconds, 1 to 2678400"
    )
    native_coin_deposits: Annotated[bool, BeforeValidator(values.switch)] = Field(
        False, alias="NATIVE_COIN_DEPOSITS", description="true or false"
    )
    payment_min_usd_cents: int = Field(
        DEFAULT_PAYMENT_MIN_USD_CENTS, alias="PAYMENT_MIN_USD_CENTS", ge=1, le=10**12, description="whole US cents"
    )
    dust_below_raw: int = Field(
        DEFAULT_DUST_BELOW_RAW,
        alias="DUST_BELOW_RAW",
        ge=0,
        le=10**16,
        description="whole token units (a millionth of a USDC), 0 or more",
    )
    payment_max_usd_cents: int = Field(
        DEFAULT_PAYMENT_MAX_USD_CENTS, alias="PAYMENT_MAX_USD_CENTS", ge=1, le=10**12, description="whole US cents"
    )
    system_tenant_revenue_share: Annotated[Decimal, BeforeValidator(values.share)] = Field(
        DEFAULT_REVENUE_SHARE, alias="SYSTEM_TENANT_REVENUE_SHARE", description="a decimal from 0 to 1, such as 0.75"
    )

    api_url: Annotated[str, BeforeValidator(values.origin), _International] | None = Field(
        None,
        alias="API_URL",
        description="the public address, scheme, host and port, such as https://pay.example.com",
    )
    api_host: ListeningHost = Field(
        "127.0.0.1", alias="API_HOST", description="an IP address or name to listen on, without a port, such as 0.0.0.0"
    )
    api_port: int = Field(8080, alias="API_PORT", ge=0, le=65_535, description="a port, 0 (any free one) to 65535")
    trusted_proxies: Annotated[tuple[str, ...], BeforeValidator(values.networks)] = Field(
        (), alias="TRUSTED_PROXIES", description="addresses or networks of proxies, separated by commas"
    )
    session_ttl_seconds: int = Field(
        86_400, alias="SESSION_TTL_SECONDS", ge=60, le=31 * 86_400, description="whole seconds, 60 to 2678400"
    )
    login_challenge_ttl_seconds: int = Field(
        300, alias="LOGIN_CHALLENGE_TTL_SECONDS", ge=10, le=3600, description="whole seconds, 10 to 3600"
    )
    rate_limit_logins_per_address: PerMinute = Field(
        300, alias="RATE_LIMIT_LOGINS_PER_ADDRESS", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_logins_per_account: PerMinute = Field(
        30, alias="RATE_LIMIT_LOGINS_PER_ACCOUNT", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_intents_per_address: PerMinute = Field(
        300, alias="RATE_LIMIT_INTENTS_PER_ADDRESS", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_intents_per_account: PerMinute = Field(
        60, alias="RATE_LIMIT_INTENTS_PER_ACCOUNT", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_submits_per_address: PerMinute = Field(
        600, alias="RATE_LIMIT_SUBMITS_PER_ADDRESS", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_submits_per_account: PerMinute = Field(
        120, alias="RATE_LIMIT_SUBMITS_PER_ACCOUNT", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_keys_per_address: PerMinute = Field(
        300, alias="RATE_LIMIT_KEYS_PER_ADDRESS", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_keys_per_account: PerMinute = Field(
        60, alias="RATE_LIMIT_KEYS_PER_ACCOUNT", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_charges_per_address: PerMinute = Field(
        1200, alias="RATE_LIMIT_CHARGES_PER_ADDRESS", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_charges_per_account: PerMinute = Field(
        240, alias="RATE_LIMIT_CHARGES_PER_ACCOUNT", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_topups_per_address: PerMinute = Field(
        300, alias="RATE_LIMIT_TOPUPS_PER_ADDRESS", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_topups_per_account: PerMinute = Field(
        60, alias="RATE_LIMIT_TOPUPS_PER_ACCOUNT", description=_PER_MINUTE_EXPECTED
    )
    relay_database_url: PostgresUrl | None = Field(
        None, alias="RELAY_DATABASE_URL", repr=False, description=_POSTGRES_EXPECTED
    )
    relay_private_key: str | None = Field(
        None,
        alias="RELAY_PRIVATE_KEY",
        repr=False,
        min_length=64,
        max_length=66,
        description="a private key, 0x and 64 hex digits",
    )
    relay_private_key_file: FilePath | None = Field(
        None, alias="RELAY_PRIVATE_KEY_FILE", description="a file of mode 0600 with a private key"
    )
    relay_per_account_per_day: int = Field(
        100, alias="RELAY_PER_ACCOUNT_PER_DAY", ge=0, le=1_000_000, description="signatures a day, 0 to 1000000"
    )
    relay_failed_per_account_per_day: int = Field(
        5, alias="RELAY_FAILED_PER_ACCOUNT_PER_DAY", ge=1, le=1_000_000, description="transactions a day, 1 to 1000000"
    )
    relay_per_charge_per_day: int = Field(
        5, alias="RELAY_PER_CHARGE_PER_DAY", ge=0, le=1_000_000, description="signatures a day, 0 to 1000000"
    )
    relay_failed_per_charge_per_day: int = Field(
        2, alias="RELAY_FAILED_PER_CHARGE_PER_DAY", ge=1, le=1_000_000, description="transactions a day, 1 to 1000000"
    )
    relay_gas_per_day_wei: int = Field(
        2 * 10**16, alias="RELAY_GAS_PER_DAY_WEI", ge=1, le=10**24, description="whole wei, 1 or more"
    )
    relay_max_fee_wei: int = Field(
        10**10, alias="RELAY_MAX_FEE_WEI", ge=1, le=10**15, description="whole wei for a unit of gas"
    )
    relay_balance_alert_wei: int = Field(
        5 * 10**15, alias="RELAY_BALANCE_ALERT_WEI", ge=0, le=10**24, description="whole wei, 0 or more"
    )
    smart_wallet_factories: Annotated[tuple[ChecksumAddress, ...], BeforeValidator(_chain_addresses)] = Field(
        (),
        alias="SMART_WALLET_FACTORIES",
        description="comma-separated addresses of contracts that deploy smart wallets",
    )
    relay_health_host: ListeningHost = Field(
        "127.0.0.1",
        alias="RELAY_HEALTH_HOST",
        description="an IP address or name to listen on, without a port, such as 0.0.0.0",
    )
    relay_health_port: int | None = Field(
        None, alias="RELAY_HEALTH_PORT", ge=0, le=65_535, description="a port, 0 (any free one) to 65535"
    )
    platform_name: Annotated[str, BeforeValidator(values.plain_name)] = Field(
        "Cogni", alias="PLATFORM_NAME", description="a name of 1 to 40 characters"
    )
    explorer_tx_url: Annotated[str, BeforeValidator(values.transaction_url), _International] | None = Field(
        None, alias="EXPLORER_TX_URL", description="an http or https address with {tx_hash} in it, once"
    )
    public_rpc_url: PublicUrl | None = Field(
        None, alias="PUBLIC_RPC_URL", description="address of a public chain node for wallets"
    )
    operator_wallets: Annotated[tuple[ChecksumAddress, ...], BeforeValidator(_chain_addresses)] = Field(
        (), alias="OPERATOR_WALLETS", description="addresses of wallets, separated by commas"
    )
    operator_database_url: PostgresUrl | None = Field(
        None, alias="OPERATOR_DATABASE_URL", repr=False, description=_POSTGRES_EXPECTED
    )

    gateway_url: Annotated[str, BeforeValidator(values.origin), _International] | None = Field(
        None,
        alias="GATEWAY_URL",
        description="the gateway's public address, scheme, host and port, such as https://ai.example.com",
    )
    gateway_host: ListeningHost = Field(
        "127.0.0.1",
        alias="GATEWAY_HOST",
        description="an IP address or name to listen on, without a port, such as 0.0.0.0",
    )
    gateway_port: int = Field(
        8090, alias="GATEWAY_PORT", ge=0, le=65_535, description="a port, 0 (any free one) to 65535"
    )
    gateway_max_connections: int = Field(
        1000, alias="GATEWAY_MAX_CONNECTIONS", ge=1, le=100_000, description="a whole number, 1 to 100000"
    )
    upstreams_file: FilePath | None = Field(
        None, alias="UPSTREAMS_FILE", description="a YAML file of upstreams, as README.md describes it"
    )
    upstream_read_timeout_seconds: float = Field(
        600.0, alias="UPSTREAM_READ_TIMEOUT_SECONDS", gt=0, le=3600, description="seconds, above 0 up to 3600"
    )
    user_price_markup_factor: Annotated[Decimal, BeforeValidator(values.factor)] = Field(
        Decimal(2), alias="USER_PRICE_MARKUP_FACTOR", description="a decimal from 1 to 1000, such as 1.5"
    )
    grace_credits: int = Field(
        5_000_000, alias="GRACE_CREDITS", ge=0, le=10**15, description="whole credits, 0 or more"
    )
    hold_lease_seconds: int = Field(
        60, alias="HOLD_LEASE_SECONDS", ge=3, le=3600, description="whole seconds, 3 to 3600"
    )
    output_tokens_assumed: int = Field(
        4096,
        alias="OUTPUT_TOKENS_ASSUMED",
        ge=1,
        le=10_000_000,
        description="a whole number of tokens, 1 to 10000000",
    )
    unpriced_hold_credits: int = Field(
        5_000_000, alias="UNPRICED_HOLD_CREDITS", ge=0, le=10**15, description="whole credits, 0 or more"
    )
    clamp_output_tokens: Annotated[bool, BeforeValidator(values.switch)] = Field(
        False, alias="CLAMP_OUTPUT_TOKENS", description="true or false"
    )
    billing_ingest_secret: str | None = Field(
        None, alias="BILLING_INGEST_SECRET", repr=False, min_length=8, description="a secret of 8 characters or more"
    )
    rate_limit_chat_per_account: PerMinute = Field(
        60_000, alias="RATE_LIMIT_CHAT_PER_ACCOUNT", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_embeddings_per_account: PerMinute = Field(
        60_000, alias="RATE_LIMIT_EMBEDDINGS_PER_ACCOUNT", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_images_per_account: PerMinute = Field(
        600, alias="RATE_LIMIT_IMAGES_PER_ACCOUNT", description=_PER_MINUTE_EXPECTED
    )
    rate_limit_audio_per_account: PerMinute = Field(
        600, alias="RATE_LIMIT_AUDIO_PER_ACCOUNT", description=_PER_MINUTE_EXPECTED
    )

    governance_model: str | None = Field(
        None, alias="GOVERNANCE_MODEL", max_length=200, description="a model that the gateway offers"
    )
    governance_prompt_file: FilePath | None = Field(
        None, alias="GOVERNANCE_PROMPT_FILE", description="a text file with the prompt of the governance loop"
    )
    governance_budget_credits_per_day: int | None = Field(
        None, alias="GOVERNANCE_BUDGET_CREDITS_PER_DAY", ge=1, le=10**15, description="whole credits, 1 or more"
    )
    governance_service_key: str | None = Field(
        None, alias="GOVERNANCE_SERVICE_KEY", repr=False, min_length=8, description="a service key, sk-settle-..."
    )

    schedules_file: FilePath | None = Field(
        None, alias="SCHEDULES_FILE", description="a YAML file, as docs/schedules.md describes it"
    )
    event_sink_url: HttpUrl | None = Field(
        None, alias="EVENT_SINK_URL", repr=False, description="http or https address that events are posted to"
    )
    webhook_allow_private: Annotated[bool, BeforeValidator(values.switch)] = Field(
        False, alias="WEBHOOK_ALLOW_PRIVATE", description="true or false"
    )
    reconciliation_dir: FilePath | None = Field(None, alias="RECONCILIATION_DIR", description="a folder")

    temporal_ui_url: PublicUrl | None = Field(
        None, alias="TEMPORAL_UI_URL", description="http or https address of Temporal's UI"
    )
    worker_health_host: ListeningHost = Field(
        "127.0.0.1",
        alias="WORKER_HEALTH_HOST",
        description="an IP address or name to listen on, without a port, such as 0.0.0.0",
    )
    worker_health_port: int | None = Field(
        None, alias="WORKER_HEALTH_PORT", ge=0, le=65_535, description="a port, 0 (any free one) to 65535"
    )

    log_level: Annotated[LogLevel, BeforeValidator(_upper)] = Field(
        LogLevel.INFO, alias="LOG_LEVEL", description="DEBUG, INFO, WARNING or ERROR"
    )
    log_format: Annotated[LogFormat, BeforeValidator(_lower)] = Field(
        LogFormat.JSON, alias="LOG_FORMAT", description="json or console"
    )

    @property
    def finality_policy(self) -> FinalityPolicy:
        """When tracking of a credited payment ends."""
        return FinalityPolicy(
            level=self.finality,
            large_level=self.finality_large,
            large_from_usd_cents=self.finality_large_from_usd_cents,
            confirmations=max(self.finality_confirmations, self.min_confirmations),
        )

    @property
    def explorer(self) -> str | None:
        """Link to a transaction's page: the setting, or the usual explorer of a well-known chain."""
        return self.explorer_tx_url or EXPLORERS.get(self.chain_id)

    @property
    def payment_intent_ttl(self) -> timedelta:
        """Lifetime of an unpaid intent."""
        return timedelta(seconds=self.payment_intent_ttl_seconds)

    @property
    def verification_timeout(self) -> timedelta:
        """How long after its submission a payment may take to appear and be confirmed."""
        return timedelta(seconds=self.verification_timeout_seconds)

    @property
    def payment_wait_max(self) -> timedelta:
        """How long after its submission a payment may wait before its workflow must have ended.

        One that lacks only confirmations gets twice the time that these take; ten minutes are tolerance.
        """
        return self.verification_timeout + 2 * self.min_confirmations * self.block_time + timedelta(minutes=10)

    @property
    def block_time(self) -> timedelta:
        """Time between two blocks."""
        return timedelta(seconds=self.chain_block_time_seconds)

    def require_database_url(self) -> str:
        """`DATABASE_URL`, or `ConfigurationError`."""
        return _required("DATABASE_URL", self.database_url, _POSTGRES_EXPECTED)

    def require_api_url(self) -> str:
        """`API_URL`, or `ConfigurationError`."""
        return _required("API_URL", self.api_url, "the public address, such as https://pay.example.com")

    def require_settlement_database_url(self) -> str:
        """`SETTLEMENT_DATABASE_URL`, or `ConfigurationError`."""
        return _required("SETTLEMENT_DATABASE_URL", self.settlement_database_url, _POSTGRES_EXPECTED)

    def require_service_database_url(self) -> str:
        """`SERVICE_DATABASE_URL`, or `ConfigurationError`."""
        return _required("SERVICE_DATABASE_URL", self.service_database_url, _POSTGRES_EXPECTED)

    def require_migration_database_url(self) -> str:
        """`MIGRATION_DATABASE_URL`, or `ConfigurationError`."""
        return _required("MIGRATION_DATABASE_URL", self.migration_database_url, _POSTGRES_EXPECTED)

    def require_relay_database_url(self) -> str:
        """`RELAY_DATABASE_URL`, or `ConfigurationError`."""
        return _required("RELAY_DATABASE_URL", self.relay_database_url, _POSTGRES_EXPECTED)

    def require_chain_rpc_urls(self) -> tuple[str, ...]:
        """`CHAIN_RPC_URLS`, or `ConfigurationError`."""
        return _required("CHAIN_RPC_URLS", self.chain_rpc_urls, _NODES_EXPECTED)

    @property
    def price_feeds(self) -> tuple[int, tuple[str, ...]] | None:
        """Another chain with price feeds, and its nodes; None where feeds are on the settings' chain only.

        Raises `ConfigurationError` where only one of the two settings is given.
        """
        pair = {"PRICE_FEED_CHAIN_ID": self.price_feed_chain_id, "PRICE_FEED_RPC_URLS": self.price_feed_rpc_urls}
        missing = [name for name, value in pair.items() if value is None]
        if len(missing) == 1:
            [given] = pair.keys() - missing
            raise ConfigurationError.incomplete(missing[0], given, "both for price feeds on another chain")
        if self.price_feed_chain_id is None or self.price_feed_rpc_urls is None:
            return None
        return self.price_feed_chain_id, self.price_feed_rpc_urls

    def require_transfer_scope(self) -> TransferScope:
        """Where payments go to: of Bitcoin's family, to deposit addresses only.

        Raises `ConfigurationError` without a treasury.
        """
        if is_utxo_chain(self.chain_id):
            return DepositScope.of(self.chain_id, DepositLane.BUSY)
        treasury = self.require_treasury_address()
        return TransferScope(chain_id=self.chain_id, token=self.usdc_token_address, treasury=treasury)

    @property
    def governance_loop(self) -> GovernanceLoopPolicy | None:
        """The governance loop's settings; None where it is off. Raises `ConfigurationError` where one is missing."""
        if self.governance_model is None:
            return None

        def required(name: str, value: _T | None, expected: str) -> _T:
            if value is None:
                raise ConfigurationError.incomplete(name, "GOVERNANCE_MODEL", expected)
            return value

        budget = self.governance_budget_credits_per_day
        return GovernanceLoopPolicy(
            model=self.governance_model,
            prompt_file=required("GOVERNANCE_PROMPT_FILE", self.governance_prompt_file, "a text file"),
            budget_credits_per_day=required("GOVERNANCE_BUDGET_CREDITS_PER_DAY", budget, "whole credits"),
            gateway_url=required("GATEWAY_URL", self.gateway_url, "the gateway's address"),
            service_key=required("GOVERNANCE_SERVICE_KEY", self.governance_service_key, "a key of cogni_system"),
        )

    def require_upstreams_file(self) -> Path:
        """`UPSTREAMS_FILE`, or `ConfigurationError`."""
        return _required("UPSTREAMS_FILE", self.upstreams_file, "a YAML file of upstreams")

    @property
    def settled_token(self) -> str:
        """What the chain's payments are made in; of deposits it is one of several."""
        return NATIVE_COIN if is_utxo_chain(self.chain_id) else self.usdc_token_address

    def require_treasury_address(self) -> str:
        """`TREASURY_ADDRESS`, or `ConfigurationError`.

        Of Bitcoin's family, where nothing is sent to it, it need not be set: then it is the zero address, to which no
        payment is credited.
        """
        if self.treasury_address is None and is_utxo_chain(self.chain_id):
            return ZERO_ADDRESS
        return _required("TREASURY_ADDRESS", self.treasury_address, _ADDRESS_EXPECTED)

    def require_evm_chain(self) -> None:
        """Raises `ConfigurationError` on a chain of Bitcoin's family: no wallet signs in there, nor is there USDC."""
        if is_utxo_chain(self.chain_id):
            raise ConfigurationError.invalid(
                "CHAIN_ID", self.chain_id, "an EVM chain, on which wallets sign in: Bitcoin's needs a worker only"
            )


def _required(name: str, value: _T | None, expected: str) -> _T:
    if value is None:
        hint = "`settle up` writes all settings to <state-dir>/env: settle --env-file .settle/env ..."
        raise ConfigurationError.missing(name, f"{expected} ({hint})")
    return value


def environment(env_file: Path | None = None) -> dict[str, str]:
    """The process's environment over the values of `env_file` (default: `.env`, if it exists).

    Raises `ConfigurationError` when a requested file is missing, or has an invalid line.
    """
    if env_file is not None and not env_file.is_file():
        raise ConfigurationError(f"--env-file: file {env_file} not found")
    path = env_file or Path(".env")
    try:
        from_file = read_env_file(path) if path.is_file() else {}
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f"{path} cannot be read as settings, lines of NAME=value in UTF-8: {error}") from None
    return {**from_file, **os.environ}


def read_env_file(path: Path) -> dict[str, str]:
    """The settings of a file, as written: a `$` is a `$`. A name that is set twice has its last value.

    Raises `ConfigurationError` for a line that is not `NAME=value`, `export NAME=value` or a comment.
    """
    found: dict[str, str] = {}
    with path.open(encoding="utf-8-sig") as file:
        for binding in parse_stream(file):
            if binding.error or (binding.key is not None and binding.value is None):
                # Without the line itself: it may hold a password.
                raise ConfigurationError(
                    f"{path}: line {_first_line_of(binding.original)} is not a setting, expected NAME=value"
                )
            if binding.key is not None and binding.value is not None:
                found[binding.key] = binding.value
    return found


def _first_line_of(original: Original) -> int:
    """The binding's own line: blank lines before it belong to the parsed text."""
    return original.line + len(original.string[: len(original.string) - len(original.string.lstrip())].splitlines())


def env_file_line(name: str, value: str) -> str:
    """`NAME=value` as `read_env_file` reads it back; in quotation marks only where necessary."""
    quoted = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    for written in (value, quoted):
        line = f"{name}={written}"
        read = list(parse_stream(StringIO(line + "\n")))
        if [(binding.key, binding.value) for binding in read] == [(name, value)]:
            return line
    raise ConfigurationError.invalid(name, "a value that a settings file cannot hold", "one without line breaks")


def name_warnings(variables: Mapping[str, str]) -> list[str]:
    """One line for each variable that is not a setting and resembles the name of one."""
    mistyped = values.suspicious_names(variables, known_names())
    return [f"{name} is not a setting and has no effect; did you mean {meant}?" for name, meant in mistyped.items()]


def known_names() -> frozenset[str]:
    """Names of all variables that this program, or Temporal's SDK for it, reads."""
    return frozenset(str(field.alias) for field in Settings.model_fields.values()) | _NAMES_READ_ELSEWHERE


def load(variables: Mapping[str, str]) -> Settings:
    """The settings in `variables`. Raises `ConfigurationError` for the first invalid value."""
    known = {field.alias for field in Settings.model_fields.values()}
    given = {name: value for name, value in variables.items() if name in known and value != ""}
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        raise _first_invalid(error) from None
    if settings.payment_min_usd_cents > settings.payment_max_usd_cents:
        raise ConfigurationError.invalid(
            "PAYMENT_MIN_USD_CENTS",
            settings.payment_min_usd_cents,
            f"at most PAYMENT_MAX_USD_CENTS, {settings.payment_max_usd_cents}",
        )
    smallest_raw = raw_for_usd_cents(settings.payment_min_usd_cents)
    if settings.dust_below_raw > smallest_raw:
        raise ConfigurationError.invalid(
            "DUST_BELOW_RAW",
            settings.dust_below_raw,
            f"at most the smallest payment (PAYMENT_MIN_USD_CENTS), {smallest_raw}",
        )
    if is_utxo_chain(settings.chain_id):
        _check_utxo_chain(settings)
    if settings.finality_large.rank < settings.finality.rank:
        raise ConfigurationError.invalid(
            "FINALITY_LARGE", repr(settings.finality_large.value), f"at least FINALITY, {settings.finality.value!r}"
        )
    if settings.treasury_address == settings.usdc_token_address:
        raise ConfigurationError.invalid(
            "TREASURY_ADDRESS",
            f"{settings.treasury_address}, which is USDC_TOKEN_ADDRESS",
            "the address that receives payments",
        )
    for address in (settings.usdc_token_address, settings.treasury_address):
        if address in settings.smart_wallet_factories:
            raise ConfigurationError.invalid(
                "SMART_WALLET_FACTORIES", f"{address}, which is the token or the treasury", "factories of smart wallets"
            )
    return settings


def _check_utxo_chain(settings: Settings) -> None:
    if settings.chain_id not in UTXO_CHAINS:
        known = ", ".join(f"{chain_id} ({chain.name})" for chain_id, chain in UTXO_CHAINS.items())
        raise ConfigurationError.invalid("CHAIN_ID", settings.chain_id, f"below 2^52, or one of {known}")
    for name, level in (("FINALITY", settings.finality), ("FINALITY_LARGE", settings.finality_large)):
        if level is not FinalityLevel.CONFIRMATIONS:
            raise ConfigurationError.invalid(
                name,
                repr(level.value),
                "'confirmations': no node of Bitcoin's family calls a block final",
            )


def _first_invalid(error: ValidationError) -> ConfigurationError:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    expected = next(field.description for field in Settings.model_fields.values() if field.alias == name)
    got = _reason(first.get("ctx", {})) or _shown(name, first["input"])
    return ConfigurationError.invalid(name, got, str(expected))


def _reason(context: Mapping[str, Any]) -> str | None:
    """A message of our own parsers. Other errors quote the value, which may hold a password."""
    error = context.get("error")
    return str(error) if isinstance(error, values.Unusable) else None


def _shown(name: str, value: object) -> str:
    """A value for an error line; addresses may hold passwords and API keys, so only their scheme is shown."""
    if name not in _SHOWN_ADDRESSES and any(word in name for word in _SECRET_WORDS):
        scheme = str(value).partition("://")[0] if "://" in str(value) else "no scheme"
        return f"an address with {scheme if scheme == 'no scheme' else f'scheme {scheme[:20]!r}'} (not shown)"
    return repr(value)[:80]
