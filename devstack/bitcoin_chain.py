"""A Bitcoin regtest node for tests: npm's bcoin, its chain in memory, and the coins to pay with.

It is not Bitcoin Core. Nothing is kept: a node that has ended begins again with block 0. Two nodes do not know each
other; `share` gives one the blocks of another.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from devstack.errors import INSTALL_COMMAND, ChainCallError, MissingPartError
from devstack.processes import ChildProcess, PortBook, ProcessSpec, Service, start_process

PREFERRED_PORT = 18443
"""The one of Bitcoin Core's regtest."""

PROGRAM = Path(__file__).parent / "bitcoin" / "node.js"

COINBASE_MATURITY = 100
"""Blocks after which a miner's reward can be spent."""

SPENDABLE_REWARDS = 10
"""Of 50 coins each, from the start."""

REQUEST_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class BitcoinPayment:
    """A transaction as it was sent: its id, and its bytes in hex, with which it can be sent again."""

    txid: str
    raw: str


def locate_node_modules() -> Path:
    """The folder with bcoin: SETTLE_NODE_MODULES, or `node_modules` beside the product or in the current folder.

    Raises MissingPartError when it is not installed.
    """
    named = os.environ.get("SETTLE_NODE_MODULES")
    beside = Path(__file__).resolve().parents[1] / "node_modules"
    for modules in [Path(named)] if named else [beside, Path.cwd() / "node_modules"]:
        if (modules / "bcoin" / "package.json").exists():
            return modules.absolute()
    raise MissingPartError(f"bcoin, the Bitcoin node of the tests, is not installed; run: {INSTALL_COMMAND}")


def locate_node() -> str:
    """Node.js. Raises MissingPartError when it is not installed."""
    program = shutil.which("node")
    if program is None:
        raise MissingPartError("Node.js is not installed: the Bitcoin node of the tests needs it")
    return program


class BitcoinChain(Service):
    """A regtest node on a port of this machine alone. `coins=False` leaves it at block 0, with nothing to pay with."""

    def __init__(self, state_dir: Path, port: int | None = None, *, name: str = "bitcoin", coins: bool = True) -> None:
        super().__init__(name, state_dir)
        self._preferred_port = port or PREFERRED_PORT
        self._coins = coins
        self._port = 0
        self._raw: dict[str, str] = {}

    @property
    def url(self) -> str:
        """The JSON-RPC address."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """Where it answers."""
        return self._port

    def _pick_ports(self, avoid: frozenset[int]) -> frozenset[int]:
        self._port = PortBook(self.state_dir).pick(self.name, self._preferred_port, avoid=avoid)
        return frozenset({self._port})

    def _spawn(self) -> ChildProcess:
        environment = {**os.environ, "NODE_PATH": str(locate_node_modules())}
        return start_process(
            ProcessSpec(
                name=self.name,
                argv=[locate_node(), str(PROGRAM), str(self._port)],
                state_dir=self.state_dir,
                env=environment,
            )
        )

    async def _is_ready(self) -> bool:
        try:
            return bool(await self.rpc("devready"))
        except ChainCallError:
            return False

    async def _after_start(self) -> None:
        if self._coins:
            await self.mine(COINBASE_MATURITY + SPENDABLE_REWARDS)

    async def rpc(self, method: str, *params: Any) -> Any:
        """One JSON-RPC request; gives back its result. Raises ChainCallError with the node's message."""
        [result] = await self._ask(method, [params])
        return result

    async def _ask(self, method: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """The same with several calls of one method, one after another in one HTTP request; their results."""
        batch = [{"id": number, "method": method, "params": params} for number, params in enumerate(calls)]
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(self.url, json=batch) as response,
            ):
                answers = json.loads(await response.text())
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise ChainCallError(method, str(error) or type(error).__name__) from error
        for answer in answers:
            if answer.get("error"):
                raise ChainCallError(method, str(answer["error"].get("message")))
        return [answer["result"] for answer in answers]

    async def height(self) -> int:
        """The newest block's number. Raises ChainCallError."""
        return int(await self.rpc("getblockcount"))

    async def mine(self, blocks: int = 1, *, with_transactions: bool = True) -> list[str]:
        """Mine blocks with what waits, or empty ones; their hashes. Raises ChainCallError."""
        return list(await self.rpc("devmine", blocks, with_transactions))

    async def mine_to(self, script: str) -> str:
        """Mine a block whose reward goes to this output script (hex); its hash. Raises ChainCallError."""
        return str((await self.rpc("devmine", 1, True, script))[0])

    async def pay(self, *outputs: tuple[str, int]) -> BitcoinPayment:
        """Send one transaction with these outputs: output script in hex, and satoshis. Raises ChainCallError."""
        sent = await self.rpc("devpay", [list(output) for output in outputs])
        self._raw[sent["txid"]] = sent["hex"]
        return BitcoinPayment(sent["txid"], sent["hex"])

    async def send(self, payment: BitcoinPayment) -> None:
        """Send a transaction again that a reorganisation has dropped. Raises ChainCallError."""
        await self.rpc("sendrawtransaction", payment.raw)

    async def forget(self) -> None:
        """Drop what waits for a block. Raises ChainCallError."""
        await self.rpc("devforget")

    async def reorganise(self, depth: int, *, drop: bool, blocks: int | None = None) -> list[str]:
        """Replace the last `depth` blocks by `blocks` others, one more unless said; the new ones' hashes.

        The transactions of the replaced blocks are dropped, or are in the first new one. Raises ChainCallError.
        """
        height = await self.height()
        replaced = [await self.rpc("getblockhash", number) for number in range(height - depth + 1, height + 1)]
        contents = [await self.rpc("getblock", block_hash, True, True) for block_hash in replaced]
        await self.rpc("invalidateblock", replaced[0])
        # The memory pool does not follow an invalidated block by itself.
        await self.forget()
        if not drop:
            for txid in [tx["txid"] for content in contents for tx in content["tx"][1:]]:
                await self.rpc("sendrawtransaction", self._raw[txid])
        return await self.mine(depth + 1 if blocks is None else blocks)

    async def share(self, other: BitcoinChain, hashes: Sequence[str]) -> None:
        """Give another node these blocks of this one, in order. Raises ChainCallError."""
        blocks = await self._ask("getblock", [(block_hash, False) for block_hash in hashes])
        await other._ask("submitblock", [(block,) for block in blocks])

    async def hashes(self, first: int, last: int) -> list[str]:
        """Of the blocks with these numbers. Raises ChainCallError."""
        return await self._ask("getblockhash", [(number,) for number in range(first, last + 1)])
