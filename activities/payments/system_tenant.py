"""Steps on the system tenant's account: role settle_service, never in one transaction with the buyer's."""

from __future__ import annotations

from temporalio import activity

from activities.messages import AttemptOutcomeMessage, BonusToMint, MintedBonus, PaymentToCredit
from activities.payments.outcome import report
from activities.payments.signatures import SystemTenantSignatures
from db.engine import ServiceDatabase
from services.payments import lifecycle as payments
from telemetry.metrics.worker import BONUS_CREDITS


class SystemTenantActivities(SystemTenantSignatures):
    """Each activity is one transaction and safe to run twice, concurrently, and late."""

    def __init__(self, database: ServiceDatabase) -> None:
        self._database = database

    @activity.defn
    async def mint_bonus(self, bonus: BonusToMint) -> MintedBonus:
        """The system tenant's share of a credited purchase, minted on top."""
        async with self._database.statements() as connection:
            entry = await payments.mint_revenue_share(connection, bonus.attempt_id)
        if entry is not None and entry.posted:
            BONUS_CREDITS.inc(entry.amount_credits)
        return MintedBonus(amount_credits=entry.amount_credits if entry else 0)

    @activity.defn
    async def credit_donation(self, payment: PaymentToCredit) -> AttemptOutcomeMessage:
        """A donation: the system tenant gets the full amount, and the donor's attempt is CREDITED."""
        async with self._database.transaction() as connection:
            ending = await payments.credit_donation(connection, payment.attempt_id, payment.transfer)
        return report(ending, confirmed_at=payment.confirmed_at)
