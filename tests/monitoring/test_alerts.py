"""Each alert fires when it should and is silent a little short of that: Prometheus' own tool runs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from domain.utxo import UTXO_CHAINS
from tests.monitoring.test_files import MONITORING, RULES

PROMTOOL: Final = os.environ.get("PROMTOOL") or shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None,
    reason="promtool is not there: install Prometheus (Debian's package `prometheus`), or set PROMTOOL to its path",
)


@dataclass(frozen=True, slots=True)
class Case:
    """An alert, series at which it fires, the same a little better at which it does not, and for how long they last."""

    alert: str
    fires: dict[str, str]
    silent: dict[str, str]
    minutes: int
    silent_minutes: int | None = None


def steady(value: float) -> str:
    """The same value, a sample each minute."""
    return f"{value}"


def rising(step: float) -> str:
    """A counter that grows by so much each minute."""
    return f"0+{step}"


BITCOIN: Final = next(iter(UTXO_CHAINS))
UP: Final = {'up{job="settle-worker"}': steady(1), 'up{job="settle-api"}': steady(1)}
OK_RPC: Final = 'settle_chain_rpc_requests_total{endpoint="a",outcome="ok"}'
BAD_RPC: Final = 'settle_chain_rpc_requests_total{endpoint="a",outcome="timeout"}'
CANCELLED_RPC: Final = 'settle_chain_rpc_requests_total{endpoint="a",outcome="cancelled"}'
BUCKET: Final = 'settle_confirmed_to_credited_seconds_bucket{purpose="self",le="%s"}'


UPSTREAM: Final = 'settle_gateway_upstream_errors_total{upstream="a",kind="%s"}'
ANSWERED: Final = 'settle_gateway_upstream_first_byte_seconds_count{upstream="a"}'
REFUSED: Final = 'settle_gateway_refusals_total{code="%s"}'
CALLS: Final = 'settle_gateway_calls_total{dialect="chat",end="completed"}'


def violations(check: str) -> str:
    """The series of one check's violations."""
    return f'settle_books_violations{{check="{check}"}}'


