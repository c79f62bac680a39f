"""Calls that an external proxy has made, as LiteLLM's standard logging payload reports them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote

from domain.billing.charges import CallEnd
from domain.billing.exact_json import NotJson, require_json
from domain.billing.usage import Dialect, ImplausibleUsage, Usage, read_usage

SOURCE_SYSTEM: Final = "litellm"

ITEMS_MAX: Final = 10_000
REFERENCE_CHARS_MAX: Final = 500
TEXT_CHARS_MAX: Final = 500
NAMELESS: Final = frozenset({"", "None", "null"})
"""What proxies write where they have no id."""


class InvalidItem(ValueError):
    """An item cannot be charged; the message says what is wrong with it."""


class _NotANumber:
    """NaN or Infinity, which is not JSON: refused in the item that has it, not in all others of a list."""


@dataclass(frozen=True, slots=True)
class IngestedCall:
    """One call to charge, or to pass over."""

    reference: str
    body_hash: bytes
    request_id: str
    billing_account_id: str
    model: str
    provider: str
    upstream_id: str | None
    called_at: datetime | None
    """None where the payload does not say: when it is booked."""
    end: CallEnd
    report: Usage | ImplausibleUsage
    is_cached: bool
    """The proxy answered from its own cache: no provider took anything."""
    is_nothing: bool
    """A failure that cost nothing."""


def read_items(body: bytes) -> tuple[list[Any], bool]:
    """The items of a body, and whether it was a list. Numbers are exact decimals. Raises `NotJson`."""
    decoder = json.JSONDecoder(parse_float=Decimal, parse_constant=lambda _: _NotANumber())
    try:
        document = decoder.decode(require_json(body))
    except NotJson:
        raise
    except ValueError:
        # An integer of thousands of digits is refused by Python itself.
        raise NotJson("a number has too many digits") from None
    if not isinstance(document, list):
        return [document], False
    if len(document) > ITEMS_MAX:
        raise NotJson(f"{len(document)} items: expected at most {ITEMS_MAX}")
    return document, True


def read_call(item: Any) -> IngestedCall:
    """Read one payload. Raises `InvalidItem`."""
    if not isinstance(item, Mapping):
        raise InvalidItem(f"the item is {type(item).__name__}: expected an object")
    if any(isinstance(value, _NotANumber) for value in _values(item)):
        raise InvalidItem("NaN and Infinity are not JSON")
    body_hash = sha256(_canonical(item)).digest()
    upstream_id, trace_id = _name(item, "id"), _name(item, "trace_id")
    metadata = item.get("metadata")
    account = _text(metadata, "billing_account_id") if isinstance(metadata, Mapping) else None
    account = account or _text(item, "end_user")
    if account is None:
        raise InvalidItem("metadata.billing_account_id, or end_user, is missing: expected the account to charge")
    model = _text(item, "model") or _text(item, "model_group")
    if model is None:
        raise InvalidItem("model is missing")
    reference = _reference(upstream_id, trace_id, item.get("startTime"), body_hash)
    is_failure = item.get("status") == "failure"
    report = _report(item)
    return IngestedCall(
        reference=reference,
        body_hash=body_hash,
        request_id=upstream_id or trace_id or reference,
        billing_account_id=account,
        model=model,
        provider=_text(item, "custom_llm_provider") or SOURCE_SYSTEM,
        upstream_id=upstream_id,
        called_at=_moment(item.get("startTime")),
        end=_end(report) if is_failure else CallEnd.COMPLETED,
        report=report,
        is_cached=item.get("cache_hit") in (True, "True", "true"),
        is_nothing=is_failure and isinstance(report, Usage) and not report.stated_cost_usd,
    )


def _end(report: Usage | ImplausibleUsage) -> CallEnd:
    """Of a failure: whether the caller had got a part of the answer."""
    has_output = isinstance(report, Usage) and report.output_tokens > 0
    return CallEnd.UPSTREAM_BROKE if has_output else CallEnd.ERROR_ONLY


def _report(item: Mapping[str, Any]) -> Usage | ImplausibleUsage:
    """Tokens and cost, in the shape in which an answer reports them; parts of the tokens from the usage object."""
    metadata = item.get("metadata")
    usage = metadata.get("usage_object") if isinstance(metadata, Mapping) else None
    details = {
        name: usage[name]
        for name in ("prompt_tokens_details", "completion_tokens_details")
        if isinstance(usage, Mapping) and isinstance(usage.get(name), Mapping)
    }
    try:
        return (
            read_usage(
                Dialect.CHAT,
                {
                    "prompt_tokens": item.get("prompt_tokens") or 0,
                    "completion_tokens": item.get("completion_tokens") or 0,
                    **details,
                    "cost": item.get("response_cost"),
                },
            )
            or Usage()
        )
    except ImplausibleUsage as error:
        return error


def _reference(upstream_id: str | None, trace_id: str | None, started: Any, body_hash: bytes) -> str:
    """The call's identity. Ids alone are none: proxies send the same for many calls. Without any, the body is it."""
    parts = [upstream_id or "", trace_id or "", "" if started is None else str(started)]
    if upstream_id is None and trace_id is None:
        parts.append(body_hash.hex())
    reference = ":".join(quote(part, safe="") for part in parts)
    return reference if len(reference) <= REFERENCE_CHARS_MAX else f"sha256:{sha256(reference.encode()).hexdigest()}"


def _name(item: Mapping[str, Any], field: str) -> str | None:
    """An id, or None where it is no name of anything."""
    value = item.get(field)
    return None if value is None or str(value).strip() in NAMELESS else str(value)


def _text(item: Mapping[str, Any], field: str) -> str | None:
    value = item.get(field)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > TEXT_CHARS_MAX or "\x00" in value:
        raise InvalidItem(f"{field} is {value!r:.80}: expected text of at most {TEXT_CHARS_MAX} characters")
    return value


def _moment(started: Any) -> datetime | None:
    """`startTime`: seconds since 1970, or ISO 8601."""
    if started is None:
        return None
    try:
        if isinstance(started, str):
            moment = datetime.fromisoformat(started)
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if isinstance(started, int | Decimal) and not isinstance(started, bool):
            # The fraction of a second is a time, not money.
            return datetime.fromtimestamp(float(started), UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise InvalidItem(f"startTime is {started!r:.80}: expected seconds since 1970, or ISO 8601")


def _canonical(item: Mapping[str, Any]) -> bytes:
    return json.dumps(item, sort_keys=True, separators=(",", ":"), default=str).encode()


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _values(one)
    elif isinstance(value, list):
        for one in value:
            yield from _values(one)
    else:
        yield value
