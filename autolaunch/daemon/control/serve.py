"""The control API: HTTP over a UNIX socket, on the loop of what it steers.

Only this host reaches it, and of its users root, our own, and members of the group that the socket was made for. A page
in a browser has an origin, or a name of its own for us: neither is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from aiohttp import hdrs, web

from autolaunch.daemon.control import openapi, routes, streams, views
from autolaunch.daemon.control.connection import BODY_SECONDS, STREAMS, Connection, Server, error_response
from autolaunch.daemon.control.contract import (
    VERBS,
    DeploymentsDocument,
    EventsQuery,
    LogsQuery,
    ReloadDocument,
)
from autolaunch.daemon.control.listening import BACKLOG, Door
from autolaunch.daemon.happenings import Command
from autolaunch.daemon.journal import Event
from autolaunch.given import is_loopback

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from autolaunch.daemon.control.routes import Asked
    from autolaunch.daemon.control.steered import Steered
    from autolaunch.daemon.supervisor import Supervisor

#: No route takes a body; one up to here is read and said to be too much, a longer one is not read.
BODY_BYTES = 4096
#: Names under which the socket is asked, beside those of the loopback; ``curl`` and others need some name.
HOSTS = frozenset({"autolaunch"})
#: How long streams get to end in.
CLOSE_SECONDS = 1.0
#: What may read log files at once: a disk that hangs holds up these alone.
READERS = 4


#: ``name`` or ``name:port``; the name is looked at by itself.
_HOST = re.compile(r"(?:\[(?P<bare>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9.-]+))(?::[0-9]{1,5})?")


class Control:
    """The control API of ``steered`` at ``path``. Everything belongs to the loop of what it steers."""

    def __init__(self, steered: Steered, path: Path) -> None:
        self.steered = steered
        self.path = path
        self._door: Door | None = None
        self._listener: asyncio.AbstractServer | None = None
        self._server: Server | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="control")
        self._closing = asyncio.Event()
        self._reloads: set[asyncio.Task[str | None]] = set()
        self._streams = 0

    async def start(self) -> None:
        """Answers from here on.

        Raises:
            DaemonRunning: somebody listens there already.
            ConfigurationError: there can be no socket there.
        """
        self._door = Door(self.path)
        self._server = Server(self._answer, self._fault)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(self._server, sock=self._door.socket, backlog=BACKLOG)

    async def close(self) -> None:
        """Ends every stream and connection, and takes the socket away; again is nothing."""
        self._closing.set()
        if self._door is not None:
            self._door.remove()
        await _turns()  # nobody comes any more; those that are being accepted come in
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._server is not None:
            await self._server.shutdown(CLOSE_SECONDS)
            self._server = None
            await _turns()  # and what was closed goes
        if self._door is not None:
            self._door.close()
            self._door = None
        self._readers.shutdown(wait=False, cancel_futures=True)

    # --- requests ---------------------------------------------------------------------------------------

    async def _answer(self, request: BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        if isinstance(connection, Connection):
            connection.heard()
            if self._door is None or not self._door.allows(connection.peer):
                answer = error_response(403, "forbidden", "this user may not ask")
                answer.force_close()
                return answer
        try:
            self._refuse_pages(request)
            asked = routes.asked(request.method, request.raw_path)
            await self._refuse_bodies(request)
            return await self._routed(request, asked)
        except routes.Refused as refused:
            answer = error_response(refused.status, refused.code, refused.message, refused.hint, allow=refused.allow)
            if refused.status == 413:
                answer.force_close()
            return answer

    def _refuse_pages(self, request: BaseRequest) -> None:
        if hdrs.ORIGIN in request.headers:
            raise routes.Refused(403, "origin", "pages in a browser are not answered")
        hosts = request.headers.getall(hdrs.HOST, [])
        if len(hosts) != 1 or not _is_ours(hosts[0]):
            raise routes.Refused(403, "host", "it was asked under a name that is not its own", "Host: localhost is")

    async def _refuse_bodies(self, request: BaseRequest) -> None:
        if not request.body_exists:
            return
        if hdrs.EXPECT in request.headers:  # the body comes only when it is asked for
            raise routes.Refused(413, "body", "no body is taken")
        length, read = request.content_length or 0, 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while length <= BODY_BYTES and read <= BODY_BYTES and (data := await request.content.readany()):
                    read += len(data)
        except TimeoutError as error:
            raise routes.Refused(413, "body", "the body took too long, and none is taken") from error
        except web.RequestPayloadError as error:
            raise routes.Refused(400, "body", "the body cannot be read, and none is taken") from error
        if max(length, read) > BODY_BYTES:
            raise routes.Refused(413, "body", "the body is too long, and none is taken")
        if read:
            raise routes.Refused(400, "body", "no body is taken")

    async def _routed(self, request: BaseRequest, asked: Asked) -> web.StreamResponse:
        operation, query, steered = asked.route.operation, asked.query, self.steered
        if asked.name is not None:
            found = views.units(steered, asked.name)
            if not found:
                names = tuple(dict.fromkeys(one.state.deployment.name for one in steered.supervisors.values()))
                raise routes.unknown(asked.name, names)
            if isinstance(query, LogsQuery):
                lines = streams.logs(steered, asked.name, query, readers=self._readers, closing=self._closing)
                return await self._stream(request, asked, lines)
            return self._of_one(asked.name, operation, tuple(found.values()))
        if isinstance(query, EventsQuery):
            events = streams.events(steered.happened, query, closing=self._closing)
            return await self._stream(request, asked, events)
        if operation == "reload":
            return _document(await self._reload())
        if operation == "openapi":
            return web.Response(body=openapi.document(), content_type=routes.JSON)
        if operation == "deployments":
            return _document(DeploymentsDocument(deployments=views.deployments(steered)))
        return _document(views.status(steered))

    def _of_one(self, name: str, operation: str, found: tuple[Supervisor, ...]) -> web.Response:
        if operation == "plan":
            plan = next((plan for one in found if (plan := views.plan(one)) is not None), None)
            if plan is None:
                raise routes.Refused(404, "plan.none", f"no plan of {name} was made yet")
            return _document(plan)
        for verb in VERBS:
            if verb == operation:
                said = f"somebody asked for it: {verb}"
                self.steered.say(Event(event=f"control.{verb}", message=said, deployment=name))
                for one in found:
                    one.post(Command(verb=verb))
        answer = _document(views.deployment(self.steered, name))
        whole = name in {one.state.deployment.name for one in found}  # and not one replica of several
        if operation == "stop" and whole and self.steered.kind == "launch":
            self.steered.end()
        return answer

    async def _reload(self) -> ReloadDocument:
        if self.steered.configuration_path is None:
            raise routes.Refused(409, "reload.launch", "a launch in the foreground has no configuration")
        # Once begun it goes on to its end: a client that leaves does not leave half a configuration behind.
        task = asyncio.ensure_future(self.steered.reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
        wrong = await asyncio.shield(task)
        return ReloadDocument(holds=wrong is None, wrong=None if wrong is None else views.shown(wrong))

    async def _stream(
        self, request: BaseRequest, asked: Asked, pieces: AsyncGenerator[bytes, None]
    ) -> web.StreamResponse:
        """Sends what comes. Who reads slowly holds up only this."""
        if self._streams >= STREAMS:
            told = f"{STREAMS} logs and events are being followed, and more are not"
            raise routes.Refused(503, "streams", told, "end one of them: autolaunch logs --follow")
        self._streams += 1
        try:
            return await self._sent(request, asked, pieces)
        finally:
            self._streams -= 1

    async def _sent(
        self, request: BaseRequest, asked: Asked, pieces: AsyncGenerator[bytes, None]
    ) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Cache-Control": "no-store"})
        answer.content_type = asked.route.media
        if asked.route.media == routes.TEXT:
            answer.charset = "utf-8"
        await answer.prepare(request)
        async with contextlib.aclosing(pieces) as coming:
            async for piece in coming:
                await answer.write(piece)
        return answer

    def _fault(self, error: BaseException | None) -> None:
        asyncio.get_running_loop().call_exception_handler(
            {"message": "the control API failed", **({} if error is None else {"exception": error})}
        )


async def _turns() -> None:
    """A few turns of the loop: what was begun in it for a connection takes so many."""
    for _ in range(6):
        await asyncio.sleep(0)


def _document(document: msgspec.Struct) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    return web.Response(body=msgspec.json.encode(document), content_type=routes.JSON, headers=headers)


def _is_ours(host: str) -> bool:
    """Whether a ``Host`` is one of the names that this is asked under; whatever port it has."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found["bare"] or found["name"]
    return name.lower() in HOSTS or is_loopback(name)
