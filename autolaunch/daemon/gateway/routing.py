"""Which engine answers a request: by the model's name, then the replica with the least to do.

Requests of one conversation go to one replica as long as it has not much more to do than another: its KV cache holds
the beginning of the prompt already. What makes a conversation is what the client says (``prompt_cache_key``, ``user``),
or how its messages begin.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Literal, Protocol

from autolaunch.daemon.pace import Pace
from selector.facts import EngineName
from selector.values import Value

#: A replica keeps its conversations until it has so many more requests than the one with the fewest.
STICKY_SLACK = 4

#: loading: it will serve by itself. asleep: as soon as it is asked. stopped, failed: somebody has to see to it.
Condition = Literal["serving", "loading", "asleep", "stopped", "failed"]


class Endpoint(Value, frozen=True, kw_only=True):
    """Where an engine answers. ``run`` tells one start of it from the next; the key is in no ``repr``."""

    run: int
    engine: EngineName
    host: str
    port: int
    served_name: str
    degraded: bool = False
    api_key: str | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.engine} at {self.host}:{self.port}, run {self.run})"


class Standing(Value, frozen=True, kw_only=True):
    """How a replica that may not serve stands, for clients: ``retry_seconds`` is when it may (an estimate).

    ``fraction`` of the load is done, 0 to 1, where that is known. No path and no line of a log is in ``message``.
    """

    condition: Condition
    message: str
    retry_seconds: float = 5.0
    stage: str | None = None
    fraction: float | None = None


class Traffic:
    """What passes to one replica, for whoever keeps it up: requests under way, and signs of answers so far.

    ``begun`` counts the requests that were sent to it, ``pace`` is what those showed that it had to itself.
    """

    __slots__ = ("answers", "begun", "pace", "under_way")

    def __init__(self) -> None:
        self.under_way = 0
        self.answers = 0
        self.begun = 0
        self.pace = Pace()


class Replica(Protocol):
    """One engine of a model, as the gateway sees it."""

    @property
    def name(self) -> str: ...
    @property
    def traffic(self) -> Traffic: ...
    @property
    def context_tokens(self) -> int | None: ...
    def endpoint(self) -> Endpoint | None:
        """Where it answers, while it does."""
        ...

    def standing(self) -> Standing: ...
    def wake(self) -> None:
        """Somebody asked for it."""
        ...


class Model:
    """The replicas of one served name, and who waits for one of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.replicas: tuple[Replica, ...] = ()
        self.waiting = 0
        self._changed: set[asyncio.Future[None]] = set()

    @property
    def under_way(self) -> int:
        """Requests that are with an engine or wait for one."""
        count = self.waiting
        for each in self.replicas:
            count += each.traffic.under_way
        return count

    def standing(self) -> Standing:
        """That of the replica that is nearest to serving."""
        return min((each.standing() for each in self.replicas), key=_distance, default=_GONE)

    def pick(
        self, conversation: bytes | None, without: frozenset[tuple[int, int]] = frozenset()
    ) -> tuple[Replica, Endpoint] | None:
        """The replica for a request; ``None`` where none serves. ``without``: engines that have just failed it."""
        if len(self.replicas) == 1:
            endpoint = self.replicas[0].endpoint()
            return (
                None if endpoint is None or (endpoint.port, endpoint.run) in without else (self.replicas[0], endpoint)
            )
        found = [
            (each, endpoint)
            for each in self.replicas
            if (endpoint := each.endpoint()) is not None and (endpoint.port, endpoint.run) not in without
        ]
        if len(found) < 2:
            return found[0] if found else None
        found = [each for each in found if not each[1].degraded] or found
        least = min(each.traffic.under_way for each, _ in found)
        if conversation is not None:
            # Rendezvous hashing: when a replica comes or goes, only its own conversations move.
            own = max(found, key=lambda each: _weight(conversation, self.replicas.index(each[0])))
            if own[0].traffic.under_way <= least + STICKY_SLACK:
                return own
        return min(found, key=lambda each: each[0].traffic.under_way)

    def changed(self) -> None:
        """A replica is in another state now."""
        for each in tuple(self._changed):
            if not each.done():
                each.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Waits for a change, at most so long."""
        changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.add(changed)
        try:
            await asyncio.wait((changed,), timeout=seconds)
        finally:
            self._changed.discard(changed)


def _weight(conversation: bytes, place: int) -> bytes:
    return hashlib.blake2b(conversation, digest_size=8, salt=place.to_bytes(8, "big")).digest()


#: Of a model whose last replica went while somebody waited for it.
_GONE = Standing(condition="stopped", message="is served here no more", retry_seconds=60.0)
_ORDER: tuple[Condition, ...] = ("serving", "loading", "asleep", "stopped", "failed")


def _distance(standing: Standing) -> tuple[int, float]:
    return _ORDER.index(standing.condition), standing.retry_seconds
