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

# Above `activities.verification.LOOK_TIMEOUT`, which bounds all endpoints together.
LOOK_START_TO_CLOSE: Final = timedelta(seconds=30)

# "Still waiting" times its own next retry; this policy is for a worker or a database that is gone.
LOOK_RETRY: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=30)
)
