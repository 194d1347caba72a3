"""One connection to the control socket, on aiohttp's protocol: who it is, and how long it may take.

aiohttp bounds the head of a request in bytes and leaves its time to others; an error that it finds itself it answers
with text, and ours are documents.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from autolaunch.daemon.control.contract import ErrorDocument, Told
from autolaunch.daemon.control.listening import Peer, peer_of

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

#: For the head of the first request, for what lies between two, and for a body.
HEAD_SECONDS, IDLE_SECONDS, BODY_SECONDS = 10.0, 30.0, 10.0
#: More connections than these are closed as they come.
CONNECTIONS = 64
#: More that are followed than these are refused: there is always room for a question.
STREAMS = 48
HEAD_LINE_BYTES, HEAD_FIELD_BYTES, HEADERS = 8190, 8190, 64


class Connection(RequestHandler):
    """Attributes:
    peer: who connected.
    """

    peer: Peer | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes it in, unless there are too many."""
        super().connection_made(transport)
        server = self._manager
        if server is not None and len(server.connections) > CONNECTIONS:
            self.force_close()
            return
        self.peer = peer_of(transport.get_extra_info("socket"))
        self._timer = asyncio.get_running_loop().call_later(HEAD_SECONDS, self._too_slow)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def heard(self) -> None:
        """The head of a request has come whole."""
        self._disarm()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it says what was sent, as others sent it
    ) -> web.StreamResponse:
        """What could not be read, or is a fault of ours; the connection ends with it."""
        self._disarm()
        if status >= 500 and isinstance(self._manager, Server):
            self._manager.on_fault(exc)
        if request.writer.output_size > 0:
            raise ConnectionError("its head is sent already: it ends where it is")
        code, told = ("request", "this is no request") if status < 500 else ("internal", "a fault of autolaunch")
        answer = error_response(status, code, told)
        answer.force_close()
        return answer

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self.force_close()


class Server(web.Server):
    """Makes :class:`Connection`; ``on_fault`` is told what nobody expected."""

    def __init__(self, handler: Callable[[BaseRequest], Any], on_fault: Callable[[BaseException | None], None]) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.on_fault = on_fault
        self._silent = logging.Logger("autolaunch.control")  # outside the tree of loggers: it goes nowhere
        self._silent.addHandler(logging.NullHandler())

    def __call__(self) -> Connection:
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_SECONDS,
            tcp_keepalive=False,
            logger=self._silent,
            access_log=None,  # type: ignore[arg-type]  # as web.Server documents it for none
            max_line_size=HEAD_LINE_BYTES,
            max_field_size=HEAD_FIELD_BYTES,
            max_headers=HEADERS,
            lingering_time=1.0,
            auto_decompress=False,
        )


def error_response(
    status: int, code: str, message: str, hint: str | None = None, *, allow: tuple[str, ...] = ()
) -> web.Response:
    """An error as the contract has it."""
    import msgspec

    body = msgspec.json.encode(ErrorDocument(error=Told(code=code, message=message, hint=hint)))
    headers = {"Cache-Control": "no-store", **({"Allow": ", ".join(allow)} if allow else {})}
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
