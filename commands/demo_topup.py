"""The part of `settle demo` in which a program pays without a person: a call is refused, topped up by a signature over
x402, and answered. Its wallet holds test USDC and pays no gas.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID, uuid4

import aiohttp
from eth_account import Account

from commands.demo_report import Payment
from commands.demo_spending import MODEL, SpentCall
from commands.local_system import LocalSystem
from commands.output import grouped
from composition import tenant_database
from db.accounts.wallets import Payer
from db.billing.keys import create_key
from devstack.chain import Wallet
from devstack.processes import wait_until
from domain.billing.keys import KeyTerms, make_key
from domain.errors import DemoFailed
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.ledger.entries import Reason
from domain.money import credits_for_usd_cents, revenue_share_credits
from domain.payments import x402
from domain.payments.attempt import AttemptStatus
from starter.models import Intent
from starter.payments import PaymentsClient

TITLE: Final = "a top-up by signature"
CENTS: Final = 100
WAIT_SECONDS_MAX: Final = 60.0


class TopUpScene:
    """A program with a service key, whose account has no credits, and with a wallet."""

    def __init__(self, system: LocalSystem, client: PaymentsClient, say: Callable[[str], None]) -> None:
        self._system = system
        self._client = client
        self._say = say

    async def play(self, wallet: Wallet) -> tuple[Payment, SpentCall]:
        """The payment, and the call that it pays for."""
        payer = await self._client.provision(wallet.address)
        secret = make_key()
        async with (
            tenant_database(self._system.settings) as database,
            database.transaction(payer.user_id) as connection,
        ):
            await create_key(connection, uuid4(), payer.billing_account_id, secret, KeyTerms(label="Machine"))
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {secret.key}"}) as http:
            status, _, refused = await self._call(http)
            error = refused.get("error", {})
            if status != HTTPStatus.PAYMENT_REQUIRED or not error.get("top_up_url"):
                raise DemoFailed(f"a call without credits got {status} {error}, expected 402 with a top_up_url")
            self._say(f"{TITLE}: 402 {error['code']}, credits are sold at {error['top_up_url']}")
            payment = await self._pay(http, str(error["top_up_url"]), payer, wallet)
            status, request_id, answer = await self._call(http)
            charged = await self._charged(http, request_id)
        self._say(f"{TITLE}: the call is answered, {grouped(charged)} credits")
        return payment, SpentCall(
            "the call that was refused before the top-up",
            request_id,
            "402 first, 200 after the signature",
            f"{status}, {grouped(charged)} credits",
            held=status == HTTPStatus.OK and bool(answer.get("choices")) and charged > 0,
            charged_credits=charged,
            account_id=payer.billing_account_id,
        )

    async def _pay(self, http: aiohttp.ClientSession, url: str, payer: Payer, wallet: Wallet) -> Payment:
        """Sign what the 402 asks for, post it to the same address, and wait until it is credited."""
        async with http.post(url, json={"amountUsdCents": CENTS}) as response:
            offer = await response.json()
            if response.status != HTTPStatus.PAYMENT_REQUIRED:
                raise DemoFailed(f"the top-up's address answered {response.status} {offer}, expected 402")
            signed, signer = await self._sign(url, dict(response.headers), offer, wallet)
        async with http.post(url, json={"amountUsdCents": CENTS}, headers=signed) as response:
            answer = await response.json()
            if response.status not in {HTTPStatus.OK, HTTPStatus.ACCEPTED}:
                raise DemoFailed(f"a signed top-up was answered {response.status} {answer}, expected 200 or 202")
            settled = json.loads(base64.b64decode(response.headers[x402.PAYMENT_RESPONSE]))
        attempt_id = UUID(answer["attemptId"])
        self._say(
            f"{TITLE}: signed by {wallet.address[:8]}… with {signer}, {response.status}, "
            f"{settled.get('errorReason', 'settled')}"
        )

        async def is_credited() -> bool:
            view = await self._client.status(payer.user_id, attempt_id)
            return view.status is AttemptStatus.CREDITED

        await wait_until(is_credited, timeout_seconds=WAIT_SECONDS_MAX, what=f"credit of {TITLE}")
        self._say(f"{TITLE}: CREDITED")
        return self._payment(payer, offer)

    async def _sign(
        self, url: str, headers: dict[str, str], offer: dict[str, Any], wallet: Wallet
    ) -> tuple[dict[str, str], str]:
        """The headers that pay for the offer, and what has made them: x402's client where it is installed.

        It is no dependency of the product, and a wheel's demo signs the same by itself.
        """
        try:
            from x402 import x402Client
            from x402.http import x402HTTPClient
            from x402.mechanisms.evm.exact import ExactEvmScheme
        except ImportError:
            return {x402.PAYMENT_SIGNATURE: self._signed_offer(offer, wallet)}, "a wallet"
        client = x402Client()
        scheme = ExactEvmScheme(Account.from_key(wallet.private_key))
        client.register(f"eip155:{self._system.settings.chain_id}", scheme)
        client.set_spend_controls(False)  # it knows the USDC of public chains only
        made, _ = await x402HTTPClient(client).handle_402_response(headers, json.dumps(offer).encode(), url)
        return made, "the x402 package's client"

    def _signed_offer(self, offer: dict[str, Any], wallet: Wallet) -> str:
        message = offer["authorization"]["message"]
        signed = self._system.stack.chain.sign_payment(
            wallet.private_key,
            message["to"],
            int(message["value"]),
            valid_before=int(message["validBefore"]),
            nonce=bytes.fromhex(message["nonce"][2:]),
        )
        authorization = {**message, "from": wallet.address}
        return x402.as_header(
            {
                "x402Version": x402.VERSION,
                "payload": {"signature": "0x" + signed.signature.hex(), "authorization": authorization},
                "accepted": offer["accepts"][0],
                "resource": offer["resource"],
            }
        )

    def _payment(self, payer: Payer, offer: dict[str, Any]) -> Payment:
        settings = self._system.settings
        [accepted] = offer["accepts"]
        intent = Intent(
            attempt_id=UUID(offer["attemptId"]),
            chain_id=settings.chain_id,
            token=accepted["asset"],
            to=accepted["payTo"],
            amount_raw=int(accepted["amount"]),
            amount_usd_cents=CENTS,
            purpose="self",
            expires_at=offer["expiresAt"],
        )
        credits = credits_for_usd_cents(CENTS)
        bonus = revenue_share_credits(credits, settings.system_tenant_revenue_share)
        rows = {(payer.billing_account_id, str(Reason.CREDITS_PURCHASE)): credits}
        if bonus:
            rows[SYSTEM_TENANT_ACCOUNT_ID, str(Reason.PLATFORM_REVENUE_SHARE)] = bonus
        return Payment(TITLE, payer, intent, AttemptStatus.CREDITED, expected_rows=rows)

    async def _call(self, http: aiohttp.ClientSession) -> tuple[int, str, dict[str, Any]]:
        url = f"{self._system.variables['GATEWAY_URL']}/v1/chat/completions"
        body = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "Say something"}]}
        async with http.post(url, json=body) as response:
            return response.status, response.headers["X-Request-Id"], await response.json()

    async def _charged(self, http: aiohttp.ClientSession, request_id: str) -> int:
        async with http.get(f"{self._system.variables['GATEWAY_URL']}/v1/usage/{request_id}") as response:
            return int((await response.json()).get("chargedCredits") or 0)
