"""One request to a model, from its body to the end of its answer.

It waits for a replica where its client asked to, goes to the one with the least to do, and its answer comes back as the
engine gives it (:mod:`autolaunch.daemon.gateway.passing`). An engine that ends before its client was sent anything of
an answer is no loss: another replica is asked. When it ends midway the client gets an error event and the end of the
stream; when the client leaves, so does the request to the engine, which then stops working at it.

The same holds of another host that serves the model. A gateway that passes a request on says so (:data:`HOP`, with the
tries that it has there), and such a request is answered by an engine of this host or not at all: none goes round. A
host that does not take a request, for it loads, or has too many, is no loss either.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from autolaunch.daemon.gateway import asked
from autolaunch.daemon.gateway.documents import Dialect
from autolaunch.daemon.gateway.host_answers import FAILED, HOP, RISKED, NotTaken, not_taken
from autolaunch.daemon.gateway.mending import Mender
from autolaunch.daemon.gateway.other_hosts import AtHost
from autolaunch.daemon.gateway.passing import Passing, doubt, told_in_stream
from autolaunch.daemon.gateway.refusal import Refusal
from autolaunch.daemon.gateway.unserved import endpoint_ending, engine_died, not_ready
from autolaunch.daemon.gateway.upstream import Broken, Upstream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autolaunch.daemon.gateway.metrics import Seen
    from autolaunch.daemon.gateway.options import GatewayOptions
    from autolaunch.daemon.gateway.request import Header, Request
    from autolaunch.daemon.gateway.routing import Endpoint, Model, Place, Replica
    from autolaunch.daemon.gateway.upstream import Connection

#: How often a request that waits looks whether it should go on waiting, events aside.
LOOK_SECONDS = 5.0
#: Tries of one request on engines that end before they answer. What ends one may end the next: no more are risked.
TRIES = 2
#: Headers of a request that an engine gets to see; what is a credential is not among them.
_PASSED = frozenset(
    {b"accept", b"anthropic-version", b"anthropic-beta", b"traceparent", b"tracestate", b"x-request-id"}
)


class Route(NamedTuple):
    """A path that engines serve, and the form of what is said on it."""

    path: str
    name: Literal["chat.completions", "completions", "responses", "embeddings", "messages", "other"]
    dialect: Dialect


class Sent:
    """A request that is with an engine, which counts it until it is released. ``connection`` is where it was sent."""

    __slots__ = ("_released", "connection", "endpoint", "head", "replica", "upstream")

    def __init__(
        self,
        replica: Replica,
        endpoint: Endpoint,
        upstream: Upstream,
        head: bytes,
        connection: Connection | None = None,
    ) -> None:
        self.replica, self.endpoint, self.upstream = replica, endpoint, upstream
        self.head, self.connection = head, connection
        self._released = False
        replica.traffic.under_way += 1
        replica.traffic.begun += 1

    def release(self) -> None:
        """It is over; again is nothing."""
        if not self._released:
            self._released = True
            self.replica.traffic.under_way -= 1

    def leave(self) -> None:
        """Nobody waits for its answer."""
        self.release()
        if self.connection is not None:
            self.connection.abort()


class _Tried(NamedTuple):
    """Where a request was already: ``times`` it may have been read, and nothing came of it.

    ``refusal`` is what its client is told by whoever was passed over last, where that has something to say.
    """

    times: int = 0
    failed: frozenset[Place] = frozenset()
    passed_over: frozenset[Place] = frozenset()
    refusal: Refusal | None = None

    def broken(self, place: Place, *, risked: bool) -> _Tried:
        return self._replace(times=self.times + risked, failed=self.failed | {place})

    def refused(self, place: Place, told: NotTaken) -> _Tried:
        return self._replace(
            times=self.times + told.risked,
            passed_over=self.passed_over | {place},
            refusal=told.refusal or self.refusal,
        )


_UNTRIED = _Tried()


class Proxy:
    """Passes requests on to engines, and to other hosts. One loop's."""

    def __init__(self, models: Mapping[str, Model], options: GatewayOptions) -> None:
        self.models = models
        self.options = options
        #: Every engine is about to end: nobody waits for one, or is sent to one, any more.
        self.ending = False
        self._upstreams: dict[tuple[str, int], tuple[int, Upstream]] = {}

    def close(self) -> None:
        """Leaves the connections to the engines that are idle."""
        for _, upstream in self._upstreams.values():
            upstream.close()
        self._upstreams.clear()

    def forget(self, places: frozenset[tuple[str, int]]) -> None:
        """Leaves engines that are none of ``places`` (host and port) any more."""
        for place in self._upstreams.keys() - places:
            self._upstreams.pop(place)[1].close()

    def sent(self, request: Request, route: Route, model: Model, body: bytes) -> Sent | None:
        """Sends a request to an engine that is connected and free for it, where there is one: most are, and while the
        engine begins with it there is time for the rest."""
        if model.under_way >= self.options.queue or self.ending:
            return None
        if model.hosts or len(model.replicas) > 1:
            found = model.pick(asked.conversation(body), here=_is_passed_on(request, model))
        else:
            found = model.pick(None)
        if found is None:
            return None
        replica, endpoint = found
        upstream = self._upstream(replica, endpoint)
        head = _head(request, route, endpoint, _given(model, endpoint, _UNTRIED), len(body))
        connection = upstream.sent(head, body)
        return None if connection is None else Sent(replica, endpoint, upstream, head, connection)

    async def answer(
        self,
        request: Request,
        route: Route,
        model: Model,
        body: bytes,
        seen: Seen,
        *,
        streamed: bool,
        sent: Sent | None = None,
        page: tuple[Header, ...] = (),
    ) -> None:
        """Gives the request the answer of one of the model's engines, with the headers of ``page``.

        ``sent``: an engine has it already.

        Raises:
            Refusal: none serves, or the engine does not answer.
        """
        tried = _UNTRIED
        most = _most_tries(request)
        try:
            while tried.times < most:
                if sent is None:
                    replica, endpoint = await self._replica(request, model, body, tried)
                    upstream = self._upstream(replica, endpoint)
                    head = _head(request, route, endpoint, _given(model, endpoint, tried), len(body))
                    sent = Sent(replica, endpoint, upstream, head)
                seen.routed()
                held: bytes | None = None
                try:
                    connection = await sent.upstream.request(sent.head, body, sent.connection)
                    if sent.endpoint.engine is None:
                        held = await not_taken(connection, model, route.dialect)
                        if connection.status == FAILED:
                            doubt(sent.replica, "it answers 500")
                    mender = Mender(
                        engine=sent.endpoint.engine,
                        asked=model.name,
                        served=sent.endpoint.served_name,
                        dialect=route.dialect,
                        streamed=streamed,
                        request=body,
                    )
                    passing = Passing(request, model, sent.replica, sent.upstream, connection, mender, seen, held)
                    await passing.passed(page)
                except Broken as broken:
                    doubt(sent.replica, str(broken))
                    tried = tried.broken(sent.endpoint.place, risked=broken.sent)
                except NotTaken as told:
                    sent.upstream.give_back(connection)
                    if isinstance(sent.replica, AtHost):
                        sent.replica.refused(told)
                    tried = tried.refused(sent.endpoint.place, told)
                else:
                    return
                sent.release()
                sent = None
            raise engine_died(model)
        except Refusal as refusal:
            refusal.headers += _risked(request, tried)
            if not request.answered:
                raise
            # It was sent comments of an engine that has ended since, and reads a stream.
            await told_in_stream(request, route.dialect, refusal, seen)
        finally:
            if sent is not None:
                sent.release()

    # --- an engine for it ---------------------------------------------------------------------------------

    async def _replica(self, request: Request, model: Model, body: bytes, tried: _Tried) -> tuple[Replica, Endpoint]:
        if model.under_way >= self.options.queue:
            raise Refusal(
                429, f"{model.name} has {model.under_way} requests already", code="queue_full", retry_seconds=1.0
            )
        if self.ending:
            raise endpoint_ending(model)
        conversation = asked.conversation(body) if model.hosts or len(model.replicas) > 1 else None
        here = _is_passed_on(request, model)
        found = model.pick(conversation, tried.failed | tried.passed_over, here=here)
        if found is not None:
            return found
        waits = _Waits(request, self.options)
        model.waiting += 1
        try:
            while True:
                for each in model.replicas:
                    each.wake()
                left = waits.seconds_left()
                standing = model.standing(here=here)
                if left <= 0 or standing.condition in ("failed", "stopped"):
                    if tried.refusal is not None and standing.condition == "serving":
                        raise tried.refusal
                    raise not_ready(model, standing, died=bool(tried.failed))
                await model.wait(min(left, LOOK_SECONDS))
                if self.ending:
                    raise endpoint_ending(model)
                # Who was only passed over may take it now.
                found = model.pick(conversation, tried.failed, here=here)
                if found is not None:
                    return found
        finally:
            model.waiting -= 1

    def _upstream(self, replica: Replica, endpoint: Endpoint) -> Upstream:
        if endpoint.engine is None and isinstance(replica, AtHost):
            return replica.upstream
        place = (endpoint.host, endpoint.port)
        run, upstream = self._upstreams.get(place, (-1, None))
        if upstream is None or run != endpoint.run:
            if upstream is not None:
                upstream.close()
            upstream = Upstream(endpoint.host, endpoint.port)
            self._upstreams[place] = (endpoint.run, upstream)
        return upstream


