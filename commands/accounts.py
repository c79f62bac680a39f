"""`settle accounts create|show|limit` and `settle accounts members add|remove`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import uuid4

from chain.addresses import checksum_address
from commands.output import grouped, print_json, stdout, table
from composition import service_database
from db.accounts.wallets import Payer, provision_wallet
from db.billing import accounts
from db.billing.accounts import AccountState, Member
from db.billing.keys import ServiceKey, page_keys
from db.engine import ServiceConnection
from domain.billing.accounts import AccountKind, MemberRole, Tier, check_new_account
from domain.billing.keys import check_limit
from domain.errors import AccountNotFound, InvalidInput, PayerRefused, Refusal
from services.answers import ResponseModel
from services.billing.keys import KeyView
from settings import Settings

KEYS_MAX: Final = 1_000


class MemberView(ResponseModel):
    """A member of an organization's account."""

    user_id: str
    wallet: str | None
    role: MemberRole
    since: datetime

    @classmethod
    def of(cls, member: Member) -> MemberView:
        """The answer about a member."""
        return cls(user_id=member.user_id, wallet=member.wallet_address, role=member.role, since=member.since)


class AccountView(ResponseModel):
    """A billing account as it stands."""

    billing_account_id: str
    kind: AccountKind
    tier: Tier | None
    name: str | None
    owner_user_id: str
    owner_wallet: str | None
    is_system_tenant: bool
    balance_credits: int
    held_credits: int
    available_credits: int
    limit_day_credits: int | None
    limit_month_credits: int | None
    spent_day_credits: int
    spent_month_credits: int
    created_at: datetime
    members: tuple[MemberView, ...]
    keys: tuple[KeyView, ...]
    """Those that are accepted, the newest first."""

    @classmethod
    def of(cls, account: AccountState, members: Sequence[Member], keys: Sequence[ServiceKey]) -> AccountView:
        """The answer about an account."""
        return cls(
            billing_account_id=account.id,
            kind=account.kind,
            tier=account.tier,
            name=account.name,
            owner_user_id=account.owner_user_id,
            owner_wallet=account.owner_wallet,
            is_system_tenant=account.is_system_tenant,
            balance_credits=account.balance_credits,
            held_credits=account.held_credits,
            available_credits=account.available_credits,
            limit_day_credits=account.limit_day_credits,
            limit_month_credits=account.limit_month_credits,
            spent_day_credits=account.spent_day_credits,
            spent_month_credits=account.spent_month_credits,
            created_at=account.created_at,
            members=tuple(map(MemberView.of, members)),
            keys=tuple(map(KeyView.of, keys)),
        )


async def create(
    settings: Settings, *, kind: AccountKind, owner: str, tier: Tier | None, name: str | None, as_json: bool
) -> None:
    """Open an account for a wallet; a personal one is found where it exists. Raises `InvalidInput`."""
    address = checksum_address(owner, field="--owner")
    check_new_account(kind, tier, name)
    async with service_database(settings) as database, database.transaction() as connection:
        payer = await provision(connection, address, option="--owner")
        account_id = payer.billing_account_id
        if kind is not AccountKind.PERSONAL:
            account_id = str(uuid4())
            await accounts.open_account(
                connection, account_id, owner_user_id=payer.user_id, kind=kind, tier=tier, name=name
            )
        view = await _read(connection, account_id)
    if as_json:
        print_json(view)
    else:
        stdout.print(f"account {account_id}: {kind.value}, owned by {address}", markup=False)
        stdout.print(f"a key for it: settle keys create --account {account_id}", markup=False)


async def show(settings: Settings, *, account_id: str, as_json: bool) -> None:
    """An account with all that hangs on it. Raises `AccountNotFound`."""
    async with service_database(settings) as database, database.snapshot() as connection:
        view = await _read(connection, account_id)
    if as_json:
        print_json(view)
        return
    _print(view)


async def limit(
    settings: Settings,
    *,
    account_id: str,
    day: int | None,
    month: int | None,
    no_day: bool,
    no_month: bool,
    as_json: bool,
) -> None:
    """Set limits in credits for a UTC day and month; what is not named stays. Raises `AccountNotFound`."""
    check_limit("--day", day)
    check_limit("--month", month)
    async with service_database(settings) as database, database.transaction() as connection:
        before = await _find(connection, account_id)
        await accounts.set_limits(
            connection,
            account_id,
            day_credits=None if no_day else before.limit_day_credits if day is None else day,
            month_credits=None if no_month else before.limit_month_credits if month is None else month,
        )
        view = await _read(connection, account_id)
    if as_json:
        print_json(view)
    else:
        stdout.print(f"account {account_id}: {_limits(view)}", markup=False)


