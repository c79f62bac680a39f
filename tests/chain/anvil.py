"""A real node (anvil) that mines on request, and transactions with arbitrary logs."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from chain.wire import TRANSFER_TOPIC

CHAIN_ID = 31337
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
PLATFORM = "darwin" if platform.system() == "Darwin" else "linux"
ANVIL = (
    Path(__file__).parents[2] / "node_modules" / "@foundry-rs" / f"anvil-{PLATFORM}-{ARCHITECTURE}" / "bin" / "anvil"
)
PATIENCE_SECONDS = 10.0
GAS_LIMIT = 30_000_000
"""Of a block, as anvil has it; another one outlasts its chain."""

ALICE = "0x" + "a1" * 20
BOB = "0x" + "b0" * 20
TREASURY = "0x" + "7e" * 20

Log = tuple[list[bytes], bytes]
"""Topics and data."""


def word(value: int | str) -> bytes:
    """A number or an address as 32 bytes."""
    return value.to_bytes(32, "big") if isinstance(value, int) else bytes.fromhex(value[2:]).rjust(32, b"\0")


def transfer(sender: str, recipient: str, value_raw: int) -> Log:
    """An ERC-20 Transfer event."""
    return [TRANSFER_TOPIC, word(sender), word(recipient)], word(value_raw)


def emitting(logs: list[Log]) -> str:
    """Creation code that emits these logs (data of 32 bytes at most) and leaves no contract behind."""
    code = b""
    for topics, data in logs:
        code += b"\x7f" + data.ljust(32, b"\0") + b"\x60\x00\x52"  # PUSH32 data PUSH1 0 MSTORE
        code += b"".join(b"\x7f" + topic for topic in reversed(topics))  # PUSH32 topic
        code += b"\x60" + bytes([len(data)]) + b"\x60\x00" + bytes([0xA0 + len(topics)])  # PUSH1 size PUSH1 0 LOGn
    return "0x" + (code + b"\x60\x00\x60\x00\xf3").hex()  # PUSH1 0 PUSH1 0 RETURN


class Node:
    """A running anvil that mines only on request."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def call(self, method: str, *params: object) -> Any:
        """One JSON-RPC call, as a wallet or an operator would make it."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        async with self._session.post(self.url, json=request) as response:
            answer = await response.json()
        assert "error" not in answer, answer
        return answer["result"]

    async def begin_anew(self) -> None:
        """Another chain, of a first block only, with nothing that waits for a block."""
        await self.call("anvil_dropAllTransactions")
        await self.call("anvil_reset")
        await self.call("anvil_setBlockGasLimit", hex(GAS_LIMIT))

    async def mine(self, blocks: int = 1) -> None:
        await self.call("anvil_mine", hex(blocks))

    async def head(self) -> int:
        return int(await self.call("eth_blockNumber"), 16)

    async def send(self, *logs: Log, reverting: bool = False) -> str:
        """A transaction, still unmined, that emits these logs; its hash."""
        code = "0x60006000fd" if reverting else emitting(list(logs))
        sender = (await self.call("eth_accounts"))[0]
        return str(await self.call("eth_sendTransaction", {"from": sender, "data": code, "gas": hex(12_000_000)}))

    async def pay(self, *logs: Log, confirmations: int = 5, reverting: bool = False) -> str:
        """A transaction mined with that many confirmations, and its receipt served."""
        tx_hash = await self.send(*(logs or (transfer(ALICE, TREASURY, 100),)), reverting=reverting)
        await self.mine(confirmations)
        await until(lambda: self.call("eth_getTransactionReceipt", tx_hash))
        return tx_hash


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """The first truthy answer: anvil's receipts may come a little after the block."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (answer := await condition()):
            await asyncio.sleep(0.005)
    return answer


@asynccontextmanager
async def running_anvil(port: int = 0) -> AsyncIterator[Node]:
    """anvil on that port (0: a free one), ended with the block."""
    process = await asyncio.create_subprocess_exec(
        str(ANVIL),
        *("--port", str(port), "--no-mining", "--chain-id", str(CHAIN_ID)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            seen = b""
            while (found := re.search(rb"Listening on (127\.0\.0\.1:\d+)", seen)) is None:
                line = await process.stdout.readline()
                assert line, f"anvil ended: {seen.decode()}"
                seen += line
        drain = asyncio.create_task(process.stdout.read())
        async with aiohttp.ClientSession() as session:
            yield Node(f"http://{found[1].decode()}", session)
    finally:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    await drain


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
