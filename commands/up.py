"""`settle up`: the whole system on this machine until it is told to stop."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from commands.local_system import LocalSystem
from commands.output import print_json, progress, stdout, table
from devstack.stack import until_signalled


async def up(state_dir: Path, variables: Mapping[str, str], *, without: Collection[str], as_json: bool) -> None:
    """Run until SIGINT or SIGTERM. Raises `DevstackError` and `SettleError`."""
    async with (
        until_signalled(),
        LocalSystem(state_dir, variables, without=without, on_progress=progress) as system,
    ):
        addresses = {
            name: value
            for name, value in system.variables.items()
            if name
            in {"TEMPORAL_ADDRESS", "TEMPORAL_UI_URL", "CHAIN_RPC_URLS", "TREASURY_ADDRESS", "USDC_TOKEN_ADDRESS"}
        }
        if as_json:
            print_json({"stateDir": str(system.state_dir), "env": str(system.env_path), **addresses})
        else:
            stdout.print(table("settle is up", ("setting", "value"), addresses.items()))
            use = f"settle --env-file {shlex.quote(str(system.env_path))} ..."
            stdout.print(f"All settings: {system.env_path}  (use: {use})", markup=False, soft_wrap=True)
            stdout.print("Ctrl-C stops everything; started again, it goes on where it was.")
        await system.stack.wait()
