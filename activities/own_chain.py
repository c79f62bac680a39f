"""At the head of every activity: what belongs to another chain than the worker's is handed back, and nothing done."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from db.engine import ServiceDatabase
from db.operations import findings
from db.payments import attempts
from domain.chain import require_own_chain


class OwnChain(Interceptor):
    """Compares the chain of what an activity is given with the worker's, whichever queue it came from.

    A message's field `chain_id` says which; where it does not, the row of its attempt or finding. What names none of
    them belongs to no chain. Raises `WorkerOfAnotherChain`, which is tried again until a worker of that chain takes it.
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
        """By the database; None also where there is no such row, which the activity itself has to say."""
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
