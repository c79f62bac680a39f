"""A command of the product, made to kill itself at one exact point of one transaction.

SETTLE_TEST_FAULT='{"statement": "record_own_submission(", ...}' python -m tests.crash.faulty_command attempt ...
"""

from __future__ import annotations

import os

from cli import main
from tests.crash.faulty_worker import Trap
from tests.support.faults import FAULT_VARIABLE, Fault

if __name__ == "__main__":
    Trap(Fault.model_validate_json(os.environ[FAULT_VARIABLE])).install()
    main()
