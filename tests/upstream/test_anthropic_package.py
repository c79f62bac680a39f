"""The `anthropic` package, as installed, accepts everything that the upstream says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter

from tests.upstream.conftest import KEY, Running, in_thread

# Importing the package takes two seconds.
pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    import anthropic
    from anthropic.types import Message, ToolParam

MODEL = "claude-haiku-4-5"
SAID = "You said: Count these words please"  # 6 tokens for 4
USER: Any = [{"role": "user", "content": "Count these words please"}]
SCHEMA: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOL: ToolParam = {"name": "get_weather", "input_schema": SCHEMA}
ARGUMENTS = {"city": "city", "days": 1}
CALL_TOKENS = 5  # get_weather {"city": "city", "days": 1}


def behaving(**behaviour: Any) -> Any:
    text = f"!upstream {json.dumps(behaviour)} Count these words please"
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


async def test_a_message_and_its_usage(anthropic_client: anthropic.AsyncAnthropic) -> None:
    from anthropic.types import Message

    raw = await anthropic_client.messages.with_raw_response.create(
        model=MODEL, max_tokens=100, system="Be brief.", messages=USER
    )
    answer = await raw.parse()
    Message.model_validate(json.loads(await raw.text()), strict=True)
    assert answer.content[0].type == "text"
    assert answer.content[0].text == SAID
    assert answer.stop_reason == "end_turn"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (6, 6)
    assert answer._request_id == f"req_{answer.id}"
    short = await anthropic_client.messages.create(model=MODEL, max_tokens=2, messages=USER)
    assert short.stop_reason == "max_tokens"
    assert short.usage.output_tokens == 2


async def test_the_synchronous_client_too(running: Running) -> None:
    import anthropic

    def work() -> tuple[str, Message]:
        with (
            anthropic.Anthropic(api_key=KEY, base_url=running.url, max_retries=0) as client,
            client.messages.stream(model=MODEL, max_tokens=100, messages=USER) as stream,
        ):
            return "".join(stream.text_stream), stream.get_final_message()

    text, message = await in_thread(work)
    assert text == SAID
    assert message.usage.output_tokens == 6


async def test_a_stream_has_the_events_in_their_order(anthropic_client: anthropic.AsyncAnthropic) -> None:
    from anthropic.types import RawMessageStreamEvent

    known: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
    stream = await anthropic_client.messages.create(model=MODEL, max_tokens=100, messages=USER, stream=True)
    events = [event async for event in stream]
    deltas = ["content_block_delta"] * 6
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        *deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    for event in events:
        known.validate_python(event.model_dump())
    assert events[0].type == "message_start"
    assert (events[0].message.usage.input_tokens, events[0].message.usage.output_tokens) == (4, 1)
    assert events[-2].type == "message_delta"
    assert events[-2].usage.output_tokens == 6


async def test_cached_cache_write_and_reasoning_tokens(anthropic_client: anthropic.AsyncAnthropic) -> None:
    messages = behaving(prompt_tokens=1000, cached_tokens=600, cache_write_tokens=100, reasoning_tokens=20, tokens=5)
    async with anthropic_client.messages.stream(model=MODEL, max_tokens=100, messages=messages) as stream:
        usage = (await stream.get_final_message()).usage
    assert (usage.input_tokens, usage.output_tokens) == (300, 25)
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (600, 100)
    assert usage.output_tokens_details
    assert usage.output_tokens_details.thinking_tokens == 20


async def test_tools_are_called_and_their_results_answered(anthropic_client: anthropic.AsyncAnthropic) -> None:
    whole = await anthropic_client.messages.create(model=MODEL, max_tokens=100, messages=USER, tools=[TOOL])
    async with anthropic_client.messages.stream(
        model=MODEL, max_tokens=100, messages=behaving(tool_calls=2), tools=[TOOL]
    ) as stream:
        streamed = await stream.get_final_message()
    for answer, calls in ((whole, 1), (streamed, 2)):
        assert answer.stop_reason == "tool_use"
        assert [block.type for block in answer.content] == ["tool_use"] * calls
        assert all(block.type == "tool_use" and block.input == ARGUMENTS for block in answer.content)
        assert answer.usage.output_tokens == calls * CALL_TOKENS
    assert whole.content[0].type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": whole.content[0].id, "content": "rain again"}
    history: Any = [*USER, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    after = await anthropic_client.messages.create(model=MODEL, max_tokens=100, messages=history, tools=[TOOL])
    assert after.content[0].type == "text"


async def test_models_are_listed_and_tokens_counted(anthropic_client: anthropic.AsyncAnthropic) -> None:
    assert MODEL in [model.id async for model in anthropic_client.models.list()]
    assert (await anthropic_client.models.retrieve(MODEL)).id == MODEL
    assert (await anthropic_client.messages.count_tokens(model=MODEL, messages=USER)).input_tokens == 4


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, "BadRequestError", "invalid_request_error"),
        (401, "AuthenticationError", "authentication_error"),
        (404, "NotFoundError", "not_found_error"),
        (429, "RateLimitError", "rate_limit_error"),
        (500, "InternalServerError", "api_error"),
        (529, "InternalServerError", "overloaded_error"),
    ],
)
async def test_errors_are_raised_as_the_packages_own(
    anthropic_client: anthropic.AsyncAnthropic, status: int, error: str, kind: str
) -> None:
    import anthropic

    with pytest.raises(getattr(anthropic, error)) as raised:
        await anthropic_client.messages.create(model=MODEL, max_tokens=9, messages=behaving(status=status))
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["type"] == "error"
    assert raised.value.body["error"]["type"] == kind
    assert raised.value.request_id


async def test_an_error_in_mid_stream_is_raised_after_what_was_said(
    anthropic_client: anthropic.AsyncAnthropic,
) -> None:
    import anthropic

    said: list[str] = []

    async def read() -> None:
        async with anthropic_client.messages.stream(
            model=MODEL, max_tokens=100, messages=behaving(error_after=2)
        ) as stream:
            async for text in stream.text_stream:
                said.append(text)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
        await read()
    assert "".join(said) == "You said:"
