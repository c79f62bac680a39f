"""Which revisions of the schema this code has, and the setting that its row-level security reads."""

from __future__ import annotations

from typing import Final

SCHEMA_REVISION: Final = "0009"
"""The newest migration of this code; `settle migrate` goes up to it."""

EXPANDED_REVISION: Final = "0009"
"""The oldest schema that this code runs with: everything that it uses is there. What comes after it up to
`SCHEMA_REVISION` only takes away what older code used."""

KNOWN_REVISIONS: Final = frozenset({"0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", SCHEMA_REVISION})
"""Every migration that this version has; any other was made by a newer one, which says whether this one may go on."""

TENANT_SETTING: Final = "settle.user_id"
"""Name of the transaction-local PostgreSQL setting that row-level security reads."""

LAST_CONTRACT: Final = "0005"
"""The newest revision that takes away what older code uses: an expanding migration does not pass it."""
