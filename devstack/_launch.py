"""The first milliseconds of every child: gives up rights, ties its life to its parent's, becomes the program.

It is run as a script (`python -I -S _launch.py PLAN PROGRAM ARGUMENTS...`) rather than as a `preexec_fn`:
Python code between fork and exec can deadlock when the parent has threads, and the parents here do.
Standard library only, and as little of it as possible: this is on the path of every start.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG = 1


def main() -> None:
    plan: dict[str, Any] = json.loads(sys.argv[1])
    argv = sys.argv[2:]
    os.umask(0o077)
    # A parent that was started with `&` ignores SIGINT, and the children would inherit that.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if plan["cwd"] is not None:
        os.chdir(plan["cwd"])  # while we still may enter it
    if plan["uid"] is not None:
        os.setgroups([])
        os.setgid(plan["gid"])
        os.setuid(plan["uid"])
    if plan["parent_death_signal"] and sys.platform == "linux":
        # After the change of user, because the kernel forgets the setting then.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, plan["parent_death_signal"], 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != plan["parent_pid"]:
            sys.exit("the parent process died during the start")  # too early for the signal to have come
    os.execv(argv[0], argv)  # noqa: S606 - a shell is not wanted


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"cannot start {sys.argv[2]}: {error}")
