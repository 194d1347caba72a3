"""Which engine answers a request: by the model's name, then the replica with the least to do.

A host whose gateway serves the model is one more replica (:mod:`autolaunch.daemon.gateway.other_hosts`): what it has
to do is what was sent to it and what it says of others' requests, shared by the engines that it says it has.

Requests of one conversation go to one replica as long as it has not much more to do than another: its KV cache holds
the beginning of the prompt already. What makes a conversation is what the client says (``prompt_cache_key``, ``user``),
or how its messages begin.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Literal, NamedTuple, Protocol

from autolaunch.daemon.pace import Pace
from selector.facts import EngineName
from selector.values import Value

#: A replica keeps its conversations until it has so many more requests than the one with the fewest.
STICKY_SLACK = 4
#: The most draws of a host for a conversation: each is a hash, of each request.
MOST_DRAWS = 16

#: loading: it will serve by itself. asleep: as soon as it is asked. unreachable: another host has it, which does not
#: answer now. stopped, failed: somebody has to see to it.
Condition = Literal["serving", "loading", "asleep", "unreachable", "stopped", "failed"]


class Place(NamedTuple):
    """One start of what answers at an address."""

    host: str
    port: int
    run: int


class Endpoint(Value, frozen=True, kw_only=True):
    """Where an engine answers, or with ``engine=None`` the gateway of another host; the key is in no ``repr``.

    ``run`` tells one start of it from the next. ``degraded``: it is asked only where no other is there.
    """

    run: int
    engine: EngineName | None
    host: str
    port: int
    served_name: str
    degraded: bool = False
    api_key: str | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.engine or 'gateway'} at {self.host}:{self.port}, run {self.run})"

    @property
    def place(self) -> Place:
        return Place(self.host, self.port, self.run)


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
    ``of_others`` are requests that it has from elsewhere, ``engines`` how many share all of them: of another host.
    """

    __slots__ = ("answers", "begun", "engines", "of_others", "pace", "under_way")

    def __init__(self) -> None:
        self.under_way = 0
        self.answers = 0
        self.begun = 0
        self.of_others = 0
        self.engines = 1
        self.pace = Pace()

    @property
    def load(self) -> float:
        """Requests that one of its engines has to do."""
        return (self.under_way + self.of_others) / self.engines


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
    """What serves one name: the replicas of this host, and the other hosts that have it; and who waits for one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.replicas: tuple[Replica, ...] = ()
        self.hosts: tuple[Replica, ...] = ()
        self.waiting = 0
        self._changed: set[asyncio.Future[None]] = set()

    @property
    def everywhere(self) -> tuple[Replica, ...]:
        """Those of this host first: where all have as much to do, they are the nearest."""
        return self.replicas + self.hosts if self.hosts else self.replicas

    @property
    def under_way(self) -> int:
        """Requests that are with an engine or wait for one."""
        count = self.waiting
        for each in self.replicas:
            count += each.traffic.under_way
        for each in self.hosts:
            count += each.traffic.under_way
        return count

    def standing(self, *, here: bool = False) -> Standing:
        """That of the replica that is nearest to serving; ``here``: of those of this host."""
        found = self.replicas if here else self.everywhere
        return min((each.standing() for each in found), key=_distance, default=GONE)

    def pick(
        self, conversation: bytes | None, without: frozenset[Place] = frozenset(), *, here: bool = False
    ) -> tuple[Replica, Endpoint] | None:
        """The replica for a request; ``None`` where none serves.

        Args:
            without: those that have just failed it.
            here: only of this host: another one has sent it on already.
        """
        if len(self.replicas) == 1 and (here or not self.hosts):
            endpoint = self.replicas[0].endpoint()
            return None if endpoint is None or (without and endpoint.place in without) else (self.replicas[0], endpoint)
        found = [
            (each, endpoint)
            for each in (self.replicas if here else self.everywhere)
            if (endpoint := each.endpoint()) is not None and not (without and endpoint.place in without)
        ]
        if len(found) < 2:
            return found[0] if found else None
        found = [each for each in found if not each[1].degraded] or found
        least = min(each.traffic.load for each, _ in found)
        if conversation is not None:
            # Rendezvous hashing: when a replica comes or goes, only its own conversations move.
            own = max(found, key=lambda each: self._weight(conversation, *each))
            if own[0].traffic.load <= least + STICKY_SLACK:
                return own
        return min(found, key=lambda each: each[0].traffic.load)

    def _weight(self, conversation: bytes, replica: Replica, endpoint: Endpoint) -> bytes:
        """A host has a draw for each of its engines: it gets as many conversations as they would."""
        if endpoint.engine is not None:
            return _drawn(conversation, self.replicas.index(replica).to_bytes(8, "big"))
        salt = _drawn(f"{endpoint.host}:{endpoint.port}".encode(), b"")
        draws = (_drawn(conversation, salt, number) for number in range(min(replica.traffic.engines, MOST_DRAWS)))
        return max(draws)

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


def _drawn(conversation: bytes, salt: bytes, number: int = 0) -> bytes:
    return hashlib.blake2b(conversation, digest_size=8, salt=salt, person=number.to_bytes(8, "big")).digest()


#: Of a model whose last replica went while somebody waited for it.
GONE = Standing(condition="stopped", message="is served here no more", retry_seconds=60.0)
_ORDER: tuple[Condition, ...] = ("serving", "loading", "asleep", "unreachable", "stopped", "failed")


def _distance(standing: Standing) -> tuple[int, float]:
    return _ORDER.index(standing.condition), standing.retry_seconds
