"""Events are cut at the same places wherever the network cuts the stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sse import EVENT_BYTES_MAX, EventTooLarge, SseSplitter, comment, parse_event

LINE_ENDS = ("\n", "\r\n", "\r")
EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("data"), st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
        ),
        st.tuples(st.just(""), st.just(" PROCESSING")),
    ),
    min_size=1,
    max_size=6,
)


@given(EVENTS, st.sampled_from(LINE_ENDS), st.lists(st.integers(1, 9), max_size=40), st.booleans())
def test_an_event_is_whole_wherever_the_stream_is_cut(
    events: list[tuple[str, str]], line_end: str, cuts: list[int], named: bool
) -> None:
    raw = [
        "".join(line + line_end for line in (*(["event: delta"] if named else []), f"{field}:{value}", "")).encode()
        for field, value in events
    ]
    stream = b"".join(raw)
    splitter, received, at = SseSplitter(), [], 0
    for cut in [*cuts, len(stream)]:
        received += splitter.feed(stream[at : at + cut])
        at += cut
    last = splitter.flush()
    received += [last] if last else []
    assert [event.raw for event in received] == raw
    assert [event.data for event in received] == [
        value.removeprefix(" ").encode() if field == "data" else None for field, value in events
    ]
    assert {event.name for event in received} == {"delta" if named else None}


def test_lines_of_data_are_joined() -> None:
    assert parse_event(b"data: a\ndata:b\n\n").data == b"a\nb"
    assert parse_event(b"data\n\n").data == b""
    assert parse_event(b"\xef\xbb\xbfdata: a\n\n").data == b"a"


def test_a_stream_may_end_without_its_last_empty_line() -> None:
    splitter = SseSplitter()
    assert [event.data for event in splitter.feed(b"data: 1\n\ndata: [DONE]")] == [b"1"]
    last = splitter.flush()
    assert last is not None
    assert (last.raw, last.data) == (b"data: [DONE]", b"[DONE]")
    assert splitter.flush() is None


def test_an_event_without_end_is_refused() -> None:
    splitter = SseSplitter()
    splitter.feed(b"data: " + b"x" * (EVENT_BYTES_MAX - 6))
    with pytest.raises(EventTooLarge):
        splitter.feed(b"x")


def test_a_comment_is_no_event_for_a_client() -> None:
    assert parse_event(comment("credits charged=5 remaining=7")).data is None
