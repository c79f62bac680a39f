"""The `settle` command. Exit codes: 0 done, 1 failure, 2 usage error."""

from __future__ import annotations

if __name__ == "__main__":  # `python -m cli`: before the slow imports
    from commands.entry import leave_on_interrupt

    leave_on_interrupt()

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from commands import deposits, spending
from commands.framework import DIGITS_MAX, AttemptId, Context, WholeNumber, command, json_option, service
from commands.output import EXIT_USAGE, print_json, progress
from commands.webhooks import webhooks
from domain.errors import ConfigurationError, InvalidInput
from domain.operations.findings import FindingKind, Remedy
from domain.payments.attempt import Purpose
from settings import environment

if TYPE_CHECKING:
    from db.operations.findings import FindingFilter


class StateDir(click.Path):
    """A folder's name; an empty one would be the current folder, filled by mistake."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or a usage error."""
        if value == "":
            self.fail("expected the name of a folder, got nothing", param, ctx)
        return super().convert(value, param, ctx)


state_dir_option = click.option(
    "--state-dir",
    type=StateDir(file_okay=False, path_type=Path),
    default=Path(".settle"),
    show_default=True,
    help="Folder that holds all state of the local system.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="settle")
@click.option(
    "--env-file",
    type=click.Path(path_type=Path),
    help="File of NAME=value settings, below the environment. Default: .env, where there is one.",
)
@click.pass_context
def main(ctx: click.Context, env_file: Path | None) -> None:
    """Turn payments on a public chain into prepaid credits, exactly once.

    Start with `settle demo`, which needs no setup, or `settle up`, which runs the whole system on this machine.
    """
    try:
        ctx.obj = Context(environment(env_file))
    except ConfigurationError as error:
        progress(f"settle: {error}")
        sys.exit(EXIT_USAGE)


@main.command()
@state_dir_option
@click.option("--without", multiple=True, metavar="PART", help="Leave a part out (repeatable): worker, api, chain, …")
@json_option
@click.pass_obj
@command
async def up(context: Context, state_dir: Path, without: tuple[str, ...], as_json: bool) -> None:
    """Run the whole system on this machine from embedded parts.

    PostgreSQL, Temporal with its UI, a local chain with test USDC, the worker, the API with the Credits page, and the
    gateway before a local AI provider, with a service key that has credits. A part for which a server is named in the
    settings is not started; that server is used. Addresses and the key go to <state-dir>/env.
    """
    from commands.up import up as run

    await run(state_dir, context.variables, without=without, as_json=as_json)


@main.command()
@click.option("--keep", is_flag=True, help="Leave everything running afterwards, to explore; Ctrl-C stops it.")
@json_option
@click.pass_obj
@command
async def demo(context: Context, keep: bool, as_json: bool) -> bool:
    """Watch eight payments on a local chain, and calls to an AI that spend some of them.

    A worker is killed half-way, a gateway in mid-stream, a tab is closed, a payment is reorged out, a call refused.

    Exit code 0 only if every expectation was met.
    """
    from commands.demo import demo as run

    return await run(context.variables, keep=keep, as_json=as_json)


@main.command()
@click.option(
    "--expand-only",
    is_flag=True,
    help="Remove nothing that processes of the previous version use; a later `settle migrate` does.",
)
@click.option(
    "--set-passwords",
    is_flag=True,
    help="Set the passwords of existing roles to those of the settings.",
)
@json_option
@click.pass_obj
@command
async def migrate(context: Context, expand_only: bool, set_passwords: bool, as_json: bool) -> None:
    """Create the roles, bring the schema to this version's revision, and seed. Safe to repeat.

    Exit code 1 where an existing role does not accept the password of its address.
    """
    from db.migrate import migrate as run

    settings = context.settings
    migrated = await asyncio.to_thread(
        run,
        settings.require_migration_database_url(),
        app_url=settings.require_database_url(),
        settlement_url=settings.require_settlement_database_url(),
        service_url=settings.require_service_database_url(),
        operator_url=settings.operator_database_url,
        relay_url=settings.relay_database_url,
        expand_only=expand_only,
        set_passwords=set_passwords,
        on_progress=progress,
    )
    if as_json:
        print_json(
            {
                "revisionBefore": migrated.revision_before,
                "revision": migrated.revision,
                "rolesCreated": list(migrated.roles_created),
                **({"passwordsSet": list(migrated.passwords_set)} if set_passwords else {}),
            }
        )


@main.command()
@click.pass_obj
@service
async def worker(context: Context) -> None:
    """Run a worker until SIGTERM, which drains it. Health and metrics are served on WORKER_HEALTH_PORT."""
    from worker import run_worker

    await run_worker(context.settings, context.variables)


@main.command()
@click.pass_obj
@service
async def api(context: Context) -> None:
    """Serve the HTTP interface and the Credits page on API_HOST and API_PORT until SIGTERM."""
    from api.process import run_api

    await run_api(context.settings, context.variables)


@main.command()
@click.pass_obj
@service
async def gateway(context: Context) -> None:
    """Pass calls on to AI providers on GATEWAY_HOST and GATEWAY_PORT until SIGTERM, and charge each one.

    Speaks the APIs of OpenAI (chat completions, completions, responses, embeddings) and Anthropic (messages), for
    holders of service keys. UPSTREAMS_FILE names the providers.
    """
    from commands.gateway import gateway as run

    await run(context.settings, context.variables)


@main.command()
@click.pass_obj
@service
async def relay(context: Context) -> None:
    """Broadcast what payers have signed, and pay the gas, until SIGTERM.

    The one process that holds a key, RELAY_PRIVATE_KEY or RELAY_PRIVATE_KEY_FILE, whose account holds gas only.
    """
    from commands.relay import relay as run

    await run(context.settings)


@main.command()
@click.option("--full", is_flag=True, help="Check every ledger row, not only new ones: minutes per million.")
@json_option
@click.pass_obj
@command
async def doctor(context: Context, full: bool, as_json: bool) -> bool:
    """Check every part that the settings name: database, rights, system tenant, ledger, Temporal, chain, token."""
    from commands.doctor import doctor as run

    return await run(context.settings, context.variables, full=full, as_json=as_json)


@main.command(context_settings={"ignore_unknown_options": False})
@click.option("--settlements", type=click.IntRange(20, 5000), default=300, show_default=True, help="Payments per run.")
@click.option("--postings", type=click.IntRange(100, 100_000), default=4000, show_default=True, help="Ledger entries.")
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="Rounds; ratios are medians.")
@click.option("--clients", type=click.IntRange(1, 500), default=100, show_default=True, help="Concurrent clients.")
@click.option(
    "--waiting",
    type=click.IntRange(20, 5000),
    multiple=True,
    default=(60,),
    show_default=True,
    help="Payments that wait at once; may be repeated. 300 take about 3 minutes, 1,000 about 8.",
)
@click.option("--payments", type=click.IntRange(1, 50), default=5, show_default=True, help="Payments per HTTP client.")
@click.option("--calls", type=click.IntRange(100, 100_000), default=2000, show_default=True, help="Calls to an AI.")
@click.option("--deposits", type=click.IntRange(10, 10_000), default=200, show_default=True, help="To as many charges.")
@click.option("--watched", type=click.IntRange(10, 1_000_000), default=100_000, show_default=True, help="Addresses.")
@click.option("--webhooks", type=click.IntRange(25, 10_000), default=300, show_default=True, help="Delivered at once.")
@click.option("--litellm", "with_litellm", is_flag=True, help="Install LiteLLM's proxy and measure it, too.")
@json_option
@click.pass_obj
@command
async def bench(
    context: Context,
    *,
    settlements: int,
    postings: int,
    rounds: int,
    clients: int,
    waiting: tuple[int, ...],
    payments: int,
    calls: int,
    deposits: int,
    watched: int,
    webhooks: int,
    with_litellm: bool,
    as_json: bool,
) -> bool:
    """Measure settlements against DBOS and plain code, their cost, and postings against raw statements.

    DBOS is measured where the extra `bench` is installed. Then what payments that wait ask of a chain node, at a block
    every two seconds. Then the HTTP interface: many concurrent clients, from the intent through submit and status to
    the credits. Then calls to an AI through the gateway, against the same calls straight; with --litellm against
    LiteLLM's proxy, too, which is installed from the package index into an environment of its own. Then charges with
    addresses of their own, deposits to them, and what reading many addresses asks of a node. Last, webhooks, from the
    commit of their events to the receiver's 200.
    """
    from bench.run import bench as run

    return await run(
        context.variables,
        settlements=settlements,
        postings=postings,
        rounds=rounds,
        clients=clients,
        waiting=waiting,
        payments=payments,
        calls=calls,
        deposits=deposits,
        watched=watched,
        webhooks=webhooks,
        with_litellm=with_litellm,
        as_json=as_json,
    )


