"""`settle methods skip`: after a restore, no address of a wallet's key is given out again."""

from __future__ import annotations

from typing import Final, Self
from uuid import UUID

from commands.output import print_json, progress, stdout, table
from composition import service_database
from db.deposits.methods import find_method
from db.deposits.registry import RingInUse, list_rings_in_use, lock_registry, skip_indices
from db.engine import ServiceConnection
from domain.deposits.methods import GAP_LIMIT_MAX, INDEX_MAX, Scheme
from domain.errors import InvalidInput, MethodNotFound
from services.answers import ResponseModel
from settings import Settings

NOTHING_WRITTEN: Final = "nothing was written; to write it, repeat with --yes"
NO_KEYS: Final = "no payment method has addresses of a wallet"


class SkippedRing(ResponseModel):
    """A key before and after. `last_index` is of the last address that is stored, if there is one."""

    ring_id: UUID
    path: str
    fingerprint: str
    methods: list[str]
    last_index: int | None
    next_index: int
    next_index_after: int
    gap_limit: int
    gap_limit_after: int

    @classmethod
    def of(cls, one: RingInUse, next_index_after: int, gap_limit_after: int) -> Self:
        """The answer about a key."""
        ring = one.ring
        return cls(
            ring_id=ring.id,
            path=ring.path,
            fingerprint=ring.fingerprint,
            methods=list(one.methods),
            last_index=one.last_index,
            next_index=ring.next_index,
            next_index_after=next_index_after,
            gap_limit=ring.gap_limit,
            gap_limit_after=gap_limit_after,
        )


class Skipped(ResponseModel):
    """What was done, or would be."""

    count: int
    written: bool
    rings: list[SkippedRing]


async def skip(settings: Settings, *, method_id: str | None, count: int, confirmed: bool, as_json: bool) -> None:
    """Give out the next `count` indices of a method's key, or of every key, to no one; a preview without `confirmed`.

    All keys move in one transaction, or none. Raises `MethodNotFound`, and `InvalidInput` for a method without a key
    and for a key that cannot be moved so far.
    """
    async with service_database(settings) as database, database.transaction() as connection:
        rings = await _chosen(connection, method_id)
        for one in rings:
            _check_room(one, count)
        if confirmed:
            moved = [SkippedRing.of(one, *await skip_indices(connection, one.ring.id, count)) for one in rings]
        else:
            moved = [SkippedRing.of(one, *_after(one, count)) for one in rings]
    if as_json:
        print_json(Skipped(count=count, written=confirmed and bool(moved), rings=moved))
    else:
        _show(moved)
    if moved and not confirmed:
        progress(NOTHING_WRITTEN)


async def _chosen(connection: ServiceConnection, method_id: str | None) -> list[RingInUse]:
    # What is previewed and checked is what is moved: no method is added to a key in between.
    await lock_registry(connection)
    if method_id is not None:
        method = await find_method(connection, method_id)
        if method is None:
            raise MethodNotFound(method_id)
        if method.scheme is not Scheme.XPUB:
            raise InvalidInput(
                "ID", f"{method_id} has no indices, its addresses follow from their owners: expected one of scheme xpub"
            )
    return await list_rings_in_use(connection, method_id)


def _after(one: RingInUse, count: int) -> tuple[int, int]:
    return one.ring.next_index + count, one.ring.gap_limit + (count if one.is_utxo else 0)


def _check_room(one: RingInUse, count: int) -> None:
    next_index, gap_limit = _after(one, count)
    if next_index > INDEX_MAX:
        raise InvalidInput("--by", f"key {one.ring.path} has {INDEX_MAX - one.ring.next_index} indices left")
    if gap_limit > GAP_LIMIT_MAX:
        raise InvalidInput(
            "--by",
            f"{one.ring.gap_limit} is the gap limit of {one.ring.path}: expected at most {GAP_LIMIT_MAX} then",
        )


def _show(moved: list[SkippedRing]) -> None:
    if not moved:
        stdout.print(NO_KEYS)
        return
    columns = ("key", "path", "methods", "last address", "next index", "after", "gap limit", "after ")
    rows = [
        (
            *(one.fingerprint, one.path, ", ".join(one.methods), one.last_index),
            *(one.next_index, one.next_index_after, one.gap_limit, one.gap_limit_after),
        )
        for one in moved
    ]
    stdout.print(table("", columns, rows, right=columns[3:]))
