"""Other hosts, whose gateways serve models beside the engines of this one.

Each is asked every few seconds whether it is well and what it serves, by requests that say who asks: it tells of its
own engines alone, so that no host is well because another believes it. One that gives no answer is sent nothing more.
When it has given none several times, what was sent to it before is given up: requests whose answers have not begun go
elsewhere, streams end with an error.

A request that breaks casts doubt on its host, which is asked at once and meanwhile only where no other can be.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Literal

from autolaunch.daemon.gateway.host_access import HostAccess
from autolaunch.daemon.gateway.host_answers import (
    GATEWAY,
    HOP,
    LIST_BYTES,
    HostFault,
    Listed,
    NotTaken,
    listed,
    refuse_unwell,
)
from autolaunch.daemon.gateway.routing import Condition, Endpoint, Standing, Traffic
from autolaunch.daemon.gateway.upstream import Broken, Connection, Upstream
from autolaunch.daemon.journal import Level

#: How often a host that answers is asked, and what both questions together may take.
ASK_SECONDS, ANSWER_SECONDS = 2.0, 2.0
#: How long a connection may take to come about.
CONNECT_SECONDS = 2.0
#: The pause after a failure: doubled to the most, and each up to a fifth longer or shorter.
AGAIN_SECONDS, AGAIN_MOST_SECONDS, JITTER = 0.25, 2.0, 0.2
#: So many times without an answer, one after the other, and what is with a host is given up.
LOST_TIMES = 3
#: When to come again for a model that a host loads, where it has not said.
LOADING_RETRY_SECONDS = 5.0

State = Literal["asking", "up", "down"]
_MESSAGES: dict[Condition, str] = {
    "serving": "serves",
    "loading": "is loading on another host",
    "asleep": "was stopped because nobody asked; another host starts it now",
    "unreachable": "is served by another host, which does not answer now",
    "stopped": "is stopped on the host that serves it",
    "failed": "has failed on the host that serves it, and waits for somebody to see to it",
}
_GONE_RETRY_SECONDS = 600.0


class AtHost:
    """A model at another host: :class:`autolaunch.daemon.gateway.routing.Replica`."""

    def __init__(self, host: OtherHost, name: str) -> None:
        self.host = host
        self.name = name
        self.traffic = Traffic()
        self.context_tokens: int | None = None
        self.condition: Condition = "unreachable"
        self._retry_seconds = LOADING_RETRY_SECONDS
        self._endpoint: Endpoint | None = None

    @property
    def upstream(self) -> Upstream:
        return self.host.upstream

    def endpoint(self) -> Endpoint | None:
        host = self.host
        if host.state != "up" or self.condition not in ("serving", "asleep"):
            return None
        known, degraded = self._endpoint, host.doubted or self.condition != "serving"
        if known is None or known.run != host.run or known.degraded != degraded:
            known = self._endpoint = Endpoint(
                run=host.run,
                engine=None,
                host=host.access.host,
                port=host.access.port,
                served_name=self.name,
                degraded=degraded,
                api_key=host.access.api_key,
            )
        return known

    def standing(self) -> Standing:
        host = self.host
        condition: Condition = "unreachable" if host.state != "up" or host.doubted else self.condition
        retry = {"serving": 1.0, "unreachable": AGAIN_MOST_SECONDS, "stopped": _GONE_RETRY_SECONDS}
        return Standing(
            condition=condition,
            message=_MESSAGES[condition],
            retry_seconds=retry.get(condition, _GONE_RETRY_SECONDS if condition == "failed" else self._retry_seconds),
        )

    def wake(self) -> None:
        """Nothing: a host wakes a model when it is sent a request for it."""

    def broke(self, why: str) -> None:
        """A request that was sent to it got no whole answer."""
        self.host.doubt(why)

    def refused(self, told: NotTaken) -> None:
        """It did not take a request. What it says when it is asked next holds again."""
        if told.status in (401, 403):
            self.host.doubt(f"it refuses requests ({told.status})")
        elif told.status != 429:
            self.condition = "stopped" if told.status == 404 else "loading"
            self._retry_seconds = told.retry_seconds or LOADING_RETRY_SECONDS
            self.host.hosts.on_change(False)

    def take(self, found: Listed) -> None:
        """What its host says of it."""
        if found.condition != "loading" or self.condition != "loading":
            self._retry_seconds = LOADING_RETRY_SECONDS
        self.condition = found.condition
        self.context_tokens = found.context_tokens
        # What is with it from here is counted here, to the moment.
        self.traffic.of_others = max(0, found.requests - self.traffic.under_way)
        self.traffic.engines = max(1, found.engines)


class OtherHost:
    """One host. Everything belongs to the gateway's loop; what is read beside it is replaced whole.

    Attributes:
        state: whether it may be sent requests; ``asking``: it was not heard of yet.
        since: when it came into its state, by the monotonic clock.
        error: why it is down; of one that is up, nothing.
        failures: how often it went down, or did not answer at the start.
        run: the number of times that it came up, or its address or key changed.
        id: what its gateway calls itself.
    """

    def __init__(self, hosts: Hosts, access: HostAccess) -> None:
        self.hosts = hosts
        self.access = access
        self.state: State = "asking"
        self.since = hosts.clock()
        self.error: str | None = None
        self.doubted = False
        self.failures = 0
        self.run = 0
        self.id: str | None = None
        self.members = tuple(AtHost(self, name) for name in access.options.models)
        self.upstream = self._connections()
        self._soon = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._keep_asking())
        self._task.add_done_callback(self._ended)

    @property
    def name(self) -> str:
        return self.access.name

    @property
    def requests(self) -> int:
        """Requests from here that are with it."""
        return sum(each.traffic.under_way for each in self.members)

    def renew(self, access: HostAccess) -> None:
        """The configuration has it otherwise: what is with it goes on, and it is asked at once."""
        self.upstream.close()
        self.access = access
        self.upstream = self._connections()
        self.run += 1
        if (only := access.options.models) != ():
            known = {each.name: each for each in self.members}
            self.members = tuple(known.get(name) or AtHost(self, name) for name in only)
        self.doubt("the configuration has another address or key of it")

    def doubt(self, why: str) -> None:
        """Something of it broke: it is asked at once, and until then only sent what nobody else takes."""
        if self.state == "up" and not self.doubted:
            self.doubted, self.error = True, why
            self.hosts.on_change(False)
        self._soon.set()

    def close(self) -> None:
        """It is not asked any more; what is with it goes on."""
        self._task.cancel()
        self.upstream.close()

    def _connections(self) -> Upstream:
        access = self.access
        return Upstream(access.host, access.port, far=True, tls=access.tls(), connect_seconds=CONNECT_SECONDS)

    # --- asking -------------------------------------------------------------------------------------------

    async def _keep_asking(self) -> None:
        silences = failures = 0
        heard: dict[Connection, int] = {}
        while True:
            self._soon.clear()
            access = self.access
            try:
                found = await self._asked()
            except HostFault as fault:
                failures += 1
                silences = silences + 1 if fault.silent else 0
                if silences == 1:
                    heard = dict(self.upstream.heard())
                if access is self.access:
                    self._down(str(fault))
                if silences >= LOST_TIMES:
                    self.upstream.lose(heard, "the host gives no answer")
                pause = min(AGAIN_SECONDS * 2 ** min(failures - 1, 10), AGAIN_MOST_SECONDS)
            else:
                silences = failures = 0
                if access is self.access:
                    self._up(found)
                pause = ASK_SECONDS
            # Of many gateways that ask one host not all do at the same moment.
            pause *= random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - nothing secret
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._soon.wait()

    async def _asked(self) -> tuple[Listed, ...] | None:
        """The models that it lists; ``None`` where it lists none and was told by name which it has.

        Raises:
            HostFault: it is not well, or does not answer.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status, _, _ = await self._get("/health")
                if status != 404:  # a server of another kind may have none
                    refuse_unwell(status, "/health")
                status, headers, body = await self._get("/v1/models")
        except TimeoutError as error:
            raise HostFault(f"no answer within {ANSWER_SECONDS:g} s", silent=True) from error
        except Broken as broken:
            raise HostFault(str(broken), silent=True) from broken
        self.id = next((value.decode("latin-1") for name, value in headers if name == GATEWAY), None)
        self.hosts.refuse_twice(self)
        if status == 404 and self.access.options.models:
            return None
        refuse_unwell(status, "/v1/models")
        return listed(body)

    async def _get(self, path: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        access, upstream = self.access, self.upstream
        key = "" if access.api_key is None else f"authorization: Bearer {access.api_key}\r\n"
        head = (
            f"GET {path} HTTP/1.1\r\nhost: {access.authority}\r\naccept: application/json\r\n"
            f"accept-encoding: identity\r\n{HOP.decode()}: 1\r\n{key}\r\n"
        )
        connection = await upstream.request(head.encode("ascii"), b"")
        try:
            body = await connection.body(LIST_BYTES)
        except BaseException:
            connection.abort()
            raise
        status, headers = connection.status, connection.headers
        upstream.give_back(connection)
        return status, headers, body

    def _up(self, found: tuple[Listed, ...] | None) -> None:
        only, known = self.access.options.models, {each.name: each for each in self.members}
        by_name = {each.name: each for each in found or ()}
        members = []
        for name in only or by_name:
            member = known.get(name) or AtHost(self, name)
            missing = Listed(name=name, condition="serving" if found is None else "stopped")
            member.take(by_name.get(name, missing))
            members.append(member)
        came = self.state != "up"
        others = tuple(members) != self.members
        self.members = tuple(members)
        self.doubted, self.error = False, None
        if came:
            self.run += 1
            self.state, self.since = "up", self.hosts.clock()
            names = ", ".join(each.name for each in members)
            self.hosts.tell("info", "host.up", self.name, f"serves {names or 'nothing'} at {self.access.url}")
        self.hosts.on_change(others)

    def _down(self, why: str) -> None:
        before, self.error, self.doubted = self.state, why, False
        if before == "down":
            return
        self.state, self.since = "down", self.hosts.clock()
        self.failures += 1
        count = self.requests
        told = f"{why}; {count} request{' is' if count == 1 else 's are'} with it" if count else why
        self.hosts.tell("warning", "host.down", self.name, f"{self.access.url}: {told}")
        self.hosts.on_change(False)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.hosts.on_fault(error)


class Hosts:
    """All of them.

    Args:
        tell: what is to be said: level, event, the host's name, a sentence.
        on_fault: told of faults of ours.
    """

    def __init__(
        self,
        *,
        tell: Callable[[Level, str, str, str], None] = lambda *_: None,
        on_fault: Callable[[BaseException], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        #: What this gateway calls itself, anew at each start: a host that says the same is no other.
        self.id = secrets.token_hex(8)
        self.tell = tell
        self.on_fault = on_fault
        self.clock = clock
        #: Told after every change, with whether there may be other members than before.
        self.on_change: Callable[[bool], None] = lambda _: None
        #: In the order of the configuration.
        self.all: tuple[OtherHost, ...] = ()

    def __iter__(self) -> Iterator[AtHost]:
        return (member for host in self.all for member in host.members)

    @property
    def asking(self) -> bool:
        """Whether one was not heard of yet."""
        return any(each.state == "asking" for each in self.all)

    def take(self, accesses: tuple[HostAccess, ...]) -> None:
        """These from now on. One of the same name stays, and what is with it goes on."""
        known = {each.name: each for each in self.all}
        found = []
        for access in accesses:
            host = known.pop(access.name, None)
            if host is None:
                host = OtherHost(self, access)
            elif host.access != access:
                host.renew(access)
            found.append(host)
        for gone in known.values():
            gone.close()
        self.all = tuple(found)
        self.on_change(True)

    def close(self) -> None:
        """None of them is asked any more."""
        for each in self.all:
            each.close()

    def refuse_twice(self, host: OtherHost) -> None:
        """Holds that a host is another than this one, and than those before it.

        Raises:
            HostFault: it is not.
        """
        if host.id is None:
            return
        if host.id == self.id:
            raise HostFault("it is this gateway itself")
        for each in self.all[: self.all.index(host)] if host in self.all else ():
            if each.id == host.id and each.state == "up":
                raise HostFault(f"it is the same gateway as {each.name}")
