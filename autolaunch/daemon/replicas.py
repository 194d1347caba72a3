"""The replicas of a deployment: how many engines serve it, and what of its share each of them may use. Pure.

A plan of several replicas is started as so many engines, each kept up by itself: one that dies, hangs or runs out of
memory is replaced while the others serve. Each is a deployment of its own (``Deployment.key``) on its devices of that
plan, and is planned there as one engine: what is changed because it failed is changed for it alone.

Their number is the user's (``pinned.data_parallel``) or the plan's. The planner counts replicas on devices: from main
memory there are as many as were pinned, with an equal part of it each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from autolaunch.daemon.deployment import Changes, Deployment, KeptDeployment, kept_of
from autolaunch.daemon.planning import Share, limited, plan_for, planned_if_freed, wholly_on_devices
from selector.errors import AutolaunchError
from selector.request import WORKLOADS

if TYPE_CHECKING:
    from selector.catalog import Catalog
    from selector.contract import Candidate
    from selector.hardware import HardwareReport

Replica = tuple[Deployment, Share]


def divided(deployment: Deployment, share: Share, report: HardwareReport, known: Catalog) -> tuple[Replica, ...]:
    """The engines of ``deployment``, and what each may use; one with all of ``share``, where no more can be.

    ``report`` is of the machine without the deployment's own engines. What is wrong with its wishes is left to the
    plan of that one, which says it.
    """
    pinned = deployment.pinned.data_parallel
    if share.reason is not None or pinned == 1:
        return replicas_of(deployment, share, None)
    memory_bytes = report.host.memory_available_bytes
    devices = [each for each in report.accelerators if share.devices is None or each.index in share.devices]
    if not devices or deployment.pinned.gpus == ():
        return replicas_of(deployment, share, None, memory_bytes=memory_bytes, in_memory=True)
    try:
        found = _best(deployment, share, report, known)
        in_memory = found is None and _serves_from_memory(deployment, share, report, known)
    except AutolaunchError:
        found, in_memory = None, False
    return replicas_of(deployment, share, found, memory_bytes=memory_bytes, in_memory=in_memory)


def replicas_of(
    deployment: Deployment,
    share: Share,
    candidate: Candidate | None,
    *,
    memory_bytes: int | None = None,
    in_memory: bool = False,
) -> tuple[Replica, ...]:
    """``deployment`` as the engines that serve it together, each with its part of ``share``.

    Args:
        candidate: the plan of all of them, whose replicas they are; ``None``: there is no more than one, and where
            more were pinned its own plan will tell why.
        memory_bytes: the main memory that there is, where the share has no bound of its own.
        in_memory: they serve from main memory: as many as were pinned.
    """
    if share.memory_bytes is not None:
        memory_bytes = share.memory_bytes
    pinned = deployment.pinned.data_parallel or 1
    if in_memory and pinned > 1:
        part = Share(
            devices=None if share.devices is None else frozenset(),
            memory_bytes=None if memory_bytes is None else memory_bytes // pinned,
        )
        return tuple((_replica(deployment, number, pinned), part) for number in range(1, pinned + 1))
    if candidate is None and pinned > 1:
        return ((deployment, share),)
    count = 1 if candidate is None else candidate.parallel.data
    if candidate is None or count == 1:
        return ((_replica(deployment, 1, 1), share),)
    # Layers that lie in main memory beside devices lie there once for each replica.
    bound = share.memory_bytes if wholly_on_devices(candidate) else memory_bytes
    found = []
    for number in range(1, count + 1):
        part = Share(
            devices=frozenset(one_replica(candidate, number).parallel.devices),
            memory_bytes=None if bound is None else bound // count,
        )
        found.append((_pinned_to(_replica(deployment, number, count), part), part))
    return tuple(found)


def one_replica(candidate: Candidate, number: int) -> Candidate:
    """``candidate`` as its replica ``number``, counted from 1, alone: what one engine is started with.

    The speed that it tells stays that of all. It shows a command for the first one only.
    """
    parallel = candidate.parallel
    mine = parallel.devices[(number - 1) * parallel.ranks : number * parallel.ranks]
    return replace(
        candidate,
        parallel=replace(parallel, data=1, devices=mine),
        command=candidate.command if number == 1 else None,
    )


def settled(found: tuple[Replica, ...], before: Mapping[str, Share]) -> tuple[Replica, ...]:
    """The same parts, dealt so that an engine keeps the devices that it had ``before`` (by key) where it can."""
    parts = [part for _, part in found]
    kept: dict[str, Share] = {}
    for one, _ in found:
        had = before.get(one.key)
        same = next((each for each in parts if had is not None and each.devices and each.devices == had.devices), None)
        if same is not None:
            parts.remove(same)
            kept[one.key] = same
    dealt = [(one, kept[one.key] if one.key in kept else parts.pop(0)) for one, _ in found]
    return tuple((_pinned_to(one, part), part) for one, part in dealt)


def kept_for(one: Deployment, kept: Mapping[str, KeptDeployment]) -> KeptDeployment | None:
    """What was kept of an engine. A replica that was not there before is wanted as the first one is."""
    known, first = kept.get(one.key), kept.get(one.name)
    if known is None and first is not None:
        return KeptDeployment(wanted=first.wanted)
    return kept_of(one, known)


def _replica(deployment: Deployment, number: int, count: int) -> Deployment:
    """One of ``count``: what was wished of all of them is shared out. Only the first can have a port that was given.

    The number is the same whether it was pinned or not: an engine stays as it is when others join it.
    """
    offered = deployment.concurrency
    if offered is None and count > 1 and deployment.workload is not None:
        offered = WORKLOADS[deployment.workload].concurrency
    return replace(
        deployment,
        replica=None if number == 1 else number,
        port=deployment.port if number == 1 else None,
        concurrency=None if offered is None else -(-offered // count),
        pinned=replace(deployment.pinned, data_parallel=1),
    )


def _pinned_to(one: Deployment, part: Share) -> Deployment:
    """Of devices that the user pinned for all replicas, by index or number, those of one."""
    pins = one.pinned
    if part.devices and pins.gpus is not None:
        pins = replace(pins, gpus=tuple(sorted(part.devices)))
    elif part.devices and pins.gpu_count is not None:
        pins = replace(pins, gpu_count=len(part.devices))
    return replace(one, pinned=pins)


# --- how many ----------------------------------------------------------------------------------------


def _best(deployment: Deployment, share: Share, report: HardwareReport, known: Catalog) -> Candidate | None:
    """The plan of all engines; as if others had freed the devices, where it would wait until they have."""
    made = plan_for(deployment, report, Changes(), known=known, share=share, whole=True)
    freed = planned_if_freed(made, deployment, report, Changes(), known=known, share=share, whole=True)
    return made.chosen if freed is None else freed.candidate


def _serves_from_memory(deployment: Deployment, share: Share, report: HardwareReport, known: Catalog) -> bool:
    """Whether one engine of several that were pinned, with its part of main memory, would leave the devices alone."""
    pinned, there = deployment.pinned.data_parallel, report.host.memory_available_bytes
    if pinned is None:
        return False
    part = limited(report, None if there is None else there // pinned)
    alone = plan_for(_replica(deployment, 1, pinned), part, Changes(), known=known, share=share).chosen
    return alone is not None and not alone.parallel.devices
