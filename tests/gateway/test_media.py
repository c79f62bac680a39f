"""Images, speech and transcriptions, with OpenAI's package: held, charged by their units, and passed on as they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from io import BytesIO
from typing import TYPE_CHECKING, Any

import aiohttp
import psycopg
import pytest

from devstack.upstream import Behaviour
from devstack.upstream.dialects.media import BYTES_PER_WORD
from gateway.policy import REQUEST_BYTES_MAX, RateLimits
from tests.gateway.support import Answer, Served, chat, served, until
from tests.support.postgres import Database
from tests.support.sql import scalar

if TYPE_CHECKING:
    import openai

IMAGE_MODEL = "gpt-image-1"
"""In the price book, with the markup of 2: 100 credits for a token of input, 800 for one of output."""
SPEECH = {"model": "tts-1", "voice": "alloy", "input": "one two three"}
"""300 credits for a character."""
RECORDING = bytes(range(256)) * 12 + b"\r\n--no boundary\r\n\r\n"
"""31 tokens for the upstream, and so 3.1 seconds."""


@pytest.fixture
async def client(gateway: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    """The published package."""
    import openai

    async with openai.AsyncOpenAI(
        api_key=gateway.account.key, base_url=f"{gateway.client.url}/v1", max_retries=0
    ) as made:
        yield made


def lines(receipt: dict[str, Any]) -> dict[str, int]:
    """What a receipt counts, by unit."""
    return {line["unit"]: line["count"] for line in receipt["unit_prices"]["lines"]}


def recording(fields: Mapping[str, str], body: bytes) -> aiohttp.FormData:
    """A form with a recording."""
    form = aiohttp.FormData(fields)
    form.add_field("file", BytesIO(body), filename="a.mp3", content_type="audio/mpeg")
    return form


async def transcribe(gateway: Served, fields: Mapping[str, str] | None = None, *, body: bytes = RECORDING) -> Answer:
    """A form by another client than OpenAI's."""
    form = recording({"model": "whisper-1", **(fields or {})}, body)
    key = {"Authorization": f"Bearer {gateway.account.key}"}
    async with gateway.client.session.post(
        f"{gateway.client.url}/v1/audio/transcriptions", data=form, headers=key
    ) as response:
        return Answer(response.status, response.headers, await response.read())


# -- images


async def test_images_are_charged_at_the_tokens_that_they_take(gateway: Served, client: openai.AsyncOpenAI) -> None:
    answer = await client.images.generate(model=IMAGE_MODEL, prompt="a red cat", n=2, quality="low")
    assert answer.data is not None
    assert len(answer.data) == 2
    receipt = gateway.books.receipt()
    # What the upstream says of itself: "You said: a red cat", twice.
    assert lines(receipt) == {"input_tokens": 3, "output_tokens": 10}
    assert receipt["charged_credits"] == 3 * 100 + 10 * 800
    assert not receipt["estimated"]
    # 500 tokens for an image of low quality, and the request's bytes.
    [(state, held)] = gateway.books.holds()
    assert state == "captured"
    assert 1_000 * 800 < held < 1_000 * 800 + 50 * 100


async def test_a_streamed_image_is_charged_like_a_whole_one(gateway: Served, client: openai.AsyncOpenAI) -> None:
    stream = await client.images.generate(model=IMAGE_MODEL, prompt="a red cat", stream=True, partial_images=1)
    kinds = [event.type async for event in stream]
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]
    assert gateway.books.receipt()["charged_credits"] == 3 * 100 + 5 * 800


async def test_images_are_priced_by_the_image_where_the_file_of_upstreams_says_so(database: Database) -> None:
    prices = {"pictures": {"image_usd": "0.04"}}
    async with served(database, prices=prices) as gateway:
        gateway.upstream.order(Behaviour(usage="omit"))
        body = {"model": "pictures", "prompt": "a cat", "n": 3}
        answer = await gateway.client.post(body, "/v1/images/generations")
        assert answer.status == 200
        receipt = gateway.books.receipt()
        assert lines(receipt) == {"images": 3}
        assert Decimal(str(receipt["provider_cost_usd"])) == Decimal("0.12")
        assert receipt["charged_credits"] == 2_400_000 == int(answer.headers["X-Credits-Charged"])
        assert gateway.books.holds() == [("captured", 2_400_000)]
        # It is what was counted, whatever the upstream reports beside it.
        assert not receipt["estimated"]
        await gateway.client.post(body, "/v1/images/generations")
        assert [receipt["charged_credits"] for receipt in gateway.books.receipts()] == [2_400_000] * 2
        assert [receipt["estimated"] for receipt in gateway.books.receipts()] == [False] * 2


