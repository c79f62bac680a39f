"""What was billed, in the shapes in which providers report it.

- OpenAI: `GET /v1/organization/costs`, for chat, completions, responses and embeddings
- Anthropic: `GET /v1/organizations/cost_report`, for messages
- OpenRouter: `GET /activity` (the last 30 days without today) and `GET /generation?id=`
- LiteLLM: `GET /spend/logs`, by request, by day, or one row for each call
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

from devstack.upstream.prices import price_of
from devstack.upstream.raw_json import decimal
from devstack.upstream.records import Call, Records, Sum
from devstack.upstream.requests import Dialect, RequestError

DAY: Final = timedelta(days=1)
ACTIVITY_DAYS: Final = 30
_OPENAI_BUCKETS: Final = (7, 180)
"""Buckets in one page: as many by default, and at most."""
_ANTHROPIC_BUCKETS: Final = (7, 31)
_LINE_ITEMS: Final = {
    "input": "input",
    "cached": "cached input",
    "cache_write": "cache write input",
    "output": "output",
}
_TOKEN_TYPES: Final = {
    "input": ("uncached_input_tokens", "Input Tokens"),
    "cached": ("cache_read_input_tokens", "Input Tokens, Cache Read"),
    "cache_write": ("cache_creation.ephemeral_5m_input_tokens", "Input Tokens, Cache Write 5m"),
    "output": ("output_tokens", "Output Tokens"),
}

Query = Mapping[str, str]
Groups = frozenset[str]


# -- pages of daily buckets


def _page(
    query: Query, start: date, end: date, sizes: tuple[int, int], bucket: Callable[[date], dict[str, Any]]
) -> dict[str, Any]:
    default, most = sizes
    size = _integer(query, "limit", default)
    if not 1 <= size <= most:
        raise RequestError(f"invalid value for 'limit': {size}: expected 1 to {most}", "limit")
    try:
        first = date.fromisoformat(query["page"].removeprefix("page_")) if "page" in query else start
    except ValueError:
        raise RequestError(f"invalid value for 'page': {query['page']!r}", "page") from None
    days = [first + n * DAY for n in range(min(size, max(0, (end - first).days)))]
    following = first + len(days) * DAY
    has_more = following < end
    return {
        "data": [bucket(day) for day in days],
        "has_more": has_more,
        "next_page": f"page_{following.isoformat()}" if has_more else None,
    }


def _integer(query: Query, name: str, default: int | None) -> int:
    text = query.get(name)
    if text is None:
        if default is None:
            raise RequestError(f"missing required parameter: '{name}'", name)
        return default
    try:
        return int(text)
    except ValueError:
        raise RequestError(f"invalid value for '{name}': {text!r}: expected an integer", name) from None


def _moment(query: Query, name: str) -> datetime | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise RequestError(f"invalid value for '{name}': {text!r}: expected an RFC 3339 timestamp", name) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _tomorrow() -> date:
    return datetime.now(UTC).date() + DAY


def _until(moment: datetime | None) -> date:
    """The day after the last one that a range, whose end is exclusive, has a part of."""
    if moment is None:
        return _tomorrow()
    last = moment.astimezone(UTC)
    return last.date() if last.time() == time.min else last.date() + DAY


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)


def _parts(sums: Iterable[Sum]) -> dict[tuple[str, str], Decimal]:
    """USD by model and kind of token, without what is zero."""
    found: dict[tuple[str, str], Decimal] = {}
    for total in sums:
        for kind, usd in price_of(total.model).parts(total.tokens).items():
            if usd:
                found[total.model, kind] = found.get((total.model, kind), Decimal(0)) + usd
    return found


def openai_costs(records: Records, query: Query, groups: Groups) -> dict[str, Any]:
    """A page of costs by day; `start_time` and `end_time` are Unix seconds. Raises `RequestError`."""
    start = datetime.fromtimestamp(_integer(query, "start_time", None), UTC).date()
    end = datetime.fromtimestamp(_integer(query, "end_time", 0), UTC) if "end_time" in query else None
    sums = [total for total in records.sums() if total.dialect is not Dialect.MESSAGES]

    def result(usd: Decimal, line_item: str | None) -> dict[str, Any]:
        return {
            "object": "organization.costs.result",
            "amount": {"value": decimal(usd), "currency": "usd"},
            "line_item": line_item,
            "project_id": "proj_devstack" if "project_id" in groups else None,
            "organization_id": "org-devstack",
        }

    def bucket(day: date) -> dict[str, Any]:
        parts = _parts(total for total in sums if total.day == day)
        if "line_item" in groups:
            results = [result(usd, f"{model}, {_LINE_ITEMS[kind]}") for (model, kind), usd in parts.items()]
        else:
            results = [result(sum(parts.values(), Decimal(0)), None)] if parts else []
        return {
            "object": "bucket",
            "start_time": int(_midnight(day).timestamp()),
            "end_time": int(_midnight(day + DAY).timestamp()),
            "results": results,
        }

    return {"object": "page", **_page(query, start, _until(end), _OPENAI_BUCKETS, bucket)}


def anthropic_costs(records: Records, query: Query, groups: Groups) -> dict[str, Any]:
    """A page of costs by day, in cents as decimal text. Raises `RequestError`."""
    start = _moment(query, "starting_at")
    if start is None:
        raise RequestError("starting_at: Field required", "starting_at")
    sums = [total for total in records.sums() if total.dialect is Dialect.MESSAGES]

    def result(usd: Decimal, of: tuple[str, str] | None) -> dict[str, Any]:
        token_type, name = _TOKEN_TYPES[of[1]] if of else (None, "")
        return {
            "amount": format((usd * 100).normalize(), "f"),
            "context_window": "0-200k" if of else None,
            "cost_type": "tokens" if of else None,
            "currency": "USD",
            "description": f"{of[0]} Usage - {name}" if of else None,
            "inference_geo": None,
            "model": of[0] if of else None,
            "service_tier": "standard" if of else None,
            "speed": None,
            "token_type": token_type,
            "workspace_id": None,
        }

    def bucket(day: date) -> dict[str, Any]:
        parts = _parts(total for total in sums if total.day == day)
        if "description" in groups:
            results = [result(usd, of) for of, usd in parts.items()]
        else:
            results = [result(sum(parts.values(), Decimal(0)), None)] if parts else []
        return {
            "starting_at": _midnight(day).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "ending_at": _midnight(day + DAY).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "results": results,
        }

    first = start.astimezone(UTC).date()
    return _page(query, first, _until(_moment(query, "ending_at")), _ANTHROPIC_BUCKETS, bucket)


# -- OpenRouter


def openrouter_activity(records: Records, query: Query) -> dict[str, Any]:
    """Activity by day and model, of completed days only. Raises `RequestError`."""
    today = datetime.now(UTC).date()
    if "date" in query:
        try:
            days = {date.fromisoformat(query["date"])}
        except ValueError:
            raise RequestError("Invalid date format. Expected YYYY-MM-DD.", "date") from None
    else:
        days = {today - n * DAY for n in range(1, ACTIVITY_DAYS + 1)}
    rows = [
        {
            "date": total.day.isoformat(),
            "model": total.model,
            "model_permaslug": total.model,
            "endpoint_id": hashlib.md5(f"{total.model} {total.dialect}".encode(), usedforsecurity=False).hexdigest(),
            "provider_name": "Devstack",
            "usage": decimal(total.usd),
            "byok_usage_inference": 0,
            "requests": total.requests,
            "prompt_tokens": total.tokens.prompt,
            "completion_tokens": total.tokens.output,
            "reasoning_tokens": total.tokens.reasoning,
        }
        for total in records.sums()
        if total.day in days and total.day < today
    ]
    return {"data": rows}


def openrouter_generation(call: Call) -> dict[str, Any]:
    """The record of one generation."""
    generation = call.generation
    assert generation is not None
    took_ms = round(((call.ended_at or call.received_at) - call.received_at) * 1000)
    tokens = call.billed
    return {
        "data": {
            "id": generation.id,
            "upstream_id": generation.shown_id,
            "total_cost": decimal(call.billed_usd),
            "usage": decimal(call.billed_usd),
            "upstream_inference_cost": None,
            "cache_discount": None,
            "created_at": call.started.isoformat(),
            "model": generation.asked.model,
            "app_id": None,
            "streamed": generation.asked.stream,
            "cancelled": call.was_cancelled,
            "provider_name": "Devstack",
            "latency": took_ms,
            "moderation_latency": None,
            "generation_time": took_ms,
            "finish_reason": None if call.was_cancelled else generation.finish,
            "native_finish_reason": None if call.was_cancelled else generation.finish,
            "tokens_prompt": tokens.prompt,
            "tokens_completion": tokens.output,
            "native_tokens_prompt": tokens.prompt,
            "native_tokens_completion": tokens.output,
            "native_tokens_completion_images": 0,
            "native_tokens_reasoning": tokens.reasoning,
            "native_tokens_cached": tokens.cached,
            "num_media_prompt": None,
            "num_input_audio_prompt": None,
            "num_media_completion": None,
            "num_search_results": None,
            "origin": "",
            "is_byok": False,
            "external_user": None,
            "api_type": "completions",
            "router": None,
        }
    }


# -- LiteLLM


def litellm_row(call: Call) -> dict[str, Any]:
    """A row of its spend log."""
    generation = call.generation
    assert generation is not None
    ended = call.started + timedelta(seconds=(call.ended_at or call.received_at) - call.received_at)
    return {
        "request_id": generation.shown_id,
        "call_type": "acompletion",
        "api_key": hashlib.sha256(b"devstack").hexdigest(),
        "spend": decimal(call.billed_usd),
        "total_tokens": call.billed.total,
        "prompt_tokens": call.billed.prompt,
        "completion_tokens": call.billed.output,
        "startTime": _iso_z(call.started),
        "endTime": _iso_z(ended),
        "completionStartTime": _iso_z(call.started),
        "model": generation.asked.model,
        "model_id": "",
        "model_group": generation.asked.model,
        "custom_llm_provider": "openai",
        "api_base": "",
        "user": "default_user_id",
        "metadata": {"usage_object": {"cached_tokens": call.billed.cached}},
        "cache_hit": "False",
        "cache_key": "Cache OFF",
        "request_tags": [],
        "team_id": None,
        "end_user": "",
        "requester_ip_address": None,
        "session_id": None,
        "status": "success",
    }


def _iso_z(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def litellm_spend_logs(records: Records, query: Query) -> list[Any]:
    """By `request_id` (`[null]` where there is none), by day, or every row. Raises `RequestError`."""
    if "start_date" in query and "end_date" in query:
        try:
            first, last = (date.fromisoformat(query[name]) for name in ("start_date", "end_date"))
        except ValueError:
            raise RequestError("start_date and end_date: expected YYYY-MM-DD") from None
        # The end of the range is the first moment of its last day, which is what LiteLLM does.
        rows = [call for call in _billed(records) if _midnight(first) <= call.started <= _midnight(last)]
        if query.get("summarize", "true").lower() == "false":
            return [litellm_row(call) for call in sorted(rows, key=lambda call: call.started, reverse=True)]
        return _by_day(rows, last)
    if "request_id" in query:
        found = records.look_up(query["request_id"])
        return [litellm_row(found) if found else None]
    return [litellm_row(call) for call in _billed(records)]


def _billed(records: Records) -> Iterable[Call]:
    return (call for call in records.calls() if call.has_ended and call.is_billed and call.generation)


def _by_day(rows: Iterable[Call], last: date) -> list[dict[str, Any]]:
    """A sum for each day with calls, and zeros from there to the last day."""
    days: dict[date, list[dict[str, Any]]] = {}
    usd_of: dict[date, dict[str, Decimal]] = {}
    for call in rows:
        row = litellm_row(call)
        days.setdefault(call.day, []).append(row)
        by_model = usd_of.setdefault(call.day, {})
        by_model[row["model"]] = by_model.get(row["model"], Decimal(0)) + call.billed_usd
    found: list[dict[str, Any]] = []
    for day in sorted(days):
        row = days[day][0]
        total = decimal(sum(usd_of[day].values(), Decimal(0)))
        found.append(
            {
                "users": {row["user"]: total},
                "models": {model: decimal(usd) for model, usd in usd_of[day].items()},
                "spend": total,
                row["api_key"]: total,
                "startTime": day.isoformat(),
            }
        )
    if days:
        following = max(days) + DAY
        while following <= last:
            found.append({"startTime": following.isoformat(), "spend": 0, "users": {}, "models": {}})
            following += DAY
    return found
