"""Plans of sweeps: what is at deposit addresses, by the chain, in transactions that move it to the treasury."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from chain.addresses import checksum_address
from chain.collection import collect_call, collector_address, collector_deployment
from chain.derivation.create2 import CREATE2_DEPLOYER
from chain.reader import ChainReader
from db.deposits.methods import list_methods
from db.deposits.registry import list_rings, list_treasuries
from db.deposits.sweeps import list_holders
from db.engine import ServiceDatabase
from domain.coin import NATIVE_COIN
from domain.deposits.methods import EXTERNAL_CHAIN, AddressRing, DepositAddress, MethodKind, PaymentMethod, Scheme
from domain.deposits.sweeps import (
    AUTHORIZATION_GAS,
    COLLECTOR_GAS,
    Plan,
    Refusal,
    Step,
    StepKind,
    SweepAuthorization,
    SweptAddress,
    batches,
    gas_to_collect,
)
from domain.errors import ChainUnavailable, OperatorError
from domain.payments.authorizations import TokenDomain
from services.deposits.verification import problem_of

PRIORITY_FEE_WEI: Final = 1_000_000
BASE_FEE_FACTOR: Final = 2
"""The base fee grows by an eighth a block at most."""


@dataclass(frozen=True, slots=True)
class PlanTerms:
    """What an operator asks for. Amounts in raw units of each token."""

    treasury: str
    max_fee_wei: int
    batch_size: int
    min_raw: int = 1
    method_id: str | None = None
    sender: str | None = None
    valid_for: timedelta = timedelta(hours=72)
    """How long what an address has signed can be sent."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Methods whose addresses hold the same token: they are collected together."""

    token: str
    scheme: Scheme
    ring_id: UUID | None
    method: PaymentMethod


class SweepPlanner:
    """Reads database and chain; writes nothing. Addresses that do not derive as stored are left out, and named."""

    def __init__(self, database: ServiceDatabase, chain: ChainReader) -> None:
        self._database = database
        self._chain = chain

    async def plan(self, terms: PlanTerms) -> Plan:
        """What can be collected now. Raises `OperatorError` where the chain's fee is above what may be paid, and
        `ChainUnavailable`.
        """
        account = await self._chain.transactions.account(terms.sender or terms.treasury)
        if account.base_fee_wei + PRIORITY_FEE_WEI > terms.max_fee_wei:
            raise OperatorError(
                f"the base fee is {account.base_fee_wei} wei for a unit of gas, at most {terms.max_fee_wei} may be "
                "paid: wait, or raise --max-fee-gwei"
            )
        steps: list[Step] = []
        refused: list[Refusal] = []
        for group in await self._groups(terms, refused):
            # The coin comes last: with an address's token its coin is moved, too.
            collected = {one.address for step in steps for one in step.addresses}
            planned = await self._steps_of(group, terms, account.block_time.timestamp(), refused, collected)
            steps += planned
        if any(step.kind is StepKind.COLLECT for step in steps):
            steps = [*await self._collector_step(terms), *steps]
        return Plan(
            chain_id=self._chain.chain_id,
            max_fee_per_gas_wei=min(BASE_FEE_FACTOR * account.base_fee_wei + PRIORITY_FEE_WEI, terms.max_fee_wei),
            max_priority_fee_per_gas_wei=PRIORITY_FEE_WEI,
            sender=terms.sender,
            nonce=account.nonce if terms.sender is not None else None,
            steps=tuple(steps),
            refused=tuple(refused),
        )

    async def _groups(self, terms: PlanTerms, refused: list[Refusal]) -> list[_Group]:
        async with self._database.transaction() as connection:
            methods = await list_methods(connection)
        groups: dict[tuple[str, Scheme, UUID | None], _Group] = {}
        for method in methods:
            if terms.method_id not in (None, method.id):
                continue
            is_coin = method.kind is MethodKind.NATIVE
            if method.kind is MethodKind.UTXO or (is_coin and method.scheme is not Scheme.CREATE2):
                refused.append(Refusal(method=method.id, reason=_why_not(method)))
            elif method.chain_id == self._chain.chain_id:
                token = method.address or NATIVE_COIN
                key = (token.lower(), method.scheme, method.ring_id)
                groups.setdefault(key, _Group(token, method.scheme, method.ring_id, method))
        return sorted(groups.values(), key=lambda group: group.token == NATIVE_COIN)

    async def _steps_of(
        self, group: _Group, terms: PlanTerms, now: float, refused: list[Refusal], collected: set[str]
    ) -> list[Step]:
        holders, ring = await self._holders(group, terms, refused)
        balances = await self._chain.contracts.balances_raw(group.token, [one.address for one in holders])
        left = [one for one in holders if group.token != NATIVE_COIN or one.address not in collected]
        held = [one for one in left if balances[one.address] >= terms.min_raw]
        if not held:
            return []
        if group.scheme is Scheme.CREATE2:
            return _collections(group.token, held, balances, terms.batch_size)
        try:
            domain = await self._chain.authorizations.token_domain(group.token)
        except ChainUnavailable:
            refused.append(
                Refusal(
                    method=group.method.id,
                    reason=f"{group.method.token} takes no signed transfers (EIP-3009), and its addresses hold no gas: "
                    "move it with the wallet that holds the key",
                )
            )
            return []
        assert ring is not None
        until = int(now + terms.valid_for.total_seconds())
        signing = _Signing(group.token, checksum_address(terms.treasury), ring, domain, until)
        return [signing.step(one, balances[one.address]) for one in held]

    async def _holders(
        self, group: _Group, terms: PlanTerms, refused: list[Refusal]
    ) -> tuple[list[DepositAddress], AddressRing | None]:
        async with self._database.transaction() as connection:
            rings = {ring.id: ring for ring in await list_rings(connection)}
            treasuries = [terms.treasury, *await list_treasuries(connection)]
            found = await list_holders(
                connection,
                chain_id=self._chain.chain_id,
                scheme=group.scheme.value,
                ring_id=group.ring_id,
                token=group.token,
            )
        right = []
        for one in found:
            problem = problem_of(one, rings, treasuries)
            if problem is None:
                right.append(one)
            else:
                refused.append(Refusal(method=group.method.id, reason=f"{one.address}: {problem}"))
        return right, None if group.ring_id is None else rings.get(group.ring_id)

    async def _collector_step(self, terms: PlanTerms) -> Iterable[Step]:
        if await self._chain.contracts.has_code(collector_address()):
            return []
        return [
            Step(
                kind=StepKind.DEPLOY_COLLECTOR,
                to=CREATE2_DEPLOYER,
                data="0x" + collector_deployment().hex(),
                gas=COLLECTOR_GAS,
                treasury=terms.treasury,
            )
        ]


