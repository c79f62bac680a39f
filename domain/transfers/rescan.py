"""Result of reading part of the chain again."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RescanReport(BaseModel):
    """What reading again has found. Block numbers are None before the chain has been followed at all."""

    model_config = ConfigDict(frozen=True)

    first: int | None = None
    last: int | None = None
    endpoints: tuple[str, ...] = ()
    """Endpoints on the followed chain that answered for the whole range."""
    silent: tuple[str, ...] = ()
    """The other endpoints, each with its reason."""
    added: int = 0
    """Transfers that had been missed."""
    orphaned: int = 0
    """Recorded transfers whose block is not canonical."""
    closed_findings: int = 0
