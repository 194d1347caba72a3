"""Every node has what the engine needs, or is named with its reason and the line that mends it."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autolaunch.cluster.likeness import Told
from autolaunch.cluster.preparing import prepare_nodes
from autolaunch.hubs.kept import Kept, keep, stamped, with_stamps
from autolaunch.hubs.listing import HubFile, Listing
from autolaunch.server import LaunchEvent
from engines.base import planned_package
from engines.environments.requirements import digest
from engines.environments.store import Manifest
from selector.catalog import Catalog
from selector.contract import LaunchPlan
from selector.errors import (
    AutolaunchError,
    ClusterError,
    DownloadError,
    EngineInstallError,
    HubUnreachable,
    NoRoomOnDisk,
)
from tests.fakes.clusters import cluster as machines
from tests.fakes.members import member
from tests.fakes.plans import candidate, plan
from tests.fakes.scripted_nodes import Asked, Reply, ScriptedCluster

LOCK = "vllm==0.33.0 --hash=sha256:aa\nray==2.60.0 --hash=sha256:bb\n"
COMMIT = "ab" * 20
B, C = "gpu-1", "gpu-2"
SAME = Told(environment="same", weights="same", shared=True)
NOTHING = Told(environment="absent", weights="absent", differing=2, examples=("a.json", "b.safetensors"))


def said(told: Told) -> Reply:
    return Reply(lines=(msgspec.json.encode(told).decode(),))


def failed(code: str, message: str, hint: str | None = None, *, exit_code: int = 6) -> Reply:
    document = {"schema": 1, "error": {"code": code, "message": message, "hint": hint, "exit_code": exit_code}}
    return Reply(lines=tuple(json.dumps(document, indent=2).splitlines()), exit_code=exit_code)


def moved(done: int, total: int = 100) -> str:
    transfer = {"done_bytes": done, "total_bytes": total, "bytes_per_second": 5.0, "left_seconds": 1.0}
    step = {"schema": 1, "event": "weights", "message": f"{done} of {total}", "fraction": 0.1, "seconds": 1.0}
    return json.dumps({**step, "transfer": transfer})


class Host:
    """This host: vLLM's environment with Ray in it, and a checkpoint from a hub (``owned``: from nowhere)."""

    def __init__(self, folder: Path, *, owned: bool = False) -> None:
        self.home = folder / "home"
        catalog = Catalog()
        self.model = catalog.model("glm-4.6")
        planned = candidate("vllm", "glm-4.6", devices=(0, 1, 2))
        self.facts, package = planned_package(catalog.engine("vllm"), planned.engine)
        self.package = msgspec.structs.replace(package, requirements=(*package.requirements, "ray[client]==2.60.0"))
        self.environment = self.home / "engines" / "vllm-0.33.0-vllm-0123abcd"
        self.environment.mkdir(parents=True)
        (self.environment / "requirements.lock").write_text(LOCK)
        manifest = Manifest(
            engine="vllm",
            version=self.facts.version,
            package="vllm",
            requirements=self.package.requirements,
            excludes=(),
            python="3.12",
            python_version="3.12.3",
            torch_backend=None,
            lock_sha256=digest(LOCK),
            packages=2,
            bytes_on_disk=1,
            directory=str(self.environment),
        )
        (self.environment / "environment.json").write_bytes(msgspec.json.encode(manifest))
        self.folder = folder / "hub" / "models--zai-org--GLM-4.6" / "snapshots" / COMMIT
        self.folder.mkdir(parents=True)
        files = tuple(HubFile(path=name, size_bytes=3, sha256="cd" * 32) for name in ("a.json", "b.safetensors"))
        for each in files:
            (self.folder / each.path).write_bytes(b"abc")
        stamps = [stamp for each in files if (stamp := stamped(self.folder, each, "cd" * 32)) is not None]
        listing = Listing(repo="zai-org/GLM-4.6", hub="huggingface", revision=COMMIT, files=files)
        if not owned:
            keep(self.home, with_stamps(Kept(listing=listing, folder=str(self.folder)), stamps))
        report = machines(catalog, "1xh100", "1xh100", "1xh100", names=("gpu-0", B, C))
        ids = [member(number).id for number in range(3)]
        hosts = tuple(msgspec.structs.replace(each, id=ids[each.index]) for each in report.hosts)
        self.candidate = planned
        self.plan: LaunchPlan = msgspec.structs.replace(
            plan(planned, "glm-4.6"), hardware=msgspec.structs.replace(report, hosts=hosts)
        )
        self.events: list[LaunchEvent] = []
        self.asked: list[Asked] = []

    def prepare(
        self,
        replies: Mapping[tuple[str, str], Sequence[Reply]],
        *,
        cancelled: threading.Event | None = None,
        **changes: Any,
    ) -> None:
        members = [member(number, is_here=number == 0, **changes if number == 2 else {}) for number in range(3)]
        cluster = ScriptedCluster(members, replies)
        self.asked = cluster.asked
        prepare_nodes(
            cluster,
            self.plan,
            self.candidate,
            model=self.model,
            environment=self.environment,
            package=self.package,
            folder=self.folder,
            home=self.home,
            on_event=self.events.append,
            cancelled=cancelled,
        )

    def refused(self, kind: type[AutolaunchError], *args: Any, **options: Any) -> AutolaunchError:
        with pytest.raises(kind) as caught:
            self.prepare(*args, **options)
        assert type(caught.value) is kind
        return caught.value

    def words(self) -> list[tuple[str, str]]:
        return [(each.node, each.word) for each in self.asked]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_where_all_is_there_nothing_is_made_and_this_host_is_not_asked(host: Host) -> None:
    host.prepare({(B, "node-check"): [said(SAME)], (C, "node-check"): [said(SAME)]})
    assert host.words() == [(B, "node-check"), (C, "node-check")]
    asked = json.loads(host.asked[0].input_text)
    assert (asked["environment"], asked["lock_sha256"]) == (str(host.environment), digest(LOCK))
    assert [each["path"] for each in asked["files"]] == ["a.json", "b.safetensors"]
    assert asked["source"]["commit"] == COMMIT
    assert not Path(asked["mark"]).exists(), "the mark is gone"
    assert Path(asked["mark"]).parent == host.folder.parents[1], "not where the hub's client looks for snapshots"
    assert [each.message for each in host.events][-1] == "environment and weights are on 2 other nodes too"


