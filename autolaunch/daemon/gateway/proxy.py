"""One request to a model, from its body to the end of its answer.

It waits for a replica where its client asked to, goes to the one with the least to do, and its answer comes back as the
engine gives it, put right (:mod:`autolaunch.daemon.gateway.mending`). An engine that ends before anything of an answer
has come is no loss: another replica is asked. When it ends midway the client gets an error event and the end of the
stream; when the client leaves, so does the request to the engine, which then stops working at it.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from autolaunch.daemon.gateway import asked
from autolaunch.daemon.gateway.documents import Dialect
from autolaunch.daemon.gateway.mending import Mender
from autolaunch.daemon.gateway.refusal import Refusal
from autolaunch.daemon.gateway.upstream import Broken, Connection, Upstream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autolaunch.daemon.gateway.metrics import Reason, Seen
    from autolaunch.daemon.gateway.options import GatewayOptions
    from autolaunch.daemon.gateway.request import Header, Request
    from autolaunch.daemon.gateway.routing import Endpoint, Model, Replica, Standing

#: The longest answer that is not streamed.
ANSWER_BYTES = 64 * 2**20
#: How often a request that waits looks whether it should go on waiting, events aside.
LOOK_SECONDS = 5.0
#: When to come again after the endpoint has ended: where it is kept up, it is there again by then.
ENDING_RETRY_SECONDS = 10.0
#: Tries of one request on engines that end before they answer. What ends one may end the next: no more are risked.
TRIES = 2
#: Headers of a request that an engine gets to see; what is a credential is not among them.
_PASSED = frozenset(
    {b"accept", b"anthropic-version", b"anthropic-beta", b"traceparent", b"tracestate", b"x-request-id"}
)
_NOT_HELD_BACK = ((b"x-accel-buffering", b"no"),)


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


class Proxy:
    """Passes requests on to engines. One loop's."""

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
        found = model.pick(asked.conversation(body) if len(model.replicas) > 1 else None)
        if found is None:
            return None
        replica, endpoint = found
        upstream = self._upstream(endpoint)
        head = _head(request, route, endpoint, len(body))
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
        failed: frozenset[tuple[int, int]] = frozenset()
        try:
            for _ in range(TRIES):
                if sent is None:
                    replica, endpoint = await self._replica(request, model, body, failed)
                    sent = Sent(replica, endpoint, self._upstream(endpoint), _head(request, route, endpoint, len(body)))
                seen.routed()
                try:
                    connection = await sent.upstream.request(sent.head, body, sent.connection)
                except Broken as broken:
                    if broken.begun:
                        raise _died(model) from broken
                    failed |= {(sent.endpoint.port, sent.endpoint.run)}
                    sent.release()
                    sent = None
                    continue
                mender = Mender(
                    engine=sent.endpoint.engine,
                    asked=model.name,
                    served=sent.endpoint.served_name,
                    dialect=route.dialect,
                    streamed=streamed,
                    request=body,
                )
                await _Passing(request, model, sent.replica, sent.upstream, connection, mender, seen).passed(page)
                return
        finally:
            if sent is not None:
                sent.release()
        raise _died(model)

    # --- an engine for it ---------------------------------------------------------------------------------

    async def _replica(
        self, request: Request, model: Model, body: bytes, failed: frozenset[tuple[int, int]]
    ) -> tuple[Replica, Endpoint]:
        if model.under_way >= self.options.queue:
            raise Refusal(
                429, f"{model.name} has {model.under_way} requests already", code="queue_full", retry_seconds=1.0
            )
        if self.ending:
            raise _ending(model)
        conversation = asked.conversation(body) if len(model.replicas) > 1 else None
        found = model.pick(conversation, failed)
        if found is not None:
            return found
        waits = _Waits(request, self.options)
        model.waiting += 1
        try:
            while True:
                for each in model.replicas:
                    each.wake()
                left = waits.seconds_left()
                standing = model.standing()
                if left <= 0 or standing.condition in ("failed", "stopped"):
                    raise _not_ready(model, standing, died=bool(failed))
                await model.wait(min(left, LOOK_SECONDS))
                if self.ending:
                    raise _ending(model)
                found = model.pick(conversation, failed)
                if found is not None:
                    return found
        finally:
            model.waiting -= 1

    def _upstream(self, endpoint: Endpoint) -> Upstream:
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


