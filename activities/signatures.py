"""Base of all activity declarations: workflows call these, workers register the implementations.

A subject's `signatures.py` declares its activities, with their names and messages only; its other modules implement
them. So a process that starts a workflow, and the workflow itself, loads no chain client, driver or signature library.
The type checker compares each implementation with its declaration, and a class that lacks one cannot be instantiated.
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
        """The names of the declared activities, including those of base classes."""
        return tuple(sorted({name for base in cls.__mro__ for name in getattr(base, "__abstractmethods__", ())}))

    def activities(self) -> list[Activity]:
        """The activities that a worker registers: the method behind each declaration."""
        return [getattr(self, name) for name in self.declared()]
