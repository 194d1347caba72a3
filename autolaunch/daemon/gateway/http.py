"""HTTP/1.1 for clients, on asyncio's transports: requests in, answers out, with a bound on everything.

llhttp parses (by httptools, strictly). It is not aiohttp's server because of what that one costs a request, which is
more than all the rest of the gateway: ``scripts/bench_gateway`` holds the gateway to three times what nginx takes.

A request's handler begins when its head is there, and is cancelled when its client leaves. Requests that are sent ahead
(pipelined) wait for their turn. What is bounded: connections, the head (bytes, headers, seconds), the pieces of a body
(bytes, seconds between them), what a client does not read (seconds), what it sends ahead (bytes).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import httptools

if TYPE_CHECKING:
    from autolaunch.daemon.gateway.options import GatewayOptions

#: Of a request's head: all of it, its address, and how many headers.
HEAD_BYTES, TARGET_BYTES, HEADERS = 65_536, 8_192, 100
#: What may lie here of a body before it is read, and requests that were sent ahead.
AHEAD_BYTES, AHEAD = 1_048_576, 16
#: A client that takes nothing of its answer for so long has gone, whatever its connection says.
SEND_SECONDS = 120.0
#: A client that was refused midway gets so long to read that.
LINGER_SECONDS = 2.0
#: A body may take ``body_seconds``, and more only as it comes at this rate.
BODY_BYTES_PER_SECOND = 1024
#: How often connections are looked at for their time being over.
SWEEP_SECONDS = 1.0

Header = tuple[bytes, bytes]
_REASONS = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BodyError(Exception):
    """A body that is not taken.

    Attributes:
        status: what is answered.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Request:
    """A request, and the answer to it: ``respond``, or ``begin``, ``write`` and ``finish``.

    Attributes:
        method, path: as they came; the path without a query.
        headers: in order, names in lower case.
        answered: an answer has begun.
    """

    __slots__ = (
        "_awaits",
        "_chunked",
        "_connection",
        "_error",
        "_pieces",
        "_size",
        "_waiter",
        "answered",
        "begun",
        "done",
        "expects",
        "headers",
        "keeps",
        "length",
        "method",
        "old",
        "path",
        "received",
        "total",
    )

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._awaits = False
        self._chunked = False
        self._error: BodyError | None = None
        #: When its head was there, and how much of its body has come since.
        self.begun = connection.loop.time()
        self.total = 0
        self.method = ""
        self.path = ""
        self.headers: list[Header] = []
        self.length: int | None = None
        self.old = False
        self.keeps = False
        self.expects = False
        self.received = False
        self.answered = False
        self.done = False

    def header(self, name: bytes) -> str | None:
        """The first header of a name (in lower case)."""
        for each, value in self.headers:
            if each == name:
                return value.decode("latin-1")
        return None

    def all(self, name: bytes) -> list[str]:
        """Every header of a name (in lower case)."""
        return [value.decode("latin-1") for each, value in self.headers if each == name]

    # --- its body -----------------------------------------------------------------------------------------

    async def body(self, most_bytes: int) -> bytes:
        """The whole body.

        Raises:
            BodyError: it is longer than ``most_bytes``, slow, broken off, or not chunked as it says.
        """
        if self.length is not None and self.length > most_bytes:
            raise BodyError(413, f"the body is longer than {most_bytes} bytes")
        if not self.received and self.expects:
            self.expects = False
            self._connection.write(_CONTINUE)
        taken: list[bytes] = []
        size = 0
        while True:
            size += self._size
            if size > most_bytes:
                raise BodyError(413, f"the body is longer than {most_bytes} bytes")
            taken += self._pieces
            self._pieces, self._size = [], 0
            if self._error is not None:
                raise self._error
            if self.received:
                return taken[0] if len(taken) == 1 else b"".join(taken)
            self._connection.resume()
            self._awaits = True
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter, self._awaits = None, False

    def came(self, piece: bytes) -> None:
        """A piece of its body."""
        if self.done:
            return  # answered already: read so that the next request is found
        self._pieces.append(piece)
        self._size += len(piece)
        self.total += len(piece)
        self.wake()
        if self._size > AHEAD_BYTES:
            self._connection.pause()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: BodyError) -> None:
        """Its body will not come whole."""
        self._error = error
        self.wake()

    @property
    def awaits_body(self) -> bool:
        return self._awaits

    # --- its answer ---------------------------------------------------------------------------------------

    def respond(self, status: int, headers: Iterable[Header], body: bytes, *, close: bool = False) -> None:
        """The whole answer at once."""
        if close or not self.received:  # where the rest of its body would end nobody waits to see
            self.keeps = False
        head = self._head(status, headers)
        if status != 204:
            head += b"content-length: %d\r\n\r\n" % len(body)
        else:
            head += b"\r\n"
        self.answered = self.done = True
        self._connection.write(head + body if self.method != "HEAD" and status != 204 else head)

    def begin(self, status: int, headers: Iterable[Header]) -> None:
        """The head of an answer whose length is not known."""
        self._chunked = not self.old
        if self.old or not self.received:
            self.keeps = False
        head = self._head(status, headers) + (b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n")
        self.answered = True
        self._connection.write(head)

    async def write(self, piece: bytes) -> None:
        """A piece of such an answer; waits while the client does not read."""
        if piece:
            self._connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
            await self._connection.drained()

    def finish(self) -> None:
        """The end of such an answer."""
        self.done = True
        if self._chunked:
            self._connection.write(b"0\r\n\r\n")

    def _head(self, status: int, headers: Iterable[Header]) -> bytes:
        lines = [_REASONS.get(status) or b"HTTP/1.1 %d \r\n" % status]
        lines += [b"%b: %b\r\n" % each for each in headers]
        lines.append(self._connection.listener.date())
        if not self.keeps:
            lines.append(b"connection: close\r\n")
        elif self.old:
            lines.append(b"connection: keep-alive\r\n")
        return b"".join(lines)


class Listener:
    """Makes a protocol for each connection.

    Args:
        handler: called with each request; it answers it.
        options: the bounds.
        on_malformed: answers what is no request, or is none any more, with a status and a reason.
        on_connection: told 1 when a client has connected, -1 when it has left.
        on_fault: told what a handler raises that it should not.
    """

    def __init__(
        self,
        handler: Callable[[Request], Awaitable[None]],
        options: GatewayOptions,
        *,
        on_malformed: Callable[[Request, int, str], None],
        on_connection: Callable[[int], None] = lambda _: None,
        on_fault: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        self.handler = handler
        self.options = options
        self.on_malformed = on_malformed
        self.on_connection = on_connection
        self.on_fault = on_fault
        self.loop = asyncio.get_running_loop()
        self.closing = False
        self._open: set[_Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._date = b""
        self._dated = -1.0

    @property
    def open(self) -> int:
        """Clients that are connected."""
        return len(self._open)

    def __call__(self) -> asyncio.Protocol:
        return _Connection(self)

    def date(self) -> bytes:
        """The header ``Date``, made once a second."""
        now = self.loop.time()
        if now - self._dated >= 1.0 or not self._date:
            self._dated = now
            self._date = f"date: {formatdate(usegmt=True)}\r\n".encode()
        return self._date

    def added(self, connection: _Connection) -> None:
        self._open.add(connection)
        self.on_connection(1)
        if self._sweep is None:
            self._sweep = self.loop.call_later(SWEEP_SECONDS, self._look)

    def left(self, connection: _Connection) -> None:
        if connection in self._open:
            self._open.discard(connection)
            self.on_connection(-1)

    async def close(self, seconds: float) -> None:
        """Ends connections without a request now, the others after their answers, all of them after ``seconds``."""
        self.closing = True
        for each in tuple(self._open):
            each.close_when_idle()
        until = self.loop.time() + seconds
        while self._open and self.loop.time() < until:
            await asyncio.sleep(0.02)
        for each in tuple(self._open):
            each.abort()
        if self._sweep is not None:
            self._sweep.cancel()

    def _look(self) -> None:
        now = self.loop.time()
        for each in tuple(self._open):
            each.look(now)
        self._sweep = self.loop.call_later(SWEEP_SECONDS, self._look) if self._open else None


class _Connection(asyncio.Protocol):
    """One client's connection: requests one after the other."""

    __slots__ = (
        "_ahead",
        "_answering",
        "_buffered_since",
        "_deaf",
        "_drain",
        "_ending",
        "_head_bytes",
        "_headers",
        "_parser",
        "_paused",
        "_reading",
        "_since",
        "_target",
        "_task",
        "_transport",
        "listener",
        "loop",
    )

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.loop = listener.loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        #: Of the request whose head or body is being read.
        self._reading: Request | None = None
        self._target = b""
        self._headers: list[Header] = []
        self._head_bytes = 0
        #: The request that is being answered, and those after it.
        self._answering: Request | None = None
        self._ahead: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        #: Since when nothing has come that was waited for; since when the client has taken nothing.
        self._since = self.loop.time()
        self._buffered_since: float | None = None
        self._drain: asyncio.Future[None] | None = None
        self._paused = False
        #: What comes is not read any more; and nothing more will be answered.
        self._deaf = False
        self._ending = False

    # --- for requests -------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    async def drained(self) -> None:
        """Waits while the client has much to read still.

        Raises:
            ConnectionError: it has left.
        """
        if self._transport is None:
            raise ConnectionResetError("the client has left")
        if self._buffered_since is not None:
            self._drain = self.loop.create_future()
            await self._drain

    def pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close_when_idle(self) -> None:
        if self._answering is None:
            self.abort()
        else:
            self._answering.keeps = False

    def look(self, now: float) -> None:
        """Is the time over for what is waited for?"""
        options = self.listener.options
        if self._buffered_since is not None and now - self._buffered_since > SEND_SECONDS:
            self.abort()
        elif self._ending:
            if now - self._since > LINGER_SECONDS:
                self.abort()
        elif self._answering is not None:
            request = self._answering
            if request.awaits_body and (
                now - request.begun > options.body_seconds + request.total / BODY_BYTES_PER_SECOND
            ):
                request.fail(BodyError(408, "the body came too slowly"))
        elif self._head_bytes or self._target:
            if now - self._since > options.header_seconds:
                self._malformed(408, "the head of the request came too slowly")
        elif now - self._since > options.idle_seconds:
            self.abort()

    # --- what comes ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # a stream's is one
        listener = self.listener
        full = listener.open >= listener.options.connections
        listener.added(self)
        if full or listener.closing:
            self._malformed(503, "too many connections are open; close some, or try later")

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._reading is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Another protocol was offered and is not taken; the parser stops behind such a request.
            if self._answering is not None:
                (self._ahead[-1] if self._ahead else self._answering).keeps = False
        except httptools.HttpParserError:
            self._malformed(400, "the request is malformed")
        if self._reading is None and self._head_bytes > HEAD_BYTES and not self._deaf:
            self._malformed(431, "the head of the request is longer than any")

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._transport = None
        self.listener.left(self)
        self._ahead.clear()
        if self._drain is not None and not self._drain.done():
            self._drain.set_exception(ConnectionResetError("the client has left"))
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._buffered_since = self.loop.time()

    def resume_writing(self) -> None:
        self._buffered_since = None
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)

    # --- what the parser calls ----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._target, self._headers = b"", []
        if self._answering is None:
            self._since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > TARGET_BYTES and not self._deaf:
            self._malformed(414, "the address of the request is longer than any")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))
        if len(self._headers) > HEADERS and not self._deaf:
            self._malformed(431, "the request has more headers than any")

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        request = Request(self)
        request.method = self._parser.get_method().decode("ascii", "replace")
        request.path = self._target.partition(b"?")[0].decode("latin-1")
        request.headers = self._headers
        request.old = self._parser.get_http_version() == "1.0"
        request.keeps = self._parser.should_keep_alive() and not self.listener.closing
        for name, value in self._headers:
            if name == b"content-length" and value.isdigit():
                request.length = int(value[:20])
            elif name == b"expect":
                request.expects = value.lower() == b"100-continue"
        self._reading, self._head_bytes, self._target = request, 0, b""
        if self._answering is None:
            self._answer(request)
        else:
            self._ahead.append(request)
            if len(self._ahead) >= AHEAD:
                self.pause()

    def on_body(self, body: bytes) -> None:
        if self._reading is not None:
            self._reading.came(body)

    def on_message_complete(self) -> None:
        if self._reading is not None:
            self._reading.received = True
            self._reading.wake()
            self._reading = None

    # --- one after the other ------------------------------------------------------------------------------

    def _answer(self, request: Request) -> None:
        self._answering = request
        self._since = self.loop.time()
        self._task = self.loop.create_task(self._handled(request))

    async def _handled(self, request: Request) -> None:
        try:
            await self.listener.handler(request)
        except (ConnectionError, asyncio.CancelledError):
            self.abort()
            return
        except Exception as error:  # noqa: BLE001 - one request's fault is not another's
            self.listener.on_fault(error)
            self.abort()
            return
        self._task = None
        if self._transport is None:
            return
        if not request.done:
            self.abort()  # broken off on purpose: an end would be taken for the answer's
        elif not request.received:
            self._linger()
        elif not request.keeps or self.listener.closing:
            self._transport.close()
        else:
            self._next()

    def _next(self) -> None:
        self._answering = None
        self._since = self.loop.time()
        if self._ahead:
            self._answer(self._ahead.popleft())
        self.resume()

    def _malformed(self, status: int, why: str) -> None:
        """What came is no request, or there will be none: said once, and closed."""
        self._deaf = True
        if self._answering is not None:
            # The answer under way is another request's.
            self._answering.fail(BodyError(status, why))
            self._answering.keeps = False
            return
        request = Request(self)
        self._answering = request
        self.listener.on_malformed(request, status, why)
        self._linger()

    def _linger(self) -> None:
        """Ends our side, and reads what still comes for a moment: were it left unread, the answer could be lost."""
        self._deaf = self._ending = True
        self._since = self.loop.time()
        if self._transport is not None:
            self.resume()
            if self._transport.can_write_eof():
                self._transport.write_eof()
