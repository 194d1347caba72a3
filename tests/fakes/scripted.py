"""FAKE: engines that send given bytes with given pauses and ends, the real gateway over them, and clients of bytes.

Everything is on one loop, uvloop's as in the daemon. ``house`` fails a test that leaves anything behind: a connection,
a request under way, an exception that nobody took.
"""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, ParamSpec, cast

import uvloop
from prometheus_client.registry import CollectorRegistry

from autolaunch.daemon.gateway.http import Connection
from autolaunch.daemon.gateway.keys import Keys
from autolaunch.daemon.gateway.metrics import RequestMetrics
from autolaunch.daemon.gateway.options import GatewayOptions
from autolaunch.daemon.gateway.routing import Endpoint, Standing
from autolaunch.daemon.gateway.serve import Gateway
from autolaunch.daemon.ports import listening_socket
from tests.fakes.gateway import There

#: Bytes to send, seconds to pause, something to wait for, or an end.
Step = bytes | float | asyncio.Event | Literal["fin", "rst"]
Given = ParamSpec("Given")
#: No test waits longer for what should be there at once.
SOON_SECONDS = 5.0
STORY_SECONDS = 30.0
MODEL = "glm"


def story(test: Callable[Given, Coroutine[Any, Any, None]]) -> Callable[Given, None]:
    """A test that is a coroutine, on a loop of its own."""

    @functools.wraps(test)
    def told(*arguments: Given.args, **named: Given.kwargs) -> None:
        uvloop.run(asyncio.wait_for(test(*arguments, **named), STORY_SECONDS))

    return told


async def until(true: Callable[[], bool]) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(SOON_SECONDS):
        while not true():
            await asyncio.sleep(0.002)  # nothing tells


# --- engines ------------------------------------------------------------------------------------------------


