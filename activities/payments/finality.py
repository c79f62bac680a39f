"""Tracking of a credited payment until it is final or reorged out, and reversal of its credits."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.messages import AttemptOutcomeMessage, AttemptRef, CreditedPayment, PaymentToReverse, ReversedBonus
from activities.payments.outcome import report
from activities.payments.signatures import FinalitySignatures
from chain.reader import ChainReader
from db.engine import ServiceDatabase
from db.payments import finality
from domain.errors import BookkeepingError, ChainUnavailable
from domain.payments import finality as evaluation
from domain.payments.attempt import AttemptStatus
from domain.payments.finality import FinalityLevel, FinalityPolicy, NotFinal, ReorgedOut, next_poll_delay
from domain.payments.verification import SettledTransfer
from services.payments import lifecycle as payments
from telemetry.metrics.worker import FINALITY_POLLS, REVERSED_BONUS_CREDITS

NOT_FINAL_YET: Final = "NOT_FINAL_YET"
"""Type of the failure by which the activity is retried; its message is shown to operators."""

POLL_TIMEOUT: Final = timedelta(seconds=25)
"""Time limit for all endpoints together; below the activity's start-to-close timeout, so that it is the activity that
answers.
"""


class FinalityActivities(FinalitySignatures):
    """Each activity is at most one transaction and safe to run twice, concurrently, and late."""

    def __init__(
        self, chain: ChainReader, database: ServiceDatabase, *, policy: FinalityPolicy, block_time: timedelta
    ) -> None:
        self._chain = chain
        self._database = database
        self._policy = policy
        self._block_time = block_time

    @activity.defn
    async def await_finality(self, payment: CreditedPayment) -> evaluation.Final | ReorgedOut:
        """One poll of the chain: the payment is final (which is recorded), reorged out, or a failure requests a retry.

        Waiting by retry leaves nothing in the workflow's history, however long it takes.
        """
        credited = await self._find(payment)
        if credited.final_level is not None:
            return evaluation.Final(transfer=credited.transfer, level=credited.final_level)
        if credited.status is AttemptStatus.REVERSED:
            level = self._policy.level_for(credited.amount_usd_cents)
            return ReorgedOut(transfer=credited.transfer, level=level, message="it was already reversed")
        found = await self._poll(payment, credited)
        FINALITY_POLLS.labels(outcome=found.kind).inc()
        if isinstance(found, NotFinal):
            if found.missing_since_head != self._missing_since():
                # Also clears the record: a payment that came back and is missing again has the whole time again.
                activity.heartbeat(found.missing_since_head, self._chain.chain_id)
            raise ApplicationError(
                found.message,
                found,
                type=NOT_FINAL_YET,
                category=ApplicationErrorCategory.BENIGN,
                next_retry_delay=next_poll_delay(found, block_time=self._block_time),
            )
        if isinstance(found, evaluation.Final):
            async with self._database.transaction() as connection:
                await finality.insert_finality(
                    connection, payment.attempt_id, found.transfer, found.level, outcome="final"
                )
        return found

    @activity.defn
    async def reverse_payment(self, payment: PaymentToReverse) -> AttemptOutcomeMessage:
        """Reverse a reorged-out payment's credits and mark its attempt REVERSED: one transaction."""
        async with self._database.transaction() as connection:
            ending = await payments.reverse_payment(connection, payment.attempt_id, payment.gone)
        return report(ending)

    @activity.defn
    async def reverse_bonus(self, payment: AttemptRef) -> ReversedBonus:
        """Reverse the system tenant's bonus."""
        async with self._database.transaction() as connection:
            entry = await payments.reverse_bonus(connection, payment.attempt_id)
        if entry is not None and entry.posted:
            REVERSED_BONUS_CREDITS.inc(-entry.amount_credits)
        return ReversedBonus(amount_credits=-entry.amount_credits if entry else 0)

    async def _find(self, payment: CreditedPayment) -> finality.Credited:
        async with self._database.autocommit() as connection:
            credited = await finality.find_credited(connection, payment.attempt_id)
        if credited is None:
            raise BookkeepingError(f"attempt {payment.attempt_id} has no settled transfer to track")
        return credited

    async def _poll(
        self, payment: CreditedPayment, credited: finality.Credited
    ) -> evaluation.Final | NotFinal | ReorgedOut:
        level = self._policy.level_for(credited.amount_usd_cents)
        try:
            async with asyncio.timeout(POLL_TIMEOUT.total_seconds()):
                return await self._ask(payment, credited.transfer, level)
        except ChainUnavailable as error:
            return NotFinal(message=error.message, missing_since_head=self._missing_since())
        except TimeoutError:
            return NotFinal(message="the chain nodes did not answer in time", missing_since_head=self._missing_since())

    async def _ask(
        self, payment: CreditedPayment, settled: SettledTransfer, level: FinalityLevel
    ) -> evaluation.Final | NotFinal | ReorgedOut:
        coin = payment.terms.scope.is_of_coin
        view = await self._chain.payments.look(settled.tx_hash, block_hint=settled.block_number, coin=coin)
        if view.canonical is None or view.receipt is None:
            return await self._evaluate_absence(payment, settled, level, view.head_number)
        found = evaluation.locate(payment.terms, settled, view.receipt)
        if found is None or view.canonical.block_hash != view.receipt.block_hash:
            return await self._evaluate_absence(payment, settled, level, view.head_number)
        try:
            final_up_to = await self._final_up_to(level, view.head_number)
        except ChainUnavailable as error:
            return NotFinal(message=f"in block {found.block_number}; {error.message}")
        verdict = evaluation.evaluate_presence(found, level, final_up_to=final_up_to)
        if isinstance(verdict, NotFinal):
            return verdict
        # No poll follows, and one node may lie: all the others are asked.
        agreed = await self._chain.payments.cross_check(settled.tx_hash, view, coin=coin)
        found = evaluation.locate(payment.terms, settled, agreed.receipt) if agreed.receipt else None
        if found is None:
            return NotFinal(message="the nodes disagree on the payment's block")
        return evaluation.evaluate_presence(
            found, level, final_up_to=await self._final_up_to(level, agreed.head_number)
        )

    async def _evaluate_absence(
        self, payment: CreditedPayment, settled: SettledTransfer, level: FinalityLevel, head: int
    ) -> NotFinal | ReorgedOut:
        inclusion_reports = await self._chain.payments.inclusion_reports(
            settled.tx_hash, settled.block_number, coin=payment.terms.scope.is_of_coin
        )
        return evaluation.evaluate_absence(
            payment.terms,
            settled,
            inclusion_reports,
            level,
            endpoints=len(self._chain.labels),
            final_up_to=await self._final_up_to(level, head),
            missing_since_head=self._missing_since(),
        )

    def _missing_since(self) -> int | None:
        """The chain's height when the payment was first missing, from the previous poll.

        A height of another chain is ignored; records up to schema revision 0003 do not name their chain.
        """
        details = activity.info().heartbeat_details
        if not details or not isinstance(details[0], int):
            return None
        return details[0] if len(details) < 2 or details[1] == self._chain.chain_id else None

    async def _final_up_to(self, level: FinalityLevel, head: int) -> int:
        if level is FinalityLevel.CONFIRMATIONS:
            return head - self._policy.confirmations + 1
        return await self._chain.heads.tagged_number(level.value)
