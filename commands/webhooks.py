"""The commands about webhooks."""

from __future__ import annotations

from uuid import UUID

import click

from commands.framework import Context, RowId, command, json_option


@click.group()
def webhooks() -> None:
    """Webhooks: endpoints of accounts, and what became of each delivery."""


@webhooks.command("list")
@click.option("--account", metavar="ID", help="Only endpoints of this account.")
@click.option("--endpoint", type=RowId(), help="Deliveries of this endpoint, the newest first.")
@json_option
@click.pass_obj
@command
async def webhooks_list(context: Context, account: str | None, endpoint: UUID | None, as_json: bool) -> None:
    """List endpoints, with what is pending and was given up; or the deliveries of one."""
    from commands.webhook_deliveries import list_deliveries, list_endpoints

    if endpoint is not None:
        await list_deliveries(context.settings, endpoint_id=endpoint, as_json=as_json)
    else:
        await list_endpoints(context.settings, account=account, as_json=as_json)


@webhooks.command("redeliver")
@click.argument("delivery_id", metavar="ID", type=RowId())
@json_option
@click.pass_obj
@command
async def webhooks_redeliver(context: Context, delivery_id: UUID, as_json: bool) -> None:
    """Send the webhook of a delivery again, whatever became of it.

    Its webhook-id is the same, so that a receiver that has it already recognizes it. A worker sends it within seconds.
    """
    from commands.webhook_deliveries import redeliver_one

    await redeliver_one(context.settings, delivery_id=delivery_id, as_json=as_json)


@webhooks.command("enable")
@click.argument("endpoint_id", metavar="ENDPOINT", type=RowId())
@json_option
@click.pass_obj
@command
async def webhooks_enable(context: Context, endpoint_id: UUID, as_json: bool) -> None:
    """Send to an endpoint again that its receiver has stopped with status 410.

    Events from now on are sent. Of those before, `replay` sends again what the account has kept.
    """
    from commands.webhook_deliveries import enable_one

    await enable_one(context.settings, endpoint_id=endpoint_id, as_json=as_json)


@webhooks.command("replay")
@click.argument("endpoint_id", metavar="ENDPOINT", type=RowId())
@click.option("--from", "since", required=True, metavar="TIME", help="First event, as 2027-01-31T12:00:00Z.")
@click.option("--to", "until", metavar="TIME", help="Last event. Default: now.")
@click.option("--failed", "only_failed", is_flag=True, help="Only what was given up.")
@json_option
@click.pass_obj
@command
async def webhooks_replay(
    context: Context, *, endpoint_id: UUID, since: str, until: str | None, only_failed: bool, as_json: bool
) -> None:
    """Send an endpoint again the events of a time, also those that it was delivered.

    Each has the webhook-id that it had: a receiver that has it already recognizes it. Events that no endpoint of the
    account took when they happened were not written.
    """
    from commands.webhook_deliveries import replay_time

    await replay_time(
        context.settings,
        endpoint_id=endpoint_id,
        since=since,
        until=until,
        only_failed=only_failed,
        as_json=as_json,
    )
