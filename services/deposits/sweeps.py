"""Sweeps that are under way, and the transfers to a treasury that they, or strangers, caused: in the ledger, once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog

from chain.reader import ChainReader
from chain.transactions import MinedTransaction
from db.deposits.methods import find_method
from db.deposits.prices import booked_worth
from db.deposits.registry import list_rings, list_treasuries
from db.deposits.sweeps import (
    SignedSweepTransaction,
    SweepScope,
    book_swept_transfer,
    end_sweep,
    find_senders,
    list_left,
    list_scopes,
    list_swept_coin,
    list_transactions,
    mark_swept_handled,
    move_sweep_cursor,
    note_outcome,
)
from db.engine import ServiceConnection, ServiceDatabase
from db.transfers.observed import find_cursor
from domain.chain import DepositLane, DepositScope, Transfer, TransferScope
from domain.deposits.methods import WORTH_CREDITS_MAX, DepositAddress
from domain.deposits.worth import is_dollar_token, worth_in_credits
from services.deposits.verification import problem_of

BLOCKS_AT_ONCE: Final = 2_000

TRANSFERS_AT_ONCE: Final = 500

START_GRACE: Final = timedelta(minutes=1)
"""How long a stored sweep is left to the workflow that is about to be started for it."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """How far a sweep is: nonces that are decided, and what went wrong with those that failed."""

    decided: int
    nonces: int
    problems: tuple[str, ...] = ()
    waits_for: str = ""

    @property
    def is_done(self) -> bool:
        """Whether every nonce is decided."""
        return self.decided == self.nonces


class Sweeps:
    """Safe to repeat, at once, and to be stopped half-way: what was signed is stored, and sending it again changes
    nothing. `min_confirmations` is how deep a block must be before anything follows from it.
    """

    def __init__(self, database: ServiceDatabase, chain: ChainReader, *, treasury: str, min_confirmations: int) -> None:
        self._database = database
        self._chain = chain
        self._treasury = treasury
        self._min_confirmations = min_confirmations

    async def advance(self, sweep_id: UUID) -> SweepProgress:
        """Send what is not mined, and note what has become of it. Raises `ChainUnavailable`."""
        async with self._database.transaction() as connection:
            stored = await list_transactions(connection, sweep_id)
        nonces: dict[tuple[str, int], list[SignedSweepTransaction]] = defaultdict(list)
        for one in stored:
            nonces[one.sender, one.nonce].append(one)
        waiting: list[str] = []
        decided = 0
        for (sender, nonce), signed in sorted(nonces.items()):
            if any(one.outcome for one in signed) and all(one.outcome for one in signed):
                decided += 1
                continue
            reason = await self._advance_nonce(sender, nonce, signed)
            if reason is None:
                decided += 1
            else:
                waiting.append(f"nonce {nonce}: {reason}")
        return await self._progress(sweep_id, decided, len(nonces), waiting)

    async def _progress(self, sweep_id: UUID, decided: int, nonces: int, waiting: list[str]) -> SweepProgress:
        async with self._database.transaction() as connection:
            stored = await list_transactions(connection, sweep_id)
            succeeded = {(one.sender, one.nonce) for one in stored if one.outcome == "succeeded"}
            problems = tuple(
                f"nonce {one.nonce}: {one.tx_hash} {one.outcome}"
                for one in stored
                if one.outcome not in (None, "succeeded") and (one.sender, one.nonce) not in succeeded
            )
            if decided == nonces:
                await end_sweep(connection, sweep_id, "failed" if problems else "done")
        return SweepProgress(decided, nonces, problems, "; ".join(waiting))

    async def _advance_nonce(self, sender: str, nonce: int, signed: Sequence[SignedSweepTransaction]) -> str | None:
        """What a nonce waits for; None once it is decided. All that were signed for it are watched."""
        mined = await self._chain.transactions.mined([one.tx_hash for one in signed])
        deep = await self._chain.heads.height() - self._min_confirmations + 1
        for one in signed:
            found = mined.get(one.tx_hash)
            if found is None:
                continue
            if found.block_number > deep:
                needed = self._min_confirmations
                return f"{needed - (found.block_number - deep)} of {needed} confirmations"
            outcome = "succeeded" if found.succeeded else "reverted"
            await self._note(signed, one.tx_hash, outcome, found)
            return None
        if deep > 0 and await self._chain.transactions.nonce_at(sender, deep) > nonce:
            await self._note(signed, None, "replaced")
            return None
        # The newest one first: it is the one that offers most.
        refusals = [await self._chain.transactions.send(one.raw) for one in reversed(signed)]
        if refusals[0] is None:
            return "sent, not mined"
        return f"not accepted: {refusals[0]}"

    async def _note(
        self,
        signed: Sequence[SignedSweepTransaction],
        tx_hash: str | None,
        outcome: str,
        mined: MinedTransaction | None = None,
    ) -> None:
        chain_id = self._chain.chain_id
        async with self._database.transaction() as connection:
            for one in signed:
                if one.tx_hash == tx_hash:
                    await note_outcome(connection, chain_id, tx_hash, outcome, mined)
                else:
                    await note_outcome(connection, chain_id, one.tx_hash, "replaced")

    async def resume(self, *, on_progress: Callable[[], object] = lambda: None) -> int:
        """Advance sweeps that have not ended, also those whose workflow was never started; how many go on.

        Raises `ChainUnavailable`.
        """
        async with self._database.transaction() as connection:
            left = await list_left(connection, self._chain.chain_id, grace=START_GRACE)
        going_on = 0
        for sweep_id in left:
            going_on += not (await self.advance(sweep_id)).is_done
            on_progress()
        return going_on

    async def book(self, *, on_progress: Callable[[], object] = lambda: None) -> int:
        """Book what deposit addresses have sent to a treasury, in blocks that are deep enough; how many transfers.

        Whose transaction it was does not matter. Raises `ChainUnavailable`.
        """
        async with self._database.transaction() as connection:
            scopes = await list_scopes(connection, self._chain.chain_id, self._treasury)
        booked = 0
        for scope in scopes:
            booked += await self._book_scope(scope, on_progress)
        return booked

    async def _book_scope(self, scope: SweepScope, on_progress: Callable[[], object]) -> int:
        last = await self._chain.heads.height() - self._min_confirmations + 1
        first, booked = scope.first_block, 0
        watched = TransferScope(chain_id=scope.chain_id, token=scope.token, treasury=scope.treasury)
        if watched.is_of_coin:
            return await self._book_coin(scope, last, on_progress)
        while first <= last:
            found = await self._chain.logs.transfers(watched, first, min(last, first + BLOCKS_AT_ONCE - 1))
            count = await self._book_range(scope, found.transfers, found.last)
            if count is None:
                return booked  # another pass is reading the same blocks
            booked += count
            on_progress()
            scope = SweepScope(
                scope.method_id, scope.chain_id, scope.token, scope.treasury, found.last + 1, cursor=found.last
            )
            first = found.last + 1
        return booked

    async def _book_coin(self, scope: SweepScope, last: int, on_progress: Callable[[], object]) -> int:
        """Book what the coin's lane has seen the addresses send: to trace the blocks again would cost as much again."""
        async with self._database.autocommit() as connection:
            cursor = await find_cursor(connection, DepositScope.of(scope.chain_id, DepositLane.COIN))
        if cursor is None:
            return 0
        last, booked = min(last, cursor.block_number), 0
        while True:
            async with self._database.transaction() as connection:
                transfers = await list_swept_coin(connection, scope, up_to=last, limit=TRANSFERS_AT_ONCE)
                booked += await self._book_transfers(connection, scope, transfers)
                for transfer in transfers:
                    await mark_swept_handled(connection, scope, transfer)
                if not transfers:
                    if scope.cursor is None or scope.cursor < last:
                        await move_sweep_cursor(connection, scope, last)
                    return booked
            on_progress()

    async def _own_senders(
        self, connection: ServiceConnection, chain_id: int, transfers: Sequence[Transfer]
    ) -> dict[str, DepositAddress]:
        """The deposit addresses among the senders.

        A row alone is no proof: a process that people reach writes it, and a payer's wallet in it would be booked.
        """
        found = await find_senders(connection, chain_id, [one.from_address for one in transfers])
        if not found:
            return {}
        rings = {ring.id: ring for ring in await list_rings(connection)}
        treasuries = [self._treasury, *await list_treasuries(connection)]
        return {sender: row for sender, row in found.items() if problem_of(row, rings, treasuries) is None}

    async def _book_range(self, scope: SweepScope, transfers: Sequence[Transfer], last: int) -> int | None:
        async with self._database.transaction() as connection:
            if not await move_sweep_cursor(connection, scope, last):
                return None
            return await self._book_transfers(connection, scope, transfers)

    async def _book_transfers(
        self, connection: ServiceConnection, scope: SweepScope, transfers: Sequence[Transfer]
    ) -> int:
        method = await find_method(connection, scope.method_id)
        assert method is not None
        senders = await self._own_senders(connection, scope.chain_id, transfers)
        booked = 0
        for transfer in transfers:
            address = senders.get(transfer.from_address.lower())
            if address is None or transfer.value_raw == 0:
                continue
            if is_dollar_token(method.token):
                worth = worth_in_credits(method, transfer.value_raw)
                credits = worth if worth <= WORTH_CREDITS_MAX else 0
            else:
                credits = await booked_worth(connection, address.id, method.token, transfer.value_raw)
            booked += await book_swept_transfer(connection, scope, transfer, address.id, credits)
        if booked:
            log.info("swept transfers are booked", method=scope.method_id, treasury=scope.treasury, count=booked)
        return booked
