"""The pages' static files: an address changes with the content, so that browsers may keep what it gave.

A module names the modules that it imports in the same way, so that a page never runs one release's module with another
one's. Their addresses are put into it as it is served, and its own fingerprint is of what is served.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path
from typing import Final

from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.staticfiles import NotModifiedResponse
from starlette.types import Scope

FOLDER: Final = Path(__file__).parents[1] / "static"

FOR_EVER: Final = "public, max-age=31536000, immutable"
ASK_AGAIN: Final = "no-cache"

_IMPORTED: Final = re.compile(rb"(?<=from '\./)([a-z_]+\.js)(?=')")
"""A module of the same folder. Modules that import each other would have no fingerprint."""


@cache
def content_of(name: str, folder: Path = FOLDER) -> bytes:
    """What is served of a file. Raises `OSError`."""
    content = (folder / name).read_bytes()
    if not name.endswith(".js"):
        return content

    def with_fingerprint(found: re.Match[bytes]) -> bytes:
        return found[0] + f"?v={fingerprint(found[0].decode(), folder)}".encode()

    return _IMPORTED.sub(with_fingerprint, content)


@cache
def fingerprint(name: str, folder: Path = FOLDER) -> str:
    """Changes with what is served, so that browsers request it again after a release."""
    return hashlib.sha256(content_of(name, folder)).hexdigest()[:12]


def address_of(name: str) -> str:
    """Where pages find a file."""
    return f"/static/{name}?v={fingerprint(name)}"


class FingerprintedFiles(StaticFiles):
    """The files of `FOLDER`; cacheable indefinitely where one was requested by its own fingerprint.

    Not by another one: during a release an old process may receive a request for a new process's file.
    """

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, or that the browser's copy is still right."""
        response = await super().get_response(path, scope)
        if response.status_code in {200, 304}:
            is_this = scope["query_string"] == f"v={fingerprint(path)}".encode()
            response.headers["Cache-Control"] = FOR_EVER if is_this else ASK_AGAIN
        return response

    def file_response(
        self, full_path: os.PathLike[str] | str, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """As it is; of a module what is served, which changes with others' files, too."""
        path = Path(full_path)
        if path.suffix != ".js":
            return super().file_response(full_path, stat_result, scope, status_code)
        tag = {"ETag": f'"{fingerprint(path.name)}"'}
        response = Response(content_of(path.name), status_code, tag, media_type="text/javascript")
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response
