"""Charges and an account's own deposit addresses: made, and read with what has come to them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol
from uuid import UUID, uuid4

from chain.derivation.addresses import derive_address
from chain.derivation.create2 import salt_of_account, salt_of_charge
from db.accounts import idempotency
from db.clock import read_clock
from db.deposits import addresses, charges, methods
from db.deposits.addresses import NewAddress
from db.deposits.charges import NewCharge, OwnerOfCharge
from db.deposits.prices import find_source, insert_quote
from db.engine import TenantConnection, TenantDatabase
from db.transfers.scopes import find_watched_head
from domain.deposits.charges import Charge, check_address_budget, check_metadata, quote, require_enabled
from domain.deposits.methods import MethodKind, PaymentMethod, Scheme
from domain.deposits.prices import PriceSource, Quote
from domain.deposits.worth import is_dollar_token
from domain.errors import (
    BookkeepingError,
    ChargeNotFound,
    IdempotencyKeyReused,
    MethodNotFound,
    RequestOfKeyDiffers,
    Unavailable,
)
from services.deposits.pricing import Prices
from services.deposits.views import ChargeView, DepositAddressView, DepositView, MethodList, MethodView

METHOD_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,100}", re.ASCII)
"""As far as the table has them: what does not match is the name of none."""


class _PriceNeeded(Exception):
    """The charge is in a token that is no dollar: its price is read first."""

    def __init__(self, source: PriceSource) -> None:
        super().__init__(source.method_id)
        self.source = source


class Owner(Protocol):
    """Whose charges and addresses these are: who is signed in, a program with a key, the owner of a charge."""

    @property
    def user_id(self) -> str:
        """In whose scope the rows are."""

    @property
    def billing_account_id(self) -> str:
        """The account that is credited."""


@dataclass(frozen=True, slots=True)
class ChargePolicy:
    """Terms of new charges. `treasury` is where the contracts at create2 addresses of chain `chain_id` send to."""

    chain_id: int
    treasury: str
    price_lifetime: timedelta
    min_usd_cents: int
    max_usd_cents: int
    min_confirmations: int
    origin: str
    """Scheme, host and port of the pages that payers see."""
    takes_coin: bool = False
    """Whether an EVM chain's own coin is read by this installation."""


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """An open method, and the account's own address for it; None before it was asked for."""

    method: PaymentMethod
    address: str | None


