"""What a measurement is done on: servers and connections of its own, never a real system's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from bench.postings import CONNECTIONS
from db.address import format_address, parse_address
from db.engine import ServiceDatabase, SettlementDatabase, TenantDatabase
from settings import Settings

_KEPT_SETTINGS: Final = frozenset({"LOG_LEVEL", "LOG_FORMAT"})


def without_servers(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment without what names a server or changes a rule: load never goes to a real system."""
    ours = {str(field.alias) for field in Settings.model_fields.values()} - _KEPT_SETTINGS
    return {
        name: value
        for name, value in variables.items()
        if name not in ours and not name.startswith(("TEMPORAL_", "PG"))
    }


@asynccontextmanager
async def databases(
    settings: Settings, *, port: int | None = None
) -> AsyncIterator[tuple[TenantDatabase, SettlementDatabase, ServiceDatabase]]:
    """All roles with a worker's connections, through another port where one is given."""

    def address(url: str) -> str:
        return format_address(parse_address(url) | ({"port": str(port)} if port else {}))

    options: dict[str, Any] = {"application_name": "settle bench", "pool_size": CONNECTIONS, "pre_ping": False}
    tenants = TenantDatabase(address(settings.require_database_url()), **options)
    settlement = SettlementDatabase(address(settings.require_settlement_database_url()), **options)
    service = ServiceDatabase(address(settings.require_service_database_url()), **options)
    try:
        yield tenants, settlement, service
    finally:
        await tenants.dispose()
        await settlement.dispose()
        await service.dispose()
