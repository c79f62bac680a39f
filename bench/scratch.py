"""A PostgreSQL of its own, migrated and with accounts, for what is measured in a ledger of a certain size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from db.engine import ServiceDatabase
from db.migrate import migrate
from devstack.database import DATABASE, OWNER_ROLE, prepare_database
from devstack.postgres import EmbeddedPostgres
from devstack.stack import until_signalled

PASSWORD: Final = "only-for-this-measurement"

INSERT_ACCOUNTS: Final = """
    INSERT INTO users (id, wallet_address) SELECT 'user-' || n, '0x' || lpad(n::text, 40, '0')
      FROM generate_series(0, %(accounts)s - 1) n;
    INSERT INTO billing_accounts (id, owner_user_id) SELECT 'account-' || n, 'user-' || n
      FROM generate_series(0, %(accounts)s - 1) n;
    INSERT INTO ledger_accounts (code, name, type, normal_side, billing_account_id)
    SELECT 'credits:account-' || n, 'x', 'liability', 'credit', 'account-' || n
      FROM generate_series(0, %(accounts)s - 1) n;
"""


@dataclass(frozen=True, slots=True)
class Scratch:
    """The database: the superuser's address, and the role that checks and reconciles."""

    superuser_url: str
    service: ServiceDatabase


@asynccontextmanager
async def scratch_database(folder: Path, settings: Mapping[str, str]) -> AsyncIterator[Scratch]:
    """Start a server in the folder, with its `settings`, and stop it at the end. Raises `DevstackError`."""
    async with until_signalled():
        server = EmbeddedPostgres(folder, settings=settings)
        await server.start()
        try:
            prepare_database(server.superuser_url(), PASSWORD)
            urls = {
                role: f"postgresql://{role}:{PASSWORD}@127.0.0.1:{server.port}/{DATABASE}"
                for role in (OWNER_ROLE, "settle_app", "settle_settlement", "settle_service")
            }
            await asyncio.to_thread(
                migrate,
                urls[OWNER_ROLE],
                app_url=urls["settle_app"],
                settlement_url=urls["settle_settlement"],
                service_url=urls["settle_service"],
            )
            service = ServiceDatabase(urls["settle_service"], application_name="settle bench", pool_size=2)
            try:
                yield Scratch(server.superuser_url(DATABASE), service)
            finally:
                await service.dispose()
        finally:
            await server.stop()
