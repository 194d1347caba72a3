"""The gateway: one address that never moves, whatever happens to the engines behind it."""

from __future__ import annotations

import asyncio
import difflib
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from autolaunch.daemon.gateway.asks import LEFT, Asks, Began, read_body, wrong_method
from autolaunch.daemon.gateway.doors import Doors
from autolaunch.daemon.gateway.host_answers import GATEWAY, HOP
from autolaunch.daemon.gateway.listener import Listener
from autolaunch.daemon.gateway.metrics import RequestMetrics, Seen
from autolaunch.daemon.gateway.other_hosts import Hosts
from autolaunch.daemon.gateway.pages import Entry, Health, listed, readiness
from autolaunch.daemon.gateway.proxy import Proxy, Route
from autolaunch.daemon.gateway.refusal import JSON, Refusal
from autolaunch.daemon.gateway.request import BodyError, Header, Request
from autolaunch.daemon.gateway.routing import Model, Replica
from autolaunch.daemon.ports import BACKLOG, Address

if TYPE_CHECKING:
    from autolaunch.daemon.gateway.host_access import HostAccess
    from autolaunch.daemon.gateway.keys import Keys
    from autolaunch.daemon.gateway.metrics import Route as MetricRoute
    from autolaunch.daemon.gateway.options import GatewayOptions

#: Where engines are asked. What an engine does not have it says itself, and that is put into the client's form.
ROUTES: dict[str, Route] = {
    route.path: route
    for route in (
        Route("/v1/chat/completions", "chat.completions", "chat"),
        Route("/v1/completions", "completions", "completions"),
        Route("/v1/responses", "responses", "responses"),
        Route("/v1/embeddings", "embeddings", "embeddings"),
        Route("/v1/messages", "messages", "messages"),
        Route("/v1/messages/count_tokens", "other", "messages"),
    )
}
#: What requests under way get to end in when the gateway closes: their engines end at the same time.
CLOSE_SECONDS = 1.0


