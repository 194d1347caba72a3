"""A plan for the nodes of a cluster is what a launch over them starts, and says what else would do."""

from __future__ import annotations

import json

import pytest

from autolaunch import api
from autolaunch.cli.app import run
from autolaunch.on_nodes import started_on_nodes
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.errors import UsageError
from selector.hardware import HardwareReport
from selector.request import Pins
from tests.fakes.clusters import cluster, port

KNOWN = Catalog()
PAIR = cluster(KNOWN, "8xh100", "8xh100", ports=((port("infiniband", 400),),))


@pytest.fixture(autouse=True)
def _nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "nodes_to_plan", lambda _: PAIR)


def planned(pins: Pins | None = None, report: HardwareReport | None = None) -> LaunchPlan:
    return api.plan("glm-4.6", nodes="auto", hardware=report, known=KNOWN, pins=pins)


def chosen(pins: Pins | None = None) -> Candidate:
    found = planned(pins).chosen
    assert found is not None
    return found


def notes(candidate: Candidate) -> list[str]:
    return [each.code for each in candidate.notes if each.code.startswith("nodes.")]


def test_a_plan_for_nodes_is_one_replica_with_vllm_and_nothing_that_was_pinned_is_changed() -> None:
    on_paper = api.plan("glm-4.6", hardware=PAIR, known=KNOWN).chosen
    assert on_paper is not None
    assert (on_paper.engine.name, on_paper.parallel.data) == ("sglang", 2)
    assert (chosen().engine.name, chosen().parallel.data) == ("vllm", 1)
    assert planned().request.pinned == {"engine": "vllm", "data_parallel": 1}
    assert started_on_nodes(Pins(engine="sglang", data_parallel=2)) == Pins(engine="sglang", data_parallel=2)


def test_nodes_that_were_asked_already_are_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = planned()
    monkeypatch.setattr(api, "nodes_to_plan", None)
    assert planned(report=PAIR) == first


def test_nodes_and_the_name_of_a_machine_are_not_planned_for_together() -> None:
    with pytest.raises(UsageError, match="leave hardware and here out"):
        api.plan("glm-4.6", nodes="auto", hardware="8xh100", known=KNOWN)


@pytest.mark.parametrize("pins", [Pins(engine="sglang"), Pins(engine="vllm", data_parallel=2)])
def test_what_is_pinned_and_would_not_be_started_is_said_to_be_a_plan_on_paper(pins: Pins) -> None:
    found = chosen(pins)
    assert notes(found) == ["nodes.not_started"]
    assert "one replica, with vLLM" in next(each.message for each in found.notes if each.code == "nodes.not_started")


def test_replicas_that_would_serve_more_are_told_of_with_the_way_to_them() -> None:
    found = chosen()
    assert notes(found) == ["nodes.replicas"]
    message = next(each.message for each in found.notes if each.code == "nodes.replicas")
    assert message.startswith("2 replicas with sglang, each inside a host, would serve about 5,673 tokens/s together")
    assert "one gateway (gateway.hosts)" in message


def test_where_no_host_holds_the_model_or_one_replica_was_asked_for_there_is_no_word_of_more() -> None:
    assert notes(chosen(Pins(format="bf16"))) == []
    assert notes(chosen(Pins(data_parallel=1))) == []


def test_no_advice_is_to_start_what_is_not_started_there() -> None:
    """GGUF files fit with llama.cpp alone, which runs on no cluster; what is advised repeats the cluster's address."""
    pins = Pins(format="gguf")
    alone = api.plan("glm-4.6", hardware=PAIR, known=KNOWN, pins=started_on_nodes(pins))
    assert any("engine is left free" in each.message for each in alone.advice)
    plan = planned(pins)
    assert not plan.feasible
    assert not any("left free" in each.message for each in plan.advice)
    here = [each.command for each in plan.advice if each.command and "--hardware" not in each.command]
    assert here
    assert all(each.startswith("autolaunch glm-4.6 --nodes auto") for each in here)


def test_what_vllm_does_not_load_and_another_engine_does_on_one_host_is_told_of() -> None:
    plan = planned(Pins(format="gguf"))
    assert plan.advice[0].kind == "engine"
    assert "with llamacpp fits on one host: run autolaunch there, without --nodes" in plan.advice[0].message
    assert not any("on one host" in each.message for each in planned(Pins(format="gguf", engine="vllm")).advice)


@pytest.mark.parametrize("more", ["", " --gpus 0,1,2,3,8,9,10,11 --format fp8"])
def test_the_plan_that_is_shown_is_the_one_that_a_launch_with_the_same_options_starts(
    capsys: pytest.CaptureFixture[str], more: str
) -> None:
    assert run(f"plan glm-4.6 --nodes auto --json{more}".split()) == 0
    shown = json.loads(capsys.readouterr().out)
    assert run(f"glm-4.6 --nodes auto --dry-run --json{more}".split()) == 0
    assert json.loads(capsys.readouterr().out) == shown
    assert (shown["chosen"]["engine"]["name"], shown["chosen"]["parallel"]["data"]) == ("vllm", 1)


def test_a_version_of_the_engine_of_nodes_needs_no_engine_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    version = chosen().engine.version
    for line in ("plan glm-4.6", "glm-4.6 --dry-run"):
        assert run(f"{line} --nodes auto --engine-version {version}".split()) == 0
        assert f"vllm {version}" in capsys.readouterr().out
