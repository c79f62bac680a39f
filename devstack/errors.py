"""What can go wrong with the embedded parts. Each message is one line that a person can act on.

DevstackError
├── MissingPartError     a binary or package is not installed
├── StateInUseError      the state folder belongs to a stack that is running
├── PartFailedError      a part did not start, did not become ready, or kept dying
└── ChainCallError       the local chain answered a request with an error
"""

from pathlib import Path

IS_CHECKOUT = Path(__file__).resolve().parents[1].joinpath("Makefile").is_file()
INSTALL_COMMAND = "make install" if IS_CHECKOUT else "pip install 'settle[devstack]'"
"""What brings a part that is missing: a checkout has its own way."""


class DevstackError(Exception):
    """Anything the embedded parts have to say to the person who started them."""


class MissingPartError(DevstackError):
    """A binary or package that a part needs is not installed."""


class StateInUseError(DevstackError):
    """The state folder is held by another stack, or by a process of another user."""


class PartFailedError(DevstackError):
    """A part did not start, did not become ready in time, or died again and again."""


class ChainCallError(DevstackError):
    """The local chain answered a JSON-RPC request with an error."""

    def __init__(self, method: str, message: str) -> None:
        super().__init__(f"chain: {method}: {message}")
        self.method = method
        self.message = message
