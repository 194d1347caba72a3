"""The address an engine is given: whether it is free, who has it, how it is asked."""

from __future__ import annotations

import errno
import socket

import psutil

from selector.errors import PortTaken, UsageError
from selector.values import Value

#: Connections that wait to be accepted.
BACKLOG = 1024


class Address(Value, frozen=True, kw_only=True):
    """Where to ask. An engine that listens on every address is asked on the loopback."""

    host: str
    port: int

    @property
    def reachable_host(self) -> str:
        return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)  # noqa: S104

    @property
    def base_url(self) -> str:
        host = f"[{self.reachable_host}]" if ":" in self.reachable_host else self.reachable_host
        return f"http://{host}:{self.port}/v1"


def free_port(host: str, port: int) -> int:
    """``port`` if nothing listens there, a free one for 0. Nothing is held: the engine has to bind it.

    Raises:
        PortTaken: something listens; it is named where the system tells.
        UsageError: the host or port is none that can be listened on.
    """
    if not 0 <= port <= 65_535:
        raise UsageError(f"{port} is no port", hint="0 to 65535; 0 takes a free one")
    if not host:
        raise UsageError("the host is empty", hint="0.0.0.0 listens on every address")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{host!r} is no address of this machine") from error
    # BSD systems let a second socket bind a more exact address than the first: ask first.
    with socket.socket(family, kind, protocol) as caller:
        caller.settimeout(1.0)
        if port and caller.connect_ex((Address(host=host, port=port).reachable_host, port)) == 0:
            raise _taken(port)
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
        except PermissionError as error:
            raise UsageError(
                f"port {port} needs rights that this user has not", hint="take one from 1024 up"
            ) from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _taken(port) from error
            raise UsageError(f"{host}:{port} cannot be listened on: {error.strerror}") from error
        return int(listener.getsockname()[1])


def listening_socket(host: str, port: int, *, beside: bool = False) -> socket.socket:
    """A socket that listens on the gateway's address. Clients may connect from now on: they wait until it serves.

    ``beside``: this process listens on the port already, at another address that this one may overlap.

    Raises:
        PortTaken: somebody has the address; they are named where the system tells.
        UsageError: it is none of this machine.
    """
    if not beside:
        free_port(host, port)  # says who has it
    family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(place)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise PortTaken(f"{host}:{port} cannot be listened on: {error.strerror}") from error
    listening.setblocking(False)
    return listening


def _taken(port: int) -> PortTaken:
    holder = ""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            place = connection.laddr
            if connection.status == psutil.CONN_LISTEN and place and place.port == port and connection.pid:
                holder = f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
                break
    except psutil.Error:
        pass  # macOS tells only root
    return PortTaken(f"port {port} is in use{holder}", hint="choose another with --port; --port 0 takes a free one")
