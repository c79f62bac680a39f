"""A browser for the tests of the page: found on this machine, or installed as Debian's package where that is allowed.

`python -m devstack.browser` installs it; it never fails, because everything but those tests works without.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

NAMES: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first is Chromium without its windows: a page takes it a quarter of the processor's time."""
PACKAGES: Final = ("chromium-headless-shell", "chromium")
"""The first that there is: older releases of Debian lack one."""
UPDATE_TIMEOUT_SECONDS: Final = 120
INSTALL_TIMEOUT_SECONDS: Final = 600
# A mirror that does not answer costs seconds, not the minutes that are usual.
PATIENCE: Final = ("-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20")

NO_BROWSER: Final = "there is no Chromium on this machine"
WITHOUT: Final = "the browser tests will not run, everything else does"


def find_browser() -> Path | None:
    """Chromium, or a browser of its family, on the path."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return Path(found) if found else None


def install_browser() -> str | None:
    """Install Chromium where this process may. None when it is there, else one line that says why it is not."""
    if find_browser():
        return None
    if not shutil.which("apt-get"):
        return f"Chromium is not installed, and there is no apt-get to install it with: {WITHOUT}."
    if os.geteuid() != 0:
        return f"Chromium is not installed: {WITHOUT}. To have it: sudo apt-get install {PACKAGES[-1]}"
    # Lists that could not be renewed may still do.
    _apt_get("update", timeout_seconds=UPDATE_TIMEOUT_SECONDS)
    trouble = None
    for package in PACKAGES:
        command = ("install", "--yes", "--no-install-recommends", package)
        trouble = _apt_get(*command, timeout_seconds=INSTALL_TIMEOUT_SECONDS)
        if find_browser():
            return None
    return f"Chromium could not be installed ({trouble or 'apt-get left no browser behind'}): {WITHOUT}."


def _apt_get(*arguments: str, timeout_seconds: float) -> str | None:
    """Run it quietly; the last line of what it complains about, or None."""
    try:
        run = subprocess.run(
            ["apt-get", "-qq", *PATIENCE, *arguments],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    lines = run.stderr.strip().splitlines()
    return None if run.returncode == 0 else (lines[-1] if lines else f"apt-get ended with {run.returncode}")


if __name__ == "__main__":
    if line := install_browser():
        sys.stderr.write(line + "\n")
