"""Requests to engines and to other hosts: connections that are kept, one request at a time on each.

The parser is httptools (llhttp, strict). An engine that closes an idle connection just as a request is sent on it has
not read the request: it is sent once more on a new one. Everything else that breaks is :class:`Broken`, which says
whether anything had come.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from typing import Literal, cast

import httptools

#: An answer's head, and what of its body waits for a client that reads slowly before the engine has to.
HEAD_BYTES, WAITING_BYTES = 65_536, 262_144
CONNECT_SECONDS = 5.0
#: Connections that are kept for later requests.
KEPT = 128
#: A connection to another host is kept so long: what is between may forget it without a word. One that is in use is
#: tried when it was silent for some seconds, and ends when nothing comes back.
FAR_IDLE_SECONDS, FAR_SILENT_SECONDS, FAR_TRIES, FAR_LOST_SECONDS = 30.0, 10, 3, 20


class Broken(Exception):
    """The engine did not answer whole.

    Attributes:
        begun: some of the answer had come.
        sent: the request may have been read.
    """

    def __init__(self, message: str, *, begun: bool, sent: bool = True) -> None:
        super().__init__(message)
        self.begun = begun
        self.sent = sent


class TooLong(Broken):
    """The answer is longer than any: the next engine's would be, too."""


class Connection(asyncio.Protocol):
    """One connection and the answer that comes on it; of its methods only those of a request are for others."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._loop = upstream.loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._head_bytes = 0
        self._paused = False
        self._closed: str | None = None
        self._answers: Literal["no", "head", "body", "whole"] = "no"
        self._framed = False
        self._keeps = False
        self.used = self.given_up = False
        self.idle_since = 0.0
        #: How often something came.
        self.heard = 0
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    # --- a request ----------------------------------------------------------------------------------------

    def send(self, head: bytes, body: bytes) -> None:
        """Sends a request, of which the answer is awaited next."""
        if self.used:
            self._parser = httptools.HttpResponseParser(self)
        self._answers, self._framed, self._keeps = "head", False, False
        self.headers, self._head_bytes, self.status = [], 0, 0
        if self._transport is not None and self._closed is None:
            self._transport.write(head + body if len(body) < WAITING_BYTES else head)
            if len(body) >= WAITING_BYTES:
                self._transport.write(body)

    async def answered(self) -> None:
        """Waits for the answer's head.

        Raises:
            Broken: none came.
        """
        while self._answers == "head":
            if self._closed is not None:
                raise Broken(self._closed, begun=self._head_bytes > 0)
            await self._wait()

    async def piece(self) -> bytes:
        """What has come of the body since; empty at its end.

        Raises:
            Broken: it ended before its end.
        """
        while not self._pieces:
            if self._answers == "whole":
                return b""
            if self._closed is not None:
                raise Broken(self._closed, begun=True)
            await self._wait()
        found = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._waiting_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return found

    async def body(self, most_bytes: int) -> bytes:
        """The whole body.

        Raises:
            Broken: it ended before its end.
            TooLong: it is longer than ``most_bytes``.
        """
        found = await self.piece()
        if self._answers == "whole" and not self._pieces:
            return found
        pieces, size = [found], len(found)
        while piece := await self.piece():
            size += len(piece)
            if size > most_bytes:
                raise TooLong("the answer is longer than any", begun=True)
            pieces.append(piece)
        return b"".join(pieces)

    @property
    def keeps(self) -> bool:
        """Whether another request can be sent on it."""
        return self._answers == "whole" and self._keeps and self._closed is None and not self._pieces

    @property
    def lives(self) -> bool:
        return self._closed is None

    def lost(self, why: str) -> None:
        """Whoever is on the other side is not there any more, and cannot say so."""
        self.given_up = True
        self._fail(why)
        self._wake()

    def abort(self) -> None:
        """Leaves: an engine takes that as the end of the request."""
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- what comes ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # a stream's is one
        self._upstream.connected(self, self._transport)

    def data_received(self, data: bytes) -> None:
        self.heard += 1
        if self._answers in ("no", "whole"):  # nothing was asked
            self._fail("it said something that nobody asked for")
            return
        if self._answers == "head":
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"its answer is no HTTP ({error})")
        except httptools.HttpParserUpgrade:
            self._fail("it wants to speak another protocol")
        if self._answers == "head" and self._head_bytes > HEAD_BYTES:
            self._fail("the head of its answer is longer than any")
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self._answers == "body" and not self._framed and error is None:
            self._answers = "whole"
        if self._closed is None:
            self._closed = "the connection ended" if error is None else f"the connection broke: {error}"
        self._transport = None
        self._upstream.left(self)
        self._wake()

    def _fail(self, why: str) -> None:
        if self._closed is None:
            self._closed = why
        self.abort()

    # --- what the parser calls ----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._answers == "whole":  # behind the answer, and of nobody's request
            self._keeps = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answers != "head":
            return  # a trailer, or of nobody's request
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._answers != "head":
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:  # 100 Continue and its like: the answer is still to come
            self.headers.clear()
            self._framed = False
            return
        self._keeps = self._parser.should_keep_alive()
        self._answers = "body"

    def on_body(self, body: bytes) -> None:
        if self._answers != "body":
            return
        self._pieces.append(body)
        self._waiting_bytes += len(body)
        if self._waiting_bytes > WAITING_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._answers == "body":
            self._answers = "whole"
            self.used = True


class Upstream:
    """The connections to one engine; ``far``: to another host, over TLS with ``tls``."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        far: bool = False,
        tls: ssl.SSLContext | None = None,
        connect_seconds: float | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.loop = asyncio.get_running_loop()
        self._far = far
        self._tls = tls
        self._connect_seconds = connect_seconds
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._closed = False

    def sent(self, head: bytes, body: bytes) -> Connection | None:
        """Sends a request at once, on a connection that is idle, where there is one. For ``request`` to go on with."""
        while self._idle:
            connection = self._idle.pop()
            if connection.lives:
                if self._far and self.loop.time() - connection.idle_since > FAR_IDLE_SECONDS:
                    connection.abort()
                    continue
                connection.send(head, body)
                return connection
        return None

    async def request(self, head: bytes, body: bytes, connection: Connection | None = None) -> Connection:
        """Sends a request; the connection on which its answer's head has come. To be given back, or aborted.

        ``connection``: it was sent on that one already.

        Raises:
            Broken: nobody listens, or the engine left without an answer.
        """
        risked = False
        connection = connection or self.sent(head, body)
        if connection is not None:
            try:
                await connection.answered()
            except Broken as broken:
                connection.abort()
                if broken.begun or connection.given_up:
                    raise
                risked = True  # unless the engine closed it as one that was idle, which looks the same
            except BaseException:
                connection.abort()
                raise
            else:
                return connection
        return await self._asked(await self._made(risked=risked), head, body)

    async def _made(self, *, risked: bool) -> Connection:
        seconds = CONNECT_SECONDS if self._connect_seconds is None else self._connect_seconds
        try:
            # Not ``wait_for``: before Python 3.12 that loses a cancellation that comes just as it is done.
            async with asyncio.timeout(seconds):
                _, made = await self.loop.create_connection(
                    lambda: Connection(self), self.host, self.port, ssl=self._tls
                )
        except ssl.SSLError as error:
            # What OpenSSL says begins with where in its own source it is.
            told = getattr(error, "verify_message", "") or error.reason
            raise Broken(f"TLS fails: {told}", begun=False, sent=risked) from error
        except TimeoutError as error:
            raise Broken(f"nobody listens: no connection within {seconds:g} s", begun=False, sent=risked) from error
        except OSError as error:
            raise Broken(f"nobody listens: {error}", begun=False, sent=risked) from error
        return made

    async def _asked(self, connection: Connection, head: bytes, body: bytes) -> Connection:
        try:
            connection.send(head, body)
            await connection.answered()
        except BaseException:
            connection.abort()
            raise
        return connection

    def give_back(self, connection: Connection) -> None:
        """After its answer was read whole; it is kept for the next request where it can be."""
        if connection.keeps and not self._closed and len(self._idle) < KEPT:
            if self._far:
                connection.idle_since = self.loop.time()
            self._idle.append(connection)
        else:
            connection.abort()

    def close(self) -> None:
        """Leaves every connection that is idle; those with an answer under way end with it."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()

    # --- those that are open --------------------------------------------------------------------------------

    def heard(self) -> Mapping[Connection, int]:
        """How often something came on each connection that is open."""
        return {each: each.heard for each in self._open}

    def lose(self, before: Mapping[Connection, int], why: str) -> None:
        """Gives up on those on which nothing came since ``before``."""
        for each, times in before.items():
            if each in self._open and each.heard == times:
                each.lost(why)

    def connected(self, connection: Connection, transport: asyncio.Transport) -> None:
        """What a connection says of itself, as it does by ``left``."""
        self._open.add(connection)
        sock = transport.get_extra_info("socket") if self._far else None
        if sock is None:
            return
        for level, name, value in (
            (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
            (socket.IPPROTO_TCP, "TCP_KEEPIDLE", FAR_SILENT_SECONDS),
            (socket.IPPROTO_TCP, "TCP_KEEPINTVL", FAR_SILENT_SECONDS // 2),
            (socket.IPPROTO_TCP, "TCP_KEEPCNT", FAR_TRIES),
            (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", FAR_LOST_SECONDS * 1000),
        ):
            if hasattr(socket, name):  # macOS has not all of them
                sock.setsockopt(level, getattr(socket, name), value)

    def left(self, connection: Connection) -> None:
        self._open.discard(connection)
