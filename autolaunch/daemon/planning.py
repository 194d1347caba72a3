"""A deployment's plan: what it wishes, on what is left of the machine for it, under what was changed after failures.

Devices of a plan are the report's indices, also where devices are left out of it: an index never comes to mean
another device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from autolaunch import api
from autolaunch.daemon.deployment import Changes, Deployment, Fault
from autolaunch.on_nodes import started_on_nodes
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan, Rejection
from selector.devices import GIB
from selector.errors import DevicesTaken
from selector.hardware import Accelerator, DeviceProcess, HardwareReport
from selector.plan import devices_short, names_a_node
from selector.request import Pins
from selector.values import Value

#: What an idle device may have in use: the driver's own, and what a desktop draws with.
IDLE_BYTES = GIB


class Share(Value, frozen=True, kw_only=True):
    """What of a machine a deployment may use (:func:`autolaunch.daemon.sharing.share`).

    ``devices`` are indices of the report; ``None`` is all of them, or there are none. ``memory_bytes`` bounds main
    memory on a host without devices. ``reason`` says why there is nothing for it: it is not planned then.
    """

    devices: frozenset[int] | None = None
    memory_bytes: int | None = None
    reason: str | None = None


def plan_for(
    deployment: Deployment,
    report: HardwareReport,
    changes: Changes,
    *,
    known: Catalog,
    share: Share | None = None,
    taken: frozenset[str | int] = frozenset(),
    learned: bool = True,
    whole: bool = False,
) -> LaunchPlan:
    """The plan of a deployment, as one of this machine; see :func:`autolaunch.daemon.ladder.choose` for what to take.

    One engine is planned for where the user pinned no number. The plan's ``hardware`` is the whole ``report``.

    Args:
        share: what of the machine is this deployment's.
        taken: devices of others, by index or UUID.
        learned: leave out what failed on this machine before (:mod:`autolaunch.learned`).
        whole: plan as many replicas as are best (:mod:`autolaunch.daemon.replicas`), where no number was pinned.

    Raises:
        DevicesTaken: a device that the user pinned is another's.
        UsageError: pins that cannot be; UnknownModel.
        EngineError: there is no engine at ``engine_path`` that could serve it.
        ProfileError: a profile is wrong.
    """
    usable = available(report, deployment, changes, share=share, taken=taken)
    decided = api.plan(
        deployment.model,
        hardware=usable,
        here=True,
        learned=learned,
        objective=deployment.objective,
        context_tokens=changes.context_tokens or deployment.context_tokens,
        concurrency=deployment.concurrency,
        input_tokens=deployment.input_tokens,
        output_tokens=deployment.output_tokens,
        workload=deployment.workload,
        pins=pins_for(deployment, changes, usable, whole=whole),
        known=known,
        keep_all=bool(changes.avoid),
        engine_path=deployment.engine_path,
    )
    # By the whole report a vendor's own count of its devices is right, where they have no UUID.
    return api.with_commands(msgspec.structs.replace(decided, hardware=report), known.model(decided.model))


def pins_for(deployment: Deployment, changes: Changes, usable: HardwareReport, *, whole: bool = False) -> Pins:
    """What is pinned: the user's pins, and one replica unless it is of the ``whole``; or the changed configuration.

    The devices of such a configuration are ours, not the user's: where they are no longer to be had, as many others do.
    """
    pins = changes.pinned
    if pins is None:
        pins = deployment.pinned
        if deployment.nodes is not None:
            pins = started_on_nodes(pins)
        return pins if whole or pins.data_parallel is not None else msgspec.structs.replace(pins, data_parallel=1)
    have = {device.index for device in usable.accelerators}
    if deployment.pinned.gpus is None and pins.gpus and not have.issuperset(pins.gpus):
        count = min(len(pins.gpus), len(have))
        return msgspec.structs.replace(pins, gpus=None, gpu_count=count or None)
    return pins


def available(
    report: HardwareReport,
    deployment: Deployment,
    changes: Changes,
    *,
    share: Share | None = None,
    taken: frozenset[str | int] = frozenset(),
) -> HardwareReport:
    """The report less what is not this deployment's, and less what was lost.

    Raises:
        DevicesTaken: a device that the user pinned is another's.
    """
    others = {each.index for each in report.accelerators if each.index in taken or each.uuid in taken}
    for index in deployment.pinned.gpus or ():
        if index in others or (share is not None and share.devices is not None and index not in share.devices):
            raise DevicesTaken(
                f"device {index}, which {deployment.name} is pinned to, is another deployment's",
                hint="deployments that are kept up together have devices of their own",
            )
    mine = None if share is None else share.devices
    keep = {
        each.index
        for each in report.accelerators
        if each.index not in others
        and each.uuid not in changes.without_devices
        and (mine is None or each.index in mine)
        and (each.node == 0 or deployment.nodes is not None)
    }
    nodes = 1 if deployment.nodes is None else report.nodes
    return limited(narrowed(report, keep, nodes=nodes), None if share is None else share.memory_bytes)


def narrowed(report: HardwareReport, indices: Iterable[int], *, nodes: int = 1) -> HardwareReport:
    """The report with these devices alone, on their indices, and the ways between them; of so many machines."""
    keep = frozenset(indices)
    return msgspec.structs.replace(
        report,
        accelerators=tuple(each for each in report.accelerators if each.index in keep),
        links=tuple(each for each in report.links if {each.from_, each.to} <= keep),
        nodes=nodes,
    )


def limited(report: HardwareReport, memory_bytes: int | None) -> HardwareReport:
    """The report with no more main memory to be had than ``memory_bytes``."""
    if memory_bytes is None:
        return report
    available_bytes = report.host.memory_available_bytes
    bound = memory_bytes if available_bytes is None else min(memory_bytes, available_bytes)
    return msgspec.structs.replace(report, host=msgspec.structs.replace(report.host, memory_available_bytes=bound))


# --- what stands in the way --------------------------------------------------------------------------


def infeasible(plan: LaunchPlan, report: HardwareReport) -> Fault:
    """What is to be said of a plan without a candidate: the refusal that came nearest to fitting."""
    return Fault(
        reason="no plan",
        permanent=True,
        message=f"no plan for {plan.model} fits; {nearest(plan.rejected, report, _pinned_replicas(plan))}",
        hint=f"autolaunch advise {plan.model}",
    )


def too_few_nodes(plan: LaunchPlan, deployment: Deployment, report: HardwareReport) -> Fault | None:
    """The fault of a plan for a cluster that has too little for it now; ``None`` where none is waited for.

    Nodes come and go, and the head of a cluster that begins is alone at first. ``plan`` is made with nothing left out:
    where that is feasible, or fails for another reason than devices and their memory, more nodes would mend nothing.
    """
    if plan.chosen is not None:
        return None if plan.chosen.parallel.devices else _awaited(deployment, report, "none of them has a GPU for it")
    if report.accelerators and not any(_is_room(each) for each in plan.rejected):
        return None
    return _awaited(deployment, report, nearest(plan.rejected, report, 1))


def pinned_elsewhere(deployment: Deployment, report: HardwareReport) -> Fault | None:
    """As :func:`too_few_nodes`, where devices were pinned that no node has now."""
    pins, have = deployment.pinned, {each.index for each in report.accelerators}
    missing = [index for index in pins.gpus or () if index not in have]
    if missing:
        return _awaited(deployment, report, f"it is pinned to device {missing[0]}, which none of them has")
    if (pins.gpu_count or 0) > len(have):
        return _awaited(deployment, report, f"it is pinned to {pins.gpu_count} devices, and they have {len(have)}")
    return None


def _awaited(deployment: Deployment, report: HardwareReport, lacking: str) -> Fault | None:
    if deployment.nodes is None or not deployment.wait_for_devices:
        return None
    count = len(report.hosts) or report.nodes
    have = "1 node that the cluster has" if count == 1 else f"{count:,} nodes that the cluster has"
    return Fault(
        reason="too few nodes",
        permanent=False,
        message=f"no plan for {deployment.model} fits on the {have} now; {lacking}",
        hint=f"it starts when there is one; autolaunch plan {deployment.model} --nodes {deployment.nodes} tells more",
    )


def _is_room(each: Rejection) -> bool:
    """Whether it is of devices or of memory that it has too little."""
    return math.isfinite(_shortage(each)) or math.isfinite(devices_short(each))


def nearest(rejected: tuple[Rejection, ...], report: HardwareReport, pinned_replicas: int) -> str:
    """The refusal that came nearest to fitting, in words."""
    # Where a number of replicas was pinned, too few devices for them say more than how one would fit.
    several = tuple(each for each in rejected if each.code == "layout.devices" and pinned_replicas > 1)
    found = min(several or rejected, key=_shortage, default=None)
    if found is None:
        return f"nothing of {len(report.accelerators)} devices can serve it"
    named = [each for each in rejected if names_a_node(each)]
    words = f"nearest is {_lacking(found, report)}"
    if not named or names_a_node(found):
        return words
    return f"{words}; over several nodes {_lacking(min(named, key=_shortage), report)}"


def _lacking(found: Rejection, report: HardwareReport) -> str:
    where = "" if found.parallel is None or not report.accelerators else f" on {_laid(found)}"
    return f"{found.repo} ({found.quantization}) with {found.engine}{where}: {found.message}"


def devices_held(
    plan: LaunchPlan,
    deployment: Deployment,
    report: HardwareReport,
    changes: Changes,
    *,
    known: Catalog,
    share: Share | None = None,
    taken: frozenset[str | int] = frozenset(),
    ours: frozenset[int] = frozenset(),
) -> Fault | None:
    """The fault of a deployment that others keep from its devices; ``None`` where they do not.

    They do where nothing fits and it would if their memory were free, and where the plan has weights in main memory,
    or weights of a lower quality, for their sake alone. Costs another plan, where others hold memory at all.

    Args:
        plan: what :func:`plan_for` gave for the same arguments.
        ours: processes of autolaunch's own engines, whose memory is not held by others.
    """
    freed = planned_if_freed(plan, deployment, report, changes, known=known, share=share, taken=taken, ours=ours)
    if freed is None:
        return None
    wait = deployment.wait_for_devices
    return Fault(
        reason="devices held",
        permanent=not wait,
        message=f"others hold the memory that {deployment.name} needs: "
        + "; ".join(_holding(freed.held, report, ours)),
        hint="it starts when they have freed it" if wait else "end them, or choose other devices with --gpus",
    )


class Freed(NamedTuple):
    """What would be planned, were the memory that others have of the devices ``held`` free."""

    candidate: Candidate
    held: tuple[Accelerator, ...]


def planned_if_freed(
    plan: LaunchPlan,
    deployment: Deployment,
    report: HardwareReport,
    changes: Changes,
    *,
    known: Catalog,
    share: Share | None = None,
    taken: frozenset[str | int] = frozenset(),
    ours: frozenset[int] = frozenset(),
    whole: bool = False,
) -> Freed | None:
    """The better plan that others keep a deployment from (:func:`devices_held`); ``None`` where they do not."""
    usable = available(report, deployment, changes, share=share, taken=taken)
    only = deployment.pinned.gpus
    held = tuple(
        each
        for each in usable.accelerators
        if (only is None or each.index in only) and _held_bytes(each, ours) > IDLE_BYTES
    )
    if not held:
        return None
    emptied = {each.index for each in held}
    freed = msgspec.structs.replace(
        report,
        accelerators=tuple(
            msgspec.structs.replace(each, memory_free_bytes=each.memory_total_bytes) if each.index in emptied else each
            for each in report.accelerators
        ),
    )
    better = plan_for(deployment, freed, changes, known=known, share=share, taken=taken, whole=whole).chosen
    if better is None or (plan.chosen is not None and not _for_their_sake(plan.chosen, better)):
        return None
    return Freed(better, held)


def _for_their_sake(chosen: Candidate, better: Candidate) -> bool:
    slow = wholly_on_devices(better) and not wholly_on_devices(chosen)
    return slow or chosen.score_terms.quality < better.score_terms.quality


def wholly_on_devices(candidate: Candidate) -> bool:
    """Whether no weights of it lie in main memory."""
    limits = candidate.limits
    return bool(candidate.parallel.devices) and limits.gpu_layers is None and not limits.cpu_expert_layers


def _others(device: Accelerator, ours: frozenset[int]) -> tuple[DeviceProcess, ...]:
    return tuple(each for each in device.processes if each.pid not in ours)


def _held_bytes(device: Accelerator, ours: frozenset[int]) -> int:
    """Memory of a device that others have. Memory shared with the system is everybody's, and never held."""
    total, free = device.memory_total_bytes, device.memory_free_bytes
    if total is None or free is None or device.memory_kind == "unified":
        return 0
    own = sum(each.used_bytes or 0 for each in device.processes if each.pid in ours)
    return max(0, total - free - own)


