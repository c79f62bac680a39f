"""Which transfers are income, in SQL: what the code refuses, the database refuses to callers that bypass the code."""

from __future__ import annotations

from uuid import UUID

import pytest
from psycopg.errors import CheckViolation, InsufficientPrivilege

from db.accounts import wallets as accounts
from db.operations import findings
from db.payments import attempts
from db.transfers import observed
from domain.chain import TransferScope
from domain.errors import PayerRefused, RemedyRefused, TransferAlreadySettled
from domain.identifiers import SYSTEM_TENANT_ACCOUNT_ID
from domain.operations.findings import Finding, FindingKind, Remedy
from domain.payments.verification import SettledTransfer
from domain.transfers.income import ZERO_ADDRESS, NonPayer
from tests.reconciliation.planting import find_transfer, stored, take
from tests.support.payments import CHAIN_ID, TOKEN, TREASURY, RolePair, transfer_for, tx_hash, wallet
from tests.support.sql import connect, query, refused, scalar

FORMER_TREASURY = "0x" + "7A" * 20
SCOPE = TransferScope(chain_id=CHAIN_ID, token=TOKEN, treasury=TREASURY)
FIRST_BLOCK = 5


def settings_name(roles: RolePair, *, treasury: str = TREASURY, token: str = TOKEN) -> None:
    """A worker has run with these settings."""
    with connect(roles.database.service_url) as service:
        service.execute(
            "INSERT INTO payment_destinations (chain_id, token, to_address, noted_by)"
            " VALUES (%s, lower(%s), lower(%s), 'worker') ON CONFLICT DO NOTHING",
            (CHAIN_ID, token, treasury),
        )


def follow(
    roles: RolePair, *, treasury: str = TREASURY, token: str = TOKEN, first: int = FIRST_BLOCK, read: bool = True
) -> None:
    """The chain is followed for a treasury, from a block on."""
    with connect(roles.database.service_url) as service:
        service.execute(
            "INSERT INTO chain_cursors (chain_id, token, to_address, first_block, block_number, block_hash,"
            " head_number) VALUES (%s, %s, %s, %s, %s, %s, 100)",
            (CHAIN_ID, token, treasury, first, first + 90, tx_hash(90) if read else None),
        )


async def credited(roles: RolePair, number: int = 1, **transfer: object) -> SettledTransfer:
    """An attempt is credited with a transfer; raises what the database refuses it with."""
    payer = await roles.open_account(number)
    attempt = await roles.create_submitted(payer, number)
    paid = transfer_for(attempt, **transfer)
    await roles.credit(attempt, paid)
    return paid


# -- what an attempt is paid by


@pytest.mark.parametrize("written", [str, str.lower, str.upper])
@pytest.mark.parametrize("sender", [TREASURY, FORMER_TREASURY, TOKEN, ZERO_ADDRESS])
async def test_no_attempt_is_paid_by_an_address_that_cannot_be_a_payer(
    roles: RolePair, sender: str, written: object
) -> None:
    assert callable(written)
    settings_name(roles, treasury=FORMER_TREASURY)
    address = "0x" + written(sender[2:])
    if sender in {TOKEN, ZERO_ADDRESS}:
        # Accounts without a payer's wallet are there from before.
        with connect(roles.database.superuser_url, triggers=False) as owner:
            owner.execute("INSERT INTO users (id, wallet_address) VALUES ('u', %s)", (address,))
            owner.execute("INSERT INTO billing_accounts (id, owner_user_id) VALUES ('b', 'u')")
            owner.execute("INSERT INTO virtual_keys (billing_account_id, is_default) VALUES ('b', true)")
            owner.execute(
                "INSERT INTO ledger_accounts (code, name, type, normal_side, billing_account_id)"
                " VALUES ('credits:b', 'x', 'liability', 'credit', 'b')"
            )
        payer = accounts.Payer("u", "b", address)
    else:
        async with roles.app.unscoped() as connection:
            payer = await accounts.provision_wallet(connection, address)
    attempt = await roles.create_submitted(payer, 1)
    with pytest.raises(TransferAlreadySettled, match="cannot be a payer"):
        await roles.credit(attempt)
    assert scalar(roles.database.superuser_url, "SELECT count(*) FROM credit_ledger") == 0
    async with roles.service.transaction() as connection:
        waiting = await attempts.find_under_verification(connection, attempt.id)
    assert waiting is not None
    kind = {FORMER_TREASURY: NonPayer.TREASURY, TOKEN: NonPayer.TOKEN, ZERO_ADDRESS: NonPayer.NOBODY}.get(sender)
    assert waiting.payer_kind is kind, "the next poll says why"


@pytest.mark.parametrize(("block", "is_paid"), [(FIRST_BLOCK - 1, False), (FIRST_BLOCK, True)])
async def test_no_attempt_is_paid_in_a_block_before_the_first(roles: RolePair, block: int, is_paid: bool) -> None:
    follow(roles)
    if is_paid:
        await credited(roles, block_number=block)
    else:
        with pytest.raises(TransferAlreadySettled, match="before the first block"):
            await credited(roles, block_number=block)


