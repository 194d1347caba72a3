"""What several nodes have in common to reach each other by."""

from __future__ import annotations

import pytest

from selector.catalog import Catalog
from selector.hardware import NetworkPort
from selector.interconnect import (
    Wire,
    between,
    common,
    rate_words,
    reaches,
    slowest,
    way,
    wire_words,
    wires,
    words,
)
from tests.fakes.clusters import cluster, port

GBIT = 125_000_000
IB, ROCE, TEN, ONE = port("infiniband", 400), port("roce", 100), port("ethernet", 10), port("ethernet", 1)


def ways(*nodes: tuple[NetworkPort, ...]) -> Wire | None:
    return common(wires(ports) for ports in nodes)


def test_the_quickest_kind_that_all_nodes_have_is_taken_at_the_slowest_nodes_rate() -> None:
    assert ways((IB, TEN), (port("infiniband", 200), ONE)) == Wire("infiniband", 200 * GBIT)
    assert ways((IB, TEN), (ROCE, ONE)) == Wire("ethernet", 10 * GBIT)
    assert ways((ROCE, ONE), (port("roce", 200),)) == Wire("roce", 100 * GBIT)


def test_ports_are_not_added_up() -> None:
    eight = tuple(port("infiniband", 400, number) for number in range(8))
    assert ways(eight, eight) == Wire("infiniband", 400 * GBIT)


def test_a_roce_port_is_one_of_ethernet_too() -> None:
    assert ways((ROCE,), (TEN,)) == Wire("ethernet", 10 * GBIT)
    assert ways((ROCE, ONE), (port("ethernet", 400),)) == Wire("ethernet", 100 * GBIT)


def test_nodes_with_no_kind_in_common_have_no_way_that_is_known() -> None:
    assert ways((IB,), (TEN,)) is None
    assert ways((TEN,), ()) is None
    assert ways() is None


def test_a_rate_that_one_node_does_not_tell_is_at_most_the_others() -> None:
    assert ways((TEN,), (port("ethernet", None),)) == Wire("ethernet", 10 * GBIT, assumed=True)
    assert ways((port("ethernet", None),)) == Wire("ethernet", None, assumed=True)
    assert ways((TEN, port("ethernet", None)), (ONE,)) == Wire("ethernet", 1 * GBIT)


def test_of_several_ways_the_worst_counts() -> None:
    ten, one, roce = Wire("ethernet", 10 * GBIT), Wire("ethernet", GBIT), Wire("roce", 25 * GBIT)
    assert slowest([roce, ten, one]) == one
    assert slowest([ten, None]) is None
    assert slowest([ten, Wire("ethernet", None, assumed=True)]) == Wire("ethernet", 10 * GBIT, assumed=True)
    assert slowest([]) is None


def test_a_way_that_no_port_tells_of_is_as_slow_as_the_slowest_known_and_no_more_than_a_gigabit(
    catalog: Catalog,
) -> None:
    def between_first_two(*ports: tuple[NetworkPort, ...]) -> Wire | None:
        known = reaches(cluster(catalog, *["h100"] * len(ports), ports=ports))
        return way([known[0], known[1]])

    assert between_first_two((IB,), (TEN,)) == Wire("ethernet", GBIT, assumed=True)
    assert between_first_two((IB,), ()) == Wire("ethernet", GBIT, assumed=True)
    assert between_first_two((), (), (port("ethernet", 0.1),)) == Wire("ethernet", GBIT // 10, assumed=True)
    assert between_first_two((), ()) is None
    assert between_first_two((IB, ONE), (TEN,)) == Wire("ethernet", GBIT)
    assert wire_words(Wire("ethernet", 10 * GBIT, assumed=True)) == "Ethernet, at most 10 Gbit/s"


def test_nodes_that_are_reached_alike_have_one_rank_the_quickest_first(catalog: Catalog) -> None:
    report = cluster(catalog, *["h100"] * 5, ports=((TEN,), (IB,), (), (IB,), (ONE,)))
    assert [reaches(report)[node].rank for node in range(5)] == [1, 0, 3, 0, 2]
    assert between(report) is None
    assert between(cluster(catalog, "h100", "h100", ports=((IB, TEN), (TEN,)))) == Wire("ethernet", 10 * GBIT)


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (50_000_000_000, "400 Gbit/s"),
        (312_500_000, "2.5 Gbit/s"),
        (12_500_000, "100 Mbit/s"),
        (None, "rate unknown"),
    ],
)
def test_rates_are_told_as_ports_are_sold(rate: int | None, text: str) -> None:
    assert rate_words(rate) == text
    assert words("roce", rate) == f"RoCE, {text}"
