"""The Codex CLI, as its package installs it, with the gateway as its provider."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from codex_cli_bin import bundled_codex_path

from devstack.upstream.generation import echo_of
from tests.gateway.support import MODEL, PATIENCE_SECONDS, Served, served
from tests.support.postgres import Database

CONFIG = """
model = "{model}"
model_provider = "settle"
analytics.enabled = false
check_for_update_on_startup = false

[model_providers.settle]
name = "settle"
base_url = "{url}/v1"
env_key = "SETTLE_KEY"
wire_api = "responses"
"""
"""What its documentation says of a provider of one's own, and without reports to its makers."""


@dataclass(frozen=True, slots=True)
class Run:
    """What `codex exec --json` did."""

    code: int
    events: list[dict[str, Any]]

    def items(self, kind: str) -> list[dict[str, Any]]:
        """The completed items of a kind."""
        items = [event["item"] for event in self.events if event["type"] == "item.completed"]
        return [item for item in items if item["type"] == kind]

    @property
    def usage(self) -> dict[str, int]:
        """What it has used, as it was reported to it."""
        [usage] = [event["usage"] for event in self.events if event["type"] == "turn.completed"]
        return usage  # type: ignore[no-any-return]


async def codex(gateway: Served, folder: Path, prompt: str) -> Run:
    """Have it do something in a folder."""
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(CONFIG.format(model=MODEL, url=gateway.client.url))
    # Not in its sandbox, which needs rights that a container may lack.
    options = ["--json", "--skip-git-repo-check", "--sandbox", "danger-full-access", "--cd", str(folder)]
    async with _process(str(bundled_codex_path()), "exec", *options, prompt, home=home, key=gateway.client.key) as ran:
        output, _ = await ran.communicate()
        assert ran.returncode is not None
        return Run(ran.returncode, [json.loads(line) for line in output.splitlines()])


@asynccontextmanager
async def _process(*command: str, home: Path, key: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "CODEX_HOME": str(home), "SETTLE_KEY": key}
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.slow
async def test_a_turn_with_a_tool_is_two_calls_each_charged(gateway: Served, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("zanzibar")
    behaviour = {"tool_arguments": {"cmd": "cat note.txt"}, "reasoning_tokens": 5}
    run = await codex(gateway, tmp_path, f"!upstream {json.dumps(behaviour)} Read the note")
    assert run.code == 0
    assert [item["text"] for item in run.items("agent_message")] == [echo_of("Read the note")]
    [command] = run.items("command_execution")
    assert (command["aggregated_output"], command["exit_code"]) == ("zanzibar", 0)

    first, second = gateway.calls()
    # What its tool found reached the model, through the gateway.
    assert [b"zanzibar" in call.body for call in (first, second)] == [False, True]
    await gateway.is_quiet()
    assert gateway.books.states() == ["captured"] * 2
    receipts = gateway.books.receipts()
    for receipt, call in zip(receipts, (first, second), strict=True):
        used = call.billed
        assert (receipt["input_tokens"], receipt["output_tokens"]) == (used.prompt, used.output)
        assert receipt["reasoning_tokens"] == used.reasoning == 5
        assert receipt["charged_credits"] == 2 * used.prompt + 8 * used.output > 0
        assert not receipt["estimated"]
    assert run.usage["input_tokens"] == sum(receipt["input_tokens"] for receipt in receipts)
    assert run.usage["output_tokens"] == sum(receipt["output_tokens"] for receipt in receipts)


@pytest.mark.slow
async def test_without_credits_it_says_so_and_no_provider_is_called(database: Database, tmp_path: Path) -> None:
    async with served(database, cents=0) as gateway:
        run = await codex(gateway, tmp_path, "Read the note")
        assert run.code != 0
        [failed] = [event for event in run.events if event["type"] == "turn.failed"]
        assert "402" in failed["error"]["message"]
        assert not gateway.calls()
        assert not gateway.books.holds()
