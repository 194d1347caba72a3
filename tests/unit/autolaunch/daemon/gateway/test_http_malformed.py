"""What is no HTTP, or could be read in two ways: refused, closed, and never a second request."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.fakes.scripted import asked, house, request, story, until

#: A request within a request. Were it ever served, an engine would be asked for it.
HIDDEN = request("POST", "/v1/chat/completions", asked(user="hidden"))
BODY = json.dumps(asked()).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"

MALFORMED: dict[str, bytes] = {
    "rubbish": b"\x00\x01\x02\x03\x04\x05\x06\x07\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100c8010000c40303") + b"\xa5" * 190,
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "no method": b" /health HTTP/1.1\r\n\r\n",
    "an unknown method": b"BREW /pot HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method in lower case": b"get /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no version": b"GET /health\r\nHost: localhost\r\n\r\n",
    "another protocol": b"GET /health ICY/1.1\r\n\r\n",
    "a blank in the address": b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a NUL in the address": b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "line ends without CR": b"GET /health HTTP/1.1\nHost: localhost\n\n",
    "a header's end without CR": b"GET /health HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
    "line ends without LF": b"GET /health HTTP/1.1\rHost: localhost\r\r",
    "a NUL in a header": GET + b"X: a\0b\r\n\r\n",
    "a NUL in a header's name": GET + b"X\0: a\r\n\r\n",
    "a CR in a header": GET + b"X: a\rb\r\n\r\n",
    "a folded header": GET + b"X: a\r\n b\r\n\r\n",
    "a blank before the colon": GET + b"X : a\r\n\r\n",
    "a header without a colon": GET + b"X\r\n\r\n",
    "a header without a name": GET + b": a\r\n\r\n",
    "a blank before the first header": b"GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "a control character": GET + b"X: a\x0bb\x01\r\n\r\n",
}

TWO_WAYS: dict[str, bytes] = {
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 500\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "one length twice": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n\r\nabcde",
    "a length with a sign": POST + b"Content-Length: +5\r\n\r\nabcde",
    "a negative length": POST + b"Content-Length: -5\r\n\r\nabcde",
    "a length in base 16": POST + b"Content-Length: 0x5\r\n\r\nabcde",
    "a length that is a fraction": POST + b"Content-Length: 5.0\r\n\r\nabcde",
    "an empty length": POST + b"Content-Length: \r\n\r\n",
    "a length beyond 64 bits": POST + b"Content-Length: 18446744073709551621\r\n\r\nabcde",
    "chunked is not last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and identity": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "nearly chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in quotes": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "an unknown coding": POST + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "a tab before chunked": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "a blank before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
@story
async def test_what_is_no_http_is_refused_once_and_closed(swift: None, sent: bytes) -> None:
    async with house() as found:
        told = await found.once(sent + HIDDEN)
        assert told.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 505 "))
        assert told.count(b"HTTP/1.1 ") == 1
        assert b"connection: close" in told
        assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"] == "malformed"
        assert found.engine.asked == []


@pytest.mark.parametrize("sent", TWO_WAYS.values(), ids=TWO_WAYS)
@story
async def test_a_body_whose_length_can_be_read_in_two_ways_makes_no_second_request(swift: None, sent: bytes) -> None:
    async with house() as found:
        for pause in (False, True):
            client = await found.connect()
            client.send(sent)
            if pause:
                await asyncio.sleep(0.01)  # in a segment of its own
            client.send(HIDDEN)
            client.writer.write_eof()
            told = await client.rest()
            assert not told.startswith(b"HTTP/1.1 2")
            assert told.count(b"HTTP/1.1 ") <= 2
            assert found.engine.asked == []


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
@story
async def test_a_good_request_before_what_is_malformed_is_answered(swift: None, sent: bytes) -> None:
    async with house() as found:
        told = await found.once(request("POST", "/v1/chat/completions", BODY) + sent + HIDDEN)
        assert told.startswith(b"HTTP/1.1 200 ")
        assert len(found.engine.asked) == 1


@story
async def test_a_body_that_holds_a_request_is_a_body() -> None:
    async with house() as found:
        client = await found.connect()
        for path, expected in (("/v1/chat/completions", 400), ("/v1/nothing", 404), ("/health", 405)):
            assert (await client.ask("POST", path, HIDDEN)).status == expected
        assert (await client.ask("GET", "/health", HIDDEN)).status == 200
        assert (await client.ask("GET", "/health")).status == 200
        assert found.engine.asked == []


@story
async def test_what_follows_a_request_that_closes_is_never_served(swift: None) -> None:
    closing = request("POST", "/v1/chat/completions", asked(), "Connection: close")
    async with house() as found:
        found.engine.usual = (0.03, *found.engine.usual)
        assert (await found.once(closing + HIDDEN)).count(b"HTTP/1.1 ") == 1
        client = await found.connect()
        client.send(closing)
        await until(lambda: len(found.engine.asked) == 2)
        client.send(HIDDEN)
        assert (await client.rest()).count(b"HTTP/1.1 200") == 1
        assert not any(b"hidden" in body for _, body in found.engine.asked)


@story
async def test_what_follows_a_refusal_that_closes_is_never_served(swift: None) -> None:
    async with house() as found:
        for refused in (b"X: " + b"a" * 70_000 + b"\r\n\r\n", b"Content-Encoding: gzip\r\nContent-Length: 0\r\n\r\n"):
            client = await found.connect()
            client.send(POST + refused + HIDDEN)
            await asyncio.sleep(0.01)  # in a segment of its own
            client.send(HIDDEN)
            assert (await client.rest()).count(b"HTTP/1.1 ") == 1
        assert found.engine.asked == []


@story
async def test_what_a_client_sends_never_makes_a_header_of_an_answer() -> None:
    async with house() as found:
        client = await found.connect()
        for path in ("/v1/models/%0d%0aX-Evil:%20y", "/v1/models/a\tb", "/%0d%0aX-Evil:y"):
            client.send(b"GET " + path.replace("\t", "%09").encode() + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answered = await client.answer()
            assert answered.status == 404
            assert answered.header("x-evil") is None
