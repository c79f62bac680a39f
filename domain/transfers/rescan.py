"""What reading a part of the chain again has found."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RescanReport(BaseModel):
    """What reading again has found. Block numbers are None before the chain has been followed at all."""

    model_config = ConfigDict(frozen=True)

    first: int | None = None
    last: int | None = None
    endpoints: tuple[str, ...] = ()
    """Those whose chain is the one that is followed, and which answered about all of it."""
    silent: tuple[str, ...] = ()
    """The others, each with its reason."""
    added: int = 0
    """Transfers that had been missed."""
    orphaned: int = 0
    """Transfers that had been kept although their block is not canonical."""
    closed_findings: int = 0