class _Waits:
    """How long a request may wait: what its client asked for by ``Prefer: wait=SECONDS`` (RFC 7240)."""

    def __init__(self, request: Request, options: GatewayOptions) -> None:
        self._request = request
        self._most_seconds = options.wait_seconds

    def seconds_left(self) -> float:
        """So long, from now on."""
        waited = asyncio.get_running_loop().time() - self._request.begun
        return self._preferred() - waited

    def _preferred(self) -> float:
        for preference in ",".join(self._request.all(b"prefer")).split(","):
            name, _, value = preference.partition(";")[0].partition("=")
            value = value.strip().strip('"')
            if name.strip().lower() == "wait" and value.isascii() and value.isdigit() and len(value) < 9:
                return min(float(value), self._most_seconds)
        return 0.0


def _is_passed_on(request: Request, model: Model) -> bool:
    return bool(model.hosts) and request.has(HOP)


def _most_tries(request: Request) -> int:
    """On how many engines it may be risked; a gateway that passes a request on says how many tries it gives."""
    given = request.header(HOP)
    if given is None:
        return TRIES
    return min(TRIES, int(given)) if given.isascii() and given.isdigit() and 0 < len(given) < 3 and int(given) else 1


def _risked(request: Request, tried: _Tried) -> tuple[Header, ...]:
    """What the gateway that passed it on counts among its own tries."""
    return ((RISKED, b"%d" % tried.times),) if request.has(HOP) else ()