def whole(document: object = None, *, status: int = 200, headers: Sequence[str] = ()) -> bytes:
    """An answer with its length."""
    if document is None:
        document = {"model": MODEL, "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    lines = (f"HTTP/1.1 {status} Said", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str, *, finish: str | None = None) -> bytes:
    """A chat completion's event, as an HTTP chunk."""
    told = {"model": MODEL, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
    return chunk(b"data: " + json.dumps(told, separators=(",", ":")).encode() + b"\n\n")


DONE = chunk(b"data: [DONE]\n\n") + LAST


class Engine:
    """Answers request after request by a script; by ``usual`` when there is none left.

    What is asked of a path of ``pages`` is answered by its script, and is not among what was asked.
    """

    def __init__(self) -> None:
        self.pages: dict[str, Sequence[Step]] = {}
        self.heads: list[bytes] = []
        self.scripts: deque[Sequence[Step]] = deque()
        self.usual: Sequence[Step] = (whole(),)
        #: Heads and bodies as they came; connections that are open, and how many ever were.
        self.asked: list[tuple[bytes, bytes]] = []
        self.links: set[_Link] = set()
        self.accepted = 0
        self.written_bytes = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tls: ssl.SSLContext | None = None

    def serve_over(self, tls: ssl.SSLContext) -> None:
        """From ``start`` on."""
        self._tls = tls

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Link(self), "127.0.0.1", self.port, ssl=self._tls)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Nobody listens any more, and every connection ends."""
        if self._server is not None:
            self._server.close()
        for each in tuple(self.links):
            each.end("rst")

    def say(self, data: bytes) -> None:
        """Something that nobody asked for, on every connection."""
        for each in self.links:
            each.transport.write(data)

    def hang_up(self) -> None:
        for each in tuple(self.links):
            each.transport.close()


class _Link(asyncio.Protocol):
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.come = b""
        self.task: asyncio.Task[None] | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self.engine.links.add(self)
        self.engine.accepted += 1

    def connection_lost(self, error: Exception | None) -> None:
        self.engine.links.discard(self)
        self.writable.set()
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.come += data
        head, end, body = self.come.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(header_of(head, b"content-length") or b"0")
        if len(body) < length:
            return
        self.come = body[length:]
        if (page := self.engine.pages.get(head.split(b" ", 2)[1].decode())) is not None:
            self.engine.heads.append(head)
            self.task = asyncio.get_running_loop().create_task(self.play(page))
            return
        self.engine.asked.append((head, body[:length]))
        script = self.engine.scripts.popleft() if self.engine.scripts else self.engine.usual
        self.task = asyncio.get_running_loop().create_task(self.play(script))

    async def play(self, script: Sequence[Step]) -> None:
        for step in script:
            if isinstance(step, bytes):
                self.transport.write(step)
                self.engine.written_bytes += len(step)
                await self.writable.wait()
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, float):
                await asyncio.sleep(step)
            else:
                self.end(step)

    def end(self, how: Literal["fin", "rst"]) -> None:
        if how == "rst":
            # What is unsent is dropped, and the other side gets a reset.
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
        else:
            self.transport.close()


def header_of(head: bytes, name: bytes) -> bytes | None:
    """The first header of a name in the bytes of a head."""
    for line in head.split(b"\r\n")[1:]:
        found, _, value = line.partition(b":")
        if found.strip().lower() == name:
            return value.strip()
    return None


class Standin(There):
    """A replica over an engine, in whatever state it is put."""

    def __init__(self, engine: Engine, name: str = MODEL, *, run: int = 1, api_key: str | None = None) -> None:
        super().__init__(name, engine.port)
        self.engine = engine
        self.woken = 0
        self.place: Endpoint | None = None
        self.state = Standing(condition="serving", message="serves")
        self.serve(run=run, api_key=api_key)

    def serve(self, *, run: int = 1, api_key: str | None = None, degraded: bool = False) -> None:
        self.place = Endpoint(
            run=run,
            engine="vllm",
            host="127.0.0.1",
            port=self.engine.port,
            served_name=self.name,
            api_key=api_key,
            degraded=degraded,
        )
        self.state = Standing(condition="serving", message="serves")

    def leave(self, state: Standing) -> None:
        self.place, self.state = None, state

    def endpoint(self) -> Endpoint | None:  # type: ignore[override]  # that one always serves
        return self.place

    def standing(self) -> Standing:
        return self.state

    def wake(self) -> None:
        self.woken += 1


# --- clients ------------------------------------------------------------------------------------------------


class Answer:
    """An answer as it came. ``interim`` are the statuses of the 1xx before it."""

    def __init__(self, head: bytes, body: bytes, interim: list[int]) -> None:
        self.head, self.body, self.interim = head, body, interim

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    def header(self, name: str) -> str | None:
        found = header_of(self.head, name.encode())
        return None if found is None else found.decode("latin-1")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the error that it is."""
        return str(self.json["error"]["code"])

    @property
    def events(self) -> list[Any]:
        """The data of its events; ``[DONE]`` as it is."""
        told = [each.partition(b"data: ")[2] for each in self.body.split(b"\n\n") if b"data: " in each]
        return [each if each == b"[DONE]" else json.loads(each) for each in told]


class Client:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        """Sends, unless the gateway has ended the connection."""
        if not self.writer.transport.is_closing():
            self.writer.write(data)

    async def ask(self, method: str, path: str, body: object = None, *headers: str) -> Answer:
        self.send(request(method, path, body, *headers))
        return await self.answer(bodiless=method == "HEAD")

    async def chat(self, *headers: str, **fields: object) -> Answer:
        return await self.ask("POST", "/v1/chat/completions", asked(**fields), *headers)

    async def head(self) -> bytes:
        async with asyncio.timeout(SOON_SECONDS):
            return (await self.reader.readuntil(b"\r\n\r\n"))[:-4]

    async def answer(self, *, bodiless: bool = False) -> Answer:
        interim: list[int] = []
        head = await self.head()
        while head.split(b" ", 2)[1].startswith(b"1"):
            interim.append(int(head.split(b" ", 2)[1]))
            head = await self.head()
        async with asyncio.timeout(SOON_SECONDS):
            if bodiless or head.split(b" ", 2)[1] == b"204":
                body = b""
            elif header_of(head, b"transfer-encoding") == b"chunked":
                body = b""
                while piece := await self.piece():
                    body += piece
            elif (length := header_of(head, b"content-length")) is not None:
                body = await self.reader.readexactly(int(length))
            else:
                body = await self.reader.read(-1)
        return Answer(head, body, interim)

    async def piece(self) -> bytes:
        """The next chunk of a body that is chunked; empty at its end."""
        async with asyncio.timeout(SOON_SECONDS):
            length = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(length + 2))[:-2]

    async def rest(self) -> bytes:
        """What comes until the gateway ends the connection."""
        async with asyncio.timeout(SOON_SECONDS):
            try:
                return await self.reader.read(-1)
            except ConnectionError:
                return b""

    @property
    def quiet(self) -> bool:
        """Nothing has come that was not read, and the connection stands."""
        return not self.reader._buffer and not self.reader.at_eof()  # type: ignore[attr-defined]  # told by no method

    def leave(self) -> None:
        self.writer.transport.abort()


