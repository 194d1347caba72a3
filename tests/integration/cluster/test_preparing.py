"""Nodes are made ready by the commands that run there, each with files of its own at the same paths.

The commands, the miniature, the hub and its client are real, uv is a fake (``tests/fakes/uv.py``), and one machine is
three by turns (``tests/fakes/nodes_by_turns.py``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from autolaunch.cluster.preparing import prepare_nodes
from autolaunch.hubs.obtaining import Wanted, obtain
from autolaunch.server import LaunchEvent
from engines import miniature
from engines.base import planned_package
from engines.environments import Environments, read_manifest
from selector.catalog import Catalog
from selector.contract import Candidate
from selector.errors import AutolaunchError, DownloadError, EngineInstallError, HubRefuses, NotOnHub
from selector.facts import ModelFacts
from tests.fakes.clusters import cluster as machines
from tests.fakes.hub import Hub, checkpoint, serving
from tests.fakes.members import member
from tests.fakes.nodes_by_turns import ByTurns
from tests.fakes.plans import candidate, plan
from tests.fakes.uv import Uv

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

CATALOG = Catalog()
REPO = "zai-org/GLM-4.6-FP8"
RAY = "ray[client]==2.60.0"
B, C = "gpu-1", "gpu-2"


class Hosts:
    """This host, with a miniature and an environment, and two nodes that have nothing."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.place = folder / "data"
        self.home = self.place / "home"
        self.home.mkdir(parents=True)
        self.uv = Uv(folder)
        base = {"PATH": os.defpath, "HOME": str(self.place), "AUTOLAUNCH_SHARED": "", **self.uv.environ(), **environ}
        self.cluster = ByTurns([member(number, is_here=number == 0) for number in range(3)], self.place, base)
        self.candidate: Candidate = candidate("mlx", "glm-tiny", devices=(0, 1, 2))
        self.model: ModelFacts = CATALOG.model("glm-tiny")
        facts, package = planned_package(CATALOG.engine("mlx"), self.candidate.engine)
        self.package = msgspec.structs.replace(package, requirements=(*package.requirements, RAY), bytes_on_disk=1000)
        environments = Environments(self.home / "engines")
        self.environment = environments.ensure(facts, self.package, environ=self.uv.environ()).directory
        first = miniature.checkpoint_of(self.model, self.candidate.checkpoint.repo)
        self.folder = miniature.generate(self.model, self.home / "models" / first.repo.rpartition("/")[2], first)
        report = machines(CATALOG, "1xh100", "1xh100", "1xh100", names=("gpu-0", B, C))
        hosts = tuple(msgspec.structs.replace(each, id=member(each.index).id) for each in report.hosts)
        self.report = msgspec.structs.replace(report, hosts=hosts)
        self.events: list[LaunchEvent] = []

    def prepare(self) -> list[tuple[str, str]]:
        """What was run on which node."""
        self.cluster.ran_there.clear()
        prepare_nodes(
            self.cluster,
            msgspec.structs.replace(plan(self.candidate, self.model.id), hardware=self.report),
            self.candidate,
            model=self.model,
            environment=self.environment,
            package=self.package,
            folder=self.folder,
            home=self.home,
            on_event=self.events.append,
        )
        return self.cluster.ran_there

    def refused(self, kind: type[AutolaunchError]) -> AutolaunchError:
        with pytest.raises(kind) as caught:
            self.prepare()
        return caught.value


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def test_nodes_that_have_nothing_come_to_have_the_same_and_are_then_left_alone(hosts: Hosts) -> None:
    ran = hosts.prepare()
    each = ["node-check", "install", "pull", "node-check"]
    assert sorted(ran) == sorted((name, word) for name in (B, C) for word in each)
    here = read_manifest(hosts.environment)
    for name in (B, C):
        with hosts.cluster.turn_of(name):
            made = read_manifest(hosts.environment)
            assert made is not None
            assert here is not None
            assert (made.lock_sha256, made.requirements) == (here.lock_sha256, here.requirements)
            assert list(hosts.folder.glob("*.safetensors")) != []
    assert hosts.prepare() == [(B, "node-check"), (C, "node-check")]
    assert hosts.events[-1].message == "environment and weights are on 2 other nodes too"
    assert list(hosts.place.rglob("*.mark")) == []


def test_where_all_see_one_disk_nothing_is_made(hosts: Hosts) -> None:
    hosts.cluster.sharing = frozenset({B, C})
    assert hosts.prepare() == [(B, "node-check"), (C, "node-check")]


def test_a_node_with_another_environment_in_that_place_is_told_what_to_remove(hosts: Hosts) -> None:
    hosts.cluster.sharing = frozenset({C})
    with hosts.cluster.turn_of(B):
        environments, other = Environments(hosts.home / "engines"), "mlx-lm==0.32.2 --hash=sha256:ff\n"
        facts, _ = planned_package(CATALOG.engine("mlx"), hosts.candidate.engine)
        environments.ensure(facts, hosts.package, lock=other, environ=hosts.uv.environ())
    error = hosts.refused(EngineInstallError)
    assert error.message.startswith(f"gpu-1: has another environment at {hosts.environment}")
    assert "autolaunch engines remove mlx-lm==" in (error.hint or "")


