"""Before an engine starts over several nodes: its environment and the weights are on each, checked or made there.

Both lie at the paths that they have on this host, for the engine's processes there are given no others. An environment
is made of this host's own lock. Weights that a hub gave are fetched at the same commit, once a node; what it cannot be
fetched from anywhere (``--model-path``) has to be there. Where all nodes see one disk nothing is made twice.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from autolaunch.cluster.at_work import Say, Trouble, carried_out
from autolaunch.cluster.likeness import Asked, Source, Told, files_of, samples
from autolaunch.cluster.members import Member, listed, names_of
from autolaunch.cluster.orders import CHECK_SECONDS, Order, install, pull, source_of
from autolaunch.cluster.ray_cluster import Cluster
from autolaunch.cluster.unready import of_environment, of_weights, refuse, told
from autolaunch.hubs import kept
from autolaunch.hubs.speed import Transfer
from autolaunch.server import LaunchEvent, Stage
from engines.environments.store import read_manifest
from selector.contract import Candidate, LaunchPlan
from selector.engine_facts import Package
from selector.errors import AutolaunchError, ClusterError, DownloadError, EngineInstallError, HubUnreachable
from selector.facts import ModelFacts
from selector.values import Value

#: So many nodes are named with their reasons; of the others it is said how many they are.
_NAMED = 8


def prepare_nodes(
    cluster: Cluster,
    plan: LaunchPlan,
    candidate: Candidate,
    *,
    model: ModelFacts,
    environment: Path,
    package: Package,
    folder: Path,
    home: Path,
    on_event: Callable[[LaunchEvent], None] = lambda _: None,
    cancelled: threading.Event | None = None,
    began: float | None = None,
) -> None:
    """Has the engine's environment and the weights on every node of ``candidate``, as they are on this host.

    Args:
        plan: ``hardware.hosts`` are the nodes, each with the id that Ray has for it.
        environment: this host's, finished; ``package`` is what it was made of. One that somebody else made
            (``--engine-path``) has to be on every node already, at the same place.
        folder: the weights on this host, whole.
        home: autolaunch's on this host.
        on_event: hears what happens (stages ``weights`` and ``environment``), in the thread that called.
        cancelled: set it from another thread, and what runs on the nodes is ended.
        began: when the launch did (monotonic seconds).

    Raises:
        ClusterError: a node is gone, could not be asked, or the cluster was lost.
        EngineInstallError: an environment could not be made the same, on each node named; the hint has the commands.
        DownloadError: so of weights.
    """
    members, names = _members(cluster, plan, candidate)
    if not members:
        return
    since = time.monotonic() if began is None else began

    def teller(stage: Stage) -> Say:
        def say(message: str, fraction: float | None = None, transfer: Transfer | None = None) -> None:
            seconds = time.monotonic() - since
            on_event(LaunchEvent(stage=stage, message=message, fraction=fraction, seconds=seconds, transfer=transfer))

        return say

    work = _Work(
        cluster=cluster,
        names=names,
        cancelled=cancelled,
        environment=environment,
        folder=folder,
        home=home,
        model=model,
        candidate=candidate,
        source=None if model.generated else source_of(folder, candidate.checkpoint, home),
        install=install(environment, package, candidate.engine.version),
    )
    teller("environment")(f"comparing {listed(names[each.id] for each in members)} with this host")
    asked = work.asked()
    found = work.check(members, asked)
    made = work.environments(found, teller("environment"))
    made |= work.weights(found, teller("weights"))
    again = [each for each in members if each.id in made]
    if again:
        work.refuse(work.check(again, asked))
    count = len(members)
    nodes = names[members[0].id] if count == 1 else f"{count:,} other nodes"
    teller("weights")(f"environment and weights are on {nodes} too", 1.0)


class _Work(Value, frozen=True, kw_only=True):
    """What has to be on the nodes, and how it comes there."""

    cluster: Cluster
    names: Mapping[str, str]
    cancelled: threading.Event | None
    environment: Path
    folder: Path
    home: Path
    model: ModelFacts
    candidate: Candidate
    source: Source | None
    install: Order | None

    @property
    def owned(self) -> bool:
        """Whether the weights are a folder of the user's, which nobody can fetch."""
        return self.source is None and not (self.model.generated and self.folder.parent == self.home / "models")

    def pull(self, *, offline: bool = False) -> Order:
        checkpoint = self.candidate.checkpoint
        return pull(self.model, checkpoint, self.source, self.folder, self.home, offline=offline)

    def asked(self) -> Asked:
        """What this host has."""
        manifest = read_manifest(self.environment)
        one = self.source
        found = None if one is None else kept.load(self.home, one.hub, one.repo, one.commit, one.file_prefix)
        paths: Iterable[str] = (
            files_of(self.folder, self.candidate.checkpoint)
            if found is None
            else [each.path for each in found.listing.files]
        )
        return Asked(
            environment=str(self.environment),
            lock_sha256=None if manifest is None else manifest.lock_sha256,
            folder=str(self.folder),
            files=samples(self.folder, paths),
            source=one,
        )

    def check(self, members: Sequence[Member], asked: Asked) -> dict[Member, Told]:
        """What each of them has of it.

        Raises:
            ClusterError: one did not answer, or not in a way that can be read.
        """
        with _mark(self.folder, asked) as question:
            document = msgspec.json.encode(question).decode()
            environment = {"AUTOLAUNCH_HOME": str(self.home)}
            argv = ("autolaunch", "node-check", "--json")
            answers = self.cluster.ran(
                argv,
                on=members,
                timeout_seconds=CHECK_SECONDS,
                environment=environment,
                input_text=document,
                cancelled=self.cancelled,
            )
        self._stop("the nodes were compared", ClusterError)
        found = {ran.member: told(ran) for ran in answers}
        refuse([each for each in found.values() if isinstance(each, Trouble)], self.names, ClusterError)
        return {member: each for member, each in found.items() if isinstance(each, Told)}

    def environments(self, found: Mapping[Member, Told], say: Say) -> set[str]:
        """Makes those that are not there; on which nodes. What can never be mended is refused before, weights too."""
        self.refuse(found, before=True)
        where = [member for member, each in found.items() if each.environment != "same"]
        if where and self.install is not None:
            say(f"making {self.environment.name} on {listed(self.names[each.id] for each in where)}")
            troubles = carried_out(self.cluster, self.install, where, self.names, say, self.cancelled)
            self._stop("the engine's environment was made on the nodes", EngineInstallError)
            refuse(troubles, self.names, EngineInstallError)
        return {each.id for each in where}

    def weights(self, found: Mapping[Member, Told], say: Say) -> set[str]:
        """Fetches or verifies those that are not there for certain; on which nodes."""
        absent = [member for member, each in found.items() if each.weights != "same"]
        # There by name and length, on a disk of its own, and by nobody held against its hashes yet.
        unsure = [
            member
            for member, each in found.items()
            if self.source is not None and each.weights == "same" and not (each.shared or each.kept)
        ]
        troubles: list[Trouble] = []
        if not absent and not unsure:
            return set()
        for order, where, doing in (
            (self.pull(), absent, "making" if self.model.generated else "fetching"),
            (self.pull(offline=True), unsure, "verifying"),
        ):
            if where:
                say(f"{doing} the weights on {listed(self.names[each.id] for each in where)}")
                troubles += carried_out(self.cluster, order, where, self.names, say, self.cancelled)
                self._stop("the weights were brought to the nodes", HubUnreachable)
        refuse(troubles, self.names, DownloadError)
        return {each.id for each in (*absent, *unsure)}

    def refuse(self, found: Mapping[Member, Told], *, before: bool = False) -> None:
        """That something is not as it is here; ``before`` anything was made, only what making would not mend."""
        engines = [
            of_environment(member, each, self.environment, self.install)
            for member, each in found.items()
            if each.environment == "other" or (each.environment != "same" and (self.install is None or not before))
        ]
        weights = [
            of_weights(member, each, self.folder, None if self.owned else self.pull())
            for member, each in found.items()
            if each.weights != "same" and (self.owned or not before)
        ]
        refuse([*engines, *weights], self.names, EngineInstallError if engines else DownloadError)

    def _stop(self, doing: str, kind: type[AutolaunchError]) -> None:
        if self.cancelled is not None and self.cancelled.is_set():
            raise kind(f"it was cancelled while {doing}")


