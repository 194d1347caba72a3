"""A real Ray cluster of three nodes: asked, worked on, killed in part and as a whole, and nothing left on it.

The tests stand in the order of what they do to it: the last ones take it apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

import autolaunch
from autolaunch.cluster import Cluster, End, Output, probe_cluster
from autolaunch.cluster.placing import Place, cleared, group_of
from selector.errors import ClusterError, NoCluster
from selector.hardware import HardwareReport
from tests.fakes.nvml.scenarios import EIGHT_4090, h100
from tests.fakes.nvml.stub import Scenario
from tests.fakes.ray_nodes import ROOT, RayNodes, free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

TWO_H100 = Scenario(gpus=tuple(h100(place) for place in range(2)), numa=(0, 0))
FOUR_4090 = Scenario(gpus=EIGHT_4090.gpus[:4], numa=(0, 0, 0, 0), driver=b"535.183.06", cuda=12020)
#: Another release: its version is another, and its report has a key that this one does not know.
NEWER = f"""\
if [ "$1" = --version ]; then echo autolaunch 9.9.9; exit; fi
{sys.executable} -m autolaunch "$@" | sed 's/"schema": 1,/"schema": 1, "fabric": "x",/'"""
#: Takes every GPU and CPU of the cluster, says so, and keeps them until its input ends.
GREEDY = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
@ray.remote(num_gpus=1, num_cpus=0)
class Holder:
    def ping(self): return 1
@ray.remote(num_cpus=1)
class Cpu:
    def ping(self): return 1
total = ray.cluster_resources()
held = [Holder.remote() for _ in range(int(total["GPU"]))] + [Cpu.remote() for _ in range(int(total["CPU"]))]
ray.get([each.ping.remote() for each in held])
print(ray.available_resources().get("GPU", 0.0), ray.available_resources().get("CPU", 0.0), flush=True)
sys.stdin.read()
"""
SHIM = ROOT / "engines" / "shims" / "vllm_ray.py"
#: A node that lost its head goes on for a minute; what runs there ends when nobody asks for it (``UNHEARD_SECONDS``).
LEFT_SECONDS = 45
#: The engine's start as it takes its devices, with nothing of vLLM's after it; it keeps them until its input ends.
PLACED = """
import runpy, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
runpy.run_path(sys.argv[2])["placed"](ray, sys.argv[3].split(","), sys.argv[4], float(sys.argv[5]))
print("placed", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def nodes(ray_nodes: RayNodes) -> RayNodes:
    ray_nodes.begin(2, gpus=2, scenario=TWO_H100)
    ray_nodes.wait()  # the others look for their head once
    ray_nodes.begin(3, gpus=3, scenario=FOUR_4090)
    ray_nodes.wait()  # and two that start together want more time than Ray gives them, on a small machine
    ray_nodes.begin(4, gpus=1, scenario=TWO_H100, autolaunch=NEWER, CUDA_VISIBLE_DEVICES="1")
    ray_nodes.wait()
    return ray_nodes


@pytest.fixture(autouse=True)
def ray_on_path(ray_programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join((str(ray_programs), os.environ["PATH"])))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(autouse=True)
def nothing_left(ray_nodes: RayNodes) -> Iterator[None]:
    """After each of the tests no process of ours is on a node, and no driver of ours is here."""
    yield
    deadline = time.monotonic() + LEFT_SECONDS
    while (left := ours(ray_nodes)) and time.monotonic() < deadline:
        time.sleep(0.1)  # nobody is told of the end of another's process
    assert left == []


def ours(nodes: RayNodes) -> list[str]:
    marks = ("-m autolaunch", "bin/autolaunch ", "keeper", "sleep 3", " -I - ")  # not a path that has its name in it
    lines = []
    for each in nodes.processes():
        with contextlib.suppress(psutil.Error):  # it just ended
            lines.append(" ".join(each.cmdline()))
    return [line for line in lines if any(mark in line for mark in marks)]


def said(report: HardwareReport) -> list[str]:
    return [f"{each.outcome}: {each.reason}" for each in report.findings if each.probe == "cluster"]


def by_address(report: HardwareReport) -> dict[str | None, list[str]]:
    return {
        node.address: [each.name for each in report.accelerators if each.node == node.index] for node in report.hosts
    }


# --- asked ------------------------------------------------------------------------------------------


def test_three_nodes_are_found_with_the_devices_that_each_of_them_has(nodes: RayNodes) -> None:
    report = autolaunch.probe(nodes.address)
    assert by_address(report) == {
        "127.0.0.2": ["NVIDIA H100 80GB HBM3"] * 2,
        "127.0.0.3": ["NVIDIA GeForce RTX 4090"] * 3,
        "127.0.0.4": ["NVIDIA H100 80GB HBM3"],  # CUDA_VISIBLE_DEVICES of the node, not the one that Ray sets
    }
    assert [each.index for each in report.accelerators] == list(range(6))
    assert report.nodes == 3
    assert report.drivers[0].version == "535.183.06"
    findings = said(report)
    assert any(
        "127.0.0.3" in each and "Ray counts 3 GPUs and the probe found 4: 1 left out" in each for each in findings
    )
    assert any("127.0.0.4" in each and "autolaunch 9.9.9, 0.1.0 here" in each for each in findings)
    assert any("127.0.0.4" in each and "left out: fabric" in each for each in findings)
    assert any("127.0.0.3" in each and "driver is 535.183.06" in each for each in findings)
    assert not any(each.startswith("failed") for each in findings)


def test_from_outside_the_same_cluster_is_found(nodes: RayNodes) -> None:
    try:
        through_client = autolaunch.probe(nodes.client_address)
    except ClusterError as error:
        # Ray gives the process that it starts for a client 30 s, which a busy machine may not do.
        assert "Initialization failure from server" in error.message  # another is no reason to try again
        through_client = autolaunch.probe(nodes.client_address)
    joined = autolaunch.probe(nodes.address)
    assert by_address(through_client) == by_address(joined)
    assert said(through_client) == said(joined)


def test_auto_is_the_cluster_that_the_environment_names(nodes: RayNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    with Cluster("auto") as cluster:
        assert cluster.address == nodes.address
        members = cluster.members()
    assert [(each.address, each.gpus, each.alive) for each in members] == [
        ("127.0.0.2", 2.0, True),
        ("127.0.0.3", 3.0, True),
        ("127.0.0.4", 1.0, True),
    ]
    assert [each.is_head for each in members] == [True, False, False]
    assert sum(each.is_here for each in members) == 1


def test_the_command_line_shows_and_plans_for_the_cluster(nodes: RayNodes) -> None:
    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = (sys.executable, "-m", "autolaunch", *arguments, "--nodes", nodes.address)
        environ = dict(os.environ) | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
        return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=100, check=False)

    probed = ran("probe")
    assert probed.returncode == 0, probed.stderr
    assert probed.stderr == ""
    assert "3 × NVIDIA GeForce RTX 4090" in probed.stdout
    assert max(map(len, probed.stdout.splitlines())) <= 80
    paper = ran("plan", "glm-tiny", "--engine", "transformers", "--json")
    assert paper.returncode == 0, paper.stderr
    assert json.loads(paper.stdout)["hardware"]["nodes"] == 3
    assert "nodes.not_started" in {each["code"] for each in json.loads(paper.stdout)["chosen"]["notes"]}
    planned = ran("plan", "glm-tiny", "--json")
    assert planned.returncode == 3  # as the launch: a miniature's weights are nothing for vLLM on GPUs
    assert "fits on one host" in json.loads(planned.stdout)["advice"][0]["message"]
    launched = ran("glm-tiny")
    assert launched.returncode == 3
    assert "vLLM" in launched.stderr
    assert "does not run fp32" in launched.stderr


def test_a_cluster_whose_gpus_and_cpus_are_all_taken_answers_too(nodes: RayNodes) -> None:
    argv = (str(nodes.programs / "python"), "-c", GREEDY, nodes.address)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as greedy:
        try:
            assert greedy.stdout is not None
            assert greedy.stdout.readline() == "0.0 0.0\n"
            report = autolaunch.probe(nodes.address)
            to_plan = probe_cluster(nodes.address, given_out=True)
        finally:
            greedy.kill()
    assert not any(each.processes for each in report.accelerators)
    assert [each.memory_free_bytes for each in to_plan.accelerators] == [0] * 6, "others have them"
    assert {address: len(devices) for address, devices in by_address(report).items()} == {
        "127.0.0.2": 2,
        "127.0.0.3": 3,
        "127.0.0.4": 1,
    }


def test_nothing_of_ours_is_in_rays_books_afterwards(nodes: RayNodes) -> None:
    autolaunch.probe(nodes.address)
    deadline = time.monotonic() + 20
    while ((found := nodes.books())["actors"] or found["jobs"]) and time.monotonic() < deadline:
        pass
    assert (found["actors"], found["jobs"]) == ([], [])
    assert found["seen"] > 0


def test_two_engines_that_want_the_same_devices_do_not_share_them_and_the_second_says_who_lacks_what(
    nodes: RayNodes,
) -> None:
    """None of this host's, of which a lease would tell."""

    def placed(ranks: str, mark: str, seconds: float) -> subprocess.Popen[str]:
        argv = ("-c", PLACED, nodes.address, str(SHIM), ranks, group_of(mark), str(seconds))
        return subprocess.Popen(
            (str(nodes.programs / "python"), *argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    far = ("127.0.0.3", "127.0.0.3", "127.0.0.4")
    place = Place(address=nodes.address, ray_version="", python_version="", here="", node="", ranks=far)
    with placed(",".join(far), "a" * 32, 60) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "placed\n"
            with placed("127.0.0.3,127.0.0.4", "b" * 32, 2) as second:
                _, error = second.communicate(timeout=60)
            lacking = "127.0.0.4 has 0 of 1"
            assert error.splitlines()[-1] == f"autolaunch: Ray has not the devices for this engine: {lacking}"
            books = nodes.books()
            assert [each["nodes"] for each in books["groups"]] == [list(far)]
            assert books["free"] == {"127.0.0.2": 2.0, "127.0.0.3": 1.0, "127.0.0.4": 0.0}
            left = cleared(place, group_of("a" * 32), timeout_seconds=1)
            assert left is not None
            assert "its placement group autolaunch-aaaaaaaaaaaaaaaa is there still" in left
        finally:
            first.kill()
    assert cleared(place, group_of("a" * 32)) is None
    assert nodes.books()["free"] == {"127.0.0.2": 2.0, "127.0.0.3": 3.0, "127.0.0.4": 1.0}


# --- worked on --------------------------------------------------------------------------------------


def test_what_is_run_is_heard_line_by_line_from_every_node(nodes: RayNodes) -> None:
    code = "import os, sys; print(os.environ['HOME'], os.environ['OURS']); print('x', file=sys.stderr); sys.exit(3)"
    argv = (str(nodes.programs / "python"), "-c", code)
    with Cluster(nodes.address) as cluster:
        heard = list(cluster.run(argv, timeout_seconds=30, environment={"OURS": "1"}))
    out = {each.member.address: each.text for each in heard if isinstance(each, Output) and each.stream == "stdout"}
    assert out == {f"127.0.0.{number}": f"{nodes.folder / f'n{number}'} 1" for number in (2, 3, 4)}
    assert [each.text for each in heard if isinstance(each, Output) and each.stream == "stderr"] == ["x"] * 3
    assert [(each.outcome, each.exit_code) for each in heard if isinstance(each, End)] == [("exited", 3)] * 3


def test_what_is_run_may_read_a_text_that_is_longer_than_any_variable(nodes: RayNodes) -> None:
    code = "import sys; told = sys.stdin.read(); print(len(told), told[-3:])"
    with Cluster(nodes.address) as cluster:
        found = cluster.ran((sys.executable, "-c", code), timeout_seconds=60, input_text="abé" * 300_000)
    assert [each.output for each in found] == ["900000 abé"] * 3


def test_several_threads_may_ask_at_once_and_one_may_stop(nodes: RayNodes) -> None:
    stop = threading.Event()
    ends: list[str] = []
    with Cluster(nodes.address) as cluster:

        def sleep() -> None:
            ends.extend(each.end.outcome for each in cluster.ran(("sleep", "301"), timeout_seconds=60, cancelled=stop))

        thread = threading.Thread(target=sleep)
        thread.start()
        assert {each.output for each in cluster.ran(("echo", "a b"), timeout_seconds=30)} == {"a b"}
        assert thread.is_alive()
        began = time.monotonic()
        stop.set()
        thread.join(30)
        assert time.monotonic() - began < 10
    assert ends == ["cancelled"] * 3


def test_an_iterator_that_is_left_ends_what_runs(nodes: RayNodes) -> None:
    with Cluster(nodes.address) as cluster:
        running = cluster.run(("sh", "-c", "echo begun; sleep 302"), timeout_seconds=60)
        assert isinstance(next(running), Output)
        running.close()
        assert ours(nodes) == []


def test_a_node_that_is_not_done_in_time_is_ended_there_and_the_others_are_not(nodes: RayNodes) -> None:
    with Cluster(nodes.address) as cluster:
        script = "case $HOME in */n3) sleep 303;; *) echo done;; esac"
        ran = cluster.ran(("sh", "-c", script), timeout_seconds=4)
    assert [(each.member.address, each.end.outcome, each.output) for each in ran] == [
        ("127.0.0.2", "exited", "done"),
        ("127.0.0.3", "timed_out", ""),
        ("127.0.0.4", "exited", "done"),
    ]


def test_nothing_is_left_on_the_nodes_when_who_asked_is_killed(nodes: RayNodes) -> None:
    code = f"""
from autolaunch.cluster import Cluster
with Cluster({nodes.address!r}) as cluster:
    for each in cluster.run(("sh", "-c", "echo begun; setsid sleep 304"), timeout_seconds=60):
        print(each.text, flush=True)
"""
    environ = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen((sys.executable, "-c", code), env=environ, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        assert [asking.stdout.readline() for _ in range(3)] == ["begun\n"] * 3
        deadline = time.monotonic() + 10
        while ours(nodes).count("sleep 304") < 3 and time.monotonic() < deadline:
            time.sleep(0.05)  # between its line and its sleep a shell starts two programs
        found = ours(nodes).count("sleep 304")
        asking.kill()
        assert found == 3
    # The fixture holds that they end.


# --- refused ----------------------------------------------------------------------------------------


def test_nobody_at_the_address_is_told_at_once(nodes: RayNodes) -> None:
    for address in (f"127.0.0.1:{free_port()}", f"ray://127.0.0.1:{free_port()}"):
        began = time.monotonic()
        with pytest.raises(NoCluster, match=address) as told:
            autolaunch.probe(address)
        assert "ray start --head" in (told.value.hint or "")
        assert time.monotonic() - began < 10


def test_a_stranger_at_the_address_is_an_error_and_no_wait_without_end(nodes: RayNodes) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as stranger:
        began = time.monotonic()
        with pytest.raises(ClusterError):
            Cluster(f"127.0.0.1:{stranger.getsockname()[1]}", join_seconds=8).__enter__()
        assert time.monotonic() - began < 40
        with pytest.raises(NoCluster, match="something listens there that is no head of a cluster, or hangs"):
            autolaunch.probe(f"127.0.0.1:{stranger.getsockname()[1]}")


# --- taken apart ------------------------------------------------------------------------------------


def test_a_node_that_says_nothing_is_given_up(nodes: RayNodes) -> None:
    with Cluster(nodes.address) as cluster:
        members = cluster.members()
        (raylet,) = nodes.of_node(4, "raylet")
        raylet.send_signal(signal.SIGSTOP)
        try:
            ran = cluster.ran(("echo", "here"), on=members, timeout_seconds=30, silence_seconds=10)
        finally:
            raylet.send_signal(signal.SIGCONT)
    assert [each.end.outcome for each in ran] == ["exited", "exited", "silent"]


def test_a_node_that_was_killed_is_a_finding(nodes: RayNodes) -> None:
    with Cluster(nodes.address) as cluster:
        nodes.kill(nodes.started(4))
        deadline = time.monotonic() + 60
        while all(each.alive for each in cluster.members()):
            assert time.monotonic() < deadline, "Ray does not notice"
            time.sleep(0.5)  # Ray asks a node every half second
    report = autolaunch.probe(nodes.address)
    assert list(by_address(report)) == ["127.0.0.2", "127.0.0.3"]
    (dead,) = [each for each in said(report) if each.startswith("failed")]
    assert "127.0.0.4" in dead
    assert "is dead" in dead


def test_a_node_that_dies_while_it_works_is_lost_and_the_others_go_on(nodes: RayNodes) -> None:
    nodes.begin(5, gpus=0, scenario=None, autolaunch="")
    nodes.wait()
    report = autolaunch.probe(nodes.address)
    assert any("127.0.0.5" in each and "has no autolaunch" in each for each in said(report))
    ends: dict[str, str] = {}
    with Cluster(nodes.address) as cluster:
        script = "echo begun; case $HOME in */n5) sleep 305;; *) sleep 3; echo done;; esac"
        for each in cluster.run(("sh", "-c", script), timeout_seconds=60):
            if isinstance(each, End):
                ends[each.member.address] = each.outcome
            elif each.member.address == "127.0.0.5":
                nodes.kill(nodes.started(5))
    assert ends["127.0.0.2"] == ends["127.0.0.3"] == "exited"
    assert ends["127.0.0.5"] in ("lost", "silent")


def test_a_cluster_that_goes_while_it_is_asked_is_an_error_in_bounded_time(nodes: RayNodes) -> None:
    with pytest.raises(ClusterError) as told, Cluster(nodes.address) as cluster:
        began = time.monotonic()
        for each in cluster.run(("sh", "-c", "echo begun; sleep 306"), timeout_seconds=100):
            if isinstance(each, Output) and each.member.is_head:
                nodes.kill(nodes.started(2))
                began = time.monotonic()
    assert time.monotonic() - began < 90
    assert told.value.exit_code == 4
    assert msgspec.json.encode(told.value.message)
    with pytest.raises(ClusterError):
        autolaunch.probe(nodes.address)
