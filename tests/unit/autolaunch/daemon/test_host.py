"""The machine that deployments share: whose device is whose, and what is planned when something is gone."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from autolaunch import api
from autolaunch.daemon.deployment import Changes, Deployment, Fault
from autolaunch.daemon.faults import Refusal
from autolaunch.daemon.host import Host
from autolaunch.daemon.ladder import engine_of
from autolaunch.daemon.store import Store, where_of
from selector.catalog import Catalog
from selector.errors import ClusterError, NoCluster, NoRay
from selector.hardware import HardwareReport
from selector.machines import report_from_spec
from selector.request import Pins
from tests.fakes.clusters import cluster

TEXT = Deployment(name="text", model="glm-4.6")
VISION = Deployment(name="vision", model="glm-4.5v", port=8001)


def machine(spec: str = "8xh200") -> HardwareReport:
    report = report_from_spec(spec, Catalog())
    devices = tuple(msgspec.structs.replace(each, uuid=f"GPU-{each.index}") for each in report.accelerators)
    return msgspec.structs.replace(report, accelerators=devices)


def host(report: HardwareReport) -> Host:
    return Host(Catalog(), lambda: report)


def test_two_deployments_never_share_a_device() -> None:
    one = host(machine())
    one.divide((TEXT, VISION), {})
    text, vision = one(TEXT, Changes()), one(VISION, Changes())
    assert text.candidate.parallel.devices
    assert vision.candidate.parallel.devices
    assert not set(text.candidate.parallel.devices) & set(vision.candidate.parallel.devices)


def test_a_deployment_on_nodes_is_planned_on_the_clusters_report_and_leaves_this_host_to_the_others() -> None:
    asked: list[str] = []

    def nodes(address: str) -> HardwareReport:
        asked.append(address)
        return cluster(Catalog(), "8xh100", "8xh100")

    pins = Pins(format="bf16", tensor_parallel=8, pipeline_parallel=2)
    wide = Deployment(name="wide", model="glm-4.6", nodes="head:6379", pinned=pins)
    one = Host(Catalog(), machine, probe_nodes=nodes)
    one.divide((wide, VISION), {})
    assert [each.key for each in one.engines if each.name == "wide"] == ["wide"]
    assert len(one.engines) > 1
    assert asked == []
    decided = one(one.engines[0], Changes())
    assert asked == ["head:6379"]
    assert decided.candidate.engine.name == "vllm"
    assert decided.candidate.parallel.nodes == 2
    assert decided.candidate.parallel.devices == tuple(range(16))
    assert decided.candidate.parallel.data == 1
    assert one(VISION, Changes()).plan.hardware.nodes == 1


@pytest.mark.parametrize(
    ("error", "wait", "reason", "permanent"),
    [
        (NoCluster("nobody"), True, "no cluster", False),
        (NoCluster("nobody"), False, "communication", False),
        (ClusterError("it was lost"), True, "communication", False),
        (NoRay("none"), True, "installation", True),
    ],
)
def test_a_cluster_that_is_not_there_is_waited_for_where_that_was_asked_for_and_rays_absence_is_not(
    error: ClusterError, wait: bool, reason: str, permanent: bool
) -> None:
    def nodes(_: str) -> HardwareReport:
        raise error

    one = Host(Catalog(), machine, probe_nodes=nodes)
    with pytest.raises(Refusal) as refused:
        one(Deployment(name="wide", model="glm-4.6", nodes="auto", wait_for_devices=wait), Changes())
    assert (refused.value.fault.reason, refused.value.fault.permanent) == (reason, permanent)


@pytest.mark.parametrize("wait", [True, False])
def test_a_cluster_that_is_too_small_now_is_waited_for_where_that_was_asked_for(wait: bool) -> None:
    pins = Pins(format="bf16", tensor_parallel=8, pipeline_parallel=2)
    wide = Deployment(name="wide", model="glm-4.6", nodes="auto", pinned=pins, wait_for_devices=wait)
    one = Host(Catalog(), machine, probe_nodes=lambda _: cluster(Catalog(), "8xh100"))
    with pytest.raises(Refusal) as refused:
        one(wide, Changes())
    fault = refused.value.fault
    assert (fault.reason, fault.permanent) == (("too few nodes", False) if wait else ("no plan", True))
    assert ("on the 1 node that the cluster has now" in fault.message) is wait
    assert "16" in fault.message, "what it takes"


def test_a_model_that_a_processor_could_serve_waits_for_nodes_with_gpus() -> None:
    """As where the head of a cluster is back before the others are."""
    small = Deployment(name="small", model="glm-4.5-air", nodes="auto")
    one = Host(Catalog(), machine, probe_nodes=lambda _: report_from_spec("cpu-256gb", Catalog()))
    with pytest.raises(Refusal) as refused:
        one(small, Changes())
    assert refused.value.fault.reason == "too few nodes"
    assert "on the 1 node that the cluster has now; none of them has a GPU for it" in refused.value.fault.message


@pytest.mark.parametrize(
    "changes", [Changes(avoid=("something",)), Changes(pinned=Pins(tensor_parallel=8, pipeline_parallel=2, eager=True))]
)
def test_a_deployment_that_was_changed_after_a_failure_waits_for_nodes_as_well(changes: Changes) -> None:
    pins = Pins(format="bf16", tensor_parallel=8, pipeline_parallel=2)
    wide = Deployment(name="wide", model="glm-4.6", nodes="auto", pinned=pins)
    one = Host(Catalog(), machine, probe_nodes=lambda _: cluster(Catalog(), "8xh100"))
    with pytest.raises(Refusal) as refused:
        one(wide, changes)
    assert (refused.value.fault.reason, refused.value.fault.permanent) == ("too few nodes", False)


@pytest.mark.parametrize(
    ("pins", "context_tokens"),
    [(Pins(tensor_parallel=7), None), (Pins(), 50_000_000), (Pins(format="gguf"), None)],
)
def test_what_no_node_would_mend_is_not_waited_for(pins: Pins, context_tokens: int | None) -> None:
    one = Host(Catalog(), machine, probe_nodes=lambda _: cluster(Catalog(), "8xh100", "8xh100"))
    wish = Deployment(name="wide", model="glm-4.6", nodes="auto", pinned=pins, context_tokens=context_tokens)
    with pytest.raises(Refusal) as refused:
        one(wish, Changes())
    assert (refused.value.fault.reason, refused.value.fault.permanent) == ("no plan", True)


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        (Pins(gpus=tuple(range(16))), "it is pinned to device 8, which none of them has"),
        (Pins(gpu_count=16), "it is pinned to 16 devices, and they have 8"),
    ],
)
@pytest.mark.parametrize("wait", [True, False])
def test_devices_that_are_pinned_and_of_a_node_that_has_not_joined_are_waited_for(
    pins: Pins, said: str, wait: bool
) -> None:
    one = Host(Catalog(), machine, probe_nodes=lambda _: cluster(Catalog(), "8xh100"))
    wide = Deployment(name="wide", model="glm-4.6", nodes="auto", pinned=pins, wait_for_devices=wait)
    with pytest.raises(Refusal) as refused:
        one(wide, Changes())
    fault = refused.value.fault
    assert (fault.reason, fault.permanent) == (("too few nodes", False) if wait else ("options", True))
    assert (said in fault.message) is wait


def test_a_share_stays_with_its_devices_when_the_driver_counts_anew() -> None:
    before = machine()
    one = host(before)
    one.divide((TEXT, VISION), {})
    mine = one.shares["vision"].devices
    assert mine is not None
    assert 0 not in mine
    left = tuple(msgspec.structs.replace(each, index=each.index - 1) for each in before.accelerators if each.index != 0)
    after = msgspec.structs.replace(before, accelerators=left, links=())
    share = one.share_of("vision", after)
    assert share is not None
    assert share.devices == frozenset(index - 1 for index in mine)


def test_after_a_device_was_lost_the_plan_is_made_of_the_others() -> None:
    one = host(machine("8xh100"))
    one.divide((TEXT,), {})
    first = one(TEXT, Changes()).candidate
    lost = first.parallel.devices[0]
    again = one(TEXT, Changes(without_devices=(f"GPU-{lost}",))).candidate
    assert lost not in again.parallel.devices
    assert again.parallel.devices


def test_memory_of_our_own_engine_is_not_others_when_the_machine_is_divided_again() -> None:
    report = machine()
    full = tuple(msgspec.structs.replace(each, memory_free_bytes=10**9) for each in report.accelerators)
    one = host(msgspec.structs.replace(report, accelerators=full))
    free = {f"GPU-{each.index}": each.memory_free_bytes or 0 for each in report.accelerators}
    one.divide((TEXT, VISION), free)
    assert all(share.reason is None for share in one.shares.values())


@pytest.mark.parametrize("allowed", [False, True])
def test_weights_of_a_lower_quality_are_not_taken_because_better_ones_failed_here(home: Path, *, allowed: bool) -> None:
    report = machine("4xh100")
    one = host(report)
    deployment = msgspec.structs.replace(TEXT, lower_accuracy=allowed)
    first = one(deployment, Changes()).candidate
    store = Store(api.learned_path())
    fault = Fault(reason="missing kernel", permanent=True, message="no kernel")
    whole = api.plan("glm-4.6", hardware=report, keep_all=True)
    for each in (whole.chosen, *whole.alternatives):
        if each is not None and each.score_terms.quality >= first.score_terms.quality:
            store.failed(where_of(each, report), each, fault)
    if allowed:
        assert engine_of(one(deployment, Changes()).candidate) != engine_of(first)
        return
    with pytest.raises(Refusal) as refused:
        one(deployment, Changes())
    assert refused.value.fault.permanent
    assert "lower_accuracy" in (refused.value.fault.hint or "")


def test_a_plan_that_falls_to_lower_quality_says_so(home: Path) -> None:
    report = machine("4xh100")
    whole = api.plan("glm-4.6", hardware=report, keep_all=True)
    assert whole.chosen is not None
    store = Store(api.learned_path())
    for each in (whole.chosen, *whole.alternatives):
        if each.score_terms.quality >= whole.chosen.score_terms.quality:
            store.failed(where_of(each, report), each, Fault(reason="missing kernel", permanent=True, message="none"))
    again = api.plan("glm-4.6", hardware=report, here=True)
    assert again.chosen is not None
    assert [note.code for note in again.chosen.notes if note.code.startswith("learned")] == ["learned.quality"]