def _given(model: Model, endpoint: Endpoint, tried: _Tried) -> int:
    """On how many engines a host may risk it: on one while others could be asked, and then on all that are left."""
    if endpoint.engine is not None:
        return 1
    beside = tried.failed | tried.passed_over | {endpoint.place}
    return 1 if model.pick(None, beside) is not None else TRIES - tried.times


def _head(request: Request, route: Route, endpoint: Endpoint, given: int, length: int) -> bytes:
    passed = [b"%b: %b\r\n" % each for each in request.some(_PASSED) if each[1].isascii() and each[1]]
    if endpoint.engine is None:
        passed.append(b"%b: %d\r\n" % (HOP, given))
    return b"%bcontent-length: %d\r\n%b\r\n" % (_begins(route.path, endpoint), length, b"".join(passed))


@lru_cache(maxsize=256)
def _begins(path: str, endpoint: Endpoint) -> bytes:
    """The head of every request to an engine, as far as all of them have it."""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    key = "" if endpoint.api_key is None else f"authorization: Bearer {endpoint.api_key}\r\n"
    return (
        f"POST {path} HTTP/1.1\r\nhost: {host}:{endpoint.port}\r\ncontent-type: application/json\r\n"
        f"accept-encoding: identity\r\n{key}"
    ).encode("ascii")
