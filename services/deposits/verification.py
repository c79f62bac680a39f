"""Every deposit address derived again, and compared with what is stored.

A key or treasury that was exchanged in the database gives other addresses: payments to them would be another's. The
nightly job, `settle doctor` and `settle addresses verify` find it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from chain.derivation.addresses import derive_again, salt_of
from db.deposits.registry import list_rings, list_treasuries, page_addresses
from db.engine import ServiceConnection, ServiceDatabase
from db.operations.findings import open_finding, settle_finding
from domain.deposits.methods import AddressRing, DepositAddress, Scheme
from domain.errors import InvalidInput
from domain.operations.findings import Finding, FindingKind

SHOWN_MAX: Final = 20
"""Addresses of one key or treasury that are named: more of them have the same cause."""


@dataclass(frozen=True, slots=True)
class WrongAddress:
    """An address that does not follow from what its row says that it is derived from."""

    address: DepositAddress
    problem: str


@dataclass(slots=True)
class Subject:
    """What many addresses are derived from: a key, or a treasury. `first` are the first that are not as stored."""

    wrong_count: int = 0
    first: list[WrongAddress] = field(default_factory=list)


@dataclass(slots=True)
class AddressCheck:
    """How many addresses were derived again, and what of each key or treasury, by its name, was not as stored."""

    checked: int = 0
    subjects: dict[str, Subject] = field(default_factory=dict)

    @property
    def wrong_count(self) -> int:
        """Addresses that are not as stored."""
        return sum(subject.wrong_count for subject in self.subjects.values())

    @property
    def wrong(self) -> list[WrongAddress]:
        """The first of them, of each key and treasury."""
        return [wrong for subject in self.subjects.values() for wrong in subject.first]

    def note(self, address: DepositAddress, problem: str | None) -> None:
        """Add the result for one address."""
        self.checked += 1
        subject = self.subjects.setdefault(subject_of(address), Subject())
        if problem is not None:
            subject.wrong_count += 1
            if len(subject.first) < SHOWN_MAX:
                subject.first.append(WrongAddress(address, problem))


@dataclass(frozen=True, slots=True)
class RecordedCheck:
    """A check with its findings; `opened` are those that are new."""

    check: AddressCheck
    findings: list[Finding]
    opened: list[Finding]


def subject_of(address: DepositAddress) -> str:
    """What an address is derived from, as findings name it."""
    if address.scheme is Scheme.XPUB:
        return f"key {address.ring_id}"
    return f"treasury {(address.treasury or '').lower()}"


async def verify_addresses(
    connection: ServiceConnection, *, treasuries: Sequence[str] = (), on_progress: Callable[[], object] = lambda: None
) -> AddressCheck:
    """Derive every address again. `treasuries` are those of the settings; former ones are in the database."""
    rings = {ring.id: ring for ring in await list_rings(connection)}
    known = [*treasuries, *await list_treasuries(connection)]
    check = AddressCheck()
    async for page in page_addresses(connection):
        for address in page:
            check.note(address, problem_of(address, rings, known))
        on_progress()
    return check


async def verify_and_record(
    database: ServiceDatabase, *, treasuries: Sequence[str], on_progress: Callable[[], object]
) -> RecordedCheck:
    """The same, with a finding for each key or treasury with a wrong address. It closes itself when none is left."""
    async with database.snapshot() as connection:
        check = await verify_addresses(connection, treasuries=treasuries, on_progress=on_progress)
    findings, opened = [], []
    async with database.transaction() as connection:
        for name, subject in check.subjects.items():
            finding = finding_of(name, subject)
            if not subject.wrong_count:
                await settle_finding(connection, finding.key)
                continue
            findings.append(finding)
            if await open_finding(connection, finding):
                opened.append(finding)
    return RecordedCheck(check, findings, opened)


def finding_of(name: str, subject: Subject) -> Finding:
    """The finding about a key or a treasury."""
    first = subject.first[0] if subject.first else None
    shown = f"{first.address.address}: {first.problem}" if first else ""
    return Finding(
        kind=FindingKind.ADDRESS_DIFFERS,
        detail=f"{subject.wrong_count} addresses of {name} are not as stored, first {shown}",
        ledger_reference=name,
        details={"addresses": [wrong.address.address for wrong in subject.first]},
    )


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
