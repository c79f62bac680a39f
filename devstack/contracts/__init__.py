"""The contracts of local chains: sources, their compiled artifacts, and the accessor for both.

After a change of a source: `node devstack/contracts/compile.mjs`. A test recompiles and compares.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devstack.errors import DevstackError

FOLDER = Path(__file__).parent
ARTIFACTS = FOLDER / "artifacts"
TOKEN_DECIMALS = 6


@dataclass(frozen=True)
class Artifact:
    """A compiled contract. `bytecode` is what a deployment sends, 0x-prefixed hex."""

    name: str
    abi: list[dict[str, Any]]
    bytecode: str
    deployed_bytecode: str
    compiler: str
    source_sha256: str


@functools.cache
def load_artifact(name: str) -> Artifact:
    """The committed artifact of a contract, such as `TestUSDC`.

    Raises DevstackError when there is none of that name.
    """
    try:
        found = json.loads((ARTIFACTS / f"{name}.json").read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in ARTIFACTS.glob("*.json")))
        raise DevstackError(f"there is no contract {name!r}; there are: {known}") from None
    return Artifact(
        name=found["contractName"],
        abi=found["abi"],
        bytecode=found["bytecode"],
        deployed_bytecode=found["deployedBytecode"],
        compiler=found["compiler"],
        source_sha256=found["sourceSha256"],
    )
