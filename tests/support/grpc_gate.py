"""A gate before a Temporal server that lets requests pass, or refuses them by their path, as Temporal Cloud does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

OPERATOR = "/temporal.api.operatorservice.v1.OperatorService/"
WORKFLOW = "/temporal.api.workflowservice.v1.WorkflowService/"
HEALTH = "/grpc.health.v1.Health/"


@dataclass
class Refusal:
    """What the gate answers instead of the server."""

    code: grpc.StatusCode
    words: str = "Request unauthorized."


@dataclass
class Gate:
    """`refusals` by the beginning of a path, to be changed at any time; `refused` are the paths that met one."""

    address: str
    refusals: dict[str, Refusal] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, gate: Gate, server: grpc.aio.Channel) -> None:
        self._gate = gate
        self._server = server

    def service(self, details: Any) -> Any:
        """How one request is answered; all of Temporal's are one message each way."""

        async def answer(request: bytes, context: Any) -> bytes:
            refusal = next(
                (found for path, found in self._gate.refusals.items() if details.method.startswith(path)), None
            )
            if refusal is not None:
                self._gate.refused.append(details.method)
                await context.abort(refusal.code, refusal.words)
            call = self._server.unary_unary(details.method)(
                request, metadata=_passed_on(context.invocation_metadata()), timeout=context.time_remaining()
            )
            try:
                return bytes(await call)
            except grpc.aio.AioRpcError as error:
                context.set_trailing_metadata(_passed_on(error.trailing_metadata()))
                await context.abort(error.code(), error.details())
                raise AssertionError from error

        return grpc.unary_unary_rpc_method_handler(answer)


def _passed_on(metadata: Any) -> list[tuple[str, Any]]:
    return [
        (key, value)
        for key, value in metadata or ()
        if not key.startswith(":") and key not in {"user-agent", "te", "content-type", "grpc-status", "grpc-message"}
    ]


@asynccontextmanager
async def gate_before(address: str, refusals: Mapping[str, Refusal] | None = None) -> AsyncIterator[Gate]:
    """A gate on a port of its own before the server at `address`."""
    async with grpc.aio.insecure_channel(address) as channel:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        gate = Gate(f"127.0.0.1:{port}", dict(refusals or {}))
        server.add_generic_rpc_handlers((_Handler(gate, channel),))
        await server.start()
        try:
            yield gate
        finally:
            await server.stop(grace=None)
