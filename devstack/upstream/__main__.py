"""The upstream alone: `python -m devstack.upstream --port 8787`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from devstack.stack import until_signalled
from devstack.upstream.server import HOST, Upstream
from devstack.upstream.service import PREFERRED_PORT


async def serve(port: int, *, drains: bool) -> None:
    """Serve until SIGTERM or SIGINT."""
    async with until_signalled(), Upstream(drains=drains).serve(port) as url:
        print(f"upstream on {url}", flush=True)  # noqa: T201
        await asyncio.Event().wait()


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m devstack.upstream",
        description=f"Run a local AI provider for development and tests, on {HOST} only.",
        epilog="How requests ask for faults: devstack/upstream/behaviour.py.",
    )
    parser.add_argument("--port", type=int, default=PREFERRED_PORT, help="0: any free one (default: %(default)s)")
    parser.add_argument(
        "--drains", action="store_true", help="go on, and bill all of it, when a client hangs up in mid-answer"
    )
    arguments = parser.parse_args(argv)
    try:
        asyncio.run(serve(arguments.port, drains=arguments.drains))
    except (OSError, OverflowError) as error:
        sys.exit(f"upstream: port {arguments.port}: {error}")


if __name__ == "__main__":
    main()
