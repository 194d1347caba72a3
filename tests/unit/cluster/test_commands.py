"""``--nodes`` of probe, plan and a launch; and a cluster as a person reads it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

import autolaunch
from autolaunch import api, cluster
from autolaunch.cli.app import run
from autolaunch.cli.render_cluster import render_cluster
from autolaunch.cli.terminal import Terminal
from autolaunch.cluster.answers import Answer
from autolaunch.cluster.merging import merged
from selector.errors import NoCluster, UsageError
from selector.hardware import HardwareReport, NetworkPort
from tests.fakes.members import VERSION, answer, member, recorded

NARROW = Terminal(width_columns=80, color=False, unicode=True)


def many(count: int) -> HardwareReport:
    return merged([answer(number) for number in range(count)], ray="Ray 2.60.0 at 10.0.0.1:6379", version=VERSION)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A cluster of two, and the addresses that it was asked at."""
    seen: list[str] = []

    def probe(nodes: str, **_: Any) -> HardwareReport:
        seen.append(nodes)
        return many(2)

    monkeypatch.setattr(cluster, "probe_cluster", probe)
    return seen


def shown(report: HardwareReport, *, verbose: bool = False) -> str:
    import click

    return click.unstyle(render_cluster(report, NARROW, verbose=verbose))


def test_a_hundred_equal_nodes_are_read_on_one_screen() -> None:
    lines = shown(many(100)).splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    assert "100 nodes: gpu-0, gpu-1 … gpu-99" in lines
    assert any("8 × NVIDIA H100 80GB HBM3 (79.6 GiB each) in each, numbers 0-799" in line for line in lines)


def test_unequal_nodes_have_a_section_each_and_what_is_wrong_comes_after() -> None:
    port = NetworkPort(kind="infiniband", device="mlx5_0:1", bandwidth_bytes_per_second=50_000_000_000)
    other = NetworkPort(kind="ethernet", interface="eth0", bandwidth_bytes_per_second=12_500_000_000)
    wired = msgspec.structs.replace(recorded("8xh100"), network=(port, port, other))
    answers = (
        answer(0, wired),
        answer(1, "4xa100-busy", version="0.2.0"),
        answer(2, "cpu-only"),
        Answer(member=member(3, alive=False), trouble="is dead"),
    )
    text = shown(merged(answers, ray="Ray 2.60.0", version=VERSION))
    assert "gpu-0 (10.0.0.1)\n  GPUs          8 × NVIDIA H100" in text
    assert "gpu-1 (10.0.0.2)\n  GPUs          4 × NVIDIA A100" in text
    assert "network       2 × InfiniBand, 400 Gbit/s; Ethernet, 100 Gbit/s" in text
    assert "network       all nodes have Ethernet, 10 Gbit/s in common, and some have more" in text
    assert "joined by     Ray 2.60.0" in text
    assert "3 processes on them" in text
    assert text.index("✗ gpu-3: is dead") > text.index("gpu-1 (10.0.0.2)")
    assert text.index("✗ gpu-3") < text.index("≈ gpu-1: autolaunch 0.2.0, 0.1.0 here") < text.index("– gpu-2: no GPU")


def test_a_cluster_of_one_node_is_joined_by_nothing() -> None:
    assert "all nodes" not in shown(many(1))


def test_verbose_shows_each_node_as_a_machine() -> None:
    text = shown(many(2), verbose=True)
    assert text.count("Host\n") == 2
    assert "network       all nodes are joined by InfiniBand, 400 Gbit/s" in text
    assert text.count("Asked\n") == 1  # what was asked of all
    assert "── gpu-1 (10.0.0.2)" in text
    assert "15 " in text.partition("── gpu-1")[2]  # its devices keep the cluster's numbers


