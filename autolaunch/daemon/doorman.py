"""Who answers at the address of a deployment that sleeps: not yet, and somebody has asked.

An engine that is stopped for want of requests leaves its port to this: every request is answered 503 with Retry-After,
and the first of them wakes the deployment. Nothing of a request is read but that there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable

#: What a client may send before it is answered, and how long that may take.
REQUEST_BYTES, REQUEST_SECONDS = 65_536, 5.0
#: More than so many at a time are not listened to.
CLIENTS = 64


class Doorman:
    """Listens on ``host`` and ``port`` while it is open; ``on_ask`` is told of requests, once for each time open."""

    def __init__(self, host: str, port: int, on_ask: Callable[[], None]) -> None:
        self.host = host
        self.port = port
        self._on_ask = on_ask
        self._server: asyncio.Server | None = None
        self._clients = 0
        self._asked = False
        self._closed = False
        self._retry_seconds = 5

    @property
    def is_open(self) -> bool:
        return self._server is not None

    async def open(self, retry_seconds: float) -> None:
        """Begins to listen; ``retry_seconds`` is when an answer can be had.

        Raises:
            OSError: the address is taken.
        """
        self._retry_seconds = max(1, round(retry_seconds))
        self._asked = False
        self._closed = False
        server = await asyncio.start_server(self._answer, self.host, self.port, limit=REQUEST_BYTES)
        if self._closed:  # meanwhile
            server.close()
            return
        self._server = server

    def close(self) -> None:
        """Leaves the address to the engine; a client that is being answered still gets its answer."""
        self._closed = True
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= CLIENTS:
                with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
                    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_SECONDS)
                    self._wake()
                    await self._refuse(writer)
        except OSError:
            pass  # it has gone: it will come again
        finally:
            self._clients -= 1
            with contextlib.suppress(OSError):
                writer.close()

    def _wake(self) -> None:
        if not self._asked:
            self._asked = True
            self._on_ask()

    async def _refuse(self, writer: asyncio.StreamWriter) -> None:
        message = "the model was stopped because nobody asked; it is being started"
        error = {"error": {"message": message, "type": "service_unavailable", "code": "model_loading"}}
        body = json.dumps(error).encode()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Retry-After: {self._retry_seconds}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await asyncio.wait_for(writer.drain(), REQUEST_SECONDS)
