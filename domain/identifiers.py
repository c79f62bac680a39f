"""Constant ids, and parsers for hashes and addresses that enter and leave the system."""

from __future__ import annotations

import re
from typing import Annotated, Final
from uuid import UUID

from pydantic import AfterValidator

from domain.errors import InvalidInput

SYSTEM_TENANT_USER_ID: Final = "cogni_system_principal"
SYSTEM_TENANT_ACCOUNT_ID: Final = "cogni_system"

HASH_EXPECTED: Final = "expected 0x and 64 hex digits (32 bytes)"
ADDRESS_EXPECTED: Final = "expected 0x and 40 hex digits (20 bytes)"
UUID_EXPECTED: Final = "expected a UUID"

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)
_UTXO_ADDRESS = re.compile(r"[1-9A-HJ-NP-Za-km-z]{26,64}|[a-z]{1,16}1[02-9ac-hj-np-z]{11,87}", re.ASCII)
_TX_HASH = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)


def parse_tx_hash(text: str, *, field: str = "txHash") -> str:
    """Parse a transaction hash to lower case (32 bytes, `0x` and 64 hex digits). Raises `InvalidInput`."""
    if not isinstance(text, str) or _TX_HASH.fullmatch(text) is None:
        raise InvalidInput(field, f"{HASH_EXPECTED}, got {str(text)!r:.80}")
    return text.lower()


def parse_address(text: str, *, field: str = "address") -> str:
    """Check an address and return it as written (20 bytes, `0x` and 40 hex digits). Raises `InvalidInput`.

    A mixed-case checksum needs Keccak to verify: see `chain.addresses`.
    """
    if not isinstance(text, str) or _ADDRESS.fullmatch(text) is None:
        raise InvalidInput(field, f"{ADDRESS_EXPECTED}, got {str(text)!r:.80}")
    return text


def parse_recipient(text: str) -> str:
    """Check an address of any family of chains: one of an EVM chain, Base58 or Bech32. Raises `InvalidInput`.

    Checksums are not checked: what is stored was derived, and is derived again before it is believed.
    """
    if isinstance(text, str) and _UTXO_ADDRESS.fullmatch(text) is not None:
        return text
    return parse_address(text)


def parse_attempt_id(text: str) -> UUID:
    """Parse a payment attempt's id. Raises `InvalidInput` naming `attemptId`."""
    try:
        return UUID(text)
    except (ValueError, AttributeError, TypeError):
        raise InvalidInput("attemptId", f"{UUID_EXPECTED}, got {str(text)!r:.80}") from None


def same_address(left: str, right: str) -> bool:
    """Whether two addresses are equal, ignoring the case that carries the checksum."""
    return left.lower() == right.lower()


Address = Annotated[str, AfterValidator(parse_address)]
Recipient = Annotated[str, AfterValidator(parse_recipient)]
TxHash = Annotated[str, AfterValidator(parse_tx_hash)]
