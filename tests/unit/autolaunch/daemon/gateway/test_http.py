"""Connections and heads of requests: what is bounded, and what a client that does not keep to it is told."""

from __future__ import annotations

import asyncio

import pytest

from autolaunch.daemon.gateway import http
from autolaunch.daemon.gateway.options import GatewayOptions
from tests.fakes.scripted import DONE, MODEL, STREAM, House, asked, event, house, request, story, until

HEALTH = request("GET", "/health")


async def served(found: House) -> None:
    """Somebody else is served as ever."""
    assert (await (await found.connect()).ask("GET", "/health")).status == 200


def status(told: bytes) -> int:
    """Of the one answer that is all of ``told``."""
    assert told.startswith(b"HTTP/1.1 ")
    assert told.count(b"HTTP/1.1 ") == 1
    return int(told.split(b" ", 2)[1])


# --- heads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X-Long: " + b"a" * 200_000, 431),
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET /" + b"a" * 300_000, 414),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    ],
    ids=["head", "head without end", "address", "address without end", "headers"],
)
@story
async def test_a_head_beyond_its_bounds_is_refused_and_the_connection_closed(
    swift: None, head: bytes, expected: int
) -> None:
    async with house() as found:
        told = await found.once(head)
        assert status(told) == expected
        assert b"connection: close" in told
        await served(found)


@story
async def test_a_head_within_its_bounds_is_served_however_it_is_cut() -> None:
    async with house() as found:
        client = await found.connect()
        long = request("GET", "/health", None, "Host: localhost", *(f"X-{n}: {'a' * 500}" for n in range(90)))
        for size in (1, 7, 4096):
            short = HEALTH if size < 4096 else long
            for at in range(0, len(short), size):
                client.send(short[at : at + size])
                await asyncio.sleep(0)
            assert (await client.answer()).status == 200


