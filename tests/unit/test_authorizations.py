"""Payment by signature: what an authorization must say, and the headers by which a program shows it."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from eth_abi.abi import encode as abi_encode
from eth_account import Account
from eth_account.messages import encode_typed_data

from chain.authorizations import Fate, attempt_nonce, authorization_digest, domain_separator
from domain.errors import AuthorizationRefused, InvalidInput
from domain.payments import x402
from domain.payments.authorizations import (
    DEPLOYMENT_BYTES_MAX,
    HALF_CURVE_ORDER,
    SIGNATURE_BYTES_MAX,
    UNDEPLOYED_WALLET_MAGIC,
    WALLET_SIGNATURE_BYTES_MAX,
    Authorization,
    Price,
    TokenDomain,
    WalletDeployment,
    check_agrees,
    check_window,
    nonce_preimage,
    normal_signature,
    read_deployment,
    typed_data,
)

CHAIN_ID = 8453
TOKEN, TREASURY, OTHER = "0x" + "aa" * 20, "0x" + "bb" * 20, "0x" + "cc" * 20
ATTEMPT = UUID("00112233-4455-6677-8899-aabbccddeeff")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECONDS = int(NOW.timestamp())
DOMAIN = TokenDomain(name="USD Coin", version="2")
PRICE = Price(chain_id=CHAIN_ID, token=TOKEN, pay_to=TREASURY, amount_raw=1_000_000)
WALLET = Account.from_key("0x" + "42" * 32)


def authorization(**changes: Any) -> Authorization:
    """One that pays exactly, changed in what a case is about."""
    values = {
        "payer": WALLET.address,
        "to": TREASURY,
        "value_raw": 1_000_000,
        "valid_after": 0,
        "valid_before": SECONDS + 600,
        "nonce": "0x" + "11" * 32,
    }
    return Authorization(**{**values, **changes})


# The nonce -----------------------------------------------------------------------------------------------------------


def test_an_attempts_nonce_is_hashed_from_these_bytes() -> None:
    text, chain, attempt = b"settle:attempt:1", (8453).to_bytes(32, "big"), ATTEMPT.bytes
    assert nonce_preimage(CHAIN_ID, ATTEMPT) == text + chain + attempt
    assert attempt_nonce(CHAIN_ID, ATTEMPT) == "0x66a28d58aae34d280f92b8ce2b572bff72e0512955d15a732a2acfed43b77b75"


@pytest.mark.parametrize(("chain_id", "attempt"), [(1, ATTEMPT), (CHAIN_ID, UUID(int=ATTEMPT.int + 1))])
def test_another_chain_or_attempt_has_another_nonce(chain_id: int, attempt: UUID) -> None:
    assert attempt_nonce(chain_id, attempt) != attempt_nonce(CHAIN_ID, ATTEMPT)


def test_what_a_wallet_signs_is_what_is_verified() -> None:
    nonce = attempt_nonce(CHAIN_ID, ATTEMPT)
    message = typed_data(PRICE, DOMAIN, nonce=nonce, valid_before=SECONDS + 600)
    message["message"]["from"] = WALLET.address
    signed = encode_typed_data(full_message=message)
    signature = WALLET.sign_message(signed)
    separator = domain_separator(DOMAIN, chain_id=CHAIN_ID, token=TOKEN)
    digest = authorization_digest(authorization(nonce=nonce), separator)
    assert bytes(signature.message_hash) == digest


# What it must say ----------------------------------------------------------------------------------------------------


def test_one_that_pays_exactly_agrees() -> None:
    check_agrees(authorization(to=TREASURY.upper().replace("0X", "0x")), PRICE)


@pytest.mark.parametrize("changes", [{"to": OTHER}, {"value_raw": 999_999}, {"value_raw": 1_000_001}, {"value_raw": 0}])
def test_another_recipient_or_another_amount_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(AuthorizationRefused):
        check_agrees(authorization(**changes), PRICE)


@pytest.mark.parametrize(
    ("changes", "is_accepted"),
    [
        ({"valid_after": SECONDS - 1}, True),
        ({"valid_after": SECONDS}, False),
        ({"valid_before": SECONDS + 6}, False),
        ({"valid_before": SECONDS + 7}, True),
        ({"valid_before": SECONDS + 3600}, True),
        ({"valid_before": SECONDS + 3601}, False),
        ({"valid_before": 2**256 - 1}, False),
        ({"valid_before": 0}, False),
    ],
)
def test_it_is_valid_for_three_blocks_to_an_hour(changes: dict[str, Any], is_accepted: bool) -> None:
    def check() -> None:
        check_window(authorization(**changes), block_time=NOW, seconds_per_block=2.0)

    if is_accepted:
        check()
    else:
        with pytest.raises(AuthorizationRefused):
            check()


# Signatures ----------------------------------------------------------------------------------------------------------

R = b"\x01" * 32
LOW = HALF_CURVE_ORDER.to_bytes(32, "big")
HIGH = (HALF_CURVE_ORDER + 1).to_bytes(32, "big")


@pytest.mark.parametrize(("v", "as_sent"), [(0, 27), (1, 28), (27, 27), (28, 28)])
def test_v_is_written_as_the_token_takes_it(v: int, as_sent: int) -> None:
    assert normal_signature(R + LOW + bytes([v]), is_contract=False) == R + LOW + bytes([as_sent])


@pytest.mark.parametrize(
    "signature",
    [
        pytest.param(R + HIGH + b"\x1b", id="a high s"),
        pytest.param(R + LOW + b"\x02", id="another v"),
        pytest.param(R + LOW, id="64 bytes"),
        pytest.param(R + LOW + b"\x1b\x00", id="66 bytes"),
        pytest.param(b"", id="none"),
        pytest.param(b"\x01" * 100 + UNDEPLOYED_WALLET_MAGIC, id="of a wallet that is not deployed"),
        pytest.param(b"\x01" * (SIGNATURE_BYTES_MAX + 1), id="too long"),
    ],
)
def test_what_the_token_refuses_of_a_key_is_refused_before(signature: bytes) -> None:
    with pytest.raises(AuthorizationRefused):
        normal_signature(signature, is_contract=False)


def test_a_contracts_signature_is_its_own_matter_but_for_size_and_deployment() -> None:
    assert normal_signature(b"", is_contract=True) == b""
    assert normal_signature(R + HIGH + b"\x07", is_contract=True) == R + HIGH + b"\x07"
    for refused in (b"\x01" * (SIGNATURE_BYTES_MAX + 1), UNDEPLOYED_WALLET_MAGIC):
        with pytest.raises(AuthorizationRefused):
            normal_signature(refused, is_contract=True)


@pytest.mark.parametrize(
    ("calldata", "inner", "is_accepted"),
    [
        (DEPLOYMENT_BYTES_MAX, 65, True),
        (DEPLOYMENT_BYTES_MAX + 1, 65, False),
        (0, WALLET_SIGNATURE_BYTES_MAX, True),
        (0, WALLET_SIGNATURE_BYTES_MAX + 1, False),
        (0, 0, True),
    ],
)
def test_what_deploys_a_wallet_is_bounded(calldata: int, inner: int, is_accepted: bool) -> None:
    parts = [OTHER, b"\x07" * calldata, b"\x08" * inner]
    wrapped = abi_encode(["address", "bytes", "bytes"], parts) + UNDEPLOYED_WALLET_MAGIC
    if not is_accepted:
        with pytest.raises(AuthorizationRefused):
            normal_signature(wrapped, is_contract=True)
        return
    assert read_deployment(wrapped) == WalletDeployment(
        factory=OTHER, calldata=b"\x07" * calldata, signature=b"\x08" * inner
    )
    assert normal_signature(wrapped, is_contract=False) == wrapped
    assert normal_signature(wrapped, is_contract=True) == b"\x08" * inner


WHOLE = abi_encode(["address", "bytes", "bytes"], [OTHER, b"\x07" * 40, b"\x08" * 65])


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(WHOLE[:100], id="without its parts"),
        pytest.param(WHOLE[:-64], id="cut off"),
        pytest.param(b"\x01" + WHOLE[1:], id="a factory that is no address"),
        pytest.param(WHOLE[:32] + (2**200).to_bytes(32, "big") + WHOLE[64:], id="a call beyond the end"),
        pytest.param(WHOLE[:64] + (2**200).to_bytes(32, "big") + WHOLE[96:], id="a signature beyond the end"),
        pytest.param(WHOLE[:32] + bytes(32) + WHOLE[64:], id="a call in the head"),
        pytest.param(
            abi_encode(["address", "bytes", "bytes"], [OTHER, b"", WHOLE + UNDEPLOYED_WALLET_MAGIC]),
            id="deployed twice",
        ),
    ],
)
def test_what_deploys_a_wallet_is_whole_and_said_once(content: bytes) -> None:
    with pytest.raises(AuthorizationRefused):
        read_deployment(content + UNDEPLOYED_WALLET_MAGIC)


@pytest.mark.parametrize(
    ("changes", "is_unpayable"),
    [
        pytest.param({}, True, id="unused, and a finalized block is later"),
        pytest.param({"finalized_time": NOW}, False, id="the finalized block is of that second"),
        pytest.param({"is_used": True}, False, id="used, by what is not known"),
        pytest.param({"is_used": True, "used_by": "0x" + "77" * 32}, False, id="used"),
        pytest.param({"is_used": True, "is_cancelled": True}, True, id="cancelled for good"),
        pytest.param(
            {"is_used": True, "is_cancelled": True, "finalized_time": NOW}, True, id="cancelled before its end"
        ),
        pytest.param({"is_used": True, "used_by": "0x" + "77" * 32, "is_cancelled": True}, False, id="contradictory"),
    ],
)
def test_it_can_never_pay_when_that_is_proved(changes: dict[str, Any], is_unpayable: bool) -> None:
    values: dict[str, Any] = {"is_used": False, "finalized_number": 7, "finalized_time": NOW + timedelta(seconds=1)}
    assert Fate(**{**values, **changes}).is_unpayable(SECONDS) is is_unpayable


# x402 ----------------------------------------------------------------------------------------------------------------


def payload(**changes: Any) -> dict[str, Any]:
    """What a client of version 2 sends, changed at the given places, dots between names."""
    content: dict[str, Any] = {
        "x402Version": 2,
        "payload": {
            "signature": "0x" + "22" * 65,
            "authorization": {
                "from": WALLET.address,
                "to": TREASURY,
                "value": "1000000",
                "validAfter": "0",
                "validBefore": str(SECONDS + 600),
                "nonce": "0x" + "11" * 32,
            },
        },
        "accepted": {
            "scheme": "exact",
            "network": "eip155:8453",
            "asset": TOKEN,
            "amount": "1000000",
            "payTo": TREASURY,
            "maxTimeoutSeconds": 600,
            "extra": {"name": "USD Coin", "version": "2"},
        },
        "resource": {"url": x402.resource_url("https://pay.example/api/v1/payments/topups", ATTEMPT)},
    }
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[name] = value
    return content


def test_a_payment_is_read_with_the_attempt_that_its_resource_names() -> None:
    claim = x402.read_payment_signature(x402.as_header(payload()))
    assert claim.attempt_id == ATTEMPT
    assert claim.signed.authorization == authorization()
    assert claim.signed.signature == b"\x22" * 65
    x402.check_accepted(claim, PRICE)


@pytest.mark.parametrize(
    "changes",
    [
        {"x402Version": 1},
        {"payload.signature": "22"},
        {"payload.signature": "0x" + "22" * (SIGNATURE_BYTES_MAX + 1)},
        {"payload.authorization.from": "0x12"},
        {"payload.authorization.value": 1_000_000},
        {"payload.authorization.value": "01"},
        {"payload.authorization.value": "-1"},
        {"payload.authorization.value": "1e6"},
        {"payload.authorization.value": str(2**256)},
        {"payload.authorization.nonce": "0x12"},
        {"accepted.amount": 1.5},
        {"resource.url": "https://pay.example/topups?attemptId=7"},
        {"resource.url": "https://pay.example/" + "x" * 3_000},
        {"payload": None},
    ],
)
def test_what_is_no_payment_of_version_two_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        x402.read_payment_signature(x402.as_header(payload(**changes)))


@pytest.mark.parametrize(
    "header", ["", "{}", "%%%", base64.b64encode(b"[" * 10_000).decode(), "A" * (x402.HEADER_CHARS_MAX + 4)]
)
def test_what_is_no_json_in_base64_is_refused(header: str) -> None:
    with pytest.raises(InvalidInput):
        x402.read_payment_signature(header)


@pytest.mark.parametrize(
    "changes",
    [
        {"accepted.scheme": "upto"},
        {"accepted.network": "eip155:1"},
        {"accepted.asset": OTHER},
        {"accepted.amount": "1"},
        {"accepted.payTo": OTHER},
    ],
)
def test_what_is_not_offered_is_refused(changes: dict[str, Any]) -> None:
    claim = x402.read_payment_signature(x402.as_header(payload(**changes)))
    with pytest.raises(AuthorizationRefused):
        x402.check_accepted(claim, PRICE)


@pytest.mark.parametrize(
    "url", ["https://pay.example/topups", "not a url", f"?attemptId={ATTEMPT}&attemptId={ATTEMPT}"]
)
def test_a_resource_that_names_no_single_attempt_names_none(url: str) -> None:
    assert x402.attempt_of_resource(url) is None


def test_the_clients_own_package_reads_what_is_asked_for() -> None:
    from x402.http.utils import decode_payment_required_header, decode_payment_response_header

    offer = x402.payment_required(PRICE, DOMAIN, resource="https://pay.example/x", description="credits")
    read = decode_payment_required_header(x402.as_header(offer))
    assert read.model_dump(by_alias=True, exclude_none=True) == offer
    assert int(offer["accepts"][0]["maxTimeoutSeconds"]) >= 60
    pending = x402.payment_response(chain_id=8453, payer=OTHER, amount_raw=1, tx_hash=None, is_settled=False)
    answer = decode_payment_response_header(x402.as_header(pending))
    assert (answer.success, answer.error_reason, answer.transaction) == (False, "settlement_pending", "")


def test_no_error_repeats_the_signature() -> None:
    with pytest.raises(InvalidInput) as caught:
        x402.read_payment_signature(x402.as_header(payload(**{"payload.authorization.value": "x"})))
    assert "2222" not in caught.value.message
    assert "2222" not in json.dumps(repr(x402.read_payment_signature(x402.as_header(payload()))))
