"""What is run on a node so that it has what this host has, and the line that a person would type for it."""

from __future__ import annotations

import shlex
from pathlib import Path

from autolaunch.cluster.likeness import Source
from autolaunch.cluster.members import Member
from autolaunch.hubs import kept, places
from engines.environments.requirements import name_of
from engines.environments.store import LOCK, read_manifest
from selector.contract import Checkpoint
from selector.engine_facts import Package
from selector.facts import ModelFacts
from selector.values import Value

#: An environment is tens of gigabytes at most, a checkpoint nearly a terabyte.
INSTALL_SECONDS, PULL_SECONDS, CHECK_SECONDS = 2 * 3600.0, 48 * 3600.0, 300.0


class Order(Value, frozen=True, kw_only=True):
    """A program for nodes, with variables over their own. ``input_path`` is the file of which it is given the text."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    timeout_seconds: float
    input_path: str | None = None

    def by_hand(self, member: Member) -> str:
        """The same as one line for a shell of this host."""
        told = (each for each in self.argv if each not in ("--json", "--follow"))
        words = shlex.join((*(f"{name}={value}" for name, value in self.environment.items()), *told))
        read = "" if self.input_path is None else f" < {shlex.quote(self.input_path)}"
        return f"ssh {shlex.quote(member.address or member.name)} {shlex.quote(f'env {words}')}{read}"


def install(environment: Path, package: Package, version: str) -> Order | None:
    """Makes ``environment``, this host's, on a node: of the same lock, at the same place.

    ``None`` where autolaunch would make none there, or not of that package (``--engine-path``).
    """
    manifest = read_manifest(environment)
    if manifest is None or manifest.requirements != package.requirements or environment.parent.name != "engines":
        return None
    # What a launch adds to a package is the cluster's Ray; the rest the node knows by the package's name.
    options = [word for each in package.requirements if name_of(each) == "ray" for word in ("--with", each)]
    return Order(
        argv=(
            "autolaunch",
            "engines",
            "install",
            f"{package.name}=={version}",
            *options,
            "--lock",
            "-",
            "--at",
            str(environment),
            "--json",
        ),
        environment={"AUTOLAUNCH_HOME": str(environment.parent.parent)},
        timeout_seconds=INSTALL_SECONDS,
        input_path=str(environment / LOCK),
    )


def source_of(folder: Path, checkpoint: Checkpoint, home: Path) -> Source | None:
    """The hub and the commit that a folder of this host is of; ``None`` where no hub gave it."""
    for each in kept.every(home):
        if Path(each.folder) == folder and each.file_prefix == checkpoint.file_prefix:
            one = each.listing
            return Source(hub=one.hub, repo=one.repo, commit=one.revision, file_prefix=each.file_prefix)
    return None


def pull(
    model: ModelFacts, checkpoint: Checkpoint, source: Source | None, folder: Path, home: Path, *, offline: bool = False
) -> Order:
    """Has a node fetch the very checkpoint that lies in ``folder`` here; a miniature is made.

    With ``offline`` what is there is held against its hashes, and no hub is asked.
    """
    of = ("--format", checkpoint.format, "--quantization", checkpoint.quantization)
    named: tuple[str, ...] = ("--repo", checkpoint.repo, *of)
    environment = {"AUTOLAUNCH_HOME": str(home)}
    if source is not None:
        named = ("--repo", source.repo, *of, "--hub", source.hub, "--revision", source.commit)
        cache = folder
        while places.snapshot(source.hub, cache, source.repo, source.commit) != folder and cache != cache.parent:
            cache = cache.parent
        variable = "HF_HUB_CACHE" if source.hub == "huggingface" else "MODELSCOPE_CACHE"
        environment[variable] = str(cache)
    more = ("--offline",) if offline else ()
    return Order(
        argv=("autolaunch", "pull", model.id, *named, *more, "--json", "--follow"),
        environment=environment,
        timeout_seconds=PULL_SECONDS,
    )
