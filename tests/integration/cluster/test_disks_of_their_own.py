"""A node with a disk of its own is made ready through a real Ray, with a real uv: the environment and the weights.

The node is started in a mount namespace, where another folder lies in the place of this host's. Where the kernel makes
none for this user it is skipped; ``test_preparing.py`` has the same commands on one machine by turns.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from autolaunch.cluster.preparing import prepare_nodes
from autolaunch.cluster.ray_cluster import Cluster
from autolaunch.server import LaunchEvent
from engines import miniature
from engines.base import planned_package
from engines.environments import Environments, read_manifest
from selector.catalog import Catalog
from tests.fakes.clusters import cluster as machines
from tests.fakes.plans import candidate, plan
from tests.fakes.ray_nodes import RayNodes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

RAY = "ray[client]==2.60.0"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = tmp_path / "home"
    place.mkdir()
    return place


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """What lies in the place of ``home`` on the second node."""
    place = tmp_path / "other"
    place.mkdir()
    return place


@pytest.fixture
def nodes(ray_nodes: RayNodes, home: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNodes]:
    apart = (
        "unshare",
        "--mount" if os.geteuid() == 0 else "-Urm",
        "sh",
        "-c",
        'mount --bind "$0" "$1" && shift && "$@"',
    )
    tried = (*apart, str(other), str(home), "true")
    if shutil.which("unshare") is None or subprocess.run(tried, capture_output=True, check=False).returncode != 0:
        pytest.skip("a disk of its own is a mount namespace, which this kernel makes for others only")
    monkeypatch.setenv("PATH", os.pathsep.join((str(ray_nodes.programs), os.environ["PATH"])))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray_nodes.begin(2, gpus=1, scenario=None)
    ray_nodes.wait()
    path = os.pathsep.join((str(ray_nodes.folder / "n3" / "bin"), os.environ["PATH"]))  # uv is somewhere on it
    ray_nodes.begin(3, gpus=1, scenario=None, within=(*apart, str(other), str(home)), PATH=path)
    ray_nodes.wait()
    yield ray_nodes


def test_a_node_that_has_nothing_gets_the_environment_of_the_same_list_and_the_weights(
    nodes: RayNodes, home: Path, other: Path, catalog: Catalog
) -> None:
    chosen = candidate("mlx", "glm-tiny", devices=(0, 1))
    model = catalog.model("glm-tiny")
    facts, package = planned_package(catalog.engine("mlx"), chosen.engine)
    package = msgspec.structs.replace(package, requirements=(*package.requirements, RAY))
    environment = Environments(home / "engines").ensure(facts, package).directory
    first = miniature.checkpoint_of(model, chosen.checkpoint.repo)
    folder = miniature.generate(model, home / "models" / first.repo.rpartition("/")[2], first)
    heard: list[LaunchEvent] = []
    with Cluster(nodes.address) as cluster:
        members = sorted(cluster.members(), key=lambda each: each.address)
        report = machines(catalog, "1xh100", "1xh100", names=("a", "b"))
        hosts = tuple(
            msgspec.structs.replace(host, id=member.id, address=member.address)
            for host, member in zip(report.hosts, members, strict=True)
        )
        prepare_nodes(
            cluster,
            msgspec.structs.replace(plan(chosen, model.id), hardware=msgspec.structs.replace(report, hosts=hosts)),
            chosen,
            model=model,
            environment=environment,
            package=package,
            folder=folder,
            home=home,
            on_event=heard.append,
        )
    here, there = read_manifest(environment), read_manifest(other / "engines" / environment.name)
    assert here is not None
    assert there is not None
    assert (there.lock_sha256, there.packages) == (here.lock_sha256, here.packages)
    python = other / "engines" / environment.name / "bin" / "python"
    asked = subprocess.run(
        (python, "-c", "import ray; print(ray.__version__)"), capture_output=True, text=True, check=True
    )
    assert asked.stdout == "2.60.0\n"
    weights = {each.name: each.read_bytes() for each in folder.glob("*.safetensors")}
    assert weights == {each.name: each.read_bytes() for each in (other / "models" / folder.name).glob("*.safetensors")}
    assert heard[-1].message.startswith("environment and weights are on ")
    assert any("packages" in each.message for each in heard), "how far it is on the node is told here"