def test_what_one_node_lacks_is_made_there_alone_and_looked_at_again(host: Host) -> None:
    host.prepare(
        {
            (B, "node-check"): [said(SAME)],
            (C, "node-check"): [said(NOTHING), said(msgspec.structs.replace(SAME, shared=False, kept=True))],
            (C, "install"): [Reply(lines=('{"schema": 1}',), errors=("  ✓ resolve  2 packages  1 s",))],
            (C, "pull"): [Reply(lines=(moved(10), moved(90)))],
        }
    )
    install, pull = (each for each in host.asked if each.argv[1] != "node-check")
    assert install.argv[2:] == (
        "install",
        "vllm==0.33.0",
        "--with",
        "ray[client]==2.60.0",
        "--lock",
        "-",
        "--at",
        str(host.environment),
        "--json",
    )
    assert install.input_text == LOCK
    assert install.environment == {"AUTOLAUNCH_HOME": str(host.home)}
    assert pull.argv[2:4] == ("glm-4.6", "--repo")
    assert pull.argv[-6:] == ("--hub", "huggingface", "--revision", COMMIT, "--json", "--follow")
    assert pull.environment["HF_HUB_CACHE"] == str(host.folder.parents[2])
    assert host.words()[-1] == (C, "node-check")
    assert "gpu-2: resolve 2 packages 1 s" in [each.message for each in host.events]


def test_how_far_all_of_them_are_is_one_line_with_the_sum(host: Host) -> None:
    lacks = msgspec.structs.replace(SAME, weights="absent", differing=2, shared=False)
    host.prepare(
        {
            **{(each, "node-check"): [said(lacks), said(SAME)] for each in (B, C)},
            (B, "pull"): [Reply(lines=(moved(41), "junk", moved(300), '{"event": 1}', "[[[["))],
            (C, "pull"): [Reply(lines=(moved(38, 200),))],
        }
    )
    told = [each for each in host.events if each.transfer is not None]
    assert [each.message for each in told] == [
        "gpu-1 41 %, gpu-2 0 %",
        "gpu-1 100 %, gpu-2 0 %",
        "gpu-1 100 %, gpu-2 19 %",
        "gpu-1 100 %, gpu-2 100 %",
    ]
    last = told[2].transfer
    assert last is not None
    assert (last.done_bytes, last.total_bytes, last.bytes_per_second) == (138, 300, 10.0)


