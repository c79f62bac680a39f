"""Following a chain."""

from __future__ import annotations

from abc import abstractmethod

from temporalio import activity

from activities.messages import Followed, Rescan, WatchedChain
from activities.signatures import Signatures
from domain.transfers.rescan import RescanReport


class WatchingSignatures(Signatures):
    """Implemented by `activities.transfers.watch_chain`."""

    @activity.defn(name="follow_chain")
    @abstractmethod
    async def follow_chain(self, chain: WatchedChain) -> Followed:
        """Follow the chain for a while. It waits for what cannot be reached, and its heartbeat says so.

        Ends immediately when the worker stops, to continue elsewhere.
        """

    @activity.defn(name="rescan_chain")
    @abstractmethod
    async def rescan_chain(self, rescan: Rescan) -> RescanReport:
        """Read the last blocks again, with every endpoint, for what nodes left out when the blocks were new.

        The watcher acts on what is found. Numbers are those of all scopes together, the rest of the report is of the
        scope of the settings.
        """
