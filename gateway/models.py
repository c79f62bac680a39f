"""Which models can be called: what upstreams name or offer, has a price, and is open to the key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from domain.billing.upstreams import Upstream, UsageLookup
from gateway.state import Gateway
from gateway.upstream_client import UpstreamFailed

KEPT_SECONDS: Final = 60.0
_SINCE: Final = "2025-01-01T00:00:00Z"
_SINCE_SECONDS: Final = 1_735_689_600
"""Clients want a time; upstreams do not agree on one."""

log = structlog.get_logger(__name__)


@dataclass
class ModelList:
    """What the upstreams offer, asked for at most once a minute."""

    gateway: Gateway
    _offers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By upstream."""
    _asked_at: float | None = None
    _asking: asyncio.Task[None] | None = None

    async def open_to(self, models: Collection[str] | None) -> Mapping[str, str]:
        """Names of the models that a key for `models` (None: all) can call, each with the upstream that gets it."""
        await self._refresh()
        found: dict[str, str] = {}
        for upstream in self.gateway.upstreams.upstreams:
            for model in (*upstream.named_models, *self._offers.get(upstream.name, ())):
                if model in found or not upstream.offers(model) or (models is not None and model not in models):
                    continue
                if self.gateway.prices.find(model) is not None or upstream.usage_lookup is not UsageLookup.NONE:
                    found[model] = upstream.name
        return found

    async def _refresh(self) -> None:
        if self._asked_at is not None and time.monotonic() - self._asked_at < KEPT_SECONDS:
            return
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())
            self._asking.add_done_callback(lambda _: setattr(self, "_asking", None))
        await asyncio.shield(self._asking)

    async def _ask_all(self) -> None:
        asked = [u for u in self.gateway.upstreams.upstreams if len(u.named_models) < len(u.models)]
        await asyncio.gather(*(self._ask(upstream) for upstream in asked))
        self._asked_at = time.monotonic()

    async def _ask(self, upstream: Upstream) -> None:
        try:
            self._offers[upstream.name] = tuple(await self.gateway.client.models(upstream))
        except UpstreamFailed as error:
            # What it offered before stays: a list that shrinks for a minute breaks clients.
            log.warning("an upstream does not list its models", upstream=upstream.name, kind=error.kind)


def as_openai(models: Mapping[str, str]) -> dict[str, Any]:
    """The list as OpenAI's clients read it."""
    return {"object": "list", "data": [openai_model(model, owner) for model, owner in models.items()]}


def openai_model(model: str, owner: str) -> dict[str, Any]:
    """One model as OpenAI's clients read it."""
    return {"id": model, "object": "model", "created": _SINCE_SECONDS, "owned_by": owner}


def as_anthropic(models: Mapping[str, str]) -> dict[str, Any]:
    """The list as Anthropic's clients read it: all of it is one page."""
    names = list(models)
    return {
        "data": [anthropic_model(model) for model in names],
        "has_more": False,
        "first_id": names[0] if names else None,
        "last_id": names[-1] if names else None,
    }


def anthropic_model(model: str) -> dict[str, Any]:
    """One model as Anthropic's clients read it."""
    return {"type": "model", "id": model, "display_name": model, "created_at": _SINCE}
