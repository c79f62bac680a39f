"""Search attributes of a payment's runs."""

from __future__ import annotations

from temporalio.common import SearchAttributePair, TypedSearchAttributes

from domain.payments.attempt import AttemptStatus, PaymentAttempt
from workflows.naming import BILLING_ACCOUNT_ID, CHAIN_ID, PAYMENT_PURPOSE, PAYMENT_STATUS, TX_HASH


def search_attributes(attempt: PaymentAttempt, tx_hash: str, status: AttemptStatus) -> TypedSearchAttributes:
    """By which operators find the runs of a payment."""
    return TypedSearchAttributes(
        [
            SearchAttributePair(PAYMENT_PURPOSE, attempt.purpose.value),
            SearchAttributePair(PAYMENT_STATUS, status.value),
            SearchAttributePair(BILLING_ACCOUNT_ID, attempt.billing_account_id),
            SearchAttributePair(CHAIN_ID, attempt.chain_id),
            SearchAttributePair(TX_HASH, tx_hash),
        ]
    )
