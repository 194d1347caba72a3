"""The addresses of this machine's network interfaces, as the operating system tells them."""

from __future__ import annotations

import sys
from pathlib import Path

from selector.probe.text import read_text
from selector.values import Value

_SIOCGIFADDR = 0x8915  # netdevice(7)
_NAME_BYTES = 15  # IFNAMSIZ is 16
#: if_inet6's flags of an address that is not for others to call: temporary, failed, deprecated, tentative.
_PASSING = 0x01 | 0x08 | 0x20 | 0x40
_ADDRESSES_BYTES = 1 << 18


class Interface(Value, frozen=True, kw_only=True):
    """``addresses`` without loopback's, link-local ones and scopes, IPv4 first.

    ``up`` and ``megabits_per_second`` are ``None`` where nobody told; on Linux the kernel's files tell them.
    """

    addresses: tuple[str, ...] = ()
    up: bool | None = None
    megabits_per_second: int | None = None


def interfaces() -> dict[str, Interface]:
    """Every interface with what is known of it. It raises nothing; what cannot be asked is left out."""
    return _linux() if sys.platform == "linux" else _by_psutil()


def _linux() -> dict[str, Interface]:
    # psutil would tell it too, but importing it, or socket itself, takes longer than all that is asked here.
    import _socket

    found: dict[str, list[str]] = {}
    try:
        names = [name for _, name in _socket.if_nameindex()]
        asking = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    except OSError:
        names, asking = [], None
    if asking is not None:
        try:
            for name in names:
                address = _primary(asking.fileno(), name)
                found[name] = [address] if address is not None and is_reachable(address) else []
        finally:
            asking.close()
    # Columns: the address in 32 hexadecimal digits, index, prefix, scope (0x20 is the link's), flags, name.
    for line in (read_text(Path("/proc/net/if_inet6"), _ADDRESSES_BYTES) or "").splitlines():
        columns = line.split()
        try:
            packed, scope, flags, name = bytes.fromhex(columns[0]), int(columns[3], 16), int(columns[4], 16), columns[5]
            if scope == 0 and not flags & _PASSING:
                found.setdefault(name, []).append(_socket.inet_ntop(_socket.AF_INET6, packed))
        except (IndexError, ValueError):
            continue
    return {name: Interface(addresses=tuple(addresses)) for name, addresses in found.items()}


def _primary(descriptor: int, name: str) -> str | None:
    """The interface's first IPv4 address."""
    import fcntl
    import struct

    encoded = name.encode()[:_NAME_BYTES]
    try:
        answer = fcntl.ioctl(descriptor, _SIOCGIFADDR, struct.pack("16s24x", encoded))
    except OSError:  # it has none, or is gone
        return None
    return ".".join(str(part) for part in answer[20:24])


def _by_psutil() -> dict[str, Interface]:
    import socket

    import psutil

    try:
        told, states = psutil.net_if_addrs(), psutil.net_if_stats()
    except (psutil.Error, OSError):
        return {}
    found: dict[str, Interface] = {}
    for name, state in states.items():
        addresses = [
            each.address
            for family in (socket.AF_INET, socket.AF_INET6)
            for each in told.get(name, ())
            if each.family == family and is_reachable(each.address)
        ]
        found[name] = Interface(addresses=tuple(addresses), up=state.isup, megabits_per_second=state.speed)
    return found


def is_reachable(address: str) -> bool:
    """Whether another machine may call it: it is neither loopback's nor the link's."""
    low = address.lower()
    return not (low.startswith(("127.", "169.254.", "fe80:", "0.0.0.0")) or low == "::1" or "%" in low)  # noqa: S104 - compared, nothing is bound
