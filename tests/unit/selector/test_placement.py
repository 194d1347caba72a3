"""Where ranks lie: inside islands, inside NUMA nodes, on the emptiest devices, and when one is worth the other."""

from __future__ import annotations

import msgspec

from selector.catalog import Catalog
from selector.devices import GIB, Group, groups
from selector.hardware import HardwareReport, Host
from selector.placement import FREE_STEP_BYTES, Floor, Placement
from tests.fakes.drawn import KINDS, MIB, accelerator, links

H100 = KINDS[0]
FULL = H100[2] * MIB // GIB


def group(
    catalog: Catalog, *free_gib: float, island: int, numa: tuple[int, ...] | None = None, per_node: int = 99
) -> Group:
    """H100s with so much free, in islands of a size, ``per_node`` of them in a host."""
    devices = tuple(
        msgspec.structs.replace(
            accelerator(index, H100, free_bytes=int(free * GIB), numa=0 if numa is None else numa[index]),
            node=index // per_node,
        )
        for index, free in enumerate(free_gib)
    )
    machine = HardwareReport(host=Host(os="linux"), accelerators=devices, links=links(len(devices), island), nodes=99)
    return groups(machine, catalog.accelerator_for)[0][0]


def first(floor: Floor, tensor: int, pipeline: int, count: int, way: int = 0) -> Placement:
    placed = floor.ways(tensor, pipeline, spans=True)[way].first(count)
    assert placed is not None
    return placed


def test_a_tensor_parallel_group_lies_inside_an_island(catalog: Catalog) -> None:
    floor = Floor(group(catalog, *[FULL] * 8, island=4))
    placed = first(floor, 4, 1, 2)
    assert (placed.indices, placed.link) == ((0, 1, 2, 3, 4, 5, 6, 7), "fast")
    pairs = Floor(group(catalog, *[FULL] * 8, island=2))
    assert first(pairs, 2, 1, 4).link == "fast"
    assert first(pairs, 4, 1, 2).link == "pcie"


def test_whole_islands_make_up_a_wider_group(catalog: Catalog) -> None:
    """The third pair is half filled: a four is made of the two pairs that are not."""
    floor = Floor(group(catalog, FULL, FULL, FULL, 20, FULL, FULL, island=2))
    assert sorted(first(floor, 4, 1, 1).indices) == [0, 1, 4, 5]


def test_over_pcie_a_group_lies_inside_a_numa_node(catalog: Catalog) -> None:
    floor = Floor(group(catalog, *[FULL] * 8, island=1, numa=(0, 1, 0, 1, 0, 1, 0, 1)))
    assert first(floor, 4, 1, 2).indices == (0, 2, 4, 6, 1, 3, 5, 7)


def test_the_emptiest_come_first_and_a_filled_one_last(catalog: Catalog) -> None:
    floor = Floor(group(catalog, 10, FULL, FULL, FULL, FULL, island=8))
    assert first(floor, 2, 1, 2).indices == (1, 2, 3, 4)
    way = floor.ways(1, 1, spans=False)[0]
    assert way.level_ends(5) == [1, 4, 5]


def test_islands_and_free_memory_are_two_ways_where_one_costs_the_other(catalog: Catalog) -> None:
    """Each pair has a filled half: the emptiest two have no fast link, and the linked two have no memory."""
    floor = Floor(group(catalog, FULL, 20, 30, FULL, island=2))
    near, emptiest = floor.ways(2, 1, spans=False)
    linked, apart = near.first(1), emptiest.first(1)
    assert linked is not None
    assert apart is not None
    assert (linked.link, apart.link) == ("fast", "pcie")
    assert linked.weakest.free_bytes < apart.weakest.free_bytes
    assert apart.indices == (0, 3)


def test_a_few_megabytes_decide_nothing(catalog: Catalog) -> None:
    step = FREE_STEP_BYTES / GIB
    floor = Floor(group(catalog, FULL - step / 8, FULL, FULL - step / 16, FULL, island=2))
    assert len(floor.ways(2, 1, spans=False)) == 1
    assert first(floor, 2, 1, 1).link == "fast"


def test_stages_of_single_devices_go_by_memory_and_not_by_links(catalog: Catalog) -> None:
    floor = Floor(group(catalog, FULL, 0, FULL, 0, 40, 9, island=2))
    assert first(floor, 1, 2, 1).indices == (0, 2)


def test_a_replica_stays_in_a_node_where_one_has_stages_enough(catalog: Catalog) -> None:
    floor = Floor(group(catalog, *[FULL] * 16, island=16, per_node=8))
    inside = first(floor, 2, 4, 2)
    assert inside.nodes == 1
    spread = first(floor, 8, 2, 1)
    assert (spread.nodes, spread.indices) == (2, tuple(range(16)))
    assert len(floor.ways(8, 2, spans=False)[0]) == 0


def test_over_nodes_the_emptiest_nodes_are_taken(catalog: Catalog) -> None:
    floor = Floor(group(catalog, *[FULL] * 4, 10, *[FULL] * 7, island=16, per_node=4))
    assert first(floor, 4, 2, 1).indices == (0, 1, 2, 3, 8, 9, 10, 11)


def test_a_thousand_levels_are_thinned(catalog: Catalog) -> None:
    floor = Floor(group(catalog, *[FULL - index for index in range(60)], island=1))
    ends = floor.ways(1, 1, spans=False)[0].level_ends(60)
    assert (ends[0], ends[-1]) == (1, 60)
    assert len(ends) < 16


def test_a_node_that_others_fill_does_not_stand_before_an_empty_one_for_its_links(catalog: Catalog) -> None:
    """Two nodes of four, the first linked and nearly full: the second is there for what needs memory."""
    devices = group(catalog, *[15] * 4, *[FULL] * 4, island=4, per_node=4)
    slow = tuple(
        msgspec.structs.replace(device, island=device.index or 0) if device.node else device
        for device in devices.devices
    )
    floor = Floor(Group.of(slow, "pcie"))
    near, emptiest = floor.ways(4, 1, spans=True)
    quick, roomy = near.first(1), emptiest.first(1)
    assert quick is not None
    assert roomy is not None
    assert (quick.indices, quick.link) == ((0, 1, 2, 3), "fast")
    assert (roomy.indices, roomy.link) == ((4, 5, 6, 7), "pcie")
