"""What the gateway of a local system needs: a file of upstreams, and a service key of an account that has credits."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import yaml

from composition import tenant_database
from db.accounts.wallets import Payer, find_funds
from db.billing.keys import KeyState, create_key, find_key
from db.engine import TenantDatabase
from db.payments.attempts import page_attempts
from devstack.chain import LocalChain, wallet_address
from devstack.errors import PartFailedError
from devstack.processes import wait_until, write_atomically
from devstack.upstream.prices import PRICES
from domain.billing.keys import KeyTerms, make_key
from domain.money import credits_for_usd_cents, format_usd
from domain.payments.attempt import FINAL_STATUSES, AttemptStatus
from settings import Settings
from starter.payments import PaymentsClient

UPSTREAM_NAME: Final = "local"
KEY_LABEL: Final = "Local development"
BOUGHT_USD_CENTS: Final = 10_000
LOW_USD_CENTS: Final = 100
"""An account with less is bought for again at the next start."""
GAS_WEI: Final = 10**18
CREDITED_SECONDS_MAX: Final = 60.0


def upstreams_document(upstream_url: str) -> dict[str, Any]:
    """UPSTREAMS_FILE of the local upstream, with its own prices; models that it does not list cost what the price book
    says.
    """
    return {
        "upstreams": [{"name": UPSTREAM_NAME, "base_url": f"{upstream_url}/v1", "models": ["*"]}],
        "prices": {
            model: {
                "input_per_million_usd": str(price.input),
                "output_per_million_usd": str(price.output),
                "cached_input_per_million_usd": str(price.cached),
            }
            for model, price in PRICES.items()
        },
    }


def write_upstreams_file(path: Path, upstream_url: str) -> None:
    """Write the file again: the upstream's port may be another one since the last start."""
    text = "# Written by settle up at each start. For upstreams of your own: UPSTREAMS_FILE.\n"
    write_atomically(path, (text + yaml.safe_dump(upstreams_document(upstream_url), sort_keys=False)).encode())


@dataclass(frozen=True, slots=True)
class StoredKey:
    """The service key of a local system, and the wallet whose account it is of. Both are secrets."""

    key: str
    key_id: UUID
    wallet_key: str

    def __repr__(self) -> str:
        return f"StoredKey({self.key_id})"


def read_stored_key(path: Path) -> StoredKey | None:
    """The key of an earlier start."""
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    return StoredKey(kept["key"], UUID(kept["keyId"]), kept["walletKey"])


def _write(path: Path, key: StoredKey) -> None:
    document = {"key": key.key, "keyId": str(key.key_id), "walletKey": key.wallet_key}
    write_atomically(path, json.dumps(document, indent=1).encode())


class LocalServiceKey:
    """Makes the key once, and sees at each start that it is in force and its account has credits.

    The credits are bought like any: by an intent, a transfer on the local chain, and its settlement.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        chain: LocalChain,
        client: PaymentsClient,
        on_progress: Callable[[str], None],
    ) -> None:
        self._path = path
        self._settings = settings
        self._chain = chain
        self._client = client
        self._on_progress = on_progress

    async def prepare(self, *, waits: bool) -> StoredKey:
        """The key. With `waits` its account has credits when this returns: without a worker it never would.

        Raises `PartFailedError` where the purchase is not credited in time, and `SettleError`.
        """
        stored = read_stored_key(self._path)
        wallet_key = stored.wallet_key if stored else "0x" + secrets.token_hex(32)
        payer = await self._client.provision(wallet_address(wallet_key))
        async with tenant_database(self._settings) as database:
            if stored is None or not await _is_in_force(database, payer, stored.key_id):
                stored = await _make_key(database, payer, wallet_key)
                _write(self._path, stored)
            bought = await self._buy_if_low(database, payer, wallet_key)
        if bought is not None and waits:
            await self._until_credited(payer, bought)
        return stored

    async def _buy_if_low(self, database: TenantDatabase, payer: Payer, wallet_key: str) -> UUID | None:
        """Buy credits where the account has few, and none are on their way; the attempt that is waited for."""
        async with database.transaction(payer.user_id) as connection:
            funds = await find_funds(connection, payer.billing_account_id)
            waiting = await page_attempts(
                connection, payer.billing_account_id, limit=1, statuses=[AttemptStatus.PENDING_UNVERIFIED]
            )
        if waiting:
            return waiting[0].id
        if funds is not None and funds.balance_credits >= credits_for_usd_cents(LOW_USD_CENTS):
            return None
        self._on_progress(f"buying credits for {format_usd(BOUGHT_USD_CENTS)} USD, for the account of the service key")
        intent = await self._client.create_intent(payer, BOUGHT_USD_CENTS)
        await self._chain.set_balance(payer.wallet_address, GAS_WEI)
        await self._chain.mint(payer.wallet_address, intent.amount_raw)
        await self._chain.mine()
        tx_hash = await self._chain.pay(wallet_key, intent.to, intent.amount_raw)
        await self._chain.mine(self._settings.min_confirmations)
        await self._client.submit(payer.user_id, intent.attempt_id, tx_hash)
        return intent.attempt_id

    async def _until_credited(self, payer: Payer, attempt_id: UUID) -> None:
        async def has_ended() -> bool:
            view = await self._client.status(payer.user_id, attempt_id)
            if view.status in FINAL_STATUSES and view.status is not AttemptStatus.CREDITED:
                raise PartFailedError(
                    f"the purchase for the service key's account ended {view.status.value}, expected CREDITED; "
                    f"see: settle attempt show {attempt_id}"
                )
            return view.status is AttemptStatus.CREDITED

        await wait_until(
            has_ended, timeout_seconds=CREDITED_SECONDS_MAX, what=f"credit of the service key's purchase {attempt_id}"
        )


async def _is_in_force(database: TenantDatabase, payer: Payer, key_id: UUID) -> bool:
    async with database.transaction(payer.user_id) as connection:
        found = await find_key(connection, key_id)
    return found is not None and found.state is KeyState.ACTIVE


async def _make_key(database: TenantDatabase, payer: Payer, wallet_key: str) -> StoredKey:
    key_id, secret = uuid4(), make_key()
    async with database.transaction(payer.user_id) as connection:
        made = await create_key(connection, key_id, payer.billing_account_id, secret, KeyTerms(label=KEY_LABEL))
    assert made, "the account is the payer's own"
    return StoredKey(secret.key, key_id, wallet_key)
