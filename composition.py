"""Opens and closes the resources that a command needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import TypeVar

from temporalio.client import Client

from activities.messages import WatchedChain
from chain.joined_batches import JOIN_SECONDS
from chain.preconditions import SettlementPreconditions
from chain.reader import ChainReader
from chain.rpc import RequestObserver
from db.deposits.authorizations import ChargeLimits
from db.engine import ServiceDatabase, SettlementDatabase, TenantDatabase
from db.payments.authorizations import DailyLimits
from db.startup import check_service_database, check_settlement_database, check_tenant_database
from domain.utxo import is_utxo_chain
from services.deposits.charges import ChargePolicy
from services.deposits.pricing import Prices
from services.deposits.signed_payments import SignedPaymentPolicy
from services.payments.topups import TopUpPolicy
from settings import Settings
from starter.payments import PaymentPolicy, PaymentsClient
from starter.settlement_starter import TemporalStarter
from starter.singletons import SingletonWorkflow
from starter.temporal import connect
from workflows.naming import WATCH_CHAIN, watch_workflow_id

CONNECTIONS = 2
"""A command runs one query at a time."""

_Database = TypeVar("_Database", TenantDatabase, SettlementDatabase, ServiceDatabase)


def payment_policy(settings: Settings) -> PaymentPolicy:
    """The settings for new intents. Raises `ConfigurationError` without a treasury."""
    return PaymentPolicy(
        chain_id=settings.chain_id,
        token=settings.usdc_token_address,
        treasury=settings.require_treasury_address(),
        intent_ttl=settings.payment_intent_ttl,
        min_usd_cents=settings.payment_min_usd_cents,
        max_usd_cents=settings.payment_max_usd_cents,
        min_confirmations=settings.min_confirmations,
        verification_timeout=settings.verification_timeout,
        finality=settings.finality_policy,
    )


def charge_policy(settings: Settings) -> ChargePolicy:
    """The settings for new charges. Raises `ConfigurationError` without a treasury, or without `API_URL`."""
    return ChargePolicy(
        chain_id=settings.chain_id,
        treasury=settings.require_treasury_address(),
        price_lifetime=timedelta(seconds=settings.charge_price_ttl_seconds),
        min_usd_cents=settings.payment_min_usd_cents,
        max_usd_cents=settings.payment_max_usd_cents,
        min_confirmations=settings.min_confirmations,
        origin=settings.require_api_url(),
        takes_coin=settings.native_coin_deposits,
    )


def top_up_policy(settings: Settings) -> TopUpPolicy:
    """The settings for new top-ups by signature. Raises `ConfigurationError` without a treasury."""
    return TopUpPolicy(
        chain_id=settings.chain_id,
        token=settings.usdc_token_address,
        treasury=settings.require_treasury_address(),
        wallet_factories=settings.smart_wallet_factories,
        intent_ttl=settings.payment_intent_ttl,
        min_usd_cents=settings.payment_min_usd_cents,
        max_usd_cents=settings.payment_max_usd_cents,
        block_time=settings.block_time,
        limits=DailyLimits(settings.relay_per_account_per_day, settings.relay_failed_per_account_per_day),
    )


def charge_limits(settings: Settings) -> ChargeLimits:
    """A day's signatures for charges, for API and relay."""
    return ChargeLimits(
        relayed_per_charge=settings.relay_per_charge_per_day,
        failed_per_charge=settings.relay_failed_per_charge_per_day,
        relayed_per_account=settings.relay_per_account_per_day,
        failed_per_account=settings.relay_failed_per_account_per_day,
    )


def signed_payment_policy(settings: Settings) -> SignedPaymentPolicy:
    """The settings for charges paid by signature. Raises `ConfigurationError` without a treasury."""
    return SignedPaymentPolicy(
        chain_id=settings.chain_id,
        token=settings.usdc_token_address,
        treasury=settings.require_treasury_address(),
        wallet_factories=settings.smart_wallet_factories,
        min_usd_cents=settings.payment_min_usd_cents,
        block_time=settings.block_time,
        limits=charge_limits(settings),
    )


