"""The commands about spending: keys, grants, accounts, receipts, prices."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import click

from commands.framework import Context, RowId, WholeNumber, command, json_option
from domain.billing.accounts import AccountKind, MemberRole, Tier
from domain.billing.reports import UsageBy
from domain.errors import InvalidInput

_CREDITS = WholeNumber("credits")
_operator = click.option("--operator", metavar="NAME", help="Your name, for the record. Default: the system's user.")


# -- accounts


@click.group()
def accounts() -> None:
    """Billing accounts: their balance, limits and members."""


@accounts.command("create")
@click.option("--kind", required=True, type=click.Choice([kind.value for kind in AccountKind]))
@click.option("--owner", required=True, metavar="WALLET", help="The wallet of its owner, who is opened where missing.")
@click.option("--tier", type=click.Choice([tier.value for tier in Tier]), help="Of a platform service.")
@click.option("--name", metavar="TEXT", help="What reports show for it.")
@json_option
@click.pass_obj
@command
async def accounts_create(
    context: Context, *, kind: str, owner: str, tier: str | None, name: str | None, as_json: bool
) -> None:
    """Open an account.

    A wallet has one personal account, which this prints where it is there already. A platform service is never refused
    for lack of credits.
    """
    from commands.accounts import create

    await create(
        context.settings,
        kind=AccountKind(kind),
        owner=owner,
        tier=Tier(tier) if tier else None,
        name=name,
        as_json=as_json,
    )


@accounts.command("show")
@click.argument("account_id", metavar="ID")
@json_option
@click.pass_obj
@command
async def accounts_show(context: Context, account_id: str, as_json: bool) -> None:
    """Show balance, held and available credits, limits, members, keys and grants."""
    from commands.accounts import show

    await show(context.settings, account_id=account_id, as_json=as_json)


@accounts.command("limit")
@click.argument("account_id", metavar="ID")
@click.option("--day", type=_CREDITS, metavar="N", help="Credits a UTC day.")
@click.option("--month", type=_CREDITS, metavar="N", help="Credits a UTC month.")
@click.option("--no-day", is_flag=True, help="No limit by day.")
@click.option("--no-month", is_flag=True, help="No limit by month.")
@json_option
@click.pass_obj
@command
async def accounts_limit(
    context: Context,
    *,
    account_id: str,
    day: int | None,
    month: int | None,
    no_day: bool,
    no_month: bool,
    as_json: bool,
) -> None:
    """Limit what an account spends; the next call is decided by it. What is not named stays as it is."""
    from commands.accounts import limit

    if day is not None and no_day:
        raise InvalidInput("--day", "cannot be combined with --no-day")
    if month is not None and no_month:
        raise InvalidInput("--month", "cannot be combined with --no-month")
    if day is None and month is None and not no_day and not no_month:
        raise InvalidInput("--day", "expected a limit, or --month, --no-day, --no-month")
    await limit(
        context.settings,
        account_id=account_id,
        day=day,
        month=month,
        no_day=no_day,
        no_month=no_month,
        as_json=as_json,
    )


@accounts.group("members")
def members() -> None:
    """Who belongs to an organization's account."""


@members.command("add")
@click.argument("account_id", metavar="ID")
@click.option("--wallet", required=True, metavar="ADDRESS", help="The wallet, whose user is opened where missing.")
@click.option(
    "--role",
    type=click.Choice([role.value for role in MemberRole]),
    default=MemberRole.MEMBER.value,
    show_default=True,
    help="Owners and admins manage the account.",
)
@json_option
@click.pass_obj
@command
async def members_add(context: Context, account_id: str, wallet: str, role: str, as_json: bool) -> None:
    """Make a wallet's user a member, or give a member another role."""
    from commands.accounts import add_member

    await add_member(context.settings, account_id=account_id, wallet=wallet, role=MemberRole(role), as_json=as_json)


@members.command("remove")
@click.argument("account_id", metavar="ID")
@click.option("--wallet", required=True, metavar="ADDRESS", help="The member's wallet.")
@json_option
@click.pass_obj
@command
async def members_remove(context: Context, account_id: str, wallet: str, as_json: bool) -> bool:
    """End a membership. Exit code 1 where the wallet is no member's. Keys stay: revoke those that the member has."""
    from commands.accounts import remove_member

    return await remove_member(context.settings, account_id=account_id, wallet=wallet, as_json=as_json)


# -- grants


@click.group()
def grants() -> None:
    """Which account may have its calls billed to another (X-Bill-To)."""


