"""Bodies of requests: how long, how slow, and in what form."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc

import pytest

from autolaunch.daemon.gateway import http
from autolaunch.daemon.gateway.keys import Keys, key_of
from autolaunch.daemon.gateway.options import GatewayOptions
from autolaunch.daemon.gateway.request import Request
from tests.fakes.scripted import asked, chunk, house, request, story, until

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = CHAT + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = json.dumps(asked()).encode()
SMALL = GatewayOptions(body_bytes=100_000, body_seconds=0.1)


def status(told: bytes) -> int:
    """Of the one answer that is all of ``told``."""
    assert told.startswith(b"HTTP/1.1 ")
    assert told.count(b"HTTP/1.1 ") == 1
    return int(told.split(b" ", 2)[1])


def padded(size: int) -> bytes:
    """A good request of so many bytes."""
    return BODY + b" " * (size - len(BODY))


# --- how long -------------------------------------------------------------------------------------------------


@story
async def test_a_body_whose_length_is_beyond_the_bound_is_refused_before_it_is_sent(swift: None) -> None:
    async with house(SMALL) as found:
        assert status(await found.once(CHAT + b"Content-Length: 100001\r\n\r\n")) == 413
        assert status(await found.once(CHAT + b"Content-Length: 99999999999999999\r\n\r\n" + padded(1000))) == 413
        assert found.engine.asked == []


@story
async def test_a_body_of_just_the_bound_is_passed_on() -> None:
    async with house(GatewayOptions(body_bytes=100_000)) as found:
        client = await found.connect()
        assert (await client.ask("POST", "/v1/chat/completions", padded(100_000))).status == 200
        client.send(CHUNKED + chunk(padded(60_000)) + chunk(b" " * 40_000) + b"0\r\n\r\n")
        assert (await client.answer()).status == 200
        assert [len(body) for _, body in found.engine.asked] == [100_000, 100_000]


@story
async def test_chunks_without_end_are_refused_at_the_bound_and_never_held(
    swift: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A client that never stops is reset when its time is over, and a reset hides what had come before it.
    monkeypatch.setattr(http, "LINGER_SECONDS", 60.0)
    async with house(GatewayOptions(body_bytes=2**20)) as found:
        client = await found.connect()
        tracemalloc.start()
        try:
            client.send(CHUNKED)
            piece = chunk(b"a" * 65_536)
            for _ in range(400):
                client.send(piece)
                try:
                    async with asyncio.timeout(0.5):
                        await client.writer.drain()
                except (ConnectionError, TimeoutError):
                    break
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert status(await client.rest()) == 413
        # Our own side of it is in the same process: what waits to be sent, and what was read of the answer.
        assert most < 6 * 2**20
        assert found.gateway.connections == 1
        monkeypatch.setattr(http, "LINGER_SECONDS", 0.1)
        await until(lambda: found.gateway.connections == 0)


@pytest.mark.parametrize(
    "more",
    [b"X-Trailer: " + b"a" * 300_000, b"X-Trailer: b\r\n" * 10_000, b"X: y\r\n" * 150],
    ids=["one without end", "many", "more than headers may be"],
)
@story
async def test_trailers_are_bounded_as_heads_are(swift: None, more: bytes) -> None:
    async with house() as found:
        assert status(await found.once(CHUNKED + chunk(BODY) + b"0\r\n" + more)) == 431
        assert found.engine.asked == []


@story
async def test_the_names_of_chunks_are_bounded_as_heads_are(swift: None) -> None:
    async with house() as found:
        assert status(await found.once(CHUNKED + b"5;" + b"a" * 300_000)) == 431


@story
async def test_trailers_are_no_headers() -> None:
    async with house() as found:
        client = await found.connect()
        client.send(CHUNKED + chunk(BODY) + b"0\r\nX-Request-Id: smuggled\r\nHost: elsewhere\r\n\r\n")
        assert (await client.answer()).status == 200
        assert (await client.ask("GET", "/health")).status == 200
        assert b"smuggled" not in found.engine.asked[0][0]


# --- how slow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n"])
@story
async def test_a_body_that_stops_coming_is_answered_408_and_closed(swift: None, framing: bytes) -> None:
    async with house(SMALL) as found:
        assert status(await found.once(CHAT + framing + BODY[:10])) == 408


@story
async def test_a_body_that_trickles_in_is_not_forgiven_for_every_byte(swift: None) -> None:
    async with house(SMALL) as found:
        client = await found.connect()
        client.send(CHAT + b"Content-Length: 1000\r\n\r\n")
        for _ in range(100):
            client.send(b" ")
            await asyncio.sleep(0.005)  # a client that trickles
            if not client.quiet:
                break
        assert status(await client.rest()) == 408


@story
async def test_a_long_body_that_comes_at_a_fair_rate_has_its_time(swift: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_BYTES_PER_SECOND", 100_000)
    async with house(GatewayOptions(body_seconds=0.05)) as found:
        client = await found.connect()
        client.send(CHAT + b"Content-Length: 60000\r\n\r\n")
        for piece in range(6):
            client.send(padded(60_000)[piece * 10_000 :][:10_000])
            await asyncio.sleep(0.03)  # six times that is more than ``body_seconds``
        assert (await client.answer()).status == 200


@story
async def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten() -> None:
    async with house() as found:
        for framing in (b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n"):
            client = await found.connect()
            client.send(CHAT + framing + BODY[:10])
            await until(lambda: found.gateway.connections == 1)
            client.leave()
            await until(lambda: found.gateway.connections == 0)
        assert found.engine.asked == []


@story
async def test_a_client_that_leaves_is_seen_even_if_its_body_came_in_one_go() -> None:
    # Such a body may stop the reading of its connection, and nobody reads it further.
    async with house() as found:
        found.engine.usual = (asyncio.Event(),)
        for size in range(1_000_000, 1_400_000, 50_000):
            client = await found.connect()
            client.send(request("POST", "/v1/chat/completions", padded(size)))
            await until(lambda: found.under_way == 1)
            client.leave()
            await until(lambda: found.under_way == 0)


# --- in what form ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest",
    [
        b"xyz\r\nabc\r\n0\r\n\r\n",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b" 3\r\nabc\r\n0\r\n\r\n",
        b"3\nabc\n0\n\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"\r\n\r\n",
        b"fffffffffffffffff\r\nabc",
        b"3;a=\0\r\nabc\r\n0\r\n\r\n",
    ],
)
@story
async def test_chunks_that_are_not_of_their_form_are_refused_and_the_connection_closed(
    swift: None, rest: bytes
) -> None:
    async with house() as found:
        told = await found.once(CHUNKED + rest)
        assert status(told) == 400
        assert b"connection: close" in told
        told = await found.once(CHUNKED + chunk(BODY) + rest)
        assert status(told) == 400
        assert found.engine.asked == []


@story
async def test_a_body_is_passed_on_as_it_came_however_it_is_cut() -> None:
    async with house() as found:
        for framing, body in ((b"Content-Length: %d\r\n\r\n" % len(BODY), BODY), (b"", b"")):
            whole = CHAT + framing + body if framing else CHUNKED + chunk(BODY[:9]) + chunk(BODY[9:]) + b"0\r\n\r\n"
            for size in (1, 5, 64):
                client = await found.connect()
                for at in range(0, len(whole), size):
                    client.send(whole[at : at + size])
                    await asyncio.sleep(0)
                assert (await client.answer()).status == 200
        assert {body for _, body in found.engine.asked} == {BODY}


@pytest.mark.parametrize("packing", ["gzip", "br", "deflate", "zstd", "GZIP", "gzip, identity"])
@story
async def test_a_packed_body_is_refused_unread(swift: None, packing: str) -> None:
    async with house() as found:
        sent = request("POST", "/v1/chat/completions", b"\x1f\x8b" + b"\0" * 500, f"Content-Encoding: {packing}")
        told = await found.once(sent)
        assert status(told) == 415
        assert found.engine.asked == []


@pytest.mark.parametrize("expectation", ["100-continue", "100-Continue"])
@story
async def test_a_client_that_waits_to_be_told_is_told_to_send_its_body(expectation: str) -> None:
    async with house() as found:
        client = await found.connect()
        client.send(CHAT + f"Expect: {expectation}\r\nContent-Length: {len(BODY)}\r\n\r\n".encode())
        assert await client.head() == b"HTTP/1.1 100 Continue"
        client.send(BODY)
        answered = await client.answer()
        assert (answered.status, answered.interim) == (200, [])


@story
async def test_a_client_that_waits_to_be_told_is_refused_without_its_body(swift: None) -> None:
    async with house(SMALL) as found:
        for path, length, expected in (("chat/completions", 100_001, 413), ("nothing", 10, 404), ("models", 10, 405)):
            head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {length}"
            assert status(await found.once(head.encode() + b"\r\n\r\n")) == expected


@story
async def test_an_http_1_0_client_is_never_sent_an_interim_answer() -> None:
    async with house() as found:
        old = CHAT.replace(b"HTTP/1.1", b"HTTP/1.0")
        client = await found.connect()
        client.send(old + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        await asyncio.sleep(0.02)  # it would come now
        assert client.quiet
        client.send(BODY)
        assert status(await client.rest()) == 200


@story
async def test_a_body_where_none_belongs_is_read_over() -> None:
    async with house() as found:
        client = await found.connect()
        for method, path, told in (("GET", "/health", 200), ("GET", "/v1/models", 200), ("OPTIONS", "/v1/models", 405)):
            assert (await client.ask(method, path, b"GET /nothing HTTP/1.1\r\n\r\n")).status == told
        assert (await client.ask("GET", "/health")).status == 200


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "POST", "TRACE"])
@story
async def test_a_refused_request_with_a_body_leaves_the_connection_usable(method: str) -> None:
    async with house() as found:
        client = await found.connect()
        for _ in range(3):
            assert (await client.ask(method, "/v1/models", BODY)).status == 405
        assert (await client.chat()).status == 200


@story
async def test_a_body_in_crumbs_is_refused_before_they_are_many(swift: None) -> None:
    async with house(GatewayOptions(body_bytes=2**24)) as found:
        crumbs = b"".join(chunk(b" x") for _ in range(8192))
        assert status(await found.once(CHUNKED + crumbs * 4)) == 400
        assert found.engine.asked == []


@story
async def test_a_request_that_is_refused_leaves_nothing_for_the_garbage_collector() -> None:
    async with house(keys=Keys(entries=(key_of("web", "k" * 20),))) as found:
        client = await found.connect()
        await client.ask("POST", "/v1/chat/completions", padded(1000))
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                assert (await client.ask("POST", "/v1/chat/completions", padded(1000))).status == 401
            assert sum(type(each) is Request for each in gc.get_objects()) < 5
        finally:
            gc.enable()
