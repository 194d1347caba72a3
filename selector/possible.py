"""What a report's types allow and no machine has: the check of what was recorded elsewhere, or made by a script."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from selector.catalog import shown
from selector.hardware import MAXIMUM_DEVICES, MAXIMUM_NODES, Accelerator, HardwareReport, Host, NetworkPort

_PEBIBYTE = 1 << 50
#: As many as the probe keeps (:mod:`selector.probe.network`), and more than any machine has.
_PORTS, _ADDRESSES = 256, 64
#: Names end up in the environment of engines (NCCL_SOCKET_IFNAME, NCCL_IB_HCA): none may carry a list or a pattern.
_INTERFACE = re.compile(r"[A-Za-z0-9_@+-][A-Za-z0-9_.:@+-]{0,62}")
_DEVICE = re.compile(r"[A-Za-z0-9_@+-][A-Za-z0-9_.@+-]{0,62}:[0-9]{1,3}")
_ADDRESS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f:]{2,39}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3})?")
_NODE_NAME_CHARACTERS = 253  # of a host name, RFC 1035


def faults(report: HardwareReport) -> Iterator[tuple[str, str]]:
    """What is wrong with a report, as key paths with reasons, the first first."""
    if not 1 <= report.nodes <= MAXIMUM_NODES:
        yield "nodes", f"must be 1 to {MAXIMUM_NODES}, is {report.nodes}"
    yield from _host("host", report.host)
    yield from _network("network", report.network)
    yield from _nodes(report)
    if len(report.accelerators) > MAXIMUM_DEVICES:
        yield "accelerators", f"are {len(report.accelerators)}, more than {MAXIMUM_DEVICES}"
    seen: dict[int, int] = {}
    for place, device in enumerate(report.accelerators):
        if (first := seen.setdefault(device.index, place)) != place:
            yield f"accelerators[{place}].index", f"{device.index} is that of accelerators[{first}] already"
        yield from _device(f"accelerators[{place}]", device, report.nodes)
    yield from _links(report, seen)
    yield from _unprintable("", msgspec.to_builtins(report))


def _host(key: str, host: Host) -> Iterator[tuple[str, str]]:
    yield from _memory(key, "memory_available_bytes", host.memory_total_bytes, host.memory_available_bytes)
    if (free := host.disk_free_bytes) is not None and not 0 <= free <= _PEBIBYTE:
        yield f"{key}.disk_free_bytes", f"cannot be {free}"
    if (cores := host.cpu.cores) is not None and not 1 <= cores <= 1 << 16:
        yield f"{key}.cpu.cores", f"cannot be {cores}"


def _network(key: str, ports: tuple[NetworkPort, ...]) -> Iterator[tuple[str, str]]:
    if len(ports) > _PORTS:
        yield key, f"are {len(ports)} ports, more than {_PORTS}"
    for place, port in enumerate(ports):
        here = f"{key}[{place}]"
        if (rate := port.bandwidth_bytes_per_second) is not None and not 0 < rate <= _PEBIBYTE:
            yield f"{here}.bandwidth_bytes_per_second", f"cannot be {rate}; unknown is null"
        if port.interface is not None and not _INTERFACE.fullmatch(port.interface):
            yield f"{here}.interface", f"is no interface's name: {shown(port.interface)}"
        if port.device is not None and not _DEVICE.fullmatch(port.device):
            yield f"{here}.device", f"is no RDMA device with its port, as mlx5_0:1: {shown(port.device)}"
        if len(port.addresses) > _ADDRESSES:
            yield f"{here}.addresses", f"are {len(port.addresses)}, more than {_ADDRESSES}"
        for count, address in enumerate(port.addresses):
            if not _ADDRESS.fullmatch(address):
                yield f"{here}.addresses[{count}]", f"is no IP address without a scope: {shown(address)}"


def _nodes(report: HardwareReport) -> Iterator[tuple[str, str]]:
    seen: dict[int, int] = {}
    if len(report.hosts) > report.nodes:
        yield "hosts", f"are {len(report.hosts)}, and there are {report.nodes} nodes"
    for place, node in enumerate(report.hosts):
        key = f"hosts[{place}]"
        if not 0 <= node.index < report.nodes:
            yield f"{key}.index", f"is {node.index}, but there are {report.nodes} nodes, counted from 0"
        if (first := seen.setdefault(node.index, place)) != place:
            yield f"{key}.index", f"{node.index} is that of hosts[{first}] already"
        for name in ("name", "address", "id"):
            told = getattr(node, name)
            if told is not None and not (told.strip() and len(told) <= _NODE_NAME_CHARACTERS):
                yield f"{key}.{name}", f"must have 1 to {_NODE_NAME_CHARACTERS} characters"
        yield from _host(f"{key}.host", node.host)
        yield from _network(f"{key}.network", node.network)


def _device(key: str, device: Accelerator, nodes: int) -> Iterator[tuple[str, str]]:
    if not 0 <= device.index < 1 << 20:
        yield f"{key}.index", f"cannot be {device.index}"
    if not 0 <= device.node < nodes:
        yield f"{key}.node", f"is {device.node}, but there are {nodes} nodes, counted from 0"
    yield from _memory(key, "memory_free_bytes", device.memory_total_bytes, device.memory_free_bytes)
    capability = device.compute_capability
    if capability is not None and not (1 <= capability[0] < 100 and 0 <= capability[1] < 100):
        yield f"{key}.compute_capability", f"cannot be {list(capability)}"
    if device.metal is not None:
        for name in ("recommended_working_set_bytes", "wired_limit_bytes"):
            if (limit := getattr(device.metal, name)) is not None and not 0 <= limit <= _PEBIBYTE:
                yield f"{key}.metal.{name}", f"cannot be {limit}"


def _memory(key: str, free_name: str, total: int | None, free: int | None) -> Iterator[tuple[str, str]]:
    if total is not None and not 0 < total <= _PEBIBYTE:
        yield f"{key}.memory_total_bytes", f"cannot be {total}; unknown is null"
    if free is not None and (free < 0 or (total is not None and free > total)):
        yield f"{key}.{free_name}", f"cannot be {free}" + ("" if total is None else f" of {total}")


def _links(report: HardwareReport, known: dict[int, int]) -> Iterator[tuple[str, str]]:
    for place, link in enumerate(report.links):
        for name, index in (("from", link.from_), ("to", link.to)):
            if index not in known:
                yield f"links[{place}].{name}", f"there is no accelerator of index {index}"
        if link.from_ == link.to:
            yield f"links[{place}]", f"joins accelerator {link.from_} to itself"
        if (rate := link.bandwidth_bytes_per_second) is not None and not 0 < rate <= _PEBIBYTE:
            yield f"links[{place}].bandwidth_bytes_per_second", f"cannot be {rate}; unknown is null"


def _unprintable(key: str, value: object) -> Iterator[tuple[str, str]]:
    """Names end up in a terminal: none of them may carry an escape sequence."""
    if isinstance(value, str) and not value.isprintable():
        yield key.lstrip("."), f"has characters that cannot be shown: {shown(value)}"
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _unprintable(f"{key}.{name}", part)
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _unprintable(f"{key}[{place}]", part)
