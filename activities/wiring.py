"""Dependencies of the activities of all subjects. Each subject's `wiring.py` builds its own from them, for the
worker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from chain.preconditions import SettlementPreconditions
from chain.reader import ChainReader
from db.engine import ServiceDatabase, SettlementDatabase
from domain.operations.events import Publish
from services.billing.provider_api import Providers
from services.deposits.pricing import Prices
from services.payments.finality import FinalityDecider
from services.ports import SettlementStarter
from settings import Settings

_VERSION: Final = version("settle")


@dataclass(frozen=True, slots=True)
class Dependencies:
    """Opened by the worker, which owns them."""

    settings: Settings
    chain: ChainReader
    settlement: SettlementDatabase
    service: ServiceDatabase
    preconditions: SettlementPreconditions
    starter: SettlementStarter
    publish: Publish
    finality: FinalityDecider
    providers: Providers = field(default_factory=Providers)
    prices: Prices = field(default_factory=lambda: Prices({}))

    @property
    def worker_version(self) -> str:
        """Of the product."""
        return _VERSION
