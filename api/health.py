"""`/livez`, `/readyz`, `/metrics`: for operators."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api import examples
from api.http.dependencies import ApiServices
from api.http.openapi import answered
from api.models import Health
from api.resources import Services
from telemetry.health import run_checks

READINESS_SECONDS: Final = 1.0
"""Cache lifetime: the endpoint is public, and each check goes to every dependency."""

router = APIRouter(tags=["health"])


class Readiness:
    """State of the dependencies, checked at most once a second."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._checks: dict[str, str] = {}
        self._until = 0.0

    async def read(self, services: Services) -> dict[str, str]:
        """Each dependency by name: "ok", or what is wrong."""
        async with self._lock:
            if time.monotonic() >= self._until:
                self._checks = await run_checks(services.checks)
                self._until = time.monotonic() + READINESS_SECONDS
            return self._checks


@router.get(
    "/livez",
    response_model_exclude_none=True,
    operation_id="getLiveness",
    summary="Liveness",
    responses={200: answered("The process is alive.", {"alive": examples.LIVE})},
)
async def livez() -> Health:
    """The process is alive."""
    return Health(status="ok")


@router.get(
    "/readyz",
    operation_id="getReadiness",
    summary="Readiness",
    responses={
        200: answered("Ready.", {"ready": examples.READY}),
        503: {"model": Health, **answered("Not ready.", {"notReady": examples.NOT_READY})},
    },
)
async def readyz(request: Request, services: ApiServices) -> Health:
    """Readiness: database, schema, system tenant, Temporal and the chain, each by name."""
    readiness: Readiness = request.app.state.readiness
    checks = await readiness.read(services)
    ready = not services.stopping.is_set() and all(result == "ok" for result in checks.values())
    health = Health(status="ok" if ready else "not ready", checks=checks)
    return health if ready else JSONResponse(health.model_dump(), 503)  # type: ignore[return-value]


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="Counters and gauges",
    response_class=Response,
    responses={
        200: answered(
            "In Prometheus' text format.",
            {"logins": examples.METRICS},
            media_type="text/plain",
            schema={"type": "string"},
        )
    },
)
async def metrics() -> Response:
    """Metrics of the process in Prometheus' format. Not public: keep it behind the proxy."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
