"""Examines this host: everything read once, then judged."""

from __future__ import annotations

import os
from typing import Literal

from autolaunch.doctor.facts import Facts, Finding, Unknown
from autolaunch.doctor.floors import Floors, floors
from autolaunch.doctor.judge import exit_code, judged
from selector.hardware import HardwareReport
from selector.values import Value


class Examination(Value, frozen=True, kw_only=True):
    """What was found, what stops a launch first. ``exit_code``: 0 where nothing would, else what a launch exits with.

    ``unknown`` is what could not be read, ``hardware`` what the probe says.
    """

    schema: Literal[1] = 1
    model: str | None = None
    healthy: bool
    exit_code: int
    findings: tuple[Finding, ...]
    unknown: tuple[Unknown, ...] = ()
    hardware: HardwareReport


def examine(model: str | None = None, *, online: bool = False) -> Examination:
    """Reads this host and judges it; of ``model`` whether its plan would start here.

    Args:
        model: a name of the catalogue or a hub's id.
        online: ask the hubs whether they answer, too.

    It needs no rights beyond the user's, starts nothing, and takes some seconds: of a large file of weights up to two
    seconds are read.

    Raises:
        UnknownModel: nobody described this model.
        ProfileError: a profile is wrong.
    """
    against = floors()
    facts = read(against, model, online=online)
    return examination(facts, against)


def examination(facts: Facts, against: Floors) -> Examination:
    """The judgement of what was read."""
    found = judged(facts, against)
    code = exit_code(found)
    return Examination(
        hardware=facts.report,
        model=None if facts.wanted is None else facts.wanted.model,
        healthy=code == 0,
        exit_code=code,
        findings=found,
        unknown=facts.unknown,
    )


def read(against: Floors, model: str | None = None, *, online: bool = False) -> Facts:
    """Everything that the checks look at. What cannot be read is left out and named in ``unknown``."""
    from autolaunch import api
    from autolaunch.daemon.lock import holder
    from autolaunch.doctor import read_disk, read_host, read_nvidia, read_places, read_wanted
    from autolaunch.hub_cache import cache_directory
    from selector.probe.system import this_system

    system, home, known = this_system(), api.home(), api.catalog()
    report = api.probe()
    host, unknown = read_host.read_host(system, report)
    weights = cache_directory(os.environ)
    configured, wrong = read_places.read_configuration(known)
    largest = read_disk.largest_weights(weights)
    disk = None
    if largest is not None:
        most, seconds = against.disk.read_bytes, against.disk.read_seconds
        disk = read_disk.read_disk(largest, most_bytes=most, seconds=seconds)
    if disk is None:
        why = "no weights lie there to be read" if largest is None else f"{largest} cannot be read"
        unknown = (*unknown, Unknown(what=f"how fast the disk of {weights} is", why=why))
    wanted = None if model is None else read_wanted.read_wanted(model, report, known)
    if wanted is not None and wanted.feasible and not wanted.local and not online:
        unknown = (*unknown, Unknown(what=f"whether {wanted.model} can be fetched", why="--online asks the hubs"))
    daemon = holder(home / "daemon")
    keys_file = None if configured is None else configured.gateway.keys_file
    return Facts(
        report=report,
        host=host,
        nvidia=read_nvidia.read_nvidia(system),
        nodes=read_host.read_nodes(system),
        folders=read_places.read_folders(home, weights, read_places.read_mounts(system.platform)),
        secrets=read_places.read_secrets(os.environ, keys_file, weights.parent),
        configuration_error=wrong,
        disk=disk,
        ports=read_places.read_ports(configured, read_places.own_processes()),
        holders=read_places.read_holders(report),
        daemon_pid=None if daemon is None else daemon.pid,
        left_processes=read_places.left_processes(home),
        stale_runs=read_places.stale_runs(home),
        hubs=read_wanted.ask_hubs(os.environ) if online else None,
        wanted=wanted,
        unknown=unknown,
    )
