"""Operators' remedies: role settle_service. The bonus of a credit is a transaction of its own."""

from __future__ import annotations

from decimal import Decimal

from temporalio import activity

from activities.messages import MintedBonus
from activities.operations.signatures import RemedySignatures
from chain.preconditions import TOKEN_DECIMALS, SettlementPreconditions
from chain.reader import ChainReader
from db.deposits.deposits import find_deposit_of_transfer
from db.engine import ServiceDatabase
from db.operations.findings import find_finding
from db.transfers.observed import find_observed
from domain.errors import ChainUnavailable, RemedyRefused
from domain.operations.findings import FindingKind, Remedy
from domain.operations.resolutions import RemedyRequest, TakenRemedy
from domain.transfers.identity import is_alike
from services.operations import resolutions as remedies
from services.transfers.receipts import find_receipt, transfers_in
from telemetry.metrics.worker import BONUS_CREDITS, REMEDIES_TAKEN


class RemedyActivities(RemedySignatures):
    """Each activity is at most one transaction and safe to run twice, concurrently, and late."""

    def __init__(
        self,
        database: ServiceDatabase,
        chain: ChainReader,
        preconditions: SettlementPreconditions,
        *,
        revenue_share: Decimal,
        min_confirmations: int,
    ) -> None:
        self._database = database
        self._chain = chain
        self._preconditions = preconditions
        self._revenue_share = revenue_share
        self._min_confirmations = min_confirmations

    @activity.defn
    async def take_remedy(self, request: RemedyRequest) -> TakenRemedy:
        """Execute an operator's decision: its effect, the resolution and the audit trail in one transaction.

        Before a transfer is credited all nodes are asked for it, because it was observed by one. Raises `RemedyRefused`
        where they do not have it, `ChainUnavailable` (to be retried) where they disagree, and `PreconditionNotMet`
        where the token is not confirmed to be what its method, or the settings, say.
        """
        if request.remedy is Remedy.CREDIT:
            await self._require_on_chain(request)
        async with self._database.transaction() as connection:
            taken = await remedies.take_remedy(connection, request, revenue_share=self._revenue_share)
        if not taken.is_repeated:
            REMEDIES_TAKEN.labels(taken.kind.value, taken.remedy.value).inc()
        return taken

    async def _require_on_chain(self, request: RemedyRequest) -> None:
        async with self._database.autocommit() as connection:
            finding = await find_finding(connection, request.finding_id)
        if not finding.is_open or finding.kind is FindingKind.SURPLUS or finding.tx_hash is None:
            # Nothing is left to credit, or the credited transfer belongs to a verified payment.
            return
        async with self._database.autocommit() as connection:
            known = await find_observed(connection, self._chain.chain_id, finding.tx_hash, finding.log_index)
            if known is None:
                raise RemedyRefused("the transfer is not on the chain as it was recorded: nothing was done")
            scope, observed = known
            deposit = await find_deposit_of_transfer(
                connection, self._chain.chain_id, observed.tx_hash, observed.log_index
            )
        receipt, confirmations = await find_receipt(
            self._chain, finding.tx_hash, observed.block_number, coin=scope.is_of_coin
        )
        for log in transfers_in(receipt, scope):
            if log.log_index == observed.log_index and is_alike(log, observed):
                if confirmations < self._min_confirmations:
                    raise ChainUnavailable(f"{confirmations} of {self._min_confirmations} confirmations")
                await self._preconditions.require(
                    scope.token,
                    at_block=observed.block_number,
                    decimals=TOKEN_DECIMALS if deposit is None else deposit.decimals,
                )
                return
        raise RemedyRefused("the chain nodes do not have the transfer as it was recorded: nothing was done")

    @activity.defn
    async def mint_bonus_of_credit(self, taken: TakenRemedy) -> MintedBonus:
        """The system tenant's bonus on an operator's credit."""
        async with self._database.transaction() as connection:
            entry = await remedies.mint_bonus_of_credit(connection, taken.finding_id)
        if entry is not None and entry.posted:
            BONUS_CREDITS.inc(entry.amount_credits)
        return MintedBonus(amount_credits=entry.amount_credits if entry else 0)
