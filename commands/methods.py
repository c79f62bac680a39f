"""`settle methods add|list|disable|verify`: what can be paid with, by operators."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

import click

from chain.reader import ChainReader
from commands.output import print_json, progress, stdout, table
from composition import chain_reader, open_prices, service_database
from db.deposits.methods import find_method, list_methods
from db.deposits.prices import find_source, list_sources
from db.deposits.registry import disable_method, list_cash_accounts, list_rings
from db.engine import ServiceConnection, ServiceDatabase
from domain.deposits.methods import AddressRing, MethodKind, PaymentMethod, Scheme
from domain.deposits.prices import PriceSource
from domain.deposits.worth import is_dollar_token
from domain.errors import InvalidInput, MethodNotFound, PriceUnavailable, SettleError
from domain.utxo import UTXO_CHAINS, is_utxo_chain
from services.answers import ResponseModel
from services.deposits.price_sources import (
    AskedSource,
    PriceState,
    check_source,
    parse_source,
    read_states,
    register_source,
)
from services.deposits.registration import (
    NewMethod,
    Registered,
    check_coin,
    check_contract,
    find_known_ring,
    first_addresses,
    parse_method,
    register,
    unsaved_ring,
)
from settings import Settings

WITHOUT_PRICE: Final = (
    "charges in it are refused, and what comes is credited to no one until there is a price; see --price-feed"
)
UNWATCHED: Final = (
    "no process of settle reads this chain: what is paid to its addresses is yours, and is credited by no one but you"
)


class PriceRow(ResponseModel):
    """Where a method's price comes from, and what it is now; `problem` says why there is none."""

    chain_id: int
    feed: str
    source: str
    second_feed: str | None
    sequencer_feed: str | None
    max_age_seconds: int
    max_divergence_bps: int
    price_usd: str | None
    age_seconds: int | None
    problem: str | None

    @classmethod
    def of(cls, state: PriceState) -> Self:
        """The answer about a price."""
        source = state.source
        return cls(
            chain_id=source.chain_id,
            feed=source.feed,
            source=source.description,
            second_feed=source.second_feed,
            sequencer_feed=source.sequencer_feed,
            max_age_seconds=source.max_age_seconds,
            max_divergence_bps=source.max_divergence_bps,
            price_usd=None if state.quote is None else state.quote.price.text,
            age_seconds=state.age_seconds,
            problem=state.problem,
        )


class MethodRow(ResponseModel):
    """A payment method as it is stored."""

    id: str
    chain_id: int
    token: str
    address: str | None
    decimals: int
    kind: MethodKind
    scheme: Scheme
    ring_id: UUID | None
    min_amount_raw: int
    confirmations: int | None
    enabled: bool
    created_at: datetime
    first_addresses: list[str] | None = None
    price: PriceRow | None = None

    @classmethod
    def of(
        cls, method: PaymentMethod, *, first_addresses: list[str] | None = None, price: PriceState | None = None
    ) -> Self:
        """The answer about a method."""
        fields = {name: getattr(method, name) for name in PaymentMethod.model_fields}
        return cls(**fields, first_addresses=first_addresses, price=None if price is None else PriceRow.of(price))


class MethodCheck(ResponseModel):
    """What `verify` found about a method; `problem` is None where it is as registered."""

    id: str
    enabled: bool
    problem: str | None
    price: str | None = None
    """Of a token that is no dollar: its price, and how old it is."""


async def check_prices(settings: Settings) -> str:
    """The prices of all methods that need one, for `settle doctor`. Raises `PriceUnavailable`."""
    async with service_database(settings) as database, database.transaction() as connection:
        sources = await list_sources(connection)
        needy = [one for one in await list_methods(connection) if one.enabled and not is_dollar_token(one.token)]
    if not needy:
        return "every token that can be paid with is a dollar token"
    states = await _prices(settings, {one.id: sources[one.id] for one in needy if one.id in sources})
    problems = [f"{one.id} has no price feed" for one in needy if one.id not in sources]
    problems += [str(state.problem) for state in states.values() if state.problem is not None]
    if problems:
        raise PriceUnavailable("; ".join(problems))
    return "; ".join(f"{method_id}: {state.words}" for method_id, state in states.items())