def _why_not(method: PaymentMethod) -> str:
    """Why what a method brings is in no plan, and what moves it."""
    return (
        f"{method.token} is spent by the wallet that holds the key, which pays the fee from it: send it from there to "
        "the treasury"
    )


def _collections(token: str, held: Sequence[DepositAddress], balances: dict[str, int], batch_size: int) -> list[Step]:
    by_treasury: dict[str, list[SweptAddress]] = defaultdict(list)
    for one in held:
        assert one.treasury is not None
        swept = SweptAddress(address=one.address, amount_raw=balances[one.address], salt=one.salt)
        by_treasury[checksum_address(one.treasury)].append(swept)
    return [
        Step(
            kind=StepKind.COLLECT,
            to=collector_address(),
            data="0x" + collect_call(treasury, [one.salt or "" for one in batch], [token]).hex(),
            gas=gas_to_collect(len(batch)),
            token=token,
            treasury=treasury,
            addresses=batch,
        )
        for treasury, swept_addresses in sorted(by_treasury.items())
        for batch in batches(swept_addresses, batch_size)
    ]


@dataclass(frozen=True, slots=True)
class _Signing:
    """What the authorizations of one key and token have in common."""

    token: str
    treasury: str
    ring: AddressRing
    domain: TokenDomain
    valid_before: int

    def step(self, one: DepositAddress, amount_raw: int) -> Step:
        """The transfer of all that an address holds, to be signed with its key."""
        return Step(
            kind=StepKind.AUTHORIZATION,
            to=self.token,
            data=None,
            gas=AUTHORIZATION_GAS,
            token=self.token,
            treasury=self.treasury,
            addresses=(SweptAddress(address=one.address, amount_raw=amount_raw, index=one.index),),
            authorization=SweepAuthorization(
                ring_id=self.ring.id,
                path=f"{self.ring.path}/{EXTERNAL_CHAIN}/{one.index}",
                name=self.domain.name,
                version=self.domain.version,
                valid_before=self.valid_before,
                nonce="0x" + secrets.token_hex(32),
            ),
        )
