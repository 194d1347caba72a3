"""Machines that nobody listed, for the laws: counts, memory, what is taken of it, links, NUMA nodes, two kinds.

And clusters of them, which differ in how they are reached too.
"""

from __future__ import annotations

from itertools import combinations

import msgspec
from hypothesis import strategies as st

from selector.devices import GIB
from selector.hardware import Accelerator, HardwareReport, Host, Link, NetworkKind, NetworkPort, Node

MIB = 1 << 20
#: Name, compute capability, the driver's total in MiB; one that no profile describes.
KINDS: tuple[tuple[str, tuple[int, int], int], ...] = (
    ("NVIDIA H100 80GB HBM3", (9, 0), 81_559),
    ("NVIDIA H200", (9, 0), 143_771),
    ("NVIDIA A100-SXM4-80GB", (8, 0), 81_920),
    ("NVIDIA GeForce RTX 4090", (8, 9), 24_564),
    ("NVIDIA GeForce RTX 3090", (8, 6), 24_576),
    ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", (12, 0), 97_887),
    ("NVIDIA Unheard-of", (12, 1), 131_072),
)


def accelerator(index: int, kind: tuple[str, tuple[int, int], int], *, free_bytes: int, numa: int = 0) -> Accelerator:
    name, capability, mib = kind
    return Accelerator(
        index=index,
        vendor="nvidia",
        name=name,
        compute_capability=capability,
        memory_total_bytes=mib * MIB,
        memory_free_bytes=free_bytes,
        numa_node=numa,
    )


def kind_of(device: Accelerator) -> tuple[str, tuple[int, int], int]:
    """The kind that a drawn device is of."""
    return next(kind for kind in KINDS if kind[0] == device.name)


def links(count: int, island: int) -> tuple[Link, ...]:
    """Every pair of devices: NVLink inside groups of ``island``, PCIe between."""
    return tuple(
        Link(from_=one, to=other, kind="nvlink" if one // island == other // island else "pcie")
        for one, other in combinations(range(count), 2)
    )


@st.composite
def machines(draw: st.DrawFn, most: int = 8, kinds: int = 2, *, idle: bool = False) -> HardwareReport:
    """One to ``most`` devices of one kind or two, in islands of 1, 2, 4 or all, some of them filled by others."""
    count = draw(st.integers(1, most))
    named = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=kinds, unique=True))
    first = draw(st.integers(1, count))
    island = draw(st.sampled_from([1, 2, 4, 8]))
    devices = []
    for index in range(count):
        kind = named[0] if index < first else named[-1]
        taken = 0 if idle else draw(st.sampled_from([0, 0, 0, 1, 4, 12, 40, 200])) * GIB
        free = max(0, kind[2] * MIB - taken)
        devices.append(accelerator(index, kind, free_bytes=free, numa=2 * index // count))
    return HardwareReport(host=Host(os="linux"), accelerators=tuple(devices), links=links(count, island))


@st.composite
def ports(draw: st.DrawFn) -> tuple[NetworkPort, ...]:
    """None to three ports of any kind, some of which tell no rate."""
    kinds: tuple[NetworkKind, ...] = ("infiniband", "roce", "ethernet")
    return tuple(
        NetworkPort(
            kind=draw(st.sampled_from(kinds)),
            interface=f"eth{number}",
            bandwidth_bytes_per_second=draw(st.sampled_from([None, 125_000_000, 1_250_000_000, 50_000_000_000])),
        )
        for number in range(draw(st.integers(0, 3)))
    )


@st.composite
def clusters(draw: st.DrawFn, most: int = 4, each: int = 8, *, idle: bool = False) -> HardwareReport:
    """Two to ``most`` unequal machines of up to ``each`` devices, of which one may have none; asked or only named."""
    devices: list[Accelerator] = []
    joins: list[Link] = []
    nodes = []
    for number in range(draw(st.integers(2, most))):
        one = draw(machines(most=each, kinds=1, idle=idle)) if number == 0 or draw(st.integers(0, 9)) else None
        host = Host(os="linux")
        start = 100 * number
        devices += [
            msgspec.structs.replace(device, index=device.index + start, node=number)
            for device in (() if one is None else one.accelerators)
        ]
        joins += [
            msgspec.structs.replace(link, from_=link.from_ + start, to=link.to + start)
            for link in (() if one is None else one.links)
        ]
        nodes.append(Node(index=number, name=f"host-{number}", host=host, network=draw(ports())))
    return HardwareReport(
        host=nodes[0].host,
        accelerators=tuple(devices),
        links=tuple(joins),
        nodes=len(nodes),
        hosts=tuple(nodes) if draw(st.booleans()) else (),
    )
