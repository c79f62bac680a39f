"""`settle keys create|list|rotate|revoke`: service keys, by operators."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from chain.addresses import checksum_address
from commands.accounts import provision
from commands.framework import parse_moment
from commands.output import grouped, print_json, progress, stdout, table
from composition import service_database
from db.billing import keys
from db.billing.accounts import find_account
from domain.billing.keys import KeyTerms, parse_terms
from domain.errors import AccountNotFound, InvalidInput
from services.billing.keys import KeyView, NewKey, create_key, revoke_key, rotate_key
from settings import Settings

LISTED_MAX: Final = 1_000

_OPTIONS: Final = {
    "label": "--label",
    "expiresAt": "--expires",
    "limitDayCredits": "--limit-day",
    "limitMonthCredits": "--limit-month",
    "models": "--models",
}


async def create(
    settings: Settings,
    *,
    account: str | None,
    wallet: str | None,
    label: str,
    expires: str | None,
    limit_day: int | None,
    limit_month: int | None,
    models: str | None,
    may_attribute: bool,
    as_json: bool,
) -> None:
    """Make a key of an account, or of a wallet's own. Raises `InvalidInput` and `AccountNotFound`."""
    address = None if wallet is None else checksum_address(wallet, field="--wallet")
    terms = _parse_terms(
        label=label,
        expires=expires,
        limit_day=limit_day,
        limit_month=limit_month,
        models=models,
        may_attribute=may_attribute,
    )
    async with service_database(settings) as database, database.transaction() as connection:
        if address is not None:
            account = (await provision(connection, address, option="--wallet")).billing_account_id
        assert account is not None
        if await find_account(connection, account) is None:
            raise AccountNotFound(account)
        made = await create_key(connection, account, terms)
    _print_new(made, as_json=as_json)


async def list_all(settings: Settings, *, account: str | None, with_ended: bool, as_json: bool) -> None:
    """Keys, the newest first; a truncated list is reported on standard error."""
    async with service_database(settings) as database, database.snapshot() as connection:
        found = await keys.page_keys(connection, account, limit=LISTED_MAX + 1, in_force=not with_ended)
    if len(found) > LISTED_MAX:
        progress(f"only the newest {LISTED_MAX} are listed; --account narrows the list")
    views = [KeyView.of(key) for key in found[:LISTED_MAX]]
    if as_json:
        print_json(views)
        return
    if not views:
        stdout.print("no keys")
        return
    stdout.print(
        table(
            "",
            ("key", "account", "label", "hint", "state", "expires", "last used", "spent today", "this month"),
            [
                (
                    view.key_id,
                    view.billing_account_id,
                    view.label,
                    view.hint,
                    view.state.value,
                    view.expires_at and f"{view.expires_at:%Y-%m-%d %H:%M}",
                    view.last_used_at and f"{view.last_used_at:%Y-%m-%d %H:%M}",
                    _spent(view.spent_day_credits, view.limit_day_credits),
                    _spent(view.spent_month_credits, view.limit_month_credits),
                )
                for view in views
            ],
            right=("spent today", "this month"),
        )
    )


async def rotate(settings: Settings, *, key_id: UUID, overlap_minutes: int, as_json: bool) -> None:
    """Replace a key by a new one on the same terms. Raises `KeyNotFound` and `KeyNotInForce`."""
    overlap = timedelta(minutes=overlap_minutes)
    async with service_database(settings) as database, database.transaction() as connection:
        made = await rotate_key(connection, "", key_id, overlap=overlap)
    _print_new(made, as_json=as_json)


async def revoke(settings: Settings, *, key_id: UUID, as_json: bool) -> None:
    """Refuse a key from now on; safe to repeat. Raises `KeyNotFound`."""
    async with service_database(settings) as database, database.transaction() as connection:
        await revoke_key(connection, key_id)
        found = await keys.find_key(connection, key_id)
    assert found is not None
    if as_json:
        print_json(KeyView.of(found))
    else:
        stdout.print(f"key {key_id} ({found.hint}) is revoked", markup=False)


def _parse_terms(
    *,
    label: str,
    expires: str | None,
    limit_day: int | None,
    limit_month: int | None,
    models: str | None,
    may_attribute: bool,
) -> KeyTerms:
    """The terms of a key; a refusal names the option."""
    try:
        return parse_terms(
            label=label,
            now=datetime.now(UTC),
            expires_at=parse_moment("--expires", expires),
            limit_day_credits=limit_day,
            limit_month_credits=limit_month,
            models=None if models is None else models.split(","),
            may_attribute=may_attribute,
        )
    except InvalidInput as error:
        option = _OPTIONS.get(error.field, error.field)
        raise InvalidInput(option, error.message.removeprefix(f"{error.field}: ")) from None


def _print_new(made: NewKey, *, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    progress("this is the only time that the key is shown")
    stdout.print(f"key {made.key_id} of account {made.billing_account_id}", markup=False)
    stdout.print(made.key, markup=False)


def _spent(spent: int, limit: int | None) -> str:
    return grouped(spent) if limit is None else f"{grouped(spent)} of {grouped(limit)}"
