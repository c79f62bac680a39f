"""The commands about deposit addresses: payment methods, addresses, sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from commands.framework import Context, WholeNumber, command, json_option
from domain.deposits.methods import Scheme
from domain.errors import InvalidInput

# -- methods

SKIPPED_MAX: Final = 10_000
"""Addresses of one key in the time that a restore has lost; a wallet searches as far."""


class RawAmount(WholeNumber):
    """A raw amount: as long as a uint256."""

    digits_max = 78


@click.group()
def methods() -> None:
    """Payment methods: the tokens that can be paid to deposit addresses."""


@methods.command("add")
@click.option("--id", "method_id", required=True, metavar="SYMBOL:CHAIN", help="Such as USDC:base.")
@click.option("--chain", "chain_id", required=True, type=WholeNumber("a chain's id"), metavar="ID")
@click.option("--token", required=True, metavar="ADDRESS", help="The token's contract; of a coin its symbol.")
@click.option("--decimals", required=True, type=WholeNumber("digits"), metavar="N", help="Of the token.")
@click.option(
    "--scheme",
    required=True,
    type=click.Choice([scheme.value for scheme in Scheme]),
    help="create2: addresses of contracts that pay the treasury; xpub: addresses of a wallet's account.",
)
@click.option("--xpub", metavar="XPUB", help="The account's extended public key. Never a private one.")
@click.option("--path", metavar="PATH", help="Of the account, such as m/84'/0'/0'.")
@click.option("--min-raw", type=RawAmount("raw units"), default=1, show_default=True, metavar="N", help="Less waits.")
@click.option("--confirmations", type=WholeNumber("blocks"), metavar="N", help="Default: the installation's.")
@click.option("--price-feed", metavar="ADDRESS", help="Of a token that is no dollar: its price, an AggregatorV3 feed.")
@click.option("--second-feed", metavar="ADDRESS", help="Another feed, which has to agree.")
@click.option("--sequencer-feed", metavar="ADDRESS", help="An L2's uptime feed: no price while its sequencer is down.")
@click.option("--price-chain", type=WholeNumber("a chain's id"), metavar="ID", help="Of the feeds.")
@click.option("--max-age", type=WholeNumber("seconds"), metavar="SECONDS", help="Of an answer. Default: an hour.")
@click.option("--max-divergence-bps", type=WholeNumber("hundredths of a percent"), metavar="N", help="Default: 100.")
@click.option("--sequencer-grace", type=WholeNumber("seconds"), metavar="SECONDS", help="Default: an hour.")
@click.option("--min-price", metavar="USD", help="Below it the feed is not believed.")
@click.option("--max-price", metavar="USD", help="Above it the feed is not believed.")
@click.option("--confirm", "confirmed_address", metavar="ADDRESS", help="The key's first address, from its wallet.")
@click.option("--yes", "is_confirmed", is_flag=True, help="The key's first addresses have been compared already.")
@json_option
@click.pass_obj
@command
async def methods_add(
    context: Context,
    /,
    *,
    method_id: str,
    chain_id: int,
    token: str,
    decimals: int,
    scheme: str,
    xpub: str | None,
    path: str | None,
    min_raw: int,
    confirmations: int | None,
    confirmed_address: str | None,
    is_confirmed: bool,
    as_json: bool,
    **of_price: str | int | None,
) -> bool:
    """Register a method, or enable one again, and open its ledger accounts.

    The token is checked on the chain. Of a new key the first three addresses are shown, and the owner confirms that the
    wallet shows the same: a key that was exported for another purpose gives addresses that it does not find. Exit code
    1 where they are not confirmed, and where a feed has no price now.
    """
    from commands.methods import add

    return await add(
        context.settings,
        method_id=method_id,
        chain_id=chain_id,
        token=token,
        decimals=decimals,
        scheme=Scheme(scheme),
        xpub=xpub,
        path=path,
        min_amount_raw=min_raw,
        confirmations=confirmations,
        is_confirmed=is_confirmed,
        confirmed_address=confirmed_address,
        as_json=as_json,
        of_price=of_price,
    )


@methods.command("list")
@json_option
@click.pass_obj
@command
async def methods_list(context: Context, as_json: bool) -> None:
    """List all methods, disabled ones too."""
    from commands.methods import list_all

    await list_all(context.settings, as_json=as_json)


@methods.command("disable")
@click.argument("method", metavar="ID", required=False)
@click.option("--id", "method_id", metavar="ID", help="The same.")
@json_option
@click.pass_obj
@command
async def methods_disable(context: Context, method: str | None, method_id: str | None, as_json: bool) -> None:
    """Give out no new charge or address of a method. What still comes to its addresses is credited."""
    from commands.methods import disable

    await disable(context.settings, method_id=_one_of(method, method_id), as_json=as_json)


@methods.command("verify")
@click.argument("method", metavar="[ID]", required=False)
@json_option
@click.pass_obj
@command
async def methods_verify(context: Context, method: str | None, as_json: bool) -> bool:
    """Check methods against chain, keys and ledger. Exit code 1 where one is not as registered."""
    from commands.methods import verify

    return await verify(context.settings, method_id=method, as_json=as_json)


@methods.command("skip")
@click.argument("method", metavar="[ID]", required=False)
@click.option(
    "--by", "count", required=True, type=click.IntRange(1, SKIPPED_MAX), metavar="N", help="So many addresses."
)
@click.option("--yes", "confirmed", is_flag=True, help="Move the indices. Without it only a preview.")
@json_option
@click.pass_obj
@command
async def methods_skip(context: Context, method: str | None, count: int, confirmed: bool, as_json: bool) -> None:
    """After a restore: give out none of the next N addresses of a wallet's key, which payers may have been shown.

    Of the method's key, or of all keys (scheme xpub). An index only moves forward. Keys of Bitcoin may have N more
    addresses unpaid at their end: the wallet has to search as far.
    """
    from commands.rings import skip

    await skip(context.settings, method_id=method, count=count, confirmed=confirmed, as_json=as_json)


def _one_of(argument: str | None, option: str | None) -> str:
    if (argument is None) == (option is None):
        raise InvalidInput("ID", "expected one payment method, such as USDC:base")
    return argument or option or ""


# -- addresses


@click.group()
def addresses() -> None:
    """Deposit addresses, with what they are derived from."""


@addresses.command("export")
@click.option("--account", metavar="ID", help="Of this billing account only.")
@json_option
@click.pass_obj
@command
async def addresses_export(context: Context, account: str | None, as_json: bool) -> None:
    """Export every address with all that it is computed from, so that anyone can compute it."""
    from commands.addresses import export

    await export(context.settings, account=account, as_json=as_json)


@addresses.command("verify")
@json_option
@click.pass_obj
@command
async def addresses_verify(context: Context, as_json: bool) -> bool:
    """Derive every address again and compare. Exit code 1 where one is not as stored."""
    from commands.addresses import verify

    return await verify(context.settings, as_json=as_json)


# -- sweeps


@click.group()
def sweep() -> None:
    """Collect what deposit addresses hold: plan, sign elsewhere, send."""


@sweep.command("plan")
@click.option("--method", "method_id", metavar="ID", help="Of this method only.")
@click.option("--from", "sender", metavar="ADDRESS", help="Whose key will pay the gas; without it sign takes --nonce.")
@click.option("--min-raw", type=RawAmount("raw units"), default=1, show_default=True, metavar="N", help="Less stays.")
@click.option(
    "--batch", type=WholeNumber("addresses"), default=20, show_default=True, metavar="N", help="A transaction."
)
@click.option("--max-fee-gwei", default="5", show_default=True, metavar="N", help="At most, for a unit of gas.")
@click.option(
    "--valid-hours", type=WholeNumber("hours"), default=72, show_default=True, metavar="N", help="Of signatures."
)
@json_option
@click.pass_obj
@command
async def sweep_plan(
    context: Context,
    *,
    method_id: str | None,
    sender: str | None,
    min_raw: int,
    batch: int,
    max_fee_gwei: str,
    valid_hours: int,
    as_json: bool,
) -> None:
    """Print what can be collected now; with --json the file to sign. Nothing is written or sent.

    Exit code 1 where gas costs more than --max-fee-gwei.
    """
    from commands.sweep import plan

    await plan(
        context.settings,
        method_id=method_id,
        sender=sender,
        min_raw=min_raw,
        batch=batch,
        max_fee_gwei=max_fee_gwei,
        valid_hours=valid_hours,
        as_json=as_json,
    )


@sweep.command("sign")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--treasury", metavar="ADDRESS", help="Where the money has to go; needed to sign with an account's xprv.")
@click.option(
    "--nonce", type=WholeNumber("transactions"), metavar="N", help="The next one of the key that pays the gas."
)
@click.option("--max-fee-gwei", metavar="N", help="In place of the plan's, to replace what is not mined.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Default: standard output.")
@click.pass_obj
@command
async def sweep_sign(
    _context: Context,
    *,
    file: Path,
    treasury: str | None,
    nonce: int | None,
    max_fee_gwei: str | None,
    output: Path | None,
) -> None:
    """Sign a plan with a secret that is read from standard input. Needs no network and no settings.

    An account's xprv signs the transfers of its addresses; a private key signs the transactions, and pays the gas.
    A plan with both is signed by the first, then by the second.
    """
    from commands.sweep import sign

    sign(file, treasury=treasury, nonce=nonce, max_fee_gwei=max_fee_gwei, output=output)


@sweep.command("send")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
@click.pass_obj
@command
async def sweep_send(context: Context, file: Path, as_json: bool) -> None:
    """Store a signed plan, and have a worker send it until each transaction is decided. Safe to repeat.

    Signed again with a higher fee, it replaces what is not mined.
    """
    from commands.sweep import send

    await send(context.settings, context.variables, file, as_json=as_json)


@sweep.command("list")
@json_option
@click.pass_obj
@command
async def sweep_list(context: Context, as_json: bool) -> None:
    """List the newest sweeps of the chain, how far each is, and what it has cost in wei.

    Gas is in no ledger: nothing there says what the chain's coin is worth.
    """
    from commands.sweep import list_all

    await list_all(context.settings, as_json=as_json)


GROUPS: Final = (methods, addresses, sweep)
