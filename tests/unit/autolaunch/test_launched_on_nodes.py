"""``autolaunch.launch(nodes=…)``: what is refused before anything begins."""

from __future__ import annotations

from pathlib import Path

import pytest

import autolaunch
from autolaunch import api
from autolaunch.launching import LaunchOptions, prepare
from selector.catalog import Catalog
from selector.errors import NoCluster, Unsupported, UsageError
from selector.hardware import HardwareReport
from selector.request import Pins
from tests.fakes.clusters import cluster


def test_a_lock_and_nodes_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a lock keeps a launch on one machine"):
        autolaunch.launch("glm-4.6", nodes="auto", lock=tmp_path / "glm.lock", home=tmp_path)


def test_several_replicas_are_not_started_over_nodes(tmp_path: Path, catalog: Catalog) -> None:
    report = cluster(catalog, "8xh100", "8xh100")
    plan = api.plan("glm-4.6", hardware=report, known=catalog, pins=Pins(engine="vllm", data_parallel=2))
    assert plan.chosen is not None
    with pytest.raises(UsageError, match="on the nodes of a cluster one engine is started"):
        autolaunch.launch(plan, nodes="auto", home=tmp_path)


def test_a_model_by_its_name_is_planned_for_the_cluster_as_it_would_be_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def nodes(address: str) -> HardwareReport:
        asked.append(address)
        raise NoCluster("no Ray cluster runs on this host")

    monkeypatch.setattr(api, "nodes_to_plan", nodes)
    with pytest.raises(NoCluster):
        autolaunch.launch("glm-4.6", nodes="auto", home=tmp_path)
    assert asked == ["auto"]


def test_a_plan_over_several_machines_is_not_started_on_one(tmp_path: Path, catalog: Catalog) -> None:
    pins = Pins(engine="vllm", format="bf16", tensor_parallel=8, pipeline_parallel=2, data_parallel=1)
    plan = api.plan("glm-4.6", hardware="2x8xh100", known=catalog, pins=pins)
    with pytest.raises(Unsupported, match="several machines are a Ray cluster's nodes") as refused:
        prepare(plan, catalog=catalog, options=LaunchOptions(home=tmp_path))
    assert "vllm serve" in (refused.value.hint or "")
