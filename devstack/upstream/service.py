"""The upstream as a part of the stack: a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import aiohttp

from devstack.processes import ChildProcess, PortBook, ProcessSpec, Service, start_process

PREFERRED_PORT: Final = 8787
_READY_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)


class EmbeddedUpstream(Service):
    """A local AI provider. The port is preferred, not promised: see `url`. Its records end with the process.

    `drains`: generations go on, and are billed, when the client hangs up.
    """

    def __init__(self, state_dir: Path, port: int | None = None, *, drains: bool = False) -> None:
        super().__init__("upstream", state_dir)
        self._preferred_port = port or PREFERRED_PORT
        self._drains = drains
        self._port = 0

    @property
    def url(self) -> str:
        """Its base URL, without `/v1`."""
        return f"http://127.0.0.1:{self._port}"

    def _pick_ports(self, avoid: frozenset[int]) -> frozenset[int]:
        self._port = PortBook(self.state_dir).pick("upstream", self._preferred_port, avoid=avoid)
        return frozenset({self._port})

    def _spawn(self) -> ChildProcess:
        # `-P`: modules of this installation, whatever the working directory has.
        argv = [sys.executable, "-P", "-m", "devstack.upstream", f"--port={self._port}"]
        if self._drains:
            argv.append("--drains")
        return start_process(ProcessSpec(name=self.name, argv=argv, state_dir=self.state_dir))

    async def _is_ready(self) -> bool:
        try:
            async with (
                aiohttp.ClientSession(timeout=_READY_TIMEOUT) as session,
                session.get(f"{self.url}/livez") as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False
