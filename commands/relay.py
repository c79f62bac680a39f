"""`settle relay`: broadcasts what payers have signed, and pays the gas."""

from __future__ import annotations

from composition import chain_reader, charge_limits
from db.payments.authorizations import DailyLimits
from domain.errors import ConfigurationError
from relay.policy import RelayPolicy
from relay.process import RelayOptions, run_relay
from relay.signing import KEY_EXPECTED, RelayKey
from settings import Settings


def relay_key(settings: Settings) -> RelayKey:
    """The key of `RELAY_PRIVATE_KEY`, or of the file `RELAY_PRIVATE_KEY_FILE`. Raises `ConfigurationError`."""
    text, path = settings.relay_private_key, settings.relay_private_key_file
    if text is not None and path is not None:
        raise ConfigurationError("RELAY_PRIVATE_KEY and RELAY_PRIVATE_KEY_FILE are both set: expected one of them")
    if text is not None:
        return RelayKey.parse(text, setting="RELAY_PRIVATE_KEY")
    if path is not None:
        return RelayKey.read(path, setting="RELAY_PRIVATE_KEY_FILE")
    raise ConfigurationError.missing("RELAY_PRIVATE_KEY", f"{KEY_EXPECTED}, or RELAY_PRIVATE_KEY_FILE")


def relay_options(settings: Settings) -> RelayOptions:
    """What the process is made of. Raises `ConfigurationError`."""
    settings.require_evm_chain()
    return RelayOptions(
        database_url=settings.require_relay_database_url(),
        chain=chain_reader(settings),
        key=relay_key(settings),
        policy=RelayPolicy(
            chain_id=settings.chain_id,
            token=settings.usdc_token_address,
            treasury=settings.require_treasury_address(),
            wallet_factories=settings.smart_wallet_factories,
            min_confirmations=settings.min_confirmations,
            block_time=settings.block_time,
            limits=DailyLimits(settings.relay_per_account_per_day, settings.relay_failed_per_account_per_day),
            charge_limits=charge_limits(settings),
            gas_per_day_wei=settings.relay_gas_per_day_wei,
            max_fee_wei=settings.relay_max_fee_wei,
            balance_alert_wei=settings.relay_balance_alert_wei,
        ),
        health_host=settings.relay_health_host,
        health_port=settings.relay_health_port,
    )


async def relay(settings: Settings) -> None:
    """Run until SIGTERM. Raises `SettleError`."""
    await run_relay(relay_options(settings))
