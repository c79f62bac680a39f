"""What every activity's signature rests on: workflows call these, workers register what implements them.

A subject's `signatures.py` declares its activities, with their names, messages and nothing else; its other modules
implement them. So whoever starts a workflow, and the workflow itself, loads no chain client, no driver and no
signature library. The type checker compares each implementation with its declaration, and a class that lacks one
cannot be made.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any

Activity = Callable[..., Any]
"""What a worker registers."""


class Signatures(ABC):  # noqa: B024  (what is abstract is in the subclasses)
    """Base of the classes that declare activities as abstract methods."""

    @classmethod
    def declared(cls) -> tuple[str, ...]:
        """The names of the declared activities, those of the bases too."""
        return tuple(sorted({name for base in cls.__mro__ for name in getattr(base, "__abstractmethods__", ())}))

    def activities(self) -> list[Activity]:
        """What a worker registers: the method behind each declaration."""
        return [getattr(self, name) for name in self.declared()]
