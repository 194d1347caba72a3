"""Where in a cluster an engine is launched, what is refused before, and what is waited for after."""

from __future__ import annotations

from typing import Any, Self

import msgspec
import pytest

from autolaunch import api
from autolaunch.cluster import placing
from autolaunch.cluster.members import Member
from autolaunch.cluster.placing import Place, cleared, group_of, place_in, refuse_other_python, with_ray
from autolaunch.daemon.hands import Decided, Run
from autolaunch.launching import Prepared
from engines.environments import python_request
from selector.catalog import Catalog
from selector.contract import LaunchPlan
from selector.errors import ClusterError, EngineInstallError, NoCluster, Unsupported
from selector.hardware import HardwareReport
from selector.request import Pins
from tests.fakes.clusters import cluster
from tests.fakes.members import member


class Joined:
    """A cluster that was joined: of two nodes, from the second one."""

    address, ray_version, python_version = "10.0.0.1:6379", "2.60.0", "3.12.3"

    def __init__(self, members: tuple[Member, ...], groups: list[tuple[str, ...] | None]) -> None:
        self._members, self._groups = members, groups
        self.asked: list[str] = []

    def __call__(self, address: str, **_: Any) -> Joined:
        self.asked.append(address)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def members(self) -> tuple[Member, ...]:
        return self._members

    def groups(self) -> tuple[str, ...] | None:
        return self._groups.pop(0) if len(self._groups) > 1 else self._groups[0]


PLACE = Place(
    address="10.0.0.1:6379", ray_version="2.60.0", python_version="3.12.3", here="10.0.0.2", node="b", ranks=("x",)
)


def joined(monkeypatch: pytest.MonkeyPatch, *groups: tuple[str, ...] | None, here: int | None = 1) -> Joined:
    members = tuple(member(number, is_here=number == here) for number in range(2))
    found = Joined(members, list(groups) or [()])
    monkeypatch.setattr(placing, "Cluster", found)
    return found


@pytest.fixture
def report(catalog: Catalog) -> HardwareReport:
    found = cluster(catalog, "8xh100", "8xh100")
    hosts = tuple(msgspec.structs.replace(each, id=member(each.index).id) for each in found.hosts)
    devices = tuple(msgspec.structs.replace(each, uuid=f"GPU-{each.index}") for each in found.accelerators)
    return msgspec.structs.replace(found, hosts=hosts, accelerators=devices)


@pytest.fixture
def plan(catalog: Catalog, report: HardwareReport) -> LaunchPlan:
    pins = Pins(engine="vllm", format="bf16", tensor_parallel=8, pipeline_parallel=2, data_parallel=1)
    found = api.plan("glm-4.6", hardware=report, known=catalog, pins=pins)
    assert found.chosen is not None
    return found


def test_every_rank_is_on_the_node_of_its_device(monkeypatch: pytest.MonkeyPatch, plan: LaunchPlan) -> None:
    asked = joined(monkeypatch)
    assert plan.chosen is not None
    place = place_in("auto", plan.hardware, plan.chosen, {})
    assert asked.asked == ["auto"]
    assert place.ranks == ("10.0.0.1",) * 8 + ("10.0.0.2",) * 8
    assert (place.address, place.here, place.node) == ("10.0.0.1:6379", "10.0.0.2", member(1).id)
    assert dict(place.environment)["VLLM_HOST_IP"] == "10.0.0.2"


def test_a_host_that_is_no_node_is_told_what_to_run(monkeypatch: pytest.MonkeyPatch, plan: LaunchPlan) -> None:
    joined(monkeypatch, here=None)
    assert plan.chosen is not None
    with pytest.raises(Unsupported, match="this host is no node of the Ray cluster") as refused:
        place_in("ray://head:10001", plan.hardware, plan.chosen, {})
    assert "ray start --address" in (refused.value.hint or "")


def test_another_engine_and_a_plan_without_gpus_are_refused_before_anybody_is_asked(
    monkeypatch: pytest.MonkeyPatch, catalog: Catalog
) -> None:
    asked = joined(monkeypatch)
    other = api.plan("glm-4.6", hardware="8xh200", known=catalog, pins=Pins(engine="sglang"))
    cpu = api.plan("glm-tiny", hardware="cpu-64gb", known=catalog, pins=Pins(engine="vllm"))
    for each, words in ((other, "sglang is not started on the nodes"), (cpu, "the plan has none")):
        assert each.chosen is not None
        with pytest.raises(Unsupported, match=words):
            place_in("auto", each.hardware, each.chosen, {})
    assert asked.asked == []


def test_a_plan_of_other_nodes_is_refused(monkeypatch: pytest.MonkeyPatch, plan: LaunchPlan) -> None:
    joined(monkeypatch)
    assert plan.chosen is not None
    nameless = msgspec.structs.replace(plan.hardware, hosts=())
    with pytest.raises(ClusterError, match="was not made of this cluster"):
        place_in("auto", nameless, plan.chosen, {})


def test_the_environment_has_the_clusters_ray_and_so_another_folder(catalog: Catalog) -> None:
    before = catalog.engine("vllm")
    after = with_ray(before, PLACE)
    assert all(each.requirements[-1] == "ray[client]==2.60.0" for each in after.packages)
    assert [each.requirements[:-1] for each in after.packages] == [each.requirements for each in before.packages]


def test_a_cluster_of_another_python_is_refused_with_both_named() -> None:
    refuse_other_python(msgspec.structs.replace(PLACE, python_version=f"{python_request()}.1"))
    with pytest.raises(EngineInstallError, match=r"Python 3\.9\.1.*" + python_request()):
        refuse_other_python(msgspec.structs.replace(PLACE, python_version="3.9.1"))


# --- afterwards --------------------------------------------------------------------------------------


def test_what_has_ended_is_waited_for_until_ray_has_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = group_of("ab" * 16)
    joined(monkeypatch, (mine, "other"), (mine,), ("other",))
    waits: list[float] = []
    assert cleared(PLACE, mine, clock=lambda: 0.0, sleep=waits.append) is None
    assert len(waits) == 2


def test_what_ray_does_not_take_back_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, now = group_of("ab" * 16), [0.0]
    joined(monkeypatch, (mine,))

    def sleep(seconds: float) -> None:
        now[0] += seconds

    said = cleared(PLACE, mine, timeout_seconds=3.0, clock=lambda: now[0], sleep=sleep)
    assert said is not None
    assert mine in said
    assert now[0] == 3.0


def test_a_cluster_that_is_gone_has_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: str, **__: object) -> Joined:
        raise NoCluster("nobody answers")

    monkeypatch.setattr(placing, "Cluster", gone)
    assert cleared(PLACE, "autolaunch-x") is None
    joined(monkeypatch, None)  # or one that does not tell
    assert cleared(PLACE, "autolaunch-x") is None


# --- leases ------------------------------------------------------------------------------------------


def test_only_devices_of_this_host_are_leased_here(plan: LaunchPlan, catalog: Catalog, tmp_path: Any) -> None:
    assert plan.chosen is not None
    run = Run(1, Decided(plan, plan.chosen))
    assert run.devices == frozenset()  # which node this is, is not known yet
    run.prepared = Prepared(
        plan=plan,
        candidate=plan.chosen,
        model=catalog.model("glm-4.6"),
        served_name="glm-4.6",
        folder=tmp_path,
        bin_directory=tmp_path,
        place=msgspec.structs.replace(PLACE, node=member(1).id),
    )
    assert run.devices == {f"GPU-{index}" for index in range(8, 16)}
