"""One credited payment that may have been reorged out: final in another block, or reversed."""

from __future__ import annotations

from temporalio import workflow

from workflows.finality import Reversed, log_fields, settle_finality

with workflow.unsafe.imports_passed_through():
    from activities.messages import ReversalResult, TrackedPayment
    from domain.payments.attempt import AttemptStatus
    from workflows.naming import PAYMENT_STATUS, REVERSE_PAYMENT

WAITS = (
    "another block is where the payment was credited: waits until it is final in a later one, or reorged out for good; "
    "the pending activity says what is missing"
)


@workflow.defn(name=REVERSE_PAYMENT)
class ReversePayment:
    """Reverses a payment's credits, bonus included, once it is certain that the chain does not have it any more.

    It finds what is done already, in whichever run.
    """

    @workflow.init
    def __init__(self, payment: TrackedPayment) -> None:
        self._payment = payment

    @workflow.run
    async def run(self, payment: TrackedPayment) -> ReversalResult:
        """From the doubt to the outcome."""
        self._set_status(WAITS)
        outcome = await settle_finality(payment, self._set_status)
        if isinstance(outcome, Reversed):
            workflow.upsert_search_attributes([PAYMENT_STATUS.value_set(outcome.status.value)])
            self._set_status(f"{outcome.status.value}: {outcome.message}")
            return ReversalResult(attempt_id=payment.attempt_id, status=outcome.status)
        block_number = outcome.transfer.block_number
        self._set_status(f"not reversed: the payment is in block {block_number}, which is {outcome.level.words}")
        return ReversalResult(attempt_id=payment.attempt_id, status=AttemptStatus.CREDITED, final_block=block_number)

    def _set_status(self, words: str) -> None:
        """Status text at the top of the workflow's page."""
        workflow.set_current_details(words)
        workflow.logger.info(words, extra=log_fields(self._payment))
