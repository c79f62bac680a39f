"""What the documents say of tests: the tests that they name are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
TABLE: Final = ROOT / "docs" / "decisions" / "gateway.md"
TEST: Final = re.compile(r"^(?:async )?def test_(\w+)", re.MULTILINE)
ROW: Final = re.compile(r"^\| .* \| .* \| .* \| (.*) \|$", re.MULTILINE)


def test_each_fault_of_others_has_its_test() -> None:
    tests = {name for path in (ROOT / "tests").rglob("test_*.py") for name in TEST.findall(path.read_text("utf-8"))}
    cells = ROW.findall(TABLE.read_text("utf-8"))[1:]
    assert len(cells) > 40
    for cell in cells:
        named = re.findall(r"`(\w+)(…)?`", cell)
        assert named or cell == "the same"
        for name, is_cut in named:
            assert name in tests or (is_cut and any(test.startswith(name) for test in tests)), name
