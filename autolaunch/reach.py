"""Where clients reach a launch, and by which keys."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from autolaunch.daemon.gateway import keys
from autolaunch.daemon.gateway.options import GatewayOptions
from autolaunch.given import address, is_loopback
from selector.errors import UsageError
from selector.values import Value

#: The name of the key that a launch makes, in the gateway's metrics.
_KEY_NAME = "launch"


class Reach(Value, frozen=True, kw_only=True):
    """Where clients and commands reach a launch. ``home`` may hold the control socket.

    ``keys`` are asked for instead of those of a file. ``own_process``: the process is there for this launch alone, and
    its bounds (open files) may be raised for it.
    """

    gateway: GatewayOptions
    home: Path
    keys: keys.Keys | None = None
    own_process: bool = True


class Way(NamedTuple):
    """How clients reach a launch, and the key that they need."""

    reach: Reach
    key: str | None


def way(host: str, port: int, api_key: str | None, keys_file: Path | None, *, keyless: bool, home: Path) -> Way:
    """What was asked for, checked; a key is made where one is needed and none was given."""
    if sum((api_key is not None, keys_file is not None, keyless)) > 1:
        raise UsageError("api_key, keys_file and keyless are three ways, and one is to be chosen")
    if not is_loopback(host):
        if address(host) is None:
            raise UsageError(f"{host[:200]!r} is no address", hint="127.0.0.1, an address of this machine, or 0.0.0.0")
        if keyless:
            raise UsageError(f"{host} is open to the network, and nobody would be asked for a key")
    reach = Reach(gateway=GatewayOptions(host=host, port=port, keys_file=keys_file), home=home, own_process=False)
    if keys_file is not None:
        keys.Keys.read(keys_file)  # what is wrong with it is told before anything is begun
    if keyless or keys_file is not None:
        return Way(reach, None)
    key = keys.made() if api_key is None else api_key
    return Way(replace(reach, keys=keys.Keys(entries=(keys.key_of(_KEY_NAME, key),))), key)
