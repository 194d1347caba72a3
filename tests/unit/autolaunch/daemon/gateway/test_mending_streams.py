"""Streams in whatever pieces they come, and what engines may do to them beyond what was recorded."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolaunch.daemon.gateway.mending import EVENT_BYTES, Mender
from tests.fakes.wire import Recording, events, recordings, streamed

SAMPLE = tuple(
    each
    for each in recordings()
    if each.streamed
    and each.status == 200
    and each.exchange
    in ("chat-stream", "chat-stream-usage", "completions-stream", "responses-stream", "messages-stream")
)


def called(each: Recording) -> str:
    return f"{each.engine_folder}/{each.exchange}"


def mender(**more: object) -> Mender:
    settings: dict[str, object] = {
        "engine": "vllm",
        "asked": "mine",
        "served": "theirs",
        "dialect": "chat",
        "streamed": True,
    }
    return Mender(**(settings | more))  # type: ignore[arg-type]  # what stands in the tests below


def chunk(text: str = "a", **more: object) -> bytes:
    document = {"model": "theirs", "choices": [{"index": 0, "delta": {"content": text}}]}
    return b"data: " + json.dumps(document | more).encode() + b"\n\n"


LAST = b'data: {"model":"theirs","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("each", SAMPLE, ids=called)
def test_byte_by_byte_it_is_the_same_stream(each: Recording) -> None:
    whole = streamed(each.mender(), (each.body,))
    assert streamed(each.mender(), (bytes((byte,)) for byte in each.body)) == whole


@pytest.mark.parametrize("each", SAMPLE[:6], ids=called)
def test_cut_in_two_anywhere_it_is_the_same_stream(each: Recording) -> None:
    body = each.body[-1500:].partition(b"\n\n")[2]  # from the beginning of an event
    whole = streamed(each.mender(), (body,))
    for cut in range(len(body)):
        assert streamed(each.mender(), (body[:cut], body[cut:])) == whole


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_in_any_pieces_and_with_any_ends_of_lines_it_is_the_same_stream(data: st.DataObject) -> None:
    each = data.draw(st.sampled_from(SAMPLE))
    body = each.body.replace(b"\n", data.draw(st.sampled_from((b"\n", b"\r\n", b"\r"))))
    whole = streamed(each.mender(), (each.body,))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert streamed(each.mender(), pieces) == whole


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.sampled_from((b"data: ", b"\n\n", b"\r", b"\n", b'{"error":', b"[DONE]"))))
def test_no_bytes_of_an_engine_are_too_strange(pieces: list[bytes]) -> None:
    for dialect in ("chat", "responses", "messages"):
        told = streamed(mender(dialect=dialect), pieces)
        assert told.endswith(b"\n\n")
        mender(dialect=dialect).whole(200, b"".join(pieces))
        mender(dialect=dialect, request=b"".join(pieces)).whole(500, b"".join(pieces))


def test_an_event_is_passed_on_as_soon_as_it_is_whole() -> None:
    one = mender()
    event = chunk()
    assert one.feed(event[:-1]) == b""
    assert one.feed(event[-1:] + b"data: {") == event.replace(b"theirs", b"mine")


def test_what_needs_no_change_is_not_changed() -> None:
    one = mender(asked="theirs")
    event = b'data:  {"model" :"theirs", "choices":[]}\n\n'
    assert one.feed(chunk()) == chunk()
    assert one.feed(event) == event.replace(b":  ", b": ")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=24), st.booleans())
def test_events_that_are_like_those_before_are_passed_on_like_those_looked_through(
    texts: list[str], renamed: bool
) -> None:
    """Most events of a stream differ in their text alone, and are not looked through again."""
    asked = "mine" if renamed else "theirs"
    one, pieces = mender(asked=asked), [chunk(text) for text in texts]
    told = b"".join(one.feed(piece) for piece in (*pieces, LAST, DONE))
    assert told == b"".join((*pieces, LAST, DONE)).replace(b"theirs", asked.encode())
    assert one.tokens_seen == sum(bool(text) for text in texts)
    assert one.finished


def test_a_text_that_looks_like_a_field_or_an_end_stays_a_text() -> None:
    tricky = '"model": "theirs" data: [DONE]\ndata: data: {"error": "x"} finish_reason'
    told = streamed(mender(), (chunk("a"), chunk(tricky), LAST, DONE))
    assert events(told)[1]["choices"][0]["delta"]["content"] == tricky
    assert all(event["model"] == "mine" for event in events(told))
    assert told.count(DONE) == 1


def test_prefixes_that_are_missing_a_blank_or_stand_twice_are_put_right() -> None:
    event = chunk()[6:]
    told = streamed(
        mender(), (b"data:" + event, b"data: data: " + event, b"data:data:" + event, LAST, b"data:[DONE]\n\n")
    )
    assert len(events(told)) == 4
    assert told.count(DONE) == 1


@pytest.mark.parametrize(
    "error",
    [
        b'data: {"error": "out of luck at /opt/engine/server.py"}\n\n',
        b'data: {"error": "a "quoted" text\nwith lines"}\n\n',
        b'data: {"error": {"message": "x", "type": "BadRequestError", "code": 400}}\n\n',
        b'data: {"object": "error", "message": "x", "code": 400}\n\n',
        b'event: error\ndata: {"message": "x", "type": "error"}\n\n',
    ],
)
def test_an_error_within_a_stream_has_the_one_form_and_ends_it(error: bytes) -> None:
    told = streamed(mender(), (chunk(), error))
    last = events(told)[-1]
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert b"/opt" not in told
    assert told.endswith(DONE)


def test_an_error_that_is_null_is_none() -> None:
    event = chunk(error=None)
    assert streamed(mender(), (event, LAST, DONE)) == (event + LAST + DONE).replace(b"theirs", b"mine")


def test_a_failed_response_does_not_tell_of_the_host() -> None:
    failed = {
        "type": "response.failed",
        "response": {"model": "theirs", "error": {"code": "server_error", "message": 'File "/opt/x.py", line 1'}},
    }
    one = mender(dialect="responses")
    told = one.feed(b"event: response.failed\ndata: " + json.dumps(failed).encode() + b"\n\n")
    assert b"/opt" not in told
    assert one.finished
    assert events(told)[0]["response"]["model"] == "mine"


def test_an_event_of_more_than_a_mebibyte_is_passed_on_in_pieces_and_closed_when_it_breaks() -> None:
    one = mender()
    one.feed(chunk())
    long = b'data: {"choices":[{"delta":{"content":"' + b"x" * EVENT_BYTES
    assert one.feed(long) == long
    assert one.feed(b"more\n") == b"more"
    assert one.feed(b"again") == b"\nagain"
    assert one.broken("gone", "engine_died").startswith(b'\n\ndata: {"error":')


def test_after_an_event_that_was_too_long_all_is_as_before() -> None:
    one = mender()
    long = b'data: {"choices":[{"delta":{"content":"' + b"x" * EVENT_BYTES
    one.feed(long)
    assert one.feed(b'"}}]}\n\n' + chunk()) == b'"}}]}\n\n' + chunk().replace(b"theirs", b"mine")
    assert one.feed(LAST + DONE).endswith(DONE)


def test_an_end_that_came_without_its_blank_line_is_an_end() -> None:
    assert streamed(mender(), (LAST, b"data: [DONE]")).count(DONE) == 1
    assert streamed(mender(), (chunk(), LAST.rstrip())).endswith(b"}\n\n" + DONE)


def test_half_an_event_is_not_passed_on() -> None:
    told = streamed(mender(), (chunk(), chunk()[:30]))
    assert [("error" in event) for event in events(told)] == [False, True]


@pytest.mark.parametrize("name", ["glm-4.6", 'a"b\\c', "Grüße", "x" * 300])
def test_any_name_stands_in_the_answer(name: str) -> None:
    told = streamed(mender(asked=name), (chunk(), LAST, DONE))
    assert {event["model"] for event in events(told)} == {name}
