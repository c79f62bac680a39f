"""`settle up`: runs the whole system on this machine until it is stopped."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from commands.local_system import LocalSystem
from commands.output import print_json, progress, stdout, table
from devstack.stack import until_signalled

SHOWN: Final = (
    "API_URL",
    "GATEWAY_URL",
    "DEV_SERVICE_KEY",
    "TEMPORAL_UI_URL",
    "TEMPORAL_ADDRESS",
    "CHAIN_RPC_URLS",
    "TREASURY_ADDRESS",
    "USDC_TOKEN_ADDRESS",
)


async def up(state_dir: Path, variables: Mapping[str, str], *, without: Collection[str], as_json: bool) -> None:
    """Run until SIGINT or SIGTERM. Raises `DevstackError` and `SettleError`."""
    async with (
        until_signalled(),
        LocalSystem(state_dir, variables, without=without, on_progress=progress, with_priced_token=True) as system,
    ):
        addresses = {name: system.variables[name] for name in SHOWN if name in system.variables}
        if as_json:
            folders = {"stateDir": str(system.state_dir), "env": str(system.env_path)}
            print_json(folders | addresses)
        else:
            stdout.print(table("settle is up", ("setting", "value"), addresses.items()))
            use = f"settle --env-file {shlex.quote(str(system.env_path))} ..."
            if "api" not in without:
                stdout.print(f"Credits page: {system.variables['API_URL']}/credits", markup=False, soft_wrap=True)
            stdout.print(f"All settings: {system.env_path}  (use: {use})", markup=False, soft_wrap=True)
            stdout.print("Ctrl-C stops everything; started again, it continues where it was.")
        await system.stack.wait()
