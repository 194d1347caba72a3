"""HTTP/1.1 for clients, on asyncio's transports: requests in, answers out, with a bound on everything.

llhttp parses (by httptools, strictly). It is not aiohttp's server because of what that one costs a request, which is
more than all the rest of the gateway: ``scripts/bench_gateway`` holds the gateway to three times what nginx takes.

A request's handler begins when its head is there, and is cancelled when its client leaves. Requests that are sent ahead
(pipelined) wait for their turn. What is bounded: connections, the head (bytes, headers, seconds), a body (bytes,
seconds), what a client does not read (seconds), what it sends ahead (requests, bytes).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from autolaunch.daemon.gateway.request import BodyError, Header, Request

if TYPE_CHECKING:
    from autolaunch.daemon.gateway.listener import Listener

#: Of a request's head: all of it, its address, and how many headers.
HEAD_BYTES, TARGET_BYTES, HEADERS = 65_536, 8_192, 100
#: Requests that were sent ahead.
AHEAD = 16
#: A client that takes nothing of its answer for so long has gone, whatever its connection says.
SEND_SECONDS = 120.0
#: A client that was refused midway gets so long to read that.
LINGER_SECONDS = 2.0
#: A body may take ``body_seconds``, and more only as it comes at this rate.
BODY_BYTES_PER_SECOND = 1024


_METHODS = {each.encode(): each for each in ("POST", "GET", "HEAD", "OPTIONS")}


class Connection(asyncio.Protocol):
    """One client's connection: requests one after the other. Its own methods are for its requests and the listener."""

    __slots__ = (
        "_ahead",
        "_answering",
        "_buffered_bytes",
        "_buffered_since",
        "_deaf",
        "_drain",
        "_ending",
        "_fresh",
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
        #: One whose handler begins as soon as what has come with it was read.
        self._fresh: Request | None = None
        #: Since when nothing has come that was waited for; since when the client has taken nothing.
        self._since = self.loop.time()
        self._buffered_since: float | None = None
        self._buffered_bytes = 0
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
        if self._paused and self._transport is not None and len(self._ahead) < AHEAD:
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
        if self._buffered_since is not None and self._transport is not None:
            left_bytes = self._transport.get_write_buffer_size()
            if left_bytes < self._buffered_bytes:  # slow, and there
                self._buffered_since, self._buffered_bytes = now, left_bytes
            if now - self._buffered_since > SEND_SECONDS:
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
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            self._malformed(400, "the request is malformed")
        if self._fresh is not None:
            self._start(self._fresh)
        # Of a body that is what lies between its pieces, and behind them: trailers are headers too.
        if self._head_bytes > HEAD_BYTES and not self._deaf:
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
        if self._answering is not None and self._answering.left is not None:
            self._answering.left()

    def pause_writing(self) -> None:
        self._buffered_since = self.loop.time()
        self._buffered_bytes = self._transport.get_write_buffer_size() if self._transport is not None else 0

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
        parser = self._parser
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._malformed(505, "no version of HTTP but 1.1 and 1.0 is spoken here")
            return
        if self._head_bytes > HEAD_BYTES and sum(len(each) for pair in self._headers for each in pair) > HEAD_BYTES:
            self._malformed(431, "the head of the request is longer than any")
            return
        request = Request(self, self._headers, self.loop.time())
        self._headers = []  # trailers are none of them
        request.method = _METHODS.get(method := parser.get_method()) or method.decode("ascii", "replace")
        target = self._target
        if target[:7].lower() == b"http://":  # as proxies are asked: ours where it is to whom Host says
            place, _, rest = target[7:].partition(b"/")
            if place == (request.header(b"host") or "").encode("latin-1"):
                target = b"/" + rest
        request.path = (target.partition(b"?")[0] if b"?" in target else target).decode("latin-1")
        request.keeps = parser.should_keep_alive() and not self.listener.closing
        if version == "1.0":
            request.old = True
        if (length := request.header(b"content-length")) is not None and length.isdecimal():
            request.length = int(length[:20])
        if request.has(b"expect"):
            request.expects = (request.header(b"expect") or "").lower() == "100-continue" and not request.old
        self._reading, self._head_bytes, self._target = request, 0, b""
        if self._answering is None:
            self._answer(request)
        else:
            self._ahead.append(request)
            if len(self._ahead) >= AHEAD:
                self.pause()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        if self._reading is not None:
            self._reading.came(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        if self._reading is not None:
            self._reading.received = True
            self._reading.wake()
            self._reading = None

    # --- one after the other ------------------------------------------------------------------------------

    def _answer(self, request: Request) -> None:
        self._answering = request
        self._since = request.begun
        self._fresh = request

    def _start(self, request: Request) -> None:
        self._fresh = None
        if request.received:
            try:
                self.listener.early(request)
            except Exception as error:  # noqa: BLE001 - one request's fault is not another's
                self.listener.on_fault(error)
                self.abort()
                return
        self._task = self.loop.create_task(self._handled(request))

    async def _handled(self, request: Request) -> None:
        try:
            await self.listener.handler(request)
            if self._buffered_since is not None:
                await self.drained()  # before another answer is written for a client that reads none
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
            self._answer(request := self._ahead.popleft())
            self._start(request)
        self.resume()

    def _malformed(self, status: int, why: str) -> None:
        """What came is no request, or there will be none: said once, and closed."""
        self._deaf = True
        if self._answering is not None:
            # The answer under way is another request's.
            self._answering.fail(BodyError(status, why))
            self._answering.keeps = False
            return
        request = Request(self, [], self.loop.time())
        self._answering = request
        self.listener.on_malformed(request, status, why)
        self._linger()

    def _decline(self, rest: bytes) -> None:
        """Another protocol was offered and is not taken: its request is answered, and the connection ends with that.

        The parser ends such a request with its head. Its body, if it has one, is read by one that was not told.
        """
        request = self._ahead[-1] if self._ahead else self._answering
        if request is None or self._deaf:
            return
        request.keeps = False
        coding = request.header(b"transfer-encoding")
        if request.method == "CONNECT" or not (request.length or coding):
            self._deaf = True
            return
        self._reading, request.received = request, False
        self._parser = httptools.HttpRequestParser(_Rest(self))
        framing = b"transfer-encoding: chunked" if coding else b"content-length: %d" % (request.length or 0)
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        self.data_received(rest)

    def rest_came(self) -> None:
        """A body behind such an offer is whole."""
        self.on_message_complete()
        self._deaf = True

    def _linger(self) -> None:
        """Ends our side, and reads what still comes for a moment: were it left unread, the answer could be lost."""
        self._deaf = self._ending = True
        self._ahead.clear()
        self._since = self.loop.time()
        if self._transport is not None:
            self.resume()
            if self._transport.can_write_eof():
                self._transport.write_eof()


class _Rest:
    """Hears the body of a request whose head another parser has read."""

    def __init__(self, connection: Connection) -> None:
        self.on_body = connection.on_body
        self.on_message_complete = connection.rest_came
