"""Laws of the gateway: whatever bytes come, it answers in HTTP, never with a fault of its own, and keeps nothing."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import httptools
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autolaunch.daemon.gateway import http, listener
from autolaunch.daemon.gateway.options import GatewayOptions
from tests.fakes.scripted import (
    DONE,
    LAST,
    MODEL,
    STREAM,
    Client,
    House,
    Step,
    asked,
    chunk,
    event,
    house,
    request,
    until,
    whole,
)

Found = TypeVar("Found")
CHAT = "/v1/chat/completions"
BODY = json.dumps(asked()).encode()

REQUESTS: tuple[bytes, ...] = (
    request("GET", "/health"),
    request("GET", "/ready"),
    request("GET", "/v1/models"),
    request("GET", f"/v1/models/{MODEL}"),
    request("GET", "/metrics", None, "Accept: application/openmetrics-text"),
    request("OPTIONS", CHAT, None, "Origin: https://chat.example.com"),
    request("POST", CHAT, asked()),
    request("POST", CHAT, asked(stream=True)),
    request("POST", "/v1/completions", {"model": MODEL, "prompt": "a"}),
    request("POST", "/v1/embeddings", {"model": MODEL, "input": ["a", "b"]}),
    request("POST", "/v1/messages", asked(max_tokens=5), "Anthropic-Version: 2023-06-01"),
    request("POST", "/v1/responses", {"model": "nobody", "input": "a"}),
    request("POST", CHAT, asked(), "Connection: Upgrade", "Upgrade: h2c"),
    request("POST", CHAT, asked(), "Expect: 100-continue"),
    request("POST", CHAT, asked(), "Prefer: wait=1", "Connection: close"),
    request("POST", CHAT, None, "Transfer-Encoding: chunked") + chunk(BODY[:20]) + chunk(BODY[20:]) + LAST,
    b"GET /health HTTP/1.0\r\n\r\n",
    b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
)
TOKENS: tuple[bytes, ...] = (
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b"\xff", b"\xc3", b'"', b"{", b"[", b"0\r\n\r\n"),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n"),
    *(b"Host: localhost\r\n", b"Host: evil.example\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\n"),
    *(b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n", b"Origin: null\r\n", b"X: y\r\n" * 120),
    *(b"GET / HTTP/1.1\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"ffffffffffffffff\r\n"),
    *(b"a" * 70_000, b"[" * 5_000, b"\\ud800", b"1" * 5_000, b"NaN", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/9.9"),
)


#: A place in a thousand, how many bytes go there, and what comes: a token by its number, or bytes.
Edit = tuple[int, int, int | bytes]
EDITS = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 40), st.integers(0, len(TOKENS) - 1) | st.binary(max_size=8)),
    max_size=4,
)


def edited(requests: list[int], edits: list[Edit]) -> bytes:
    """A few requests one after the other, with some places that are not as they should be."""
    sent = b"".join(REQUESTS[each] for each in requests)
    for place, gone, put in edits:
        at = len(sent) * place // 1000
        sent = sent[:at] + (put if isinstance(put, bytes) else TOKENS[put]) + sent[at + gone :]
    return sent


def pieces(sent: bytes, cuts: list[int]) -> list[bytes]:
    """``sent``, cut at these places of a thousand."""
    places = [0, *sorted(len(sent) * cut // 1000 for cut in cuts), len(sent)]
    return [sent[one:other] for one, other in itertools.pairwise(places)]


CUTS = st.lists(st.integers(0, 1000), max_size=6)


class Parsed:
    """Answers as a strict parser reads them."""

    def __init__(self, told: bytes) -> None:
        self.statuses: list[int] = []
        self.bodies: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(told)

    def on_message_begin(self) -> None:
        self.bodies.append(b"")

    def on_headers_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body


class World:
    """One gateway for many examples."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.stack = AsyncExitStack()
        self.house: House = self.run(self.stack.enter_async_context(house(GatewayOptions(body_bytes=100_000))))

    def run(self, told: Coroutine[Any, Any, Found]) -> Found:
        return self.runner.run(told)

    def close(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    async def tell(self, sent: list[bytes]) -> bytes:
        """What comes back within a moment; the client has left then."""
        client: Client = await self.house.connect()
        for piece in sent:
            client.send(piece)
            await asyncio.sleep(0)
        got = b""
        try:
            async with asyncio.timeout(0.02):
                while piece := await client.reader.read(2**20):
                    got += piece
        except (TimeoutError, ConnectionError):
            pass
        await self.leave(client)
        return got

    async def leave(self, client: Client) -> None:
        client.leave()
        self.house.clients.remove(client)
        await until(lambda: self.house.gateway.connections == 0 and self.house.under_way == 0)
        assert self.house.faults == []


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listener, "SWEEP_SECONDS", 0.02)
        patch.setattr(http, "LINGER_SECONDS", 0.02)
        made = World()
        yield made
        made.close()


many = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(requests=st.lists(st.integers(0, len(REQUESTS) - 1), min_size=1, max_size=4), edits=EDITS, cuts=CUTS)
def test_whatever_bytes_come_the_answers_are_http_and_no_500(
    world: World, requests: list[int], edits: list[Edit], cuts: list[int]
) -> None:
    sent = edited(requests, edits)
    world.house.engine.usual = (whole(),)
    world.house.engine.asked.clear()
    told = Parsed(world.run(world.tell(pieces(sent, cuts))))
    assert not {status for status in told.statuses if status >= 500} - {503, 505}
    # What an engine was asked is a request for its model, and no more than was sent.
    assert len(world.house.engine.asked) <= sent.count(b'"model"') + sent.count(b'model"')
    for head, body in world.house.engine.asked:
        assert head.startswith(b"POST /v1/")
        assert json.loads(body.decode(errors="replace"))["model"] == MODEL