def _head(request: Request, route: Route, endpoint: Endpoint, length: int) -> bytes:
    passed = [b"%b: %b\r\n" % each for each in request.some(_PASSED) if each[1].isascii() and each[1]]
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


class _Passing:
    """An answer on its way from the engine to the client."""

    def __init__(
        self,
        request: Request,
        model: Model,
        replica: Replica,
        upstream: Upstream,
        connection: Connection,
        mender: Mender,
        seen: Seen,
    ) -> None:
        self.request, self.model, self.replica = request, model, replica
        self.upstream, self.connection, self.mender, self.seen = upstream, connection, mender, seen

    async def passed(self, page: tuple[Header, ...]) -> None:
        connection = self.connection
        try:
            status, headers = self.mender.head(connection.status, connection.headers)
            headers += page
            if self.mender.streams:
                await self._streamed(status, headers)
            else:
                await self._whole(connection.status, headers)
        except BaseException:
            # The client has left, or the daemon ends: the engine need not go on.
            connection.abort()
            raise
        self.upstream.give_back(connection)

    async def _whole(self, status: int, headers: list[Header]) -> None:
        try:
            body = await self.connection.body(ANSWER_BYTES)
        except Broken as broken:
            raise _died(self.model) from broken
        status, body = self.mender.whole(status, body)
        if status < 400:  # an engine that does not generate any more may still refuse
            self.replica.traffic.answers += 1
        self._count()
        self.request.respond(status, headers, body)
        reason: Reason = "ok" if status < 500 else "engine_error"
        self.seen.ended(status=status, reason=reason, answer_bytes=len(body))

    async def _streamed(self, status: int, headers: list[Header]) -> None:
        request, mender, seen, traffic = self.request, self.mender, self.seen, self.replica.traffic
        # nginx in front of us would collect events.
        request.begin(status, (*headers, *_NOT_HELD_BACK))
        reason: Reason = "ok"
        tokens = sent = 0
        alone = traffic.begun if traffic.under_way == 1 else None
        try:
            while piece := await self.connection.piece():
                passed = mender.feed(piece)
                if not passed:
                    continue
                if mender.tokens_seen > tokens:
                    traffic.answers += 1
                    seen.tokens(mender.tokens_seen - tokens)
                    tokens = mender.tokens_seen
                sent += len(passed)
                await request.write(passed)
            told_so = mender.failed
            last = mender.end()
            if mender.failed:  # some engines' answers end with their connections: so does the death of one
                reason = "engine_error" if told_so else "engine_died"
        except Broken:
            reason = "engine_died"
            last = mender.broken("the engine ended before the answer did; ask again", "engine_died")
        await request.write(last)
        self._count()
        seen.ended(status=status, reason=reason, answer_bytes=sent + len(last))
        if alone == traffic.begun and reason == "ok" and (took := seen.alone()) is not None:
            traffic.pace.add(took)
        request.finish()

    def _count(self) -> None:
        prompt, completion = self.mender.usage
        self.seen.usage(prompt=prompt, completion=completion)


def _died(model: Model) -> Refusal:
    return Refusal(
        503,
        f"the engine of {model.name} gave this request no answer: it has ended, or closed the connection",
        code="engine_died",
        retry_seconds=max(1.0, model.standing().retry_seconds),
        reason="engine_died",
    )


def _ending(model: Model) -> Refusal:
    message = f"{model.name} is not served any more: this endpoint is about to end"
    return Refusal(503, message, code="stopping", retry_seconds=ENDING_RETRY_SECONDS, reason="stopping")


def _not_ready(model: Model, standing: Standing, *, died: bool) -> Refusal:
    if not model.replicas:  # somebody took it out of the configuration while its client waited
        return Refusal(404, f"{model.name} {standing.message}", code="model_not_found", reason="not_ready")
    if standing.condition == "serving":  # its engine has just ended, and nobody has noticed yet
        return _died(model)
    codes = {
        "loading": "model_loading",
        "asleep": "model_loading",
        "stopped": "model_stopped",
        "failed": "model_failed",
    }
    code = codes.get(standing.condition, "model_loading")
    return Refusal(
        503,
        f"{model.name} {standing.message}",
        code="engine_died" if died and code == "model_loading" else code,
        retry_seconds=standing.retry_seconds,
        reason="engine_died" if died else "not_ready",
        standing=standing,
    )
