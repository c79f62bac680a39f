"""`settle grants create|list|revoke`: which account may have its calls billed to another."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from commands.output import print_json, progress, stdout, table
from composition import service_database
from db.billing import grants
from db.billing.accounts import find_account
from db.billing.grants import Grant
from domain.errors import AccountNotFound, GrantNotFound, InvalidInput
from services.answers import ResponseModel
from settings import Settings

LISTED_MAX: Final = 1_000


class GrantView(ResponseModel):
    """An account's permission for another account's keys to bill it."""

    grant_id: UUID
    payer_account_id: str
    grantee_account_id: str
    created_at: datetime
    revoked_at: datetime | None

    @classmethod
    def of(cls, grant: Grant) -> GrantView:
        """The answer about a grant."""
        return cls(
            grant_id=grant.id,
            payer_account_id=grant.payer_account_id,
            grantee_account_id=grant.grantee_account_id,
            created_at=grant.created_at,
            revoked_at=grant.revoked_at,
        )


async def create(settings: Settings, *, payer: str, grantee: str, as_json: bool) -> None:
    """Grant, or find the grant in force. Raises `InvalidInput` for one account twice, and `AccountNotFound`."""
    if payer == grantee:
        raise InvalidInput("--to", "expected another account than --payer: its own keys bill it anyway")
    async with service_database(settings) as database, database.transaction() as connection:
        for account_id in (payer, grantee):
            if await find_account(connection, account_id) is None:
                raise AccountNotFound(account_id)
        grant = await grants.create_grant(connection, payer_account_id=payer, grantee_account_id=grantee)
    if as_json:
        print_json(GrantView.of(grant))
    else:
        stdout.print(f"grant {grant.id}: keys of {grantee} may bill {payer}", markup=False)


async def list_all(settings: Settings, *, account: str | None, with_revoked: bool, as_json: bool) -> None:
    """Grants, the newest first; a truncated list is reported on standard error."""
    async with service_database(settings) as database, database.snapshot() as connection:
        found = await grants.list_grants(
            connection, account_id=account, with_revoked=with_revoked, limit=LISTED_MAX + 1
        )
    if len(found) > LISTED_MAX:
        progress(f"only the newest {LISTED_MAX} are listed; --account narrows the list")
    views = [GrantView.of(grant) for grant in found[:LISTED_MAX]]
    if as_json:
        print_json(views)
        return
    if not views:
        stdout.print("no grants")
        return
    stdout.print(
        table(
            "",
            ("grant", "payer", "may be billed by keys of", "since", "revoked"),
            [
                (
                    view.grant_id,
                    view.payer_account_id,
                    view.grantee_account_id,
                    f"{view.created_at:%Y-%m-%d %H:%M}",
                    view.revoked_at and f"{view.revoked_at:%Y-%m-%d %H:%M}",
                )
                for view in views
            ],
        )
    )


async def revoke(settings: Settings, *, grant_id: UUID, as_json: bool) -> None:
    """End a grant; safe to repeat. Raises `GrantNotFound`."""
    async with service_database(settings) as database, database.transaction() as connection:
        grant = await grants.revoke_grant(connection, grant_id)
    if grant is None:
        raise GrantNotFound(grant_id)
    if as_json:
        print_json(GrantView.of(grant))
    else:
        stdout.print(f"grant {grant.id} is revoked", markup=False)
