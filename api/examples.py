"""Examples of the OpenAPI document: the messages of one payment of one wallet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

from api.billing.models import CallPage, KeyPage
from api.deposits.models import ChargeOffer, ChargePayment
from api.models import (
    EXAMPLE_ADDRESS,
    EXAMPLE_HASH,
    AttemptPage,
    ChallengeAnswer,
    CreditsSummary,
    Health,
    LedgerEntry,
    SessionAnswer,
    TopUpOffer,
)
from db.billing.keys import KeyState
from domain.accounts.sign_in import new_challenge
from domain.billing.reports import UsageBy
from domain.deposits.charges import ChargeStatus, DepositState, SignedState
from domain.deposits.methods import MethodKind, Scheme
from domain.money import credits_for_raw, credits_for_usd_cents, raw_for_usd_cents
from domain.payments.attempt import AttemptStatus, ClientStatus, ErrorCode, Purpose
from domain.payments.authorizations import Price, TokenDomain, typed_data
from domain.payments.finality import FinalityLevel, FinalityState
from domain.payments.x402 import payment_required, resource_url
from services.billing.keys import KeyView, NewKey
from services.billing.reports import CallView, ReceiptLine, UsageReport, UsageReportRow, UsageTotals
from services.deposits.views import (
    EXAMPLE_METHOD,
    ChargeView,
    DepositAddressView,
    DepositView,
    MethodList,
    MethodView,
    SignedPaymentView,
)
from starter.models import AttemptView, Intent

ATTEMPT_ID: Final = UUID("5f3c1e5e-8a4e-4c0f-9d2b-6a1f0c7e9b10")
_ACCOUNT_ID: Final = "0b9d6f1c-2f5e-4b57-8a55-3f1f1f1d2c44"
_CHAIN_ID: Final = 8453
_USDC: Final = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
_USD_CENTS: Final = 2500
_HELD_CREDITS: Final = 41_000
_NOON: Final = datetime(2026, 1, 5, 12, tzinfo=UTC)

_CHALLENGE: Final = new_challenge(
    nonce="k3Jx8mQ2vTz7LpR4sWc9NbYd",
    address=EXAMPLE_ADDRESS,
    origin="https://pay.example.com",
    chain_id=_CHAIN_ID,
    platform="Cogni",
    issued_at=_NOON,
    lifetime=timedelta(minutes=5),
)
_SUBMITTED: Final = AttemptView(
    attempt_id=ATTEMPT_ID,
    status=AttemptStatus.PENDING_UNVERIFIED,
    client_status=ClientStatus.PENDING_VERIFICATION,
    chain_id=_CHAIN_ID,
    tx_hash=EXAMPLE_HASH,
    amount_usd_cents=_USD_CENTS,
    amount_credits=credits_for_usd_cents(_USD_CENTS),
    purpose=Purpose.SELF,
    created_at=_NOON + timedelta(minutes=1),
)
_WAITING: Final = _SUBMITTED.model_copy(
    update={
        "confirmations": 3,
        "confirmations_needed": 5,
        "waiting_for": "3 of 5 confirmations",
        "next_look_at": _NOON + timedelta(minutes=1, seconds=34),
    }
)
_CREDITED: Final = _SUBMITTED.model_copy(
    update={
        "status": AttemptStatus.CREDITED,
        "client_status": ClientStatus.CONFIRMED,
        "finality_state": FinalityState.PENDING,
        "finality_level": FinalityLevel.FINALIZED,
    }
)
_REJECTED: Final = _SUBMITTED.model_copy(
    update={
        "status": AttemptStatus.REJECTED,
        "client_status": ClientStatus.FAILED,
        "error_code": ErrorCode.INSUFFICIENT_AMOUNT,
    }
)
_ALL_WELL: Final = {
    "database": "ok",
    "schema": "ok",
    "system_tenant": "ok",
    "temporal": "ok",
    "chain": "ok",
    "token": "ok",
}


def _wire(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True)


CHALLENGE_REQUEST: Final = {"address": EXAMPLE_ADDRESS}
CHALLENGE: Final = _wire(ChallengeAnswer(**_CHALLENGE.model_dump()))
LOGIN_REQUEST: Final = {"nonce": _CHALLENGE.nonce, "signature": "0x" + "7b" * 64 + "1c"}
SESSION: Final = _wire(
    SessionAnswer(
        user_id="c1a7d0de-52a1-4f0b-9a87-1f64a7b0e3aa",
        address=EXAMPLE_ADDRESS,
        billing_account_id=_ACCOUNT_ID,
        chain_id=_CHAIN_ID,
        expires_at=_NOON + timedelta(days=1),
    )
)
THIS_SESSION: Final[dict[str, Any]] = {}
ALL_SESSIONS: Final = {"everywhere": True}

PURCHASE: Final = {"amountUsdCents": _USD_CENTS}
DONATION: Final = {"amountUsdCents": _USD_CENTS, "purpose": "system"}
INTENT: Final = _wire(
    Intent(
        attempt_id=ATTEMPT_ID,
        chain_id=_CHAIN_ID,
        token=_USDC,
        to="0xa0Ee7A142d267C1f36714E4a8F75612F20a79720",
        amount_raw=raw_for_usd_cents(_USD_CENTS),
        amount_usd_cents=_USD_CENTS,
        purpose=Purpose.SELF,
        expires_at=_NOON + timedelta(minutes=31),
    )
)
SUBMIT_REQUEST: Final = {"txHash": EXAMPLE_HASH}
SUBMITTED: Final = _wire(_SUBMITTED)
WAITING: Final = _wire(_WAITING)
_PRICE: Final = Price(chain_id=_CHAIN_ID, token=_USDC, pay_to=EXAMPLE_ADDRESS, amount_raw=raw_for_usd_cents(_USD_CENTS))
_DOMAIN: Final = TokenDomain(name="USD Coin", version="2")
_REQUIRED: Final = payment_required(
    _PRICE,
    _DOMAIN,
    resource=resource_url("https://pay.example.com/api/v1/payments/topups", ATTEMPT_ID),
    description=f"Credits for {_USD_CENTS} US cents",
)
TOP_UP_OFFER: Final = _wire(
    TopUpOffer(
        attempt_id=ATTEMPT_ID,
        x402_version=_REQUIRED["x402Version"],
        error=_REQUIRED["error"],
        resource=_REQUIRED["resource"],
        accepts=_REQUIRED["accepts"],
        authorization=typed_data(
            _PRICE, _DOMAIN, nonce=EXAMPLE_HASH, valid_before=int((_NOON + timedelta(minutes=10)).timestamp())
        ),
        expires_at=_NOON + timedelta(minutes=30),
    )
)
CREDITED: Final = _wire(_CREDITED)
REJECTED: Final = _wire(_REJECTED)
TOP_UP_WAITING: Final = _wire(_WAITING.model_copy(update={"waiting_for": None, "next_look_at": None}))
BASE64_HEADER: Final = {"description": "JSON in Base64 (x402, version 2)", "schema": {"type": "string"}}
EVENT: Final = f"event: status\ndata: {_WAITING.model_dump_json(by_alias=True)}\n\n"
ATTEMPT_PAGE: Final = _wire(AttemptPage(attempts=[_CREDITED], next_cursor=ATTEMPT_ID))
SUMMARY: Final = _wire(
    CreditsSummary(
        billing_account_id=_ACCOUNT_ID,
        balance_credits=credits_for_usd_cents(_USD_CENTS),
        held_credits=_HELD_CREDITS,
        available_credits=credits_for_usd_cents(_USD_CENTS) - _HELD_CREDITS,
        ledger=[
            LedgerEntry(
                id=UUID("9a4f7c1d-6c1e-4f0a-bb0d-2d6c8f3e5a71"),
                amount=credits_for_usd_cents(_USD_CENTS),
                balance_after=credits_for_usd_cents(_USD_CENTS),
                reason="credits_purchase",
                reference=str(ATTEMPT_ID),
                tx_hash=EXAMPLE_HASH,
                created_at=_NOON + timedelta(minutes=1, seconds=40),
            )
        ],
    )
)
_KEY: Final[dict[str, Any]] = {
    "key_id": UUID("4c1d6c1e-0f0a-4b0d-9d6c-8f3e5a719a4f"),
    "billing_account_id": _ACCOUNT_ID,
    "label": "Agent in production",
    "hint": "sk-settle-...Xy4Q",
    "state": KeyState.ACTIVE,
    "created_at": _NOON,
    "limit_day_credits": 50_000_000,
    "spent_day_credits": 0,
    "spent_month_credits": 0,
    "models": ["gpt-4o-mini"],
    "may_attribute": False,
}
KEY_REQUEST: Final = {"label": "Agent in production", "limitDayCredits": 50_000_000, "models": ["gpt-4o-mini"]}
ROTATE_REQUEST: Final = {"overlapSeconds": 0}
NEW_KEY: Final = _wire(NewKey(**_KEY, key="sk-settle-dGhpcyBpcyBub3QgYSBrZXksIGl0IGlzIGFuIGV4YW1wbGU"))
KEY_PAGE: Final = _wire(
    KeyPage(keys=[KeyView(**_KEY | {"spent_day_credits": 5_100, "spent_month_credits": 5_100, "last_used_at": _NOON})])
)
_TOTALS: Final = {
    "calls": 1,
    "charged_credits": 5_100,
    "provider_cost_usd": "0.000255",
    "absorbed_cost_usd": "0",
    "input_tokens": 100,
    "cached_input_tokens": 0,
    "output_tokens": 400,
}
_REPORT: Final = UsageReport(
    billing_account_id=_ACCOUNT_ID,
    by=UsageBy.MODEL,
    first_day=_NOON.date() - timedelta(days=29),
    last_day=_NOON.date(),
    rows=[UsageReportRow.model_validate({**_TOTALS, "model": "gpt-4o-mini"})],
    total=UsageTotals.model_validate(_TOTALS),
)
USAGE_REPORT: Final = _REPORT.model_dump(mode="json", by_alias=True, exclude_none=True)
USAGE_CSV: Final = {"byModel": {"value": _REPORT.as_csv()}}
CALL_PAGE: Final = _wire(
    CallPage(
        calls=[
            CallView(
                receipt_id=UUID("d2c8f3e5-a719-4a4f-8c1d-6c1e0f0a4b0d"),
                request_id="req_8f3e5a719a4f",
                key_id=_KEY["key_id"],
                key_label=_KEY["label"],
                model="gpt-4o-mini",
                provider="openai",
                charged_credits=5_100,
                user_cost_usd="0.00051",
                provider_cost_usd="0.000255",
                absorbed_cost_usd="0",
                charge_reason="completed",
                source_system="gateway",
                input_tokens=100,
                cached_input_tokens=0,
                cache_write_tokens=0,
                output_tokens=400,
                reasoning_tokens=0,
                estimated=False,
                price_version="genai-prices 0.2.3",
                markup_factor="2",
                lines=[
                    ReceiptLine(unit="input_tokens", count=100, usd="0.15", per=1_000_000),
                    ReceiptLine(unit="output_tokens", count=400, usd="0.6", per=1_000_000),
                ],
                called_at=_NOON,
                created_at=_NOON + timedelta(seconds=3),
            )
        ]
    )
)
_PAID_IN: Final[dict[str, Any]] = {"chain_id": _CHAIN_ID, "token": _USDC, "symbol": "USDC"}
_DEPOSIT_ADDRESS: Final = "0xA324ccE40e7827b7B47299787F421E9569D6f125"
METHODS: Final = _wire(
    MethodList(
        methods=[
            MethodView(
                chain_id=_CHAIN_ID,
                token="USDC",  # noqa: S106 - a symbol
                id=EXAMPLE_METHOD,
                address=_USDC,
                decimals=6,
                kind=MethodKind.ERC20,
                scheme=Scheme.CREATE2,
                min_amount_raw=1_000_000,
                confirmations=5,
            )
        ]
    )
)
DEPOSIT_ADDRESS_REQUEST: Final = {"method": EXAMPLE_METHOD}
DEPOSIT_ADDRESS: Final = _wire(DepositAddressView(**_PAID_IN, address=_DEPOSIT_ADDRESS, method=EXAMPLE_METHOD))
CHARGE_REQUEST: Final = {"method": EXAMPLE_METHOD, "amountUsdCents": _USD_CENTS, "metadata": {"orderId": "7f3a"}}
_CHARGE: Final = ChargeView(
    **_PAID_IN,
    charge_id=UUID("e1f0c7e9-b105-4f3c-9e5e-8a4e4c0f9d2b"),
    status=ChargeStatus.NEW,
    method=EXAMPLE_METHOD,
    address=_DEPOSIT_ADDRESS,
    decimals=6,
    amount_usd_cents=_USD_CENTS,
    amount_raw=raw_for_usd_cents(_USD_CENTS),
    price_expires_at=_NOON + timedelta(minutes=30),
    pay_url="https://pay.example.com/pay/e1f0c7e9-b105-4f3c-9e5e-8a4e4c0f9d2b",
    received_raw=0,
    confirming_raw=0,
    credited_raw=0,
    missing_raw=raw_for_usd_cents(_USD_CENTS),
    credited_credits=0,
    metadata={"orderId": "7f3a"},
    created_at=_NOON,
    deposits=[],
)
_CHARGE_PRICE: Final = _PRICE.model_copy(update={"pay_to": _CHARGE.address})
_CHARGE_REQUIRED: Final = payment_required(
    _CHARGE_PRICE,
    _DOMAIN,
    resource=f"https://pay.example.com/api/v1/charges/{_CHARGE.charge_id}/pay",
    description="25 USDC to Example",
)
CHARGE_OFFER: Final = _wire(
    ChargeOffer(
        charge_id=_CHARGE.charge_id,
        x402_version=_CHARGE_REQUIRED["x402Version"],
        error=_CHARGE_REQUIRED["error"],
        resource=_CHARGE_REQUIRED["resource"],
        accepts=_CHARGE_REQUIRED["accepts"],
        authorization=typed_data(
            _CHARGE_PRICE, _DOMAIN, nonce=EXAMPLE_HASH, valid_before=int((_NOON + timedelta(minutes=10)).timestamp())
        ),
    )
)
_CHARGE_PAYMENT: Final = ChargePayment(
    charge_id=_CHARGE.charge_id,
    status=ChargeStatus.NEW,
    amount_raw=_CHARGE.amount_raw,
    received_raw=0,
    missing_raw=_CHARGE.amount_raw,
    payment=SignedPaymentView(
        payer=EXAMPLE_ADDRESS,
        nonce=EXAMPLE_HASH,
        amount_raw=_CHARGE.amount_raw,
        valid_before=_NOON + timedelta(minutes=10),
        state=SignedState.SENT,
        tx_hash=EXAMPLE_HASH,
    ),
)
CHARGE_PAYMENT_SENT: Final = _wire(_CHARGE_PAYMENT)
CHARGE_PAID: Final = _wire(
    _CHARGE_PAYMENT.model_copy(
        update={
            "status": ChargeStatus.PAID,
            "received_raw": _CHARGE.amount_raw,
            "missing_raw": 0,
            "payment": None,
        }
    )
)
_SHORT_RAW: Final = 24_000_000
NEW_CHARGE: Final = _wire(_CHARGE)
PARTIAL_CHARGE: Final = _wire(
    _CHARGE.model_copy(
        update={
            "status": ChargeStatus.PARTIAL,
            "received_raw": _SHORT_RAW,
            "credited_raw": _SHORT_RAW,
            "missing_raw": _CHARGE.amount_raw - _SHORT_RAW,
            "credited_credits": credits_for_raw(_SHORT_RAW),
            "deposits": [
                DepositView(
                    deposit_id=UUID("7e9b105f-3c1e-4e5e-8a4e-4c0f9d2b6a1f"),
                    tx_hash=EXAMPLE_HASH,
                    log_index=3,
                    from_address=EXAMPLE_ADDRESS,
                    method=EXAMPLE_METHOD,
                    symbol="USDC",
                    decimals=6,
                    value_raw=_SHORT_RAW,
                    credits=credits_for_raw(_SHORT_RAW),
                    state=DepositState.CREDITED,
                    confirmations=9,
                    confirmations_needed=5,
                    attempt_id=ATTEMPT_ID,
                    block_number=41_000_007,
                    seen_at=_NOON + timedelta(minutes=2),
                )
            ],
        }
    )
)
LIVE: Final = _wire(Health(status="ok"))
READY: Final = _wire(Health(status="ok", checks=_ALL_WELL))
NOT_READY: Final = _wire(Health(status="not ready", checks={**_ALL_WELL, "chain": "no answer within 8 s"}))
METRICS: Final = (
    "# HELP settle_logins_total Logins by outcome.\n"
    "# TYPE settle_logins_total counter\n"
    'settle_logins_total{outcome="signed_in"} 3.0\n'
)
