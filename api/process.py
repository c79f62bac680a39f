"""`settle api`: serves the HTTP interface until SIGTERM, then drains open requests."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import structlog

from api.app import build_app
from api.pages.credits import LOOPBACK
from api.resources import ApiSettings, RateLimits, Services, SingleFlight
from api.server import http_server, listen
from composition import (
    chain_reader,
    charge_policy,
    open_prices,
    payment_policy,
    settlement_preconditions,
    signed_payment_policy,
    top_up_policy,
)
from db.engine import OperatorDatabase, TenantDatabase
from db.startup import (
    check_answers,
    check_operator_database,
    check_schema,
    check_system_tenant,
    check_tenant_database,
    check_writes,
)
from domain.errors import ConfigurationError
from services.deposits.charges import Charges
from services.deposits.signed_payments import SignedPayments
from services.operations.clocks import EVERY_SECONDS as CLOCKS_EVERY_SECONDS
from services.operations.clocks import watch_host_clock
from services.operations.gauges import refreshing
from services.payments.topups import TopUps
from settings import CHAIN_NAMES, Settings
from starter.payments import PaymentsClient
from starter.temporal import connect, is_serving
from telemetry.health import temporal_answers
from telemetry.metrics.topups import note_wallet_factories

DATABASE_CONNECTIONS: Final = 10
HEAD_LIFETIME_SECONDS_MAX: Final = 1.0

log = structlog.get_logger(__name__)


def api_settings(settings: Settings) -> ApiSettings:
    """The interface's own settings. Raises `ConfigurationError` without `API_URL`, and for a chain without wallets."""
    settings.require_evm_chain()
    return ApiSettings(
        origin=settings.require_api_url(),
        platform_name=settings.platform_name,
        chain_id=settings.chain_id,
        chain_name=CHAIN_NAMES.get(settings.chain_id, f"Chain {settings.chain_id}"),
        usdc_token_address=settings.usdc_token_address,
        min_confirmations=settings.min_confirmations,
        block_time=settings.block_time,
        payment_min_usd_cents=settings.payment_min_usd_cents,
        payment_max_usd_cents=settings.payment_max_usd_cents,
        challenge_lifetime=timedelta(seconds=settings.login_challenge_ttl_seconds),
        session_lifetime=timedelta(seconds=settings.session_ttl_seconds),
        rate_limits=RateLimits(
            logins_per_address=settings.rate_limit_logins_per_address,
            logins_per_account=settings.rate_limit_logins_per_account,
            intents_per_address=settings.rate_limit_intents_per_address,
            intents_per_account=settings.rate_limit_intents_per_account,
            submits_per_address=settings.rate_limit_submits_per_address,
            submits_per_account=settings.rate_limit_submits_per_account,
            keys_per_address=settings.rate_limit_keys_per_address,
            keys_per_account=settings.rate_limit_keys_per_account,
            topups_per_address=settings.rate_limit_topups_per_address,
            topups_per_account=settings.rate_limit_topups_per_account,
            charges_per_address=settings.rate_limit_charges_per_address,
            charges_per_account=settings.rate_limit_charges_per_account,
        ),
        explorer_tx_url=settings.explorer,
        public_rpc_url=settings.public_rpc_url,
        operator_wallets=frozenset(settings.operator_wallets),
        temporal_ui_url=settings.temporal_ui_url,
        webhook_allow_private=settings.webhook_allow_private,
    )


@asynccontextmanager
async def open_services(settings: Settings, variables: Mapping[str, str]) -> AsyncIterator[Services]:
    """Open and check every resource of the interface. Raises `SettleError`."""
    given = api_settings(settings)
    async with AsyncExitStack() as stack:
        database = TenantDatabase(
            settings.require_database_url(), application_name="settle api", pool_size=DATABASE_CONNECTIONS
        )
        stack.push_async_callback(database.dispose)
        await check_tenant_database(database)
        operators = None
        if settings.operator_wallets:
            if settings.operator_database_url is None:
                raise ConfigurationError.incomplete(
                    "OPERATOR_DATABASE_URL", "OPERATOR_WALLETS", "both for the operators' pages"
                )
            operators = OperatorDatabase(settings.operator_database_url, application_name="settle api")
            stack.push_async_callback(operators.dispose)
            await check_operator_database(operators)
        chain = await stack.enter_async_context(chain_reader(settings))
        prices = await stack.enter_async_context(open_prices(settings, chain))
        preconditions = settlement_preconditions(settings, chain)
        temporal = await connect(variables, lazy=True)
        note_wallet_factories(settings.chain_id, settings.smart_wallet_factories)
        head_lifetime_seconds = min(settings.chain_block_time_seconds / 2, HEAD_LIFETIME_SECONDS_MAX)
        read_head = SingleFlight(chain.heads.height, lifetime_seconds=head_lifetime_seconds)
        await stack.enter_async_context(
            refreshing(partial(watch_host_clock, database), every_seconds=CLOCKS_EVERY_SECONDS)
        )
        yield Services(
            settings=given,
            database=database,
            payments=PaymentsClient(database, temporal, payment_policy(settings), read_head=read_head),
            topups=TopUps(database, chain, top_up_policy(settings)),
            charges=Charges(database, charge_policy(settings), prices=prices, read_head=read_head),
            signed_payments=SignedPayments(database, chain, signed_payment_policy(settings)),
            chain=chain,
            temporal=temporal,
            checks={
                "database": partial(_check_database, database),
                "schema": partial(check_schema, database),
                "system_tenant": partial(check_system_tenant, database),
                "temporal": lambda: temporal_answers(lambda: is_serving(temporal)),
                "chain": chain.heads.height,
                "token": partial(preconditions.require_known, settings.usdc_token_address),
                **({"operator_database": partial(check_operator_database, operators)} if operators else {}),
            },
            operators=operators,
        )


async def _check_database(database: TenantDatabase) -> None:
    await check_answers(database)
    await check_writes(database)


async def run_api(settings: Settings, variables: Mapping[str, str]) -> None:
    """Serve until SIGTERM or SIGINT. Raises `SettleError` when the start-up checks fail."""
    # uvicorn's own start and stop messages repeat ours without fields.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    async with open_services(settings, variables) as services:
        with listen(settings.api_host, settings.api_port) as listening:
            server = http_server(build_app(services, trusted_proxies=settings.trusted_proxies))

            def stop() -> None:
                services.stopping.set()
                server.should_exit = True

            loop = asyncio.get_running_loop()
            for signal_number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(signal_number, stop)
            host, port = listening.getsockname()[:2]
            origin = urlsplit(services.settings.origin)
            if origin.scheme == "http" and origin.hostname not in LOOPBACK:
                log.warning("API_URL is not https: cookies are sent unencrypted", origin=services.settings.origin)
            log.info("api serves", listens_on=f"{host}:{port}", origin=services.settings.origin)
            await server.serve([listening])
    log.info("api stopped")
