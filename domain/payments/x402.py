"""x402, version 2: the headers by which a program pays for a request. Scheme `exact` on EVM chains only.

Each is JSON in Base64: `PAYMENT-REQUIRED` with a 402, `PAYMENT-SIGNATURE` with the repeated request, and
`PAYMENT-RESPONSE` with its answer. What comes from outside is bounded before it is decoded, and compared with what the
attempt says.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from domain.errors import AuthorizationRefused, InvalidInput
from domain.identifiers import Address, parse_attempt_id, same_address
from domain.payments.authorizations import (
    SIGNATURE_BYTES_MAX,
    SIGNING_TIME,
    Authorization,
    Nonce,
    Price,
    SignedAuthorization,
    TokenDomain,
    Uint256,
)

VERSION: Final = 2
SCHEME: Final = "exact"
PAYMENT_REQUIRED: Final = "PAYMENT-REQUIRED"
PAYMENT_SIGNATURE: Final = "PAYMENT-SIGNATURE"
PAYMENT_RESPONSE: Final = "PAYMENT-RESPONSE"

HEADER_CHARS_MAX: Final = 32 * 2**10
"""Of a `PAYMENT-SIGNATURE`: a smart wallet's longest signature in hex, in JSON, in Base64."""

TOP_UP_PATH: Final = "/api/v1/payments/topups"
"""Where credits are bought with a signature: the gateway's refusals name it."""

ATTEMPT_PARAMETER: Final = "attemptId"
"""In the resource's address."""

SETTLEMENT_PENDING: Final = "settlement_pending"
"""`errorReason` of an answer that is not final yet."""

_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,77}", re.ASCII)
_HEX: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*", re.ASCII)


def network_of(chain_id: int) -> str:
    """A chain's name by CAIP-2."""
    return f"eip155:{chain_id}"


def _decimal(value: object) -> int:
    if not isinstance(value, str) or _DECIMAL.fullmatch(value) is None:
        raise ValueError("expected a whole number as text, without leading zeros")
    return int(value)


def _signature(value: object) -> bytes:
    if not isinstance(value, str) or len(value) > 2 + 2 * SIGNATURE_BYTES_MAX or _HEX.fullmatch(value) is None:
        raise ValueError(f"expected 0x and at most {SIGNATURE_BYTES_MAX} bytes in hex")
    return bytes.fromhex(value[2:])


Decimal256 = Annotated[Uint256, BeforeValidator(_decimal)]
SignatureText = Annotated[bytes, BeforeValidator(_signature)]