@main.group()
def chain() -> None:
    """Maintain the data read from the chain."""


@chain.command("rescan")
@click.option("--from", "first", required=True, type=click.IntRange(min=0), metavar="BLOCK", help="The first block.")
@click.option("--to", "last", required=True, type=click.IntRange(min=0), metavar="BLOCK", help="The last block.")
@json_option
@click.pass_obj
@command
async def rescan_chain(context: Context, *, first: int, last: int, as_json: bool) -> bool:
    """Read blocks below the watcher's cursor again, and close the gaps among them.

    Use CHAIN_RPC_URLS of a node that has them, such as an archive node. The worker acts on what is found. Exit code 1
    where no node returns all of them.
    """
    from commands.chain import rescan

    return await rescan(context.settings, first=first, last=last, as_json=as_json)


@main.group()
def attempt() -> None:
    """Create, submit and inspect payment attempts."""


@attempt.command("create")
@click.option("--wallet", required=True, metavar="ADDRESS", help="The wallet that will pay.")
@click.option("--cents", required=True, type=WholeNumber("US cents"), metavar="N", help="US cents.")
@click.option(
    "--purpose",
    type=click.Choice([purpose.value for purpose in Purpose]),
    default=Purpose.SELF.value,
    show_default=True,
)
@json_option
@click.pass_obj
@command
async def attempt_create(context: Context, wallet: str, cents: int, purpose: str, as_json: bool) -> None:
    """Create an intent to pay; creates the wallet's account when it has none."""
    from commands.attempt import create as run

    await run(
        context.settings, context.variables, wallet=wallet, cents=cents, purpose=Purpose(purpose), as_json=as_json
    )


