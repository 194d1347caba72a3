"""Steering what is kept up, from asyncio: ``autolaunch.AsyncClient``, the twin of ``autolaunch.Client``.

What is asked and what an answer means is :mod:`autolaunch.daemon.control.calls`, for both; here is input and output.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from autolaunch.client import LOOK_SECONDS, TIMEOUT_SECONDS, Client, late, missing
from autolaunch.daemon.control import calls
from autolaunch.daemon.control.calls import Call
from autolaunch.daemon.control.contract import (
    SOME_LINES,
    DeploymentDocument,
    EventDocument,
    Phase,
    ReloadDocument,
    StatusDocument,
    Verb,
)
from autolaunch.daemon.control.listening import connected
from selector.contract import LaunchPlan
from selector.errors import AutolaunchError, NotSteered

T = TypeVar("T")

#: Of the head of an answer; more are none of the daemon's.
_HEADERS = 64


class AsyncClient:
    """Asks one daemon, or one launch; as :class:`autolaunch.Client`, with the same names, awaited.

        async with autolaunch.AsyncClient() as client:
            await client.wait("glm-4.6", timeout_seconds=1800)
            async for line in client.logs("glm-4.6", follow=True):
                print(line)

    Every call has a connection of its own; one that is cancelled ends it.
    """

    def __init__(self, path: Path | str | None = None, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Arguments as those of :class:`autolaunch.Client`."""
        self._found = Client(path, timeout_seconds=timeout_seconds)
        self._timeout_seconds = timeout_seconds

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held between calls."""

    async def path(self) -> Path:
        """As :attr:`autolaunch.Client.path`: the socket that is asked."""
        return await asyncio.to_thread(lambda: self._found.path)

    async def status(self) -> StatusDocument:
        """As :meth:`autolaunch.Client.status`."""
        return await self._ask(calls.status())

    async def deployments(self) -> tuple[DeploymentDocument, ...]:
        """As :meth:`autolaunch.Client.deployments`."""
        return (await self._ask(calls.deployments())).deployments

    async def deployment(self, name: str) -> DeploymentDocument:
        """As :meth:`autolaunch.Client.deployment`."""
        return await self._ask(calls.deployment(name))

    async def plan(self, name: str) -> LaunchPlan:
        """As :meth:`autolaunch.Client.plan`."""
        return await self._ask(calls.plan(name))

    def logs(self, name: str, *, lines: int = SOME_LINES, follow: bool = False) -> AsyncIterator[str]:
        """As :meth:`autolaunch.Client.logs`, for ``async for``."""
        return self._stream(calls.logs(name, lines=lines, follow=follow))

    def events(self, *, follow: bool = False, since: int = 0) -> AsyncIterator[EventDocument]:
        """As :meth:`autolaunch.Client.events`, for ``async for``."""
        return self._stream(calls.events(since=since, follow=follow))

    async def deploy(
        self, model: str | LaunchPlan, *, name: str | None = None, **options: object
    ) -> DeploymentDocument:
        """As :meth:`autolaunch.Client.deploy`."""
        return await self._ask(calls.deploy(model, name, options))

    async def undeploy(self, name: str) -> DeploymentDocument:
        """As :meth:`autolaunch.Client.undeploy`."""
        return await self._ask(calls.undeploy(name))

    async def start(self, name: str) -> DeploymentDocument:
        """As :meth:`autolaunch.Client.start`."""
        return await self.act(name, "start")

    async def stop(self, name: str) -> DeploymentDocument:
        """As :meth:`autolaunch.Client.stop`."""
        return await self.act(name, "stop")

    async def restart(self, name: str) -> DeploymentDocument:
        """As :meth:`autolaunch.Client.restart`."""
        return await self.act(name, "restart")

    async def retry(self, name: str) -> DeploymentDocument:
        """As :meth:`autolaunch.Client.retry`."""
        return await self.act(name, "retry")

    async def act(self, name: str, verb: Verb) -> DeploymentDocument:
        """One of the above, by its name."""
        return await self._ask(calls.act(name, verb))

    async def reload(self) -> ReloadDocument:
        """As :meth:`autolaunch.Client.reload`."""
        return await self._ask(calls.reload())

    async def wait(
        self, name: str | None = None, *, phase: Phase = "ready", timeout_seconds: float | None = None
    ) -> tuple[DeploymentDocument, ...]:
        """As :meth:`autolaunch.Client.wait`.

        Raises:
            NotServing, WaitTimedOut: as there.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            found = await self.deployments() if name is None else (await self.deployment(name),)
            left = missing(found, phase)
            if not left:
                return found
            pause_seconds = LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, deadline - time.monotonic())
            if timeout_seconds is not None and pause_seconds <= 0:
                raise late(left, timeout_seconds)
            await asyncio.sleep(pause_seconds)

    # --- the one place of input and output --------------------------------------------------------------

    async def _ask(self, call: Call[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_seconds), self._answer(call) as answer:
                body = bytearray()
                async for piece in answer.pieces():
                    body += piece
                    if len(body) > calls.ANSWER_BYTES:
                        raise NotSteered("what answered is not autolaunch: it has no end")
                return calls.answered(call, answer.status, bytes(body))
        except TimeoutError as error:
            raise calls.unreachable(str(await self.path()), error) from error

    async def _stream(self, call: Call[T]) -> AsyncIterator[T]:
        async with self._answer(call) as answer:
            rest = b""
            async for piece in answer.pieces():
                *lines, rest = (rest + piece).split(b"\n")
                if answer.status != 200:
                    raise calls.refusal(answer.status, piece)
                for line in lines:
                    yield calls.line_of(call, line)
                if len(rest) > calls.LINE_BYTES:
                    raise NotSteered("what answered is not autolaunch: a line has no end")
            if rest:
                yield calls.line_of(call, rest)

    @contextlib.asynccontextmanager
    async def _answer(self, call: Call[T]) -> AsyncIterator[_Answer]:
        path = await self.path()
        try:
            connection = await asyncio.to_thread(connected, path, self._timeout_seconds)
            connection.setblocking(False)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
        except OSError as error:
            raise calls.unreachable(str(path), error) from error
        try:
            head = f"{call.method} {call.target} HTTP/1.1\r\nHost: autolaunch\r\nConnection: close\r\n"
            length = (
                "" if call.body is None else f"Content-Type: application/json\r\nContent-Length: {len(call.body)}\r\n"
            )
            writer.write(f"{head}{length}\r\n".encode() + (call.body or b""))
            await writer.drain()
            yield await _Answer.begun(reader)
        except OSError as error:
            raise calls.unreachable(str(path), error) from error
        except (EOFError, ValueError) as error:  # cut off, or no HTTP
            raise _broke_off(path) from error
        finally:
            writer.close()


class _Answer:
    """The answer of a daemon, as its bytes come. What is no HTTP raises ``ValueError``."""

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: Mapping[bytes, bytes]) -> None:
        self._reader = reader
        self.status = status
        self._headers = headers

    @classmethod
    async def begun(cls, reader: asyncio.StreamReader) -> _Answer:
        version, _, status = (await reader.readuntil(b"\r\n")).partition(b" ")
        if version != b"HTTP/1.1":
            raise ValueError("no HTTP")
        headers: dict[bytes, bytes] = {}
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip().lower()
            if len(headers) > _HEADERS:
                raise ValueError("no end of headers")
        return cls(reader, int(status[:3]), headers)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, to its very end: one that is cut off raises ``EOFError``."""
        if self._headers.get(b"transfer-encoding") != b"chunked":
            left = int(self._headers[b"content-length"]) if b"content-length" in self._headers else 0
            if left > calls.ANSWER_BYTES:
                raise ValueError("longer than any answer")
            yield await self._reader.readexactly(left)
            return
        while size := int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            if size > calls.ANSWER_BYTES:
                raise ValueError("longer than any answer")
            yield await self._reader.readexactly(size)
            await self._reader.readexactly(2)


def _broke_off(path: Path) -> AutolaunchError:
    return NotSteered(f"the answer broke off: what listened at {path} has ended", hint=None)