class _Wire(BaseModel):
    """A JSON object of the protocol; members that are not needed are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class _Message(_Wire):
    payer: Address = Field(alias="from")
    to: Address
    value: Decimal256
    valid_after: Decimal256
    valid_before: Decimal256
    nonce: Nonce


class _Payload(_Wire):
    signature: SignatureText
    authorization: _Message


class _Accepted(_Wire):
    scheme: str = Field(max_length=40)
    network: str = Field(max_length=80)
    asset: Address
    amount: Decimal256
    pay_to: Address


class _Resource(_Wire):
    url: str = Field(max_length=2_000)


class _PaymentPayload(_Wire):
    x402_version: Literal[2] = Field(alias="x402Version")
    payload: _Payload
    accepted: _Accepted
    resource: _Resource | None = None


class PaymentClaim(_Wire):
    """A `PAYMENT-SIGNATURE` as it was read: what was signed, and the attempt that its resource names."""

    signed: SignedAuthorization
    attempt_id: UUID | None
    network: str
    asset: str
    scheme: str
    amount_raw: int
    pay_to: str


def read_payment_signature(header: str) -> PaymentClaim:
    """Decode the header. Raises `InvalidInput` naming it for anything that is not a payment of version 2."""
    if len(header) > HEADER_CHARS_MAX:
        raise InvalidInput(PAYMENT_SIGNATURE, f"expected at most {HEADER_CHARS_MAX} characters, got {len(header)}")
    try:
        content = base64.b64decode(header, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(PAYMENT_SIGNATURE, "expected JSON in Base64") from None
    try:
        found = _PaymentPayload.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the JSON"
        raise InvalidInput(PAYMENT_SIGNATURE, f"{where}: {first['msg']}") from None
    message, accepted = found.payload.authorization, found.accepted
    return PaymentClaim(
        signed=SignedAuthorization(
            authorization=Authorization(
                payer=message.payer,
                to=message.to,
                value_raw=message.value,
                valid_after=message.valid_after,
                valid_before=message.valid_before,
                nonce=message.nonce,
            ),
            signature=found.payload.signature,
        ),
        attempt_id=None if found.resource is None else attempt_of_resource(found.resource.url),
        network=accepted.network,
        asset=accepted.asset,
        scheme=accepted.scheme,
        amount_raw=accepted.amount,
        pay_to=accepted.pay_to,
    )


def check_accepted(claim: PaymentClaim, price: Price) -> None:
    """Check that the client accepted what the attempt offers: our token on our chain, never another's.

    Raises `AuthorizationRefused`.
    """
    if claim.scheme != SCHEME:
        raise AuthorizationRefused(f"scheme {claim.scheme!r} is not offered: expected {SCHEME!r}")
    network = network_of(price.chain_id)
    if claim.network != network:
        raise AuthorizationRefused(f"network {claim.network!r} is not offered: expected {network!r}")
    if not same_address(claim.asset, price.token):
        raise AuthorizationRefused(f"asset {claim.asset} is not offered: expected {price.token}")
    if claim.amount_raw != price.amount_raw or not same_address(claim.pay_to, price.pay_to):
        raise AuthorizationRefused(
            f"{claim.amount_raw} raw units to {claim.pay_to} are not offered: "
            f"expected {price.amount_raw} to {price.pay_to}"
        )


def resource_url(base_url: str, attempt_id: UUID) -> str:
    """The address of an attempt's resource: that of the route, with the attempt in it."""
    return f"{base_url}?{ATTEMPT_PARAMETER}={attempt_id}"


def attempt_of_resource(url: str) -> UUID | None:
    """The attempt that a resource's address names; None where it names none. Raises `InvalidInput`."""
    try:
        named = parse_qs(urlsplit(url).query).get(ATTEMPT_PARAMETER, [])
    except ValueError:
        return None
    return parse_attempt_id(named[0]) if len(named) == 1 else None


def payment_required(
    price: Price, domain: TokenDomain, *, resource: str, description: str, error: str | None = None
) -> dict[str, Any]:
    """The content of `PAYMENT-REQUIRED`."""
    return {
        "x402Version": VERSION,
        "error": error or f"{PAYMENT_SIGNATURE} header is required",
        "resource": {"url": resource, "description": description, "mimeType": "application/json"},
        "accepts": [
            {
                "scheme": SCHEME,
                "network": network_of(price.chain_id),
                "amount": str(price.amount_raw),
                "asset": price.token,
                "payTo": price.pay_to,
                "maxTimeoutSeconds": int(SIGNING_TIME.total_seconds()),
                "extra": {"name": domain.name, "version": domain.version, "assetTransferMethod": "eip3009"},
            }
        ],
    }


def payment_response(
    *, chain_id: int, payer: str, amount_raw: int, tx_hash: str | None, is_settled: bool, error: str | None = None
) -> dict[str, Any]:
    """The content of `PAYMENT-RESPONSE`: settled, refused with an `error`, or not final yet."""
    content: dict[str, Any] = {
        "success": is_settled,
        "transaction": tx_hash or "",
        "network": network_of(chain_id),
        "payer": payer,
        "amount": str(amount_raw),
    }
    if not is_settled:
        content["errorReason"] = error or SETTLEMENT_PENDING
    return content


def as_header(content: dict[str, Any]) -> str:
    """JSON in Base64, as the headers carry it."""
    return base64.b64encode(json.dumps(content, separators=(",", ":")).encode()).decode()
