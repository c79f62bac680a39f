"""Declarations of a payment's steps: its own rows, the system tenant's account, the chain, and finality."""

from __future__ import annotations

from abc import abstractmethod

from temporalio import activity

from activities.messages import (
    AttemptOutcomeMessage,
    AttemptRef,
    BonusToMint,
    CreditedPayment,
    MintedBonus,
    PaymentToCredit,
    PaymentToRefuse,
    PaymentToReverse,
    PaymentToVerify,
    RecordedSubmission,
    ReversedBonus,
    Submission,
)
from activities.signatures import Signatures
from domain.payments.finality import Final, ReorgedOut
from domain.payments.verification import Refused, Verified


class PayerSignatures(Signatures):
    """Implemented by `activities.payments.payer`."""

    @activity.defn(name="record_submission")
    @abstractmethod
    async def record_submission(self, submission: Submission) -> RecordedSubmission:
        """Record the submitted hash, and until when the chain is polled for it."""

    @activity.defn(name="credit_buyer")
    @abstractmethod
    async def credit_buyer(self, payment: PaymentToCredit) -> AttemptOutcomeMessage:
        """The buyer's credit: ledger entry, balance, CREDITED, event and settled transfer in one transaction."""

    @activity.defn(name="end_without_credits")
    @abstractmethod
    async def end_without_credits(self, payment: PaymentToRefuse) -> AttemptOutcomeMessage:
        """End the attempt REJECTED or FAILED, with its code."""


class SystemTenantSignatures(Signatures):
    """Implemented by `activities.payments.system_tenant`."""

    @activity.defn(name="mint_bonus")
    @abstractmethod
    async def mint_bonus(self, bonus: BonusToMint) -> MintedBonus:
        """The system tenant's share of a credited purchase, minted on top."""

    @activity.defn(name="credit_donation")
    @abstractmethod
    async def credit_donation(self, payment: PaymentToCredit) -> AttemptOutcomeMessage:
        """A donation: the system tenant gets the full amount, and the donor's attempt is CREDITED."""


class VerificationSignatures(Signatures):
    """Implemented by `activities.payments.verification`."""

    @activity.defn(name="await_confirmation")
    @abstractmethod
    async def await_confirmation(self, payment: PaymentToVerify) -> Verified | Refused:
        """One poll of the chain: a final result, or a failure whose next retry is timed by what is missing.

        Waiting by retry leaves nothing in the workflow's history, however long it takes.
        """


class FinalitySignatures(Signatures):
    """Implemented by `activities.payments.finality`."""

    @activity.defn(name="await_finality")
    @abstractmethod
    async def await_finality(self, payment: CreditedPayment) -> Final | ReorgedOut:
        """One poll of the chain: the payment is final (which is recorded), reorged out, or a failure requests a retry.

        Waiting by retry leaves nothing in the workflow's history, however long it takes.
        """

    @activity.defn(name="reverse_payment")
    @abstractmethod
    async def reverse_payment(self, payment: PaymentToReverse) -> AttemptOutcomeMessage:
        """Reverse a reorged-out payment's credits and mark its attempt REVERSED: one transaction."""

    @activity.defn(name="reverse_bonus")
    @abstractmethod
    async def reverse_bonus(self, payment: AttemptRef) -> ReversedBonus:
        """Reverse the system tenant's bonus."""
