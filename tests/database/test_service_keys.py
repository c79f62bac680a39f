"""Service keys: made, rotated and revoked by who may manage the account, and by no other."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy.exc import ProgrammingError

from db.accounts.wallets import Payer
from db.billing import keys
from db.billing.keys import KeyState
from db.engine import TenantConnection
from domain.billing.keys import KeyTerms, hash_key, make_key
from tests.support.payments import RolePair
from tests.support.spending import Spender
from tests.support.sql import connect, query, refused, scalar

LABEL = KeyTerms(label="Agent")


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of an account."""

    roles: RolePair
    payer: Payer

    async def makes(self, terms: KeyTerms = LABEL, *, account: str | None = None) -> tuple[UUID, bool]:
        """A new key's id, and whether it was made."""
        key_id = uuid4()
        async with self.scope() as connection:
            made = await keys.create_key(
                connection, key_id, account or self.payer.billing_account_id, make_key(), terms
            )
        return key_id, made

    def scope(self) -> Any:
        """A transaction in the own scope."""
        return self.roles.app.transaction(self.payer.user_id)


@pytest.fixture
async def owner(roles: RolePair) -> Owner:
    """Who owns an account."""
    return Owner(roles, await roles.open_account(1))


@pytest.fixture
async def stranger(roles: RolePair) -> Owner:
    """Who owns another."""
    return Owner(roles, await roles.open_account(2))


async def test_a_key_is_stored_with_its_terms_and_without_its_secret(owner: Owner) -> None:
    secret = make_key()
    terms = KeyTerms(
        label="Agent",
        expires_at=datetime.now(UTC) + timedelta(days=1),
        limit_day_credits=2**63 - 1,
        limit_month_credits=0,
        models=("gpt-4o", "o3"),
    )
    key_id = uuid4()
    async with owner.scope() as connection:
        assert await keys.create_key(connection, key_id, owner.payer.billing_account_id, secret, terms)
        found = await keys.find_key(connection, key_id)
    assert found is not None
    assert (found.terms, found.state, found.hint) == (terms, KeyState.ACTIVE, secret.key_hint)
    assert found.created_by_user_id == owner.payer.user_id
    row = str(query(owner.roles.database.superuser_url, "SELECT * FROM virtual_keys WHERE id = %s", key_id))
    assert hash_key(secret.key) in row
    assert secret.key not in row


async def test_a_key_of_another_account_is_not_made(owner: Owner, stranger: Owner) -> None:
    _, made = await stranger.makes(account=owner.payer.billing_account_id)
    assert not made
    _, made = await stranger.makes(account="no-such-account")
    assert not made
    assert await listed(owner) == []


async def test_a_strangers_key_is_neither_seen_nor_rotated_nor_revoked(owner: Owner, stranger: Owner) -> None:
    key_id, _ = await owner.makes()
    async with stranger.scope() as connection:
        assert await keys.find_key(connection, key_id) is None
        assert not await keys.rotate_key(connection, key_id, uuid4(), make_key(), overlap=timedelta(hours=1))
        assert not await keys.revoke_key(connection, key_id)
        assert await keys.page_keys(connection, owner.payer.billing_account_id, limit=9) == []
        assert await keys.page_keys(connection, None, limit=9) == []
    assert [key.state for key in await listed(owner)] == [KeyState.ACTIVE]


async def test_without_a_scope_the_apis_password_manages_no_key(owner: Owner) -> None:
    key_id, _ = await owner.makes()
    async with owner.roles.app.unscoped() as unscoped:
        connection = TenantConnection(unscoped, "")
        assert not await keys.create_key(
            connection, uuid4(), owner.payer.billing_account_id, make_key(), KeyTerms(label="x")
        )
        assert not await keys.rotate_key(connection, key_id, uuid4(), make_key(), overlap=timedelta())
        assert not await keys.revoke_key(connection, key_id)
        assert await keys.page_keys(connection, None, limit=9) == []
    assert [key.state for key in await listed(owner)] == [KeyState.ACTIVE]


async def test_only_an_operator_gives_the_right_to_attribute(owner: Owner) -> None:
    terms = KeyTerms(label="Platform", may_attribute=True)
    with pytest.raises(ProgrammingError, match="only operators"):
        await owner.makes(terms)
    async with owner.roles.service.transaction() as service:
        assert await keys.create_key(service, uuid4(), owner.payer.billing_account_id, make_key(), terms)
    [key] = await listed(owner)
    assert key.terms.may_attribute


@pytest.mark.parametrize("column", ["may_attribute", "revoked_at", "key_hash", "limit_day_credits"])
async def test_no_key_is_changed_past_the_functions(owner: Owner, column: str) -> None:
    key_id, _ = await owner.makes()
    with (
        refused(psycopg.errors.InsufficientPrivilege),
        connect(owner.roles.database.app_url, user_id=owner.payer.user_id) as app,
    ):
        app.execute(f"UPDATE virtual_keys SET {column} = DEFAULT WHERE id = %s".encode(), (key_id,))


async def test_a_rotated_key_goes_on_for_the_overlap_and_no_longer_than_it_would(owner: Owner) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=5)
    endless, _ = await owner.makes()
    short, _ = await owner.makes(KeyTerms(label="Short", expires_at=soon, limit_day_credits=7, models=("o3",)))
    async with owner.scope() as connection:
        for key_id in (endless, short):
            new_id = uuid4()
            assert await keys.rotate_key(connection, key_id, new_id, make_key(), overlap=timedelta(hours=1))
            assert not await keys.rotate_key(connection, key_id, uuid4(), make_key(), overlap=timedelta(hours=1))
            old, new = await keys.find_key(connection, key_id), await keys.find_key(connection, new_id)
            assert old and new
            assert (old.state, old.rotated_to, new.state) == (KeyState.ROTATED, new_id, KeyState.ACTIVE)
            assert (new.terms.label, new.terms.models) == (old.terms.label, old.terms.models)
            assert new.terms.limit_day_credits == old.terms.limit_day_credits
        old = await keys.find_key(connection, short)
        assert old and old.terms.expires_at == soon
        old = await keys.find_key(connection, endless)
        assert old and old.terms.expires_at
        hour = scalar(owner.roles.database.service_url, "SELECT %s - now()", old.terms.expires_at)
        assert timedelta(minutes=55) < hour <= timedelta(hours=1)