@attempt.command("submit")
@click.argument("attempt_id", type=AttemptId())
@click.argument("tx_hash", metavar="TX_HASH")
@json_option
@click.pass_obj
@command
async def attempt_submit(context: Context, attempt_id: UUID, tx_hash: str, as_json: bool) -> bool:
    """Submit the transaction hash that pays an attempt. Safe to repeat."""
    from commands.attempt import submit as run

    return await run(context.settings, context.variables, attempt_id=attempt_id, tx_hash=tx_hash, as_json=as_json)


@attempt.command("show")
@click.argument("attempt_id", type=AttemptId())
@json_option
@click.pass_obj
@command
async def attempt_show(context: Context, attempt_id: UUID, as_json: bool) -> bool:
    """Explain why a payment is, or is not, credited: from database, workflow and chain."""
    from commands.attempt import show as run

    return await run(context.settings, context.variables, attempt_id=attempt_id, as_json=as_json)


@main.group()
def schedules() -> None:
    """Scheduled jobs: the governance heartbeat, housekeeping and others."""


@schedules.command("apply")
@click.option("--dry-run", is_flag=True, help="Show the difference without applying it.")
@json_option
@click.pass_obj
@command
async def schedules_apply(context: Context, dry_run: bool, as_json: bool) -> None:
    """Show how Temporal differs from the schedules file (SCHEDULES_FILE), then apply it. Safe to repeat.

    An operator's pause and note are kept. Our schedules that the file no longer names are deleted.
    """
    from commands.schedules import apply as run

    await run(context.settings, context.variables, dry_run=dry_run, as_json=as_json)


@schedules.command("list")
@json_option
@click.pass_obj
@command
async def schedules_list(context: Context, as_json: bool) -> None:
    """List the schedules in Temporal: state, next run, and result of the last one."""
    from commands.schedules import list_all as run

    await run(context.variables, as_json=as_json)


operator_option = click.option("--operator", required=True, metavar="NAME", help="Your name, for the audit trail.")
reason_option = click.option("--reason", required=True, metavar="TEXT", help="The reason, for the audit trail.")


@attempt.command("retry")
@click.argument("attempt_id", type=AttemptId())
@operator_option
@reason_option
@json_option
@click.pass_obj
@command
async def attempt_retry(context: Context, attempt_id: UUID, operator: str, reason: str, as_json: bool) -> bool:
    """Restart a payment's workflow where none is running. Safe to repeat: nothing is done twice."""
    from commands.findings import retry_attempt as run

    return await run(
        context.settings, context.variables, attempt_id=attempt_id, operator=operator, reason=reason, as_json=as_json
    )