def _holding(held: Iterable[Accelerator], report: HardwareReport, ours: frozenset[int]) -> Iterator[str]:
    """``device 0 (NVIDIA A100-SXM4-80GB): 61.0 GiB by VLLM::EngineCore (process 4242)``.

    Of a cluster the node is told, and devices of a node that the same work has are told together.
    """
    nodes = {each.index: f" of {each.name}" for each in report.hosts}
    together: dict[tuple[str, ...], list[str]] = {}
    for each in held:
        what = (each.name, nodes.get(each.node, ""), _holders(each, ours))
        together.setdefault(what if nodes else (*what, str(each.index)), []).append(str(each.index))
    for (name, node, holders, *_), indices in together.items():
        which = "device" if len(indices) == 1 else "devices"
        yield f"{which} {', '.join(indices)} ({name}){node}: {holders}"


def _holders(device: Accelerator, ours: frozenset[int]) -> str:
    named = []
    for each in _others(device, ours):
        size = "" if each.used_bytes is None else f"{each.used_bytes / GIB:.1f} GiB by "
        process = f" (process {each.pid})" if each.pid else ""  # it is a cluster's, and none of this host's
        named.append(f"{size}{each.name or 'a process without a name'}{process}")
    if not named:  # of another container, or of another user where the driver tells nobody
        named = [f"{_held_bytes(device, ours) / GIB:.1f} GiB by processes that the driver does not name"]
    return ", ".join(named)


def _shortage(each: Rejection) -> float:
    """How far it is from fitting: in memory, or in the number of devices (more replicas than there is room for)."""
    needed, usable = each.numbers.get("needed_bytes"), each.numbers.get("usable_bytes")
    if needed is None:
        needed, usable = each.numbers.get("needed_devices"), each.numbers.get("devices")
    return float("inf") if needed is None or not usable else needed / usable


def _pinned_replicas(plan: LaunchPlan) -> int:
    pinned = plan.request.pinned.get("data_parallel")
    return pinned if isinstance(pinned, int) else 1


def _laid(each: Rejection) -> str:
    count = 1 if each.parallel is None else each.parallel.ranks * each.parallel.data
    return "one device" if count == 1 else f"{count} devices"
