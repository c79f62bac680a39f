"""Bodies about deposit addresses and charges; most answers are in `services/deposits/`."""

from __future__ import annotations

from typing import Any, Self
from uuid import UUID

from pydantic import Field

from api.models import SigningOffer, StrictRequestModel
from domain.deposits.charges import METADATA_BYTES_MAX, METADATA_DEPTH_MAX, ChargeStatus, SignedPayment
from services.answers import ResponseModel
from services.deposits.views import EXAMPLE_METHOD, ChargeView, SignedPaymentView

METHOD_CHARS_MAX = 200


class DepositAddressRequest(StrictRequestModel):
    """What to pay with."""

    method: str = Field(max_length=METHOD_CHARS_MAX, description="`id` of a payment method", examples=[EXAMPLE_METHOD])


class ChargeOffer(SigningOffer):
    """What to sign for a charge."""

    charge_id: UUID


class ChargePayment(ResponseModel):
    """How a charge stands, and what a payer has signed for it: nothing of the account that it belongs to."""

    charge_id: UUID
    status: ChargeStatus
    amount_raw: int = Field(description="what was asked")
    received_raw: int = Field(description="seen so far, confirmed or not")
    missing_raw: int
    payment: SignedPaymentView | None = Field(
        default=None, description="null where nothing was signed, or it is seen already"
    )

    @classmethod
    def of(cls, view: ChargeView, payment: SignedPayment | None) -> Self:
        """The part of a charge that anyone with its id may see."""
        return cls(
            charge_id=view.charge_id,
            status=view.status,
            amount_raw=view.amount_raw,
            received_raw=view.received_raw,
            missing_raw=view.missing_raw,
            payment=SignedPaymentView.of(payment) if payment else None,
        )


class ChargeRequest(StrictRequestModel):
    """What to pay, and with what. The account is the caller's."""

    method: str = Field(max_length=METHOD_CHARS_MAX, description="`id` of a payment method", examples=[EXAMPLE_METHOD])
    amount_usd_cents: int = Field(
        gt=0, le=2**53 - 1, description="within the service's configured bounds", examples=[2500]
    )
    metadata: dict[str, Any] | None = Field(
        default=None,
        description=f"stored as given, for the caller: at most {METADATA_BYTES_MAX} bytes of JSON in at most "
        f"{METADATA_DEPTH_MAX} levels",
        examples=[{"orderId": "7f3a"}],
    )