def test_a_probe_of_nodes_is_the_clusters_report(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["probe", "--nodes", "auto", "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=HardwareReport)
    assert report == many(2) == autolaunch.probe("auto")
    assert run(["probe", "--nodes", "head:6379"]) == 0
    assert "2 nodes: gpu-0 (10.0.0.1), gpu-1 (10.0.0.2)" in capsys.readouterr().out
    assert two == ["auto", "auto", "head:6379"]


def test_a_plan_of_nodes_is_headed_by_the_cluster(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "glm-4.6", "--nodes", "auto"]) == 0
    assert capsys.readouterr().out.startswith("glm-4.6 on 2 nodes: 16 × NVIDIA H100 80GB HBM3")
    assert run(["plan", "glm-4.6", "--nodes", "auto", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in document["hardware"]["hosts"]] == ["gpu-0", "gpu-1"]
    assert autolaunch.plan("glm-4.6", nodes="auto").hardware.nodes == 2


def test_the_nodes_are_asked_once_also_where_gpus_are_named(two: list[str]) -> None:
    assert run(["plan", "glm-4.6", "--nodes", "auto", "--gpus", "8,9,10,11,12,13,14,15", "--json"]) == 0
    assert two == ["auto"]


def test_what_a_cluster_lacks_is_said_above_its_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = merged([answer(0), Answer(member=member(1), trouble="has no autolaunch")], version=VERSION)
    monkeypatch.setattr(cluster, "probe_cluster", lambda _, **__: report)
    assert run(["plan", "glm-4.6", "--nodes", "auto"]) == 0
    assert "\n  gpu-1: has no autolaunch\n" in capsys.readouterr().out


def test_a_recorded_cluster_is_planned_for_as_the_cluster_itself(
    two: list[str], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.json"
    path.write_text(many(2).to_json())
    started = ["--engine", "vllm", "--data-parallel", "1"]  # what is started over nodes
    assert run(["plan", "glm-4.6", "--hardware", str(path), *started, "--json"]) == 0
    of_file = json.loads(capsys.readouterr().out)
    assert run(["plan", "glm-4.6", "--nodes", "auto", "--json"]) == 0
    itself = json.loads(capsys.readouterr().out)
    for document in (of_file, itself):  # that replicas would serve more is said where they are not started
        document["chosen"]["notes"] = [each for each in document["chosen"]["notes"] if each["code"] != "nodes.replicas"]
    assert itself == of_file


@pytest.mark.parametrize(
    "line",
    [
        "plan glm-4.6 --nodes auto --hardware 8xh100",
        "glm-4.6 --nodes auto --hardware 8xh100 --dry-run",
        "glm-4.6 --nodes auto --data-parallel 2",
        "glm-4.6 --nodes auto --rehearse",
        "glm-4.6 --nodes auto --lock glm.lock",
        "probe --nodes nonsense",
        "plan glm-4.6 --nodes http://head:8265",
        "probe --nodes",
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    assert capsys.readouterr().err.startswith("autolaunch: ")


def test_hardware_and_nodes_contradict_each_other_in_python_too() -> None:
    with pytest.raises(UsageError, match="leave hardware and here out"):
        api.plan("glm-4.6", hardware="8xh100", nodes="auto")
    with pytest.raises(UsageError, match="leave hardware and here out"):
        api.plan("glm-4.6", nodes="auto", here=True)


def test_a_cluster_that_is_not_there_exits_4_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(_: str) -> HardwareReport:
        raise NoCluster("no Ray cluster runs on this host", hint="ray start --head")

    monkeypatch.setattr(cluster, "probe_cluster", none)
    assert run(["probe", "--nodes", "auto", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "probe.no_cluster"


@pytest.mark.parametrize("pins", ["", "--pipeline-parallel 2 --tensor-parallel 8", "--engine vllm"])
def test_a_launch_over_nodes_is_one_engine_of_those_that_are_started_there(
    two: list[str], pins: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["glm-4.6", "--nodes", "auto", *pins.split(), "--dry-run", "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out)["chosen"]
    assert (chosen["engine"]["name"], chosen["parallel"]["data"]) == ("vllm", 1)