def asked(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}


def request(method: str, path: str, body: object = None, *headers: str) -> bytes:
    """A request; ``body`` is sent as JSON unless it is bytes."""
    sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", *headers]
    if not any(each.lower().startswith("host:") for each in headers):
        lines.insert(1, "Host: localhost")
    if body is not None:
        lines.append(f"Content-Length: {len(sent)}")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + sent


# --- all of it ----------------------------------------------------------------------------------------------


class House:
    """The gateway, its engines, and whoever connects."""

    def __init__(self, gateway: Gateway, metrics: RequestMetrics, engines: list[Engine], replicas: list[Standin]):
        self.gateway, self.metrics, self.engines, self.replicas = gateway, metrics, engines, replicas
        self.clients: list[Client] = []
        self.faults: list[object] = []

    @property
    def engine(self) -> Engine:
        return self.engines[0]

    @property
    def replica(self) -> Standin:
        return self.replicas[0]

    @property
    def under_way(self) -> int:
        return sum(each.under_way for each in self.gateway.models.values())

    @property
    def connection(self) -> Connection:
        """The gateway's side of the one client that is connected."""
        assert self.gateway._listener is not None
        (found,) = self.gateway._listener._open
        return found

    async def connect(self, receive_bytes: int | None = None) -> Client:
        """A client; ``receive_bytes``: how much of an answer its system takes before it is read."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.gateway.address.port))
        except OSError:
            sock.close()
            raise
        client = Client(*await asyncio.open_connection(sock=sock, limit=receive_bytes or 2**22))
        self.clients.append(client)
        return client

    async def once(self, data: bytes) -> bytes:
        """Sends these bytes on a new connection; what comes back until the gateway ends it."""
        client = await self.connect()
        client.send(data)
        return await client.rest()

    def reroute(self, *replicas: Standin) -> None:
        self.replicas = list(replicas)
        self.gateway.route(replicas)


@asynccontextmanager
async def house(
    options: GatewayOptions | None = None,
    *,
    keys: Keys | None = None,
    engines: int = 1,
    api_key: str | None = None,
) -> AsyncIterator[House]:
    """The gateway over so many engines of one model. Options' port is 0 whatever they say."""
    made = [Engine() for _ in range(engines)]
    for each in made:
        await each.start()
    metrics = RequestMetrics(CollectorRegistry())

    async def page(accepted: str) -> tuple[bytes, str]:
        return b"# " + b"metrics " * 2000, "text/plain"

    replicas = [Standin(each, api_key=api_key) for each in made]
    faults: list[object] = []
    options = options or GatewayOptions(port=0)
    gateway = Gateway(options, keys=keys, metrics=metrics, metrics_page=page, on_fault=faults.append)
    gateway.route(replicas)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    await gateway.start(listening_socket("127.0.0.1", 0))
    found = House(gateway, metrics, made, replicas)
    found.faults = faults
    try:
        yield found
        for client in found.clients:
            client.leave()
        await until(lambda: gateway.connections == 0 and metrics.connections == 0)
        await until(lambda: all(each.traffic.under_way == 0 for each in replicas) and found.under_way == 0)
        assert faults == []
    finally:
        for client in found.clients:
            client.leave()
        for each in made:
            each.stop()
        await gateway.close()
    await until(lambda: not any(each.links for each in made))
