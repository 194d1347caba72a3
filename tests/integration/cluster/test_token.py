"""A real Ray cluster that asks for a token: the probe has the one of the environment, an engine's server has it too."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from autolaunch.cluster.ray_cluster import Cluster
from autolaunch.given_environment import engine_environment, kept_from_ranks, way_into_cluster
from selector.contract import Command
from selector.errors import ClusterError
from tests.fakes.ray_nodes import RayNodes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

TOKEN = "5e7" * 20
#: As the server on the cluster joins it (engines/shims/vllm_ray.py).
JOIN = """
import sys, ray
ray.init(address=sys.argv[1], namespace="x", log_to_driver=False)
print("nodes", len(ray.nodes()))
"""


@pytest.fixture(scope="module")
def guarded(ray_nodes: RayNodes) -> RayNodes:
    ray_nodes.begin(2, gpus=1, scenario=None, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    ray_nodes.wait()
    return ray_nodes


@pytest.fixture(autouse=True)
def ray_on_path(guarded: RayNodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join((str(guarded.programs), os.environ["PATH"])))
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray looks for a token there, too
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def joining(guarded: RayNodes, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    argv = (str(guarded.programs / "python"), "-c", JOIN, guarded.address)
    return subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_token_of_the_environment_opens_the_cluster_to_the_probe(guarded: RayNodes) -> None:
    with Cluster(guarded.address) as cluster:
        (ran,) = cluster.ran(("echo", "hello"), timeout_seconds=60)
        assert (ran.end.exit_code, ran.output.strip()) == (0, "hello")


def test_without_a_token_the_cluster_is_refused_in_a_sentence(
    guarded: RayNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(ClusterError) as told, Cluster(guarded.address):
        pass
    assert "token" in told.value.message
    assert TOKEN not in str(told.value)


def test_the_server_of_an_engine_has_the_token_and_hands_it_to_no_rank(guarded: RayNodes, tmp_path: Path) -> None:
    command = Command(argv=("x",), env={})
    bare = engine_environment(os.environ, command, guarded.programs, tmp_path)
    assert TOKEN not in bare.values(), "an engine on one host has no use for it"
    environment = bare | way_into_cluster(os.environ)
    environment |= kept_from_ranks(environment, command, tmp_path)
    assert "RAY_AUTH_TOKEN" in next(tmp_path.glob("*.json")).read_text()
    joined = joining(guarded, environment)
    assert (joined.returncode, joined.stdout) == (0, "nodes 1\n"), joined.stderr
    assert joining(guarded, bare).returncode != 0
