"""A stack with a process beside it, until a signal: its arguments are the folder and, as JSON, the ports."""

import asyncio
import json
import sys
from pathlib import Path

from devstack import Stack, payer_wallets, until_signalled
from tests.devstack.conftest import UNSAFE_BUT_FAST


async def main() -> None:
    """Write where everything is, and the receipt of a payment."""
    ports = json.loads(sys.argv[2]) if len(sys.argv) > 2 else None
    stack = Stack(Path(sys.argv[1]), without=["upstream"], ports=ports, postgres_settings=UNSAFE_BUT_FAST)
    async with until_signalled(), stack:
        await stack.add_process("worker", ["sleep", "1000"])
        chain = stack.chain
        tx_hash = await chain.pay(payer_wallets()[0].private_key, chain.treasury_address, 1)
        receipt = await chain.wait_for_receipt(tx_hash)
        facts = {
            "database": stack.postgres.superuser_url(),
            "temporal": stack.temporal.address,
            "chain": chain.url,
            "receipt": receipt,
        }
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
        await stack.wait()


if __name__ == "__main__":
    asyncio.run(main())