def test_weights_on_a_disk_of_their_own_that_nobody_hashed_are_verified_without_the_hub(host: Host) -> None:
    unsure = msgspec.structs.replace(SAME, shared=False)
    host.prepare(
        {
            (B, "node-check"): [said(unsure), said(msgspec.structs.replace(unsure, kept=True))],
            (C, "node-check"): [said(SAME)],
            (B, "pull"): [Reply()],
        }
    )
    assert [each.node for each in host.asked if "--offline" in each.argv] == [B]


def test_two_nodes_that_fail_are_both_named_with_the_line_that_mends_each(host: Host) -> None:
    error = host.refused(
        EngineInstallError,
        {
            **{(each, "node-check"): [said(NOTHING)] for each in (B, C)},
            (B, "install"): [failed("engine.install", "cannot be made at /x: with Python 3.11 it would be y")],
            (C, "install"): [failed("download.disk", "needs 12.0 GB", "free some room")],
        },
    )
    assert error.message == ("gpu-1: cannot be made at /x: with Python 3.11 it would be y; gpu-2: needs 12.0 GB")
    hints = (error.hint or "").splitlines()
    assert hints[0] == "free some room"
    assert hints[1].startswith(f"ssh 10.0.0.2 'env AUTOLAUNCH_HOME={host.home} autolaunch engines install vllm==0.33.0")
    assert hints[1].endswith(f"--lock - --at {host.environment}' < {host.environment}/requirements.lock")
    assert hints[2].startswith("ssh 10.0.0.3 ")
    assert (B, "pull") not in host.words(), "what cannot start is not fetched for"


def test_a_full_disk_on_every_node_that_failed_is_that_very_error(host: Host) -> None:
    lacks = msgspec.structs.replace(SAME, weights="absent", differing=2, shared=False)
    one_line = " ".join(failed("download.disk", "no room").lines)  # as --follow writes it
    error = host.refused(
        NoRoomOnDisk,
        {
            (B, "node-check"): [said(lacks)],
            (C, "node-check"): [said(SAME)],
            (B, "pull"): [Reply(lines=(moved(7), one_line), exit_code=6)],
        },
    )
    assert error.message == "gpu-1: no room"


def test_another_lock_in_the_same_place_is_refused_before_anything_is_made(host: Host) -> None:
    other = msgspec.structs.replace(NOTHING, environment="other")
    error = host.refused(EngineInstallError, {(B, "node-check"): [said(other)], (C, "node-check"): [said(NOTHING)]})
    assert error.message.startswith(f"gpu-1: has another environment at {host.environment}")
    assert error.hint == f"ssh 10.0.0.2 'env AUTOLAUNCH_HOME={host.home} autolaunch engines remove vllm==0.33.0'"
    assert {word for _, word in host.words()} == {"node-check"}


def test_a_folder_of_the_users_has_to_be_on_every_node(tmp_path: Path) -> None:
    host = Host(tmp_path, owned=True)
    differs = msgspec.structs.replace(SAME, weights="different", differing=5, examples=("a.json", "b", "c"))
    lacks = msgspec.structs.replace(SAME, weights="absent", differing=2)
    error = host.refused(DownloadError, {(B, "node-check"): [said(differs)], (C, "node-check"): [said(lacks)]})
    assert error.message == (
        f"gpu-1: has other files in {host.folder}, or not all of them: a.json, b, c and 2 more; "
        f"gpu-2: has no folder {host.folder}"
    )
    assert (error.hint or "").splitlines() == [
        f"rsync -a {host.folder}/ 10.0.0.{number}:{host.folder}/" for number in (2, 3)
    ]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(lines=("\x1b[2J{",)), "answered what cannot be read"),
        (Reply(lines=('{"schema": 1, "environment": "same", "weights": "fine"}',)), "answered what cannot be read"),
        (Reply(lines=("[" * 5000,)), "answered what cannot be read"),
        (Reply(lines=("\udcff",)), "answered what cannot be read"),
        (Reply(), "answered what cannot be read"),
        (Reply(outcome="missing"), "has no autolaunch, neither beside the Python of Ray nor on its PATH"),
        (Reply(outcome="lost", message="its node died"), "was lost while it was asked: its node died"),
        (
            Reply(errors=("boo\x1b",), exit_code=3),
            "`autolaunch node-check --json` ended with exit code 3: boo",
        ),
        (failed("usage", "no such command \x1b[31m", exit_code=2), "no such command [31m"),
    ],
)
def test_a_node_that_cannot_be_understood_is_named(host: Host, reply: Reply, message: str) -> None:
    error = host.refused(ClusterError, {(B, "node-check"): [said(SAME)], (C, "node-check"): [reply]})
    assert error.message == f"gpu-2: {message}"


