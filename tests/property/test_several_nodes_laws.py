"""Laws of plans over several machines, which differ in what they have and in how they are reached."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise, product

import msgspec
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from selector.devices import groups
from selector.hardware import HardwareReport, Host, NetworkKind, NetworkPort, Node
from selector.interconnect import common, reaches, way
from selector.machines import checked_report, report_from_spec
from selector.request import OBJECTIVES, Objective, Pins
from selector.steps import Site, site
from tests.fakes.clusters import cluster as cluster_of
from tests.fakes.drawn import clusters, ports
from tests.property.test_laws import CATALOG, OR_MINIATURE, candidates, planned

RATES = st.sampled_from([1, 10, 100, 400])
NETWORK: st.SearchStrategy[NetworkKind] = st.sampled_from(["infiniband", "roce", "ethernet"])


@settings(max_examples=60, derandomize=True)
@given(clusters(), OR_MINIATURE, st.sampled_from(OBJECTIVES))
def test_no_plan_puts_more_on_a_machine_than_it_has_nor_a_group_on_two(
    cluster: HardwareReport, model: str, objective: Objective
) -> None:
    assert checked_report(cluster) is cluster
    node = {device.index: device.node for device in cluster.accelerators}
    free = {device.index: device.memory_free_bytes or 0 for device in cluster.accelerators}
    for each in candidates(planned(model, cluster, objective)):
        parallel = each.parallel
        assert len(set(parallel.devices)) == len(parallel.devices)
        assert set(parallel.devices) <= set(node)
        widest = 1
        for start in range(0, len(parallel.devices), parallel.ranks):
            replica = parallel.devices[start : start + parallel.ranks]
            stages = [replica[place : place + parallel.tensor] for place in range(0, parallel.ranks, parallel.tensor)]
            places = [{node[index] for index in stage} for stage in stages]
            assert all(len(place) == 1 for place in places), "a tensor-parallel group left its machine"
            order = [place.pop() for place in places]
            moves = sum(one != other for one, other in pairwise(order))
            assert moves == len(set(order)) - 1, "a hidden state crosses more often than it must"
            widest = max(widest, len(set(order)))
        assert parallel.nodes == widest
        assert any(note.code.startswith("network.") for note in each.notes) == (widest > 1)
        needed = each.memory.per_device
        taken = needed.weights_bytes + needed.kv_cache_bytes
        assert all(taken <= free[index] for index in parallel.devices)


@settings(max_examples=40, derandomize=True)
@given(clusters(), OR_MINIATURE, st.sampled_from([None, 4, 8, 16]), st.sampled_from([None, 2, 3]))
def test_a_refusal_over_machines_says_why_in_a_sentence(
    cluster: HardwareReport, model: str, tensor: int | None, pipeline: int | None
) -> None:
    plan = planned(model, cluster, pins=Pins(tensor_parallel=tensor, pipeline_parallel=pipeline))
    names = {f"host-{number}" for number in range(cluster.nodes)}
    for each in plan.rejected:
        assert each.message
        assert each.message.isprintable()
        if (number := each.numbers.get("node")) is not None:
            assert 0 <= int(number) < cluster.nodes
            named = f"host-{number}" if cluster.hosts else f"node {int(number) + 1} of {cluster.nodes}"
            assert named in each.message
        if not cluster.hosts:
            assert not any(name in each.message for name in names)
    held = Counter(device.node for device in cluster.accelerators)
    for candidate in candidates(plan):
        assert (
            candidate.parallel.tensor <= max(held.values()) if tensor is None else candidate.parallel.tensor == tensor
        )


@settings(max_examples=40, derandomize=True)
@given(clusters(idle=True), NETWORK, RATES, RATES, st.sampled_from(["glm-4.6", "glm-4.5-air"]))
def test_a_slower_network_never_makes_a_layout_quicker(
    cluster: HardwareReport, kind: NetworkKind, one: int, other: int, model: str
) -> None:
    def over(gigabits: int) -> dict[tuple[object, ...], tuple[float, float, float]]:
        port = NetworkPort(kind=kind, interface="eth0", bandwidth_bytes_per_second=gigabits * 125_000_000)
        hosts = tuple(msgspec.structs.replace(node, network=(port,)) for node in cluster.hosts)
        found = candidates(planned(model, msgspec.structs.replace(cluster, hosts=hosts)))
        return {
            (each.checkpoint.repo, each.checkpoint.quantization, each.engine.name, each.parallel): (
                each.speed.decode_tokens_per_second or 0,
                each.speed.throughput_tokens_per_second or 0,
                each.speed.prefill_tokens_per_second or 0,
            )
            for each in found
        }

    slow, quick = over(min(one, other)), over(max(one, other))
    for layout, speeds in slow.items():
        if layout in quick:
            assert all(mine <= its for mine, its in zip(speeds, quick[layout], strict=True)), layout


@settings(max_examples=200, derandomize=True)
@given(st.lists(ports(), min_size=3, max_size=6), st.sampled_from(["vllm", "sglang"]))
def test_a_way_that_nobody_told_of_is_no_better_than_one_that_is_known(
    nodes: list[tuple[NetworkPort, ...]], engine: str
) -> None:
    host = Host(os="linux")
    hosts = tuple(Node(index=place, name=f"n{place}", host=host, network=each) for place, each in enumerate(nodes))
    known = reaches(HardwareReport(host=host, nodes=len(nodes), hosts=hosts))
    device = groups(report_from_spec("8xh100", CATALOG), CATALOG.accelerator_for)[0][0].devices[0]
    joined, apart = list[Site](), list[Site]()
    for one, other in combinations(known, 2):
        wire = way([known[one], known[other]])
        (apart if common([known[one].wires, known[other].wires]) is None else joined).append(
            site(CATALOG.engine(engine), device, "network", "bf16", wire)
        )
    assert all(each.network_assumed for each in apart)
    for told, untold in product(joined, apart):
        assert told.network_seconds <= untold.network_seconds
        assert told.link_seconds <= untold.link_seconds
        assert told.network_bytes_per_second >= untold.network_bytes_per_second
        assert told.link_bytes_per_second >= untold.link_bytes_per_second


@settings(max_examples=30, derandomize=True)
@given(ports(), ports(), st.permutations([0, 1, 2]), st.sampled_from([8, 16]))
def test_machines_that_a_known_network_joins_serve_before_those_that_none_does(
    alone: tuple[NetworkPort, ...], pair: tuple[NetworkPort, ...], order: list[int], tensor: int
) -> None:
    """Of three equal machines a replica takes the two that have a kind of port in common, which the third has not."""
    kinds = {each.kind for each in alone}
    shared = {each.kind for each in pair}
    shared |= {"ethernet"} if "roce" in shared else set()
    kinds |= {"ethernet"} if "roce" in kinds else set()
    assume(shared and not kinds & shared)
    networks = [alone, pair, pair]
    report = cluster_of(CATALOG, *["8xh100"] * 3)
    hosts = tuple(
        Node(index=place, name=f"n{place}", host=report.host, network=networks[order[place]]) for place in range(3)
    )
    pins = Pins(engine="vllm", format="bf16", tensor_parallel=tensor, pipeline_parallel=16 // tensor, data_parallel=1)
    found = planned("glm-4.6", msgspec.structs.replace(report, hosts=hosts), pins=pins).chosen
    assert found is not None
    node = {device.index: device.node for device in report.accelerators}
    assert {order[node[index]] for index in found.parallel.devices} == {1, 2}


@settings(max_examples=25, derandomize=True)
@given(clusters(), ports())
def test_the_order_in_which_machines_are_told_does_not_matter(
    cluster: HardwareReport, more: tuple[NetworkPort, ...]
) -> None:
    hosts = tuple(msgspec.structs.replace(node, network=(*node.network, *more)) for node in cluster.hosts)
    cluster = msgspec.structs.replace(cluster, hosts=hosts)
    mixed = msgspec.structs.replace(
        cluster, hosts=tuple(reversed(hosts)), accelerators=tuple(reversed(cluster.accelerators))
    )
    one, other = planned("glm-4.6", cluster), planned("glm-4.6", mixed)
    assert (one.chosen, one.rejected) == (other.chosen, other.rejected)
