"""What the daemon, or a launch in the foreground, shows the world: the gateway over its supervisors, and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from autolaunch.daemon.gateway.host_access import HostAccess, accesses
from autolaunch.daemon.gateway.keys import Keys
from autolaunch.daemon.gateway.members import Member
from autolaunch.daemon.gateway.metrics import (
    DeviceMetrics,
    Happened,
    HostMetrics,
    RequestMetrics,
    StateMetrics,
    engines_of,
    facts_of,
    new_registry,
    render,
    snapshot_of,
)
from autolaunch.daemon.gateway.other_hosts import Hosts
from autolaunch.daemon.gateway.serve import Gateway
from autolaunch.daemon.ports import listening_socket

if TYPE_CHECKING:
    import socket

    from autolaunch.daemon.devices import DeviceTrouble
    from autolaunch.daemon.gateway.options import GatewayOptions
    from autolaunch.daemon.happenings import Tell
    from autolaunch.daemon.journal import Level
    from autolaunch.daemon.supervisor import Supervisor


class Opened(NamedTuple):
    """Options that can be had: their keys, the socket of their address where that is another one, their hosts."""

    options: GatewayOptions
    keys: Keys | None
    listening: socket.socket | None
    hosts: tuple[HostAccess, ...]

    def close(self) -> None:
        """They are not taken after all."""
        if self.listening is not None:
            self.listening.close()


class Face:
    """The gateway of some supervisors. All of it belongs to their loop, but ``trouble``."""

    def __init__(
        self,
        options: GatewayOptions,
        supervisors: Mapping[str, Supervisor],
        *,
        on_fault: Callable[[BaseException], None],
        keys: Keys | None = None,
        configuration_ok: Callable[[], bool | None] = lambda: None,
        on_host: Callable[[Level, str, str, str], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``supervisors`` is looked at when it has changed (:meth:`route`); ``on_fault`` is told of faults of ours.

        ``keys`` are asked for instead of those that ``options`` name a file of. ``on_host`` is told what is to be said
        of other hosts: level, event, the host's name, a sentence.

        Raises:
            ConfigurationError: the file of keys, or one of another host's.
        """
        self._supervisors = supervisors
        self._clock = clock
        self._members: dict[str, tuple[Supervisor, Member]] = {}
        self._accesses = accesses(options.hosts)
        self.hosts = Hosts(tell=on_host, on_fault=on_fault, clock=clock)
        self._happened = Happened()
        registry = new_registry()
        requests = RequestMetrics(registry)
        StateMetrics(
            registry,
            lambda: snapshot_of(
                tuple(supervisors.values()),
                self._happened,
                now=clock(),
                running=lambda one: one.traffic.under_way,
                configuration_ok=configuration_ok(),
            ),
        )
        HostMetrics(registry, lambda: tuple(facts_of(each) for each in self.hosts.all))
        self._devices = DeviceMetrics(registry, lambda: engines_of(tuple(supervisors.values())))

        async def page(accept: str) -> tuple[bytes, str]:
            # With many models it takes milliseconds, which streams would wait for.
            return await asyncio.get_running_loop().run_in_executor(None, render, registry, accept)

        self.gateway = Gateway(
            options,
            keys=_keys(options) if keys is None else keys,
            metrics=requests,
            metrics_page=page,
            on_fault=on_fault,
            hosts=self.hosts,
        )

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes."""
        return self.gateway.base_url

    async def start(self, listening: socket.socket | None = None) -> None:
        """Serves, on a socket that listens already where there is one.

        Raises:
            PortTaken, UsageError: the address cannot be listened on.
        """
        options = self.gateway.options
        self.route()
        await self.gateway.start(listening or listening_socket(options.host, options.port), self._accesses)

    def ending(self) -> None:
        """The engines are about to end: nobody is made to wait for one any more."""
        self.gateway.ending()

    async def close(self) -> None:
        """Ends what is under way after a moment, and everything of it."""
        await self.gateway.close()

    def opened(self, options: GatewayOptions) -> Opened:
        """Everything of these options that may turn out wrong, done; nothing is changed yet.

        Raises:
            ConfigurationError, PortTaken, UsageError: the old ones hold.
        """
        keys, hosts = _keys(options), accesses(options.hosts)
        before = self.gateway.options
        moved = (options.host, options.port) != (before.host, before.port)
        beside = options.port == before.port  # our own socket is there still
        listening = listening_socket(options.host, options.port, beside=beside) if moved else None
        return Opened(options, keys, listening, hosts)

    async def reload(self, opened: Opened) -> None:
        """These options from now on, and the keys as their file has them now. Nobody's connection ends by it."""
        await self.gateway.reload(*opened)

    def route(self) -> None:
        """The supervisors have changed: these are the engines from now on."""
        members = {}
        for key, one in self._supervisors.items():
            known = self._members.get(key)
            members[key] = known if known is not None and known[0] is one else (one, Member(one, self._clock))
        self._members = members
        self.gateway.route(member for _, member in members.values())

    def changed(self, one: Supervisor) -> None:
        """A supervisor is in another state."""
        self.gateway.changed(one.state.deployment.name)

    def tell(self, one: Supervisor, tell: Tell) -> None:
        """What a supervisor says, which is counted."""
        self._happened.tell(one, tell)

    def trouble(self, trouble: DeviceTrouble) -> None:
        """A device is in trouble. May be called from any thread."""
        self._devices.trouble(trouble)


def _keys(options: GatewayOptions) -> Keys | None:
    return None if options.keys_file is None else Keys.read(options.keys_file)