def _members(cluster: Cluster, plan: LaunchPlan, candidate: Candidate) -> tuple[tuple[Member, ...], dict[str, str]]:
    """The nodes that the candidate's devices are in, but for this host; and what all of them are called."""
    used = {each.node for each in plan.hardware.accelerators if each.index in candidate.parallel.devices}
    nodes = [each for each in plan.hardware.hosts if each.index in used]
    known = {each.id: each for each in cluster.members()}
    gone = []
    for node in nodes:
        member = known.get(node.id or "")
        if member is None or not member.alive:
            why = "" if member is None or member.why_dead is None else f": {member.why_dead}"
            gone.append(f"{node.name} is no living node of the cluster any more{why}")
    if gone or len(nodes) < len(used):
        raise ClusterError(
            "; ".join(gone[:_NAMED]) or "the plan is of machines on paper: no node of a cluster is named in it",
            hint=f"autolaunch plan {plan.model} --nodes {cluster.address} plans with the nodes that there are",
        )
    members = tuple(known[node.id or ""] for node in nodes)
    return tuple(each for each in members if not each.is_here), names_of(members)


@contextmanager
def _mark(folder: Path, asked: Asked) -> Iterator[Asked]:
    """The question with a file beside the weights, for as long as it is asked: who sees it looks at the same disk."""
    place = folder.parents[1] if asked.source is not None else folder.parent
    mark = place / f".autolaunch-{secrets.token_hex(8)}.mark"
    text = secrets.token_hex(16)
    try:
        mark.write_text(text)
    except OSError:
        yield asked  # it may not be written there: then nobody is known to share it
        return
    try:
        yield msgspec.structs.replace(asked, mark=str(mark), mark_text=text)
    finally:
        with suppress(OSError):
            mark.unlink()
