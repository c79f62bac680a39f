"""Declarations of what is done about deposit addresses: sweeps, and what runs by the clock."""

from __future__ import annotations

from abc import abstractmethod

from temporalio import activity

from activities.messages import Message, SweepRef
from activities.signatures import Signatures


class AddressesVerified(Message):
    """How many addresses were derived again; what is not as stored, a line for each key or treasury."""

    checked: int
    wrong_count: int = 0
    problems: tuple[str, ...] = ()


class SweepEnded(Message):
    """How many nonces were decided, and what failed."""

    nonces: int
    problems: tuple[str, ...] = ()


class SweptToBook(Message):
    """The chain whose transfers from deposit addresses are booked; None is that of the worker that runs it."""

    chain_id: int | None = None


class SweptBooked(Message):
    """Transfers that were booked."""

    transfers: int


class SweepSignatures(Signatures):
    """Implemented by `activities.deposits.sweeps`."""

    @activity.defn(name="advance_sweep")
    @abstractmethod
    async def advance_sweep(self, sweep: SweepRef) -> SweepEnded:
        """Send what is not mined. Fails, to be retried, until every nonce is decided."""

    @activity.defn(name="book_swept")
    @abstractmethod
    async def book_swept(self, wanted: SweptToBook) -> SweptBooked:
        """Book what deposit addresses have sent to a treasury."""


class AddressSignatures(Signatures):
    """Implemented by `activities.deposits.verification`."""

    @activity.defn(name="verify_addresses")
    @abstractmethod
    async def verify_addresses(self) -> AddressesVerified:
        """Derive every deposit address again; a finding for each key or treasury of one that is not as stored."""


class BalancesToCheck(Message):
    """The chain whose deposit addresses are compared; None is that of the worker that runs it."""

    chain_id: int | None = None


class BalancesFound(Message):
    """At which block how many addresses were compared, what no lane had read, and a line for each token that differs.

    `block` is None where deposits, or a finalized block, are not known yet.
    """

    block: int | None
    addresses: int
    found_transfers: int = 0
    problems: tuple[str, ...] = ()


class BalanceSignatures(Signatures):
    """Implemented by `activities.deposits.balances`."""

    @activity.defn(name="check_deposit_balances")
    @abstractmethod
    async def check_deposit_balances(self, wanted: BalancesToCheck) -> BalancesFound:
        """Compare what deposit addresses hold with what came to them; read again what holds more."""
