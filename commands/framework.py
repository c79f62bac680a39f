"""What every command of `settle` is declared with: its context, options, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from typing import Any, NoReturn, ParamSpec
from uuid import UUID

import click

from commands.entry import INTERRUPTED, interrupt_as_usual
from commands.output import DONE, EXIT_FAILURE, EXIT_USAGE, print_json, progress
from domain.errors import ConfigurationError, InvalidInput, SettleError
from domain.identifiers import parse_attempt_id
from settings import Settings, load, name_warnings

P = ParamSpec("P")

DIGITS_MAX = 20
"""Above any amount, so that the bounds are checked by the command and not by the parser."""


@dataclass(frozen=True)
class Context:
    """Context of every command: the environment, merged with the settings file."""

    variables: dict[str, str]

    @property
    def settings(self) -> Settings:
        """The settings. Raises `ConfigurationError`."""
        return load(self.variables)

    def configure_logs(self, *, default_format: str, default_level: str) -> None:
        """Send log lines to standard error, in this format unless the settings name one."""
        from telemetry.logs import configure

        settings = self.settings
        log_format = settings.log_format.value if self.variables.get("LOG_FORMAT") else default_format
        level = settings.log_level.value if self.variables.get("LOG_LEVEL") else default_level
        configure(level=level, log_format=log_format)
        for warning in name_warnings(self.variables):
            logging.getLogger("settings").warning(warning)


class RowId(click.ParamType[UUID]):
    """The id of a key, a grant or the like."""

    name = "ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> UUID:
        """The UUID, or a usage error."""
        try:
            return value if isinstance(value, UUID) else UUID(value)
        except ValueError:
            self.fail(f"expected a UUID, got {value!r:.80}", param, ctx)


class AttemptId(click.ParamType[UUID]):
    """A payment attempt's id."""

    name = "ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> UUID:
        """The UUID, or a usage error."""
        try:
            return value if isinstance(value, UUID) else parse_attempt_id(value)
        except InvalidInput as error:
            self.fail(error.message, param, ctx)


def _fail(error: SettleError | Exception, *, code: str, exit_code: int, as_json: bool) -> int:
    if as_json:
        print_json({"code": code, "detail": str(error)})
    progress(f"settle: {error}" if code in str(error) else f"settle: {code}: {error}")
    return exit_code


def command(function: Callable[P, Coroutine[Any, Any, bool | None]]) -> Callable[P, None]:
    """Run an async command and report each error in one line. A command that returns False exits with 1.

    Its result is its output; log lines are few and formatted as text.
    """
    return _runs(function, log_format="console", log_level="WARNING")


def service(function: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """The same for a process that runs until it is stopped: its output is its log."""
    return _runs(function, log_format="json", log_level="INFO")


def _runs(
    function: Callable[P, Coroutine[Any, Any, bool | None]], *, log_format: str, log_level: str
) -> Callable[P, None]:
    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from devstack.errors import DevstackError

        as_json = bool(kwargs.get("as_json", False))
        try:
            # Before anything can log: an unconfigured line would go to standard output, into the result.
            context = click.get_current_context().find_object(Context)
            if context is not None:
                context.configure_logs(default_format=log_format, default_level=log_level)
            interrupt_as_usual()
            answer = asyncio.run(function(*args, **kwargs))
        except (ConfigurationError, InvalidInput) as error:
            _exit(_fail(error, code=error.code, exit_code=EXIT_USAGE, as_json=as_json))
        except SettleError as error:
            _exit(_fail(error, code=error.code, exit_code=EXIT_FAILURE, as_json=as_json))
        except DevstackError as error:
            _exit(_fail(error, code="LOCAL_SYSTEM", exit_code=EXIT_FAILURE, as_json=as_json))
        except BrokenPipeError:
            _exit(DONE)
        except OSError as error:
            # Standard output itself may be what cannot be written to.
            _exit(_fail(error, code="SYSTEM", exit_code=EXIT_FAILURE, as_json=False))
        except Exception as error:
            if not type(error).__module__.startswith(("sqlalchemy.", "psycopg")):
                raise
            line = str(getattr(error, "orig", None) or error).splitlines()[0]
            _exit(_fail(RuntimeError(line), code="DATABASE", exit_code=EXIT_FAILURE, as_json=as_json))
        except KeyboardInterrupt:
            _exit(INTERRUPTED)
        _exit(EXIT_FAILURE if answer is False else DONE)

    return run


def _exit(exit_code: int) -> NoReturn:
    """End the process without finalizing the interpreter.

    The Temporal SDK's native threads may call into Python while it finalizes, which aborts the process after its work
    is done (seen as SIGABRT, "PyGILState_Release"). Everything that must be closed has been closed by now.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError):
            # Closed by the parent process, or full: a closed pipe is harmless, a full disk is not.
            exit_code = exit_code if stream is None or stream is sys.stderr else max(exit_code, EXIT_FAILURE)
    os._exit(exit_code)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")


class WholeNumber(click.ParamType[int]):
    """Decimal digits only: no blanks, underscores, or digits of other scripts."""

    name = "N"
    digits_max = DIGITS_MAX

    def __init__(self, unit: str) -> None:
        self._unit = unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, or a usage error."""
        if isinstance(value, int):
            return value
        if re.fullmatch(rf"-?[0-9]{{1,{self.digits_max}}}", value) is None:
            self.fail(f"expected a whole number of {self._unit}, got {value!r:.40}", param, ctx)
        return int(value)


def parse_moment(option: str, given: str | None) -> datetime | None:
    """Parse an ISO 8601 time; without a zone it is UTC. Raises `InvalidInput` naming the option."""
    if given is None:
        return None
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise InvalidInput(option, f"expected a time such as 2026-01-31T12:00:00Z, got {given!r:.40}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