@story
async def test_a_head_that_comes_too_slowly_is_answered_408_and_closed(swift: None) -> None:
    async with house(GatewayOptions(header_seconds=0.1, idle_seconds=30.0)) as found:
        for begun in (b"G", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: loc"):
            assert status(await found.once(begun)) == 408


@story
async def test_a_head_that_trickles_in_is_not_forgiven_for_every_byte(swift: None) -> None:
    async with house(GatewayOptions(header_seconds=0.1)) as found:
        client = await found.connect()
        for byte in b"GET /health HTTP/1.1\r\nX: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":
            client.send(bytes((byte,)))
            await asyncio.sleep(0.005)  # a client that trickles
            if not client.quiet:
                break
        assert status(await client.rest()) == 408


@story
async def test_a_connection_without_a_request_is_kept_for_its_time_and_then_closed_in_silence(swift: None) -> None:
    async with house(GatewayOptions(idle_seconds=0.1, header_seconds=30.0)) as found:
        assert await found.once(b"") == b""
        client = await found.connect()
        assert (await client.ask("GET", "/health")).status == 200
        assert await client.rest() == b""
        assert found.gateway.connections == 0


@story
async def test_an_answer_under_way_is_not_an_idle_connection(swift: None) -> None:
    async with house(GatewayOptions(idle_seconds=0.05, header_seconds=0.05, body_seconds=0.05)) as found:
        found.engine.usual = (0.3, *found.engine.usual)
        assert (await (await found.connect()).chat()).status == 200


@story
async def test_the_time_of_a_second_head_begins_with_it(swift: None) -> None:
    async with house(GatewayOptions(header_seconds=0.15, idle_seconds=30.0)) as found:
        client = await found.connect()
        assert (await client.ask("GET", "/health")).status == 200
        await asyncio.sleep(0.2)  # idle for longer than a head may take
        client.send(HEALTH[:20])
        await asyncio.sleep(0.05)  # and slow, but not too slow
        client.send(HEALTH[20:])
        assert (await client.answer()).status == 200


# --- how many -------------------------------------------------------------------------------------------------


@story
async def test_connections_beyond_the_bound_are_told_to_come_later_and_closed(swift: None) -> None:
    async with house(GatewayOptions(connections=3)) as found:
        kept = [await found.connect() for _ in range(3)]
        for each in kept:
            assert (await each.ask("GET", "/health")).status == 200
        for _ in range(5):
            told = await found.once(HEALTH)
            assert status(told) == 503
            assert b"retry-after: 1\r\n" in told
        kept.pop().leave()
        await until(lambda: found.gateway.connections < 3)
        await served(found)
        assert (await kept[0].ask("GET", "/health")).status == 200


@story
async def test_requests_sent_ahead_are_answered_in_their_order() -> None:
    async with house() as found:
        engine = found.engine
        engine.scripts += [(0.05, *engine.usual), engine.usual]
        client = await found.connect()
        chat = request("POST", "/v1/chat/completions", asked())
        client.send(chat + HEALTH + request("GET", "/nothing") + chat + request("GET", "/v1/models"))
        assert [(await client.answer()).status for _ in range(5)] == [200, 200, 404, 200, 200]
        assert len(engine.asked) == 2


@story
async def test_more_requests_ahead_than_the_bound_are_answered_all_the_same_and_are_not_all_held() -> None:
    async with house() as found:
        first, held = asyncio.Event(), 0
        found.engine.usual = (first, *found.engine.usual)
        client = await found.connect()
        ahead = request("GET", "/health", None, "X-Long: " + "a" * 4000)
        client.send(request("POST", "/v1/chat/completions", asked()) + ahead * 800)
        await until(lambda: len(found.engine.asked) == 1)
        connection = found.connection
        first.set()
        for _ in range(801):
            assert (await client.answer()).status == 200
            held = max(held, len(connection._ahead))
        # What came in one piece is taken apart at once; the next piece waits until few are left.
        assert held <= http.AHEAD + 262_144 / len(ahead)


@story
async def test_a_client_that_reads_nothing_is_answered_no_more_of_what_it_sends_ahead() -> None:
    async with house() as found:
        client = await found.connect(receive_bytes=4096)
        client.send(request("GET", "/metrics") * 5_000)
        connection = found.connection
        transport = connection._transport
        assert transport is not None
        most = 0
        for _ in range(40):
            await asyncio.sleep(0.002)  # answers would pile up now
            most = max(most, transport.get_write_buffer_size())
        assert most < 2**20


@story
async def test_a_client_that_takes_nothing_of_its_answer_is_left_after_a_while(
    swift: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "SEND_SECONDS", 0.1)
    async with house() as found:
        client = await found.connect(receive_bytes=4096)
        client.send(request("GET", "/metrics") * 500)
        await until(lambda: found.gateway.connections == 0)


@story
async def test_a_long_answer_is_read_at_leisure_and_not_cut_as_an_idle_connection(swift: None) -> None:
    async with house(GatewayOptions(idle_seconds=0.05)) as found:
        text = "a" * 12_000_000
        found.engine.usual = (_long(text),)
        client = await found.connect(receive_bytes=65536)
        client.send(request("POST", "/v1/chat/completions", asked()))
        head = await client.head()
        await asyncio.sleep(0.2)  # longer than an idle connection may live
        assert b" 200 " in head
        assert text.encode() in await client.rest()


def _long(text: str) -> bytes:
    body = b'{"model": "' + MODEL.encode() + b'", "choices": [{"message": {"content": "' + text.encode() + b'"}}]}'
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


# --- which HTTP -----------------------------------------------------------------------------------------------


@story
async def test_http_1_0_is_closed_after_its_answer_unless_it_asks_to_be_kept() -> None:
    async with house() as found:
        told = await found.once(b"GET /health HTTP/1.0\r\n\r\n")
        assert status(told) == 200
        assert b"connection: close\r\n" in told
        client = await found.connect()
        for _ in range(2):
            client.send(b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await client.answer()).header("connection") == "keep-alive"


@story
async def test_an_http_1_0_client_gets_a_stream_without_chunks_that_ends_with_the_connection() -> None:
    async with house() as found:
        found.engine.usual = (STREAM, event("a"), event("b", finish="stop"), DONE)
        old = request("POST", "/v1/chat/completions", asked(stream=True), "Connection: keep-alive")
        told = await found.once(old.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert b"transfer-encoding" not in told
        assert b"connection: close" in told
        assert told.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("version", [b"0.9", b"2.0", b"1.2", b"3.0", b"11"])
@story
async def test_no_other_version_of_http_is_spoken(swift: None, version: bytes) -> None:
    async with house() as found:
        told = await found.once(b"GET /health HTTP/" + version + b"\r\nHost: localhost\r\n\r\n")
        assert status(told) in (400, 505)
        assert b"connection: close" in told


@story
async def test_head_has_the_head_of_get_and_no_body() -> None:
    async with house() as found:
        client = await found.connect()
        for path in ("/health", "/ready", "/v1/models", f"/v1/models/{MODEL}", "/metrics", "/nothing"):
            head = await client.ask("HEAD", path)
            assert client.quiet
            got = await client.ask("GET", path)
            assert (head.status, head.header("content-length")) == (got.status, str(len(got.body)))


@story
async def test_another_protocol_is_not_taken_up_and_its_request_served_as_http_1_1() -> None:
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    async with house() as found:
        answered = await found.once(request("POST", "/v1/chat/completions", asked(), *upgrade))
        assert status(answered) == 200
        assert b"connection: close" in answered
        assert status(await found.once(request("GET", "/health", None, *upgrade))) == 200
        assert len(found.engine.asked) == 1


@story
async def test_what_follows_the_offer_of_another_protocol_is_never_a_request() -> None:
    offer = request("POST", "/v1/chat/completions", asked(), "Connection: Upgrade", "Upgrade: websocket")
    async with house() as found:
        found.engine.usual = (0.05, *found.engine.usual)
        client = await found.connect()
        client.send(offer)
        await until(lambda: len(found.engine.asked) == 1)
        client.send(request("POST", "/v1/chat/completions", asked()) * 3)
        assert status(await client.rest()) == 200
        assert len(found.engine.asked) == 1


@story
async def test_the_gateway_is_no_proxy_to_anywhere(swift: None) -> None:
    async with house() as found:
        for line in (
            b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443",
            b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost:22",
            b"GET http://example.com/v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close",
            b"PRI * HTTP/2.0\r\n\r\nSM",
        ):
            assert 400 <= status(await found.once(line + b"\r\n\r\n")) < 500
        assert found.engine.accepted == 0


# --- its end --------------------------------------------------------------------------------------------------


@story
async def test_closing_ends_idle_connections_now_and_answers_under_way_after_their_end() -> None:
    async with house() as found:
        found.engine.usual = (0.1, *found.engine.usual)
        idle, busy = await found.connect(), await found.connect()
        assert (await idle.ask("GET", "/health")).status == 200
        busy.send(request("POST", "/v1/chat/completions", asked()))
        await until(lambda: len(found.engine.asked) == 1)
        closing = asyncio.ensure_future(found.gateway.close())
        assert await idle.rest() == b""
        answered = await busy.answer()
        assert (answered.status, answered.header("connection")) == (200, "close")
        await closing
        with pytest.raises(OSError, match=r"refused|Connect call failed|Errno"):
            await found.connect()
