"""GPUs that Ray has given to other work are held in the plan of a launch."""

from __future__ import annotations

import msgspec
import pytest

from autolaunch.cluster.given_out import OTHER_WORK, with_given_out
from autolaunch.cluster.members import Member
from autolaunch.daemon.deployment import Changes, Deployment
from autolaunch.daemon.planning import devices_held, plan_for
from selector.catalog import Catalog
from selector.hardware import HardwareReport
from selector.request import Pins
from tests.fakes.clusters import cluster


def told(catalog: Catalog, *machines: str) -> HardwareReport:
    report = cluster(catalog, *machines)
    hosts = tuple(msgspec.structs.replace(each, id=f"id{each.index}") for each in report.hosts)
    return msgspec.structs.replace(report, hosts=hosts)


def member(number: int, free: float | None, *, alive: bool = True) -> Member:
    return Member(id=f"id{number}", name="n", address="10.0.0.1", alive=alive, gpus=8.0, free_gpus=free)


def held(report: HardwareReport) -> list[int]:
    return [each.index for each in report.accelerators if each.memory_free_bytes == 0]


@pytest.mark.parametrize(("free", "count"), [(8.0, 0), (7.5, 1), (3.0, 5), (0.0, 8), (None, 0)])
def test_as_many_gpus_of_a_node_are_held_as_ray_has_given_out(catalog: Catalog, free: float | None, count: int) -> None:
    report = told(catalog, "8xh100", "8xh100")
    found = with_given_out(report, (member(0, 8.0), member(1, free)))
    assert len(held(found)) == count
    assert all(each >= 8 for each in held(found))


def test_those_are_held_whose_driver_has_the_least_free(catalog: Catalog) -> None:
    report = told(catalog, "8xh100")
    devices = list(report.accelerators)
    devices[3] = msgspec.structs.replace(devices[3], memory_free_bytes=1)
    report = msgspec.structs.replace(report, accelerators=tuple(devices))
    assert held(with_given_out(report, (member(0, 7.0),))) == [3]


def test_a_second_launch_is_planned_on_other_nodes_or_told_who_has_them(catalog: Catalog) -> None:
    pins = Pins(engine="vllm", quantization="FP8", tensor_parallel=8, data_parallel=1)
    wish = Deployment(name="glm", model="glm-4.6", nodes="auto", pinned=pins, wait_for_devices=False)
    report = told(catalog, "8xh100", "8xh100")
    first = with_given_out(report, (member(0, 0.0), member(1, 8.0)))
    plan = plan_for(wish, first, Changes(), known=catalog)
    assert plan.chosen is not None
    assert set(plan.chosen.parallel.devices) == set(range(8, 16))
    full = with_given_out(report, (member(0, 0.0), member(1, 0.0)))
    plan = plan_for(wish, full, Changes(), known=catalog)
    assert plan.chosen is None
    fault = devices_held(plan, wish, full, Changes(), known=catalog)
    assert fault is not None
    assert fault.permanent
    told_of = (
        f"devices {', '.join(map(str, range(8 * node, 8 * node + 8)))} (NVIDIA H100 80GB HBM3) of "
        f"{full.hosts[node].name}: {OTHER_WORK}"
        for node in (0, 1)
    )
    assert fault.message == f"others hold the memory that glm needs: {'; '.join(told_of)}"
