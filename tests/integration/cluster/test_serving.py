"""A real Ray cluster of three nodes and vLLM over two of them: served, a node killed, served by what is left, ended.

The ranks are processes of vLLM's CPU build in the places of GPUs (``tests/fakes/vllm_on_nodes.py`` says how); all else
is what it is on GPUs: the probe, the plan, the placement group, the executor, what is noticed and what is done of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import autolaunch
from autolaunch.chat import ask
from autolaunch.given_environment import kept_from_ranks
from engines.miniature import generate
from selector.catalog import Catalog
from selector.contract import Command
from selector.errors import NoFeasiblePlan
from selector.request import Pins
from tests.fakes import ray_vllm
from tests.fakes.ray_nodes import RayNodes, ranks

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

#: A start of two ranks takes a minute and a half of a machine of two cores that does nothing else.
START_SECONDS = 600.0
#: A node that died is known to Ray after the five health checks of these clusters, half a second each.
NOTICED_SECONDS = 30.0
#: What vLLM's own code would give each rank of the environment that it is run in.
HANDED_ON = """
import json
from vllm.v1.executor.ray_env_utils import get_driver_env_vars
from vllm.v1.executor.ray_utils import WORKER_SPECIFIC_ENV_VARS
print(json.dumps(sorted(get_driver_env_vars(worker_specific_vars=WORKER_SPECIFIC_ENV_VARS))))
"""


@pytest.fixture
def home(vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "home"
    ray_vllm.profile(place)
    monkeypatch.setenv("AUTOLAUNCH_HOME", str(place))
    monkeypatch.setenv("PATH", os.pathsep.join((str(vllm / "bin"), os.environ["PATH"])))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return place


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)  # a phase is looked at, and not waited for


def test_two_nodes_serve_one_is_killed_and_those_that_are_left_serve_on(
    nodes: RayNodes, vllm: Path, home: Path, tmp_path: Path
) -> None:
    pins = Pins(engine="vllm", pipeline_parallel=2, data_parallel=1, eager=True, max_sequences=4)
    plan = autolaunch.plan(
        ray_vllm.MODEL, nodes=nodes.address, pins=pins, context_tokens=2048, engine_path=vllm, learned=False
    )
    assert plan.chosen is not None, plan.explain()
    assert plan.chosen.parallel.nodes == 2
    model = generate(Catalog().model("glm-tiny"), tmp_path / "model")
    with autolaunch.launch(
        plan, nodes=nodes.address, engine_path=vllm, model_path=model, keyless=True, home=home
    ) as server:
        server.wait_ready(timeout=START_SECONDS)
        first = nodes.books()
        (group,) = first["groups"]
        planned = [str(each.address) for each in plan.hardware.hosts if each.index in (0, 1)]
        assert group["nodes"] == planned
        assert ranks(first) == sorted(planned)
        assert [first["free"][each] for each in planned] == [0.0, 0.0]
        assert ask(server.base_url, ray_vllm.MODEL, "hello", max_tokens=4).completion_tokens == 4

        # A second launch of the same is told who has the devices: one node is left, and it takes two.
        again = autolaunch.plan(ray_vllm.MODEL, nodes=nodes.address, pins=pins, context_tokens=2048, engine_path=vllm)
        assert again.chosen is None
        with pytest.raises(NoFeasiblePlan):
            autolaunch.launch(again, nodes=nodes.address, engine_path=vllm, model_path=model, keyless=True, home=home)

        killed = next(each for each in planned if each != nodes.host)
        nodes.kill(nodes.started(int(killed.rpartition(".")[2])))
        up = ("ready", "degraded")  # what does not answer for a moment is not taken for dead
        until(lambda: server.phase not in up, NOTICED_SECONDS, "the node's death was not noticed")
        until(lambda: server.phase in ("ready", "failed"), START_SECONDS, "what is left does not serve")
        assert server.phase == "ready", server.tail()
        after = nodes.books()
        (second,) = after["groups"]
        assert second["name"] != group["name"]
        assert killed not in second["nodes"]
        assert len(ranks(after)) == 2
        assert ask(server.base_url, ray_vllm.MODEL, "hello", max_tokens=4).completion_tokens == 4
    nodes.cleared(30)
    logs = "".join(each.read_text(errors="replace") for each in (home / "logs").glob("vllm-*.log"))
    assert "ip=127.0.0." in logs, "the ranks' lines come with their nodes' addresses"


def test_vllm_hands_neither_the_key_nor_the_heads_paths_to_its_ranks(vllm: Path, tmp_path: Path) -> None:
    environment = {
        "PATH": os.defpath,
        "HOME": str(tmp_path),
        "VLLM_API_KEY": "k" * 64,
        "HF_HOME": str(tmp_path),
        "MY_TOKEN": "t",
        "NCCL_DEBUG": "INFO",
    }
    command = Command(argv=("x",), env={"GLOO_SOCKET_IFNAME": "lo"})
    environment |= command.env
    environment |= kept_from_ranks(environment, command, tmp_path)
    done = subprocess.run(
        (str(vllm / "bin" / "python"), "-c", HANDED_ON),
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    handed_on = set(json.loads(done.stdout.splitlines()[-1]))
    assert {"NCCL_DEBUG", "GLOO_SOCKET_IFNAME"} <= handed_on
    assert not handed_on & {"VLLM_API_KEY", "VLLM_CONFIG_ROOT", "HF_HOME", "HOME", "PATH", "MY_TOKEN"}
