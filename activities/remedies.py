"""Operators' remedies: role settle_service. The bonus of a credit is a transaction of its own."""

from __future__ import annotations

from decimal import Decimal

from temporalio import activity

from activities.contracts import MintedBonus
from activities.metrics import BONUS_CREDITS, REMEDIES_TAKEN
from db import remedies
from db.engine import ServiceDatabase
from domain.remedies import RemedyRequest, TakenRemedy


class RemedyActivities:
    """Each activity is one transaction and safe to run twice, at once, and late."""

    def __init__(self, database: ServiceDatabase, *, revenue_share: Decimal) -> None:
        self._database = database
        self._revenue_share = revenue_share

    @activity.defn(name="take_remedy")
    async def take_remedy(self, request: RemedyRequest) -> TakenRemedy:
        """Do what the operator decided: what it changes, the finding's end and the audit trail in one transaction."""
        async with self._database.transaction() as connection:
            taken = await remedies.take_remedy(connection, request, revenue_share=self._revenue_share)
        if not taken.is_repeated:
            REMEDIES_TAKEN.labels(taken.kind.value, taken.remedy.value).inc()
        return taken

    @activity.defn(name="mint_bonus_of_credit")
    async def mint_bonus_of_credit(self, taken: TakenRemedy) -> MintedBonus:
        """The system tenant's share of what an operator credited, minted on top."""
        async with self._database.transaction() as connection:
            entry = await remedies.mint_bonus_of_credit(connection, taken.finding_id)
        if entry is not None and entry.posted:
            BONUS_CREDITS.inc(entry.amount_credits)
        return MintedBonus(amount_credits=entry.amount_credits if entry else 0)