# Timestamps are seconds since the beginning of the test, which is second 0.
CASES: Final = (
    Case("SettleWorkerDown", {'up{job="settle-worker"}': steady(0)}, UP, 3),
    Case("SettleWorkerDown", {}, UP, 3),
    Case("SettleApiDown", {'up{job="settle-api"}': steady(0)}, UP, 3),
    Case(
        "SettleApiFailing",
        {'settle_http_requests_total{status="503"}': rising(6), 'settle_http_requests_total{status="200"}': rising(94)},
        {'settle_http_requests_total{status="503"}': rising(4), 'settle_http_requests_total{status="200"}': rising(96)},
        15,
    ),
    Case(
        "SettleGaugesStale",
        {"settle_gauges_refreshed_timestamp_seconds": steady(0)},
        {"settle_gauges_refreshed_timestamp_seconds": rising(60)},
        6,
    ),
    Case(
        "SettleEventsNotDelivered",
        {'settle_events_total{type="books.violated",outcome="refused"}': rising(0.2)},
        {
            'settle_events_total{type="books.violated",outcome="refused"}': rising(0.05),
            'settle_events_total{type="books.violated",outcome="delivered"}': rising(9),
        },
        40,
    ),
    Case(
        "SettleWatcherBehind",
        {'settle_watcher_cursor_lag_blocks{chain="1"}': steady(151)},
        {'settle_watcher_cursor_lag_blocks{chain="1"}': steady(150)},
        12,
    ),
    Case(
        "SettleWatcherStuck",
        {'settle_watcher_cursor_age_seconds{chain="1"}': steady(301)},
        {'settle_watcher_cursor_age_seconds{chain="1"}': steady(300)},
        7,
    ),
    Case(
        "SettleWatcherStuck",
        {f'settle_watcher_cursor_age_seconds{{chain="{BITCOIN}"}}': steady(7_201)},
        {f'settle_watcher_cursor_age_seconds{{chain="{BITCOIN}"}}': steady(7_200)},
        7,
    ),
    Case(
        "SettleChainGap",
        {'settle_findings_open{kind="chain_gap"}': steady(1)},
        {'settle_findings_open{kind="chain_gap"}': steady(0), 'settle_findings_open{kind="surplus"}': steady(9)},
        1,
    ),
    Case(
        "SettleRpcErrors",
        {OK_RPC: rising(78), BAD_RPC: rising(22)},
        {OK_RPC: rising(82), BAD_RPC: rising(18), CANCELLED_RPC: rising(500)},
        25,
    ),
    Case(
        "SettleAllRpcFailing",
        {OK_RPC: steady(7), BAD_RPC: rising(60)},
        {OK_RPC: rising(1), BAD_RPC: rising(60)},
        12,
    ),
    Case("SettleAllRpcFailing", {BAD_RPC: rising(60)}, {OK_RPC: steady(7), BAD_RPC: steady(7)}, 12),
    Case(
        "SettleClocksApart",
        {'settle_clock_offset_seconds{clock="host"}': steady(-61)},
        {'settle_clock_offset_seconds{clock="host"}': steady(-60)},
        7,
    ),
    Case(
        "SettleClocksApart",
        {'settle_clock_offset_seconds{clock="chain"}': steady(-121)},
        {'settle_clock_offset_seconds{clock="chain"}': steady(-120)},
        7,
    ),
    Case(
        "SettleClocksApart",
        {'settle_clock_offset_seconds{clock="chain"}': steady(301)},
        {'settle_clock_offset_seconds{clock="chain"}': steady(300)},
        7,
    ),
    Case(
        "SettlePreconditionsNotMet",
        {'settle_preconditions_met{chain="1"}': steady(0)},
        {'settle_preconditions_met{chain="1"}': steady(1)},
        5,
    ),
    Case(
        "SettlePaymentsPendingLong",
        {'settle_pending_attempts{age="over_1h"}': steady(11), 'settle_pending_attempts{age="under_1m"}': steady(0)},
        {'settle_pending_attempts{age="over_1h"}': steady(10), 'settle_pending_attempts{age="under_1m"}': steady(99)},
        17,
    ),
    Case(
        "SettleConfirmedToCreditedSlow",
        {BUCKET % "60": rising(94), BUCKET % "120": rising(100), BUCKET % "+Inf": rising(100)},
        {BUCKET % "60": rising(96), BUCKET % "120": rising(100), BUCKET % "+Inf": rising(100)},
        30,
    ),
    Case(
        "SettleFinalityLate",
        {'settle_finality_oldest_seconds{chain="1",level="finalized"}': steady(3_601)},
        {'settle_finality_oldest_seconds{chain="1",level="finalized"}': steady(3_600)},
        7,
    ),
    Case(
        "SettleFinalityLate",
        {f'settle_finality_oldest_seconds{{chain="{BITCOIN}",level="confirmations"}}': steady(14_401)},
        {f'settle_finality_oldest_seconds{{chain="{BITCOIN}",level="confirmations"}}': steady(14_400)},
        7,
    ),
    Case(
        "SettlePaymentReversed",
        {'settle_findings_open{kind="payment_reversed"}': steady(1)},
        {'settle_findings_open{kind="payment_reversed"}': steady(0), 'settle_findings_open{kind="surplus"}': steady(9)},
        1,
    ),
    Case(
        "SettleFindingsWaiting",
        {'settle_findings_oldest_seconds{kind="surplus"}': steady(86_401)},
        {'settle_findings_oldest_seconds{kind="surplus"}': steady(86_400)},
        17,
    ),
    # It is tried in steps of half an hour: 10.08 and 9.6 million in a day.
    Case(
        "SettleDustAddsUp",
        {"settle_dust_raw_total": rising(210_000)},
        {"settle_dust_raw_total": rising(200_000)},
        25 * 60,
    ),
    Case(
        "SettleFindingsMany",
        {'settle_findings_open{kind="transfer_without_intent"}': steady(501)},
        {'settle_findings_open{kind="transfer_without_intent"}': steady(500)},
        17,
    ),
    Case(
        "SettleLedgerWithoutTransfer",
        {'settle_findings_open{kind="ledger_without_transfer"}': steady(1)},
        {'settle_findings_open{kind="ledger_without_transfer"}': steady(0)},
        1,
    ),
    Case(
        "SettleAddressDiffers",
        {'settle_findings_open{kind="address_differs"}': steady(1)},
        {'settle_findings_open{kind="address_differs"}': steady(0)},
        1,
    ),
    Case(
        "SettleDepositsWithoutPrice",
        {'settle_findings_open{kind="deposit_without_price"}': steady(1)},
        {'settle_findings_open{kind="deposit_without_price"}': steady(0)},
        1,
    ),
    Case(
        "SettleDepositsDiffer",
        {'settle_findings_open{kind="deposits_differ"}': steady(1)},
        {'settle_findings_open{kind="deposits_differ"}': steady(0)},
        1,
    ),
    Case(
        "SettleBooksViolated",
        {violations("account_balance"): steady(1)},
        {violations("account_balance"): steady(0), violations("bonus_missing"): steady(1)},
        1,
    ),
    Case(
        "SettleBonusMissing",
        {violations("bonus_missing"): steady(1)},
        {violations("bonus_missing"): steady(0), violations("account_balance"): steady(1)},
        1,
    ),
    Case("SettleBonusMissing", {violations("operator_bonus_missing"): steady(1)}, {}, 1),
    Case(
        "SettleAttemptsStuck",
        {violations("pending_overdue"): steady(1)},
        {violations("pending_overdue"): steady(0), violations("intent_overdue"): steady(0)},
        7,
    ),
    Case("SettleAttemptsStuck", {violations("intent_overdue"): steady(1)}, {violations("bonus_missing"): steady(1)}, 7),
    Case(
        "SettleBooksCheckNotRun",
        {"settle_books_last_check_timestamp_seconds": steady(0)},
        {"settle_books_last_check_timestamp_seconds": rising(60)},
        70,
    ),
    Case(
        "SettleReconciliationNotClosing",
        {"settle_reconciliation_closes": steady(0), "settle_reconciliation_timestamp_seconds": steady(1)},
        # None has run yet.
        {"settle_reconciliation_closes": steady(0), "settle_reconciliation_timestamp_seconds": steady(0)},
        2,
    ),
    Case(
        "SettleReconciliationNotRun",
        {"settle_reconciliation_timestamp_seconds": steady(0)},
        {"settle_reconciliation_timestamp_seconds": steady(0)},
        2 * 24 * 60 + 60,
        silent_minutes=2 * 24 * 60 - 60,
    ),
    Case(
        "SettleReconciliationNotRun",
        {'settle_reconciliation_timestamp_seconds{chain="1"}': steady(0)},
        {f'settle_reconciliation_timestamp_seconds{{chain="{BITCOIN}"}}': steady(0)},
        2 * 24 * 60 + 60,
    ),
    Case(
        "SettleHeartbeatMissing",
        {"settle_heartbeat_timestamp_seconds": steady(0)},
        {"settle_heartbeat_timestamp_seconds": rising(60)},
        27,
    ),
    Case(
        "SettleSystemTenantLow",
        {
            "settle_system_tenant_balance_credits": steady(99_999_999),
            "settle_gauges_refreshed_timestamp_seconds": rising(60),
        },
        {
            "settle_system_tenant_balance_credits": steady(100_000_000),
            "settle_gauges_refreshed_timestamp_seconds": rising(60),
        },
        12,
    ),
    Case(
        "SettleSystemTenantLow",
        {
            "settle_system_tenant_balance_credits": steady(-5),
            "settle_gauges_refreshed_timestamp_seconds": rising(60),
        },
        # Before the first reading every gauge says 0.
        {"settle_system_tenant_balance_credits": steady(0), "settle_gauges_refreshed_timestamp_seconds": steady(0)},
        15,
    ),
    Case(
        "SettleGatewayDown",
        {'up{job="settle-gateway",instance="a"}': steady(0), 'up{job="settle-gateway",instance="b"}': steady(0)},
        {'up{job="settle-gateway",instance="a"}': steady(0), 'up{job="settle-gateway",instance="b"}': steady(1)},
        3,
    ),
    # An installation without a gateway.
    Case("SettleGatewayDown", {'up{job="settle-gateway"}': steady(0)}, UP, 3),
    Case(
        "SettleCallsFailing",
        {CALLS: rising(94), REFUSED % "unavailable": rising(4), REFUSED % "internal_error": rising(2)},
        # Refusals for lack of credits are no failures, and neither are those of upstreams.
        {
            CALLS: rising(96),
            REFUSED % "unavailable": rising(4),
            REFUSED % "insufficient_credits": rising(500),
            REFUSED % "upstream_failed": rising(50),
        },
        15,
    ),
    Case(
        "SettleCallsFailing", {REFUSED % "unavailable": rising(1)}, {REFUSED % "insufficient_credits": rising(99)}, 15
    ),
    Case(
        "SettleUpstreamFailing",
        {ANSWERED: rising(78), UPSTREAM % "connect": rising(22)},
        {ANSWERED: rising(81), UPSTREAM % "connect": rising(19), UPSTREAM % "status_429": rising(500)},
        25,
    ),
    Case(
        "SettleUpstreamFailing",
        {ANSWERED: rising(100), UPSTREAM % "status_503": rising(21)},
        {ANSWERED: rising(100), UPSTREAM % "status_503": rising(19)},
        25,
    ),
    Case(
        "SettleUpstreamRefusesUs",
        {UPSTREAM % "status_401": rising(0.2)},
        {UPSTREAM % "status_401": steady(5), UPSTREAM % "status_400": rising(9)},
        30,
    ),
    Case(
        "SettleChargesRefused",
        {'settle_gateway_refused_captures_total{outcome="voided"}': rising(0.1)},
        {'settle_gateway_refused_captures_total{outcome="voided"}': steady(3)},
        20,
    ),
    Case(
        "SettleHoldsLapse",
        {'settle_holds_resolved_total{outcome="captured",basis="estimate"}': rising(0.1)},
        {
            'settle_holds_resolved_total{outcome="repeated",basis="estimate"}': rising(9),
            "settle_gateway_lost_leases_total": steady(4),
        },
        35,
    ),
    Case("SettleHoldsLapse", {"settle_gateway_lost_leases_total": rising(0.1)}, {}, 35),
    Case("SettleHoldsNotResolved", {"settle_holds_lapsed": steady(1)}, {"settle_holds_lapsed": steady(0)}, 7),
    Case(
        "SettleCostsAbsorbed",
        {
            "settle_gateway_absorbed_credits_total": rising(170_000),
            "settle_gateway_cost_credits_total": rising(3_300_000),
        },
        # A twentieth is usual, and little is little.
        {
            "settle_gateway_absorbed_credits_total": rising(170_000),
            "settle_gateway_cost_credits_total": rising(3_500_000),
        },
        90,
    ),
    Case(
        "SettleCostsAbsorbed",
        {
            "settle_gateway_absorbed_credits_total": rising(170_000),
            "settle_gateway_cost_credits_total": rising(170_000),
        },
        {
            "settle_gateway_absorbed_credits_total": rising(160_000),
            "settle_gateway_cost_credits_total": rising(160_000),
        },
        90,
    ),
    Case(
        "SettleProviderCostDiffers",
        {'settle_findings_open{kind="provider_cost_differs"}': steady(1)},
        {'settle_findings_open{kind="provider_cost_differs"}': steady(0)},
        7,
    ),
    Case("SettleRelayDown", {'up{job="settle-relay"}': steady(0)}, UP, 3),
    Case(
        "SettleRelayGasLow",
        {
            'settle_relay_balance_coins{instance="a"}': steady(1),
            'settle_relay_balance_min_coins{instance="a"}': steady(2),
        },
        {
            'settle_relay_balance_coins{instance="a"}': steady(2),
            'settle_relay_balance_min_coins{instance="a"}': steady(2),
        },
        4,
    ),
    Case(
        "SettleRelaySpendsMuch",
        {
            'settle_relay_spent_coins{instance="a"}': steady(81),
            'settle_relay_spent_max_coins{instance="a"}': steady(100),
        },
        {
            'settle_relay_spent_coins{instance="a"}': steady(80),
            'settle_relay_spent_max_coins{instance="a"}': steady(100),
        },
        4,
    ),
    Case(
        "SettleRelayStuck",
        {
            'settle_relay_oldest_open_seconds{instance="a"}': steady(601),
            'settle_relay_waiting_authorizations{instance="a"}': steady(0),
        },
        {
            'settle_relay_oldest_open_seconds{instance="a"}': steady(600),
            'settle_relay_waiting_authorizations{instance="a"}': steady(0),
        },
        4,
    ),
    Case(
        "SettleWalletFactoriesDiffer",
        {
            'settle_smart_wallet_factories{job="settle-api",chain="1",factories="0xa,0xb"}': steady(2),
            'settle_smart_wallet_factories{job="settle-relay",chain="1",factories="0xa"}': steady(1),
        },
        {
            'settle_smart_wallet_factories{job="settle-api",chain="1",factories="0xa,0xb"}': steady(2),
            'settle_smart_wallet_factories{job="settle-relay",chain="1",factories="0xa,0xb"}': steady(2),
            'settle_smart_wallet_factories{job="settle-relay",chain="2",factories="none"}': steady(0),
        },
        16,
    ),
    Case(
        "SettleDrainsFull",
        {'settle_gateway_drains{instance="a"}': steady(100)},
        {'settle_gateway_drains{instance="a"}': steady(99), 'settle_gateway_drains{instance="b"}': steady(99)},
        7,
    ),
    Case(
        "SettleConnectionsFull",
        {'settle_gateway_refused_connections_total{instance="a"}': rising(2)},
        {'settle_gateway_refused_connections_total{instance="a"}': rising(1)},
        12,
    ),
)