@grants.command("create")
@click.option("--payer", required=True, metavar="ACCOUNT", help="Who pays.")
@click.option("--to", "grantee", required=True, metavar="ACCOUNT", help="Whose keys may bill the payer.")
@json_option
@click.pass_obj
@command
async def grants_create(context: Context, payer: str, grantee: str, as_json: bool) -> None:
    """Let an account's keys bill another account. Safe to repeat."""
    from commands.grants import create

    await create(context.settings, payer=payer, grantee=grantee, as_json=as_json)


@grants.command("list")
@click.option("--account", metavar="ID", help="Only those by or to this account.")
@click.option("--all", "with_revoked", is_flag=True, help="Include revoked grants.")
@json_option
@click.pass_obj
@command
async def grants_list(context: Context, account: str | None, with_revoked: bool, as_json: bool) -> None:
    """List grants, the newest first."""
    from commands.grants import list_all

    await list_all(context.settings, account=account, with_revoked=with_revoked, as_json=as_json)


@grants.command("revoke")
@click.argument("grant_id", type=RowId())
@json_option
@click.pass_obj
@command
async def grants_revoke(context: Context, grant_id: UUID, as_json: bool) -> None:
    """End a grant, from the next call on. Safe to repeat."""
    from commands.grants import revoke

    await revoke(context.settings, grant_id=grant_id, as_json=as_json)


# -- keys


@click.group()
def keys() -> None:
    """Service keys, which the gateway takes."""


