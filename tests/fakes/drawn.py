"""Machines that nobody listed, for the laws: counts, memory, what is taken of it, links, NUMA nodes, two kinds."""

from __future__ import annotations

from itertools import combinations

from hypothesis import strategies as st

from selector.devices import GIB
from selector.hardware import Accelerator, HardwareReport, Host, Link

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
