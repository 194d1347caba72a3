"""``autolaunch serve`` with deployments on the nodes of a real Ray cluster of three, through all that ends them.

The daemon is a process as users have it, and the engine is vLLM, whose ranks are processes of its CPU build in the
places of GPUs (``tests/fakes/vllm_on_nodes.py`` says how). One story for the price of two starts of the engine and the
beginning of a third, each of which takes a machine of two cores over a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from autolaunch.chat import ask
from engines.miniature import generate
from selector.catalog import Catalog
from tests.fakes import ray_vllm
from tests.fakes.ray_nodes import RayNodes, ranks
from tests.fakes.served import ROOT, Served

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

START_SECONDS = 600.0
#: A rank was on the head, so that its end is heard of at once, by whoever talks to it.
NOTICED_SECONDS = 30.0
#: What Ray's nodes take to end without a head, and their work with them: its minute (RAY_gcs_rpc_server_reconnect_…).
ENDED_SECONDS = 90.0


@pytest.fixture
def served(vllm: Path, tmp_path: Path, nodes: RayNodes) -> Iterator[Served]:
    """A daemon of two deployments that want two GPUs each, where there are three; the second of them by ``auto``."""
    path = os.pathsep.join((str(vllm / "bin"), os.environ["PATH"]))
    # By that `auto` finds this cluster, whatever others run on the machine.
    one = Served(tmp_path, real=True, environ={"PATH": path, "RAY_ADDRESS": nodes.address})
    ray_vllm.profile(one.home)
    model = generate(Catalog().model("glm-tiny"), tmp_path / "model")
    one.configure(*(entry(name, where, vllm, model) for name, where in (("a", nodes.address), ("b", "auto"))))
    try:
        yield one
    finally:
        one.close()


def entry(name: str, nodes: str, engine: Path, model: Path) -> str:
    pins = {"pipeline_parallel": 2, "eager": True, "max_sequences": 4}
    keys: dict[str, object] = {
        "model": ray_vllm.MODEL,
        "name": name,
        "nodes": nodes,
        "engine_path": str(engine),
        "model_path": str(model),
        "context_tokens": 2048,
        **{f"pinned.{key}": value for key, value in pins.items()},
    }
    return "[[deployments]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


def test_a_daemon_serves_over_nodes_through_its_own_death_and_that_of_the_head(served: Served, nodes: RayNodes) -> None:
    served.start()
    up, books = serves(served, nodes)
    waits = "a" if up == "b" else "b"
    # The other one is told who has them, and shares none of them.
    served.until(lambda: waiting(served, waits, "devices held", "other work of the Ray cluster"), 120)
    assert not served.told("launch.starting", waits)

    old = books["groups"][0]["name"]
    kill_daemon_and_guards(served)
    served.start()
    up, books = serves(served, nodes)
    waits = "a" if up == "b" else "b"
    assert books["groups"][0]["name"] != old, "nothing of the earlier daemon's engine is left"
    assert not served.told("launch.starting", waits)

    begun = len(served.told("launch.starting"))
    nodes.kill(nodes.started(2))
    served.until(lambda: served.told("engine.failed", up), NOTICED_SECONDS)
    assert served.told("engine.failed", up)[-1]["reason"] in ("worker died", "communication")
    gone = f"no Ray cluster answers at {nodes.address}"
    served.until(lambda: waiting(served, up, "no cluster", gone), 60)
    command = f"`ray start --head --port={nodes.port}` there begins one"
    assert command in waiting(served, up, "no cluster", gone)[-1]["hint"]
    served.until(lambda: not of_engine(served, nodes), ENDED_SECONDS)
    assert len(served.told("launch.starting")) == begun, "an engine was started where no cluster is"
    assert not served.told("deployment.failed"), "it waits for the cluster, and is not given up on"

    nodes.close()
    back = RayNodes(nodes.programs, nodes.library, port=nodes.port)
    try:
        back.begin_alike(1)
        retry(served, up)
        served.until(lambda: waiting(served, up, "too few nodes", "on the 1 node that the cluster has now"), 120)
        back.begin_alike(1, first=3)
        retry(served, up)
        served.until(lambda: len(served.told("launch.starting")) > begun, 120)
        served.until(lambda: back.books()["groups"], 120)
        assert served.stop(60) == 0
        back.cleared(30)
    finally:
        back.close()


def serves(served: Served, nodes: RayNodes) -> tuple[str, dict[str, Any]]:
    """Until one of them does: which, and Ray's books, where it has what was planned and nobody else has anything."""
    served.until(lambda: served.told("engine.ready"), START_SECONDS)
    name = str(served.told("engine.ready")[0]["deployment"])
    base_url = f"http://127.0.0.1:{served.gateway_port}/v1"
    assert ask(base_url, name, "hello", max_tokens=4).completion_tokens == 4
    books = nodes.books()
    (group,) = books["groups"]
    assert group["nodes"] == ["127.0.0.2", "127.0.0.3"]
    assert ranks(books) == group["nodes"]
    assert books["free"] == {"127.0.0.2": 0.0, "127.0.0.3": 0.0, "127.0.0.4": 1.0}
    return name, books


def waiting(served: Served, name: str, reason: str, words: str) -> list[dict[str, Any]]:
    """What was said of why the deployment waits."""
    told = served.told("deployment.waits", name)
    return [each for each in told if each["reason"] == reason and words in each["message"]]


def kill_daemon_and_guards(served: Served) -> None:
    """All at once: none of them gets to end anything."""
    guards = [each for each in served.processes() if "guard.py" in command_of(each)]
    assert guards
    for each in guards:
        each.suspend()
    served.kill()
    for each in guards:
        each.kill()


def of_engine(served: Served, nodes: RayNodes) -> list[int]:
    """What runs of an engine: here, and as ranks on any node."""
    return [
        *(each.pid for each in served.engines()),
        *(each.pid for each in nodes.processes() if "RayWorkerProc" in command_of(each)),
    ]


def command_of(process: psutil.Process) -> str:
    """``""`` of one that has ended since it was found."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def retry(served: Served, name: str) -> None:
    done = subprocess.run(
        (sys.executable, "-m", "autolaunch", "retry", name),
        env=served.environ,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
