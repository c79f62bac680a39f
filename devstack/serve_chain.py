"""A local chain alone, for containers: `python -m devstack.serve_chain --host 0.0.0.0 --state-dir /state`."""

import argparse
import asyncio
import contextlib
from pathlib import Path

from devstack.chain import PREFERRED_PORT, SLOTS_IN_AN_EPOCH, LocalChain
from devstack.stack import until_signalled

SAVE_SECONDS = 1.0


async def serve(host: str, port: int, state_dir: Path) -> None:
    """Run the chain with the test token until SIGTERM, its state saved as it advances."""
    chain = LocalChain(state_dir, port, listen_host=host, slots_in_an_epoch=SLOTS_IN_AN_EPOCH)
    async with until_signalled():
        await chain.start()
        try:
            print(f"chain {chain.chain_id} on {host}:{port}, token {chain.token_address}", flush=True)  # noqa: T201
            while chain.is_running:
                await asyncio.sleep(SAVE_SECONDS)
                await chain.save_if_advanced()
        finally:
            with contextlib.suppress(ProcessLookupError):
                await chain.stop()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="Run a local chain with a test USDC token.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=PREFERRED_PORT)
    parser.add_argument("--state-dir", type=Path, default=Path(".settle"))
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.host, arguments.port, arguments.state_dir))


if __name__ == "__main__":
    main()
