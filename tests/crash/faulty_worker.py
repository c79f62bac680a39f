"""The product's worker, made to kill or pause itself at one exact point. All of it is done from out here.

    SETTLE_TEST_FAULT='{"activity": "credit_buyer", "moment": "after_commit"}' python -m tests.crash.faulty_worker

Statements and commits are watched at the driver, so the process dies between two messages to the server, not between
two lines of Python.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import timedelta
from types import ModuleType
from typing import Any, Final

from psycopg import AsyncConnection, AsyncCursor
from temporalio import activity
from temporalio.worker import Worker

from chain.rpc import Endpoint
from db import engine
from settings import environment, load
from tests.support.faults import FAULT_VARIABLE, GONE_ON, Action, Fault, Moment

SINGLE_STATEMENTS: Final = {"mint_bonus": "post_entry(", "credit_buyer": "credit_own_purchase("}
"""Activities whose transaction is one statement, and the words of it."""

BROADCAST: Final = "eth_sendRawTransaction"


class Trap:
    """Springs once, at the moment that the fault names."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._sprung = False
        self._connection: object = None
        """The one that has sent the statement: other connections' commits are not its own."""

    def reached(self, moment: Moment, connection: object = None) -> None:
        """This process has come to `moment`; it may not come any further."""
        if not self._sprung and moment is self._fault.moment and self._is_in_the_activity(connection):
            self._sprung = True
            os.kill(os.getpid(), signal.SIGKILL if self._fault.action is Action.KILL else signal.SIGSTOP)

    def ended(self, connection: object = None) -> None:
        """A transaction is over: report it to the test that paused this process in it."""
        if self._sprung and self._is_in_the_activity(connection):
            print(GONE_ON, file=sys.stderr, flush=True)  # noqa: T201 - the test reads what the process writes

    def _is_in_the_activity(self, connection: object) -> bool:
        if self._fault.statement:
            return self._connection is not None and connection is self._connection
        if not self._fault.activity:
            return True
        return activity.in_activity() and activity.info().activity_type == self._fault.activity

    def install(self) -> None:
        """Watch every statement, commit, rollback and broadcast of this process."""
        execute, commit, rollback = AsyncCursor.execute, AsyncConnection.commit, AsyncConnection.rollback

        async def watched_execute(cursor: Any, query: Any, *arguments: Any, **options: Any) -> Any:
            is_transaction = self._is_transaction(query)
            if self._fault.statement and self._fault.statement in str(query):
                self._connection = cursor.connection
            self.reached(Moment.BEFORE_TRANSACTION, cursor.connection)
            if is_transaction:
                self.reached(Moment.BEFORE_COMMIT, cursor.connection)
            try:
                answer = await execute(cursor, query, *arguments, **options)
            except BaseException:
                # Also cancelled: the SDK gives up an activity that has outlived its time.
                self.ended(cursor.connection)
                raise
            if is_transaction:
                self.reached(Moment.AFTER_COMMIT, cursor.connection)
                self.ended(cursor.connection)
            elif self._fault.moment is Moment.BEFORE_TRANSACTION and self._fault.activity in SINGLE_STATEMENTS:
                # It may have read that there is nothing left to write.
                self.ended(cursor.connection)
            return answer

        async def watched_commit(connection: Any) -> None:
            self.reached(Moment.BEFORE_COMMIT, connection)
            try:
                await commit(connection)
                self.reached(Moment.AFTER_COMMIT, connection)
            finally:
                self.ended(connection)

        async def watched_rollback(connection: Any) -> None:
            try:
                await rollback(connection)
            finally:
                self.ended(connection)

        batch = Endpoint.batch

        async def watched_batch(endpoint: Any, calls: Any, **options: Any) -> Any:
            is_broadcast = any(call.method == BROADCAST for call in calls)
            if is_broadcast:
                self.reached(Moment.BEFORE_BROADCAST)
            answer = await batch(endpoint, calls, **options)
            if is_broadcast:
                self.reached(Moment.AFTER_BROADCAST)
            return answer

        _replace(Endpoint, "batch", watched_batch)
        _replace(AsyncCursor, "execute", watched_execute)
        _replace(AsyncConnection, "commit", watched_commit)
        _replace(AsyncConnection, "rollback", watched_rollback)

    @staticmethod
    def _is_transaction(query: object) -> bool:
        """Whether the statement is a transaction of its own, without a commit to wait for."""
        if not activity.in_activity():
            return False
        words = SINGLE_STATEMENTS.get(activity.info().activity_type)
        return words is not None and words in str(query)


def set_options(fault: Fault) -> None:
    """The product's time-outs and the worker's options, changed where the fault says so."""
    if fault.ledger_start_to_close_seconds is not None:
        _set_policy("LEDGER_START_TO_CLOSE", timedelta(seconds=fault.ledger_start_to_close_seconds))
    if fault.poll_start_to_close_seconds is not None:
        _set_policy("POLL_START_TO_CLOSE", timedelta(seconds=fault.poll_start_to_close_seconds))
    if fault.webhook_start_to_close_seconds is not None:
        _set_policy("WEBHOOK_START_TO_CLOSE", timedelta(seconds=fault.webhook_start_to_close_seconds))
    if fault.sweep_start_to_close_seconds is not None:
        _set_policy("SWEEP_START_TO_CLOSE", timedelta(seconds=fault.sweep_start_to_close_seconds))
        _set_policy("BATCHES_HEARTBEAT", timedelta(seconds=fault.sweep_start_to_close_seconds))
    if fault.idle_in_transaction_timeout is not None:
        engine.SESSION_SETTINGS["idle_in_transaction_session_timeout"] = fault.idle_in_transaction_timeout
    import worker

    options: dict[str, Any] = {}
    if fault.sticky_seconds is not None:
        options["sticky_queue_schedule_to_start_timeout"] = timedelta(seconds=fault.sticky_seconds)
    if fault.activities_only:
        options |= {"workflows": [], "max_concurrent_activities": 1}
    if fault.workflow_tasks_only:
        options |= {"no_remote_activities": True, "max_cached_workflows": 0, "max_concurrent_workflow_tasks": 1}
    _replace(worker, "Worker", lambda *arguments, **given: Worker(*arguments, **given | options))


def _set_policy(name: str, value: timedelta) -> None:
    """In `workflows.policies`, and wherever it has been imported to already."""
    for module in list(sys.modules.values()):
        if module.__name__.startswith("workflows.") and hasattr(module, name):
            _replace(module, name, value)


def _replace(owner: ModuleType | type, name: str, value: object) -> None:
    assert hasattr(owner, name)
    setattr(owner, name, value)


def main() -> None:
    """Run the worker as `settle worker` does, with the fault in it."""
    fault = Fault.model_validate_json(os.environ[FAULT_VARIABLE])
    set_options(fault)
    Trap(fault).install()
    from telemetry.logs import configure
    from worker import run_worker

    variables = environment()
    settings = load(variables)
    configure(level=settings.log_level.value, log_format=settings.log_format.value)
    asyncio.run(run_worker(settings, variables))


if __name__ == "__main__":
    main()