@main.command()
@click.option("--from", "from_time", metavar="TIME", help="Start, as ISO 8601. Default: a day before the end.")
@click.option("--to", "to_time", metavar="TIME", help="End (exclusive). Default: now.")
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write each transfer, and what it was credited for, to this file.",
)
@json_option
@click.pass_obj
@command
async def reconcile(
    context: Context, from_time: str | None, to_time: str | None, csv_file: Path | None, as_json: bool
) -> bool:
    """Compare chain transfers, attempts, ledger and workflows of a period.

    The default period is the last day, or since the last reconciliation where that is longer ago. Every difference is
    listed with what to do about it; missing workflows are started. The result is stored as a balance assertion.

    Exit code 1: the totals do not balance, or credits were posted that no transfer explains. Open findings (settle
    findings list) alone exit with 0.
    """
    from commands.reconcile import reconcile as run

    return await run(
        context.settings,
        context.variables,
        from_time=from_time,
        to_time=to_time,
        csv_file=csv_file,
        as_json=as_json,
    )


@main.command("provider-costs")
@click.option("--from", "first_day", metavar="DAY", help="First UTC day (YYYY-MM-DD). Default: three days in all.")
@click.option("--to", "last_day", metavar="DAY", help="Last UTC day, included. Default: yesterday.")
@click.option("--upstream", metavar="NAME", help="Only this one of UPSTREAMS_FILE.")
@json_option
@click.pass_obj
@command
async def provider_costs(
    context: Context, first_day: str | None, last_day: str | None, upstream: str | None, as_json: bool
) -> bool:
    """Compare what providers say that they billed with receipts, ledger and holds, by UTC day.

    As the job ReconcileProviders does every day: a day that differs is a finding, and one that agrees closes it. Asked
    are the upstreams with costs: in UPSTREAMS_FILE, with their admin keys.

    Exit code 1: a day differs, or a bill could not be read.
    """
    from commands.provider_costs import compare_costs

    return await compare_costs(
        context.settings,
        context.variables,
        first_day=first_day,
        last_day=last_day,
        upstream=upstream,
        as_json=as_json,
    )


@main.group()
def findings() -> None:
    """Findings for an operator: unexpected transfers, overpayments, alarms."""


_KINDS = click.Choice([kind.value for kind in FindingKind])
_RAW = click.IntRange(min=0, max=10**DIGITS_MAX)


