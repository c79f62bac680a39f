"""A call's request: what is read of it, what is refused, and that the rest is passed on as it came."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.billing.requests import REFUSED_FIELDS, InvalidRequest, RequestBody, parse_request
from domain.billing.usage import Dialect

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=12,
)


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", **fields}).encode()


@given(
    st.dictionaries(st.text(), JSON, max_size=6),
    st.dictionaries(st.text(max_size=3), st.integers() | st.none(), max_size=3),
)
def test_a_body_means_the_same_but_for_what_is_replaced(document: dict[str, Any], values: dict[str, Any]) -> None:
    body = RequestBody.parse(json.dumps(document, indent=1).encode())
    assert json.loads(body.replaced(values)) == {**document, **values}
    assert body.names() == document.keys()
    assert json.loads(body.replaced({})) == document


def test_the_text_of_other_fields_is_passed_on_as_it_came() -> None:
    body = b'{ "model":"m", "temperature" : 0.70000000000000000001, "x":[1e400,"\\ud83d\\ude00"], "stream":true }'
    passed = parse_request(Dialect.CHAT, body).upstream_body()
    assert passed == body[:-1] + b', "stream_options": {"include_usage": true}}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"[]",
        b'"text"',
        b"{",
        b'{"model"}',
        b'{"model": }',
        b'{"a": 1,}',
        b'{"a": 1} {}',
        b"{'a': 1}",
        b"\xff",
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="request body"):
        parse_request(Dialect.CHAT, body)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1" * 5_000])
def test_what_is_no_number_of_json_is_refused(number: str) -> None:
    with pytest.raises(InvalidRequest, match="request body"):
        parse_request(Dialect.CHAT, b'{"model": "m", "temperature": ' + number.encode() + b"}")


def test_a_body_nested_without_end_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="recursion limit exceeded"):
        parse_request(Dialect.CHAT, b'{"model": "m", "messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}")


def test_a_field_given_twice_is_refused() -> None:
    """Else the gateway would bill for the one model and the upstream run the other."""
    with pytest.raises(InvalidRequest, match="'model' is given twice"):
        parse_request(Dialect.CHAT, b'{"model": "cheap", "model": "dear"}')
    with pytest.raises(InvalidRequest, match="'model' is given twice"):
        parse_request(Dialect.CHAT, b'{"model": "cheap", "mod\\u0065l": "dear"}')


@pytest.mark.parametrize("field", sorted(REFUSED_FIELDS))
def test_the_caller_does_not_choose_the_upstream(field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(Dialect.CHAT, chat(**{field: "http://elsewhere"}))
    assert caught.value.param == field


@pytest.mark.parametrize("model", [None, "", 7, ["m"], "m" * 201])
def test_a_call_names_its_model(model: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(Dialect.CHAT, json.dumps({"model": model}).encode())
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("dialect", "fields", "limit"),
    [
        (Dialect.CHAT, {}, None),
        (Dialect.CHAT, {"max_tokens": 100}, 100),
        (Dialect.CHAT, {"max_completion_tokens": 50, "max_tokens": 100, "n": 3}, 150),
        (Dialect.CHAT, {"max_tokens": 0}, 0),
        (Dialect.COMPLETIONS, {"max_tokens": 10, "n": 2, "best_of": 5}, 50),
        (Dialect.RESPONSES, {"max_output_tokens": 7, "max_tokens": 1}, 7),
        (Dialect.MESSAGES, {"max_tokens": 9}, 9),
        (Dialect.EMBEDDINGS, {"max_tokens": 9}, 0),
    ],
)
def test_the_output_is_bounded_by_what_the_caller_says(
    dialect: Dialect, fields: dict[str, Any], limit: int | None
) -> None:
    assert parse_request(dialect, chat(**fields)).output_tokens_limit == limit


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", True),
        ("max_tokens", "9"),
        ("max_tokens", 1.5),
        ("n", 0),
        ("n", 129),
        ("best_of", "2"),
    ],
)
def test_a_bound_that_is_none_is_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(Dialect.COMPLETIONS, chat(**{"max_tokens": 5, field: value}))
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({}, False),
        ({"stream_options": {"include_usage": True}}, True),
        ({"stream_options": {"include_usage": False}}, False),
        ({"stream_options": None}, False),
    ],
)
def test_usage_is_asked_for_whatever_the_client_says(fields: dict[str, Any], asked: bool) -> None:
    request = parse_request(Dialect.CHAT, chat(stream=True, **fields))
    assert request.asks_for_usage is asked
    assert json.loads(request.upstream_body())["stream_options"]["include_usage"] is True
    assert json.loads(request.upstream_body(asks_for_usage=False)).get("stream_options") == fields.get("stream_options")


def test_what_else_the_options_of_a_stream_say_stays() -> None:
    request = parse_request(Dialect.CHAT, chat(stream=True, stream_options={"include_obfuscation": False}))
    options = json.loads(request.upstream_body())["stream_options"]
    assert options == {"include_obfuscation": False, "include_usage": True}


@pytest.mark.parametrize("dialect", [Dialect.RESPONSES, Dialect.MESSAGES, Dialect.EMBEDDINGS])
def test_apis_without_the_switch_are_not_given_it(dialect: Dialect) -> None:
    body = chat(stream=True)
    assert parse_request(dialect, body).upstream_body() == body


@pytest.mark.parametrize(
    ("dialect", "fields", "bound", "expected"),
    [
        (Dialect.CHAT, {}, 60, {"max_tokens": 60}),
        (Dialect.CHAT, {"max_completion_tokens": 100}, 60, {"max_completion_tokens": 60}),
        (Dialect.CHAT, {"max_tokens": 10}, 60, {"max_tokens": 10}),
        (Dialect.CHAT, {"max_tokens": 100, "n": 3}, 60, {"max_tokens": 20, "n": 3}),
        (Dialect.RESPONSES, {}, 60, {"max_output_tokens": 60}),
        (Dialect.EMBEDDINGS, {}, 60, {}),
    ],
)
def test_the_output_is_clamped_to_what_is_held(
    dialect: Dialect, fields: dict[str, Any], bound: int, expected: dict[str, Any]
) -> None:
    passed = json.loads(parse_request(dialect, chat(**fields)).upstream_body(output_tokens_max=bound))
    assert passed == {"model": "gpt-4o", **fields, **expected}


@pytest.mark.parametrize("field", ["background", "previous_response_id"])
def test_state_that_an_upstream_would_keep_is_refused(field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(Dialect.RESPONSES, chat(**{field: True}))
    assert caught.value.param == field


@pytest.mark.parametrize(("stream", "field"), [("yes", "stream"), (1, "stream")])
def test_a_stream_is_asked_for_by_true(stream: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(Dialect.CHAT, chat(stream=stream))
    assert caught.value.param == field


def test_input_is_estimated_by_its_bytes() -> None:
    assert parse_request(Dialect.CHAT, '{"model": "é"}'.encode()).input_tokens_estimate == 4  # 15 bytes


def test_numbers_are_read_exactly() -> None:
    assert RequestBody.parse(b'{"x": 0.1}').get("x") == Decimal("0.1")
