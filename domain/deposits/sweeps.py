"""A sweep's plan: which deposit addresses are collected by which transactions. It travels as a file, and is pure data.

The file is made where the database is, signed where the key is, and sent where the nodes are; each step checks all that
it is given. Of create2, anyone's key may pay the gas. Of xpub, each address signs a transfer to the treasury (EIP-3009)
that anyone may send: neither an address nor the account needs the chain's coin.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final, Literal
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from domain.identifiers import Address

PLAN_VERSION: Final = 1
BATCH_MAX: Final = 100
"""Addresses of one transaction: with two tokens they take about half of a block of Base."""

COLLECT_BASE_GAS: Final = 120_000
DEPLOY_GAS: Final = 200_000
"""Of one forwarder, with what its first flush costs besides the transfer. Measured: about 145,000."""
TRANSFER_GAS: Final = 90_000
"""Of one token at one address. A token behind a proxy takes some 60,000."""
AUTHORIZATION_GAS: Final = 150_000
COLLECTOR_GAS: Final = 400_000
"""Measured amounts, with a margin, instead of an estimate: a transfer that fails for lack of gas fails no flush, so
that an estimate may find an amount with which nothing is moved."""

Raw = Annotated[int, Field(ge=0, lt=2**256)]


class StepKind(StrEnum):
    """What a transaction of a plan does."""

    DEPLOY_COLLECTOR = "deploy_collector"
    """Puts the contract on the chain that collects from many addresses; once for each chain."""

    COLLECT = "collect"
    """Deploys and flushes create2 addresses."""

    AUTHORIZATION = "authorization"
    """Sends what an xpub address has signed."""


class PlanValue(BaseModel):
    """Immutable part of the file, camelCase in it."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="forbid")


class SweptAddress(PlanValue):
    """An address, and what it held of the token when the plan was made."""

    address: Address
    amount_raw: Raw
    salt: str | None = None
    index: int | None = None


class SweepAuthorization(PlanValue):
    """A `transferWithAuthorization` of one address, before and after its signature. Times are Unix seconds."""

    ring_id: UUID
    path: str
    name: str
    version: str
    valid_after: int = 0
    valid_before: int
    nonce: str
    signature: str | None = None
    """0x and 65 bytes in hex."""


class Step(PlanValue):
    """One transaction. `data` of an authorization follows from its signature, and is None before it."""

    kind: StepKind
    to: Address
    data: str | None
    gas: int = Field(gt=0)
    token: Address | None = None
    treasury: Address
    addresses: tuple[SweptAddress, ...] = ()
    authorization: SweepAuthorization | None = None
    raw_transaction: str | None = None
    """Signed, 0x and hex."""


class Refusal(PlanValue):
    """What is not collected, and why."""

    method: str
    reason: str


class Plan(PlanValue):
    """The file. `from` and `nonce` are of the account that pays the gas, where the plan was made for one."""

    version: Literal[1] = PLAN_VERSION
    chain_id: int
    max_fee_per_gas_wei: int = Field(gt=0)
    max_priority_fee_per_gas_wei: int = Field(ge=0)
    sender: Address | None = Field(default=None, alias="from")
    nonce: int | None = Field(default=None, ge=0)
    steps: tuple[Step, ...]
    refused: tuple[Refusal, ...] = ()

    @property
    def id(self) -> UUID:
        """Derived from what is planned, not from who pays the gas or how much: a plan sent twice is one sweep."""
        bare = self.model_copy(
            update={
                "max_fee_per_gas_wei": 1,
                "max_priority_fee_per_gas_wei": 0,
                "sender": None,
                "nonce": None,
                "steps": tuple(_unsigned(step) for step in self.steps),
                "refused": (),
            }
        )
        content = bare.model_dump_json(by_alias=True)
        return uuid5(NAMESPACE_URL, "settle:sweep:1:" + hashlib.sha256(content.encode()).hexdigest())


def _unsigned(step: Step) -> Step:
    authorization = step.authorization
    if authorization is None:
        return step.model_copy(update={"raw_transaction": None})
    bare = authorization.model_copy(update={"signature": None})
    return step.model_copy(update={"raw_transaction": None, "data": None, "authorization": bare})


def gas_to_collect(addresses: int) -> int:
    """Gas limit of a transaction that deploys and flushes so many addresses."""
    return COLLECT_BASE_GAS + addresses * (DEPLOY_GAS + TRANSFER_GAS)


def batches(addresses: Sequence[SweptAddress], size: int) -> list[tuple[SweptAddress, ...]]:
    """The addresses, the most valuable first, in transactions of at most `size`."""
    ordered = sorted(addresses, key=lambda one: (-one.amount_raw, one.address))
    return [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
