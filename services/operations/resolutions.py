"""Operators' remedies, each one step inside the caller's transaction, and their audit trail.

Each locks the finding, lets `domain` decide, and writes the effect, the resolution and the operator's name together.
Each is safe to run twice and concurrently: the second run finds the work done and reports it.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from db.accounts.wallets import find_non_payer_kind, provision_wallet
from db.deposits.deposits import DepositOfTransfer, find_deposit_of_transfer
from db.engine import ServiceConnection
from db.ledger import entries as ledger
from db.operations import findings, resolutions
from db.operations.resolutions import Action, Creditable, CreditRefused
from domain.deposits.worth import ONE_DOLLAR, UnitPrice
from domain.errors import BookkeepingError, RemedyRefused
from domain.identifiers import same_address
from domain.ledger.entries import CASH_ACCOUNT, deposits_account
from domain.money import USDC_DECIMALS, credits_for_raw, revenue_share_credits
from domain.operations.findings import FindingKind, Remedy, transfer_key
from domain.operations.resolutions import (
    RemedyRequest,
    StoredFinding,
    TakenRemedy,
    check_remedy,
    operator_bonus_posting,
    operator_credit_posting,
    require_account_of_nobodys,
)
from services.webhooks.delivery import redeliver_given_up

NOT_CREDITABLE: Final = {
    "transfer_credits_not_settled": "the transfer has already paid an attempt, been credited, or been sent back",
    "transfer_credits_of_transfer_on_chain": "the transfer is not on the chain as it was recorded",
    "transfer_credits_of_surplus": "there is no such overpayment, or its payment is not final yet",
    "transfer_credits_is_income": "it was sent by the treasury itself: no money came in",
    "transfer_credits_not_too_old": "it was mined before the first block from which payments are accepted",
    "transfer_credits_to_somebody": "that account has no owner: name another one with --account",
    "transfer_credits_pkey": "the transfer was already credited",
    "transfer_credits_reference_key": "the transfer was already credited",
    "transfer_credits_finding_id_key": "the finding was already credited",
}
"""Why the database refuses a credit, by its constraint."""


async def take_remedy(connection: ServiceConnection, request: RemedyRequest, *, revenue_share: Decimal) -> TakenRemedy:
    """Execute an operator's decision once; a repetition reports that it was done.

    `revenue_share` applies to the bonus of a credit, which follows in a transaction of its own: it is fixed here, so
    that no later setting changes it. Raises `FindingNotFound` and `RemedyRefused`.
    """
    finding = await findings.lock_finding(connection, request.finding_id)
    done = check_remedy(finding, request, await find_taken(connection, finding))
    if done is not None:
        return done
    outcome: dict[str, Any] = {}
    match request.remedy:
        case Remedy.CREDIT:
            outcome = await _credit(connection, finding, request, revenue_share)
        case Remedy.RETRY:
            if finding.kind is FindingKind.WEBHOOK_UNDELIVERED:
                outcome = {"webhooks": await redeliver_given_up(connection, finding.details)}
            elif finding.tx_hash is not None and finding.kind is not FindingKind.SURPLUS:
                await resolutions.match_again(connection, finding)
        case Remedy.REFUND_RECORDED:
            await _claim_for_refund(connection, finding)
            outcome = {"refundTxHash": request.refund_tx_hash} if request.refund_tx_hash else {}
        case Remedy.WRITE_OFF:
            pass
    await findings.resolve_finding(connection, finding.id, request.remedy.value)
    taken_at = await resolutions.insert_action(
        connection,
        action=request.remedy,
        operator=request.operator,
        reason=request.reason,
        finding=finding,
        attempt_id=finding.attempt_id,
        outcome=outcome,
    )
    return _taken(finding, Action(request.remedy.value, request.operator, request.reason, outcome, taken_at))


async def mint_bonus_of_credit(connection: ServiceConnection, finding_id: UUID) -> ledger.PostedEntry | None:
    """The system tenant's bonus on an operator's credit, or None where its share mints nothing.

    Raises `BookkeepingError` where nothing was credited.
    """
    credit = await resolutions.find_credit(connection, finding_id)
    if credit is None:
        raise BookkeepingError(f"finding {finding_id} was not credited: there is no bonus without a credit")
    posting = operator_bonus_posting(credit.reference, credit.amount_credits, credit.revenue_share)
    if posting is None:
        return None
    return await ledger.post(connection, posting, {"share": str(credit.revenue_share), "findingId": str(finding_id)})


async def find_taken(connection: ServiceConnection, finding: StoredFinding) -> TakenRemedy | None:
    """The action that last resolved the finding; None where no operator resolved it."""
    action = await resolutions.find_last_action(connection, finding)
    return _taken(finding, action) if action else None


async def _credit(
    connection: ServiceConnection, finding: StoredFinding, request: RemedyRequest, revenue_share: Decimal
) -> dict[str, Any]:
    transfer = await _find_creditable(connection, finding)
    deposit = await find_deposit_of_transfer(connection, finding.chain_id, finding.tx_hash, transfer.log_index)
    if deposit is not None and not deposit.is_priced:
        raise RemedyRefused(f"the price of {deposit.token} is not known: a deposit has no worth before it has a price")
    account_id = request.billing_account_id
    if account_id is None:
        known = await find_non_payer_kind(connection.connection, transfer.from_address)
        require_account_of_nobodys(transfer.from_address, known)
        account_id = await _account_of(connection, transfer, deposit)
    await _require_account(connection, account_id)
    posting = operator_credit_posting(
        account_id,
        transfer_key(finding.chain_id, finding.tx_hash, transfer.log_index),
        credits_for_raw(transfer.value_raw) if deposit is None else deposit.credits,
        CASH_ACCOUNT if deposit is None else deposits_account(deposit.token),
    )
    # Locks are taken in the order of a settlement: first the transaction's, last the account's.
    await _insert_credit(
        connection,
        {
            **_place(finding, transfer),
            "part": transfer.part,
            "billing_account_id": account_id,
            "amount_credits": posting.amount_credits,
            "revenue_share": revenue_share,
            "reference": posting.reference,
            "token_decimals": USDC_DECIMALS if deposit is None else deposit.decimals,
            **_price(ONE_DOLLAR if deposit is None else deposit.price),
        },
    )
    facts = {"findingId": str(finding.id), "operator": request.operator, "valueRaw": str(transfer.value_raw)}
    entry = await ledger.post(connection, posting, facts)
    return {
        "billingAccountId": account_id,
        "reference": posting.reference,
        "amountCredits": entry.amount_credits,
        "bonusCredits": revenue_share_credits(entry.amount_credits, revenue_share),
        "valueRaw": str(transfer.value_raw),
    }


def _price(price: UnitPrice) -> dict[str, Any]:
    """What one token was credited at."""
    return {"price_raw": Decimal(price.answer_raw), "price_decimals": price.decimals}


def _place(finding: StoredFinding, transfer: Creditable) -> dict[str, Any]:
    """Which transfer it is, and the finding about it."""
    return {
        "chain_id": finding.chain_id,
        "tx_hash": finding.tx_hash,
        "log_index": transfer.log_index,
        "block_number": transfer.block_number,
        "block_hash": transfer.block_hash,
        "from_address": transfer.from_address,
        "finding_id": finding.id,
        "value_raw": Decimal(transfer.value_raw),
    }


async def _account_of(connection: ServiceConnection, transfer: Creditable, deposit: DepositOfTransfer | None) -> str:
    """Whose a transfer is: of a deposit the address's owner, from any sender; else the sender, as an account."""
    if deposit is not None:
        return deposit.billing_account_id
    return (await provision_wallet(connection.connection, transfer.from_address)).billing_account_id


