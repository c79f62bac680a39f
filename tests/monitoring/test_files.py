"""The alert rules, the dashboard and the runbook: what they name is there, in all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Final, TypeGuard

import aiohttp
import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram

import telemetry.metrics
from tests.gateway.support import served
from tests.support.api import running_api
from tests.support.engine import Engine
from tests.worker.process import running_worker

ROOT: Final = Path(__file__).resolve().parents[2]
MONITORING: Final = ROOT / "monitoring"
ALERTS: Final[dict[str, Any]] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
DASHBOARD: Final[dict[str, Any]] = json.loads((MONITORING / "dashboard.json").read_text())
CONFIG: Final[dict[str, Any]] = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
RULES: Final[list[dict[str, Any]]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
RUNBOOK: Final = (ROOT / "docs" / "runbook.md").read_text()
ENTRY: Final = re.compile(r"^### (Settle\w+)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
METRIC: Final = re.compile(r"\bsettle_[a-z0-9_]+")


def panels() -> Iterator[dict[str, Any]]:
    """The dashboard's panels that show something."""
    return (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def expressions() -> list[str]:
    """Every query of the rules and of the dashboard."""
    return [rule["expr"] for rule in RULES] + [target["expr"] for panel in panels() for target in panel["targets"]]


def names_in(exposition: str) -> set[str]:
    """The samples that each metric of an exposition has, or will have once there is something to count."""
    names: set[str] = set()
    for line in exposition.splitlines():
        match line.split():
            case ["#", "TYPE", name, kind]:
                names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


async def test_every_metric_that_is_named_is_one_that_a_process_has(engine: Engine, tmp_path: Path) -> None:
    async with (
        running_worker(tmp_path, engine.variables) as worker,
        running_api(engine) as api,
        served(engine.database) as gateway,
    ):
        _, ours = await worker.get("/metrics")
        async with aiohttp.ClientSession() as session, session.get(f"{api.url}/metrics") as response:
            theirs = await response.text()
        # All that this process has: the relay's are in the registry from their import on.
        import_module("telemetry.metrics.relay")
        theirs += (await gateway.client.get("/metrics")).body.decode()
    named = {name for expression in expressions() for name in METRIC.findall(expression)}
    assert len(named) > 30
    assert named - names_in(ours) - names_in(theirs) == set()


MODULES_WITH_METRICS: Final = (
    *(f"telemetry.metrics.{module.name}" for module in iter_modules(telemetry.metrics.__path__)),
    *("services.operations.gauges", "services.operations.clocks", "telemetry.events"),
)


@pytest.mark.parametrize("module", MODULES_WITH_METRICS)
def test_every_metric_is_in_the_dashboard(module: str) -> None:
    shown = {name for panel in panels() for target in panel["targets"] for name in METRIC.findall(target["expr"])}
    metrics = [metric for metric in vars(import_module(module)).values() if is_metric(metric)]
    assert metrics
    for metric in metrics:
        [family] = metric.describe()
        names = names_in(f"# TYPE {family.name}{'_total' if family.type == 'counter' else ''} {family.type}")
        assert names & shown, f"{family.name} is in no panel"


def is_metric(value: object) -> TypeGuard[Counter | Gauge | Histogram]:
    """Whether a module's name is one of its metrics."""
    return isinstance(value, Counter | Gauge | Histogram)


def test_every_alert_has_one_entry_in_the_runbook_and_leads_to_it() -> None:
    entries = dict(ENTRY.findall(RUNBOOK))
    assert [rule["alert"] for rule in RULES] == list(entries)
    assert len(ENTRY.findall(RUNBOOK)) == len(entries)
    for rule in RULES:
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert set(rule["annotations"]) == {"summary", "runbook_url"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
    for name, text in entries.items():
        for part in ("**Meaning**", "**Check**", "**Do**"):
            assert text.count(part) == 1, f"{name}: {part}"


def test_the_rules_ask_for_the_jobs_of_the_example_configuration() -> None:
    jobs = {scrape["job_name"] for scrape in CONFIG["scrape_configs"]}
    assert {job for rule in RULES for job in re.findall(r'job="([^"]+)"', rule["expr"])} == jobs
    assert CONFIG["rule_files"] == ["alerts.yaml"]


def test_the_checks_that_the_rules_set_apart_are_the_books_own() -> None:
    from db.ledger.invariants import CHECK_NAMES

    named = {
        check
        for rule in RULES
        for labels in re.findall(r'check!?=~?"([^"]+)"', rule["expr"])
        for check in labels.split("|")
    }
    assert named < set(CHECK_NAMES)


def test_every_finding_kind_that_the_rules_name_is_one() -> None:
    from domain.operations.findings import FindingKind

    kinds = {kind for rule in RULES for kind in re.findall(r'settle_findings_open\{kind="([^"]+)"', rule["expr"])}
    assert kinds
    assert kinds <= {kind.value for kind in FindingKind}


def test_the_dashboard_s_panels_have_a_place_of_their_own_and_one_data_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    [variable] = DASHBOARD["templating"]["list"]
    wanted = {"type": "prometheus", "uid": f"${{{variable['name']}}}"}
    for panel in panels():
        assert panel["datasource"] == wanted
        assert all(target["datasource"] == wanted and target["expr"] for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.slow
def test_grafana_s_own_models_read_the_dashboard_and_lose_nothing() -> None:
    models = pytest.importorskip(
        "grafana_foundation_sdk.models.dashboard", reason="not installed: pip install grafana-foundation-sdk"
    )
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    pytest.importorskip("grafana_foundation_sdk.cog.plugins").register_default_plugins()
    read = json.loads(encoder.JSONEncoder().encode(models.Dashboard.from_json(DASHBOARD)))
    assert _lost(DASHBOARD, read) == []


def _lost(wanted: object, found: object, path: str = "") -> list[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [line for name in wanted for line in _lost(wanted[name], found.get(name), f"{path}/{name}")]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [line for i, (a, b) in enumerate(zip(wanted, found, strict=True)) for line in _lost(a, b, f"{path}/{i}")]
    return [] if wanted == found else [path]