async def _first_block(roles: RolePair) -> int | None:
    found = scalar(
        roles.database.service_url, "SELECT first_block_answered_for(%s, %s, %s)", CHAIN_ID, TOKEN.upper(), TREASURY
    )
    assert found is None or isinstance(found, int)
    return found


async def test_the_first_block_is_the_settings_and_without_one_the_first_that_was_read(roles: RolePair) -> None:
    assert await _first_block(roles) is None, "the chain is not followed"
    follow(roles)
    assert await _first_block(roles) == FIRST_BLOCK
    for setting, answered in ((50, 50), (2, 2), (None, FIRST_BLOCK)):
        async with roles.service.autocommit() as connection:
            await observed.set_from_block(connection, SCOPE, setting)
        assert await _first_block(roles) == answered


async def test_a_height_that_one_node_has_named_makes_nothing_too_old_before_a_block_was_read(roles: RolePair) -> None:
    follow(roles, first=10**9, read=False)
    assert await _first_block(roles) is None
    await credited(roles)


async def test_another_treasurys_first_block_is_its_own(roles: RolePair) -> None:
    follow(roles, treasury=FORMER_TREASURY, first=90)
    await credited(roles, block_number=7)


# -- what an operator credits


@pytest.mark.parametrize("account", [None, "named"])
@pytest.mark.parametrize("remedy", [Remedy.CREDIT, Remedy.REFUND_RECORDED])
@pytest.mark.parametrize("sender", [TREASURY, TREASURY.upper().replace("0X", "0x"), FORMER_TREASURY])
async def test_what_the_treasury_sent_can_be_neither_credited_nor_sent_back(
    roles: RolePair, sender: str, remedy: Remedy, account: str | None
) -> None:
    settings_name(roles, treasury=FORMER_TREASURY)
    named = (await roles.open_account(2)).billing_account_id if account and remedy is Remedy.CREDIT else None
    finding_id = await find_transfer(roles.service, 1, sender=sender)
    with pytest.raises(RemedyRefused, match="treasury"):
        await take(roles.service, finding_id, remedy, billing_account_id=named)
    assert (await stored(roles.service, finding_id)).is_open
    assert scalar(roles.database.superuser_url, "SELECT count(*) FROM transfer_credits") == 0
    await take(roles.service, finding_id, Remedy.WRITE_OFF)


@pytest.mark.parametrize("sender", [ZERO_ADDRESS, TOKEN])
async def test_a_mint_is_credited_to_an_account_that_is_named(roles: RolePair, sender: str) -> None:
    settings_name(roles)
    finding_id = await find_transfer(roles.service, 1, sender=sender)
    with pytest.raises(RemedyRefused, match="--account"):
        await take(roles.service, finding_id, Remedy.CREDIT)
    assert scalar(roles.database.superuser_url, "SELECT count(*) FROM users WHERE wallet_address = %s", sender) == 0
    named = (await roles.open_account(2)).billing_account_id
    for wrong in (SYSTEM_TENANT_ACCOUNT_ID, SYSTEM_TENANT_ACCOUNT_ID.upper(), named.upper(), "nobody's", ""):
        with pytest.raises(RemedyRefused):
            await take(roles.service, finding_id, Remedy.CREDIT, billing_account_id=wrong)
    taken = await take(roles.service, finding_id, Remedy.CREDIT, billing_account_id=named)
    assert (taken.billing_account_id, await roles.balance(named)) == (named, 50_000_000)
    assert await roles.books(pending_bonus_ok=True) == []


async def test_an_account_of_nobodys_from_before_is_credited_no_more(roles: RolePair) -> None:
    with connect(roles.database.superuser_url, triggers=False) as owner:
        owner.execute("INSERT INTO users (id, wallet_address) VALUES ('u', %s)", (ZERO_ADDRESS,))
        owner.execute("INSERT INTO billing_accounts (id, owner_user_id) VALUES ('b', 'u')")
    finding_id = await find_transfer(roles.service, 1)
    with pytest.raises(RemedyRefused, match="has no owner"):
        await take(roles.service, finding_id, Remedy.CREDIT, billing_account_id="b")


@pytest.mark.parametrize(("first", "is_credited"), [(8, False), (7, True)])
async def test_an_operator_credits_nothing_from_before_the_first_block(
    roles: RolePair, first: int, is_credited: bool
) -> None:
    follow(roles, first=first)
    finding_id = await find_transfer(roles.service, 1)  # in block 7
    if is_credited:
        await take(roles.service, finding_id, Remedy.CREDIT)
    else:
        with pytest.raises(RemedyRefused, match="first block"):
            await take(roles.service, finding_id, Remedy.CREDIT)


