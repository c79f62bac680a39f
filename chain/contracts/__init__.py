"""The contracts whose code the product sends to nodes: sources, and the artifacts they are compiled to.

After a change of a source: `node devstack/contracts/compile.mjs`. A test recompiles and compares.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Final

ARTIFACTS: Final = Path(__file__).parent / "artifacts"


@cache
def creation_code(name: str) -> bytes:
    """What a creation of the contract executes; the constructor's arguments, ABI-encoded, come after it."""
    artifact = json.loads((ARTIFACTS / f"{name}.json").read_text())
    return bytes.fromhex(artifact["bytecode"][2:])
