"""The error tree: every error has a code of its own kind and one line of words."""

from __future__ import annotations

import pytest

from domain import errors
from domain.errors import SettleError

STABLE_CODES = {
    "SettleError": "INTERNAL",
    "Refusal": "REFUSED",
    "InvalidInput": "INVALID_INPUT",
    "AttemptNotFound": "ATTEMPT_NOT_FOUND",
    "HashInUse": "TX_HASH_IN_USE",
    "TooManyReplacements": "TOO_MANY_REPLACEMENTS",
    "WrongChain": "INVALID_CHAIN",
    "Unavailable": "UNAVAILABLE",
    "ChainUnavailable": "CHAIN_UNAVAILABLE",
    "DatabaseUnavailable": "DATABASE_UNAVAILABLE",
    "TemporalUnavailable": "TEMPORAL_UNAVAILABLE",
    "FindingNotFound": "FINDING_NOT_FOUND",
    "RemedyRefused": "REMEDY_REFUSED",
    "WatcherBehind": "WATCHER_BEHIND",
    "TransferAlreadySettled": "TX_ALREADY_SETTLED",
    "OperatorError": "OPERATOR_ERROR",
    "ConfigurationError": "CONFIGURATION",
    "StartupCheckFailed": "STARTUP_CHECK_FAILED",
    "BookkeepingError": "BOOKKEEPING",
}


@pytest.mark.parametrize(("name", "code"), STABLE_CODES.items())
def test_a_code_is_a_promise(name: str, code: str) -> None:
    error_type = getattr(errors, name)
    assert issubclass(error_type, SettleError)
    assert error_type.code == code


def test_the_tree_at_the_top_of_the_file_names_every_error() -> None:
    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, SettleError)
    }
    assert set(STABLE_CODES) <= defined
    assert all(name in (errors.__doc__ or "") for name in defined)
