"""What is wrong with folders, disks, ports, keys and what was left behind: pure functions over what was read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from autolaunch.doctor.facts import Facts, Finding, Folder
from autolaunch.doctor.floors import Floors

GB = 1e9
#: The folder of weights, by its purpose.
WEIGHTS = "weights"
#: So much is read in the sentence where no model was named.
_EXAMPLE_BYTES = 100 * GB


def folders(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """Folders that have to be written and cannot be."""
    for each in facts.folders:
        if each.writable is False:
            yield Finding(
                code="folder.permission",
                severity="stops",
                title=f"{facts.host.user} may not write in {each.path}",
                why=f"it is where {each.purpose} are kept",
                command=shlex.join(("sudo", "chown", "-R", facts.host.user, each.path)),
            )


def room(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """Room on the disks for the model that was named: its weights, and its engine's environment."""
    wanted = facts.wanted
    if wanted is None or not wanted.feasible:
        return
    needs: dict[str, int] = {}
    if not wanted.local:
        needs[WEIGHTS] = wanted.download_bytes
    if not wanted.installed:
        needs["environments"] = wanted.environment_bytes
    if len(needs) == 2 and _same_disk(facts):
        needs = {WEIGHTS: sum(needs.values())}
    for purpose, size in needs.items():
        place = _folder(facts, purpose)
        if place is None or place.space is None or place.space.free_bytes >= size:
            continue
        yield Finding(
            code="disk.room",
            severity="stops",
            title=f"{wanted.model} needs {size / GB:.0f} GB at {place.path}, "
            f"{place.space.free_bytes / GB:.0f} are free",
            why="a download begins only where all of it has room; HF_HOME and AUTOLAUNCH_HOME name other disks",
            command=shlex.join(("du", "-xh", "-d2", place.path)),
            numbers={"needed_bytes": size, "free_bytes": place.space.free_bytes},
        )


def disk(facts: Facts, floors: Floors) -> Iterator[Finding]:
    """How fast weights are read: at every start, all of them."""
    place = _folder(facts, WEIGHTS)
    if place is not None and place.filesystem in floors.network.filesystems:
        yield Finding(
            code="disk.network",
            severity="slows",
            title=f"weights lie on a network file system ({place.filesystem}): {place.path}",
            why="every start reads all of them over the network, and locks may not hold; HF_HOME names a local disk",
        )
    if facts.disk is None:
        return
    rate, wanted = facts.disk.bytes_per_second, facts.wanted
    size = wanted.download_bytes if wanted is not None and wanted.download_bytes else _EXAMPLE_BYTES
    seconds = size / rate
    takes = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    slow = rate < floors.disk.wanted_bytes_per_second
    foretold = "" if wanted is None or wanted.load_seconds is None else f"; the plan says {wanted.load_seconds:.0f} s"
    yield Finding(
        code="disk.speed",
        severity="slows" if slow else "info",
        title=f"{size / GB:,.0f} GB would take {takes} from this disk ({rate / GB:.2f} GB/s)",
        why=f"that is the least that a start takes after a reboot{foretold}"
        + ("; HF_HOME names a faster disk" if slow else ""),
        numbers={
            "bytes_per_second": round(rate),
            "seconds": round(seconds, 1),
            "wanted_bytes_per_second": floors.disk.wanted_bytes_per_second,
            "read_bytes": facts.disk.read_bytes,
        },
    )


def ports(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """Ports that somebody else has."""
    for each in facts.ports:
        if not each.taken or each.ours:
            continue
        who = "another process" if each.pid is None else f"{each.name or 'process'} ({each.pid})"
        yield Finding(
            code="port.taken",
            severity="stops",
            title=f"port {each.port} ({each.purpose}) is taken by {who}",
            why="the gateway listens there; --port takes another, --port 0 a free one",
            command=f"ss -ltnp 'sport = :{each.port}'" if facts.host.os == "linux" else f"lsof -nP -iTCP:{each.port}",
            numbers={"port": each.port},
        )


def secrets(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """Files of keys and tokens that others may read, or change."""
    for each in facts.secrets:
        if not each.mode & 0o077:
            continue
        if each.mode & 0o040 and not each.mode & 0o037 and each.purpose == "keys of clients":
            continue  # root's file, and the service's group reads it: so autolaunch makes it
        whose = "others" if each.mode & 0o007 else "its group"
        yield Finding(
            code="secret.mode",
            severity="slows",
            title=f"{whose} may {'change' if each.mode & 0o022 else 'read'} {each.path}",
            why=f"it holds {each.purpose}",
            command=shlex.join((*(() if each.is_ours else ("sudo",)), "chmod", "600", each.path)),
            numbers={"mode": each.mode},
        )


def configuration(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """A configuration that the daemon would not take."""
    if facts.configuration_error is not None:
        yield Finding(
            code="configuration",
            severity="stops",
            title="the daemon's configuration is wrong",
            why=facts.configuration_error,
        )


def left(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """What earlier launches left behind."""
    if facts.left_processes:
        pids = " ".join(map(str, facts.left_processes))
        yield Finding(
            code="run.left",
            severity="slows",
            title=f"engines of an earlier daemon run on: {pids}",
            why="they hold memory that plans count as taken; a daemon ends them when it starts",
            command=f"kill {pids}",
            numbers={"processes": len(facts.left_processes)},
        )
    if facts.stale_runs:
        yield Finding(
            code="run.folders",
            severity="info",
            title=f"{len(facts.stale_runs)} folders of runs that ended unclean",
            why="the next launch takes them away",
            numbers={"folders": len(facts.stale_runs)},
        )


def hubs(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """Hubs that do not answer, where they were asked."""
    if not facts.hubs:
        return
    silent = {name: why for name, why in facts.hubs.items() if why is not None}
    for name, why in silent.items():
        needed = facts.wanted is None or not facts.wanted.local
        yield Finding(
            code="hub.silent",
            severity="stops" if needed and len(silent) == len(facts.hubs) else "slows",
            title=f"{name} does not answer",
            why=f"{why}; weights are fetched from there. A proxy is named by HTTPS_PROXY",
            command="env | grep -i proxy",
        )


def plan(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """Whether the model that was named fits at all."""
    wanted = facts.wanted
    if wanted is not None and not wanted.feasible:
        yield Finding(
            code="plan.fits",
            severity="stops",
            title=f"{wanted.model} does not fit this machine",
            why=wanted.reason or "nothing that is allowed fits",
            command=wanted.advice or shlex.join(("autolaunch", "advise", wanted.model)),
        )


def _folder(facts: Facts, purpose: str) -> Folder | None:
    return next((each for each in facts.folders if each.purpose == purpose), None)


def _same_disk(facts: Facts) -> bool:
    spaces = [place.space for purpose in (WEIGHTS, "environments") if (place := _folder(facts, purpose)) is not None]
    return len(spaces) == 2 and spaces[0] is not None and spaces[0] == spaces[1]
