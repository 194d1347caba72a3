"""Reports of several machines, as a probe of each would have written them together."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from selector.catalog import Catalog
from selector.hardware import Accelerator, HardwareReport, Host, Link, NetworkKind, NetworkPort, Node
from selector.machines import report_from_spec

GIB = 1 << 30
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def port(kind: NetworkKind, gigabits: float | None, number: int = 0) -> NetworkPort:
    """A port of a kind; an RDMA one has its device too."""
    return NetworkPort(
        kind=kind,
        interface=f"{'ib' if kind == 'infiniband' else 'eth'}{number}",
        device=None if kind == "ethernet" else f"mlx5_{number}:1",
        bandwidth_bytes_per_second=None if gigabits is None else round(gigabits * 125e6),
    )


def cluster(
    catalog: Catalog,
    *machines: str,
    ports: Sequence[tuple[NetworkPort, ...]] = (),
    names: Sequence[str] = (),
    memory_gib: int | None = None,
) -> HardwareReport:
    """Machines by their names as one report: ``cluster(catalog, "8xh100", "4xh100")``.

    ``ports`` are the machines' own, in turn and again (none: nobody told of one), ``names`` their names (gpu-a, gpu-b
    ... where none are given), ``memory_gib`` the main memory of each.
    """
    accelerators: list[Accelerator] = []
    links: list[Link] = []
    nodes: list[Node] = []
    for place, machine in enumerate(machines):
        one = report_from_spec(machine, catalog)
        start = len(accelerators)
        accelerators += [
            msgspec.structs.replace(each, index=each.index + start, node=place) for each in one.accelerators
        ]
        links += [msgspec.structs.replace(each, from_=each.from_ + start, to=each.to + start) for each in one.links]
        size = None if memory_gib is None else memory_gib * GIB
        nodes.append(
            Node(
                index=place,
                name=names[place] if names else f"gpu-{_LETTERS[place] if place < len(_LETTERS) else place + 1}",
                address=f"10.0.0.{place + 1}",
                host=Host(os="linux", memory_total_bytes=size, memory_available_bytes=size),
                network=ports[place % len(ports)] if ports else (),
            )
        )
    return HardwareReport(
        host=nodes[0].host,
        accelerators=tuple(accelerators),
        links=tuple(links),
        network=nodes[0].network,
        nodes=len(machines),
        hosts=tuple(nodes),
    )
