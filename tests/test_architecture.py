"""Which way imports run: the contracts in `pyproject.toml`, and what import-linter cannot check."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
CONFIG: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
PACKAGES: Final = tuple(CONFIG["root_packages"])
MODULES: Final = ("composition", "settings", "worker", "cli")
OURS: Final = frozenset({*PACKAGES, *MODULES, "tests"})

SUBJECTS: Final = ("billing", "deposits", "ledger", "operations", "payments", "transfers", "webhooks")
HEAVY: Final = frozenset({"aiohttp", "eth_abi", "eth_keys", "eth_utils", "fastapi", "psycopg", "py_ecc", "sqlalchemy"})
"""What only a process that uses it should wait for."""

VIOLATIONS: Final = {
    "domain": "chain",
    "chain": "db",
    "db": "chain",
    "telemetry": "settings",
    "devstack": "domain",
    "services": "activities",
    "activities": "workflows",
    "workflows": "db",
    "starter": "commands",
    "api": "settings",
    "gateway": "api",
    "relay": "services",
}
"""Who imports whom, against each contract."""


def _lint(folder: Path) -> tuple[int, str]:
    program = Path(sysconfig.get_path("scripts")) / "lint-imports"
    run = subprocess.run(
        [program, "--no-cache"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


@cache
def _nodes(path: Path) -> list[ast.AST]:
    """The whole tree of a file, its module first."""
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def _imports(path: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return frozenset(found)


def _foreign(imports: frozenset[str]) -> set[str]:
    tops = {name.partition(".")[0] for name in imports}
    return tops - OURS - set(sys.stdlib_module_names)


def test_imports_run_in_the_promised_direction() -> None:
    exit_code, output = _lint(ROOT)
    assert exit_code == 0, output


def test_every_contract_breaks_when_it_is_violated(tmp_path: Path) -> None:
    contracts = {contract["source_modules"][0]: contract["name"] for contract in CONFIG["contracts"]}
    assert set(contracts) == set(VIOLATIONS)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in MODULES:
        shutil.copy(ROOT / f"{name}.py", tmp_path)
    for importer, imported in VIOLATIONS.items():
        (tmp_path / importer / "against_the_rules.py").write_text(f"import {imported}\n")
    exit_code, output = _lint(tmp_path)
    assert exit_code == 1
    for importer, name in contracts.items():
        assert f"{name} BROKEN" in output, f"the contract of {importer} does not notice {VIOLATIONS[importer]}"


@pytest.mark.parametrize("path", sorted((ROOT / "domain").rglob("*.py")), ids=lambda path: path.stem)
def test_domain_imports_the_standard_library_and_pydantic_only(path: Path) -> None:
    # The price book is data and arithmetic, nothing that reaches outside.
    of_billing = {"genai_prices"} if path.parent.name == "billing" else set()
    assert _foreign(_imports(path)) <= {"pydantic", "pydantic_core", *of_billing}


def test_settings_import_addresses_and_domain_only() -> None:
    ours = {name for name in _imports(ROOT / "settings.py") if name.partition(".")[0] in OURS}
    assert all(name in {"chain.addresses", "db.address"} or name.startswith("domain.") for name in ours), ours


def test_workflows_know_of_activities_their_signatures_and_messages_only() -> None:
    known = {"activities.messages"} | {f"activities.{subject}.signatures" for subject in SUBJECTS}
    for path in (ROOT / "workflows").rglob("*.py"):
        assert {name for name in _imports(path) if name.startswith("activities")} <= known


def test_a_workflow_loads_no_driver_and_no_client_of_the_chain() -> None:
    modules = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "workflows").rglob("*.py")]
    names = ", ".join(sorted(".".join(path.parts).removesuffix(".__init__") for path in modules))
    script = f"import sys, {names}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "workflows" in loaded
    assert not loaded & {"chain", "db", "services", "telemetry", "settings", *HEAVY}, loaded


def test_the_starter_knows_of_activities_their_messages_and_errors_only() -> None:
    for path in (ROOT / "starter").glob("*.py"):
        assert {name for name in _imports(path) if name.startswith("activities")} <= {
            "activities.messages",
            "activities.interceptors",
        }


def test_only_db_speaks_sql() -> None:
    for name in set(PACKAGES) - {"db", "devstack", "bench"}:
        for path in (ROOT / name).rglob("*.py"):
            assert not _foreign(_imports(path)) & {"sqlalchemy", "alembic"}, path


@cache
def _product_modules() -> list[Path]:
    paths = [ROOT / f"{name}.py" for name in MODULES]
    for package in PACKAGES:
        paths += (ROOT / package).rglob("*.py")
    return paths


def test_the_ledger_knows_nothing_of_payments() -> None:
    for layer in ("domain", "db"):
        for path in (ROOT / layer / "ledger").rglob("*.py"):
            assert not {name for name in _imports(path) if ".payments" in name}, path


MONEY_UNITS: Final = ("_usd_cents", "_cents", "_raw", "_credits", "_usd")


def _money_arithmetic(nodes: Iterable[ast.AST]) -> list[str]:
    """Divisions of money, and conversions of it by a number written out."""

    def is_money(node: ast.expr) -> bool:
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        return name.lower().endswith(MONEY_UNITS)

    def is_rate(node: ast.expr) -> bool:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            return True
        return isinstance(node, ast.Constant) and node.value in {10, 100, 10_000, 100_000, 1_000_000, 10_000_000}

    found = []
    for node in nodes:
        if isinstance(node, ast.BinOp) and (is_money(node.left) or is_money(node.right)):
            converts = isinstance(node.op, ast.Mult | ast.FloorDiv | ast.Mod) and (
                is_rate(node.left) or is_rate(node.right)
            )
            if isinstance(node.op, ast.Div) or converts:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "divmod" and any(map(is_money, node.args)):
            found.append(ast.unparse(node))
    return found


def test_money_is_converted_in_one_module() -> None:
    found = {
        str(path.relative_to(ROOT)): arithmetic
        for path in _product_modules()
        if path != ROOT / "domain" / "money.py" and (arithmetic := _money_arithmetic(_nodes(path)))
    }
    assert not found


@pytest.mark.parametrize(
    "expression",
    ["attempt.amount_usd_cents / 100", "value_raw * 10", "amount_raw // 10**6", "divmod(amount_usd_cents, 100)"],
)
def test_arithmetic_with_money_is_noticed(expression: str) -> None:
    assert _money_arithmetic(ast.walk(ast.parse(expression))) == [expression.replace("10**6", "10 ** 6")]


def test_no_product_module_imports_the_tests() -> None:
    for path in _product_modules():
        assert not {name for name in _imports(path) if name.partition(".")[0] == "tests"}, path


LINES_MAX: Final = 50
"""Lines of a function: from its `def` to its end, with signature, docstring, comments and empty lines."""

LONGER: Final = {
    "cli.findings_resolve": "an option of the command each, and a call that passes them on",
}
"""Functions that read best as one, and why. This list only becomes shorter."""


def _lengths(tree: ast.AST, module: str) -> dict[str, int]:
    """Lines of each function, by its name with module and class."""

    def walk(node: ast.AST, name: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                continue  # no expression holds a function with a name
            own = name
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own = f"{name}.{child.name}"
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                assert child.end_lineno is not None
                found[own] = child.end_lineno - child.lineno + 1
            found |= walk(child, own)
        return found

    return walk(tree, module)


def test_functions_are_short_or_say_why_they_are_not() -> None:
    longer = {
        name
        for path in _product_modules()
        for name, lines in _lengths(_nodes(path)[0], ".".join(path.relative_to(ROOT).with_suffix("").parts)).items()
        if lines > LINES_MAX
    }
    assert longer - set(LONGER) == set(), "split it by what its parts do"
    assert set(LONGER) - longer == set(), "short enough now: take it off the list"
    assert len(LONGER) <= 2


def test_the_lines_of_a_function_are_counted_from_its_def_to_its_end() -> None:
    source = (
        "class A:\n    @decorated\n    async def f(\n        self,\n    ):\n        'doc'\n\n        def g(): ...\n"
    )
    assert _lengths(ast.parse(source), "m") == {"m.A.f": 6, "m.A.f.g": 1}


def test_the_tests_that_prove_the_guards_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/decisions/guards.md").read_text("utf-8"))
    missing = {
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).exists() or not re.search(rf"\bdef {name}\(", (ROOT / path).read_text("utf-8"))
    }
    assert named
    assert missing == set(), "name the test that fails without the guard now"