def settlement_preconditions(settings: Settings, chain: ChainReader) -> SettlementPreconditions:
    """What must be true of chain and token. Raises `ConfigurationError` without a treasury."""
    return SettlementPreconditions(
        chain.contracts, settings.require_treasury_address(), usdc=settings.usdc_token_address
    )


def settlement_starter(temporal: Client, settings: Settings, database: TenantDatabase) -> TemporalStarter:
    """What starts workflows for services and activities. Raises `ConfigurationError` without a treasury."""
    payments = PaymentsClient(database, temporal, payment_policy(settings))
    return TemporalStarter(temporal, payments, singleton_workflows(settings))


def singleton_workflows(settings: Settings) -> list[SingletonWorkflow]:
    """Singleton workflows besides the scheduled ones: the chain watch, where its scope is configured."""
    if settings.treasury_address is None and not is_utxo_chain(settings.chain_id):
        return []
    return [
        SingletonWorkflow(
            workflow_id=watch_workflow_id(settings.chain_id),
            workflow=WATCH_CHAIN,
            input=WatchedChain(chain_id=settings.chain_id),
            summary=f"{_watched(settings)} on chain {settings.chain_id}",
            chain_id=settings.chain_id,
        )
    ]


def _watched(settings: Settings) -> str:
    return "deposits" if is_utxo_chain(settings.chain_id) else f"transfers to {settings.treasury_address}"


def tenant_database(settings: Settings) -> AbstractAsyncContextManager[TenantDatabase]:
    """Role settle_app, checked."""
    return _checked(TenantDatabase, settings.require_database_url(), check_tenant_database)


def settlement_database(settings: Settings) -> AbstractAsyncContextManager[SettlementDatabase]:
    """Role settle_settlement, checked."""
    return _checked(SettlementDatabase, settings.require_settlement_database_url(), check_settlement_database)


def service_database(settings: Settings) -> AbstractAsyncContextManager[ServiceDatabase]:
    """Role settle_service, checked."""
    return _checked(ServiceDatabase, settings.require_service_database_url(), check_service_database)


@asynccontextmanager
async def _checked(
    database_type: type[_Database], url: str, check: Callable[[_Database], Awaitable[None]]
) -> AsyncIterator[_Database]:
    database = database_type(url, application_name="settle cli", pool_size=CONNECTIONS)
    try:
        await check(database)
        yield database
    finally:
        await database.dispose()


@asynccontextmanager
async def payments_client(settings: Settings, variables: Mapping[str, str]) -> AsyncIterator[PaymentsClient]:
    """The client that takes payments. Temporal is connected to when a submission needs it."""
    policy = payment_policy(settings)
    async with tenant_database(settings) as database:
        yield PaymentsClient(database, await connect(variables, lazy=True), policy)


def chain_reader(
    settings: Settings, *, on_request: RequestObserver | None = None, join_seconds: float = JOIN_SECONDS
) -> ChainReader:
    """The chain's nodes; `on_request` is called for each HTTP request, and a question waits up to `join_seconds` for
    others that share one. Raises `ConfigurationError` without addresses.
    """
    return ChainReader(
        settings.require_chain_rpc_urls(),
        settings.chain_id,
        timeout_seconds=settings.chain_rpc_timeout_seconds,
        log_range_max=settings.chain_log_range_max,
        on_request=on_request,
        join_seconds=join_seconds,
    )


@asynccontextmanager
async def open_prices(settings: Settings, chain: ChainReader) -> AsyncIterator[Prices]:
    """The price feeds on the settings' chain, and on that of `PRICE_FEED_CHAIN_ID`, whose nodes are opened here.

    Raises `ConfigurationError` where only one of its two settings is given.
    """
    feeds = {chain.chain_id: chain.prices}
    other = settings.price_feeds
    if other is None or other[0] == chain.chain_id:
        yield Prices(feeds)
        return
    chain_id, urls = other
    async with ChainReader(urls, chain_id, timeout_seconds=settings.chain_rpc_timeout_seconds) as reader:
        yield Prices({**feeds, chain_id: reader.prices})
