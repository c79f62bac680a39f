"""The product away from its checkout: from a wheel, in folders with awkward names, on a full disk, interrupted."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from alembic.script import ScriptDirectory

from db import migrations
from db.migrate import _alembic
from db.schema import SCHEMA_REVISION
from devstack.chain import locate_anvil
from devstack.errors import MissingPartError, PartFailedError
from devstack.postgres import EmbeddedPostgres
from devstack.processes import process_identity, quiet_port
from tests.devstack.conftest import descendants
from tests.support.service_process import clean_environment

ROOT = Path(__file__).resolve().parents[2]
AWKWARD = "100% #1 50%25?x=1&y 'a' \"b\" (ü) %(here)s ${HOME}, a;b"
"""What CI servers, people and attackers put into folders' names; no colon, which no search path can hold."""

DEMO_SECONDS_MAX = 300
EARLY_SECONDS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.5, 3.0)


def _environment(folder: Path) -> dict[str, str]:
    """Without our settings, and with temporary files in `folder`, which is where a demo keeps its state."""
    found = {**clean_environment({}), "TMPDIR": str(folder), "SETTLE_NODE_MODULES": str(ROOT / "node_modules")}
    return {name: value for name, value in found.items() if name != "PYTHONPATH"}


# -- a wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment into which the product came as a wheel, in a folder with an awkward name.

    Its dependencies are those of this environment; of the checkout it sees nothing.
    """
    base = tmp_path_factory.mktemp("wheel")
    source = base / "source"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        if not name.startswith(("tests/", "docs/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    _run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        base,
        source,
    )
    [wheel] = base.glob("*.whl")
    shutil.rmtree(source)
    environment = base / AWKWARD / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    _run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel)
    # Not its .pth files: the editable install of the checkout is one of them.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # Programs that come with the dependencies are beside Python where they are installed.
    (environment / "bin" / "temporal").symlink_to(Path(sysconfig.get_path("scripts")) / "temporal")
    return python


def _run(*command: object) -> str:
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_the_wheel_is_all_that_is_seen(installed: Path, tmp_path: Path) -> None:
    program = (
        "import cli, settings, db.migrations, devstack.chain as c; print(cli.__file__, settings.__file__, c.__file__)"
    )
    run = subprocess.run(
        [installed, "-P", "-c", program],
        cwd=tmp_path,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(ROOT) not in run.stdout
    assert AWKWARD in run.stdout


@pytest.mark.slow
def test_the_demo_runs_from_a_wheel_in_folders_with_awkward_names(installed: Path, tmp_path: Path) -> None:
    temporary, empty = tmp_path / f"t {AWKWARD}", tmp_path / f"e {AWKWARD}"
    temporary.mkdir()
    empty.mkdir()
    run = subprocess.run(
        [installed, "-P", "-m", "cli", "demo"], cwd=empty, env=_environment(temporary), capture_output=True, text=True,
        timeout=DEMO_SECONDS_MAX, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert "--keep" in run.stdout.splitlines()[-1]
    assert "http://127.0.0.1" not in run.stdout, "a link into a server that has stopped"
    assert list(empty.iterdir()) == []
    assert [path.name for path in temporary.iterdir() if path.name.startswith("settle-demo-")] == []


def test_what_is_missing_is_named_with_its_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETTLE_NODE_MODULES", str(tmp_path))
    with pytest.raises(MissingPartError, match="npm install @foundry-rs/anvil-"):
        locate_anvil()


def test_anvil_of_another_modules_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SETTLE_NODE_MODULES", raising=False)
    real = locate_anvil()
    there = tmp_path / AWKWARD / "node_modules"
    there.parent.mkdir()
    there.symlink_to(real.parents[3])
    monkeypatch.setenv("SETTLE_NODE_MODULES", str(there))
    assert locate_anvil().samefile(real)


# -- folders


@pytest.mark.parametrize("name", ["100% done", "%(here)s", "%%", AWKWARD])
def test_the_migrations_are_found_wherever_the_code_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    there = tmp_path / name / "migrations"
    shutil.copytree(ROOT / "db" / "migrations", there)
    monkeypatch.setattr(migrations, "__path__", [str(there)])
    with sqlalchemy.create_engine("sqlite://").connect() as connection:
        scripts = ScriptDirectory.from_config(_alembic(connection))
    assert scripts.get_current_head() == SCHEMA_REVISION


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m,mode=755", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


async def test_a_full_disk_is_what_initdb_is_said_to_have_failed_of(small_disk: Path) -> None:
    with pytest.raises(PartFailedError) as failed:
        await EmbeddedPostgres(small_disk, quiet_port()).start()
    assert os.strerror(errno.ENOSPC) in str(failed.value)
    assert "\n" not in str(failed.value)


# -- Ctrl-C

BEGIN = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from commands.entry import leave_on_interrupt, main; leave_on_interrupt(); print(flush=True); "
    "sys.argv = ['settle', *sys.argv[1:]]; main()"
)
"""The command, with a line when it has begun: before that, Ctrl-C meets the interpreter's own start.

A shell without job control starts what runs in the background, these tests perhaps, with SIGINT ignored.
"""


def _begun(folder: Path, command: list[str], variables: dict[str, str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, *command], cwd=folder, env={**_environment(folder), **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("seconds", EARLY_SECONDS)
async def test_ctrl_c_at_any_moment_ends_the_demo_without_a_traceback(tmp_path: Path, seconds: float) -> None:
    process = _begun(tmp_path, ["demo"], {})
    await asyncio.sleep(seconds)  # the moment itself is what is tested
    below = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = await asyncio.to_thread(process.communicate, timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 5
    while any(process_identity(pid) for pid in below) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert not any(process_identity(pid) for pid in below)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("settle-demo-")] == []


@pytest.mark.slow(but=("0.0-command0",))
@pytest.mark.parametrize("command", [["up"], ["bench"], ["doctor"], ["worker"], ["api"], ["migrate"]])
@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.6])
async def test_ctrl_c_ends_every_command_without_a_traceback(
    tmp_path: Path, command: list[str], seconds: float
) -> None:
    settings = {"DATABASE_URL": "postgresql://a:b@192.0.2.1/c", "SERVICE_DATABASE_URL": "postgresql://a:b@192.0.2.1/c",
                "MIGRATION_DATABASE_URL": "postgresql://a:b@192.0.2.1/c", "CHAIN_RPC_URLS": "http://192.0.2.1:8545",
                "SETTLEMENT_DATABASE_URL": "postgresql://a:b@192.0.2.1/c", "API_URL": "http://localhost:8080",
                "TREASURY_ADDRESS": "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"}  # fmt: skip
    variables = settings if command[0] not in {"up", "bench"} else {}
    process = _begun(tmp_path, command, variables)
    await asyncio.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = await asyncio.to_thread(process.communicate, timeout=60)
    assert "Traceback" not in errors
    assert process.returncode in {0, 1, 2, 130}
