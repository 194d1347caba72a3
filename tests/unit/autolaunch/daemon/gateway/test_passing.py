"""Answers of which the client was sent nothing yet: the head that is held, and engines that end behind it."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest

from autolaunch.daemon.gateway import passing, proxy
from tests.fakes.scripted import (
    DONE,
    LAST,
    MODEL,
    STREAM,
    House,
    Step,
    asked,
    chunk,
    event,
    house,
    request,
    story,
    until,
    whole,
)

CHAT = "/v1/chat/completions"
GOOD: tuple[Step, ...] = (STREAM, event("good", finish="stop"), DONE)
OLD = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
COMMENT = chunk(b": keepalive 1/3\n\n")
#: What an engine may have said when it ends, and no event of it.
NOTHING: dict[str, tuple[Step, ...]] = {
    "its connection ends": (STREAM, 0.005, "fin"),
    "its connection breaks": (STREAM, 0.005, "rst"),
    "half an event": (STREAM, chunk(b'data: {"choi'), 0.005, "rst"),
    "half a chunk": (STREAM, event("b")[:9], 0.005, "fin"),
    "chunks that are none": (STREAM, b"xyz\r\n", 0.005, "fin"),
    "an end in order": (STREAM, LAST),
    "an end that is the connection's": (OLD, 0.005, "fin"),
    "half a head": (STREAM[:20], 0.005, "rst"),
}


def first_asks(found: House, *script: Step) -> None:
    """Whichever engine is asked first has this script, and the other is a good one."""
    found.replicas[1].traffic.under_way = 1
    found.engines[0].usual, found.engines[1].usual = script, GOOD


def calm(found: House) -> None:
    found.replicas[1].traffic.under_way = 0


@pytest.mark.parametrize("said", NOTHING.values(), ids=NOTHING)
@story
async def test_an_engine_that_ends_before_the_first_event_of_a_stream_is_no_loss(said: tuple[Step, ...]) -> None:
    async with house(engines=2) as found:
        first_asks(found, *said)
        told = await (await found.connect()).chat(stream=True)
        calm(found)
        assert told.status == 200
        assert [each["choices"][0]["delta"]["content"] for each in told.events[:-1]] == ["good"]
        assert told.events[-1] == b"[DONE]"
        assert [len(each.asked) for each in found.engines] == [1, 1]


@pytest.mark.parametrize("end", ["fin", "rst"])
@story
async def test_a_whole_answer_that_breaks_off_comes_from_another_engine(end: Literal["fin", "rst"]) -> None:
    async with house(engines=2) as found:
        first_asks(found, whole()[:-20], 0.005, end)
        found.engines[1].usual = (whole(),)
        answered = await (await found.connect()).chat()
        calm(found)
        assert answered.status == 200
        assert answered.json["choices"][0]["message"]["content"] == "hi"


@pytest.mark.parametrize("streamed", [False, True])
@story
async def test_an_answer_that_breaks_off_everywhere_is_risked_twice_and_refused(streamed: bool) -> None:
    async with house(engines=6) as found:
        for each in found.engines:
            each.usual = (STREAM, 0.005, "rst") if streamed else (whole()[:-20], 0.005, "rst")
        refused = await (await found.connect()).chat(stream=streamed)
        assert (refused.status, refused.code) == (503, "engine_died")
        assert int(refused.header("retry-after") or "0") >= 1
        assert sum(len(each.asked) for each in found.engines) == proxy.TRIES


@story
async def test_an_answer_that_is_too_long_is_asked_of_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "ANSWER_BYTES", 100)
    async with house(engines=2) as found:
        head = STREAM.replace(b"text/event-stream", b"application/json")
        for each in found.engines:
            each.usual = (head, chunk(b" " * 200), 0.005, chunk(b" " * 200), LAST)
        assert (await (await found.connect()).chat()).status == 503
        assert sum(len(each.asked) for each in found.engines) == 1


@story
async def test_a_head_is_held_until_the_first_event_and_no_longer() -> None:
    async with house() as found:
        first, more = asyncio.Event(), asyncio.Event()
        found.engine.usual = (STREAM, first, event("a"), more, event("b", finish="stop"), DONE)
        client = await found.connect()
        client.send(request("POST", CHAT, asked(stream=True)))
        await until(lambda: len(found.engine.asked) == 1)
        await asyncio.sleep(0.01)
        assert client.quiet
        first.set()
        assert b" 200 " in await client.head()
        assert b'"a"' in await client.piece()
        assert client.quiet, "nothing is held but the head"
        more.set()
        assert b'"b"' in await client.piece()
        while await client.piece():
            pass


@story
async def test_a_client_that_leaves_before_the_first_event_leaves_the_engine_and_asks_no_other() -> None:
    async with house(engines=2) as found:
        first_asks(found, STREAM, asyncio.Event())
        client = await found.connect()
        client.send(request("POST", CHAT, asked(stream=True)))
        await until(lambda: len(found.engine.asked) == 1)
        await asyncio.sleep(0.005)
        client.leave()
        calm(found)
        await until(lambda: found.under_way == 0 and not found.engine.links)
        assert found.engines[1].asked == []


@story
async def test_who_prefers_to_wait_is_served_by_the_engine_after_one_that_died_behind_its_head() -> None:
    async with house() as found:
        found.engine.scripts.append((STREAM, 0.005, "rst"))
        found.engine.usual = GOOD
        client = await found.connect()
        client.send(request("POST", CHAT, asked(stream=True), "Prefer: wait=600"))
        await until(lambda: len(found.engine.asked) == 1)
        await asyncio.sleep(0.02)
        assert client.quiet
        found.replica.serve(run=2)
        found.gateway.changed(MODEL)
        assert b"good" in (await client.answer()).body


# --- comments ---------------------------------------------------------------------------------------------------


@story
async def test_comments_pass_at_once_with_the_head_and_the_next_engine_goes_on_behind_them() -> None:
    async with house(engines=2) as found:
        go = asyncio.Event()
        first_asks(found, STREAM, COMMENT, go, COMMENT, 0.005, "rst")
        client = await found.connect()
        client.send(request("POST", CHAT, asked(stream=True)))
        assert b" 200 " in await client.head()
        assert await client.piece() == b": keepalive 1/3\n\n"
        go.set()
        said = b""
        while piece := await client.piece():
            said += piece
        calm(found)
        assert said.startswith(b": keepalive 1/3\n\ndata: {")
        assert said.count(b"good") == 1
        assert said.count(b"[DONE]") == 1
        assert b"error" not in said
        found.engine.usual = GOOD
        assert (await client.chat(stream=True)).status == 200, "the connection is as good as ever"


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "messages"])
@pytest.mark.parametrize("then", ["nobody", "a refusal", "another that ends"])
@story
async def test_behind_comments_a_refusal_is_an_event_and_the_end_of_the_stream(path: str, then: str) -> None:
    async with house(engines=3) as found:
        for each in found.engines:
            each.usual = (STREAM, COMMENT, 0.01, "rst")
        if then == "nobody":
            found.reroute(found.replicas[0])
        elif then == "a refusal":
            for replica in found.replicas[1:]:
                replica.traffic.under_way = 1
                replica.engine.usual = (whole({"error": {"message": "no"}}, status=400),)
        client = await found.connect()
        told = await client.ask("POST", f"/v1/{path}", asked(stream=True))
        for replica in found.replicas[1:]:
            replica.traffic.under_way = 0
        assert told.status == 200
        assert b": keepalive" in told.body
        if path in ("chat/completions", "completions"):
            assert told.events[-1] == b"[DONE]"
            assert told.events[-2]["error"]["code"] == "engine_died"
        else:
            assert told.events[-1]["type"] == "error"
            assert b"[DONE]" not in told.body
        assert sum(len(each.asked) for each in found.engines) == (1 if then == "nobody" else 2)
        if then == "nobody":
            found.engine.usual = (whole(),)
            assert (await client.chat()).status == 200
