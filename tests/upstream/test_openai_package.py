"""The `openai` package, as installed, accepts everything that the upstream says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter

from devstack.upstream.generation import echo_of
from tests.upstream.conftest import KEY, Running, in_thread

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletionChunk, ChatCompletionToolParam
    from openai.types.responses import FunctionToolParam

pytestmark = pytest.mark.slow
"""Its import alone takes seconds. What the upstream says is in the other files."""

MODEL = "gpt-5-mini"
SAID = "You said: Count these words please"  # 6 tokens for 4
USER: Any = [{"role": "user", "content": "Count these words please"}]
SCHEMA: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
CHAT_TOOL: ChatCompletionToolParam = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
TOOL: FunctionToolParam = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": False}
ARGUMENTS = {"city": "city", "days": 1}
CALL_TOKENS = 5  # get_weather {"city": "city", "days": 1}


def behaving(text: str = "Count these words please", **behaviour: Any) -> Any:
    return [{"role": "user", "content": f"!upstream {json.dumps(behaviour)} {text}"}]


async def test_a_chat_completion_and_its_usage(openai_client: openai.AsyncOpenAI) -> None:
    from openai.types.chat import ChatCompletion

    raw = await openai_client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "system", "content": "Be brief."}, *USER]
    )
    answer = raw.parse()
    ChatCompletion.model_validate(json.loads(raw.text), strict=True)
    assert answer.choices[0].message.content == SAID
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (6, 6, 12)
    assert answer._request_id == f"req_{answer.id}"


async def test_the_synchronous_client_too(running: Running) -> None:
    import openai

    def work() -> tuple[str | None, list[str]]:
        with openai.OpenAI(api_key=KEY, base_url=f"{running.url}/v1", max_retries=0) as client:
            whole = client.chat.completions.create(model=MODEL, messages=USER)
            chunks = client.chat.completions.create(model=MODEL, messages=USER, stream=True)
            return whole.choices[0].message.content, [chunk.choices[0].delta.content or "" for chunk in chunks]

    whole, pieces = await in_thread(work)
    assert whole == "".join(pieces) == SAID


async def test_a_chat_stream_has_usage_only_where_it_is_asked_for(openai_client: openai.AsyncOpenAI) -> None:
    from openai.types.chat import ChatCompletionChunk

    async def chunks(**more: Any) -> list[ChatCompletionChunk]:
        stream = await openai_client.chat.completions.create(model=MODEL, messages=USER, stream=True, **more)
        return [chunk async for chunk in stream]

    plain = await chunks()
    assert all(chunk.usage is None and chunk.choices for chunk in plain)
    *content, last = await chunks(stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in content) == SAID
    assert content[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (4, 6)
    assert len({chunk.id for chunk in (*content, last)}) == 1
    for chunk in (*content, last):
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)


async def test_choices_are_counted_each_and_the_prompt_once(openai_client: openai.AsyncOpenAI) -> None:
    answer = await openai_client.chat.completions.create(model=MODEL, messages=USER, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 18)
    stream = await openai_client.chat.completions.create(
        model=MODEL, messages=USER, n=3, stream=True, stream_options={"include_usage": True}
    )
    texts = {0: "", 1: "", 2: ""}
    usage = None
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
        usage = chunk.usage or usage
    assert set(texts.values()) == {SAID}
    assert usage
    assert usage.completion_tokens == 18


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_ends_at_its_limit(openai_client: openai.AsyncOpenAI, limit: str) -> None:
    limits: Any = {limit: 3}
    answer = await openai_client.chat.completions.create(model=MODEL, messages=USER, **limits)
    assert answer.choices[0].message.content == "You said: Count"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.completion_tokens == 3


async def test_chat_tools_are_called_and_their_results_answered(openai_client: openai.AsyncOpenAI) -> None:
    answer = await openai_client.chat.completions.create(model=MODEL, messages=USER, tools=[CHAT_TOOL])
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls
    call = message.tool_calls[0]
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == ARGUMENTS
    assert answer.usage
    assert answer.usage.completion_tokens == CALL_TOKENS
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "rain again"}
    history: Any = [*USER, message.model_dump(exclude_none=True), result]
    after = await openai_client.chat.completions.create(model=MODEL, messages=history, tools=[CHAT_TOOL])
    assert after.choices[0].message.content == SAID
    none = await openai_client.chat.completions.create(
        model=MODEL, messages=USER, tools=[CHAT_TOOL], tool_choice="none"
    )
    assert none.choices[0].message.content == SAID


async def test_a_chat_stream_with_tools_is_put_together_by_the_package(openai_client: openai.AsyncOpenAI) -> None:
    async with openai_client.chat.completions.stream(
        model=MODEL, messages=behaving(tool_calls=2), tools=[CHAT_TOOL], stream_options={"include_usage": True}
    ) as stream:
        answer = await stream.get_final_completion()
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert [json.loads(call.function.arguments) for call in calls] == [ARGUMENTS, ARGUMENTS]
    assert len({call.id for call in calls}) == 2
    assert answer.usage
    assert answer.usage.completion_tokens == 2 * CALL_TOKENS


async def test_cached_cache_write_and_reasoning_tokens(openai_client: openai.AsyncOpenAI) -> None:
    messages = behaving(prompt_tokens=1000, cached_tokens=600, cache_write_tokens=100, reasoning_tokens=20, tokens=5)
    chat = await openai_client.chat.completions.create(model=MODEL, messages=messages)
    assert chat.usage
    assert chat.usage.prompt_tokens_details
    assert chat.usage.completion_tokens_details
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (1000, 25)
    assert chat.usage.prompt_tokens_details.cached_tokens == 600
    assert chat.usage.completion_tokens_details.reasoning_tokens == 20
    answer = await openai_client.responses.create(model=MODEL, input=messages)
    assert answer.usage
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (1000, 25)
    assert answer.usage.input_tokens_details.cached_tokens == 600
    assert answer.usage.input_tokens_details.cache_write_tokens == 100
    assert answer.usage.output_tokens_details.reasoning_tokens == 20
    assert [item.type for item in answer.output] == ["reasoning", "message"]


async def test_a_legacy_completion(openai_client: openai.AsyncOpenAI) -> None:
    answer = await openai_client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Once upon a time")
    assert answer.choices[0].text == echo_of("Once upon a time")
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 6)
    stream = await openai_client.completions.create(
        model="gpt-3.5-turbo-instruct", prompt="Once", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "You said: Once"
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 3


async def test_a_response_and_its_usage(openai_client: openai.AsyncOpenAI) -> None:
    from openai.types.responses import Response

    raw = await openai_client.responses.with_raw_response.create(
        model=MODEL, instructions="Be brief.", input="Count these words please"
    )
    answer = raw.parse()
    Response.model_validate(json.loads(raw.text))
    assert answer.output_text == SAID
    assert answer.status == "completed"
    assert answer.usage
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (6, 6, 12)
    short = await openai_client.responses.create(model=MODEL, input="Count these words please", max_output_tokens=2)
    assert short.status == "incomplete"
    assert short.incomplete_details
    assert short.incomplete_details.reason == "max_output_tokens"
    assert short.output_text == "You said:"


async def test_every_event_of_a_response_stream_is_one_that_the_package_knows(
    openai_client: openai.AsyncOpenAI,
) -> None:
    from openai.types.responses import ResponseStreamEvent

    known: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
    for tools in ([], [TOOL]):
        stream = await openai_client.responses.create(
            model=MODEL, input=behaving(reasoning_tokens=7), tools=tools, stream=True
        )
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
        for event in events:
            known.validate_python(event.model_dump(by_alias=True))


async def test_a_response_stream_with_tools_is_put_together_by_the_package(openai_client: openai.AsyncOpenAI) -> None:
    async with openai_client.responses.stream(model=MODEL, input="Weather?", tools=[TOOL]) as stream:
        async for _ in stream:
            pass
        answer = await stream.get_final_response()
    call = answer.output[0]
    assert call.type == "function_call"
    assert json.loads(call.arguments) == ARGUMENTS
    assert answer.usage
    assert answer.usage.output_tokens == CALL_TOKENS
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    history: Any = [{"role": "user", "content": "Weather?"}, call.model_dump(exclude_none=True), result]
    after = await openai_client.responses.create(model=MODEL, input=history, tools=[TOOL])
    assert after.output_text == "You said: Weather?"


async def test_embeddings_of_one_text_are_equal_and_of_unit_length(openai_client: openai.AsyncOpenAI) -> None:
    answer = await openai_client.embeddings.create(
        model="text-embedding-3-small", input=["one two", "three"], dimensions=8
    )
    plain = await openai_client.embeddings.create(
        model="text-embedding-3-small", input="three", encoding_format="float", dimensions=8
    )
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 3
    assert answer.data[1].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert answer.data[0].embedding != answer.data[1].embedding
    assert sum(number**2 for number in plain.data[0].embedding) == pytest.approx(1)


async def test_models_are_listed(openai_client: openai.AsyncOpenAI) -> None:
    import openai

    models = [model.id async for model in openai_client.models.list()]
    assert MODEL in models
    assert (await openai_client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await openai_client.models.retrieve("none-such")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "BadRequestError"),
        (401, "AuthenticationError"),
        (404, "NotFoundError"),
        (429, "RateLimitError"),
        (500, "InternalServerError"),
        (503, "InternalServerError"),
    ],
)
async def test_errors_are_raised_as_the_packages_own(
    openai_client: openai.AsyncOpenAI, status: int, error: str
) -> None:
    import openai

    with pytest.raises(getattr(openai, error)) as raised:
        await openai_client.chat.completions.create(model=MODEL, messages=behaving(status=status))
    assert isinstance(raised.value.body, dict)
    assert set(raised.value.body) == {"message", "type", "param", "code"}
    assert raised.value.request_id


async def test_the_package_retries_what_the_answer_asks_for(running: Running) -> None:
    import openai

    order = {"behaviour": {"status": 503, "headers": [["retry-after-ms", "1"]]}, "requests": 2}
    assert (await running.post("/_control", order))[0] == 200
    async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{running.url}/v1", max_retries=2) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=USER)
    assert answer.choices[0].message.content == SAID
    assert [call.status for call in running.upstream.records.calls()] == [503, 503, 200]


async def test_an_error_in_mid_stream_is_raised_after_what_was_said(openai_client: openai.AsyncOpenAI) -> None:
    import openai

    said: list[str | None] = []
    stream = await openai_client.chat.completions.create(model=MODEL, messages=behaving(error_after=2), stream=True)

    async def read() -> None:
        async for chunk in stream:
            said.append(chunk.choices[0].delta.content)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(openai.APIError):
        await read()
    assert "".join(filter(None, said)) == "You said:"
    events = await openai_client.responses.create(model=MODEL, input=behaving(error_after=2), stream=True)
    last = [event async for event in events][-1]
    assert last.type == "response.failed"
    assert last.response.error
    assert last.response.error.code == "server_error"