async def test_the_surplus_of_a_payment_of_the_treasurys_own_cannot_be_credited(roles: RolePair) -> None:
    """It was credited before this was refused."""
    async with roles.app.unscoped() as connection:
        payer = await accounts.provision_wallet(connection, TREASURY)
    attempt = await roles.create_submitted(payer, 1)
    with connect(roles.database.superuser_url) as owner:
        owner.execute("ALTER TABLE settled_transfers DISABLE TRIGGER settled_transfers_is_income")
    await roles.credit(attempt, transfer_for(attempt, value_raw=attempt.amount_raw + 10))
    with connect(roles.database.superuser_url) as owner:
        owner.execute("ALTER TABLE settled_transfers ENABLE TRIGGER settled_transfers_is_income")
        owner.execute(
            "INSERT INTO transfer_finality (attempt_id, outcome, chain_id, tx_hash, log_index, block_number,"
            " block_hash, level) SELECT attempt_id, 'final', chain_id, tx_hash, log_index, block_number, block_hash,"
            " 'finalized' FROM settled_transfers"
        )
    surplus = Finding(
        kind=FindingKind.SURPLUS,
        detail="more came",
        chain_id=CHAIN_ID,
        tx_hash=tx_hash(1),
        log_index=0,
        attempt_id=attempt.id,
        sender=TREASURY,
        value_raw=10,
    )
    finding_id = await _write(roles, surplus)
    named = (await roles.open_account(2)).billing_account_id
    for account in (None, named):
        with pytest.raises(RemedyRefused, match="treasury"):
            await take(roles.service, finding_id, Remedy.CREDIT, billing_account_id=account)


async def _write(roles: RolePair, finding: Finding) -> UUID:
    async with roles.service.transaction() as connection:
        return (await findings.write_finding(connection, finding)).finding_id


# -- who has an account


@pytest.mark.parametrize("nobody", [ZERO_ADDRESS, TOKEN, TOKEN.upper().replace("0X", "0x")])
async def test_nobodys_address_opens_no_account(roles: RolePair, nobody: str) -> None:
    settings_name(roles)
    async with roles.app.unscoped() as connection:
        with pytest.raises(PayerRefused):
            await accounts.provision_wallet(connection, nobody)
    async with roles.service.autocommit() as service:
        with pytest.raises(PayerRefused):
            await accounts.provision_wallet(service.connection, nobody)
    with connect(roles.database.migration_url) as owner, refused(CheckViolation, "users_wallet_is_somebodys"):
        owner.execute("INSERT INTO users (id, wallet_address) VALUES ('u', %s)", (nobody,))


async def test_the_treasurys_wallet_may_sign_in_but_is_known(roles: RolePair) -> None:
    settings_name(roles)
    async with roles.app.unscoped() as connection:
        await accounts.provision_wallet(connection, TREASURY)
        assert await accounts.find_non_payer_kind(connection, TREASURY.lower()) is NonPayer.TREASURY
        assert await accounts.find_non_payer_kind(connection, wallet(1)) is None


async def test_what_an_intent_merely_names_is_no_treasury(roles: RolePair) -> None:
    """The password of processes that people reach allows to write intents, and stops no payer's payments by it."""
    await roles.create(await roles.open_account(2), to_address=wallet(1), token=wallet(3))
    follow(roles, treasury=wallet(1), token=wallet(3))
    await credited(roles, 1)
    with connect(roles.database.app_url) as app, refused(InsufficientPrivilege):
        app.execute(
            "INSERT INTO payment_destinations (chain_id, token, to_address, noted_by) VALUES (1, %s, %s, 'worker')",
            (wallet(3), wallet(1)),
        )


# -- until when it could be paid


async def test_until_when_an_intent_could_be_paid_is_kept_through_its_submission(roles: RolePair) -> None:
    attempt = await roles.create(await roles.open_account(1))
    await roles.submit(attempt, tx_hash(1))
    await roles.refuse(attempt.model_copy(update={"tx_hash": tx_hash(1)}))
    [(expires_at, payable_until)] = query(
        roles.database.service_url, "SELECT expires_at, payable_until FROM payment_attempts WHERE id = %s", attempt.id
    )
    assert (expires_at, payable_until) == (None, attempt.expires_at)


async def test_no_role_moves_it(roles: RolePair) -> None:
    attempt = await roles.create(await roles.open_account(1))
    with connect(roles.database.migration_url) as owner:
        owner.execute("UPDATE payment_attempts SET payable_until = now() WHERE id = %s", (attempt.id,))
    kept = scalar(roles.database.service_url, "SELECT payable_until FROM payment_attempts WHERE id = %s", attempt.id)
    assert kept == attempt.expires_at


async def test_an_intent_of_the_revision_before_keeps_it_from_its_submission_on(roles: RolePair) -> None:
    attempt = await roles.create(await roles.open_account(1))
    with connect(roles.database.superuser_url, triggers=False) as owner:
        owner.execute("UPDATE payment_attempts SET payable_until = NULL")
    await roles.submit(attempt, tx_hash(1))
    kept = scalar(roles.database.service_url, "SELECT payable_until FROM payment_attempts WHERE id = %s", attempt.id)
    assert kept == attempt.expires_at