async def add(
    settings: Settings,
    *,
    method_id: str,
    chain_id: int,
    token: str,
    decimals: int,
    scheme: Scheme,
    xpub: str | None,
    path: str | None,
    min_amount_raw: int,
    confirmations: int | None,
    is_confirmed: bool,
    confirmed_address: str | None,
    as_json: bool,
    of_price: Mapping[str, Any],
) -> bool:
    """Register a method, or enable one again. False where the owner has not confirmed the key's first addresses.

    `of_price`: the options about its price. Raises `InvalidInput`, `ChainUnavailable` where the chain cannot be asked
    about the token, and `PriceUnavailable` where its feed has no price now.
    """
    new = parse_method(
        method_id=method_id,
        chain_id=chain_id,
        token=token,
        decimals=decimals,
        scheme=scheme,
        xpub=xpub,
        path=path,
        min_amount_raw=min_amount_raw,
        confirmations=confirmations,
    )
    asked = parse_source(new.token, **of_price)
    await _check_on_chain(settings, new)
    price = None if asked is None else await _check_price(settings, new.id, asked)
    async with service_database(settings) as database:
        shown = None if new.key is None else first_addresses(unsaved_ring(new))
        if shown is not None and not await _is_known_key(database, new):
            _show_addresses(new, shown)
            if not (is_confirmed or _is_confirmed(shown, confirmed_address)):
                _print_unconfirmed(new, shown, as_json=as_json)
                return False
        async with database.transaction() as connection:
            done = await register(connection, new, own_chain_id=settings.chain_id, usdc=settings.usdc_token_address)
            await _register_price(connection, done.method, price)
    _print_done(done, price, shown, as_json=as_json)
    return True


async def _register_price(connection: ServiceConnection, method: PaymentMethod, price: PriceState | None) -> None:
    if price is not None:
        await register_source(connection, price.source)
    elif not is_dollar_token(method.token) and await find_source(connection, method.id) is None:
        progress(f"warning: {method.token} has no price: {WITHOUT_PRICE}")


def _print_done(done: Registered, price: PriceState | None, shown: list[str] | None, *, as_json: bool) -> None:
    if as_json:
        print_json(MethodRow.of(done.method, first_addresses=shown, price=price))
        return
    priced = "" if price is None else f"; {price.words}"
    stdout.print(f"{done.method.id} is {'registered' if done.is_new else 'enabled'}{priced}", markup=False)


async def _check_price(settings: Settings, method_id: str, asked: AskedSource) -> PriceState:
    other = settings.price_feeds
    chain_id = asked.chain_id or (settings.chain_id if other is None else other[0])
    async with chain_reader(settings) as chain, open_prices(settings, chain) as prices:
        source, quote = await check_source(prices, method_id, asked, chain_id=chain_id)
    return PriceState(source, quote, None)


async def _prices(settings: Settings, sources: Mapping[str, PriceSource]) -> dict[str, PriceState]:
    """What the sources say now."""
    if not sources:
        return {}
    async with chain_reader(settings) as chain, open_prices(settings, chain) as prices:
        return await read_states(prices, sources)


async def _check_on_chain(settings: Settings, new: NewMethod) -> None:
    if new.kind is MethodKind.UTXO:
        await _check_coin(settings, new)
        return
    if new.chain_id != settings.chain_id:
        raise InvalidInput(
            "--chain", f"the settings are of chain {settings.chain_id}: expected settings with CHAIN_ID={new.chain_id}"
        )
    async with chain_reader(settings) as chain:
        notes = await _notes(settings, chain, new)
    for note in notes:
        progress(f"note: {note}")


async def _check_coin(settings: Settings, new: NewMethod) -> None:
    """A coin has no contract. What can be asked is whether the nodes of the settings are of its chain."""
    if not is_utxo_chain(new.chain_id):
        if new.chain_id == settings.chain_id:
            raise InvalidInput(
                "--chain", f"{new.chain_id} is CHAIN_ID, where {new.token} is not: expected another number"
            )
        progress(f"warning: {UNWATCHED}")
    elif new.chain_id == settings.chain_id:
        async with chain_reader(settings) as chain:
            progress(f"note: the newest block of {UTXO_CHAINS[new.chain_id].name} is {await chain.heads.height()}")
    else:
        progress(f"note: a worker with CHAIN_ID={new.chain_id} credits what is paid")


async def _notes(settings: Settings, chain: ChainReader, method: NewMethod | PaymentMethod) -> list[str]:
    treasury = settings.require_treasury_address()
    if method.kind is MethodKind.NATIVE:
        return await check_coin(chain, treasury, is_enabled=settings.native_coin_deposits)
    assert method.address is not None
    return await check_contract(
        chain.contracts,
        treasury,
        address=method.address,
        symbol=method.token,
        decimals=method.decimals,
        scheme=method.scheme,
    )


async def _is_known_key(database: ServiceDatabase, new: NewMethod) -> bool:
    """Whether its owner has confirmed the key before. Raises `InvalidInput` where it is stored under another path."""
    async with database.transaction() as connection:
        return await find_known_ring(connection, new) is not None


def _show_addresses(new: NewMethod, shown: list[str]) -> None:
    progress(f"the first addresses at {new.path}/0, as the owner's wallet has to show them:")
    for index, address in enumerate(shown):
        progress(f"  {index}  {address}")


