"""Every deposit address derived again, and compared with what is stored.

A key or treasury that was exchanged in the database gives other addresses: payments to them would be another's. The
nightly job, `settle doctor` and `settle addresses verify` find it here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from chain.derivation.addresses import derive_again, salt_of
from db.deposits.registry import list_rings, list_treasuries, page_addresses
from db.engine import ServiceConnection
from domain.deposits.methods import AddressRing, DepositAddress
from domain.errors import InvalidInput

SHOWN_MAX: Final = 100
"""Addresses that are named; more of them have one cause."""


@dataclass(frozen=True, slots=True)
class WrongAddress:
    """An address that does not follow from what its row says that it is derived from."""

    address: DepositAddress
    problem: str


@dataclass(frozen=True, slots=True)
class AddressCheck:
    """How many addresses were derived again, and the first that were not as stored."""

    checked: int
    wrong_count: int
    wrong: tuple[WrongAddress, ...]


async def verify_addresses(connection: ServiceConnection, *, treasuries: Sequence[str] = ()) -> AddressCheck:
    """Derive every address again. `treasuries` are those of the settings; former ones are in the database."""
    rings = {ring.id: ring for ring in await list_rings(connection)}
    known = [*treasuries, *await list_treasuries(connection)]
    checked, wrong_count = 0, 0
    shown: list[WrongAddress] = []
    async for wrong, count in _checked_pages(connection, rings, known):
        checked += count
        wrong_count += len(wrong)
        shown += wrong[: SHOWN_MAX - len(shown)]
    return AddressCheck(checked, wrong_count, tuple(shown))


async def _checked_pages(
    connection: ServiceConnection, rings: Mapping[UUID, AddressRing], treasuries: Sequence[str]
) -> AsyncIterator[tuple[list[WrongAddress], int]]:
    async for page in page_addresses(connection):
        found = ((address, problem_of(address, rings, treasuries)) for address in page)
        yield [WrongAddress(address, problem) for address, problem in found if problem is not None], len(page)


def problem_of(address: DepositAddress, rings: Mapping[UUID, AddressRing], treasuries: Sequence[str]) -> str | None:
    """Why an address is not what its row says, or None."""
    ring = None if address.ring_id is None else rings.get(address.ring_id)
    try:
        derived = derive_again(address, ring=ring, treasuries=treasuries)
    except InvalidInput as error:
        return error.message
    if derived != address.address:
        return f"derives as {derived}"
    if address.salt is not None and address.salt != salt_of(address):
        return f"its salt is {address.salt}, that of its owner is {salt_of(address)}"
    return None
