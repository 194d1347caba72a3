"""Connections to an engine: kept, left, and never the wrong answer on one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from autolaunch.daemon.gateway import upstream
from autolaunch.daemon.gateway.upstream import Broken, Connection, Upstream
from tests.fakes.scripted import LAST, STREAM, Engine, chunk, story, until, whole

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n"


@asynccontextmanager
async def reached() -> AsyncIterator[tuple[Engine, Upstream]]:
    engine = Engine()
    await engine.start()
    made = Upstream("127.0.0.1", engine.port)
    try:
        yield engine, made
    finally:
        made.close()
        engine.stop()
    await until(lambda: not engine.links)


async def asked(of: Upstream) -> Connection:
    return await of.request(HEAD, b"{}")


async def read(of: Upstream) -> bytes:
    connection = await asked(of)
    body = await connection.body(2**20)
    of.give_back(connection)
    return body


@story
async def test_a_connection_is_used_again_after_its_answer_was_read_whole() -> None:
    async with reached() as (engine, made):
        engine.usual = (whole({"a": 1}),)
        for _ in range(3):
            assert await read(made) == b'{"a": 1}'
        assert engine.accepted == 1


@story
async def test_requests_at_the_same_time_have_connections_of_their_own_and_only_so_many_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upstream, "KEPT", 3)
    async with reached() as (engine, made):
        await asyncio.gather(*(read(made) for _ in range(10)))
        assert engine.accepted <= 10
        await until(lambda: len(engine.links) <= 3)


@pytest.mark.parametrize(
    "said",
    [
        whole(headers=("Connection: close",)),
        whole().replace(b"HTTP/1.1", b"HTTP/1.0"),
        whole() + b"x",
        whole() + whole(),
        whole() + b"\0",
        whole() + b"HTTP/1.1 200 OK\r\nX-Half: ",
    ],
)
@story
async def test_a_connection_that_cannot_serve_again_is_left(said: bytes) -> None:
    async with reached() as (engine, made):
        engine.usual = (said,)
        for _ in range(2):
            assert await read(made) == whole().partition(b"\r\n\r\n")[2]
        assert engine.accepted == 2


@story
async def test_an_answer_that_was_not_read_to_its_end_is_never_read_by_another() -> None:
    async with reached() as (engine, made):
        engine.scripts.append((STREAM, chunk(b"first"), 0.005, chunk(b"of the first"), LAST))
        connection = await asked(made)
        assert await connection.piece() == b"first"
        made.give_back(connection)
        assert b"first" not in await read(made)
        assert engine.accepted == 2


@story
async def test_what_is_broken_says_whether_anything_had_come() -> None:
    async with reached() as (engine, made):
        engine.scripts.append(("rst",))
        with pytest.raises(Broken) as caught:
            await asked(made)
        assert not caught.value.begun
        engine.scripts.append((b"HTTP/1.1 200 OK\r\nX", 0.005, "fin"))
        with pytest.raises(Broken) as caught:
            await asked(made)
        assert caught.value.begun
        engine.stop()
        with pytest.raises(Broken) as caught:
            await asked(made)
        assert not caught.value.begun


@story
async def test_an_engine_that_takes_no_connection_is_broken_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "CONNECT_SECONDS", 0.02)
    monkeypatch.setattr(asyncio.get_running_loop().__class__, "create_connection", _never)
    made = Upstream("127.0.0.1", 1)
    with pytest.raises(Broken, match="nobody listens"):
        await asked(made)


async def _never(*_: object, **__: object) -> None:
    await asyncio.Event().wait()


@story
async def test_a_request_that_is_given_up_at_any_moment_leaves_no_connection() -> None:
    async with reached() as (engine, made):
        engine.usual = (STREAM, asyncio.Event())
        for turns in range(25):
            task = asyncio.ensure_future(asked(made))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            found = (await asyncio.gather(task, return_exceptions=True))[0]
            if isinstance(found, Connection):  # it had come already
                found.abort()
        await until(lambda: not engine.links)


@story
async def test_an_answer_that_nobody_reads_is_held_only_so_far() -> None:
    async with reached() as (engine, made):
        engine.usual = (STREAM, *[chunk(b"a" * 100_000) for _ in range(300)], LAST)
        connection = await asked(made)
        before = -1
        while before != engine.written_bytes:
            before = engine.written_bytes
            await asyncio.sleep(0.03)
        assert connection._waiting_bytes < upstream.WAITING_BYTES + 2 * 262_144
        size = 0
        while piece := await connection.piece():
            size += len(piece)
        assert size == 30_000_000
        made.give_back(connection)


@story
async def test_a_closed_upstream_lets_the_answer_under_way_end_and_keeps_nothing() -> None:
    async with reached() as (engine, made):
        go = asyncio.Event()
        engine.usual = (STREAM, chunk(b"a"), go, chunk(b"b"), LAST)
        assert engine.links == set()
        connection = await asked(made)
        made.close()
        go.set()
        assert await connection.body(100) == b"ab"
        made.give_back(connection)
        await until(lambda: not engine.links)