@keys.command("create")
@click.option("--account", metavar="ID", help="The account that its calls are billed to.")
@click.option("--wallet", metavar="ADDRESS", help="Instead: the personal account of this wallet, opened where missing.")
@click.option("--label", metavar="TEXT", default="Key", show_default=True, help="What it is recognized by.")
@click.option("--expires", metavar="TIME", help="When it ends, as ISO 8601. Default: never.")
@click.option("--limit-day", type=_CREDITS, metavar="N", help="Credits a UTC day.")
@click.option("--limit-month", type=_CREDITS, metavar="N", help="Credits a UTC month.")
@click.option("--models", metavar="A,B", help="The only models that it may call. Default: all.")
@click.option("--may-attribute", is_flag=True, help="Its calls may be attributed to other accounts (X-Attribute-To).")
@json_option
@click.pass_obj
@command
async def keys_create(
    context: Context,
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
    """Make a key. It is shown this once; only its hash is stored."""
    from commands.keys import create

    if (account is None) == (wallet is None):
        raise InvalidInput("--account", "expected one of --account and --wallet")
    await create(
        context.settings,
        account=account,
        wallet=wallet,
        label=label,
        expires=expires,
        limit_day=limit_day,
        limit_month=limit_month,
        models=models,
        may_attribute=may_attribute,
        as_json=as_json,
    )


@keys.command("list")
@click.option("--account", metavar="ID", help="Only this account's.")
@click.option("--all", "with_ended", is_flag=True, help="Include revoked and expired keys.")
@json_option
@click.pass_obj
@command
async def keys_list(context: Context, account: str | None, with_ended: bool, as_json: bool) -> None:
    """List keys, the newest first, with what was spent by each this day and month."""
    from commands.keys import list_all

    await list_all(context.settings, account=account, with_ended=with_ended, as_json=as_json)


@keys.command("rotate")
@click.argument("key_id", type=RowId())
@click.option(
    "--overlap-minutes",
    type=click.IntRange(0, 30 * 24 * 60),
    default=60,
    show_default=True,
    metavar="N",
    help="How long the old key is still accepted.",
)
@json_option
@click.pass_obj
@command
async def keys_rotate(context: Context, key_id: UUID, overlap_minutes: int, as_json: bool) -> None:
    """Replace a key by a new one on the same terms, which is shown this once."""
    from commands.keys import rotate

    await rotate(context.settings, key_id=key_id, overlap_minutes=overlap_minutes, as_json=as_json)


@keys.command("revoke")
@click.argument("key_id", type=RowId())
@json_option
@click.pass_obj
@command
async def keys_revoke(context: Context, key_id: UUID, as_json: bool) -> None:
    """Refuse a key from the next call on, in every process. Safe to repeat."""
    from commands.keys import revoke

    await revoke(context.settings, key_id=key_id, as_json=as_json)


# -- usage


@click.command()
@click.option("--account", metavar="ID", help="Only this account. Default: all.")
@click.option(
    "--by",
    type=click.Choice([by.value for by in UsageBy]),
    help="What the rows are. Default: account, of one account model.",
)
@click.option("--from", "first", metavar="DAY", help="First UTC day. Default: 29 days before the last.")
@click.option("--to", "last", metavar="DAY", help="Last UTC day, included. Default: today.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV on standard output.")
@json_option
@click.pass_obj
@command
async def usage(
    context: Context,
    *,
    account: str | None,
    by: str | None,
    first: str | None,
    last: str | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Report what was spent: credits, the providers' cost, the margin, and the cost that the platform absorbed."""
    from commands.usage import report

    if as_csv and as_json:
        raise InvalidInput("--csv", "cannot be combined with --json")
    await report(
        context.settings,
        account=account,
        by=UsageBy(by) if by else None,
        first=first,
        last=last,
        as_csv=as_csv,
        as_json=as_json,
    )


# -- receipts


@click.group()
def receipt() -> None:
    """Receipts of calls: what was charged, and why."""


@receipt.command("show")
@click.argument("receipt_id", metavar="ID")
@json_option
@click.pass_obj
@command
async def receipt_show(context: Context, receipt_id: str, as_json: bool) -> None:
    """Show a receipt by its id, or all of a call by its request id."""
    from commands.receipt import show

    await show(context.settings, given=receipt_id, as_json=as_json)


@receipt.command("verify")
@click.argument("receipt_id", metavar="[ID]", required=False)
@click.option("--all", "all_of_them", is_flag=True, help="All receipts instead of one.")
@click.option("--since", metavar="TIME", help="With --all: those booked since then, as ISO 8601.")
@json_option
@click.pass_obj
@command
async def receipt_verify(
    context: Context, receipt_id: str | None, all_of_them: bool, since: str | None, as_json: bool
) -> bool:
    """Compute a receipt again from what it stores, and compare it with what was charged and posted.

    Exit code 1 where a field differs; each is named.
    """
    from commands.receipt import verify, verify_every

    if (receipt_id is None) != all_of_them:
        raise InvalidInput("ID", "expected the id of a receipt or of a request, or --all")
    if all_of_them:
        return await verify_every(context.settings, since=since, as_json=as_json)
    if since is not None:
        raise InvalidInput("--since", "is for --all")
    assert receipt_id is not None
    return await verify(context.settings, given=receipt_id, as_json=as_json)


# -- prices


@click.group()
def prices() -> None:
    """Versions of prices, and the price book of the installed genai-prices."""


_provider = click.option("--provider", metavar="NAME", help="Only this provider's models.")
_counts_from = click.option(
    "--counts-from", metavar="TIME", help="When the version takes effect, as ISO 8601. Default: now."
)


@prices.command("show")
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--overrides", is_flag=True, help="The prices of UPSTREAMS_FILE, beside those that they replace.")
@json_option
@click.pass_obj
@command
async def prices_show(context: Context, model: str | None, overrides: bool, as_json: bool) -> None:
    """Show what a model's calls are priced at now; without MODEL the versions. Exit code 1 where it has no price.

    Prices of UPSTREAMS_FILE count before the versions, as in the gateway.
    """
    from commands.prices import show_model, show_overrides, show_versions

    if model is not None and overrides:
        raise click.UsageError("expected MODEL or --overrides, not both")
    if overrides:
        await show_overrides(context.settings, as_json=as_json)
    elif model is None:
        await show_versions(context.settings, as_json=as_json)
    else:
        await show_model(context.settings, model=model, as_json=as_json)


@prices.command("diff")
@_counts_from
@_provider
@json_option
@click.pass_obj
@command
async def prices_diff(context: Context, counts_from: str | None, provider: str | None, as_json: bool) -> None:
    """Show what `settle prices import` would change, before anything counts. Exit code 0 whatever differs."""
    from commands.prices import diff

    await diff(context.settings, counts_from=counts_from, provider=provider, as_json=as_json)


@prices.command("import")
@_counts_from
@_operator
@click.option("--yes", "confirmed", is_flag=True, help="Write the version. Without it only a preview.")
@json_option
@click.pass_obj
@command
async def prices_import(
    context: Context, counts_from: str | None, operator: str | None, confirmed: bool, as_json: bool
) -> None:
    """Write the installed price book as a new version: shows the difference, and writes it with --yes.

    Refused (exit code 1) where nothing differs. Gateways take a version up within seconds of its time; a call is
    priced as it was when it began.
    """
    from commands.prices import import_installed

    await import_installed(
        context.settings, counts_from=counts_from, operator=operator, confirmed=confirmed, as_json=as_json
    )


GROUPS: Final = (accounts, grants, keys, prices, receipt, usage)