def _narrowing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that select findings."""
    for option in (
        click.option("--kind", "kinds", multiple=True, type=_KINDS, help="Only this kind; repeatable."),
        click.option("--sender", metavar="ADDRESS", help="Only transfers from this address."),
        click.option("--of-account", "of_account", metavar="ID", help="Only this billing account."),
        click.option(
            "--min-value",
            "min_value_raw",
            metavar="RAW",
            type=_RAW,
            help="Only at least this value, in raw units.",
        ),
        click.option("--below", "below_raw", metavar="RAW", type=_RAW, help="Only below this value, in raw units."),
    ):
        function = option(function)
    return function


def _finding_filter(
    *,
    kinds: Sequence[str],
    sender: str | None,
    of_account: str | None,
    min_value_raw: int | None,
    below_raw: int | None,
    with_resolved: bool = False,
) -> FindingFilter:
    from chain.addresses import checksum_address
    from db.operations.findings import FindingFilter

    return FindingFilter(
        kinds=tuple(FindingKind(kind) for kind in kinds) or None,
        sender=None if sender is None else checksum_address(sender, field="--sender"),
        billing_account_id=of_account,
        min_value_raw=min_value_raw,
        below_raw=below_raw,
        with_resolved=with_resolved,
    )


@findings.command("list")
@click.option("--all", "with_resolved", is_flag=True, help="Include resolved findings.")
@_narrowing
@click.option(
    "--sort",
    type=click.Choice(["value", "newest", "oldest"]),
    default="value",
    show_default=True,
    help="Sort order. By value: unknown values first, then the largest.",
)
@click.option("--limit", metavar="N", type=click.IntRange(1, 1_000), help="Rows. Default: 100, with --json 1000.")
@click.option("--after", metavar="ID", help="Continue after this finding, in the same order.")
@click.option("--totals", "with_totals", is_flag=True, help="With --json: a document with the totals and the list.")
@json_option
@click.pass_obj
@command
async def findings_list(
    context: Context,
    *,
    with_resolved: bool,
    kinds: tuple[str, ...],
    sender: str | None,
    of_account: str | None,
    min_value_raw: int | None,
    below_raw: int | None,
    sort: str,
    limit: int | None,
    after: str | None,
    with_totals: bool,
    as_json: bool,
) -> None:
    """List findings, largest value first, with their number and total value."""
    from commands.findings import list_findings as run
    from db.operations.findings import Sort

    await run(
        context.settings,
        _finding_filter(
            kinds=kinds,
            sender=sender,
            of_account=of_account,
            min_value_raw=min_value_raw,
            below_raw=below_raw,
            with_resolved=with_resolved,
        ),
        sort=Sort(sort),
        after=after,
        limit=limit,
        with_totals=with_totals,
        as_json=as_json,
    )


@findings.command("show")
@click.argument("finding_id", metavar="ID")
@json_option
@click.pass_obj
@command
async def findings_show(context: Context, finding_id: str, as_json: bool) -> None:
    """Show one finding, its remedies, and what was done. The first digits of its id are enough."""
    from commands.findings import show as run

    await run(context.settings, prefix=finding_id, as_json=as_json)


@findings.command("resolve")
@click.argument("finding_id", metavar="[ID]", required=False)
@click.option("--all", "all_of_them", is_flag=True, help="All findings that the options below select, instead of one.")
@_narrowing
@click.option("--yes", "confirmed", is_flag=True, help="With --all: apply it. Without it only a preview.")
@click.option("--remedy", required=True, type=click.Choice([remedy.value for remedy in Remedy]), help="What to do.")
@operator_option
@reason_option
@click.option("--account", metavar="ID", help="The account to credit. Default: the sender's own account.")
@click.option("--refund-tx", metavar="TX_HASH", help="The transaction that sent the money back.")
@json_option
@click.pass_obj
@command
async def findings_resolve(
    context: Context,
    *,
    finding_id: str | None,
    all_of_them: bool,
    kinds: tuple[str, ...],
    sender: str | None,
    of_account: str | None,
    min_value_raw: int | None,
    below_raw: int | None,
    confirmed: bool,
    remedy: str,
    operator: str,
    reason: str,
    account: str | None,
    refund_tx: str | None,
    as_json: bool,
) -> bool:
    """Resolve a finding, once. Safe to repeat: the same request gives the same answer, any other is refused.

    With --all, resolves many: shows their number and value, and applies it with --yes.
    """
    from commands.findings import resolve, resolve_all

    wanted = _finding_filter(
        kinds=kinds, sender=sender, of_account=of_account, min_value_raw=min_value_raw, below_raw=below_raw
    )
    if all_of_them:
        if finding_id is not None:
            raise InvalidInput("ID", "cannot be combined with --all")
        if account is not None:
            raise InvalidInput("--account", "cannot be combined with --all")
        return await resolve_all(
            context.settings,
            context.variables,
            wanted,
            remedy=Remedy(remedy),
            operator=operator,
            reason=reason,
            refund_tx=refund_tx,
            confirmed=confirmed,
            as_json=as_json,
        )
    if finding_id is None:
        raise InvalidInput("ID", "expected the id of a finding, or --all with filters")
    if confirmed or wanted != _finding_filter(
        kinds=(), sender=None, of_account=None, min_value_raw=None, below_raw=None
    ):
        raise InvalidInput("--all", "is missing: --yes and filters require it")
    return await resolve(
        context.settings,
        context.variables,
        prefix=finding_id,
        remedy=Remedy(remedy),
        operator=operator,
        reason=reason,
        account=account,
        refund_tx=refund_tx,
        as_json=as_json,
    )


@main.group()
def sessions() -> None:
    """Sessions of the HTTP interface."""


@sessions.command("revoke")
@click.option("--wallet", required=True, metavar="ADDRESS", help="Whose.")
@json_option
@click.pass_obj
@command
async def sessions_revoke(context: Context, wallet: str, as_json: bool) -> None:
    """Sign a wallet out everywhere. Safe to repeat."""
    from commands.sessions import revoke as run

    await run(context.settings, wallet=wallet, as_json=as_json)


main.add_command(webhooks)
for group in (*spending.GROUPS, *deposits.GROUPS):
    main.add_command(group)


if __name__ == "__main__":
    main()
