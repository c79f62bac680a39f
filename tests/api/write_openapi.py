"""Write the OpenAPI document: `python -m tests.api.write_openapi`.

To be run by hand after a change that is meant to change the interface, and the file committed with that change.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any, Final

from api.app import build_api

DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"


@functools.cache
def document() -> dict[str, Any]:
    """What the code makes: once in a process, as it takes 0.15 seconds of the processor's. It is not to be changed."""
    return build_api().openapi()


def as_text() -> str:
    """The document as it is kept: in the order of the code, so that a change shows as one."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(as_text(), encoding="utf-8")
    print(DOCUMENT, file=sys.stderr)  # noqa: T201
