"""Who listens for clients: makes a connection of each, and sees to it that none outstays its time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import TYPE_CHECKING

from autolaunch.daemon.gateway.http import Connection

if TYPE_CHECKING:
    from autolaunch.daemon.gateway.options import GatewayOptions
    from autolaunch.daemon.gateway.request import Request

#: How often connections are looked at for their time being over.
SWEEP_SECONDS = 1.0


class Listener:
    """Makes a protocol for each connection.

    Args:
        handler: called with each request; it answers it.
        early: called before it, with each request that is here whole: what needs no waiting can be done at once.
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
        early: Callable[[Request], None],
        on_malformed: Callable[[Request, int, str], None],
        on_connection: Callable[[int], None] = lambda _: None,
        on_fault: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        self.handler = handler
        self.early = early
        self.options = options
        self.on_malformed = on_malformed
        self.on_connection = on_connection
        self.on_fault = on_fault
        self.loop = asyncio.get_running_loop()
        self.closing = False
        self._open: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._date = b""
        self._dated = -1.0

    @property
    def open(self) -> int:
        """Clients that are connected."""
        return len(self._open)

    def __call__(self) -> asyncio.Protocol:
        return Connection(self)

    def date(self) -> bytes:
        """The header ``Date``, made once a second."""
        now = self.loop.time()
        if now - self._dated >= 1.0 or not self._date:
            self._dated = now
            self._date = f"date: {formatdate(usegmt=True)}\r\n".encode()
        return self._date

    def added(self, connection: Connection) -> None:
        self._open.add(connection)
        self.on_connection(1)
        if self._sweep is None:
            self._sweep = self.loop.call_later(SWEEP_SECONDS, self._look)

    def left(self, connection: Connection) -> None:
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