async def _claim_for_refund(connection: ServiceConnection, finding: StoredFinding) -> None:
    """Record a refund: the transfer pays nothing any more. Refused where it has paid; an overpayment cannot pay
    anything else.
    """
    if finding.tx_hash is None or finding.kind is FindingKind.SURPLUS:
        return
    transfer = await _find_creditable(connection, finding)
    await _insert_credit(
        connection,
        {
            **_place(finding, transfer),
            "part": "refund",
            "billing_account_id": None,
            "amount_credits": 0,
            "revenue_share": Decimal(0),
            "reference": None,
            "token_decimals": USDC_DECIMALS,
            **_price(ONE_DOLLAR),
        },
    )


async def _find_creditable(connection: ServiceConnection, finding: StoredFinding) -> Creditable:
    """The found transfer at its current position. Raises `RemedyRefused` where another transfer has replaced it."""
    if finding.kind is FindingKind.SURPLUS:
        constraint = "transfer_credits_of_surplus"
        found = await resolutions.find_overpayment(connection, finding)
    else:
        constraint = "transfer_credits_of_transfer_on_chain"
        found = await resolutions.find_observed_creditable(connection, finding)
    if found is None:
        raise RemedyRefused(f"{NOT_CREDITABLE[constraint]}: nothing was done")
    sender = finding.details.get("sender")
    if finding.value_raw not in {None, found.value_raw} or (sender and not same_address(sender, found.from_address)):
        raise RemedyRefused(
            f"another transfer is now at its position, {found.value_raw} raw units from {found.from_address}: "
            "nothing was done"
        )
    return found


async def _require_account(connection: ServiceConnection, account_id: str) -> None:
    is_system_tenant = await resolutions.is_system_tenant(connection, account_id)
    if is_system_tenant is None:
        raise RemedyRefused(f"billing account {account_id} not found")
    if is_system_tenant:
        raise RemedyRefused("the system tenant's account cannot be credited by an operator")


async def _insert_credit(connection: ServiceConnection, values: dict[str, Any]) -> None:
    try:
        await resolutions.insert_credit(connection, values)
    except CreditRefused as refused:
        why = NOT_CREDITABLE.get(refused.constraint)
        if why is None:
            raise BookkeepingError(f"the credit violates {refused.constraint}") from refused
        raise RemedyRefused(f"{why}: nothing was done") from refused


def _taken(finding: StoredFinding, action: Action) -> TakenRemedy:
    return TakenRemedy(
        finding_id=finding.id,
        kind=finding.kind,
        remedy=Remedy(action.action),
        operator=action.operator,
        reason=action.reason,
        taken_at=action.created_at,
        billing_account_id=action.outcome.get("billingAccountId"),
        reference=action.outcome.get("reference"),
        amount_credits=action.outcome.get("amountCredits", 0),
        bonus_credits=action.outcome.get("bonusCredits", 0),
        refund_tx_hash=action.outcome.get("refundTxHash"),
        chain_id=finding.chain_id,
    )
