"""How the command line handles usage errors, and that it is quick."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import click
import pytest
from click.testing import CliRunner

from cli import main
from tests.cli.command import settle, settle_from_a_shell
from tests.support.service_process import clean_environment

HASH = "0x" + "ab" * 32
WALLET = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
PROMISED = {
    "demo", "up", "migrate", "worker", "doctor", "bench", "attempt", "attempt create", "attempt submit", "attempt show",
    "schedules apply", "schedules list", "attempt retry", "findings list", "findings show", "findings resolve",
    "reconcile", "accounts create", "accounts show", "grants create", "grants list", "grants revoke", "receipt show",
    "receipt verify", "prices show", "prices diff", "prices import", "keys create", "keys list",
    "keys rotate", "keys revoke", "usage",
}  # fmt: skip


def _commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*prefix, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*prefix, name))


COMMANDS = sorted(_commands(main))


def test_every_promised_command_is_there() -> None:
    # `api` comes with the HTTP interface.
    assert {" ".join(words) for words in COMMANDS} >= PROMISED


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=lambda words: " ".join(words) or "settle")
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(words: tuple[str, ...], option: str) -> None:
    result = CliRunner().invoke(main, [*words, option])
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pay"], "No such command 'pay'"),
        (["attempt", "pay"], "No such command 'pay'"),
        (["attempt", "show", "12"], "attemptId: expected a UUID, got '12'"),
        (["attempt", "show", str(uuid4())[:-1]], "attemptId: expected a UUID"),
        (["attempt", "show"], "Missing argument"),
        (["attempt", "submit", "12", HASH], "attemptId: expected a UUID"),
        (["attempt", "create", "--cents", "100"], "Missing option '--wallet'"),
        (["attempt", "create", "--wallet", WALLET], "Missing option '--cents'"),
        (
            ["attempt", "create", "--wallet", WALLET, "--cents", "12.50"],
            "a whole number of US cents, got '12.50'",
        ),
        (
            ["attempt", "create", "--wallet", WALLET, "--cents", "lots"],
            "expected a whole number of US cents, got 'lots'",
        ),
        (["attempt", "create", "--wallet", WALLET, "--cents", "100", "--purpose", "gift"], "'gift' is not one of"),
        (["doctor", "--xml"], "No such option"),
        (["bench", "--rounds", "0"], "0 is not in the range"),
        (["accounts", "limit", "x", "--day", "1e3"], "expected a whole number of credits, got '1e3'"),
        (["grants", "revoke", "12"], "expected a UUID, got '12'"),
    ],
)
def test_a_usage_error_is_exit_code_2_with_what_is_wrong(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["attempt", "submit", str(uuid4()), "0x12"], "TX_HASH: expected 0x and 64 hex digits (32 bytes), got '0x12'"),
        (["attempt", "create", "--wallet", "0x12", "--cents", "100"], "--wallet: expected 0x and 40 hex digits"),
        (["attempt", "create", "--wallet", WALLET.swapcase().replace("0X", "0x"), "--cents", "100"], "checksum"),
        (["--env-file", "nowhere.env", "doctor"], "--env-file: file nowhere.env not found"),
        (["up", "--without", "everything"], "--without: got 'everything', expected one of "),
        (["migrate"], "MIGRATION_DATABASE_URL is not set: expected "),
        (["worker"], "SETTLEMENT_DATABASE_URL is not set: expected "),
        (["api"], "API_URL is not set: expected "),
        (["sessions", "revoke", "--wallet", "0x12"], "--wallet: expected 0x and 40 hex digits"),
        (["attempt", "show", str(uuid4())], "SERVICE_DATABASE_URL is not set: expected "),
    ],
)
def test_a_malformed_value_is_exit_code_2_and_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    answer = settle(arguments, {}, tmp_path)
    assert (answer.exit_code, answer.stdout) == (2, "")
    [line] = answer.stderr.splitlines()
    assert line.startswith("settle: ")
    assert words in line


def test_a_bad_setting_is_one_line_and_with_json_one_document(tmp_path: Path) -> None:
    secret = "postgresql://settle_app:hunter2hunter2@host:port/settle"
    answer = settle(["doctor", "--json"], {"DATABASE_URL": secret}, tmp_path)
    assert answer.exit_code == 2
    [line] = answer.stderr.splitlines()
    document = answer.json()
    assert set(document) == {"code", "detail"}
    assert document["code"] == "CONFIGURATION"
    assert document["detail"].startswith("DATABASE_URL ")
    assert document["detail"] in line
    assert "hunter2" not in answer.stdout + answer.stderr


def test_settings_come_from_a_dot_env_beside_the_caller_and_from_the_file_that_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MIN_CONFIRMATIONS=from-dot-env\n")
    (tmp_path / "named").write_text("MIN_CONFIRMATIONS=from-the-named-file\n")

    def said(arguments: list[str], variables: dict[str, str]) -> str:
        return settle([*arguments, "doctor"], variables, tmp_path).stderr

    assert "'from-dot-env'" in said([], {})
    assert "'from-the-named-file'" in said(["--env-file", "named"], {})
    environment = {"MIN_CONFIRMATIONS": "from-the-environment"}
    assert "'from-the-environment'" in said(["--env-file", "named"], environment)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["attempt", "--help"], ["attempt", "submit"], ["doctor", "--json"], ["worker"]])
def test_a_shell_sees_the_same_results_as_the_other_tests(arguments: list[str], tmp_path: Path) -> None:
    # Those fork a parent that has imported everything already.
    assert settle_from_a_shell(arguments, {}, tmp_path) == settle(arguments, {}, tmp_path)


HEAVY = ("temporalio", "sqlalchemy", "psycopg", "aiohttp", "alembic", "structlog", "web3", "eth_account")


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    # What makes it quick, measured in what cannot depend on the machine.
    script = f"import sys, cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=clean_environment({}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_installed_program_is_the_same_command(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("settle")
    run = subprocess.run(
        [program, "--version"], cwd=tmp_path, env=clean_environment({}), capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("settle, version ")


def test_a_mistyped_setting_gets_a_line_and_nothing_else_changes(tmp_path: Path) -> None:
    answer = settle(
        ["worker"], {"CHAIN_RPC_URL": "https://node.example/hunter2hunter2", "LOG_FORMAT": "console"}, tmp_path
    )
    assert answer.exit_code == 2
    warning, refusal = answer.stderr.splitlines()
    assert "CHAIN_RPC_URL " in warning
    assert "CHAIN_RPC_URLS" in warning
    assert "hunter2" not in warning
    assert "DATABASE_URL is not set" in refusal


@pytest.mark.parametrize(
    "command", [["worker"], ["api"], ["migrate"], ["doctor"], ["up"], ["attempt", "show", str(uuid4())]]
)
def test_nodes_on_two_lines_stop_every_command(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "settings.env").write_text('CHAIN_RPC_URLS="https://a.example/hunter2\nhttps://b.example/hunter2"\n')
    answer = settle(["--env-file", "settings.env", *command], {}, tmp_path)
    assert (answer.exit_code, answer.stdout) == (2, "")
    [line] = answer.stderr.splitlines()
    assert "CHAIN_RPC_URLS" in line
    assert "commas" in line
    assert "hunter2" not in line
