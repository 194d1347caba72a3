"""One request of a client, and the answer to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autolaunch.daemon.gateway.http import Connection

#: What may lie here of a body before it is read.
AHEAD_BYTES = 1_048_576
#: After so many pieces of a body they have to be so large in the mean: each costs an object, however small it is.
PIECES, PIECE_BYTES = 4096, 64

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

    # Most requests change none of these: what stands here once is not set for each.
    method = ""
    path = ""
    length: int | None = None
    old = False
    keeps = False
    expects = False
    received = False
    answered = False
    done = False
    #: How much of its body has come.
    total = 0
    #: What its handler has begun with it before it runs, and who undoes that should it never run.
    early: object = None
    left: Callable[[], None] | None = None
    _size = 0
    _count = 0
    _waiter: asyncio.Future[None] | None = None
    _awaits = False
    _chunked = False
    _error: BodyError | None = None

    def __init__(self, connection: Connection, headers: list[Header], begun: float) -> None:
        """``begun``: when its head was there."""
        self._connection = connection
        self.headers = headers
        self._by_name = dict(headers)
        self.begun = begun
        self._pieces: list[bytes] = []

    def has(self, name: bytes) -> bool:
        """Whether there is a header of a name (in lower case)."""
        return name in self._by_name

    def only(self, name: bytes) -> bytes | None:
        """The header of a name (in lower case), where no header came more than once."""
        return self._by_name.get(name) if len(self._by_name) == len(self.headers) else None

    def some(self, names: frozenset[bytes]) -> list[Header]:
        """The headers of these names (in lower case)."""
        if names.isdisjoint(self._by_name):
            return []
        return [each for each in self.headers if each[0] in names]

    def header(self, name: bytes) -> str | None:
        """A header by its name (in lower case); of several the last."""
        value = self._by_name.get(name)
        return None if value is None else value.decode("latin-1")

    def all(self, name: bytes) -> list[str]:
        """Every header of a name (in lower case)."""
        return [value.decode("latin-1") for each, value in self.headers if each == name]

    # --- its body -----------------------------------------------------------------------------------------

    def body_now(self, most_bytes: int) -> bytes | None:
        """The whole body, where it is here; else :meth:`body` waits for it."""
        if not self.received or self._size > min(most_bytes, AHEAD_BYTES):
            return None
        pieces, self._pieces, self._size = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

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
                self._connection.resume()  # or its client could not be seen to leave
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
        self._count += 1
        self._size += len(piece)
        self.total += len(piece)
        if self._count > PIECES and self.total < self._count * PIECE_BYTES:
            self._pieces, self._size = [], 0
            self.fail(BodyError(400, "the body comes in pieces too small to be worth their while"))
            return
        self.wake()
        if self._size > AHEAD_BYTES:
            self._connection.pause()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: BodyError) -> None:
        """Its body will not come whole; nothing, where it has."""
        if self.received:
            return
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

    def begin(self, status: int, headers: Iterable[Header], first: bytes = b"") -> None:
        """The head of an answer whose length is not known, and the ``first`` piece with it."""
        self._chunked = not self.old
        if self.old or not self.received:
            self.keeps = False
        head = self._head(status, headers) + (b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n")
        self.answered = True
        self._connection.write(head + self._piece(first) if first else head)

    async def write(self, piece: bytes) -> None:
        """A piece of such an answer; waits while the client does not read."""
        if piece:
            self._connection.write(self._piece(piece))
            await self._connection.drained()

    def _piece(self, piece: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece

    def finish(self) -> None:
        """The end of such an answer."""
        self.done = True
        if self._chunked:
            self._connection.write(b"0\r\n\r\n")

    def _head(self, status: int, headers: Iterable[Header]) -> bytes:
        lines = [_REASONS.get(status) or b"HTTP/1.1 %d \r\n" % status, self._connection.listener.date()]
        lines += [b"%b: %b\r\n" % each for each in headers]
        if not self.keeps:
            lines.append(b"connection: close\r\n")
        elif self.old:
            lines.append(b"connection: keep-alive\r\n")
        return b"".join(lines)
