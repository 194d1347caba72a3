"""An answer on its way from the engine to its client, put right (:mod:`autolaunch.daemon.gateway.mending`).

Engines send the head of a stream before they have begun with the prompt. It is held here until the first event has
come: as long as the client was sent nothing of an answer, an engine that ends is no loss, and another can be asked.
Comments are no part of an answer. They keep a connection alive while a long prompt is read, so they pass at once, the
head before them; whoever is asked next goes on behind them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autolaunch.daemon.gateway import streams
from autolaunch.daemon.gateway.documents import Dialect, error_event
from autolaunch.daemon.gateway.host_answers import HOP
from autolaunch.daemon.gateway.other_hosts import AtHost
from autolaunch.daemon.gateway.unserved import engine_died
from autolaunch.daemon.gateway.upstream import Broken, TooLong

if TYPE_CHECKING:
    from autolaunch.daemon.gateway.mending import Mender
    from autolaunch.daemon.gateway.metrics import Reason, Seen
    from autolaunch.daemon.gateway.refusal import Refusal
    from autolaunch.daemon.gateway.request import Header, Request
    from autolaunch.daemon.gateway.routing import Model, Replica
    from autolaunch.daemon.gateway.upstream import Connection, Upstream

#: The longest answer that is not streamed.
ANSWER_BYTES = 64 * 2**20
#: nginx in front of us would collect events.
_NOT_HELD_BACK = ((b"x-accel-buffering", b"no"),)


class Passing:
    """One engine's answer."""

    def __init__(
        self,
        request: Request,
        model: Model,
        replica: Replica,
        upstream: Upstream,
        connection: Connection,
        mender: Mender,
        seen: Seen,
        held: bytes | None,
    ) -> None:
        """``held``: the whole answer, where it was read already."""
        self.request, self.model, self.replica = request, model, replica
        self.upstream, self.connection, self.mender, self.seen = upstream, connection, mender, seen
        self.held = held

    async def passed(self, page: tuple[Header, ...]) -> None:
        """Gives it to the client, with the headers of ``page``.

        Raises:
            Broken: it ended, and the client was sent nothing of it but comments.
            Refusal: it cannot be passed on, and would not come otherwise from another.
        """
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
            body = await self.connection.body(ANSWER_BYTES) if self.held is None else self.held
        except TooLong as broken:
            raise engine_died(self.model) from broken
        if self.request.answered:  # with comments of another: there is no place for this one's status
            raise engine_died(self.model)
        status, body = self.mender.whole(status, body)
        if status < 400:  # an engine that does not generate any more may still refuse
            self.replica.traffic.answers += 1
        self._count()
        self.request.respond(status, headers, body)
        reason: Reason = "ok" if status < 500 else "engine_error"
        self.seen.ended(status=status, reason=reason, answer_bytes=len(body))

    async def _streamed(self, status: int, headers: list[Header]) -> None:
        request, mender, seen, traffic = self.request, self.mender, self.seen, self.replica.traffic
        reason: Reason = "ok"
        tokens = sent = 0
        begun = False
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
                if not begun:
                    begun = not streams.is_comments(passed)
                    if not request.answered:
                        request.begin(status, (*headers, *_NOT_HELD_BACK), passed)
                        continue
                await request.write(passed)
            told_so = mender.failed
            last = mender.end()
            if mender.failed:  # some engines' answers end with their connections: so does the death of one
                reason = "engine_error" if told_so else "engine_died"
        except Broken as broken:
            if not begun:
                raise
            doubt(self.replica, str(broken))
            reason = "engine_died"
            last = mender.broken("the engine ended before the answer did; ask again", "engine_died")
        if not begun and reason == "engine_died":
            raise Broken("it ended its answer before the first event", begun=True)
        if not request.answered:
            request.begin(status, (*headers, *_NOT_HELD_BACK))
        await request.write(last)
        self._count()
        seen.ended(status=status, reason=reason, answer_bytes=sent + len(last))
        if alone == traffic.begun and reason == "ok" and (took := seen.alone()) is not None:
            traffic.pace.add(took)
        request.finish()

    def _count(self) -> None:
        prompt, completion = self.mender.usage
        self.seen.usage(prompt=prompt, completion=completion)


async def told_in_stream(request: Request, dialect: Dialect, refusal: Refusal, seen: Seen) -> None:
    """Refuses a client that was sent the head of a stream, and no event of it yet."""
    if request.has(HOP):  # left without its end: to the gateway that passed it on a comment is no answer, either
        seen.ended(status=200, reason=refusal.reason)
        return
    event = error_event(dialect, refusal.status, refusal.message, code=refusal.code)
    last = event + (b"" if dialect in streams.ENDS else streams.DONE)
    await request.write(last)
    seen.ended(status=200, reason=refusal.reason, answer_bytes=len(last))
    request.finish()


def doubt(replica: Replica, why: str) -> None:
    """Who keeps an engine up sees its end by itself; a host is asked."""
    if isinstance(replica, AtHost):
        replica.broke(why)
