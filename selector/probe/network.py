"""The ports by which this machine reaches others: InfiniBand, RoCE, Ethernet, each with its rate.

Linux tells them in two lists: ``/sys/class/net`` (what IP runs over) and ``/sys/class/infiniband`` (what RDMA runs
over, whose link layer ``Ethernet`` is RoCE). A port that is in both is told once. Left out are loopback and what is
virtual (veth, tun, docker's bridges), ports that are down, and the members of a bond, for which the bond stands. A port
whose address is on a bridge or VLAN above it goes by that one's name: engines bind to names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

import msgspec

from selector.hardware import Finding, NetworkKind, NetworkPort
from selector.probe.interfaces import Interface
from selector.probe.system import System
from selector.probe.text import printable, read_number, read_text

#: A host of many containers has a virtual interface for each.
MAXIMUM_INTERFACES = 4096
MAXIMUM_PORTS = 256
MAXIMUM_ADDRESSES = 16
_REASONS = 4
#: No port is faster, and drivers that know no speed tell -1, 65535 or 4294967295 (ethtool.h SPEED_UNKNOWN).
_MOST_MEGABITS = 10_000_000
_UNKNOWN_MEGABITS = frozenset({65_535})
_ETHERNET, _IP_OVER_INFINIBAND = 1, 32  # ARPHRD_ETHER, ARPHRD_INFINIBAND
_VALUE_BYTES = 256
_NAME_LENGTH = 63
_NAME_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:@+-")
# Texts, which re compiles when they are first looked for: most machines need none of them.
_PORT = r"[0-9]{1,3}"
_RATE = r"\s*(\d{1,5}(?:\.\d{1,3})?) Gb/sec"
#: What a switch on the card shows of a virtual function: pf0vf3, c1pf0sf88.
_REPRESENTOR = r"(?:c\d+)?pf\d+(?:vf|sf)\d+"
_MAC_PORT = r"(?:en|bond)\d+"
_ORDER: tuple[NetworkKind, ...] = ("infiniband", "roce", "ethernet")


def probe_network(system: System) -> tuple[tuple[NetworkPort, ...], Finding]:
    """The ports that are up, the quickest kind first, and what could not be told of them."""
    doubts: list[str] = []
    if system.platform == "linux":
        if _entries(system.root / "sys/class/net") is None:
            reason = "the kernel's list of interfaces (/sys/class/net) cannot be read"
            return (), Finding(probe="network", outcome="failed", reason=reason)
        ports = _linux(system, doubts)
    else:
        ports = _told_by_system(system.interfaces())
    if len(ports) > MAXIMUM_PORTS:
        doubts.insert(0, f"{len(ports)} ports are up, and the first {MAXIMUM_PORTS} are kept")
    reason = "; ".join(doubts[:_REASONS]) + (f"; and {len(doubts) - _REASONS} more" if len(doubts) > _REASONS else "")
    if not ports:
        nothing = "no port of this machine is up, or seen from here"
        return (), Finding(probe="network", outcome="absent", reason=f"{nothing}; {reason}" if reason else nothing)
    kept = tuple(sorted(ports, key=_place)[:MAXIMUM_PORTS])
    return kept, Finding(probe="network", outcome="found", reason=reason or None)


def _place(port: NetworkPort) -> tuple[int, int, list[tuple[int, str]]]:
    name = port.device or port.interface or ""
    parts = [(digits, "".join(part)) for digits, part in groupby(name, str.isdigit)]
    natural = [(int(part), "") if digits else (-1, part) for digits, part in parts]
    return _ORDER.index(port.kind), -(port.bandwidth_bytes_per_second or 0), natural


def _told_by_system(told: Mapping[str, Interface]) -> list[NetworkPort]:
    """macOS names its ports en0, en1; what else it lists is virtual, or for other ends."""
    return [
        NetworkPort(
            kind="ethernet",
            interface=name,
            bandwidth_bytes_per_second=_rate(each.megabits_per_second),
            addresses=each.addresses[:MAXIMUM_ADDRESSES],
        )
        for name, each in told.items()
        if each.up and re.fullmatch(_MAC_PORT, name)
    ]


def _rate(megabits: int | None) -> int | None:
    """Bytes a second of a speed in Mbit/s; ``None`` where that is no speed."""
    if megabits is None or not 0 < megabits <= _MOST_MEGABITS or megabits in _UNKNOWN_MEGABITS:
        return None
    return megabits * 125_000


# --- Linux ------------------------------------------------------------------------------------------


def _linux(system: System, doubts: list[str]) -> list[NetworkPort]:
    net, told = system.root / "sys/class/net", system.interfaces()
    verbs = any(name.startswith("uverbs") for name in _entries(system.root / "dev/infiniband") or ())
    rdma = _rdma_ports(system.root / "sys/class/infiniband", net, doubts)
    if rdma and not verbs:
        doubts.insert(0, "there is no /dev/infiniband for this process: InfiniBand and RoCE are not counted")
        rdma = []
    ports = [_addressed(each, net, told) for each in rdma]
    taken = {each.interface for each in rdma}
    for name in _entries(net) or ():
        if name in taken or not _is_port(net, name) or not _is_up(net / name):
            continue
        if verbs and read_number(net / name / "type") == _IP_OVER_INFINIBAND:
            continue  # a further name of a port that was told, or one that is not active
        if not _is_name(name):
            doubts.append(f"an interface is left out for its name: {printable(name, 32)}")
            continue
        rate = _rate(read_number(net / name / "speed"))
        port = NetworkPort(kind="ethernet", interface=name, bandwidth_bytes_per_second=rate)
        ports.append(_addressed(port, net, told))
    return ports


def _addressed(port: NetworkPort, net: Path, told: Mapping[str, Interface]) -> NetworkPort:
    """The port with the addresses by which it is reached, and by the name of the interface that has them."""
    if port.interface is None:
        return port
    name = _with_address(net, port.interface, told)
    addresses = told[name].addresses[:MAXIMUM_ADDRESSES] if name in told else ()
    return msgspec.structs.replace(port, interface=name, addresses=addresses)


def _with_address(net: Path, name: str, told: Mapping[str, Interface]) -> str:
    """The interface, or the nearest one above it (a VLAN, a bridge) that has the address which it lacks."""
    level, seen = [name], {name}
    for _ in range(3):
        found = next((each for each in level if each in told and told[each].addresses and _is_name(each)), None)
        if found is not None:
            return found
        above = [up.removeprefix("upper_") for each in level for up in _entries(net / each) or () if _is_upper(up)]
        level = [each for each in above if each not in seen][:MAXIMUM_PORTS]
        seen.update(level)
    return name


def _is_name(name: str) -> bool:
    """Whether it is one that an engine's variables take as it stands."""
    return 0 < len(name) <= _NAME_LENGTH and name[0] not in ".:" and _NAME_LETTERS.issuperset(name)


