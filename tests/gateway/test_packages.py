"""The published clients, unchanged: only address and key are other than the provider's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import TYPE_CHECKING

import pytest

from devstack.upstream import Behaviour
from devstack.upstream.generation import echo_of
from tests.gateway.support import MODEL, Served, served
from tests.support.postgres import Database

if TYPE_CHECKING:
    import anthropic
    import openai

pytestmark = pytest.mark.slow
"""Their imports alone take seconds. What the gateway answers is in the other files."""

HELLO = [{"role": "user", "content": "one two three"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@pytest.fixture
async def client(gateway: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's, with its own retries."""
    import openai

    async with openai.AsyncOpenAI(api_key=gateway.account.key, base_url=f"{gateway.client.url}/v1") as made:
        yield made


@pytest.fixture
async def claude(gateway: Served) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Anthropic's."""
    import anthropic

    async with anthropic.AsyncAnthropic(api_key=gateway.account.key, base_url=gateway.client.url) as made:
        yield made


async def test_chat(gateway: Served, client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HELLO)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == echo_of("one two three")
    assert answer._request_id == gateway.books.receipt()["request_id"]
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)  # type: ignore[arg-type]
    assert isinstance(stream, AsyncIterable)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == echo_of("one two three")
    tools = await client.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS)  # type: ignore[arg-type]
    assert tools.choices[0].message.tool_calls[0].function.name == "weather"  # type: ignore[index,union-attr]
    assert gateway.books.states() == ["captured"] * 3


async def test_the_synchronous_client(gateway: Served) -> None:
    import openai

    def call() -> str | None:
        with openai.OpenAI(api_key=gateway.account.key, base_url=f"{gateway.client.url}/v1") as made:
            return made.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content  # type: ignore[arg-type]

    assert await asyncio.to_thread(call) == echo_of("one two three")


async def test_responses_as_codex_speaks_them(gateway: Served, client: openai.AsyncOpenAI) -> None:
    stream = await client.responses.create(model=MODEL, input="one two three", stream=True, store=False)
    events = [event async for event in stream]
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == echo_of("one two three")
    assert gateway.books.receipt()["output_tokens"] == events[-1].response.usage.output_tokens  # type: ignore[union-attr]


async def test_embeddings_and_models(client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="text-embedding-3-small", input="one two three")
    assert len(answer.data) == 1
    assert MODEL in [model.id async for model in client.models.list()]
    assert (await client.models.retrieve(MODEL)).id == MODEL


async def test_messages(gateway: Served, claude: anthropic.AsyncAnthropic) -> None:
    answer = await claude.messages.create(model=MODEL, max_tokens=50, messages=HELLO)  # type: ignore[arg-type]
    assert answer.content[0].text == echo_of("one two three")  # type: ignore[union-attr]
    assert answer._request_id == gateway.books.receipt()["request_id"]
    async with claude.messages.stream(model=MODEL, max_tokens=50, messages=HELLO) as stream:  # type: ignore[arg-type]
        assert await stream.get_final_text() == echo_of("one two three")
    assert gateway.books.states() == ["captured"] * 2


async def test_no_money_is_never_retried(database: Database) -> None:
    import anthropic
    import openai

    async with served(database, cents=0) as gateway:
        async with openai.AsyncOpenAI(api_key=gateway.account.key, base_url=f"{gateway.client.url}/v1") as client:
            with pytest.raises(openai.APIStatusError) as refused:
                await client.chat.completions.create(model=MODEL, messages=HELLO)  # type: ignore[arg-type]
        assert (refused.value.status_code, refused.value.code) == (402, "insufficient_credits")
        async with anthropic.AsyncAnthropic(api_key=gateway.account.key, base_url=gateway.client.url) as claude:
            with pytest.raises(anthropic.APIStatusError) as also:
                await claude.messages.create(model=MODEL, max_tokens=50, messages=HELLO)  # type: ignore[arg-type]
        assert also.value.status_code == 402
        assert not gateway.calls()


async def test_what_fails_for_a_moment_is_retried_and_charged_once(gateway: Served, client: openai.AsyncOpenAI) -> None:
    gateway.upstream.order(Behaviour(status=503, retry_after=0))
    answer = await client.chat.completions.create(model=MODEL, messages=HELLO)  # type: ignore[arg-type]
    assert answer.choices
    assert gateway.books.states() == ["voided", "captured"]


async def test_an_upstream_that_breaks_off_is_an_error_to_the_client(
    gateway: Served, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic
) -> None:
    import anthropic
    import openai

    gateway.upstream.order(Behaviour(tokens=50, break_after=10), requests=3)
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)  # type: ignore[arg-type]
    assert isinstance(stream, AsyncIterable)
    with pytest.raises(openai.APIError, match="broke off"):
        [chunk async for chunk in stream]
    events = await client.responses.create(model=MODEL, input="one", stream=True)
    # In a stream of responses an error is an event.
    assert [event async for event in events][-1].type == "error"
    with pytest.raises(anthropic.APIStatusError, match="broke off"):
        async with claude.messages.stream(model=MODEL, max_tokens=90, messages=HELLO) as messages:  # type: ignore[arg-type]
            await messages.get_final_text()
