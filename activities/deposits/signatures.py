"""Declarations of what is done about deposit addresses by the clock."""

from __future__ import annotations

from abc import abstractmethod

from temporalio import activity

from activities.messages import Message
from activities.signatures import Signatures


class AddressesVerified(Message):
    """How many addresses were derived again; what is not as stored, a line for each key or treasury."""

    checked: int
    wrong_count: int = 0
    problems: tuple[str, ...] = ()


class AddressSignatures(Signatures):
    """Implemented by `activities.deposits.verification`."""

    @activity.defn(name="verify_addresses")
    @abstractmethod
    async def verify_addresses(self) -> AddressesVerified:
        """Derive every deposit address again; a finding for each key or treasury of one that is not as stored."""