class Gateway:
    """Listens, and routes by model name.

    Everything belongs to the loop that ``start`` was called on. ``metrics_page`` gives ``/metrics`` by what its reader
    accepts: a body and its type. ``hosts`` are other hosts, none of them asked yet.
    """

    def __init__(
        self,
        options: GatewayOptions,
        *,
        keys: Keys | None = None,
        metrics: RequestMetrics,
        metrics_page: Callable[[str], Awaitable[tuple[bytes, str]]],
        on_fault: Callable[[BaseException], None] = lambda _: None,
        hosts: Hosts | None = None,
    ) -> None:
        self.options = options
        self.models: dict[str, Model] = {}
        self.hosts = Hosts() if hosts is None else hosts
        self.hosts.on_change = self._host_changed
        self._replicas: tuple[Replica, ...] = ()
        self._metrics = metrics
        self._metrics_page = metrics_page
        self._on_fault = on_fault
        self._doors = Doors(options, keys)
        self._proxy = Proxy(self.models, options)
        self._server: asyncio.Server | None = None
        self._listener: Listener | None = None
        self._since = int(time.time())
        self._own: dict[str, Callable[[Request], Awaitable[int]]] = {
            "/v1/models": self._list,
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._shown_metrics,
        }

    @property
    def address(self) -> Address:
        """Where it listens: with the port that was found where 0 was asked for."""
        port = self.options.port
        if self._server is not None and self._server.sockets:
            port = int(self._server.sockets[0].getsockname()[1])
        return Address(host=self.options.host, port=port)

    @property
    def base_url(self) -> str:
        return self.address.base_url

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        return 0 if self._listener is None else self._listener.open

    # --- begin and end --------------------------------------------------------------------------------------

    async def start(self, listening: socket.socket, hosts: tuple[HostAccess, ...] = ()) -> None:
        """Serves on a socket that listens already (:func:`listening_socket`), which is its own from now on."""
        loop = asyncio.get_running_loop()
        self._listener = Listener(
            self._handle,
            self.options,
            early=self._early,
            on_malformed=self._malformed,
            on_connection=self._connection,
            on_fault=self._on_fault,
        )
        self._server = await loop.create_server(self._listener, sock=listening, backlog=BACKLOG)
        self.hosts.take(hosts)

    def ending(self) -> None:
        """The engines are about to end: requests that wait for one, or come now, are told so."""
        self._proxy.ending = True
        for model in self.models.values():
            model.changed()

    async def close(self) -> None:
        """Takes no more requests, and ends those that are under way after a moment."""
        self.ending()
        if self._server is not None:
            self._server.close()
        if self._listener is not None:
            await self._listener.close(CLOSE_SECONDS)
        self._proxy.close()
        self.hosts.close()

    async def reload(
        self,
        options: GatewayOptions,
        keys: Keys | None,
        listening: socket.socket | None,
        hosts: tuple[HostAccess, ...] = (),
    ) -> None:
        """These options and keys from now on, for connections that are there too; ``listening``: at another address."""
        self.options = self._proxy.options = options
        self._doors = Doors(options, keys)
        self.hosts.take(hosts)
        if self._listener is not None:
            self._listener.options = options
        if listening is not None and self._listener is not None:
            before = self._server
            self._server = await asyncio.get_running_loop().create_server(
                self._listener, sock=listening, backlog=BACKLOG
            )
            if before is not None:
                before.close()

    # --- what it routes to ----------------------------------------------------------------------------------

    def route(self, replicas: Iterable[Replica]) -> None:
        """These are the engines from now on, in the order of their models."""
        self._replicas = tuple(replicas)
        self._route()

    def _route(self) -> None:
        here: dict[str, list[Replica]] = {}
        elsewhere: dict[str, list[Replica]] = {}
        for each in self._replicas:
            here.setdefault(each.name, []).append(each)
        for member in self.hosts:
            elsewhere.setdefault(member.name, []).append(member)
        names = dict.fromkeys((*here, *elsewhere))
        for name in self.models.keys() - names.keys():
            gone = self.models.pop(name)
            gone.replicas = gone.hosts = ()
            gone.changed()
        for name in names:
            model = self.models.setdefault(name, Model(name))
            model.replicas, model.hosts = tuple(here.get(name, ())), tuple(elsewhere.get(name, ()))
            model.changed()
        self._forget()
        self._known()

    def _host_changed(self, rerouted: bool) -> None:
        if rerouted:
            self._route()
            return
        for member in self.hosts:
            if (model := self.models.get(member.name)) is not None:
                model.changed()

    def changed(self, name: str) -> None:
        """A replica of a model is in another state now."""
        if (model := self.models.get(name)) is not None:
            model.changed()
        self._forget()

    def _forget(self) -> None:
        """Connections to engines that serve no more are left."""
        places = (each.endpoint() for model in self.models.values() for each in model.replicas)
        self._proxy.forget(frozenset((each.host, each.port) for each in places if each is not None))

    def _known(self) -> None:
        keys = self._doors.keys
        self._metrics.known(models=self.models, keys=() if keys is None else keys.names)

    # --- a request ------------------------------------------------------------------------------------------

    async def _handle(self, request: Request) -> None:
        began = Began()
        try:
            await self._serve(request, began)
        except Refusal as refusal:
            self._refuse(request, refusal, began.seen)
        except (ConnectionError, asyncio.CancelledError):
            if began.seen is not None:
                began.seen.ended(status=LEFT, reason="client_left")
            raise
        except Exception as error:  # noqa: BLE001 - whatever fails in one request is one request's
            self._on_fault(error)
            fault = Refusal(500, "a fault of the gateway, not of yours", code="internal", reason="internal", close=True)
            self._refuse(request, fault, began.seen)

    async def _serve(self, request: Request, began: Began) -> None:
        path = request.path
        route = ROUTES.get(path)
        early, request.early, request.left = request.early, None, None
        if isinstance(early, Refusal):
            try:
                raise early
            finally:
                del early  # it would hold on to the request that it is raised for
        if isinstance(early, Asks) and route is not None:
            began.seen = early.seen
            await self._proxied(request, route, early)
            return
        self._doors.address(request)
        if request.method == "OPTIONS" and request.has(b"origin") and request.has(b"access-control-request-method"):
            request.respond(204, self._doors.preflight(request), b"")
            return
        key = None if path in self.options.open_paths else self._doors.key(request)
        if route is None:
            await self._answer(request, path)
            return
        if request.method != "POST":
            raise wrong_method("POST")
        since = time.monotonic()
        body = await self._body(request)
        asks = self._asked_for(route, body, key, since)
        asks.body, began.seen = body, asks.seen
        await self._proxied(request, route, asks)

    async def _proxied(self, request: Request, route: Route, asks: Asks) -> None:
        page = self._doors.page(request)
        await self._proxy.answer(
            request, route, asks.model, asks.body, asks.seen, streamed=asks.streamed, sent=asks.sent, page=page
        )

    def _asked_for(self, route: Route, body: bytes, key: str | None, since: float) -> Asks:
        name, streamed = read_body(body)
        model = self.models.get(name)
        if model is None:
            raise self._unknown(name)
        return Asks(model, self._metrics.begun(model=name, route=route.name, key=key, since=since), streamed)

    def _early(self, request: Request) -> None:
        """Sends what is whole and asks for an engine that is free on to it, before anything else is done for it.

        What is not quite so is left to the handler.
        """
        path = request.path
        route = ROUTES.get(path)
        if route is None or request.method != "POST" or request.has(b"content-encoding"):
            return
        since = time.monotonic()
        try:
            self._doors.address(request)
            key = None if path in self.options.open_paths else self._doors.key(request)
            body = request.body_now(self.options.body_bytes)
            if body is None:
                return
            asks = self._asked_for(route, body, key, since)
            asks.body, asks.sent = body, self._proxy.sent(request, route, asks.model, body)
            request.early, request.left = asks, asks.leave
        except Refusal as refusal:
            request.early = refusal.with_traceback(None)

    def _refuse(self, request: Request, refusal: Refusal, seen: Seen | None) -> None:
        route = ROUTES.get(request.path)
        if seen is None:
            seen = self._metrics.begun(model=None, route="other" if route is None else route.name)
        seen.ended(status=refusal.status, reason=refusal.reason)
        if request.answered:  # all that is left is to break it off
            raise ConnectionError(refusal.message)
        headers, body = refusal.answer("chat" if route is None else route.dialect)
        page = () if refusal.code == "foreign_origin" else self._doors.page(request)
        request.respond(refusal.status, (*headers, *page), body, close=refusal.close)

    def _unknown(self, name: str) -> Refusal:
        if self.hosts.asking:
            message = f"there is no model {name[:200]!r} here; what other hosts serve is being asked"
            return Refusal(503, message, code="model_loading", retry_seconds=1.0, reason="not_ready")
        close = difflib.get_close_matches(name.lower(), [each.lower() for each in self.models], n=1)
        hint = next((each for each in self.models if close and each.lower() == close[0]), None)
        message = f"there is no model {name[:200]!r} here" + (f"; did you mean {hint!r}?" if hint else "")
        return Refusal(404, message, code="model_not_found")

    async def _body(self, request: Request) -> bytes:
        """The body, in the time and size that one may have.

        Raises:
            Refusal: it is too long, too slow, broken off, or packed.
        """
        if request.has(b"content-encoding") and (request.header(b"content-encoding") or "").lower() != "identity":
            raise Refusal(415, "bodies are taken as they are, not packed", code="content_encoding", close=True)
        try:
            return await request.body(self.options.body_bytes)
        except BodyError as error:
            raise Refusal(error.status, error.message, code="body", close=True) from error

    # --- what it answers itself -----------------------------------------------------------------------------

    async def _answer(self, request: Request, path: str) -> None:
        name = path.removeprefix("/v1/models/") if path.startswith("/v1/models/") else None
        own = self._own.get(path)
        if own is None and name is None:
            raise Refusal(404, "there is nothing at this path", code="not_found")
        if request.method not in ("GET", "HEAD"):
            raise wrong_method("GET")
        if name is not None and name not in self.models:
            raise self._unknown(name)
        since = time.monotonic()
        if own is not None:
            status = await own(request)
        else:
            status = self._page(request, 200, Entry.of(self.models[name or ""], self._since))
        # Afterwards: it waits for no engine, and would be counted as if it did on the very page that it asks for.
        seen = self._metrics.begun(model=None, route=_METRIC_ROUTES.get(path, "models"), since=since)
        seen.ended(status=status, reason="ok" if status < 400 else "not_ready")

    async def _list(self, request: Request) -> int:
        here = request.has(HOP)
        headers = ((GATEWAY, self.hosts.id.encode("ascii")),) if here else ()
        return self._page(request, 200, listed(self.models, self._since, here=here), headers)

    async def _health(self, request: Request) -> int:
        return self._page(request, 200, Health(status="ok"))

    async def _ready(self, request: Request) -> int:
        document, headers = readiness(self.models, asking=self.hosts.asking)
        return self._page(request, 503 if headers else 200, document, headers)

    async def _shown_metrics(self, request: Request) -> int:
        body, kind = await self._metrics_page(request.header(b"accept") or "")
        request.respond(200, ((b"content-type", kind.encode("ascii")),), body)
        return 200

    def _page(self, request: Request, status: int, document: msgspec.Struct, headers: tuple[Header, ...] = ()) -> int:
        request.respond(status, (JSON, *headers, *self._doors.page(request)), msgspec.json.encode(document))
        return status

    # --- what the listener tells ----------------------------------------------------------------------------

    def _connection(self, change: int) -> None:
        if change > 0:
            self._metrics.connected()
        else:
            self._metrics.disconnected()

    def _malformed(self, request: Request, status: int, why: str) -> None:
        retry = 1.0 if status == 503 else None
        self._refuse(request, Refusal(status, why, code="malformed", retry_seconds=retry, close=True), None)


_METRIC_ROUTES: dict[str, MetricRoute] = {"/health": "health", "/ready": "ready", "/metrics": "metrics"}