@many
@given(sent=st.binary(max_size=300), cuts=CUTS)
def test_bytes_that_were_no_request_ever_are_never_served(world: World, sent: bytes, cuts: list[int]) -> None:
    assert set(Parsed(world.run(world.tell(pieces(sent, cuts)))).statuses) <= {400, 414, 431, 505}


@settings(many, max_examples=60)
@given(sent=st.lists(st.sampled_from(REQUESTS[:9]), min_size=1, max_size=5), cuts=CUTS)
def test_where_requests_are_cut_changes_no_answer(world: World, sent: list[bytes], cuts: list[int]) -> None:
    world.house.engine.usual = (whole(),)

    async def told() -> list[int]:
        client = await world.house.connect()
        for piece in pieces(b"".join(sent), cuts):
            client.send(piece)
            await asyncio.sleep(0)
        statuses = [(await client.answer()).status for _ in sent]
        await world.leave(client)
        return statuses

    assert world.run(told()) == [403 if each.startswith(b"OPTIONS") else 200 for each in sent]


KEYS = st.sampled_from(["model", "stream", "messages", "user", "prompt_cache_key", "prompt", "input", "system", "x"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(MODEL)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=9
)


@settings(many, max_examples=60)
@given(body=JSON, route=st.sampled_from([CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"]))
def test_whatever_json_a_body_is_it_is_answered_and_the_connection_goes_on(
    world: World, body: object, route: str
) -> None:
    world.house.engine.usual = (whole(),)

    async def told() -> None:
        client = await world.house.connect()
        sent = json.dumps(body).encode()  # NaN and Infinity among them: Python writes what is no JSON
        assert (await client.ask("POST", route, sent)).status in (200, 400, 404)
        assert (await client.ask("GET", "/health")).status == 200
        await world.leave(client)

    world.run(told())


EVENTS = (
    *(
        event("a"),
        event("b"),
        chunk(b": keepalive\n\n"),
        chunk(b"data: {}\n\n"),
        chunk(b"\n\n\n"),
        chunk(b"data: x\n\n"),
    ),
    *(
        chunk(b'data: {"error": {"message": "no"}}\n\n'),
        chunk(b"data: \xff\xfe\n\n"),
        chunk(b'data: {"error":"\xff"}\n\n'),
    ),
    *(
        chunk(b"event: a\r\ndata: {}\r\n\r\n"),
        chunk(b"data: {"),
        chunk(b"}\n\n"),
        chunk(b"[DONE]"),
        event("", finish="stop"),
    ),
)
ENDS: tuple[tuple[Step, ...], ...] = (
    (DONE,),
    (LAST,),
    ("fin",),
    (0.001, "rst"),
    (b"zz\r\n", "fin"),
    (b"5\r\nab", "fin"),
)


@settings(many, max_examples=80)
@given(
    events=st.lists(st.sampled_from(EVENTS), max_size=8),
    end=st.sampled_from(ENDS),
    path=st.sampled_from([CHAT, "/v1/completions", "/v1/responses", "/v1/messages"]),
)
def test_whatever_an_engine_streams_its_client_gets_a_stream_with_an_end_or_is_told_that_there_is_none(
    world: World, events: list[bytes], end: tuple[Step, ...], path: str
) -> None:
    world.house.engine.usual = (STREAM, *events, *end)

    async def told() -> None:
        client = await world.house.connect()
        answered = await client.ask("POST", path, asked(stream=True))
        if answered.status != 200:  # nothing of an answer came, from any engine that was asked
            assert answered.status == 503
            assert b"error" in answered.body
        elif path in (CHAT, "/v1/completions"):
            assert answered.body.endswith(b"data: [DONE]\n\n")
        else:
            assert answered.body.endswith(b"\n\n")
            assert b'"type":"error"' in answered.body
        assert (await client.ask("GET", "/health")).status == 200
        await world.leave(client)

    world.run(told())


def test_hundreds_of_rounds_of_what_is_wrong_leave_nothing_behind(world: World) -> None:
    found = world.house
    wrong = [each + token for each, token in zip(REQUESTS * 3, TOKENS, strict=False)]
    broken: tuple[Step, ...] = (STREAM, event("a"), 0.001, "rst")

    async def rounds(count: int) -> None:
        for number in range(count):
            found.engine.usual = (broken, (whole(),), ("fin",))[number % 3]
            clients = [await found.connect() for _ in range(4)]
            for place, client in enumerate(clients):
                client.send(wrong[(number * 4 + place) % len(wrong)])
            await asyncio.sleep(0.001)  # they leave at whatever moment that is
            for client in clients:
                client.leave()
            found.clients.clear()
            found.engine.asked.clear()
        await until(lambda: found.gateway.connections == 0 and found.under_way == 0)
        found.engine.hang_up()
        await until(lambda: not found.engine.links)

    def counted() -> tuple[int, int]:
        gc.collect()
        return len(gc.get_objects()), world.run(_tasks())

    world.run(rounds(100))
    objects, tasks = counted()
    world.run(rounds(200))
    after, tasks_after = counted()
    assert tasks_after == tasks
    assert after - objects < 400  # 800 clients: not one object for each second of them
    assert found.faults == []


async def _tasks() -> int:
    return len(asyncio.all_tasks())
