"""Engines that end while a request is theirs, and requests that wait for one."""

from __future__ import annotations

import asyncio
import json
from typing import Literal

import pytest

from autolaunch.daemon.gateway import proxy
from autolaunch.daemon.gateway.options import GatewayOptions
from autolaunch.daemon.gateway.routing import Standing
from tests.fakes.scripted import (
    DONE,
    LAST,
    MODEL,
    STREAM,
    Standin,
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
LOADING = Standing(condition="loading", message="is loading", retry_seconds=17.2, stage="weights", fraction=0.25)
FAILED = Standing(condition="failed", message="has failed", retry_seconds=600.0)
End = Literal["fin", "rst"]


# --- before an answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["fin", "rst"])
@story
async def test_an_engine_that_ends_before_it_answers_is_no_loss_when_there_is_another(end: End) -> None:
    async with house(engines=2) as found:
        client = await found.connect()
        for engine in found.engines:
            engine.scripts += [(end,)] * 3
            for _ in range(3):
                assert (await client.chat()).status == 200
            engine.scripts.clear()


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("streamed", [False, True])
@story
async def test_the_only_engine_that_ends_before_it_answers_is_503_with_a_time(end: End, streamed: bool) -> None:
    async with house() as found:
        found.engine.usual = (end,)
        refused = await (await found.connect()).chat(stream=streamed)
        assert (refused.status, refused.code) == (503, "engine_died")
        assert int(refused.header("retry-after") or "0") >= 1
        assert "serves" not in refused.json["error"]["message"]
        assert len(found.engine.asked) == 1


@story
async def test_an_engine_that_nobody_listens_at_is_passed_over() -> None:
    async with house(engines=2) as found:
        found.engines[0].stop()
        client = await found.connect()
        for _ in range(4):
            assert (await client.chat()).status == 200
        found.engines[1].stop()
        refused = await client.chat()
        assert (refused.status, refused.code) == (503, "engine_died")


@story
async def test_a_request_is_not_tried_forever() -> None:
    async with house(engines=6) as found:
        for each in found.engines:
            each.usual = ("fin",)
        assert (await (await found.connect()).chat()).status == 503
        assert sum(len(each.asked) for each in found.engines) == proxy.TRIES


@pytest.mark.parametrize("end", ["fin", "rst"])
@story
async def test_an_idle_connection_that_its_engine_closes_just_then_costs_the_client_nothing(end: End) -> None:
    async with house() as found:
        client = await found.connect()
        for _ in range(5):
            assert (await client.chat()).status == 200
            found.engine.scripts.append((end,))  # as if it had been closed while the request was on its way
            assert (await client.chat()).status == 200


@story
async def test_an_idle_connection_that_was_closed_is_not_used() -> None:
    async with house() as found:
        client = await found.connect()
        for _ in range(3):
            assert (await client.chat()).status == 200
            found.engine.hang_up()
            await until(lambda: not found.engine.links)
        assert (len(found.engine.asked), found.engine.accepted) == (3, 3)


@story
async def test_what_an_engine_says_unasked_is_never_taken_for_an_answer() -> None:
    async with house() as found:
        client = await found.connect()
        assert (await client.chat()).status == 200
        found.engine.say(whole({"model": MODEL, "choices": ["of nobody's request"]}))
        await until(lambda: not found.engine.links)
        assert b"nobody" not in (await client.chat()).body
        # And behind an answer, in one piece with it.
        found.engine.scripts.append((whole() + whole({"choices": ["of nobody's request"]}),))
        for _ in range(2):
            answered = await client.chat()
            assert answered.status == 200
            assert b"nobody" not in answered.body


# --- midway ---------------------------------------------------------------------------------------------------

ENDS: dict[str, tuple[bytes | float | Literal["fin", "rst"], ...]] = {
    "its connection ends": ("fin",),
    "its connection breaks": (0.01, "rst"),
    "half a chunk": (event("b")[:9], 0.01, "fin"),
    "half an event": (chunk(b'data: {"choi'), 0.01, "fin"),
    "chunks that are none": (b"xyz\r\n", 0.01, "fin"),
    "an end before the end": (LAST,),
}


@pytest.mark.parametrize("ending", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "messages"])
@story
async def test_an_engine_that_ends_midway_gives_a_well_formed_error_and_end(
    path: str, ending: tuple[bytes | float | Literal["fin", "rst"], ...]
) -> None:
    async with house() as found:
        found.engine.scripts.append((STREAM, event("a"), *ending))
        client = await found.connect()
        told = await client.ask("POST", f"/v1/{path}", asked(stream=True))
        assert told.status == 200
        assert told.body.endswith(b"\n\n")
        if path in ("chat/completions", "completions"):
            assert told.events[-1] == b"[DONE]"
            error = told.events[-2]["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] in ("engine_died", "engine_error")
        else:
            assert told.events[-1]["type"] == "error"
            assert b"event: error\n" in told.body
            assert b"[DONE]" not in told.body
        # The connection is as good as ever.
        assert (await client.chat()).status == 200


@pytest.mark.parametrize("end", ["fin", "rst"])
@story
async def test_a_whole_answer_that_breaks_off_is_503_and_not_half_of_it(end: End) -> None:
    async with house() as found:
        found.engine.scripts.append((whole()[:-20], 0.01, end))
        client = await found.connect()
        refused = await client.chat()
        assert (refused.status, refused.code) == (503, "engine_died")
        assert (await client.chat()).status == 200


@story
async def test_when_an_engine_dies_under_many_streams_each_of_them_ends_in_order() -> None:
    async with house() as found:
        found.engine.usual = (STREAM, event("a"), asyncio.Event())
        clients = [await found.connect() for _ in range(32)]
        for each in clients:
            each.send(request("POST", CHAT, asked(stream=True)))
        await until(lambda: len(found.engine.asked) == 32)
        found.engine.stop()
        for each in clients:
            told = await each.answer()
            assert told.events[-2]["error"]["code"] == "engine_died"
            assert told.events[-1] == b"[DONE]"
        assert found.under_way == 0


@story
async def test_an_end_without_chunks_or_length_is_the_end_of_the_connection() -> None:
    async with house() as found:
        head = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        data = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        found.engine.usual = (head, data, "fin")
        told = await (await found.connect()).chat(stream=True)
        assert told.events[-1] == b"[DONE]"
        assert b"error" not in told.body


# --- while none serves ----------------------------------------------------------------------------------------


@story
async def test_while_a_model_loads_clients_are_told_how_far_it_is_and_when_to_come_again() -> None:
    async with house() as found:
        found.replica.leave(LOADING)
        client = await found.connect()
        refused = await client.chat()
        assert (refused.status, refused.code) == (503, "model_loading")
        assert refused.header("retry-after") == "18"
        assert refused.json["load"] == {"stage": "weights", "fraction": 0.25}
        found.replica.leave(FAILED)
        refused = await client.chat()
        assert (refused.status, refused.code, refused.header("retry-after")) == (503, "model_failed", "600")


@pytest.mark.parametrize("prefer", ["wait=10", 'respond-async, wait="10"', "WAIT=10; x=y", "wait=99999999"])
@story
async def test_a_client_that_prefers_to_wait_is_served_as_soon_as_the_model_is(prefer: str) -> None:
    async with house() as found:
        found.replica.leave(LOADING)
        client = await found.connect()
        client.send(request("POST", CHAT, asked(), f"Prefer: {prefer}"))
        await until(lambda: found.under_way == 1)
        found.gateway.changed(MODEL)  # still loading
        await asyncio.sleep(0.01)
        assert client.quiet
        assert found.replica.woken >= 1
        found.replica.serve()
        found.gateway.changed(MODEL)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("prefer", ["wait=0", "wait=", "wait=-1", "wait=1.5", "wait=1e9", "wait=999999999", "nowait=9"])
@story
async def test_a_wish_that_cannot_be_read_is_none(prefer: str) -> None:
    async with house() as found:
        found.replica.leave(LOADING)
        assert (await (await found.connect()).chat(f"Prefer: {prefer}")).status == 503


@story
async def test_a_client_waits_no_longer_than_it_wished_or_may() -> None:
    async with house(GatewayOptions(wait_seconds=0.05)) as found:
        found.replica.leave(LOADING)
        refused = await (await found.connect()).chat("Prefer: wait=600")
        assert (refused.status, refused.code) == (503, "model_loading")


@story
async def test_a_client_that_waits_is_told_when_the_model_fails_meanwhile() -> None:
    async with house() as found:
        found.replica.leave(LOADING)
        client = await found.connect()
        client.send(request("POST", CHAT, asked(), "Prefer: wait=600"))
        await until(lambda: found.under_way == 1)
        found.replica.leave(FAILED)
        found.gateway.changed(MODEL)
        assert (await client.answer()).code == "model_failed"


@story
async def test_a_client_that_waits_is_told_when_the_model_is_served_no_more() -> None:
    async with house() as found:
        found.replica.leave(LOADING)
        client = await found.connect()
        client.send(request("POST", CHAT, asked(), "Prefer: wait=600"))
        await until(lambda: found.under_way == 1)
        found.reroute()
        refused = await client.answer()
        assert refused.status in (404, 503)
        assert (await client.chat()).status == 404


@story
async def test_a_client_that_leaves_while_it_waits_waits_no_more() -> None:
    async with house() as found:
        found.replica.leave(LOADING)
        for _ in range(3):
            client = await found.connect()
            client.send(request("POST", CHAT, asked(), "Prefer: wait=600"))
            await until(lambda: found.under_way == 1)
            client.leave()
            await until(lambda: found.under_way == 0)
        assert found.gateway.models[MODEL]._changed == set()
        assert found.engine.asked == []


@story
async def test_a_client_that_waits_is_served_by_the_engine_that_is_started_after_one_that_died() -> None:
    async with house() as found:
        found.engine.scripts.append(("rst",))
        client = await found.connect()
        client.send(request("POST", CHAT, asked(), "Prefer: wait=600"))
        await until(lambda: len(found.engine.asked) == 1)
        await asyncio.sleep(0.01)
        assert client.quiet, "it is not sent to the same run again"
        found.replica.serve(run=2)
        found.gateway.changed(MODEL)
        assert (await client.answer()).status == 200


@story
async def test_more_requests_than_the_queue_holds_are_429_with_a_time() -> None:
    async with house(GatewayOptions(queue=3)) as found:
        go = asyncio.Event()
        found.engine.usual = (go, whole())
        held = [await found.connect() for _ in range(3)]
        for each in held:
            each.send(request("POST", CHAT, asked()))
        await until(lambda: found.under_way == 3)
        client = await found.connect()
        refused = await client.chat()
        assert (refused.status, refused.code, refused.header("retry-after")) == (429, "queue_full", "1")
        assert (await client.ask("GET", "/health")).status == 200
        go.set()
        assert [(await each.answer()).status for each in held] == [200] * 3
        assert (await client.chat()).status == 200


@story
async def test_requests_that_wait_for_a_load_are_of_the_queue() -> None:
    async with house(GatewayOptions(queue=1)) as found:
        found.replica.leave(LOADING)
        waiting = await found.connect()
        waiting.send(request("POST", CHAT, asked(), "Prefer: wait=600"))
        await until(lambda: found.under_way == 1)
        assert (await (await found.connect()).chat("Prefer: wait=600")).status == 429


@story
async def test_an_engine_that_is_started_anew_on_the_same_port_is_reached_by_new_connections() -> None:
    async with house() as found:
        client = await found.connect()
        assert (await client.chat()).status == 200
        found.replica.serve(run=2, api_key="second")
        assert (await client.chat()).status == 200
        assert found.engine.accepted == 2
        assert b"Bearer second" in found.engine.asked[1][0]


@story
async def test_a_replica_that_goes_finishes_what_it_has() -> None:
    async with house(engines=2) as found:
        first, second = found.replicas
        go = asyncio.Event()
        for each in found.engines:
            each.usual = (STREAM, event("a"), go, event("b", finish="stop"), DONE)
        client = await found.connect()
        client.send(request("POST", CHAT, asked(stream=True)))
        await until(lambda: found.under_way == 1)
        busy = first if first.traffic.under_way else second
        found.reroute(second if busy is first else first)
        go.set()
        told = await client.answer()
        assert (told.events[-1], b"error" in told.body) == (b"[DONE]", False)
        assert busy.traffic.under_way == 0


@story
async def test_engines_that_are_no_more_are_forgotten() -> None:
    async with house() as found:
        client = await found.connect()
        assert (await client.chat()).status == 200
        other = Standin(found.engine, "other")
        found.reroute(other)
        assert (await client.chat(model="other")).status == 200
        found.reroute()
        await until(lambda: not found.engine.links)
        assert json.loads((await client.ask("GET", "/v1/models")).body)["data"] == []
