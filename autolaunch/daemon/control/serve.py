"""The control API: HTTP over a UNIX socket, on the loop of what it steers.

Only this host reaches it, and of its users root, our own, and members of the group that the socket was made for. A page
in a browser has an origin, or a name of its own for us: neither is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncGenerator, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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
from selector.errors import AutolaunchError

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from autolaunch.daemon.control.routes import Asked
    from autolaunch.daemon.control.steered import Steered
    from autolaunch.daemon.supervisor import Supervisor

T = TypeVar("T")

#: A route that takes no body reads one up to here and says that it is too much; a longer one is not read.
BODY_BYTES = 4096
#: What of a deployment is a program or a file of the host, used as the daemon's own user.
PATHS = ("engine_path", "model_path", "lock")
#: The longest deployment.
DEPLOYMENT_BYTES = 65_536
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
        self._changes: set[asyncio.Task[Any]] = set()
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
            body = await self._body(request, asked.route)
            return await self._routed(request, asked, body)
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

    async def _body(self, request: BaseRequest, route: routes.Route) -> bytes:
        """What was sent, of a route that takes something; of the others nothing may have been."""
        most = DEPLOYMENT_BYTES if route.body else BODY_BYTES
        none = "" if route.body else ", and none is taken"
        if not request.body_exists:
            return b""
        if hdrs.EXPECT in request.headers:  # the body comes only when it is asked for
            raise routes.Refused(413, "body", "no body is taken")
        length, body = request.content_length or 0, bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while length <= most and len(body) <= most and (data := await request.content.readany()):
                    body += data
        except TimeoutError as error:
            raise routes.Refused(413, "body", f"the body took too long{none}") from error
        except web.RequestPayloadError as error:
            raise routes.Refused(400, "body", f"the body cannot be read{none}") from error
        if max(length, len(body)) > most:
            raise routes.Refused(413, "body", f"the body is too long{none}")
        if body and not route.body:
            raise routes.Refused(400, "body", "no body is taken")
        return bytes(body)

    async def _routed(self, request: BaseRequest, asked: Asked, body: bytes) -> web.StreamResponse:
        operation, query, steered = asked.route.operation, asked.query, self.steered
        if asked.name is not None:
            found = views.units(steered, asked.name)
            if not found:
                names = tuple(dict.fromkeys(one.state.deployment.name for one in steered.supervisors.values()))
                raise routes.unknown(asked.name, names)
            if isinstance(query, LogsQuery):
                lines = streams.logs(steered, asked.name, query, readers=self._readers, closing=self._closing)
                return await self._stream(request, asked, lines)
            if operation == "undeploy":
                before = _document(views.deployment(steered, asked.name))
                await self._changed(steered.undeploy(asked.name))
                return before
            return self._of_one(asked.name, operation, tuple(found.values()))
        if isinstance(query, EventsQuery):
            events = streams.events(steered.happened, query, closing=self._closing)
            return await self._stream(request, asked, events)
        if operation == "reload":
            return _document(await self._reload())
        if operation == "deploy":
            given = routes.object_of(body)
            refuse_paths(request, given)
            name = await self._changed(steered.deploy(given))
            return _document(views.deployment(steered, name))
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

    async def _changed(self, change: Coroutine[None, None, T]) -> T:
        """Once begun it goes on to its end: a client that leaves does not leave half of it behind."""
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        try:
            return await asyncio.shield(task)
        except AutolaunchError as error:
            hint = None if error.hint is None else views.shown(error.hint)
            raise routes.Refused(409, error.code, views.shown(error.message), hint) from error

    async def _reload(self) -> ReloadDocument:
        if self.steered.configuration_path is None:
            raise routes.Refused(409, "reload.launch", "a launch in the foreground has no configuration")
        wrong = await self._changed(self.steered.reload())
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


def refuse_paths(request: BaseRequest, given: Mapping[str, object]) -> None:
    """Members of the group steer the daemon; what it runs and reads as itself is said by root and its own user."""
    connection = request.protocol
    peer = connection.peer if isinstance(connection, Connection) else None
    if peer is not None and peer.uid in (0, os.geteuid()):
        return
    for key in PATHS:
        if given.get(key) is not None:
            hint = "root or the daemon's own user deploys it, or the configuration names it"
            raise routes.Refused(403, "forbidden", f"{key}: this user may not name paths of this host", hint)


def _is_ours(host: str) -> bool:
    """Whether a ``Host`` is one of the names that this is asked under; whatever port it has."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found["bare"] or found["name"]
    return name.lower() in HOSTS or is_loopback(name)
