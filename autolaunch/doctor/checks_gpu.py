"""What is wrong with GPUs and their driver: pure functions over what was read."""

from __future__ import annotations

from collections.abc import Iterator

from autolaunch.doctor.facts import Facts, Finding, Gpu
from autolaunch.doctor.floors import Floors
from selector.probe.nvml import DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH, NO_PERMISSION
from selector.versions import version_key

_MEND_DRIVER = {
    DRIVER_NOT_LOADED: "sudo modprobe nvidia",
    LIB_RM_VERSION_MISMATCH: "sudo reboot",
    NO_PERMISSION: "ls -l /dev/nvidiactl /dev/nvidia0",
}
_PROHIBITED, _EXCLUSIVE = 2, 3  # nvmlComputeMode_t


def driver(facts: Facts, floors: Floors) -> Iterator[Finding]:
    """A driver that cannot be asked, or that is too old for what engines are built for."""
    nvidia = facts.nvidia
    for found in facts.report.findings:
        if found.outcome == "failed" and found.probe in ("nvidia", "amd", "apple") and not facts.report.accelerators:
            mend = None if found.probe != "nvidia" or nvidia.code is None else _MEND_DRIVER.get(nvidia.code)
            yield Finding(
                code=f"driver.{found.probe}",
                severity="stops",
                title=f"the {_VENDORS[found.probe]} driver could not be asked",
                why=f"{found.reason or 'no reason given'}; without it nobody knows what GPUs there are",
                command=mend,
            )
    versions = (nvidia.version, nvidia.kernel_version)
    if all(versions) and versions[0] != versions[1]:
        yield Finding(
            code="driver.mismatch",
            severity="stops",
            title=f"the driver's library is {versions[0]}, its kernel module {versions[1]}",
            why="it was updated while it was loaded; CUDA does not start until both are the same",
            command="sudo reboot",
        )
    if nvidia.version is None:
        return
    newest, *older = sorted(floors.drivers, key=lambda each: -each.cuda)
    if older and _older(nvidia.version, older[-1].version):
        yield Finding(
            code="driver.old",
            severity="stops",
            title=f"the driver {nvidia.version} is older than {older[-1].version}",
            why=f"PyTorch is built for CUDA {older[-1].cuda} and {newest.cuda}: neither starts on it; install a newer "
            "driver of your distribution's",
        )
    elif _older(nvidia.version, newest.version):
        yield Finding(
            code="driver.wheel",
            severity="info",
            title=f"the driver {nvidia.version} is older than {newest.version}",
            why=f"wheels for CUDA {newest.cuda} do not run on it; uv takes those for CUDA {newest.cuda - 1}, where an "
            "engine's release has them",
        )


_VENDORS = {"nvidia": "NVIDIA", "amd": "AMD", "apple": "Apple"}