def _is_upper(entry: str) -> bool:
    return entry.startswith("upper_")


def _is_port(net: Path, name: str) -> bool:
    """Whether it is hardware's (or a virtual machine's) or a bond, and no part of another that is told."""
    place = net / name
    if (place / "bonding").is_dir():
        return True
    if not (place / "device").exists() or _bond_of(net, name) is not None:
        return False
    if read_number(place / "type") not in (_ETHERNET, _IP_OVER_INFINIBAND):
        return False
    shown = (_value(place / "phys_port_name") or "").strip()
    return not shown or re.fullmatch(_REPRESENTOR, shown) is None


def _bond_of(net: Path, name: str) -> str | None:
    """The bond that the interface is a member of."""
    try:
        master = (net / name / "master").readlink().name
    except (OSError, ValueError):
        return None
    return master if (net / master / "bonding").is_dir() else None


def _is_up(place: Path) -> bool:
    state = (_value(place / "operstate") or "").strip()
    # Drivers that tell no state are up when they have a carrier.
    return state == "up" or (state == "unknown" and read_number(place / "carrier") == 1)


def _rdma_ports(place: Path, net: Path, doubts: list[str]) -> list[NetworkPort]:
    """The active ports of RDMA devices, by the kernel's Documentation/ABI/stable/sysfs-class-infiniband."""
    found: list[NetworkPort] = []
    for device in _entries(place) or ():
        # Without hardware it is software's (rxe, siw); a node type other than 1 is no channel adapter (iWARP).
        if not (place / device / "device").exists() or not (_value(place / device / "node_type") or "").startswith("1"):
            continue
        for number in _entries(place / device / "ports") or ():
            name = f"{device}:{number}"
            if not re.fullmatch(_PORT, number) or not _is_name(name):
                doubts.append(f"an RDMA port is left out for its name: {printable(name, 32)}")
                continue
            port = _rdma_port(place / device, number, name, net)
            if isinstance(port, str):
                doubts.append(port)
            else:
                found.append(port)
                if port.bandwidth_bytes_per_second is None:
                    doubts.append(f"the rate of {name} is not told")
    return found


def _rdma_port(device: Path, number: str, name: str, net: Path) -> NetworkPort | str:
    """The port, or why it is none."""
    place = device / "ports" / number
    state = (_value(place / "state") or "").strip()
    if not state.startswith("4:"):  # 4: ACTIVE
        return f"{name} is not active ({printable(state, 24) or 'it does not tell its state'})"
    layer = (_value(place / "link_layer") or "").strip()
    if layer not in ("InfiniBand", "Ethernet"):
        return f"{name} has neither InfiniBand nor Ethernet below it ({printable(layer, 24) or 'it tells nothing'})"
    interface = _interface_of(device, number, net)
    if layer == "Ethernet" and interface is None:
        return f"{name} (RoCE) has no network interface that is seen here"
    return NetworkPort(
        kind="infiniband" if layer == "InfiniBand" else "roce",
        interface=interface,
        device=name,
        bandwidth_bytes_per_second=_told_rate(place / "rate"),
    )


def _told_rate(place: Path) -> int | None:
    """``400 Gb/sec (4X NDR)`` in bytes a second."""
    match = re.match(_RATE, _value(place) or "")
    megabits = None if match is None else round(float(match[1]) * 1000)
    return _rate(megabits)


def _interface_of(device: Path, number: str, net: Path) -> str | None:
    """The network interface of an RDMA port; of a member of a bond the bond."""
    name = (_value(device / "ports" / number / "gid_attrs/ndevs/0") or "").strip()
    if not _is_name(name) or not (net / name).exists():
        beside = [each for each in _entries(device / "device/net") or () if (net / each).exists()]
        beside = [each for each in beside if _is_port(net, each) or _bond_of(net, each) is not None]
        # A card of two ports lists both interfaces under either: dev_port counts them from 0.
        own = [each for each in beside if read_number(net / each / "dev_port") == int(number) - 1]
        name = next(iter(own or beside), "")
    name = (_bond_of(net, name) or name) if name else ""
    return name if _is_name(name) else None


def _entries(place: Path) -> Iterable[str] | None:
    """The names in a folder in order, or ``None`` where it cannot be read."""
    try:
        return sorted(each.name for each in place.iterdir())[:MAXIMUM_INTERFACES]
    except (OSError, ValueError):
        return None


def _value(place: Path) -> str | None:
    return read_text(place, _VALUE_BYTES)
