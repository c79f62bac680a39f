"""LiteLLM's proxy as others run it: from the package index, in an environment of its own, before the same upstream."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from commands.local_system import LocalSystem
from devstack.processes import ProcessService, quiet_port

VERSION: Final = "1.106.12"
"""Its proxy consists of several packages that are released apart; of newer versions not every index has all."""
REQUIREMENT: Final = f"litellm[proxy]=={VERSION}"
MASTER_KEY: Final = "sk-bench-litellm"
READY_SECONDS_MAX: Final = 180.0
INSTALL_SECONDS_MAX: Final = 900.0


class LiteLlmMissing(Exception):
    """It cannot be installed here; the message says why."""


@dataclass(frozen=True, slots=True)
class RunningLiteLlm:
    """A running proxy."""

    url: str
    key: str
    process: ProcessService


def environment_folder() -> Path:
    """Where it is installed, once: outside of the project, whose lock it is no part of."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "settle" / f"litellm-{VERSION}"


async def install(on_progress: Callable[[str], None]) -> Path:
    """The program, installed where it is not. Raises `LiteLlmMissing`."""
    folder = environment_folder()
    program = folder / "bin" / "litellm"
    done = folder / ".installed"
    if done.exists() and program.exists():
        return program
    on_progress(f"installing {REQUIREMENT} into {folder}, some minutes")
    shutil.rmtree(folder, ignore_errors=True)
    await _run(sys.executable, "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    await _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT)
    done.touch()
    return program


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(INSTALL_SECONDS_MAX):
            _, errors = await process.communicate()
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise LiteLlmMissing(f"pip did not end within {INSTALL_SECONDS_MAX:.0f} s") from None
        raise
    if process.returncode != 0:
        lines = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
        raise LiteLlmMissing(f"{REQUIREMENT} cannot be installed: {lines[-1] if lines else 'pip failed'}")


def _config(upstream_url: str, model: str) -> dict[str, Any]:
    parameters = {"model": f"openai/{model}", "api_base": f"{upstream_url}/v1", "api_key": "sk-upstream"}
    return {
        "model_list": [{"model_name": model, "litellm_params": parameters}],
        "general_settings": {"master_key": MASTER_KEY},
        "litellm_settings": {"telemetry": False},
    }


@asynccontextmanager
async def running(system: LocalSystem, program: Path, *, model: str) -> AsyncIterator[RunningLiteLlm]:
    """One proxy process before the system's upstream. Raises `DevstackError`."""
    config = system.state_dir / "litellm.yaml"
    config.write_text(yaml.safe_dump(_config(system.stack.upstream.url, model)))
    port = quiet_port()
    url = f"http://127.0.0.1:{port}"
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await system.stack.add_process(
        "litellm",
        [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"],
        # Its price map comes with the package; otherwise it is fetched at each start.
        {**kept, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_DOCS": "True"},
        cwd=system.state_dir,
        ready=lambda: _answers(f"{url}/health/liveliness"),
        ready_timeout_seconds=READY_SECONDS_MAX,
    )
    try:
        yield RunningLiteLlm(url, MASTER_KEY, process)
    finally:
        await system.stack.remove_process("litellm")


async def _answers(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