def device_nodes(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """Files of devices that this user may not use."""
    barred = [each for each in facts.nodes if not each.usable]
    if not barred:
        return
    group = next((each.group for each in barred if each.group not in (None, "root")), None)
    names = ", ".join(each.path for each in barred[:3]) + (" …" if len(barred) > 3 else "")
    yield Finding(
        code="devices.permission",
        severity="stops",
        title=f"{facts.host.user} may not use {names}",
        why="an engine opens the GPUs as this user"
        + ("; log in again after the command" if group else "; they belong to root alone"),
        command=f"sudo usermod -aG {group} {facts.host.user}" if group else None,
        numbers={"devices": len(barred)},
    )


def health(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """GPUs that are lost, ask for a reset, or have broken memory."""
    for gpu in facts.nvidia.gpus:
        who = f"GPU {gpu.index}"
        if gpu.ailment is not None:
            yield Finding(
                code="gpu.lost" if gpu.lost else "gpu.ailing",
                severity="slows",
                title=f"{who} ({gpu.name}): {gpu.ailment}",
                why="it is left out of plans until it is reset; end what uses it first"
                if gpu.lost
                else "it may be lost soon; let its work end, then reset it",
                command=f"sudo nvidia-smi --gpu-reset -i {gpu.index}",
                numbers={"gpu": gpu.index},
            )
        if gpu.remap_failed:
            yield Finding(
                code="gpu.memory",
                severity="slows",
                title=f"{who}: broken rows of its memory could not be replaced",
                why="work on it ends in errors; have the GPU replaced, and leave it out with --gpus",
                numbers={"gpu": gpu.index},
            )
        elif gpu.remap_pending or gpu.ecc_uncorrected:
            errors = gpu.ecc_uncorrected or 0
            yield Finding(
                code="gpu.ecc",
                severity="slows",
                title=f"{who}: {errors} uncorrected memory errors since its start"
                if errors
                else f"{who}: memory rows wait to be replaced",
                why="an engine ends when it meets one; a reset replaces the rows",
                command=f"sudo nvidia-smi --gpu-reset -i {gpu.index}",
                numbers={"gpu": gpu.index, "uncorrected_errors": errors},
            )
        if gpu.compute_mode in (_PROHIBITED, _EXCLUSIVE):
            prohibited = gpu.compute_mode == _PROHIBITED
            yield Finding(
                code="gpu.compute_mode",
                severity="stops" if prohibited else "info",
                title=f"{who}: its compute mode is {'prohibited' if prohibited else 'exclusive'}",
                why="no program may compute on it" if prohibited else "one process at a time may use it: one engine",
                command=f"sudo nvidia-smi -i {gpu.index} -c DEFAULT",
                numbers={"gpu": gpu.index},
            )


def clocks(facts: Facts, floors: Floors) -> Iterator[Finding]:
    """GPUs that run below their clock, or that are set up anew at each start."""
    slowed: dict[str, list[Gpu]] = {}
    for gpu in facts.nvidia.gpus:
        for reason in gpu.slowdowns:
            slowed.setdefault(reason, []).append(gpu)
    for reason, gpus in slowed.items():
        yield Finding(
            code="gpu.slowdown",
            severity="slows",
            title=f"{_gpus(gpus)}: the clock is lowered: {reason}",
            why="every answer takes longer; look at cooling and power supply",
            command="nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER",
            numbers={"gpus": len(gpus)},
        )
    off = [gpu for gpu in facts.nvidia.gpus if gpu.persistence is False]
    if off:
        seconds = floors.persistence.seconds_per_gpu
        yield Finding(
            code="gpu.persistence",
            severity="slows",
            title=f"{_gpus(off)}: persistence mode is off",
            why=f"the driver sets up each GPU anew at every start, up to {seconds:g} s each, and forgets what was set",
            command="sudo nvidia-smi -pm 1",
            numbers={"gpus": len(off), "seconds_per_gpu": seconds},
        )


def links(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """NVLinks that are down, NVSwitches that nobody set up, PCIe slots that are narrow, an IOMMU in between."""
    gpus = facts.nvidia.gpus
    waiting = [gpu for gpu in gpus if gpu.fabric in ("not started", "in progress", "failed")]
    if waiting:
        yield Finding(
            code="gpu.fabric",
            severity="stops",
            title=f"{_gpus(waiting)}: not registered with the NVSwitches ({waiting[0].fabric})",
            why="CUDA does not start on these GPUs (error 802) before the fabric manager has set up the switches; it "
            "has to be of the driver's very version",
            command="sudo systemctl restart nvidia-fabricmanager",
            numbers={"gpus": len(waiting)},
        )
    down = [gpu for gpu in gpus if gpu.links_down and gpu.links_up]
    if down:
        yield Finding(
            code="gpu.nvlink",
            severity="slows",
            title=f"{_gpus(down)}: {sum(gpu.links_down for gpu in down)} NVLinks are down",
            why="tensor parallelism waits for the slowest link",
            command="nvidia-smi nvlink --status",
            numbers={"links_down": sum(gpu.links_down for gpu in down)},
        )
    narrow = [gpu for gpu in gpus if gpu.width and gpu.full_width and gpu.width < gpu.full_width]
    slow = [gpu for gpu in gpus if gpu.generation and gpu.slot_generation and gpu.slot_generation < gpu.generation]
    if narrow or slow:
        bad = narrow or slow
        first = bad[0]
        told = f"{first.width} of {first.full_width} lanes" if narrow else f"PCIe {first.slot_generation}.0"
        yield Finding(
            code="gpu.pcie",
            severity="slows",
            title=f"{_gpus(bad)}: the slot gives {told}"
            + ("" if narrow else f", where the GPU can {first.generation}.0"),
            why="weights load, and GPUs without NVLink talk, at the slot's speed; another slot may be wider",
            command="nvidia-smi topo -m",
            numbers={"gpus": len(bad)},
        )
    if facts.host.iommu == "translating" and len(gpus) > 1 and not any(gpu.links_up for gpu in gpus):
        yield Finding(
            code="host.iommu",
            severity="slows",
            title="the IOMMU translates what GPUs send each other over PCIe",
            why="direct copies between GPUs go through the root complex, or hang; on hosts without virtual machines "
            "iommu=pt on the kernel's command line, and ACS off, let them pass",
        )


def holders(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """Processes that hold the memory of GPUs."""
    processes: dict[int, list[int]] = {}
    for each in facts.holders:
        processes.setdefault(each.pid, []).append(each.device)
    by_pid = {each.pid: each for each in facts.holders}
    for pid, devices in processes.items():
        one = by_pid[pid]
        if one.ours and one.attended:
            continue
        size = sum(each.used_bytes or 0 for each in facts.holders if each.pid == pid)
        held = f", {size / 1024**3:.1f} GiB" if size else ""
        whose = "" if one.user is None else f" of {one.user}"
        left = one.ours and one.attended is False
        numbers = ", ".join(str(each) for each in sorted(set(devices)))
        yield Finding(
            code="gpu.left" if left else "gpu.held",
            severity="slows",
            title=f"{one.name or 'a process'} ({pid}{whose}) holds GPU {numbers}{held}",
            why="an engine that autolaunch started and nobody attends any more: its memory is not free"
            if left
            else "what it holds is not free for a model, and is left to it",
            command=f"kill {pid}" if left else None,
            numbers={"pid": pid, "held_bytes": size},
        )


def _older(version: str, floor: str) -> bool:
    return version_key(version) < version_key(floor)


def _gpus(gpus: list[Gpu]) -> str:
    return f"{'GPU' if len(gpus) == 1 else 'GPUs'} {', '.join(str(gpu.index) for gpu in gpus)}"
