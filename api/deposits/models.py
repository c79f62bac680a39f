"""Bodies about deposit addresses and charges; the answers are in `services/deposits/`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from api.models import StrictRequestModel
from domain.deposits.charges import METADATA_BYTES_MAX, METADATA_DEPTH_MAX
from services.deposits.views import EXAMPLE_METHOD

METHOD_CHARS_MAX = 200


class DepositAddressRequest(StrictRequestModel):
    """What to pay with."""

    method: str = Field(max_length=METHOD_CHARS_MAX, description="`id` of a payment method", examples=[EXAMPLE_METHOD])


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
