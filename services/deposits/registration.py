"""A payment method registered: what it names is checked before anything can be paid to it.

Every refusal names the option of `settle methods add` that it is about.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from chain.addresses import checksum_address
from chain.contract_calls import ContractCalls
from chain.derivation.addresses import derive_address
from chain.derivation.bip32 import ExtendedKey, parse_account_key, parse_extended_key
from chain.derivation.create2 import CREATE2_DEPLOYER
from chain.derivation.networks import AddressForm, parse_account_path
from chain.preconditions import TokenAnswer
from chain.reader import ChainReader
from db.deposits.methods import find_method, list_methods
from db.deposits.registry import change_method, insert_method, insert_ring, list_rings, lock_registry
from db.engine import ServiceConnection
from domain.deposits.methods import AddressRing, MethodKind, PaymentMethod, Scheme
from domain.deposits.worth import is_dollar_token
from domain.errors import ChainUnavailable, InvalidInput
from domain.identifiers import same_address
from domain.money import USDC_DECIMALS
from domain.utxo import UTXO_CHAINS, UTXO_DECIMALS, is_utxo_chain

SHOWN_ADDRESSES: Final = 3
"""As many as wallets show at first: the owner compares them before anything is paid to one."""

GAP_LIMIT: Final = 20
"""What nearly every wallet searches beyond the last address with a payment (BIP-44)."""

USDC: Final = "USDC"
COIN_DECIMALS: Final = 18
"""Of every EVM chain's own coin, whatever it is called: a balance is in wei."""
DECIMALS_MAX: Final = 36
CHAIN_ID_MAX: Final = 2**63 - 1
_ID: Final = re.compile(r"([A-Za-z0-9._-]{1,32}):[A-Za-z0-9._-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class NewMethod:
    """What an operator asks for, parsed; `key` and `path` are there with scheme xpub."""

    id: str
    chain_id: int
    token: str
    address: str | None
    decimals: int
    kind: MethodKind
    scheme: Scheme
    min_amount_raw: int
    confirmations: int | None
    key: ExtendedKey | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    """The method as it is stored now, and whether it is new."""

    method: PaymentMethod
    is_new: bool


def parse_method(
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
) -> NewMethod:
    """Parse a request for a method. Raises `InvalidInput` naming the option."""
    found = _ID.fullmatch(method_id)
    if found is None:
        raise InvalidInput("--id", f"expected SYMBOL:CHAIN, such as USDC:base, got {method_id!r:.100}")
    _require_between("--chain", chain_id, 1, CHAIN_ID_MAX)
    _require_between("--decimals", decimals, 0, DECIMALS_MAX)
    _require_between("--min-raw", min_amount_raw, 1, 2**256 - 1)
    if confirmations is not None:
        _require_between("--confirmations", confirmations, 1, 1_000_000)
    key = _parse_key(scheme, xpub, path)
    symbol = found[1]
    kind = _kind(symbol, token, path if key else None)
    if kind is MethodKind.UTXO or is_utxo_chain(chain_id):
        _require_own_coin(chain_id, kind, decimals, path)
    elif kind is MethodKind.NATIVE:
        _require_payable_coin(symbol, decimals, scheme)
    return NewMethod(
        id=method_id,
        chain_id=chain_id,
        token=symbol,
        address=checksum_address(token, field="--token") if kind is MethodKind.ERC20 else None,
        decimals=decimals,
        kind=kind,
        scheme=scheme,
        min_amount_raw=min_amount_raw,
        confirmations=confirmations,
        key=key,
        path=None if key is None or path is None else str(parse_account_path(path)),
    )


def _require_between(option: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise InvalidInput(option, f"expected {lowest} to {highest}, got {value}")


def _parse_key(scheme: Scheme, xpub: str | None, path: str | None) -> ExtendedKey | None:
    if scheme is Scheme.CREATE2:
        for option, given in (("--xpub", xpub), ("--path", path)):
            if given is not None:
                raise InvalidInput(option, "belongs to --scheme xpub: an address of create2 has no key")
        return None
    for option, given in (("--xpub", xpub), ("--path", path)):
        if given is None:
            raise InvalidInput(option, "is needed with --scheme xpub")
    assert xpub is not None
    assert path is not None
    try:
        return parse_account_key(xpub, path)
    except InvalidInput as error:
        raise InvalidInput(f"--{error.field}", error.message.removeprefix(f"{error.field}: ")) from None


def _kind(symbol: str, token: str, path: str | None) -> MethodKind:
    account = None if path is None else parse_account_path(path)
    if account is not None and account.form is not AddressForm.EVM:
        coin = account.network.token
        if coin is None or token.upper() != coin or symbol.upper() != coin:
            raise InvalidInput("--token", f"expected {coin}, the coin of {account.network.name}, as in --id {coin}:…")
        return MethodKind.UTXO
    if token.startswith("0x"):
        return MethodKind.ERC20
    if token.upper() != symbol.upper():
        raise InvalidInput(
            "--token",
            f"expected the address of a token's contract, or {symbol} as in --id for the chain's own coin, got "
            f"{token!r:.60}",
        )
    return MethodKind.NATIVE


def _require_payable_coin(symbol: str, decimals: int, scheme: Scheme) -> None:
    """An EVM chain's own coin, which has no contract that could be asked."""
    if is_dollar_token(symbol):
        raise InvalidInput(
            "--token",
            f"expected the address of a token's contract: {symbol} is a dollar token, and a coin has its own price",
        )
    if decimals != COIN_DECIMALS:
        raise InvalidInput("--decimals", f"expected {COIN_DECIMALS}: amounts of a chain's own coin are in wei")
    if scheme is not Scheme.CREATE2:
        raise InvalidInput(
            "--scheme",
            "expected create2: an address of a key pays gas from what it holds of the coin, so that it could not be "
            "proven that what came is still there",
        )


def _require_own_coin(chain_id: int, kind: MethodKind, decimals: int, path: str | None) -> None:
    """A chain of Bitcoin's family has one token, its coin, at addresses of its own network."""
    if not is_utxo_chain(chain_id):
        return
    chain = UTXO_CHAINS.get(chain_id)
    if chain is None:
        known = ", ".join(f"{one.chain_id} ({one.name})" for one in UTXO_CHAINS.values())
        raise InvalidInput("--chain", f"{chain_id} is no chain that can be read: expected one of {known}")
    if kind is not MethodKind.UTXO or path is None:
        raise InvalidInput(
            "--scheme", f"{chain.name} has its own coin only: expected xpub and a path of coin {chain.coin}'"
        )
    if parse_account_path(path).coin != chain.coin:
        raise InvalidInput("--path", f"expected a path of coin {chain.coin}', whose addresses are {chain.name}'s")
    if decimals != UTXO_DECIMALS:
        raise InvalidInput("--decimals", f"expected {UTXO_DECIMALS}: amounts are in satoshis")


def first_addresses(ring: AddressRing, count: int = SHOWN_ADDRESSES) -> list[str]:
    """The first addresses of a key, as its owner's wallet shows them."""
    return [derive_address(Scheme.XPUB, ring=ring, index=index) for index in range(count)]


def unsaved_ring(new: NewMethod) -> AddressRing:
    """The key of a request as a value, to derive from before it is stored."""
    assert new.key is not None
    assert new.path is not None
    return AddressRing(
        id=UUID(int=0),
        path=new.path,
        xpub=str(new.key),
        fingerprint=new.key.fingerprint,
        next_index=0,
        gap_limit=GAP_LIMIT,
        created_at=datetime.now(UTC),
    )


async def check_contract(
    chain: ContractCalls, treasury: str, *, address: str, symbol: str, decimals: int, scheme: Scheme
) -> list[str]:
    """Check a token on the chain, and with create2 the deployer, by the word of most nodes.

    Returns what the operator should know. Raises `InvalidInput` where the chain contradicts the request, and
    `ChainUnavailable` where it says nothing.
    """
    answer = await ask_most(chain, address, treasury)
    if not answer.has_code:
        raise InvalidInput("--token", f"there is no contract at {address} on chain {chain.chain_id}")
    if answer.decimals is None or answer.treasury_balance_raw is None:
        raise InvalidInput(
            "--token", f"the contract at {address} is no ERC-20 token: it has no decimals or no balances"
        )
    if answer.decimals != decimals:
        raise InvalidInput("--decimals", f"the token at {address} has {answer.decimals}, got {decimals}")
    notes = []
    if answer.symbol is not None and answer.symbol.upper() != symbol.upper():
        notes.append(f"the contract at {address} calls itself {answer.symbol}, not {symbol}")
    if scheme is Scheme.CREATE2:
        notes += await _check_deployment(chain, treasury)
    return notes


async def check_coin(chain: ChainReader, treasury: str, *, is_enabled: bool) -> list[str]:
    """Check that a chain's own coin can be read and collected: every node traces, and the deployer is there.

    Returns what the operator should know. Raises `InvalidInput` where it is not so, or not `is_enabled` by the
    settings, and `ChainUnavailable` where the chain says nothing.
    """
    if not is_enabled:
        raise InvalidInput(
            "--token",
            "a chain's own coin moves without a log, and is read by tracing each block: expected "
            "NATIVE_COIN_DEPOSITS=true, with nodes that serve trace_block and trace_transaction, or the contract of "
            "its wrapped form",
        )
    if untraced := await chain.logs.untraced():
        reasons = "; ".join(f"{label}: {reason}" for label, reason in untraced.items())
        raise InvalidInput(
            "--token", f"expected every node of CHAIN_RPC_URLS to serve trace_block and trace_transaction: {reasons}"
        )
    notes = await _check_deployment(chain.contracts, treasury)
    if await chain.contracts.has_code(treasury):
        notes.append(f"the treasury {treasury} has to accept the coin: what it refuses stays at the deposit addresses")
    return notes


async def _check_deployment(chain: ContractCalls, treasury: str) -> list[str]:
    if not await chain.has_code(CREATE2_DEPLOYER):
        raise InvalidInput(
            "--scheme",
            f"the deterministic deployer {CREATE2_DEPLOYER} is not on chain {chain.chain_id}: nothing could be "
            "collected from a create2 address",
        )
    if not await chain.has_code(treasury):
        return []
    return [
        f"the treasury {treasury} is a contract: what is sent to a deposit address on another chain can be recovered "
        "only if you control the same address there"
    ]


async def ask_most(chain: ContractCalls, address: str, treasury: str) -> TokenAnswer:
    """What more than half of the answering nodes say about a contract. Raises `ChainUnavailable`."""
    answers, silent = await chain.ask_about_token(address, treasury)
    right = [answer for answer in answers if answer.chain_id == chain.chain_id]
    if not right:
        reasons = "; ".join(
            [
                *(f"{one.endpoint}: {one.reason}" for one in silent),
                *(f"{a.endpoint}: chain {a.chain_id}" for a in answers),
            ]
        )
        raise ChainUnavailable(f"no node of chain {chain.chain_id} answers about {address}: {reasons}")
    claim, votes = Counter(answer.claim for answer in right).most_common(1)[0]
    if 2 * votes <= len(answers):
        raise ChainUnavailable(f"the nodes contradict each other about {address}")
    return next(answer for answer in right if answer.claim == claim)


async def register(connection: ServiceConnection, new: NewMethod, *, own_chain_id: int, usdc: str) -> Registered:
    """Store a method, and its key where it is new; one that is there is enabled, and takes minimum and confirmations.

    `usdc` is the contract that payments of wallets are made in, on `own_chain_id`. Raises `InvalidInput` where the id,
    the token's symbol, its contract or the key is registered for something else.
    """
    await lock_registry(connection)
    ring = await _ring_of(connection, new)
    if ring is None and new.key is not None:
        assert new.path is not None
        ring = await insert_ring(
            connection, path=new.path, xpub=str(new.key), fingerprint=new.key.fingerprint, gap_limit=GAP_LIMIT
        )
    method = _method(new, ring)
    others = await list_methods(connection)
    known = next((other for other in others if other.id == new.id), None)
    if known is not None:
        _require_same(known, method)
        await change_method(connection, method)
    else:
        _require_no_contradiction(method, [*others, _of_wallets(own_chain_id, usdc)])
        await insert_method(connection, method)
    stored = await find_method(connection, new.id)
    assert stored is not None
    return Registered(stored, is_new=known is None)


async def find_known_ring(connection: ServiceConnection, new: NewMethod) -> AddressRing | None:
    """The stored key of a request. Raises `InvalidInput` where it is stored under another path."""
    return await _ring_of(connection, new)


async def _ring_of(connection: ServiceConnection, new: NewMethod) -> AddressRing | None:
    if new.key is None:
        return None
    for ring in await list_rings(connection):
        if parse_extended_key(ring.xpub).material != new.key.material:
            continue
        if ring.path != new.path or ring.xpub != str(new.key):
            raise InvalidInput(
                "--xpub",
                f"this key is registered as {ring.xpub[:4]}… at {ring.path}: under another path or prefix the same "
                "addresses would be given out twice",
            )
        return ring
    return None


def _method(new: NewMethod, ring: AddressRing | None) -> PaymentMethod:
    return PaymentMethod(
        id=new.id,
        chain_id=new.chain_id,
        token=new.token,
        address=new.address,
        decimals=new.decimals,
        kind=new.kind,
        scheme=new.scheme,
        ring_id=None if ring is None else ring.id,
        min_amount_raw=new.min_amount_raw,
        confirmations=new.confirmations,
        enabled=True,
        created_at=datetime.now(UTC),
    )


def _of_wallets(chain_id: int, usdc: str) -> PaymentMethod:
    """The token of payments from wallets, as if it were a method: its symbol and contract are taken, too."""
    return PaymentMethod(
        id="USDC_TOKEN_ADDRESS",
        chain_id=chain_id,
        token=USDC,
        address=usdc,
        decimals=USDC_DECIMALS,
        kind=MethodKind.ERC20,
        scheme=Scheme.CREATE2,
        ring_id=None,
        min_amount_raw=1,
        confirmations=None,
        enabled=True,
        created_at=datetime.now(UTC),
    )


def _require_same(known: PaymentMethod, method: PaymentMethod) -> None:
    for option, name in (
        ("--chain", "chain_id"),
        ("--token", "address"),
        ("--decimals", "decimals"),
        ("--scheme", "scheme"),
        ("--xpub", "ring_id"),
    ):
        before, now = getattr(known, name), getattr(method, name)
        if before != now:
            raise InvalidInput(
                option, f"{known.id} is registered with {before}: a change needs another --id, got {now}"
            )


def _require_no_contradiction(method: PaymentMethod, others: Sequence[PaymentMethod]) -> None:
    """One symbol is one contract on a chain, and one contract one symbol: the ledger's accounts are by symbol."""
    for other in others:
        if other.token.upper() == method.token.upper() and other.token != method.token:
            raise InvalidInput("--id", f"{other.id} writes the symbol as {other.token}, expected the same")
        if other.chain_id != method.chain_id:
            continue
        is_same_contract = (
            method.address is None
            and other.address is None
            and (method.token == other.token or method.kind is other.kind is MethodKind.NATIVE)
            if method.address is None or other.address is None
            else same_address(method.address, other.address)
        )
        if other.token == method.token and not is_same_contract:
            raise InvalidInput("--token", f"on chain {method.chain_id} {method.token} is {other.address} ({other.id})")
        if is_same_contract and other.token != method.token:
            what = "the chain's own coin" if method.address is None else f"the contract {method.address}"
            raise InvalidInput("--id", f"{what} is registered as {other.token} ({other.id})")
        if is_same_contract and other.decimals != method.decimals:
            raise InvalidInput("--decimals", f"{other.id} has {other.decimals}, got {method.decimals}")
