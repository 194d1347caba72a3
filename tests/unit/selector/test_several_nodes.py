"""Plans over several machines: where stages lie, what the network costs, what is said where one machine is short."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
import pytest

from autolaunch import api
from autolaunch.cli.render_plan import render_plan
from autolaunch.cli.terminal import Terminal
from selector.asked import PlanRequest
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan, Note
from selector.hardware import Cpu, HardwareReport, Host, NetworkKind
from selector.machines import report_from_file, report_from_spec
from selector.plan import launch_plan
from selector.request import Pins
from tests.fakes.clusters import GIB, cluster, port

BF16 = Pins(engine="vllm", format="bf16")
#: The slowest last.
NETWORKS: tuple[tuple[NetworkKind, float], ...] = (
    ("infiniband", 400),
    ("infiniband", 100),
    ("roce", 100),
    ("roce", 25),
    ("ethernet", 25),
    ("ethernet", 10),
    ("ethernet", 1),
)


def planned(catalog: Catalog, report: HardwareReport, pins: Pins = BF16, model: str = "glm-4.6") -> LaunchPlan:
    request = PlanRequest(model=model, pins=pins)
    return launch_plan(catalog.model(model), report, request, catalog, advise=lambda _: (), keep_all=True)


def chosen(catalog: Catalog, report: HardwareReport, pins: Pins = BF16, model: str = "glm-4.6") -> Candidate:
    plan = planned(catalog, report, pins, model)
    assert plan.chosen is not None, plan.explain()
    return plan.chosen


def pair(catalog: Catalog, kind: NetworkKind | None = None, gigabits: float | None = None) -> HardwareReport:
    """Two machines of eight H100 with a port each."""
    return cluster(catalog, "8xh100", "8xh100", ports=() if kind is None else ((port(kind, gigabits),),))


def said(candidate: Candidate) -> Note:
    (note,) = (each for each in candidate.notes if each.code.startswith("network."))
    return note


def messages(plan: LaunchPlan, code: str) -> list[str]:
    return [each.message for each in plan.rejected if each.code == code]


def filled(report: HardwareReport, node: int, free_bytes: int) -> HardwareReport:
    devices = tuple(
        msgspec.structs.replace(each, memory_free_bytes=free_bytes) if each.node == node else each
        for each in report.accelerators
    )
    return msgspec.structs.replace(report, accelerators=devices)


# --- the layout -------------------------------------------------------------------------------------


def test_sixteen_gpus_in_two_machines_are_tensor_parallel_inside_and_two_stages_across(catalog: Catalog) -> None:
    for report in (report_from_spec("2x8xh100", catalog), pair(catalog), pair(catalog, "infiniband", 400)):
        parallel = chosen(catalog, report, Pins(format="bf16")).parallel
        assert (parallel.tensor, parallel.pipeline, parallel.data, parallel.nodes) == (8, 2, 1, 2)
        assert parallel.devices == tuple(range(16))


def test_unequal_machines_are_cut_so_that_no_group_leaves_one(catalog: Catalog) -> None:
    parallel = chosen(catalog, cluster(catalog, "8xh100", "4xh100")).parallel
    assert (parallel.tensor, parallel.pipeline, parallel.nodes) == (4, 3, 2)


def test_stages_of_a_machine_stand_together_however_full_each_is(catalog: Catalog) -> None:
    """Stages are taken the emptiest first; a token still crosses between two machines only once."""
    report = cluster(catalog, "4xh100", "4xh100", ports=((port("ethernet", 10),),))
    devices = tuple(
        msgspec.structs.replace(each, memory_free_bytes=(each.memory_total_bytes or 0) - taken * GIB)
        for each, taken in zip(report.accelerators, (0, 0, 4, 4, 2, 2, 6, 6), strict=True)
    )
    pins = Pins(engine="vllm", format="fp8", tensor_parallel=2, pipeline_parallel=4)
    found = chosen(catalog, msgspec.structs.replace(report, accelerators=devices), pins)
    nodes = [report.accelerators[index].node for index in found.parallel.devices]
    assert nodes == [0, 0, 0, 0, 1, 1, 1, 1]


def test_machines_that_are_reached_alike_make_a_replica_together(catalog: Catalog) -> None:
    report = cluster(
        catalog, *["4xh100"] * 4, ports=((port("ethernet", 10),), (port("infiniband", 400), port("ethernet", 10)))
    )
    pins = Pins(engine="vllm", format="fp8", tensor_parallel=4, pipeline_parallel=2, data_parallel=2)
    devices = chosen(catalog, report, pins).parallel.devices
    assert [report.accelerators[index].node for index in devices[::4]] == [1, 3, 0, 2]
    single = chosen(catalog, report, msgspec.structs.replace(pins, data_parallel=1))
    assert said(single).code == "network.infiniband"


def test_a_pinned_group_over_machines_takes_whole_ones_whichever_they_are(catalog: Catalog) -> None:
    pins = msgspec.structs.replace(BF16, tensor_parallel=16)
    found = chosen(catalog, cluster(catalog, "4xh100", "8xh100", "4xh100", "8xh100"), pins)
    assert found.parallel.devices == (*range(4, 12), *range(16, 24))


def test_fewer_replicas_inside_machines_may_beat_more_that_wait_for_a_slow_network(catalog: Catalog) -> None:
    """Of 6 + 6 GPUs four hold the model: two replicas, or a third of what both leave."""
    pins = Pins(engine="vllm", format="fp8", tensor_parallel=2, pipeline_parallel=2)

    def replicas(gigabits: float) -> int:
        report = cluster(catalog, "6xh200", "6xh200", ports=((port("ethernet", gigabits),),))
        return chosen(catalog, report, pins).parallel.data

    assert (replicas(0.1), replicas(100)) == (2, 3)


# --- what the network costs -------------------------------------------------------------------------


@pytest.mark.parametrize("pins", [BF16, msgspec.structs.replace(BF16, tensor_parallel=16)])
def test_a_slower_network_is_never_faster(catalog: Catalog, pins: Pins) -> None:
    speeds = [chosen(catalog, pair(catalog, *network), pins).speed for network in NETWORKS]
    for name in ("decode", "throughput", "sustained", "prefill"):
        figures = [getattr(each, f"{name}_tokens_per_second") for each in speeds]
        assert figures == sorted(figures, reverse=True), (name, figures)
    assert {each.basis for each in speeds} == {"derived"}
    first, last = (each.throughput_tokens_per_second or 0 for each in (speeds[0], speeds[-1]))
    assert 0 < last < 0.6 * first


@pytest.mark.parametrize("tensor", [8, 16])
@pytest.mark.parametrize("gigabits", [1, 10, 100, 400, None])
def test_at_one_rate_infiniband_is_no_slower_than_roce_nor_that_than_ethernet(
    catalog: Catalog, tensor: int, gigabits: float | None
) -> None:
    kinds: tuple[NetworkKind, ...] = ("infiniband", "roce", "ethernet")
    pins = msgspec.structs.replace(BF16, tensor_parallel=tensor)
    speeds = [chosen(catalog, pair(catalog, kind, gigabits), pins).speed for kind in kinds]
    for name in ("decode", "throughput", "prefill"):
        figures = [getattr(each, f"{name}_tokens_per_second") for each in speeds]
        assert figures == sorted(figures, reverse=True), (name, figures)


def test_a_network_that_nobody_told_of_is_assumed_and_limits_no_rate(catalog: Catalog) -> None:
    named, asked = chosen(catalog, report_from_spec("2x8xh100", catalog)), chosen(catalog, pair(catalog))
    assert named.speed == asked.speed
    assert named.speed.basis == "assumed"
    ethernet = chosen(catalog, pair(catalog, "ethernet", 400)).speed
    assert (named.speed.prefill_tokens_per_second or 0) >= (ethernet.prefill_tokens_per_second or 0)
    unknown = chosen(catalog, pair(catalog, "ethernet", None)).speed
    assert unknown.basis == "assumed"
    assert unknown == msgspec.structs.replace(chosen(catalog, pair(catalog, "ethernet", 10)).speed, basis="assumed")


def test_machines_that_serve_a_replica_each_pay_nothing_for_the_network(catalog: Catalog) -> None:
    pins = Pins(engine="vllm", format="fp8", tensor_parallel=8)
    fast, slow = (chosen(catalog, pair(catalog, "ethernet", rate), pins) for rate in (400, 0.1))
    assert (fast.parallel.data, fast.parallel.nodes) == (2, 1)
    assert fast.speed == slow.speed
    assert not [note for note in (*fast.notes, *slow.notes) if note.code.startswith("network.")]


# --- what is said -----------------------------------------------------------------------------------


def test_a_replica_on_several_machines_says_what_the_way_between_them_costs(catalog: Catalog) -> None:
    quick = said(chosen(catalog, pair(catalog, "infiniband", 400)))
    assert (quick.severity, quick.code) == ("info", "network.infiniband")
    assert quick.message.startswith(
        "a replica lies on 2 nodes joined by InfiniBand, 400 Gbit/s: a handover takes 0.25 ms"
    )
    slow = said(chosen(catalog, pair(catalog, "ethernet", 1)))
    assert (slow.severity, slow.code) == ("performance", "network.ethernet")
    assert "2.2 s for a chunk of a prompt" in slow.message
    wide = said(chosen(catalog, pair(catalog, "ethernet", 100), msgspec.structs.replace(BF16, tensor_parallel=16)))
    assert "all-reduces over it take 37 ms a step for one token" in wide.message
    assert "handover" not in wide.message


def test_an_unknown_network_is_said_to_be(catalog: Catalog) -> None:
    note = said(chosen(catalog, report_from_spec("2x8xh100", catalog)))
    assert (note.severity, note.code) == ("performance", "network.assumed")
    assert "how they are joined is not known: 0.6 ms at each handover are assumed" in note.message
    assert (
        "no kind of port is known that all of them have (gpu-a, gpu-b)" in said(chosen(catalog, pair(catalog))).message
    )


def test_machines_with_no_network_in_common_are_named_with_theirs_and_taken_as_slow_ones(catalog: Catalog) -> None:
    apart = chosen(catalog, cluster(catalog, "8xh100", "8xh100", ports=((port("infiniband", 400),), ())))
    slow = chosen(catalog, pair(catalog, "ethernet", 1))
    assert apart.speed == msgspec.structs.replace(slow.speed, basis="assumed")
    note = said(apart)
    assert (note.severity, note.code) == ("performance", "network.assumed")
    assert note.message.startswith(
        "a replica lies on 2 nodes with no kind of network in common (gpu-a: InfiniBand; gpu-b: no port that is "
        "known), taken to reach each other by Ethernet, 1 Gbit/s, since the cluster joins them: a handover takes"
    )


@pytest.mark.parametrize("gigabits", [0.1, 1, 10, 100, None])
@pytest.mark.parametrize("tensor", [8, 16])
def test_machines_that_a_known_network_joins_are_chosen_before_those_that_none_does(
    catalog: Catalog, tensor: int, gigabits: float | None
) -> None:
    """The first machine has the quickest port of all, and nobody to reach by it."""
    ethernet = (port("ethernet", gigabits),)
    report = cluster(catalog, *["8xh100"] * 3, ports=((port("infiniband", 400),), ethernet, ethernet))
    pins = msgspec.structs.replace(BF16, tensor_parallel=tensor, pipeline_parallel=16 // tensor)
    found = chosen(catalog, report, pins)
    assert found.parallel.devices == tuple(range(8, 24))
    assert said(found).code == "network.ethernet"


def test_a_little_more_free_memory_is_no_reason_for_a_network_that_nobody_knows(catalog: Catalog) -> None:
    """Both are tried; the emptier machines serve a quarter of what those do that are joined."""
    ethernet = (port("ethernet", 100),)
    report = cluster(catalog, *["8xh100"] * 3, ports=((port("infiniband", 400),), ethernet, ethernet))
    report = filled(report, 2, (report.accelerators[0].memory_total_bytes or 0) - 2 * GIB)
    assert chosen(catalog, report).parallel.devices == tuple(range(8, 24))


def test_of_two_rates_that_machines_have_in_common_the_quicker_pair_serves(catalog: Catalog) -> None:
    rates = [(port("ethernet", rate),) for rate in (1, 100, None, 100)]
    assert chosen(catalog, cluster(catalog, *["8xh100"] * 4, ports=rates)).parallel.devices == (
        *range(8, 16),
        *range(24, 32),
    )


def test_the_stages_are_named_with_their_machines(catalog: Catalog) -> None:
    words = planned(catalog, cluster(catalog, "8xh100", "4xh100")).explain()
    assert "Its stages: 1 on gpu-a (devices 0-3), 2 on gpu-a (devices 4-7), 3 on gpu-b (devices 8-11)." in words
    assert "1 on node 1 of 2 (devices 0-7)" in planned(catalog, report_from_spec("2x8xh100", catalog)).explain()
    assert "stages:" not in planned(catalog, report_from_spec("8xh200", catalog), Pins(format="fp8")).explain()


# --- refusals ---------------------------------------------------------------------------------------


def test_a_layout_that_the_machines_have_no_room_for_says_which_has_what(catalog: Catalog) -> None:
    eight = msgspec.structs.replace(BF16, tensor_parallel=8)
    plan = planned(catalog, cluster(catalog, "8xh100", "4xh100", "4xh100"), eight)
    assert messages(plan, "layout.devices") == [
        "needs 2 groups of 8 devices, each inside a node; there is room for 1 (gpu-b has 4, gpu-c has 4)"
    ]
    two = msgspec.structs.replace(eight, pipeline_parallel=2)
    plan = planned(catalog, cluster(catalog, "8xh100", "4xh100"), two)
    assert messages(plan, "layout.devices") == ["needs 16 devices, 12 are there (gpu-b has 4, gpu-a has 8)"]
    assert plan.rejected[0].numbers == {"needed_devices": 16, "devices": 12, "node": 1}
    plan = planned(catalog, report_from_spec("2x4xh100", catalog), two)
    assert messages(plan, "layout.devices") == ["needs 16 devices, 8 are there"]


def test_a_pinned_group_says_which_machines_are_too_small_for_it(catalog: Catalog) -> None:
    pins = msgspec.structs.replace(BF16, tensor_parallel=16)
    plan = planned(catalog, cluster(catalog, "8xh100", "4xh100", "4xh100"), pins)
    assert messages(plan, "layout.devices") == [
        "needs 1 group of 16 devices, each on 2 nodes of 8; there is room for 0 (gpu-b has 4, gpu-c has 4)"
    ]


def test_a_machine_that_others_fill_is_named_and_equal_ones_are_not(catalog: Catalog) -> None:
    pins = msgspec.structs.replace(BF16, tensor_parallel=8, pipeline_parallel=2)
    plan = planned(catalog, filled(pair(catalog), 1, 30 * GIB), pins)
    (refused,) = (each for each in plan.rejected if each.code.startswith("memory."))
    assert refused.message.endswith("(49.7 taken by others); gpu-b has the least")
    assert refused.numbers["node"] == 1
    alike = planned(catalog, cluster(catalog, "4xh100", "4xh100"))
    assert all("the least" not in each.message for each in alike.rejected)


@pytest.mark.parametrize("shown", ["by itself", "all"])
def test_what_the_user_sees_of_a_refusal_names_the_machine_that_lacks_memory(catalog: Catalog, shown: str) -> None:
    """A layout inside one machine lacks less, and says nothing of the other."""
    for report in (filled(pair(catalog), 1, 10 * GIB), cluster(catalog, "8xh100", "8xl40s")):
        plan = api.plan("glm-4.6", hardware=report, pins=Pins(format="bf16"), known=catalog, keep_all=shown == "all")
        assert any("gpu-b has the least" in each.message for each in plan.rejected)
        text = " ".join(click.unstyle(render_plan(plan, Terminal())).split())
        nearest = text.partition("What comes nearest")[2].partition("What would make it fit")[0]
        assert "over several nodes: zai-org/GLM-4.6 (BF16) with vllm TP" in nearest
        assert nearest.strip().endswith("gpu-b has the least")


def test_advice_to_free_memory_says_on_which_machine(catalog: Catalog) -> None:
    report = filled(pair(catalog), 1, 10 * GIB)
    plan = api.plan("glm-4.6", hardware=report, pins=Pins(format="bf16"), known=catalog)
    (advice,) = (each for each in plan.advice if each.kind == "free_gpu")
    assert "(devices 8-9 of gpu-b: 69.6 GiB each)" in advice.message


def test_of_two_kinds_the_machine_with_the_smaller_one_is_named(catalog: Catalog) -> None:
    plan = planned(catalog, cluster(catalog, "8xh100", "8xa100-40gb"))
    assert not plan.feasible
    assert any("39.4 usable; gpu-b has the least" in each for each in messages(plan, "memory.weights"))


def test_a_machine_without_a_name_goes_by_its_place(catalog: Catalog) -> None:
    report = msgspec.structs.replace(filled(pair(catalog), 1, 30 * GIB), hosts=())
    assert any("node 2 of 2 has the least" in each for each in messages(planned(catalog, report), "memory.weights"))


# --- main memory ------------------------------------------------------------------------------------


def test_main_memory_of_several_machines_holds_no_experts(catalog: Catalog) -> None:
    """One machine of 4090 and 192 GB serves GLM-4.6 with experts in main memory; of two neither is chosen for it."""
    pins = Pins(engine="llamacpp", gpu_count=1)
    alone = cluster(catalog, "4090", memory_gib=192)
    assert chosen(catalog, alone, pins).limits.cpu_expert_layers
    assert not planned(catalog, cluster(catalog, "4090", "4090", memory_gib=192), pins).feasible


def test_machines_without_gpus_serve_on_the_first_ones_processor(catalog: Catalog) -> None:
    host = Host(os="linux", cpu=Cpu(cores=8), memory_total_bytes=64 * GIB, memory_available_bytes=60 * GIB)
    plan = planned(catalog, HardwareReport(host=host, nodes=3), Pins(engine="vllm"), "glm-tiny")
    assert plan.chosen is not None, plan.explain()
    assert (plan.chosen.parallel.devices, plan.chosen.parallel.data) == ((), 1)


def test_where_a_machine_has_gpus_no_processor_serves_in_their_place(catalog: Catalog) -> None:
    """A processor of one machine of a cluster, at a fifth of a token a second, is nobody's plan for it."""
    plan = planned(
        catalog, filled(cluster(catalog, "8xh100", "8xh100", memory_gib=2048), 1, 30 * GIB), Pins(format="bf16")
    )
    assert not plan.feasible


# --- from a file ------------------------------------------------------------------------------------


def test_a_recorded_cluster_gives_the_same_plan(catalog: Catalog, tmp_path: Path) -> None:
    report = cluster(catalog, "8xh100", "4xh100", ports=((port("roce", 100),),), memory_gib=512)
    path = tmp_path / "cluster.json"
    path.write_text(report.to_json())
    assert report_from_file(path) == report
    first = api.plan("glm-4.6", hardware=report, known=catalog)
    again = api.plan("glm-4.6", hardware=str(path), known=catalog)
    assert first.chosen == again.chosen