@pytest.mark.parametrize("word", ["install", "pull"])
def test_a_node_that_is_lost_midway_is_an_error_of_the_cluster(host: Host, word: str) -> None:
    replies: dict[tuple[str, str], list[Reply]] = {
        (B, "node-check"): [said(SAME)],
        (C, "node-check"): [said(NOTHING)],
        (C, "install"): [Reply()],
        (C, "pull"): [Reply()],
    }
    replies[C, word] = [Reply(outcome="lost", message="its node died")]
    error = host.refused(ClusterError, replies)
    assert error.message == "gpu-2: was lost while it was asked: its node died"


@pytest.mark.parametrize(
    ("word", "kind"), [("node-check", ClusterError), ("install", EngineInstallError), ("pull", HubUnreachable)]
)
def test_cancelled_it_ends_with_the_error_of_what_it_was_at(host: Host, word: str, kind: type[AutolaunchError]) -> None:
    cancelled = threading.Event()
    replies: dict[tuple[str, str], list[Reply]] = {
        (B, "node-check"): [said(SAME)],
        (C, "node-check"): [said(NOTHING)],
        (C, "install"): [Reply()],
        (C, "pull"): [Reply()],
    }
    replies[C, word][0] = replies[C, word][0]._replace(then=cancelled.set)
    error = host.refused(kind, replies, cancelled=cancelled)
    assert error.message.startswith("it was cancelled while ")
    assert host.words()[-1] == (C, word)


def test_what_says_that_it_was_made_and_is_not_there_is_found_out(host: Host) -> None:
    error = host.refused(
        EngineInstallError,
        {
            (B, "node-check"): [said(SAME)],
            (C, "node-check"): [said(NOTHING), said(NOTHING)],
            (C, "install"): [Reply()],
            (C, "pull"): [Reply()],
        },
    )
    assert error.message == (f"gpu-2: has no environment at {host.environment}; gpu-2: has no folder {host.folder}")


def test_a_node_that_has_died_since_the_plan_is_named_before_anything_is_asked(host: Host) -> None:
    error = host.refused(ClusterError, {}, alive=False, why_dead="health check failed")
    assert error.message == "gpu-2 is no living node of the cluster any more: health check failed"
    assert error.hint == "autolaunch plan glm-4.6 --nodes 10.0.0.1:6379 plans with the nodes that there are"


def test_a_plan_of_machines_on_paper_has_no_nodes_to_prepare(host: Host) -> None:
    host.plan = msgspec.structs.replace(host.plan, hardware=msgspec.structs.replace(host.plan.hardware, hosts=()))
    assert "the plan is of machines on paper" in host.refused(ClusterError, {}).message


def test_an_engine_that_somebody_else_installed_has_to_be_on_every_node(host: Host) -> None:
    host.environment = host.home / "venv"
    lacks = msgspec.structs.replace(SAME, environment="absent")
    error = host.refused(EngineInstallError, {(B, "node-check"): [said(SAME)], (C, "node-check"): [said(lacks)]})
    assert error.message == f"gpu-2: has no engine at {host.environment}, which has to be the same on every node"
    assert error.hint == f"rsync -a {host.environment}/ 10.0.0.3:{host.environment}/"
    assert json.loads(host.asked[0].input_text)["lock_sha256"] is None


def test_an_environment_of_ours_that_was_named_by_its_path_is_not_made_elsewhere(host: Host) -> None:
    host.package = msgspec.structs.replace(host.package, requirements=("vllm==0.33.0",))  # what is there has Ray in it
    other = msgspec.structs.replace(SAME, environment="other")
    error = host.refused(EngineInstallError, {(B, "node-check"): [said(SAME)], (C, "node-check"): [said(other)]})
    assert error.message.startswith(f"gpu-2: has another engine at {host.environment}")
    assert json.loads(host.asked[0].input_text)["lock_sha256"] == digest(LOCK)
