"""What the documents name is there: tests, and commands with their options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import click

from cli import main

ROOT: Final = Path(__file__).resolve().parents[2]
TABLE: Final = ROOT / "docs" / "decisions" / "gateway.md"
TEST: Final = re.compile(r"^(?:async )?def test_(\w+)", re.MULTILINE)
ROW: Final = re.compile(r"^\| .* \| .* \| .* \| (.*) \|$", re.MULTILINE)
DOCUMENTS: Final = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROSE: Final = {"turns", "posts"}
"""What follows settle's name where a line of text begins with it."""
COMMAND: Final = re.compile(r"(?:^|[`(])settle (?:--env-file \S+ )?([a-z][^`#;\n]*)", re.MULTILINE)


def test_each_fault_of_others_has_its_test() -> None:
    tests = {name for path in (ROOT / "tests").rglob("test_*.py") for name in TEST.findall(path.read_text("utf-8"))}
    cells = ROW.findall(TABLE.read_text("utf-8"))[1:]
    assert len(cells) > 40
    for cell in cells:
        named = re.findall(r"`(\w+)(…)?`", cell)
        assert named or cell == "the same"
        for name, is_cut in named:
            assert name in tests or (is_cut and any(test.startswith(name) for test in tests)), name


def test_each_command_that_a_document_names_has_these_options() -> None:
    lines = [line for path in DOCUMENTS for line in COMMAND.findall(path.read_text("utf-8"))]
    assert len(lines) > 150
    for line in lines:
        words = line.replace("\\|", " ").split()
        if words[0] in PROSE:
            continue
        command, depth = _command(words)
        assert depth, f"settle {line}"
        options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        named = set(re.findall(r"--[a-z][a-z-]*", " ".join(words[depth:])))
        assert isinstance(command, click.Group) or named <= options, f"settle {line}"


def test_each_decision_is_on_the_list() -> None:
    decisions = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\(([\w-]+\.md)\) \|", (decisions / "README.md").read_text("utf-8"))
    assert sorted(listed) == sorted(path.name for path in decisions.glob("*.md") if path.name != "README.md")


def _command(words: list[str]) -> tuple[click.Command, int]:
    """The command that the words begin with, and how many of them name it."""
    command: click.Command = main
    depth = 0
    while isinstance(command, click.Group) and depth < len(words):
        found = command.get_command(click.Context(command), words[depth].rstrip(",.:"))
        if found is None:
            break
        command, depth = found, depth + 1
    return command, depth
