"""What may be set of the gateway: the table ``[gateway]`` of the configuration, or options of a launch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from selector.values import Value

OpenPath = Literal["/health", "/ready", "/metrics"]


class HostOptions(Value, frozen=True, kw_only=True):
    """Another host, whose gateway answers requests beside the engines of this one: a table ``[[gateway.hosts]]``.

    Attributes:
        url: its gateway, as ``http://10.0.0.2:8000``: scheme, name or address, and port.
        name: what it is called here; left out, host and port of ``url``.
        api_key_file: a file with nothing but the key that its gateway asks for.
        ca_file: certificates (PEM) that its own is checked by, instead of those that the system trusts.
        models: names that it is asked for; left out, all that its ``/v1/models`` lists.
    """

    url: str
    name: str | None = None
    api_key_file: Path | None = None
    ca_file: Path | None = None
    models: tuple[str, ...] = ()


class GatewayOptions(Value, frozen=True, kw_only=True):
    """Where the gateway listens, who may use it, and how much of it.

    Attributes:
        host, port: the public address. Beyond loopback it takes a ``keys_file``.
        keys_file: the keys of clients, hashed (:mod:`autolaunch.daemon.gateway.keys`); read again on a reload. Without
            it whoever reaches the address is served, which is why that is loopback alone.
        allowed_hosts: names that requests may be addressed to (``Host``), beside loopback and ``host`` itself. A page
            that had its own name point here is refused by it.
        allowed_origins: pages in browsers that may use it (``https://chat.example.com``); others are refused.
        open_paths: what is answered without a key.
        body_bytes: the longest body of a request: images come in it.
        header_seconds: how long a client may take for the head of a request; ``body_seconds`` for its body, and more
            only as it comes at 1 KiB a second; ``idle_seconds`` how long a connection without a request is kept.
        connections: clients that are connected at a time; more are told to come later.
        queue: requests of a model that are under way or wait; more are refused with 429.
        wait_seconds: how long a request waits for a model that is loading when its client asked to
            (``Prefer: wait=SECONDS``), at most.
        hosts: other hosts that serve the same models, or further ones.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    open_paths: tuple[OpenPath, ...] = ()
    body_bytes: int = 64 * 2**20
    header_seconds: float = 15.0
    body_seconds: float = 30.0
    idle_seconds: float = 75.0
    connections: int = 4096
    queue: int = 2048
    wait_seconds: float = 1800.0
    hosts: tuple[HostOptions, ...] = ()