def test_a_node_without_room_or_uv_says_so_itself(hosts: Hosts, tmp_path: Path) -> None:
    broken = Hosts(tmp_path / "other", FAKE_UV="disk")
    broken.cluster.sharing = frozenset({C})
    error = broken.refused(AutolaunchError)
    assert error.code == "download.disk"
    assert error.message.startswith("gpu-1: ")
    assert "ssh 10.0.0.2 " in (error.hint or "")
    with broken.cluster.turn_of(B):
        assert not (broken.environment / "environment.json").exists()


def test_a_miniature_that_was_altered_on_a_node_is_made_anew_there(hosts: Hosts) -> None:
    hosts.prepare()
    with hosts.cluster.turn_of(B):
        (hosts.folder / "config.json").write_text("{}")
    assert hosts.prepare() == [(B, "node-check"), (C, "node-check"), (B, "pull"), (B, "node-check")]


def test_a_folder_of_the_users_is_held_against_this_hosts(hosts: Hosts) -> None:
    own = hosts.place / "own"
    shutil.copytree(hosts.folder, own)
    hosts.prepare()
    hosts.folder = own
    assert hosts.refused(DownloadError).message == f"gpu-1: has no folder {own}; gpu-2: has no folder {own}"
    for name in (B, C):
        shutil.copytree(own, hosts.cluster.files_of(name) / "own")
    assert hosts.prepare() == [(B, "node-check"), (C, "node-check")]
    shard = min((hosts.cluster.files_of(C) / "own").glob("*.safetensors"))
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    error = hosts.refused(DownloadError)
    assert error.message == f"gpu-2: has other files in {own}, or not all of them: {shard.name}"
    assert error.hint == f"rsync -a {own}/ 10.0.0.3:{own}/"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub(files={REPO: checkpoint(shards=2, shard_bytes=4 << 20)})) as hub:
        for name, value in hub.environment(tmp_path / "data").items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def from_hub(hub: Hub, tmp_path: Path) -> Hosts:
    hosts = Hosts(tmp_path, **{k: v for k, v in hub.environment(Path("/nowhere")).items() if "CACHE" not in k})
    hosts.model = CATALOG.model("glm-4.6")
    stored = next(each for each in hosts.model.checkpoints if each.repo == REPO)
    changed = msgspec.structs.replace(
        hosts.candidate.checkpoint, repo=REPO, format=stored.format, quantization=stored.quantization
    )
    hosts.candidate = msgspec.structs.replace(hosts.candidate, checkpoint=changed)
    hosts.folder = obtain(Wanted(huggingface=REPO), home=hosts.home).folder
    return hosts


def test_weights_of_a_hub_come_to_every_node_at_the_commit_and_the_path_of_this_host(from_hub: Hosts, hub: Hub) -> None:
    sent = hub.sent_bytes.total()
    assert sent > 8 << 20
    hub.revisions["main"] = "f" * 40  # the branch has gone on: what is fetched is this host's commit
    from_hub.prepare()
    assert hub.sent_bytes.total() == 3 * sent, "once a node"
    for name in (B, C):
        with from_hub.cluster.turn_of(name):
            assert len(list(from_hub.folder.glob("*.safetensors"))) == 2
    told = [each for each in from_hub.events if each.transfer is not None]
    assert told[-1].message == "gpu-1 100 %, gpu-2 100 %"
    assert told[-1].fraction == 1.0
    assert from_hub.prepare() == [(B, "node-check"), (C, "node-check")]


def test_weights_that_were_copied_to_a_node_are_verified_there_and_the_hub_is_not_asked(
    from_hub: Hosts, hub: Hub
) -> None:
    from_hub.cluster.sharing = frozenset({C})
    shutil.copytree(from_hub.place / "hf", from_hub.cluster.files_of(B) / "hf", symlinks=True)
    asked = len(hub.asked)
    ran = from_hub.prepare()
    assert (B, "pull") in ran
    assert len(hub.asked) == asked
    assert from_hub.prepare() == [(B, "node-check"), (C, "node-check")], "once verified it is known"


def test_what_a_hub_refuses_a_node_is_that_error_with_the_nodes_name(from_hub: Hosts, hub: Hub) -> None:
    hub.files.clear()
    error = from_hub.refused(HubRefuses)
    assert type(error) is NotOnHub
    assert error.message.startswith("gpu-1: ")
    assert "; gpu-2: " in error.message
    assert "autolaunch pull glm-4.6 --repo zai-org/GLM-4.6-FP8" in (error.hint or "")
