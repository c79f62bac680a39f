"""Write the OpenAPI document: `python -m tests.api.write_openapi`.

To be run by hand after a change that is meant to change the interface, and the file committed with that change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from api.app import build_api

DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"


def as_text() -> str:
    """The document as it is kept: in the order of the code, so that a change shows as one."""
    return json.dumps(build_api().openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(as_text(), encoding="utf-8")
    print(DOCUMENT, file=sys.stderr)  # noqa: T201
