"""Requests on their way to an engine, and its answers on their way back: what is passed, when, and what is not."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from autolaunch.daemon.gateway import passing
from autolaunch.daemon.gateway.keys import Keys, key_of, made
from autolaunch.daemon.gateway.options import GatewayOptions
from autolaunch.daemon.gateway.upstream import Connection
from tests.fakes.scripted import (
    DONE,
    LAST,
    MODEL,
    STREAM,
    asked,
    chunk,
    event,
    header_of,
    house,
    request,
    story,
    until,
    whole,
)

CHAT = "/v1/chat/completions"


# --- what an engine gets to see -------------------------------------------------------------------------------


@story
async def test_an_engine_gets_its_own_key_and_never_the_clients() -> None:
    secret, other = made(), made()
    keys = Keys(entries=(key_of("web", secret),))
    async with house(keys=keys, api_key="engine-key") as found:
        client = await found.connect()
        for credentials in (f"Authorization: Bearer {secret}", f"X-Api-Key: {secret}"):
            assert (await client.chat(credentials, f"Cookie: {other}", f"Proxy-Authorization: {other}")).status == 200
        for head, _ in found.engine.asked:
            assert header_of(head, b"authorization") == b"Bearer engine-key"
            assert secret.encode() not in head
            assert other.encode() not in head


@story
async def test_without_a_key_of_its_own_an_engine_gets_none() -> None:
    async with house() as found:
        assert (await (await found.connect()).chat("Authorization: Bearer whatever-it-is")).status == 200
        assert b"authorization" not in found.engine.asked[0][0].lower()


@story
async def test_what_belongs_to_the_clients_connection_stays_there() -> None:
    hop = ("Connection: keep-alive, X-Private", "Keep-Alive: 5", "TE: trailers", "X-Private: a", "Proxy-Connection: x")
    told = ("X-Forwarded-For: 1.2.3.4", "X-Forwarded-Host: evil", "Forwarded: for=1.2.3.4", "Range: bytes=0-1")
    coding = ("Accept-Encoding: gzip, br", "If-None-Match: x", "Origin-Trial: x", "User-Agent: client")
    async with house() as found:
        assert (await (await found.connect()).chat(*hop, *told, *coding)).status == 200
        ((head, body),) = found.engine.asked
        names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
        assert names == {b"host", b"content-type", b"content-length", b"accept-encoding"}
        assert header_of(head, b"accept-encoding") == b"identity"
        assert header_of(head, b"host") == f"127.0.0.1:{found.engine.port}".encode()
        assert json.loads(body) == asked()


@story
async def test_what_traces_a_request_and_says_its_version_is_passed_on() -> None:
    passed = ("X-Request-Id: 7", "Traceparent: 00-a-b-01", "Anthropic-Version: 2023-06-01", "Accept: text/event-stream")
    async with house() as found:
        assert (await (await found.connect()).chat(*passed)).status == 200
        head = found.engine.asked[0][0]
        assert [header_of(head, each.partition(":")[0].lower().encode()) for each in passed] == [
            each.partition(": ")[2].encode() for each in passed
        ]


@story
async def test_a_body_is_passed_on_byte_by_byte_as_it_came() -> None:
    body = b'{ "model":"glm",\t"x":1.00,"u":"\\u00e9\xc3\xa9","model" : "glm"}\r\n'
    async with house() as found:
        assert (await (await found.connect()).ask("POST", CHAT, body)).status == 200
        assert found.engine.asked[0][1] == body


@pytest.mark.parametrize(
    "path", ["completions", "chat/completions", "responses", "embeddings", "messages", "messages/count_tokens"]
)
@story
async def test_every_route_goes_to_the_same_path_of_the_engine_without_what_follows_a_question_mark(path: str) -> None:
    async with house() as found:
        assert (await (await found.connect()).ask("POST", f"/v1/{path}?beta=true", asked())).status == 200
        assert found.engine.asked[0][0].startswith(f"POST /v1/{path} HTTP/1.1\r\n".encode())


@story
async def test_of_an_engines_head_only_what_is_for_clients_is_passed_on() -> None:
    told = ("Server: uvicorn", "Set-Cookie: a=b", "Keep-Alive: timeout=5", "X-Request-Id: 7", "Connection: X-Own")
    more = ("X-Own: 1", "Access-Control-Allow-Origin: *", "Location: http://127.0.0.1/", "Retry-After: 3")
    async with house() as found:
        found.engine.usual = (whole(headers=(*told, *more)),)
        answered = await (await found.connect()).chat()
        names = [line.partition(b":")[0].lower() for line in answered.head.split(b"\r\n")[1:]]
        assert sorted(names) == [b"content-length", b"content-type", b"date", b"retry-after", b"x-request-id"]


# --- streams --------------------------------------------------------------------------------------------------


@story
async def test_an_event_is_with_the_client_before_the_engine_sends_the_next() -> None:
    async with house() as found:
        goes = [asyncio.Event() for _ in range(4)]
        script = [step for number, go in enumerate(goes) for step in (event(str(number)), go)]
        found.engine.usual = (STREAM, *script, event("", finish="stop"), DONE)
        client = await found.connect()
        client.send(request("POST", CHAT, asked(stream=True)))
        head = await client.head()
        assert header_of(head, b"content-type") == b"text/event-stream; charset=utf-8"
        assert header_of(head, b"cache-control") == b"no-cache"
        assert header_of(head, b"x-accel-buffering") == b"no"
        for number, go in enumerate(goes):
            assert json.loads((await client.piece())[6:])["choices"][0]["delta"]["content"] == str(number)
            go.set()
        assert b"[DONE]" in b"".join([await client.piece() for _ in range(2)])


@story
async def test_an_event_that_comes_in_pieces_is_passed_on_whole() -> None:
    async with house() as found:
        data = b'data: {"choices":[{"delta":{"content":"K\xc3\xb6ln"}}]}\n\n'
        pieces = [step for at in range(0, len(data), 7) for step in (chunk(data[at : at + 7]), 0.001)]
        found.engine.usual = (STREAM, *pieces, event("", finish="stop"), DONE)
        client = await found.connect()
        client.send(request("POST", CHAT, asked(stream=True)))
        await client.head()
        assert await client.piece() == data


@story
async def test_a_connection_serves_stream_after_stream_over_one_connection_to_the_engine() -> None:
    async with house() as found:
        found.engine.usual = (STREAM, event("a"), event("b", finish="stop"), DONE)
        client = await found.connect()
        for _ in range(5):
            assert [each == b"[DONE]" for each in (await client.chat(stream=True)).events] == [False, False, True]
        assert found.engine.accepted == 1


@story
async def test_who_asked_for_no_stream_gets_a_whole_answer_even_if_it_came_in_chunks() -> None:
    async with house() as found:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        found.engine.usual = (head, chunk(b'{"model": "g'), 0.001, chunk(b'lm", "choices": []}'), LAST)
        answered = await (await found.connect()).chat()
        assert answered.json == {"model": MODEL, "choices": []}
        assert answered.header("content-length") == str(len(answered.body))


@story
async def test_a_client_that_reads_slowly_slows_its_engine_and_fills_no_memory() -> None:
    async with house() as found:
        found.engine.usual = (STREAM, *[event("a" * 200_000) for _ in range(200)], event("", finish="stop"), DONE)
        client = await found.connect(receive_bytes=8192)
        client.send(request("POST", CHAT, asked(stream=True)))
        await client.head()
        before = -1
        while before != found.engine.written_bytes:  # until it goes no further
            before = found.engine.written_bytes
            await asyncio.sleep(0.05)
        # What systems hold on the two connections is theirs; 40 MB it is not.
        assert before < 24 * 2**20
        connection = found.connection
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < 2**20
        while await client.piece():
            pass
        assert found.engine.written_bytes > 38 * 2**20


# --- clients that leave ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("begun", [False, True])
@story
async def test_when_a_client_leaves_so_does_its_request_to_the_engine(streamed: bool, begun: bool) -> None:
    async with house() as found:
        kind = b"text/event-stream" if streamed else b"application/json"
        head = STREAM.replace(b"text/event-stream", kind)
        found.engine.usual = (*((head, event("a")) if begun else ()), asyncio.Event())
        client = await found.connect()
        client.send(request("POST", CHAT, asked(stream=streamed)))
        await until(lambda: len(found.engine.asked) == 1)
        if begun and streamed:
            assert await client.head()
        assert found.under_way == 1
        client.leave()
        await until(lambda: found.under_way == 0)
        await until(lambda: not found.engine.links)


@story
async def test_many_clients_that_leave_at_any_moment_leave_nothing_behind() -> None:
    async with house() as found:
        found.engine.usual = (STREAM, *[step for _ in range(20) for step in (event("a"), 0.002)], DONE)
        for moment in range(40):
            client = await found.connect()
            client.send(request("POST", CHAT, asked(stream=True)))
            await asyncio.sleep(moment * 0.0005)  # the moment
            client.leave()
        await until(lambda: found.under_way == 0)
        await until(lambda: found.gateway.connections == 0)
        assert (await (await found.connect()).chat(stream=True)).status == 200


@story
async def test_a_client_that_ends_only_its_side_has_left() -> None:
    async with house() as found:
        found.engine.usual = (STREAM, event("a"), asyncio.Event())
        client = await found.connect()
        client.send(request("POST", CHAT, asked(stream=True)))
        assert await client.head()
        client.writer.write_eof()
        await until(lambda: found.under_way == 0)


# --- answers that are none ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"rubbish\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nabc",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
        b"\x16\x03\x01\x00\xc8",
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
@story
async def test_what_is_no_answer_is_503_and_the_next_request_is_served(said: bytes, streamed: bool) -> None:
    async with house() as found:
        found.engine.scripts.append((said, 0.01, "fin"))
        client = await found.connect()
        refused = await client.chat(stream=streamed)
        assert (refused.status, refused.code) == (503, "engine_died")
        assert int(refused.header("retry-after") or "0") >= 1
        assert (await client.chat()).status == 200


@story
async def test_an_answer_that_is_no_json_is_502_in_the_clients_form() -> None:
    async with house() as found:
        client = await found.connect()
        for body in (b"<html>", b"", b'{"choices": [', b"\xff\xfe", b'{"error": "\xff"}', b"[" * 100_000):
            found.engine.usual = (whole(body),)
            answered = await client.chat()
            assert answered.status == 502
            assert answered.json["error"]["code"]


@story
async def test_interim_answers_of_an_engine_are_not_passed_on() -> None:
    async with house() as found:
        interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <a>\r\nX-Early: 1\r\n\r\n"
        found.engine.usual = (interim, 0.005, whole())
        client = await found.connect()
        for _ in range(2):
            answered = await client.chat()
            assert (answered.status, answered.interim, answered.header("x-early")) == (200, [], None)
        assert found.engine.accepted == 1


@story
async def test_an_answer_beyond_the_bound_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "ANSWER_BYTES", 2**20)
    taken, on_body = [0], Connection.on_body

    def counted(self: Connection, body: bytes) -> None:
        taken[0] += len(body)
        on_body(self, body)

    monkeypatch.setattr(Connection, "on_body", counted)
    async with house() as found:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        found.engine.scripts.append((head, *[chunk(b" " * 65_536)] * 2000, LAST))
        client = await found.connect()
        assert (await client.chat()).status in (502, 503)
        assert taken[0] < 8 * 2**20  # of 125
        assert (await client.chat()).status == 200


@story
async def test_an_engines_refusal_keeps_its_status_and_has_the_clients_form() -> None:
    async with house() as found:
        client = await found.connect()
        for status, expected in ((400, 400), (404, 404), (422, 400), (429, 429), (500, 502), (401, 502), (302, 502)):
            found.engine.usual = (whole({"error": {"message": "no"}}, status=status),)
            answered = await client.chat()
            assert answered.status == expected
            assert set(answered.json["error"]) == {"message", "type", "param", "code"}
            answered = await client.chat(stream=True)
            assert (answered.status, answered.header("content-type")) == (expected, "application/json")


@story
async def test_other_options_hold_for_requests_after_them() -> None:
    async with house() as found:
        client = await found.connect()
        await found.gateway.reload(GatewayOptions(queue=0), None, None)
        assert (await client.chat()).status == 429
        await found.gateway.reload(GatewayOptions(), None, None)
        assert (await client.chat()).status == 200


@story
async def test_a_refusal_is_put_right_by_the_engines_own_status() -> None:
    """What a status of 501 means is known, and lost once the gateway has made it a 502."""
    async with house() as found:
        found.engine.usual = (whole({"error": {"message": "This server does not support embeddings"}}, status=501),)
        assert found.replica.place is not None
        found.replica.place = msgspec.structs.replace(found.replica.place, engine="llamacpp")
        answered = await (await found.connect()).chat()
        assert (answered.status, answered.code) == (404, "not_supported")


@story
async def test_an_engine_that_only_refuses_shows_no_sign_of_life() -> None:
    async with house() as found:
        client = await found.connect()
        await client.chat()
        before = found.replica.traffic.answers
        assert before > 0
        found.engine.usual = (whole({"error": {"message": "no"}}, status=400),)
        await client.chat()
        await client.chat(stream=True)
        assert found.replica.traffic.answers == before