async def test_images_that_are_priced_by_tokens_too_are_estimated_without_usage(database: Database) -> None:
    prices = {"pictures": {"image_usd": "0.04", "input_per_million_usd": "1", "output_per_million_usd": "1"}}
    async with served(database, prices=prices) as gateway:
        gateway.upstream.order(Behaviour(usage="omit"))
        await gateway.client.post({"model": "pictures", "prompt": "a cat"}, "/v1/images/generations")
        receipt = gateway.books.receipt()
        assert receipt["estimated"]
        assert lines(receipt)["images"] == 1
        assert lines(receipt)["output_tokens"] == 7_000


async def test_images_and_the_tokens_that_they_take_are_charged_together(database: Database) -> None:
    prices = {"pictures": {"image_usd": "0.04", "input_per_million_usd": "1", "output_per_million_usd": "1"}}
    body = {"model": "pictures", "prompt": "a red cat", "n": 2, "quality": "low"}
    async with served(database, prices=prices) as gateway:
        for behaviour in (Behaviour(), Behaviour(usage="negative"), Behaviour(cost="number")):
            gateway.upstream.order(behaviour)
            await gateway.client.post(body, "/v1/images/generations")
        reported, implausible, stated = gateway.books.receipts()
    assert lines(reported) == {"images": 2, "input_tokens": 3, "output_tokens": 10}
    assert (reported["charged_credits"], reported["estimated"]) == (2 * (800_000 + 3 * 10 + 10 * 10), False)
    # What is counted is no report: tokens are estimated where theirs cannot be believed.
    assert lines(implausible)["output_tokens"] == 2 * 500
    assert (implausible["doubt"], implausible["estimated"]) == ("implausible_usage", True)
    assert lines(stated) == {"requests": 1}


async def test_images_without_usage_are_estimated_by_their_number(gateway: Served) -> None:
    gateway.upstream.order(Behaviour(usage="omit"))
    await gateway.client.post({"model": IMAGE_MODEL, "prompt": "a cat", "quality": "low"}, "/v1/images/generations")
    receipt = gateway.books.receipt()
    assert receipt["estimated"]
    assert receipt["output_tokens"] == 500
    assert receipt["charged_credits"] == 500 * 800 + receipt["input_tokens"] * 100 <= gateway.books.holds()[0][1]


async def test_a_model_without_a_price_makes_no_image(gateway: Served) -> None:
    answer = await gateway.client.post({"model": "dall-e-2", "prompt": "a cat"}, "/v1/images/generations")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert not gateway.calls()


async def test_an_image_is_not_made_without_credits_for_it(database: Database) -> None:
    async with served(database, cents=50) as gateway:
        answer = await gateway.client.post({"model": IMAGE_MODEL, "prompt": "a cat"}, "/v1/images/generations")
        # High quality is assumed: some 5,600,000 credits.
        assert (answer.status, answer.error["code"]) == (402, "insufficient_credits")
        assert not gateway.calls()


# -- speech


async def test_speech_is_charged_by_the_characters_that_are_read_out(
    gateway: Served, client: openai.AsyncOpenAI
) -> None:
    answer = await client.audio.speech.create(**SPEECH)  # type: ignore[arg-type]
    assert len(answer.content) == 5 * BYTES_PER_WORD
    assert answer.content.startswith(b"You...")
    assert answer.response.headers["content-type"] == "audio/mpeg"
    receipt = gateway.books.receipt()
    assert lines(receipt) == {"input_characters": 13}
    assert receipt["charged_credits"] == 13 * 300 == gateway.books.holds()[0][1]
    assert not receipt["estimated"]