async def add_member(settings: Settings, *, account_id: str, wallet: str, role: MemberRole, as_json: bool) -> None:
    """Make a wallet's user a member, or change the role. Raises `AccountNotFound`, `Refusal`, `InvalidInput`."""
    address = checksum_address(wallet, field="--wallet")
    async with service_database(settings) as database, database.transaction() as connection:
        account = await _find_organization(connection, account_id)
        payer = await provision(connection, address, option="--wallet")
        if payer.user_id == account.owner_user_id and role is not MemberRole.OWNER:
            raise Refusal(f"{address} owns account {account_id}: expected role owner")
        await accounts.put_member(connection, account_id, payer.user_id, role)
        view = await _read(connection, account_id)
    if as_json:
        print_json(view)
    else:
        stdout.print(f"{address} is {role.value} of account {account_id}", markup=False)


async def remove_member(settings: Settings, *, account_id: str, wallet: str, as_json: bool) -> bool:
    """End a membership; False where the wallet is no member's. Raises `AccountNotFound` and `Refusal`."""
    address = checksum_address(wallet, field="--wallet")
    async with service_database(settings) as database, database.transaction() as connection:
        account = await _find_organization(connection, account_id)
        user_id = await accounts.find_user_of_wallet(connection, address)
        if user_id == account.owner_user_id:
            raise Refusal(f"{address} owns account {account_id} and stays a member")
        removed = user_id is not None and await accounts.remove_member(connection, account_id, user_id)
        view = await _read(connection, account_id)
    if as_json:
        print_json(view)
    else:
        stdout.print(f"{address} is {'no longer' if removed else 'no'} member of account {account_id}", markup=False)
    return removed


async def provision(connection: ServiceConnection, address: str, *, option: str) -> Payer:
    """The user and personal account of a wallet, opened where missing. Raises `InvalidInput` naming the option."""
    try:
        return await provision_wallet(connection.connection, address)
    except PayerRefused as refusal:
        raise InvalidInput(option, f"is invalid: {refusal.message}; expected a person's wallet") from None


async def _find(connection: ServiceConnection, account_id: str) -> AccountState:
    account = await accounts.find_account(connection, account_id)
    if account is None:
        raise AccountNotFound(account_id)
    return account


async def _find_organization(connection: ServiceConnection, account_id: str) -> AccountState:
    account = await _find(connection, account_id)
    if account.kind is not AccountKind.ORGANIZATION:
        raise Refusal(f"account {account_id} is {account.kind.value}: only an organization has members")
    return account


async def _read(connection: ServiceConnection, account_id: str) -> AccountView:
    account = await _find(connection, account_id)
    keys = await page_keys(connection, account_id, limit=KEYS_MAX, in_force=True)
    return AccountView.of(account, await accounts.list_members(connection, account_id), keys)


def _print(view: AccountView) -> None:
    facts = [
        ("account", view.billing_account_id),
        ("kind", view.kind.value if view.tier is None else f"{view.kind.value}, {view.tier.value}"),
        ("name", view.name),
        ("owner", view.owner_wallet or view.owner_user_id),
        ("balance", f"{grouped(view.balance_credits)} credits"),
        ("held", f"{grouped(view.held_credits)} credits, by calls in flight"),
        ("available", f"{grouped(view.available_credits)} credits"),
        ("limits", _limits(view)),
        ("created", view.created_at.isoformat(timespec="seconds")),
    ]
    stdout.print(table("", ("fact", "value"), [(name, value) for name, value in facts if value is not None]))
    if view.members:
        rows = [(member.wallet, member.role.value, f"{member.since:%Y-%m-%d}") for member in view.members]
        stdout.print(table("Members", ("wallet", "role", "since"), rows))
    if view.keys:
        listed = [(key.key_id, key.label, key.hint, key.state.value) for key in view.keys]
        stdout.print(table("Keys", ("key", "label", "hint", "state"), listed))
    stdout.print(f"more on keys: settle keys list --account {view.billing_account_id}", markup=False)


def _limits(view: AccountView) -> str:
    limits = (
        ("day", view.limit_day_credits, view.spent_day_credits),
        ("month", view.limit_month_credits, view.spent_month_credits),
    )
    return "; ".join(
        f"{grouped(spent)} credits spent this {period} of {'any number' if limit is None else grouped(limit)}"
        for period, limit, spent in limits
    )
