"""What `settle demo` prints at its end: payments and calls against their expectations, ledger, trial balance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from temporalio.client import WorkflowExecutionStatus

from commands.demo_spending import SpentCall
from commands.local_system import LocalSystem
from commands.output import grouped, print_json, stdout, table
from db.accounts import wallets as accounts
from db.accounts.wallets import Payer
from db.billing.receipts import find_receipts
from db.engine import ServiceDatabase
from db.ledger import entries as ledger
from db.ledger import invariants as books
from domain.billing.receipts import StoredReceipt, verify
from domain.ledger.entries import Side
from domain.payments.attempt import AttemptStatus, ErrorCode
from starter.diagnosis import workflow_url
from starter.models import Intent
from workflows.naming import workflow_id


@dataclass
class Payment:
    """One payment of the demo, and the expected result."""

    title: str
    payer: Payer
    intent: Intent
    expected_status: AttemptStatus
    expected_error: ErrorCode | None = None
    status: AttemptStatus | None = None
    error: ErrorCode | None = None
    workflow: str | None = None
    rows: list[ledger.LedgerRow] = field(default_factory=list)
    expected_rows: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def attempt_id(self) -> UUID:
        """The attempt's id."""
        return self.intent.attempt_id

    @property
    def expectation(self) -> str:
        """The expected result as text."""
        end = f"{self.expected_status.value}{f' / {self.expected_error.value}' if self.expected_error else ''}"
        credits = ", ".join(f"{grouped(amount)} as {reason}" for (_, reason), amount in self.expected_rows.items())
        return f"{end}, {credits or 'no credits'}"

    @property
    def held(self) -> bool:
        """Whether the result is as expected: the status, exactly these ledger rows, each once, and the workflow has
        completed.
        """
        rows = sorted(((row.billing_account_id, row.reason), row.amount) for row in self.rows)
        return (
            (self.status, self.error) == (self.expected_status, self.expected_error)
            and rows == sorted(self.expected_rows.items())
            and self.workflow == WorkflowExecutionStatus.COMPLETED.name
        )


async def report(
    system: LocalSystem,
    database: ServiceDatabase,
    payments: list[Payment],
    calls: list[SpentCall],
    *,
    keep: bool,
    as_json: bool,
) -> bool:
    """Print what became of everything. True only if every expectation was met, and the books balance."""
    async with database.transaction() as connection:
        balances = await accounts.balances(connection)
        trial_balance = await ledger.trial_balance(connection)
        rows = await ledger.list_entries(connection)
        violations = await books.find_violations(connection)
        receipts = [receipt for call in calls for receipt in await find_receipts(connection, call.request_id)]
    violations += [f"receipt {receipt.id}: {difference}" for receipt in receipts for difference in verify(receipt)]
    expected = _expected_balances(payments, calls)
    balances_held = {account_id: amount for account_id, amount in balances.items() if amount} == expected
    is_as_expected = all(payment.held for payment in payments) and all(call.held for call in calls)
    ok = is_as_expected and balances_held and not violations
    if as_json:
        totals = ledger.totals(trial_balance)
        print_json(
            {
                "ok": ok,
                "payments": [_payment_as_json(payment) for payment in payments],
                "calls": [_call_as_json(call) for call in calls],
                "balances": balances,
                "trialBalance": {"debits": totals[Side.DEBIT], "credits": totals[Side.CREDIT]},
            }
        )
        return ok
    _print_payments(payments)
    _print_calls(calls)
    _print_ledger(rows, _titles(payments, calls, receipts))
    _print_trial_balance(trial_balance)
    if keep:  # links to servers that are about to stop are useless
        _print_links(system, payments)
    for violation in violations:
        stdout.print(f"books: {violation}", style="red", markup=False)
    if not balances_held:
        stdout.print(f"balances are {balances}, expected {expected}", style="red", markup=False)
    stdout.print("All expectations met." if ok else "Some expectations were NOT met.", style="bold")
    if not keep:
        stdout.print("To explore Temporal's UI and the Credits page: settle demo --keep")
    return ok


def _expected_balances(payments: list[Payment], calls: list[SpentCall]) -> dict[str, int]:
    expected: dict[str, int] = {}
    for payment in payments:
        for (account_id, _), amount in payment.expected_rows.items():
            expected[account_id] = expected.get(account_id, 0) + amount
    for call in calls:
        expected[call.account_id] -= call.charged_credits
    return {account_id: amount for account_id, amount in expected.items() if amount}


def _titles(payments: list[Payment], calls: list[SpentCall], receipts: list[StoredReceipt]) -> dict[str, str]:
    """What each entry of the ledger is about, by its reference."""
    of_request = {call.request_id: call.title for call in calls}
    return {str(payment.attempt_id): payment.title for payment in payments} | {
        f"{receipt.source_system}:{receipt.source_reference}": of_request[receipt.request_id] for receipt in receipts
    }


def _payment_as_json(payment: Payment) -> dict[str, Any]:
    return {
        "attemptId": str(payment.attempt_id),
        "purpose": payment.intent.purpose.value,
        "status": payment.status.value if payment.status else None,
        "errorCode": payment.error.value if payment.error else None,
        "workflowId": workflow_id(payment.attempt_id),
        "expectation": payment.expectation,
        "held": payment.held,
    }


def _call_as_json(call: SpentCall) -> dict[str, Any]:
    return {
        "requestId": call.request_id,
        "billingAccountId": call.account_id,
        "chargedCredits": call.charged_credits,
        "outcome": call.outcome,
        "expectation": call.expectation,
        "held": call.held,
    }


def _print_payments(payments: list[Payment]) -> None:
    stdout.print(
        table(
            "Payments",
            ("held", "payment", "ended", "expected"),
            [
                (
                    "yes" if payment.held else "NO",
                    payment.title,
                    f"{payment.status}{f' / {payment.error}' if payment.error else ''}",
                    payment.expectation,
                )
                for payment in payments
            ],
        )
    )


def _print_calls(calls: list[SpentCall]) -> None:
    stdout.print(
        table(
            "Calls",
            ("held", "call", "ended", "expected"),
            [("yes" if call.held else "NO", call.title, call.outcome, call.expectation) for call in calls],
        )
    )


def _print_ledger(rows: list[ledger.LedgerRow], titles: Mapping[str, str]) -> None:
    stdout.print(
        table(
            "Ledger",
            ("account", "reason", "credits", "balance after", "of"),
            [
                (
                    row.billing_account_id,
                    row.reason,
                    grouped(row.amount),
                    grouped(row.balance_after),
                    titles.get(row.reference or "", row.reference),
                )
                for row in rows
            ],
            right=("credits", "balance after"),
        )
    )


def _print_trial_balance(trial_balance: list[ledger.TrialBalanceLine]) -> None:
    totals = ledger.totals(trial_balance)
    lines = [(line.account_code, line.type, grouped(line.debits), grouped(line.credits)) for line in trial_balance]
    stdout.print(
        table(
            "Trial balance, in credits",
            ("ledger account", "type", "debit", "credit"),
            [*lines, ("total", None, grouped(totals[Side.DEBIT]), grouped(totals[Side.CREDIT]))],
            right=("debit", "credit"),
        )
    )


def _print_links(system: LocalSystem, payments: list[Payment]) -> None:
    namespace = system.variables["TEMPORAL_NAMESPACE"]
    for payment in payments:
        link = workflow_url(system.settings.temporal_ui_url, namespace, payment.attempt_id)
        stdout.print(f"{payment.title}: {link}", soft_wrap=True, markup=False)
