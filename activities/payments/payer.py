"""Steps on the payer's own rows: role settle_settlement, inside the payer's tenant scope."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from temporalio import activity

from activities.messages import AttemptOutcomeMessage, PaymentToCredit, PaymentToRefuse, RecordedSubmission, Submission
from activities.payments.outcome import report
from activities.payments.signatures import PayerSignatures
from db.engine import SettlementDatabase
from domain.payments.attempt import AttemptStatus
from services.payments import lifecycle as payments
from telemetry.metrics.payments import SUBMISSIONS


class PayerActivities(PayerSignatures):
    """Each activity is one transaction and safe to run twice, concurrently, and late."""

    def __init__(
        self, database: SettlementDatabase, *, verification_timeout: timedelta, revenue_share: Decimal
    ) -> None:
        self._database = database
        self._revenue_share = revenue_share
        self._verification_timeout = verification_timeout

    @activity.defn
    async def record_submission(self, submission: Submission) -> RecordedSubmission:
        """Record the submitted hash, and until when the chain is polled for it.

        For runs that a starter up to schema revision 0006 has started; the present one records the hash itself.
        """
        async with self._database.transaction(submission.owner_user_id) as connection:
            ending = await payments.submit(
                connection,
                submission.attempt_id,
                submission.tx_hash,
                submitted_at=submission.submitted_at,
                mined_at=submission.mined_at,
            )
        attempt = ending.attempt
        if ending.changed and attempt.status is AttemptStatus.PENDING_UNVERIFIED:
            SUBMISSIONS.labels(attempt.purpose.value).inc()
        return RecordedSubmission.of(attempt, self._verification_timeout)

    @activity.defn
    async def credit_buyer(self, payment: PaymentToCredit) -> AttemptOutcomeMessage:
        """The buyer's credit: ledger entry, balance, CREDITED, event and settled transfer in one transaction."""
        async with self._database.statements(payment.owner_user_id) as connection:
            ending = await payments.credit_buyer(
                connection, payment.attempt_id, payment.transfer, revenue_share=self._revenue_share
            )
        return report(ending, confirmed_at=payment.confirmed_at)

    @activity.defn
    async def end_without_credits(self, payment: PaymentToRefuse) -> AttemptOutcomeMessage:
        """End the attempt REJECTED or FAILED, with its code."""
        async with self._database.transaction(payment.owner_user_id) as connection:
            ending = await payments.refuse(connection, payment.attempt_id, payment.refused)
        return report(ending)
