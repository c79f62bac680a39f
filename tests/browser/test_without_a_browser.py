"""Machines without a browser: installed where that is allowed, and otherwise said, in one line and at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

import pytest

from devstack import browser

APT_GET: Final = """#!/bin/sh
echo "$@" >> "{folder}/asked"
case "$*" in
  *update*) exit 100 ;;
  *install*) {install} ;;
esac
"""


def _apt_get(folder: Path, monkeypatch: pytest.MonkeyPatch, *, install: str, user_id: int = 0) -> None:
    program = folder / "apt-get"
    program.write_text(APT_GET.format(folder=folder, install=install))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(os, "geteuid", lambda: user_id)


@pytest.mark.parametrize("there_is", [browser.PACKAGES, browser.PACKAGES[1:]])
def test_root_gets_the_first_package_that_there_is_even_when_the_lists_cannot_be_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there_is: tuple[str, ...]
) -> None:
    program = f'"{tmp_path}/{there_is[0]}"'
    made = f"case \"$*\" in *' {there_is[0]}') : > {program}; /bin/chmod +x {program};; *) exit 100;; esac"
    _apt_get(tmp_path, monkeypatch, install=made)
    assert browser.install_browser() is None
    assert browser.find_browser() == tmp_path / there_is[0]
    update, *installs = (tmp_path / "asked").read_text().splitlines()
    assert update.endswith(" update")
    tried = browser.PACKAGES[: browser.PACKAGES.index(there_is[0]) + 1]
    for install, package in zip(installs, tried, strict=True):
        assert install.endswith(f" install --yes --no-install-recommends {package}")
    assert browser.install_browser() is None
    assert len((tmp_path / "asked").read_text().splitlines()) == 1 + len(tried), "what is there is left alone"


def test_what_cannot_be_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _apt_get(tmp_path, monkeypatch, install='echo "E: no such package" >&2; exit 100')
    line = browser.install_browser() or ""
    assert "(E: no such package)" in line
    assert line.endswith(f"{browser.WITHOUT}.")
    assert "\n" not in line


def test_only_root_installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _apt_get(tmp_path, monkeypatch, install="exit 0", user_id=1000)
    assert "sudo apt-get install chromium" in (browser.install_browser() or "")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "there is no apt-get" in (browser.install_browser() or "")
    assert not (tmp_path / "asked").exists()


@pytest.mark.slow
def test_a_run_without_a_browser_ends_with_the_reason() -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # The interpreter's own programs only: no browser is among them.
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/browser/test_sign_in.py"],
        cwd=Path(__file__).parents[2],
        env=outside | {"PATH": sysconfig.get_path("scripts")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    last_lines = run.stdout.splitlines()[-2:]
    assert browser.NO_BROWSER in last_lines[0], run.stdout
    assert "skipped" in last_lines[1]
