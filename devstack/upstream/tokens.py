"""How the upstream counts: one word is one token, so that a test can count by hand.

A word is what `str.split` makes: text between white space. The prompt is every word of every text in the request
(system text, instructions and messages of all roles; tool results too, images and tool definitions not), without the
`!upstream {...}` directive. The output is every word of the answer, and of each tool call's name and arguments; `n`
choices are counted n times. Tokens of reasoning are part of the output, cached ones of the prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

_PIECE: Final = re.compile(r"\s*\S+")


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one generation has used so far."""

    prompt: int = 0
    cached: int = 0
    """Part of the prompt, read from the cache."""
    cache_write: int = 0
    """Part of the prompt, written to the cache."""
    output: int = 0
    reasoning: int = 0
    """Part of the output."""

    @property
    def total(self) -> int:
        """Prompt and output."""
        return self.prompt + self.output

    @property
    def uncached(self) -> int:
        """The part of the prompt at the full price."""
        return max(0, self.prompt - self.cached - self.cache_write)

    def with_output(self, output: int) -> Tokens:
        """The same when only so much was produced."""
        if output == self.output:
            return self
        return replace(self, output=output, reasoning=min(self.reasoning, output))

    def plus(self, other: Tokens) -> Tokens:
        """The sum of both."""
        return Tokens(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.cache_write + other.cache_write,
            self.output + other.output,
            self.reasoning + other.reasoning,
        )


def count(text: str) -> int:
    """The tokens of a text."""
    return len(text.split())


def pieces(text: str) -> list[str]:
    """A text cut into its tokens, each with the white space before it; white space at the end is left out."""
    return _PIECE.findall(text)