@dataclass(frozen=True, slots=True)
class AccountDeposits:
    """What an account can be paid at, and what has been seen there and is no payment yet."""

    addresses: list[OwnAddress]
    waiting: list[DepositView]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a charge is asked for."""

    billing_account_id: str
    method_id: str
    amount_usd_cents: int
    details: dict[str, Any]

    def as_hash(self) -> bytes:
        """The same for the same request."""
        asked = ("charge", self.method_id, self.amount_usd_cents, self.details)
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()


class Charges:
    """Uses a database of role settle_app, and owns nothing. Rows are read in their owner's scope."""

    def __init__(
        self, database: TenantDatabase, policy: ChargePolicy, *, prices: Prices, read_head: Callable[[], Awaitable[int]]
    ) -> None:
        """`read_head` gives the height of the policy's chain; `prices` those of tokens that are no dollars."""
        self._prices = prices
        self._database = database
        self._policy = policy
        self._read_head = read_head

    async def list_methods(self, user_id: str) -> MethodList:
        """The payment methods that take new charges."""
        async with self._database.transaction(user_id) as connection:
            found = await methods.list_methods(connection)
        needed = self._policy.min_confirmations
        return MethodList(
            methods=[MethodView.of(method, min_confirmations=needed) for method in found if self._is_open(method)]
        )

    def _is_open(self, method: PaymentMethod) -> bool:
        """Whether a method takes new charges here."""
        return method.enabled and self._is_served(method) and self._is_read(method)

    def _is_read(self, method: PaymentMethod) -> bool:
        return method.kind is not MethodKind.NATIVE or self._policy.takes_coin

    def _is_served(self, method: PaymentMethod) -> bool:
        """The treasury of another chain is not known here; an address of a key is the same wherever it is derived."""
        return self._is_own_chain(method) or method.scheme is Scheme.XPUB

    async def deposit_address(self, owner: Owner, method_id: str) -> DepositAddressView:
        """The account's own address for a method, made at the first call and the same at each later one.

        Raises `MethodNotFound`, `MethodDisabled` and `AddressBudgetExhausted`.
        """
        account, treasury = owner.billing_account_id, self._policy.treasury
        async with self._database.transaction(owner.user_id) as connection:
            method = await self._require_method(connection, method_id)
            self._require_open(method)
            address = await addresses.find_own_address(connection, account, method, treasury)
            if address is None:
                await addresses.lock_own_addresses(connection, account)
                address = await addresses.find_own_address(connection, account, method, treasury)
            if address is None:
                made = await self._make_address(connection, method, account, charge_id=None)
                address = made.address
        return DepositAddressView(
            address=address,
            method=method.id,
            chain_id=method.chain_id,
            token=method.address,
            symbol=method.token,
        )

    async def deposits(self, owner: Owner, *, limit: int) -> AccountDeposits:
        """The open methods with the account's own addresses for them, and what has been seen and is no payment yet."""
        policy, account = self._policy, owner.billing_account_id
        async with self._database.transaction(owner.user_id) as connection:
            found = await methods.list_methods(connection)
            own = await addresses.list_own_addresses(connection, account, policy.treasury)
            waiting = await charges.list_waiting_deposits(connection, account, limit=limit)
        heads = {chain_id: await self._head_of(chain_id) for chain_id in {one.chain_id for one in waiting}}
        return AccountDeposits(
            addresses=[OwnAddress(method, own.get(method.id)) for method in found if self._is_open(method)],
            waiting=[
                DepositView.of(
                    one.deposit,
                    is_below_minimum=one.is_below_minimum,
                    head=heads[one.chain_id],
                    needed=one.confirmations_needed or policy.min_confirmations,
                )
                for one in waiting
            ],
        )

    async def create_charge(
        self,
        owner: Owner,
        method_id: str,
        amount_usd_cents: int,
        metadata: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> ChargeView:
        """A new charge with an address of its own: index, address and charge are written together, or not at all.

        A repeated `idempotency_key` makes no other charge and takes no index: it answers with the first one as it
        stands now. Raises `MethodNotFound`, `MethodDisabled`, `InvalidInput`, `PriceUnavailable`,
        `AddressBudgetExhausted` and `RequestOfKeyDiffers`.
        """
        asked = _Asked(owner.billing_account_id, method_id, amount_usd_cents, check_metadata(metadata))
        try:
            charge = await self._make_or_find(owner, asked, idempotency_key, None)
        except _PriceNeeded as needed:
            # Not within a transaction: the nodes may take seconds. What was written so far is rolled back.
            price = await self._prices.now(needed.source)
            charge = await self._make_or_find(owner, asked, idempotency_key, price)
        return await self._view(charge)

    async def _make_or_find(
        self, owner: Owner, asked: _Asked, idempotency_key: str | None, price: Quote | None
    ) -> Charge:
        """The charge that was asked for, new or made before, in one transaction."""
        new_id = uuid4()
        async with self._database.transaction(owner.user_id) as connection:
            made = await _made_before(connection, idempotency_key, asked, new_id)
            if made is None:
                await self._make_charge(connection, new_id, asked, price)
            else:
                await addresses.note_interest(connection, made)
            return await _require_charge(connection, made or new_id, owner.billing_account_id)

    async def _make_charge(
        self, connection: TenantConnection, charge_id: UUID, asked: _Asked, price: Quote | None
    ) -> None:
        policy = self._policy
        method = await self._require_method(connection, asked.method_id)
        self._require_open(method)
        if price is None and not is_dollar_token(method.token):
            source = await find_source(connection, method.id)
            if source is not None:
                raise _PriceNeeded(source)
        cents, raw = quote(
            method,
            asked.amount_usd_cents,
            minimum=policy.min_usd_cents,
            maximum=policy.max_usd_cents,
            price=None if price is None else price.price,
        )
        begins_at = await read_clock(connection.connection)
        if price is not None:
            await insert_quote(connection, price)
            # The block's time, where it is the earlier one: the worker, too, measures the lock from there.
            begins_at = min(begins_at, price.block_time)
        expires_at = begins_at + policy.price_lifetime
        # Last: an index locks its key until the end of the transaction.
        address = await self._make_address(connection, method, asked.billing_account_id, charge_id=charge_id)
        new = NewCharge(
            id=charge_id,
            billing_account_id=asked.billing_account_id,
            method_id=method.id,
            amount_usd_cents=cents,
            quoted_amount_raw=raw,
            address_id=address.id,
            price_expires_at=expires_at,
            details=asked.details,
            quote_id=None if price is None else price.id,
        )
        await charges.insert_charge(connection, new)

    async def _make_address(
        self, connection: TenantConnection, method: PaymentMethod, billing_account_id: str, *, charge_id: UUID | None
    ) -> NewAddress:
        """Derive and write the address of a charge, or the account's own. Raises `AddressBudgetExhausted`."""
        ring = index = salt = treasury = None
        if method.ring_id is None:
            salt = salt_of_account(billing_account_id) if charge_id is None else salt_of_charge(charge_id)
            treasury = self._policy.treasury
        else:
            index = await addresses.allocate_index(connection, method.ring_id)
            # As it is with the index: the key's row is locked now.
            ring = await methods.find_ring(connection, method.ring_id)
            if ring is None:
                raise BookkeepingError(f"ring {method.ring_id} of payment method {method.id} does not exist")
            if method.kind is MethodKind.UTXO:
                unpaid = await addresses.count_unpaid_at_the_end(connection, ring.id)
                check_address_budget(method, gap_limit=ring.gap_limit, unpaid_at_the_end=unpaid)
        new = NewAddress(
            id=uuid4(),
            chain_id=method.chain_id,
            address=derive_address(method.scheme, treasury=treasury, salt=salt, ring=ring, index=index),
            scheme=method.scheme,
            ring_id=method.ring_id,
            index=index,
            salt=salt,
            treasury=treasury,
            billing_account_id=billing_account_id,
            charge_id=charge_id,
        )
        await addresses.insert_address(connection, new)
        return new

    async def charge(self, owner: Owner, charge_id: UUID) -> ChargeView:
        """A charge of the account. Raises `ChargeNotFound`, also for another account's."""
        async with self._database.transaction(owner.user_id) as connection:
            found = await _require_charge(connection, charge_id, owner.billing_account_id)
        return await self._view(found)

    async def owner_of(self, charge_id: UUID) -> OwnerOfCharge:
        """Whose a charge is, for its page. Raises `ChargeNotFound`."""
        async with self._database.unscoped_statement() as connection:
            found = await charges.find_owner(connection, charge_id)
        if found is None:
            raise ChargeNotFound(charge_id)
        return found

    async def opened(self, owner: Owner, charge_id: UUID) -> tuple[Charge, ChargeView]:
        """A charge whose page has been opened. Raises `ChargeNotFound`."""
        async with self._database.transaction(owner.user_id) as connection:
            await addresses.note_interest(connection, charge_id)
            found = await _require_charge(connection, charge_id, owner.billing_account_id)
        return found, await self._view(found)

    async def _require_method(self, connection: TenantConnection, method_id: str) -> PaymentMethod:
        found = await methods.find_method(connection, method_id) if METHOD_ID.fullmatch(method_id) else None
        if found is None or not self._is_served(found):
            raise MethodNotFound(method_id)
        return found

    def _require_open(self, method: PaymentMethod) -> None:
        """Raises `MethodDisabled`, also for a coin that no worker reads."""
        require_enabled(method if self._is_read(method) else method.model_copy(update={"enabled": False}))

    async def _view(self, charge: Charge) -> ChargeView:
        policy = self._policy
        return ChargeView.of(
            charge,
            pay_url=f"{policy.origin}/pay/{charge.id}",
            head=await self._head_of(charge.method.chain_id) if charge.deposits else None,
            min_confirmations=policy.min_confirmations,
        )

    def _is_own_chain(self, method: PaymentMethod) -> bool:
        return method.chain_id == self._policy.chain_id

    async def _head_of(self, chain_id: int) -> int | None:
        """The height of the policy's chain, where its nodes answer; of another one as its worker has last seen it."""
        if chain_id != self._policy.chain_id:
            async with self._database.unscoped_statement() as connection:
                return await find_watched_head(connection, chain_id)
        try:
            return await self._read_head()
        except Unavailable:
            return None


async def _require_charge(connection: TenantConnection, charge_id: UUID, billing_account_id: str) -> Charge:
    found = await charges.find_charge(connection, charge_id, billing_account_id)
    if found is None:
        raise ChargeNotFound(charge_id)
    return found


async def _made_before(
    connection: TenantConnection, idempotency_key: str | None, asked: _Asked, charge_id: UUID
) -> UUID | None:
    """The charge that the same request has made before; otherwise `charge_id` is noted as its answer.

    Raises `RequestOfKeyDiffers`.
    """
    if idempotency_key is None:
        return None
    account, answer = asked.billing_account_id, {"chargeId": str(charge_id)}
    try:
        kept = await idempotency.keep_answer(connection, account, idempotency_key, asked.as_hash(), answer)
    except IdempotencyKeyReused as error:
        raise RequestOfKeyDiffers(idempotency_key) from error
    return UUID(kept["chargeId"]) if kept else None
