"""A parent that starts a child and waits to be killed: its arguments are the folder and a shell's command."""

import sys
import time
from pathlib import Path

from devstack.processes import ProcessSpec, start_process

if __name__ == "__main__":
    spec = ProcessSpec(name="left", argv=["/bin/sh", "-c", sys.argv[2]], state_dir=Path(sys.argv[1]))
    child = start_process(spec)
    while child.is_running and "ready" not in child.last_log_line():
        time.sleep(0.01)
    sys.stdout.write(f"{child.pid}\n")
    sys.stdout.flush()
    time.sleep(1000)
