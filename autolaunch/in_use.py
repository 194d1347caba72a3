"""Who has the files of a checkpoint in use: what autolaunch keeps up here, and any process that has them open.

The engine may be somebody else's, and one of ours may be served from a folder that its user named.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from autolaunch.freeing import Doomed
from selector.catalog import Catalog
from selector.errors import AutolaunchError, InUse, NotSteered

if TYPE_CHECKING:
    from autolaunch.client import Client
    from autolaunch.daemon.control.contract import DeploymentDocument, ReplicaDocument

#: Phases in which a deployment has no use for its weights.
_AT_REST = frozenset({"stopped", "failed"})
#: How long one that is asked may take.
_LOOK_SECONDS = 5.0


def refuse_in_use(doomed: Doomed, known: Catalog, home: Path) -> None:
    """Holds that nobody has it in use.

    Raises:
        InUse: who has it.
        NotSteered: somebody who may have it did not answer.
    """
    files = doomed.files
    for told in (*_kept_up(doomed, files, known), *_runs(files, home), *_processes(doomed, files)):
        raise InUse(f"{doomed.repo} is in use: {told}", hint=_HINT)


_HINT = "stop what has it first: autolaunch ps lists what is kept up here, autolaunch stop NAME ends it"


def _kept_up(doomed: Doomed, files: frozenset[str], known: Catalog) -> Iterator[str]:
    from autolaunch.client import Client, clients

    try:
        found = clients()
    except NotSteered:
        if reachable_by_others(doomed.root):
            raise
        found = ()  # of another user, who cannot come by these files
    for path in (each.path for each in found):
        try:
            yield from _by(Client(path, timeout_seconds=_LOOK_SECONDS), doomed, files, known)
        except NotSteered:
            if reachable_by_others(doomed.root) or path.stat().st_uid == os.geteuid():
                raise


def _by(client: Client, doomed: Doomed, files: frozenset[str], known: Catalog) -> Iterator[str]:
    status, deployments = client.status(), client.deployments()
    who = "the daemon" if status.kind == "daemon" else "a launch"
    for deployment in deployments:
        for replica in deployment.replicas:
            if replica.phase not in _AT_REST and _has(deployment, replica, doomed, files, known):
                yield f"{deployment.name} of {who} (process {status.pid}) is {replica.phase}"


def _has(
    deployment: DeploymentDocument, replica: ReplicaDocument, doomed: Doomed, files: frozenset[str], known: Catalog
) -> bool:
    if replica.folder is not None:
        return _touches(os.path.realpath(replica.folder), files) or _touches(replica.folder, files)
    if replica.chosen is None:  # not planned yet, or asleep: it may come to be any of its model's
        try:
            match = known.find_model(deployment.model)
        except AutolaunchError:  # a model of the daemon's own profiles
            return False
        return match.model.id == doomed.model and match.repo in (None, doomed.repo)
    chosen = replica.chosen.checkpoint
    return chosen.repo.lower() == doomed.repo.lower() and chosen.quantization in (
        doomed.quantizations or (chosen.quantization,)
    )


def _runs(files: frozenset[str], home: Path) -> Iterator[str]:
    """Runs of this home, also those that nobody can ask: the checkpoint is linked into each one's folder."""
    from autolaunch.daemon.runs import living

    for directory, folder in living(home / "run"):
        if _touches(str(folder), files):
            yield f"a launch of process {directory.name.partition('-')[0]} serves {folder}"


def _processes(doomed: Doomed, files: frozenset[str]) -> Iterator[str]:
    import psutil

    ours = {os.getpid(), *(each.pid for each in psutil.Process().parents())}
    for process in psutil.process_iter():
        if process.pid in ours:
            continue
        try:
            named = [each for each in process.cmdline() if each.startswith("/")]
            paths = (*named, *_open(process))
            name = process.name()
        except (psutil.Error, OSError):  # ended meanwhile, or another user's
            continue
        if any(_under(path, doomed.root) and _touches(os.path.realpath(path), files) for path in paths):
            yield f"process {process.pid} ({name}) has its files open"


def _open(process: object) -> Iterator[str]:
    """The files that a process has open or mapped."""
    import psutil

    assert isinstance(process, psutil.Process)  # noqa: S101 - psutil is read in only where it is needed
    if sys.platform != "linux":
        yield from (each.path for each in process.open_files())
        return
    place = Path("/proc", str(process.pid))
    for descriptor in (place / "fd").iterdir():
        try:
            yield str(descriptor.readlink())
        except OSError:  # closed meanwhile
            continue
    with (place / "maps").open(errors="surrogateescape") as maps:
        for line in maps:
            if "/" in line:
                yield line[line.index("/") :].rstrip("\n")


def _under(path: str, root: Path) -> bool:
    return os.path.realpath(path).startswith(str(root))


def _touches(path: str, files: frozenset[str]) -> bool:
    """Whether ``path`` is one of the files, or a folder above one."""
    return path in files or any(each.startswith(f"{path}{os.sep}") for each in files)


def reachable_by_others(folder: Path) -> bool:
    """Whether users other than its owner come by what is in ``folder``."""
    for each in (folder, *folder.parents):
        try:
            mode = each.stat().st_mode
        except OSError:
            return True
        if not mode & 0o011:
            return False
    return True
