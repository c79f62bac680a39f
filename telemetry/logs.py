"""Structured log lines on standard error, with attempt, workflow and account, and without secrets."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog
from pydantic import BaseModel
from structlog.typing import Processor
from temporalio import activity, workflow
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

_CREDENTIALS: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^\s/@:]*:[^\s@]*@", re.IGNORECASE)
_URL_TAIL: Final = re.compile(r"(?P<origin>https?://[^\s/?#'\"]+)[/?#][^\s'\"]*", re.IGNORECASE)
_SECRET_FIELDS: Final = re.compile(
    r"passw|secret|private_key|api_key|token$|authorization|cookie|signature", re.IGNORECASE
)
_REDACTED: Final = "[redacted]"

CONTEXT_FIELDS: Final = ("attempt_id", "billing_account_id", "request_id")


def redact(text: str) -> str:
    """The text without credentials and API keys in its addresses."""
    return _URL_TAIL.sub(r"\g<origin>/…", _CREDENTIALS.sub(r"\g<scheme>", text))


def _redact_value(value: object) -> object:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {
            key: _REDACTED if _SECRET_FIELDS.search(str(key)) else _redact_value(item) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redact_value(item) for item in value]
    return value


def _redact_field(name: str, value: object) -> object:
    return _REDACTED if _SECRET_FIELDS.search(name) else _redact_value(value)


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if not key.startswith("_"):
            event[key] = _redact_field(key, value)
    return event


def _flatten_sdk_fields(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The SDK's descriptions of workflow and activity as the flat fields of our own lines."""
    described = event.pop("temporal_workflow", None)
    if isinstance(described, dict):
        event["workflow_id"] = described.get("workflow_id")
        event["workflow_run_id"] = described.get("run_id")
    event.pop("temporal_log", None)  # of the SDK's core: its message has the fields
    described = event.pop("temporal_activity", None)
    if isinstance(described, dict):
        event["workflow_id"] = described.get("workflow_id")
        event["workflow_run_id"] = described.get("workflow_run_id")
        event["activity"] = described.get("activity_type")
        event["activity_attempt"] = described.get("attempt")
    return event


def configure(*, level: str, log_format: str) -> None:
    """Send every log line of the process, including libraries', to standard error as `json` or `console`."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        _flatten_sdk_fields,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # The fields hold it already; the SDK would repeat them inside the message.
    workflow.logger.workflow_info_on_message = False
    activity.logger.activity_info_on_message = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *(processor for processor in shared if not isinstance(processor, structlog.stdlib.ExtraAdder)),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


class LogContext(Interceptor):
    """Binds attempt, account, workflow and activity to every line that an activity logs."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        """Wrap the activity."""
        return _LogContextInbound(next)


class _LogContextInbound(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        message = input.args[0] if input.args else None
        fields = {
            name: str(getattr(message, name))
            for name in CONTEXT_FIELDS
            if isinstance(message, BaseModel) and getattr(message, name, None) is not None
        }
        # Not unbound afterwards: the activity's task ends here, and the SDK logs its failure last.
        structlog.contextvars.bind_contextvars(
            workflow_id=info.workflow_id,
            workflow_run_id=info.workflow_run_id,
            activity=info.activity_type,
            activity_attempt=info.attempt,
            **fields,
        )
        return await super().execute_activity(input)
