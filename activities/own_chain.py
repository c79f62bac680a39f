"""Interceptor before every activity: work of another chain than the worker's is refused without effect."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from db.engine import ServiceDatabase
from db.operations import findings
from db.payments import attempts
from domain.chain import require_own_chain


class OwnChain(Interceptor):
    """Compares the chain of an activity's input with the worker's, whichever queue it came from.

    The message's field `chain_id` is used; without one, the row of its attempt or finding. Input without any of these
    belongs to no chain. Raises `WorkerOfAnotherChain`, which is retried until a worker of that chain runs it.
    """

    def __init__(self, database: ServiceDatabase, chain_id: int) -> None:
        self._database = database
        self._chain_id = chain_id

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        """Wrap the activity."""
        return _OwnChainInbound(next, self)

    async def require(self, message: object) -> None:
        """Raise `WorkerOfAnotherChain` where the message is about another chain."""
        attempt_id, finding_id = getattr(message, "attempt_id", None), getattr(message, "finding_id", None)
        chain_id: int | None = getattr(message, "chain_id", None)
        if chain_id is None and (attempt_id or finding_id):
            chain_id = await self._read_chain(attempt_id, finding_id)
        what = f"attempt {attempt_id}" if attempt_id else f"finding {finding_id}" if finding_id else "this work"
        require_own_chain(what, chain_id, own=self._chain_id)

    async def _read_chain(self, attempt_id: UUID | None, finding_id: UUID | None) -> int | None:
        """Read the chain from the database; None also where there is no such row, which the activity itself reports."""
        async with self._database.autocommit() as connection:
            if attempt_id is not None:
                return await attempts.find_chain(connection, attempt_id)
            return None if finding_id is None else await findings.find_chain(connection, finding_id)


class _OwnChainInbound(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, own_chain: OwnChain) -> None:
        super().__init__(next)
        self._own_chain = own_chain

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        for message in input.args:
            await self._own_chain.require(message)
        return await super().execute_activity(input)