async def test_without_an_overlap_the_old_key_has_expired(owner: Owner) -> None:
    key_id, _ = await owner.makes()
    async with owner.scope() as connection:
        assert await keys.rotate_key(connection, key_id, uuid4(), make_key(), overlap=timedelta())
    states = {key.id: key.state for key in await listed(owner)}
    assert states.pop(key_id) is KeyState.EXPIRED
    assert list(states.values()) == [KeyState.ACTIVE]


async def test_a_key_that_an_operator_rotates_stays_its_makers(owner: Owner) -> None:
    key_id, _ = await owner.makes()
    new_id = uuid4()
    async with owner.roles.service.transaction() as service:
        assert await keys.rotate_key(service, key_id, new_id, make_key(), overlap=timedelta())
        found = await keys.find_key(service, new_id)
    assert found is not None
    assert found.created_by_user_id == owner.payer.user_id


async def test_a_revoked_key_is_revoked_once_and_not_rotated(owner: Owner) -> None:
    (key_id, _), (other, _) = await owner.makes(), await owner.makes()
    async with owner.scope() as connection:
        assert await keys.revoke_key(connection, key_id)
        assert not await keys.revoke_key(connection, key_id)
        assert not await keys.rotate_key(connection, key_id, uuid4(), make_key(), overlap=timedelta(hours=1))
    assert {key.id: key.state for key in await listed(owner)} == {
        key_id: KeyState.REVOKED,
        other: KeyState.ACTIVE,
    }
    assert [key.id for key in await listed(owner, in_force=True)] == [other]


async def test_the_default_key_has_no_secret_and_is_no_service_key(owner: Owner) -> None:
    default = scalar(
        owner.roles.database.service_url,
        "SELECT id FROM virtual_keys WHERE billing_account_id = %s AND is_default",
        owner.payer.billing_account_id,
    )
    async with owner.scope() as connection:
        assert await keys.find_key(connection, default) is None
        assert not await keys.revoke_key(connection, default)
        assert not await keys.rotate_key(connection, default, uuid4(), make_key(), overlap=timedelta(hours=1))


async def test_keys_are_paged_from_newest_to_oldest(owner: Owner, stranger: Owner) -> None:
    made = [(await owner.makes(KeyTerms(label=f"{number}")))[0] for number in range(5)]
    theirs, _ = await stranger.makes()
    pages, before = [], None
    for _ in range(3):
        async with owner.scope() as connection:
            page = await keys.page_keys(connection, owner.payer.billing_account_id, limit=2, before=before)
        pages.append([key.id for key in page])
        before = page[-1].id
    assert pages == [[made[4], made[3]], [made[2], made[1]], [made[0]]]
    async with owner.scope() as connection:
        assert await keys.page_keys(connection, owner.payer.billing_account_id, limit=9, before=theirs) == []
    async with owner.roles.service.transaction() as service:
        assert {key.id for key in await keys.page_keys(service, None, limit=9)} == {*made, theirs}


async def test_what_a_key_has_spent_is_beside_its_limits(owner: Owner) -> None:
    spender = Spender(owner.roles.database, owner.payer.billing_account_id)
    spender.create_key(limit_day=10_000)
    spender.add_credits(1_000_000)
    for charged in (700, 50):
        spender.capture(spender.hold(1_000), charged)
    with connect(owner.roles.database.superuser_url, triggers=False) as superuser:
        superuser.execute(
            "INSERT INTO usage_by_day (day, billing_account_id, virtual_key_id, model, charged_credits)"
            " SELECT (date_trunc('month', now() AT TIME ZONE 'UTC') - interval '1 day')::date, %s, %s, 'o3', 9999",
            (owner.payer.billing_account_id, spender.key_id),
        )
    [key] = await listed(owner)
    assert (key.spent_day_credits, key.spent_month_credits) == (750, 750)
    assert key.last_used_at is not None


async def listed(owner: Owner, *, in_force: bool = False) -> list[keys.ServiceKey]:
    """The owner's own keys."""
    async with owner.scope() as connection:
        return await keys.page_keys(connection, owner.payer.billing_account_id, limit=100, in_force=in_force)


@pytest.mark.parametrize(("role", "is_made"), [("admin", True), ("member", False)])
async def test_an_admin_makes_keys_of_an_organization_and_a_member_does_not(
    owner: Owner, stranger: Owner, role: str, is_made: bool
) -> None:
    account = uuid4().hex
    with connect(owner.roles.database.service_url) as service:
        service.execute("SELECT open_account(%s, %s, 'organization', NULL, 'Lab')", (account, owner.payer.user_id))
        service.execute(
            "INSERT INTO account_members (billing_account_id, user_id, role) VALUES (%s, %s, %s)",
            (account, stranger.payer.user_id, role),
        )
    _, made = await stranger.makes(account=account)
    assert made is is_made
    _, made = await stranger.makes(account=owner.payer.billing_account_id)
    assert not made, "an admin of one account manages no other"
    may = "SELECT may_manage_account(%s)"
    assert scalar(owner.roles.database.app_url, may, account, user_id=stranger.payer.user_id) is is_made