async def test_speech_that_breaks_off_is_paid_by_the_platform(gateway: Served) -> None:
    gateway.upstream.order(Behaviour(tokens=8, tokens_per_second=50, break_after=4))
    with pytest.raises(aiohttp.ClientPayloadError):
        await gateway.client.post(SPEECH, "/v1/audio/speech")
    await gateway.is_quiet()
    receipt = gateway.books.receipt()
    assert receipt["charged_credits"] == 0
    assert Decimal(str(receipt["absorbed_cost_usd"])) == Decimal("0.000195")


async def test_speech_without_any_sound_is_none(gateway: Served) -> None:
    gateway.upstream.order(Behaviour(text="", delay=0.01))
    with pytest.raises(aiohttp.ClientPayloadError):
        await gateway.client.post(SPEECH, "/v1/audio/speech")
    await gateway.is_quiet()
    assert gateway.books.receipt()["charged_credits"] == 0


async def test_who_hangs_up_in_speech_pays_for_what_was_to_be_read_out(gateway: Served) -> None:
    gateway.upstream.order(Behaviour(tokens=50, tokens_per_second=50))
    async with gateway.client.open(SPEECH, "/v1/audio/speech") as response:
        await response.content.readexactly(BYTES_PER_WORD)
        response.close()
    await gateway.is_quiet()
    assert gateway.books.receipt()["charged_credits"] == 13 * 300
    await until(lambda: gateway.calls()[0].was_cancelled)


@pytest.mark.parametrize(
    ("fields", "charged", "estimated"),
    [
        # Twelve and 240 credits for a token of input and output.
        ({"stream_format": "sse"}, 3 * 12 + 5 * 240, False),
        # Bytes of sound say nothing of tokens: two for a character, as was held.
        ({}, 4 * 12 + 2 * 13 * 240, True),
    ],
    ids=["events", "sound"],
)
async def test_speech_that_is_priced_by_tokens(
    gateway: Served, fields: dict[str, str], charged: int, estimated: bool
) -> None:
    answer = await gateway.client.post({**SPEECH, "model": "gpt-4o-mini-tts", **fields}, "/v1/audio/speech")
    assert answer.status == 200
    receipt = gateway.books.receipt()
    assert (receipt["charged_credits"], receipt["estimated"]) == (charged, estimated)
    assert receipt["output_tokens"] == (2 * 13 if estimated else 5)
    if fields:
        assert answer.comment["charged"] == str(charged)


@pytest.mark.parametrize("text", [None, "", 7, ["a"]])
async def test_speech_needs_a_text(gateway: Served, text: object) -> None:
    answer = await gateway.client.post({**SPEECH, "input": text}, "/v1/audio/speech")
    assert (answer.status, answer.error["param"]) == (400, "input")


async def test_an_error_in_the_place_of_speech_costs_nothing(gateway: Served) -> None:
    gateway.upstream.order(Behaviour(status=400))
    answer = await gateway.client.post(SPEECH, "/v1/audio/speech")
    assert answer.status == 400
    assert answer.headers["X-Credits-Charged"] == "0"
    assert gateway.books.states() == ["voided"]


# -- transcriptions


async def test_a_recording_is_charged_by_its_length(gateway: Served, client: openai.AsyncOpenAI) -> None:
    answer = await client.audio.transcriptions.create(model="whisper-1", file=("a.mp3", RECORDING), prompt="one two")
    assert answer.text == "You said: one two"
    receipt = gateway.books.receipt()
    # Each second that has begun, at 2,000 credits.
    assert lines(receipt) == {"input_audio_seconds": 4}
    assert receipt["charged_credits"] == 4 * 2_000
    assert not receipt["estimated"]
    [call] = gateway.calls()
    assert RECORDING in call.body
    assert call.generation is not None
    assert call.generation.asked.file_bytes == len(RECORDING)


async def test_a_recording_is_charged_by_tokens_where_it_is_priced_so(
    gateway: Served, client: openai.AsyncOpenAI
) -> None:
    model = "gpt-4o-transcribe"
    answer = await client.audio.transcriptions.create(model=model, file=("a.mp3", RECORDING), prompt="one")
    assert answer.text == "You said: one"
    stream = await client.audio.transcriptions.create(model=model, file=("a.mp3", RECORDING), prompt="one", stream=True)
    text = "".join([event.delta async for event in stream if event.type == "transcript.text.delta"])
    assert text == "You said: one"
    for receipt in gateway.books.receipts():
        assert lines(receipt) == {"input_audio_tokens": 31, "output_tokens": 3}
        assert receipt["charged_credits"] == 31 * 120 + 3 * 200


