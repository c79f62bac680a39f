"""What the relay may spend, on what."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from db.deposits.authorizations import ChargeLimits
from db.payments.authorizations import DailyLimits


@dataclass(frozen=True, slots=True)
class RelayPolicy:
    """`token` on chain `chain_id`, from payers to `treasury` or to a contract that pays it, is all that it moves.

    `wallet_factories` may be called for wallets that are yet to be deployed (ERC-6492), for a payment of theirs only.

    Amounts in wei.
    """

    chain_id: int
    token: str
    treasury: str
    wallet_factories: tuple[str, ...]
    min_confirmations: int
    block_time: timedelta
    limits: DailyLimits
    """Of each account, for what it signs for itself."""
    charge_limits: ChargeLimits
    """Of each charge, and of all charges of an account: anyone with a charge's page may sign for it."""
    gas_per_day_wei: int
    """Of all accounts together."""
    max_fee_wei: int
    """The most that it pays for a unit of gas, in replacements too."""
    balance_alert_wei: int
    """Below it an operator is to send gas."""