def _is_confirmed(shown: list[str], confirmed_address: str | None) -> bool:
    if confirmed_address is not None:
        if confirmed_address not in (shown[0], shown[0].lower() if shown[0].startswith("0x") else shown[0]):
            raise InvalidInput(
                "--confirm", f"expected the key's first address, {shown[0]}, got {confirmed_address!r:.80}"
            )
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        progress(
            "compare the addresses with those in the owner's wallet before anyone pays: settle methods disable takes a "
            "wrong key out of use; --confirm with the first one refuses another key"
        )
        return True
    return click.confirm("Does the wallet show the same?", err=True)


def _print_unconfirmed(new: NewMethod, shown: list[str], *, as_json: bool) -> None:
    progress(
        f"{new.id} is not registered: compare the addresses with those in the owner's wallet, then repeat the command "
        f"with --confirm {shown[0]}"
    )
    if as_json:
        print_json({"id": new.id, "registered": False, "firstAddresses": shown})


async def list_all(settings: Settings, *, as_json: bool) -> None:
    """Every method, disabled ones too, the oldest first."""
    async with service_database(settings) as database, database.transaction() as connection:
        methods = await list_methods(connection)
        sources = await list_sources(connection)
    prices = await _prices(settings, sources)
    views = [MethodRow.of(method, price=prices.get(method.id)) for method in methods]
    if as_json:
        print_json(views)
        return
    if not views:
        stdout.print("no payment methods")
        return
    columns = (
        *("method", "chain", "token", "contract", "decimals", "scheme", "minimum, raw", "confirmations", "enabled"),
        "price",
    )
    rows = [
        (
            view.id,
            view.chain_id,
            view.token,
            view.address,
            view.decimals,
            view.scheme.value,
            view.min_amount_raw,
            view.confirmations,
            "yes" if view.enabled else "no",
            *(
                (prices[view.id].words if view.id in prices else "1" if is_dollar_token(view.token) else "none",)
                * bool(prices)
            ),
        )
        for view in views
    ]
    stdout.print(table("", columns, rows, right=("minimum, raw",)))


async def disable(settings: Settings, *, method_id: str, as_json: bool) -> None:
    """Give out no new address or charge of a method. Safe to repeat. Raises `MethodNotFound`."""
    async with service_database(settings) as database, database.transaction() as connection:
        if await find_method(connection, method_id) is None:
            raise MethodNotFound(method_id)
        await disable_method(connection, method_id)
        method = await find_method(connection, method_id)
    assert method is not None
    if as_json:
        print_json(MethodRow.of(method))
    else:
        stdout.print(f"{method_id} is disabled; what still comes to its addresses is credited", markup=False)


async def verify(settings: Settings, *, method_id: str | None, as_json: bool) -> bool:
    """Check methods against chain, keys and ledger accounts. False where one is not as registered.

    Those of other chains than the settings' are checked without their contracts. Raises `MethodNotFound`.
    """
    async with service_database(settings) as database, database.transaction() as connection:
        methods = await list_methods(connection)
        rings = {ring.id: ring for ring in await list_rings(connection)}
        accounts = await list_cash_accounts(connection)
        sources = await list_sources(connection)
    chosen = [method for method in methods if method_id in (None, method.id)]
    if method_id is not None and not chosen:
        raise MethodNotFound(method_id)
    checks = []
    prices = await _prices(settings, {one.id: sources[one.id] for one in chosen if one.id in sources})
    async with chain_reader(settings) as chain:
        for method in chosen:
            price = prices.get(method.id)
            problem = _stored_problem(method, rings, accounts)
            if problem is None and method.kind is not MethodKind.UTXO and method.chain_id == settings.chain_id:
                problem = await _chain_problem(settings, chain, method)
            if problem is None and price is not None:
                problem = price.problem
            words = None if price is None else price.words
            checks.append(MethodCheck(id=method.id, enabled=method.enabled, problem=problem, price=words))
    if as_json:
        print_json(checks)
    else:
        for check in checks:
            priced = "" if check.price is None else f"; {check.price}"
            stdout.print(f"{check.id}: {check.problem or f'as registered{priced}'}", markup=False)
    return all(check.problem is None for check in checks)


def _stored_problem(method: PaymentMethod, rings: dict[UUID, AddressRing], accounts: set[str]) -> str | None:
    for account in (f"cash:{method.token.lower()}", f"cash:{method.token.lower()}:deposits"):
        if account not in accounts:
            return f"the ledger has no account {account}"
    if method.ring_id is None:
        return None
    ring = rings.get(method.ring_id)
    if ring is None:
        return f"its key {method.ring_id} does not exist"
    try:
        first_addresses(ring, 1)
    except InvalidInput as error:
        return error.message
    return None


async def _chain_problem(settings: Settings, chain: ChainReader, method: PaymentMethod) -> str | None:
    try:
        await _notes(settings, chain, method)
    except SettleError as error:
        return error.message
    return None
