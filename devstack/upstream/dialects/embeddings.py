"""`/v1/embeddings`: vectors that depend on the text alone, of length one."""

from __future__ import annotations

import base64
import hashlib
import struct
from functools import lru_cache
from typing import Any, Final

from devstack.upstream.generation import Generation
from devstack.upstream.usage import add_usage, usage_of

DIMENSIONS: Final = 16


def document(generation: Generation) -> dict[str, Any]:
    """The answer as one document."""
    body = generation.asked.body
    dimensions = body.get("dimensions")
    size = dimensions if isinstance(dimensions, int) and 1 <= dimensions <= 4096 else DIMENSIONS
    as_base64 = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(_vector(text, size), as_base64=as_base64)}
        for index, text in enumerate(generation.asked.inputs)
    ]
    answer = {"object": "list", "data": data, "model": generation.asked.model}
    return add_usage(answer, usage_of(generation))


@lru_cache(maxsize=1024)
def _vector(text: str, size: int) -> tuple[float, ...]:
    digest = hashlib.shake_256(text.encode(errors="replace")).digest(size)
    numbers = [byte - 127.5 for byte in digest]
    length = sum(number * number for number in numbers) ** 0.5
    return tuple(number / length for number in numbers)


def _encoded(vector: tuple[float, ...], *, as_base64: bool) -> str | tuple[float, ...]:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if as_base64 else vector
