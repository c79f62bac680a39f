"""Timeouts and retry policies, each with its reason. A test holds their values: replay does not notice a change."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from temporalio.common import RetryPolicy

# A transaction takes milliseconds. Ten seconds is what a worker that was killed costs a payment, since nobody
# tells the server about its death; it is also above the database's own lock timeout of five seconds.
LEDGER_START_TO_CLOSE: Final = timedelta(seconds=10)

# Never given up: the database comes back, and until then the operator sees the activity pending with its error.
LEDGER_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=500), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=30)
)

# Above `activities.payments.verification.POLL_TIMEOUT`, which bounds all endpoints together.
POLL_START_TO_CLOSE: Final = timedelta(seconds=30)

# "Still waiting" times its own next retry; this policy is for a worker or a database that is gone.
POLL_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=30)
)

# A receiver that takes longer than this for one event is as good as none; it gets it again for an hour.
ANNOUNCE_START_TO_CLOSE: Final = timedelta(seconds=15)
ANNOUNCE_SCHEDULE_TO_CLOSE: Final = timedelta(hours=1)

# A scheduled job that cannot do its work fails in sight of the operator, and the next one tries again: it must not hold
# that one up, which is skipped while this one runs. A step that reads or writes a few rows:
JOB_START_TO_CLOSE: Final = timedelta(seconds=30)
JOB_SCHEDULE_TO_CLOSE: Final = timedelta(seconds=60)
JOB_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=15)
)

# One that works through batches for as long as there are any. It says after each that it lives.
BATCHES_START_TO_CLOSE: Final = timedelta(minutes=10)
BATCHES_HEARTBEAT: Final = timedelta(seconds=60)
BATCHES_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=15),
    maximum_attempts=4,
)

# One of everything takes about a minute for each million entries. It says after each step that it lives, and one that
# is tried again goes on where it was.
BOOKS_START_TO_CLOSE: Final = timedelta(hours=11)

# A heartbeat that nobody receives is followed by another one: three tries, and the next tick is not skipped for them.
BEAT_ANNOUNCE_SCHEDULE_TO_CLOSE: Final = timedelta(seconds=45)

# Following a chain takes as long as the message says, by itself; beyond that it hangs. A worker that was killed tells
# nobody, so this is how long the chain is not followed then; the activity says every three seconds that it lives.
FOLLOW_GRACE: Final = timedelta(minutes=5)
FOLLOW_HEARTBEAT: Final = timedelta(seconds=20)

# Never given up. What the chain or the database does is waited for inside; this is for a worker that stops or a fault.
FOLLOW_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=30)
)

# Below the usual time between two re-scans: what one could not read, the next one reads.
RESCAN_SCHEDULE_TO_CLOSE: Final = timedelta(minutes=4)
RESCAN_HEARTBEAT: Final = timedelta(seconds=30)
RESCAN_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=2), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=30)
)

# A hundred thousand transfers take a minute; a day that waited for a slow disk may take many. It says that it lives.
RECONCILE_START_TO_CLOSE: Final = timedelta(minutes=45)
RECONCILE_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=30),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(minutes=5),
    maximum_attempts=4,
)