@pytest.mark.parametrize(
    ("fields", "behaviour", "seconds", "estimated"),
    [
        ({"response_format": "verbose_json"}, {}, 4, False),
        ({}, {"usage": "omit"}, 1, True),
    ],
    ids=["its length beside the text", "by its bytes"],
)
async def test_a_recording_whose_usage_is_not_reported(
    gateway: Served, fields: dict[str, str], behaviour: dict[str, Any], seconds: int, estimated: bool
) -> None:
    gateway.upstream.order(Behaviour(**behaviour))
    assert (await transcribe(gateway, fields)).status == 200
    receipt = gateway.books.receipt()
    assert (lines(receipt), receipt["estimated"]) == ({"input_audio_seconds": seconds}, estimated)
    assert receipt["charged_credits"] == seconds * 2_000


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"response_format": "srt"}, "response_format"), ({"api_base": "http://elsewhere"}, "api_base")],
)
async def test_forms_have_rules_of_their_own(gateway: Served, fields: dict[str, str], param: str) -> None:
    answer = await transcribe(gateway, fields)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert not gateway.calls()


async def test_a_form_names_no_account_without_the_right(gateway: Served) -> None:
    answer = await transcribe(gateway, {"attribute_to": "another"})
    assert (answer.status, answer.error["code"]) == (403, "attribution_not_allowed")


async def test_a_recording_that_is_too_long_is_refused(gateway: Served) -> None:
    answer = await transcribe(gateway, body=bytes(REQUEST_BYTES_MAX))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


# -- the end


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        ("/v1/audio/speech", SPEECH, b"three"),
        ("/v1/audio/speech", {**SPEECH, "model": "gpt-4o-mini-tts", "stream_format": "sse"}, b"speech.audio.done"),
        ("/v1/images/generations", {"model": IMAGE_MODEL, "prompt": "cat", "stream": True}, b"generation.completed"),
        ("/v1/audio/transcriptions", None, b"transcript.text.done"),
    ],
    ids=["sound", "speech", "image", "transcription"],
)
async def test_the_end_of_an_answer_waits_for_the_charge(
    gateway: Served, path: str, body: dict[str, Any] | None, last: bytes
) -> None:
    content: Any = json.dumps(body) if body else recording({"model": "gpt-4o-transcribe", "stream": "true"}, RECORDING)
    # Each event, or piece of sound, comes alone.
    gateway.upstream.order(Behaviour(tokens_per_second=50))
    key = {"Authorization": f"Bearer {gateway.account.key}"}
    async with await psycopg.AsyncConnection.connect(gateway.books.database.superuser_url) as other:
        await other.execute(NO_CHARGES)
        response = await gateway.client.session.post(gateway.client.url + path, data=content, headers=key)
        await until(lambda: scalar(gateway.books.database.superuser_url, WAITING))
        # What was written before is at the client's socket, and the loop's next turn reads it.
        came = await response.content.readany()
        await asyncio.sleep(0)
        came += response.content.read_nowait()
        assert last not in came
        await other.rollback()
        assert last in await response.read()
        response.release()
    assert gateway.books.states() == ["captured"]


NO_CHARGES = "LOCK TABLE charge_receipts IN EXCLUSIVE MODE"
"""Credits are held, and no charge is written, until this transaction ends."""
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


# -- rates


async def test_images_and_audio_have_rate_limits_of_their_own(database: Database) -> None:
    async with served(database, rate_limits=RateLimits(chat=600, embeddings=600, images=1, audio=1)) as gateway:
        image = {"model": IMAGE_MODEL, "prompt": "a cat", "quality": "low"}
        for path, body in (("/v1/images/generations", image), ("/v1/audio/speech", SPEECH)):
            statuses = [(await gateway.client.post(body, path)).status for _ in range(2)]
            assert statuses == [200, 429]
        assert (await transcribe(gateway)).status == 429
        assert (await gateway.client.post(chat())).status == 200
        assert json.loads((await gateway.client.get("/v1/credits")).body)["heldCredits"] == 0
