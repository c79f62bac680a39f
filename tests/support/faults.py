"""The faults that a worker process of the tests may be given."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import BaseModel

FAULT_VARIABLE: Final = "SETTLE_TEST_FAULT"
GONE_ON: Final = "the trapped activity has continued"
"""Written by a worker that was paused and continued, when its activity's transaction is over."""


class Moment(StrEnum):
    """Where in an activity the fault comes."""

    BEFORE_TRANSACTION = "before_transaction"
    """Before its first statement is sent."""

    BEFORE_COMMIT = "before_commit"
    """All is written and the commit not sent; where the statement is the transaction, before the statement."""

    AFTER_COMMIT = "after_commit"
    """The server has committed, and no client has been answered."""

    BEFORE_BROADCAST = "before_broadcast"
    """A signed transaction is about to be sent to a node."""

    AFTER_BROADCAST = "after_broadcast"
    """A node has taken it, and nothing says so yet."""


OF_A_TRANSACTION: Final = (Moment.BEFORE_TRANSACTION, Moment.BEFORE_COMMIT, Moment.AFTER_COMMIT)
"""Of an activity that writes to the database and sends nothing to a node."""


class Action(StrEnum):
    """What happens to the worker process there."""

    KILL = "kill"
    PAUSE = "pause"


class Fault(BaseModel):
    """What a faulty process does to itself, once. The time-outs are the product's where they are None.

    With neither activity nor statement it is whatever comes to the moment first.
    """

    activity: str = ""
    statement: str = ""
    """Of a process without activities: the words of the statement whose transaction it is."""
    moment: Moment | None = Moment.BEFORE_COMMIT
    """None: it does nothing to itself, and is only otherwise limited."""
    action: Action = Action.KILL
    ledger_start_to_close_seconds: float | None = None
    poll_start_to_close_seconds: float | None = None
    webhook_start_to_close_seconds: float | None = None
    sweep_start_to_close_seconds: float | None = None
    """Also without a heartbeat, where what it books has one."""
    sticky_seconds: float | None = None
    idle_in_transaction_timeout: str | None = None
    workflow_tasks_only: bool = False
    """It takes one workflow task at a time and no activities: a paused process then holds nothing but its task, and the
    ledger step that it has in hand with it.
    """
    activities_only: bool = False
    """It takes no workflow tasks, and one activity at a time: a paused process then holds nothing but its activity.

    The polls of a paused worker stay open for a minute, and each swallows one task until that times out.
    """


def shortened(activity: str = "", moment: Moment = Moment.BEFORE_COMMIT) -> Fault:
    """To be killed, with short time-outs: a dead worker costs a payment two seconds instead of ten.

    At least one test of each kind keeps the real ones.
    """
    return Fault(
        activity=activity,
        moment=moment,
        ledger_start_to_close_seconds=2,
        poll_start_to_close_seconds=3,
        sticky_seconds=0.5,
    )


def paused(activity: str, moment: Moment, *, idle_in_transaction_timeout: str | None = None) -> Fault:
    """To be paused in the middle of an activity, which is all that the process has taken on."""
    return Fault(
        activity=activity,
        moment=moment,
        action=Action.PAUSE,
        idle_in_transaction_timeout=idle_in_transaction_timeout,
        activities_only=True,
    )