def run_promtool(*arguments: str, folder: Path = MONITORING) -> str:
    """What the tool says; it must be content."""
    assert PROMTOOL is not None
    run = subprocess.run([PROMTOOL, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def test_every_alert_is_tried_on_both_sides() -> None:
    assert {case.alert for case in CASES} == {rule["alert"] for rule in RULES}


@needs_promtool
def test_the_rules_and_the_example_configuration_are_valid() -> None:
    assert f"{len(RULES)} rules found" in run_promtool("check", "rules", "alerts.yaml")
    run_promtool("check", "config", "prometheus.yaml")


@needs_promtool
@pytest.mark.parametrize("step_minutes", [1, 30])
def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path, step_minutes: int) -> None:
    """Alerts that wait for days are tried in longer steps."""
    tests = [
        {
            "name": f"{case.alert} {'fires' if fires else 'is silent'}",
            "interval": f"{step_minutes}m",
            "input_series": [
                {"series": name, "values": f"{values}x{minutes // step_minutes + 1}"} for name, values in series.items()
            ],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{case.alert}", alertstate="firing"}})',
                    "eval_time": f"{minutes}m",
                    "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                }
            ],
        }
        for case in CASES
        for series, fires, minutes in (
            (case.fires, True, case.minutes),
            (case.silent, False, case.silent_minutes or case.minutes),
        )
        if (case.minutes > 600) == (step_minutes > 1)
    ]
    assert tests
    document = {
        "rule_files": [str(MONITORING / "alerts.yaml")],
        "evaluation_interval": f"{step_minutes}m",
        "tests": tests,
    }
    # JSON is YAML.
    (tmp_path / "tests.yaml").write_text(json.dumps(document))
    assert "SUCCESS" in run_promtool("test", "rules", "tests.yaml", folder=tmp_path)
