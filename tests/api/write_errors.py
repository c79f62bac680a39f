"""Write the table of errors: `python -m tests.api.write_errors`.

To be run by hand after a change of the errors, and the file committed with that change.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from api.http.problems import KINDS
from domain.payments.attempt import ErrorCode

DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs" / "errors.md"

HEAD: Final = """\
# Errors

Written from the code (`python -m tests.api.write_errors`); a test compares the two.

## Error codes

`code` of a problem document (RFC 9457, [openapi.json](openapi.json)) and of a command's `--json`, and the type of a
Temporal failure. Codes keep their meaning; new ones may be added. `retryable` says whether the same request may succeed
later: a program that does not know a code decides by it. A code is defined by its class in `domain/errors.py`, or by
the interface itself (`api/http/problems.py`).

| code | HTTP | retryable | meaning |
|---|---|---|---|
"""

ATTEMPTS: Final = """
## Codes of an attempt

Why an attempt ended without credits: `errorCode` of an attempt (`domain/payments/attempt.py`, which also has what the
payer sees).

| code | meaning, and what can be done |
|---|---|
"""


def as_text() -> str:
    """The document as it is kept."""
    answers = "".join(
        f"| `{kind.code}` | {kind.status} | {'yes' if kind.is_repeatable else 'no'} | {kind.title} |\n"
        for kind in sorted(KINDS, key=lambda kind: (kind.status, kind.code))
    )
    attempts = "".join(f"| `{code.value}` | {code.for_the_operator} |\n" for code in ErrorCode)
    return HEAD + answers + ATTEMPTS + attempts


if __name__ == "__main__":
    DOCUMENT.write_text(as_text(), encoding="utf-8")
    print(DOCUMENT, file=sys.stderr)  # noqa: T201
