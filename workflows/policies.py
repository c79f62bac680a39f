"""Timeouts and retry policies, each with its reason. A test holds their values: replay does not notice a change."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from temporalio.common import RetryPolicy

# A transaction takes milliseconds. Ten seconds is what a killed worker costs a payment, since the server is not
# notified of its death; it is also above the database's own lock timeout of five seconds.
LEDGER_START_TO_CLOSE: Final = timedelta(seconds=10)

# Retried indefinitely: the database comes back, and until then operators see the activity pending with its error.
LEDGER_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(milliseconds=500), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=30)
)

# How long the server waits for a worker that has taken a workflow's task, and perhaps a ledger step with it: the same.
WORKFLOW_TASK_TIMEOUT: Final = timedelta(seconds=10)

# In the worker that has the workflow's task: one try, well below the time after which the server takes the task for
# lost. A database that does not answer in this time is waited for by a regular activity, which operators see.
LOCAL_LEDGER_SCHEDULE_TO_CLOSE: Final = timedelta(seconds=2)
LOCAL_LEDGER_RETRY: Final = RetryPolicy(maximum_attempts=1)

# Above `activities.payments.verification.POLL_TIMEOUT`, which bounds all endpoints together.
POLL_START_TO_CLOSE: Final = timedelta(seconds=30)

# "Still waiting" times its own next retry; this policy is for an unavailable worker or database.
POLL_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=30)
)

# An event sink that takes longer for one event counts as down; events are retried for an hour.
ANNOUNCE_START_TO_CLOSE: Final = timedelta(seconds=15)
ANNOUNCE_SCHEDULE_TO_CLOSE: Final = timedelta(hours=1)

# A scheduled job that cannot do its work fails visibly, and the next run tries again: it must not delay that one, which
# is skipped while this one runs. A step that reads or writes a few rows:
JOB_START_TO_CLOSE: Final = timedelta(seconds=30)
JOB_SCHEDULE_TO_CLOSE: Final = timedelta(seconds=60)
JOB_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=15)
)

# A model answers within minutes. A gateway that is away is asked again for a while; the next run is an hour away.
# Above `activities.operations.governance_loop.ANSWER_SECONDS_MAX`.
GOVERNANCE_CALL_START_TO_CLOSE: Final = timedelta(minutes=3)
GOVERNANCE_CALL_SCHEDULE_TO_CLOSE: Final = timedelta(minutes=20)
GOVERNANCE_CALL_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=2), backoff_coefficient=2.0, maximum_interval=timedelta(minutes=1)
)

# One that works through batches as long as there are any. It sends a heartbeat after each.
BATCHES_START_TO_CLOSE: Final = timedelta(minutes=10)
BATCHES_HEARTBEAT: Final = timedelta(seconds=60)
BATCHES_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=15),
    maximum_attempts=4,
)

# A full scan takes about a minute for each million entries. It sends a heartbeat after each step, and a retry continues
# where it was.
BOOKS_START_TO_CLOSE: Final = timedelta(hours=11)

# A heartbeat that is not accepted is followed by another one: three tries, so that the next tick is not skipped for
# them.
BEAT_ANNOUNCE_SCHEDULE_TO_CLOSE: Final = timedelta(seconds=45)

# Following a chain takes as long as the message says, by itself; beyond that it hangs. A killed worker is noticed by
# its missing heartbeat, so this is how long the chain is not followed then; the activity sends one every three seconds.
FOLLOW_GRACE: Final = timedelta(minutes=5)
FOLLOW_HEARTBEAT: Final = timedelta(seconds=20)

# Retried indefinitely. The activity itself waits for chain and database; this is for a worker that stops or a fault.
FOLLOW_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=30)
)

# A provider's record of a call may come a minute after the call, and its interface may be away. After this time the
# call is charged by what was produced, as for a provider without records. One question: above
# `services.billing.provider_api.ANSWER_SECONDS_MAX`.
LOOKUP_START_TO_CLOSE: Final = timedelta(seconds=20)
LOOKUP_SCHEDULE_TO_CLOSE: Final = timedelta(minutes=3)
LOOKUP_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=20)
)

# Below the usual time between two re-scans: what one could not read, the next one reads.
RESCAN_SCHEDULE_TO_CLOSE: Final = timedelta(minutes=4)
RESCAN_HEARTBEAT: Final = timedelta(seconds=30)
RESCAN_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=2), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=30)
)

# A few pages for each provider, and a sum over the receipts of each day. What cannot be read is read the day after.
PROVIDERS_START_TO_CLOSE: Final = timedelta(minutes=20)

# A hundred thousand transfers take a minute; a day on a slow disk may take many. It sends heartbeats.
RECONCILE_START_TO_CLOSE: Final = timedelta(minutes=45)
RECONCILE_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=30),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(minutes=5),
    maximum_attempts=4,
)

# Sent and asked about at each retry, which the activity times by the chain's blocks. Signed transactions stay valid:
# after a week with a nonce that is not mined an operator has to replace it, and sends the file again.
SWEEP_START_TO_CLOSE: Final = timedelta(minutes=2)
SWEEP_SCHEDULE_TO_CLOSE: Final = timedelta(days=7)
SWEEP_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=30)
)

# One try: above `services.webhooks.sender.SEND_SECONDS_MAX`, with its transactions. It is what a killed worker costs.
WEBHOOK_START_TO_CLOSE: Final = timedelta(seconds=30)

# Retried until the delivery ends. A receiver that does not accept it times its own next retry; this policy is for an
# unavailable database, and for a worker that died.
WEBHOOK_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=30)
)
