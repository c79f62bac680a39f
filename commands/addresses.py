"""`settle addresses export|verify`: deposit addresses with what they are derived from, for anyone who checks them."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from chain.derivation.create2 import CREATE2_DEPLOYER, init_code, init_code_hash
from chain.derivation.descriptors import descriptor
from commands.output import print_json, progress, stdout, table
from composition import service_database
from db.deposits.registry import list_keys_past_their_gap, list_rings, page_addresses
from domain.deposits.methods import EXTERNAL_CHAIN, AddressRing, DepositAddress, Scheme
from domain.errors import InvalidInput, OperatorError
from services.answers import ResponseModel
from services.deposits.verification import AddressCheck, verify_addresses
from settings import Settings

LISTED_MAX: Final = 1_000
"""Of a table; the JSON document has all."""


class ExportedAddress(ResponseModel):
    """A deposit address with all that it is computed from.

    Of create2 the last 20 bytes of keccak256(0xff, deployer, salt, initCodeHash); of xpub the key's child at `path`.
    What is None does not belong to the scheme. `descriptor` and `range` are those of the whole key.
    """

    address: str
    chain_id: int
    scheme: Scheme
    billing_account_id: str
    charge_id: UUID | None
    created_at: datetime
    deployer: str | None = None
    salt: str | None = None
    init_code_hash: str | None = None
    init_code: str | None = None
    treasury: str | None = None
    ring_id: UUID | None = None
    xpub: str | None = None
    path: str | None = None
    index: int | None = None
    descriptor: str | None = None
    range: tuple[int, int] | None = None


async def export(settings: Settings, *, account: str | None, as_json: bool) -> None:
    """Every deposit address, or those of one account."""
    exporter = _Exporter()
    async with service_database(settings) as database, database.snapshot() as connection:
        exporter.rings = {ring.id: ring for ring in await list_rings(connection)}
        found = [row async for page in page_addresses(connection, account=account) for row in page]
    exported = [exporter.exported(row) for row in found]
    if as_json:
        print_json(exported)
        return
    if len(exported) > LISTED_MAX:
        progress(f"{LISTED_MAX} of {len(exported)} are listed; --json has all")
    columns = ("address", "chain", "scheme", "account", "charge", "salt or path")
    rows = [
        (row.address, row.chain_id, row.scheme.value, row.billing_account_id, row.charge_id, row.salt or row.path)
        for row in exported[:LISTED_MAX]
    ]
    stdout.print(table("", columns, rows) if rows else "no deposit addresses")


class _Exporter:
    """Adds to each row what many have in common, computed once."""

    def __init__(self) -> None:
        self.rings: dict[UUID, AddressRing] = {}
        self._codes: dict[str, tuple[str, str]] = {}
        self._descriptors: dict[UUID, str | None] = {}

    def exported(self, row: DepositAddress) -> ExportedAddress:
        common = ExportedAddress(
            address=row.address,
            chain_id=row.chain_id,
            scheme=row.scheme,
            billing_account_id=row.billing_account_id,
            charge_id=row.charge_id,
            created_at=row.created_at,
        )
        if row.scheme is Scheme.CREATE2:
            assert row.treasury is not None
            code, code_hash = self._code(row.treasury)
            return common.model_copy(
                update={
                    "deployer": CREATE2_DEPLOYER,
                    "salt": row.salt,
                    "init_code_hash": code_hash,
                    "init_code": code,
                    "treasury": row.treasury,
                }
            )
        ring = None if row.ring_id is None else self.rings.get(row.ring_id)
        if ring is None:
            return common
        return common.model_copy(
            update={
                "ring_id": ring.id,
                "xpub": ring.xpub,
                "path": f"{ring.path}/{EXTERNAL_CHAIN}/{row.index}",
                "index": row.index,
                "descriptor": self._descriptor(ring),
                "range": (0, max(ring.next_index - 1, 0)),
            }
        )

    def _code(self, treasury: str) -> tuple[str, str]:
        if treasury not in self._codes:
            self._codes[treasury] = ("0x" + init_code(treasury).hex(), init_code_hash(treasury))
        return self._codes[treasury]

    def _descriptor(self, ring: AddressRing) -> str | None:
        if ring.id not in self._descriptors:
            try:
                self._descriptors[ring.id] = descriptor(ring.xpub, ring.path)
            except InvalidInput as error:
                progress(f"key {ring.id}: {error.message}")
                self._descriptors[ring.id] = None
        return self._descriptors[ring.id]


async def _verify(settings: Settings) -> tuple[AddressCheck, list[str]]:
    """What was found, and what the owner of a key should know about its unpaid addresses."""
    treasuries = [] if settings.treasury_address is None else [settings.treasury_address]
    async with service_database(settings) as database, database.snapshot() as connection:
        return (
            await verify_addresses(connection, treasuries=treasuries),
            await list_keys_past_their_gap(connection),
        )


async def check_addresses(settings: Settings) -> str:
    """The same for `settle doctor`, in one line. Raises `OperatorError` where an address is not as stored."""
    found, notes = await _verify(settings)
    if found.wrong_count:
        first = found.wrong[0]
        raise OperatorError(
            f"{found.wrong_count} of {found.checked} differ, first {first.address.address}: {first.problem}; "
            "run: settle addresses verify"
        )
    return "; ".join([f"{found.checked} derived again, all as stored", *notes])


async def verify(settings: Settings, *, as_json: bool) -> bool:
    """Derive every address again and compare. False where one is not as stored."""
    found, notes = await _verify(settings)
    for note in notes:
        progress(f"note: {note}")
    if as_json:
        wrong = [
            {"address": one.address.address, "id": str(one.address.id), "problem": one.problem} for one in found.wrong
        ]
        print_json({"checked": found.checked, "wrongCount": found.wrong_count, "wrong": wrong})
        return found.wrong_count == 0
    for one in found.wrong:
        stdout.print(f"{one.address.address} ({one.address.id}): {one.problem}", markup=False)
    stdout.print(f"{found.checked} addresses derived again, {found.wrong_count} not as stored")
    return found.wrong_count == 0
