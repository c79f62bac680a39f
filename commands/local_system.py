"""The local system: servers, migrated database, worker, API, gateway, relay; used by `up`, `demo` and `bench`."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp

from commands.local_gateway import LocalServiceKey, read_stored_key, write_upstreams_file
from commands.local_method import seed_local_method, seed_priced_method
from commands.schedules import apply_quietly, check_file
from composition import payments_client
from db.migrate import migrate
from db.rights import APP_ROLE, OPERATOR_ROLE, RELAY_ROLE, SERVICE_ROLE, SETTLEMENT_ROLE
from devstack.chain import payer_wallets, wallet_address
from devstack.database import DATABASE, OWNER_ROLE, prepare_database
from devstack.processes import PortBook, ProcessService, write_atomically
from devstack.stack import PART_NAMES, Stack
from domain.errors import ConfigurationError
from domain.webhooks.addresses import is_loopback_host
from settings import Settings, env_file_line, load
from starter.temporal import connect, register_search_attributes
from telemetry.health import DEFAULT_PORT

PROCESSES: Final = ("worker", "api", "gateway", "relay")
PARTS: Final = (*PART_NAMES, *PROCESSES)

LOCAL_BLOCK_TIME_SECONDS: Final = 1
WORKER_STOP_SECONDS: Final = 15.0
API_STOP_SECONDS: Final = 15.0
GATEWAY_STOP_SECONDS: Final = 30.0
"""Longer than it lets open streams go on."""
RELAY_STOP_SECONDS: Final = 10.0
RELAY_GAS_WEI: Final = 10**18
API_PORT: Final = 8080
GATEWAY_PORT: Final = 8090
RELAY_HEALTH_PORT: Final = 9465

_ROLE_OF_URL: Final = {
    "DATABASE_URL": APP_ROLE,
    "SETTLEMENT_DATABASE_URL": SETTLEMENT_ROLE,
    "SERVICE_DATABASE_URL": SERVICE_ROLE,
    "MIGRATION_DATABASE_URL": OWNER_ROLE,
}

_OF_THE_USER: Final = frozenset({"DEV_WALLET_KEYS", "DEV_SERVICE_KEY", "DEV_SERVICE_WALLET_KEY"})
_OF_THE_RELAY: Final = frozenset({"RELAY_DATABASE_URL", "RELAY_PRIVATE_KEY", "RELAY_PRIVATE_KEY_FILE"})
_NOT_OF_THE_WORKER: Final = (
    _OF_THE_USER
    | _OF_THE_RELAY
    | {
        "DATABASE_URL",
        "MIGRATION_DATABASE_URL",
        "OPERATOR_DATABASE_URL",
        "BILLING_INGEST_SECRET",
    }
)
_NOT_OF_THE_API: Final = (
    _OF_THE_USER
    | _OF_THE_RELAY
    | {
        "SETTLEMENT_DATABASE_URL",
        "SERVICE_DATABASE_URL",
        "MIGRATION_DATABASE_URL",
        "BILLING_INGEST_SECRET",
        "GOVERNANCE_SERVICE_KEY",
    }
)
_NOT_OF_THE_GATEWAY: Final = (
    _OF_THE_USER
    | _OF_THE_RELAY
    | {
        "SETTLEMENT_DATABASE_URL",
        "SERVICE_DATABASE_URL",
        "MIGRATION_DATABASE_URL",
        "OPERATOR_DATABASE_URL",
        "GOVERNANCE_SERVICE_KEY",
    }
)
_NOT_OF_THE_RELAY: Final = _OF_THE_USER | {
    "DATABASE_URL",
    "SETTLEMENT_DATABASE_URL",
    "SERVICE_DATABASE_URL",
    "MIGRATION_DATABASE_URL",
    "OPERATOR_DATABASE_URL",
    "BILLING_INGEST_SECRET",
    "GOVERNANCE_SERVICE_KEY",
}
"""Secrets that a process does not use, removed from its environment."""

INGEST_SECRET: Final = "billing_ingest"
"""Its name among the stored passwords."""


class LocalSystem:
    """Starts the parts that the settings do not name as existing servers; an async context manager.

    `variables` are the caller's settings; those of the started parts are added to them. `with_service_key` makes a
    service key, once, of an account that it buys credits for, where database, Temporal and chain are its own;
    `with_priced_token` adds a payment method that is no dollar, where database and chain are. Raises `DevstackError`
    and `SettleError`, in one line; nothing is left running then.
    """

    def __init__(
        self,
        state_dir: Path,
        variables: Mapping[str, str],
        *,
        without: Collection[str] = (),
        on_progress: Callable[[str], None] = lambda _: None,
        block_time_seconds: float | None = LOCAL_BLOCK_TIME_SECONDS,
        with_schedules: bool = True,
        with_service_key: bool = True,
        with_priced_token: bool = False,
    ) -> None:
        unknown = sorted(set(without) - set(PARTS))
        if unknown:
            raise ConfigurationError(f"--without: got {unknown[0]!r}, expected one of {', '.join(PARTS)}")
        self.state_dir = state_dir.absolute()
        self.variables = {name: value for name, value in variables.items() if value != ""}
        self._without = set(without) | self._existing()
        self._on_progress = on_progress
        self._block_time_seconds = block_time_seconds
        self._with_schedules = with_schedules
        # Nothing is bought on servers of others.
        self._with_service_key = with_service_key and not self._without & {"postgres", "temporal", "chain"}
        self._with_priced_token = with_priced_token
        self._cleanup = AsyncExitStack()
        self.stack = Stack(
            self.state_dir,
            without=[part for part in PART_NAMES if part in self._without],
            block_time_seconds=block_time_seconds,
            on_progress=on_progress,
        )

    @property
    def settings(self) -> Settings:
        """The settings that all parts run with."""
        return load(self.variables)

    @property
    def env_path(self) -> Path:
        """Where the addresses are written."""
        return self.state_dir / "env"

    async def __aenter__(self) -> Self:
        check_file(load(self.variables))
        async with AsyncExitStack() as cleanup:
            await cleanup.enter_async_context(self.stack)
            await self._add_addresses()
            self._write_env()
            if "temporal" not in self._without:
                # A submission may come before the first worker, which otherwise registers them.
                await register_search_attributes(await connect(self.variables))
            if "postgres" not in self._without or "MIGRATION_DATABASE_URL" in self.variables:
                self._migrate()
            if not self._without & {"postgres", "chain"}:
                await seed_local_method(self.settings)
                if self._with_priced_token:
                    await seed_priced_method(self.settings, self.stack.chain)
            if "worker" not in self._without:
                await self.start_worker()
            if "api" not in self._without:
                await self.start_api()
            if "gateway" not in self._without:
                await self.start_gateway()
            if "relay" not in self._without:
                await self.start_relay()
            if self._with_service_key:
                await self._prepare_service_key()
            if self._with_schedules and ("temporal" not in self._without or "TEMPORAL_ADDRESS" in self.variables):
                self._on_progress("applying the schedules")
                await apply_quietly(self.settings, self.variables, on_progress=self._on_progress)
            self._cleanup = cleanup.pop_all()
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._cleanup.aclose()

    async def start_worker(self, name: str = "worker") -> ProcessService:
        """Start a supervised worker process and wait until it is ready."""
        port = PortBook(self.state_dir).pick(f"{name}-health", DEFAULT_PORT)
        variables = {**self._without_settings(_NOT_OF_THE_WORKER), "WORKER_HEALTH_PORT": str(port)}
        return await self._start(name, "worker", variables, port=port, stop_seconds=WORKER_STOP_SECONDS)

    async def start_api(self) -> ProcessService:
        """Start the API as a supervised process on `API_URL` and wait until it is ready."""
        variables = self._without_settings(_NOT_OF_THE_API)
        return await self._start("api", "api", variables, port=variables["API_PORT"], stop_seconds=API_STOP_SECONDS)

    async def start_gateway(self, name: str = "gateway", **changes: str) -> ProcessService:
        """Start a gateway as a supervised process on `GATEWAY_URL` and wait until it is ready; `changes` are settings
        by their variables' names.
        """
        variables = {**self._without_settings(_NOT_OF_THE_GATEWAY), **changes}
        port = variables["GATEWAY_PORT"]
        return await self._start(name, "gateway", variables, port=port, stop_seconds=GATEWAY_STOP_SECONDS)

    async def start_relay(self) -> ProcessService:
        """Start a relay as a supervised process and wait until it is ready."""
        variables = self._without_settings(_NOT_OF_THE_RELAY)
        port = variables["RELAY_HEALTH_PORT"]
        return await self._start("relay", "relay", variables, port=port, stop_seconds=RELAY_STOP_SECONDS)

    async def _start(
        self, name: str, command: str, variables: Mapping[str, str], *, port: int | str, stop_seconds: float
    ) -> ProcessService:
        return await self.stack.add_process(
            name,
            [sys.executable, "-P", "-m", "cli", command],
            variables,
            ready=_answers(f"http://127.0.0.1:{port}/readyz"),
            stop_timeout_seconds=stop_seconds,
        )

    async def _prepare_relay_key(self) -> None:
        """A key of its own, in a file that is named to the relay alone, with gas on the local chain.

        Where database or chain are others' servers, the relay runs with the settings' key, or not at all.
        """
        if not {"postgres", "chain"} & self._without:
            path = self.state_dir / "relay.key"
            if not path.exists():
                write_atomically(path, f"0x{secrets.token_hex(32)}\n".encode())
            self.variables["RELAY_PRIVATE_KEY_FILE"] = str(path)
            address = wallet_address(path.read_text().strip())
            if int(await self.stack.chain.rpc("eth_getBalance", address, "latest"), 16) < RELAY_GAS_WEI // 2:
                await self.stack.chain.set_balance(address, RELAY_GAS_WEI)
        elif not {"RELAY_PRIVATE_KEY", "RELAY_PRIVATE_KEY_FILE"} & self.variables.keys():
            self._without.add("relay")
        if "relay" not in self._without and self.variables.get("RELAY_HEALTH_PORT", "0") == "0":
            # Written to `env`, too: `settle doctor` reads there what the relay runs with.
            port = PortBook(self.state_dir).pick("relay-health", RELAY_HEALTH_PORT)
            self.variables["RELAY_HEALTH_PORT"] = str(port)

    async def _prepare_service_key(self) -> None:
        settings = self.settings
        async with payments_client(settings, self.variables) as client:
            service_key = LocalServiceKey(self._key_path, settings, self.stack.chain, client, self._on_progress)
            stored = await service_key.prepare(waits="worker" not in self._without)
        self.variables["DEV_SERVICE_KEY"] = stored.key
        self.variables["DEV_SERVICE_WALLET_KEY"] = stored.wallet_key
        self._write_env()

    @property
    def _key_path(self) -> Path:
        return self.state_dir / "service-key.json"

    def _without_settings(self, names: Collection[str]) -> dict[str, str]:
        # Empty, not absent: a process also reads the `.env` of its folder, over which the environment takes precedence.
        return {**self.variables, **dict.fromkeys(names, "")}

    def _existing(self) -> set[str]:
        """Parts that the settings name as existing servers."""
        named = [name for name in _ROLE_OF_URL if name in self.variables]
        if named and len(named) < len(_ROLE_OF_URL):
            missing = next(name for name in _ROLE_OF_URL if name not in self.variables)
            raise ConfigurationError.incomplete(missing, named[0], "all addresses of an existing database, or none")
        if "CHAIN_RPC_URLS" in self.variables and "TREASURY_ADDRESS" not in self.variables:
            raise ConfigurationError.incomplete("TREASURY_ADDRESS", "CHAIN_RPC_URLS", "both for an existing chain")
        return {
            *(("postgres",) if named else ()),
            *(("temporal",) if "TEMPORAL_ADDRESS" in self.variables else ()),
            *(("chain",) if "CHAIN_RPC_URLS" in self.variables else ()),
            *(("upstream",) if "UPSTREAMS_FILE" in self.variables else ()),
        }

    async def _add_addresses(self) -> None:
        """Add the addresses of the started parts to the settings."""
        if "API_PORT" not in self.variables:
            self.variables["API_PORT"] = str(PortBook(self.state_dir).pick("api", API_PORT))
        self.variables.setdefault("API_URL", f"http://127.0.0.1:{self.variables['API_PORT']}")
        if is_loopback_host(self.variables.get("API_HOST", "127.0.0.1")):
            # The tenants are on this machine already, and so are their receivers.
            self.variables.setdefault("WEBHOOK_ALLOW_PRIVATE", "true")
        self._add_gateway_addresses()
        if "postgres" not in self._without:
            passwords = self._passwords()
            prepare_database(self.stack.postgres.superuser_url(), passwords[OWNER_ROLE])
            host = self.stack.postgres.superuser_url(DATABASE).rpartition("@")[2]
            for name, role in _ROLE_OF_URL.items():
                self.variables[name] = f"postgresql://{role}:{passwords[role]}@{host}"
            # Its pages stay off until OPERATOR_WALLETS is set.
            self.variables["OPERATOR_DATABASE_URL"] = f"postgresql://{OPERATOR_ROLE}:{passwords[OPERATOR_ROLE]}@{host}"
            self.variables["RELAY_DATABASE_URL"] = f"postgresql://{RELAY_ROLE}:{passwords[RELAY_ROLE]}@{host}"
        if "temporal" not in self._without:
            self.variables["TEMPORAL_ADDRESS"] = self.stack.temporal.address
            self.variables.setdefault("TEMPORAL_NAMESPACE", "default")
            self.variables["TEMPORAL_UI_URL"] = self.stack.temporal.ui_url
        if "chain" not in self._without:
            chain = self.stack.chain
            await chain.deploy()
            self.variables["CHAIN_ID"] = str(chain.chain_id)
            self.variables["CHAIN_RPC_URLS"] = chain.url
            self.variables.setdefault("PUBLIC_RPC_URL", chain.url)
            self.variables["USDC_TOKEN_ADDRESS"] = chain.token_address
            self.variables["TREASURY_ADDRESS"] = chain.treasury_address
            self.variables.setdefault("CHAIN_BLOCK_TIME_SECONDS", str(self._block_time_seconds or 1))
            self.variables["DEV_WALLET_KEYS"] = ",".join(wallet.private_key for wallet in payer_wallets())
        await self._prepare_relay_key()

    def _add_gateway_addresses(self) -> None:
        if "GATEWAY_PORT" not in self.variables:
            self.variables["GATEWAY_PORT"] = str(PortBook(self.state_dir).pick("gateway", GATEWAY_PORT))
        self.variables.setdefault("GATEWAY_HOST", "127.0.0.1")
        self.variables.setdefault("GATEWAY_URL", f"http://127.0.0.1:{self.variables['GATEWAY_PORT']}")
        self.variables.setdefault("BILLING_INGEST_SECRET", self._passwords()[INGEST_SECRET])
        if "upstream" not in self._without:
            self.variables["DEV_UPSTREAM_URL"] = self.stack.upstream.url
            path = self.state_dir / "upstreams.yaml"
            write_upstreams_file(path, self.stack.upstream.url)
            self.variables["UPSTREAMS_FILE"] = str(path)
        stored = read_stored_key(self._key_path) if self._with_service_key else None
        if stored is not None:
            self.variables["DEV_SERVICE_KEY"] = stored.key
            self.variables["DEV_SERVICE_WALLET_KEY"] = stored.wallet_key

    def _passwords(self) -> dict[str, str]:
        path = self.state_dir / "passwords.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        names = (*_ROLE_OF_URL.values(), OPERATOR_ROLE, RELAY_ROLE, INGEST_SECRET)
        # A folder of an earlier version lacks the passwords of newer roles.
        passwords = {name: str(kept.get(name) or secrets.token_urlsafe(24)) for name in names}
        write_atomically(path, json.dumps(passwords).encode())
        return passwords

    def _migrate(self) -> None:
        settings = self.settings
        self._on_progress("migrating the database")
        migrate(
            settings.require_migration_database_url(),
            app_url=settings.require_database_url(),
            settlement_url=settings.require_settlement_database_url(),
            service_url=settings.require_service_database_url(),
            operator_url=settings.operator_database_url,
            relay_url=settings.relay_database_url,
        )

    def _write_env(self) -> None:
        """Write every setting as `NAME=value`; readable by the owner alone, because it holds passwords and keys."""
        settings = self.settings
        values = {
            field.alias: self.variables.get(str(field.alias), _as_text(getattr(settings, name)))
            for name, field in Settings.model_fields.items()
        }
        extra = ("TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE", "DEV_UPSTREAM_URL", *sorted(_OF_THE_USER))
        values |= {name: self.variables[name] for name in extra if name in self.variables}
        values |= {name: value for name, value in self.variables.items() if name.startswith("TEMPORAL_")}
        lines = [env_file_line(str(name), value) for name, value in values.items() if value is not None]
        write_atomically(self.env_path, ("\n".join(lines) + "\n").encode())


def _as_text(value: object) -> str | None:
    if value is None:
        return None
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _answers(url: str) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
                session.get(url) as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    return ask
