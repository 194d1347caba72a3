"""What is wrong with the host around the GPUs: pure functions over what was read."""

from __future__ import annotations

from collections.abc import Iterator

from autolaunch.doctor.facts import UNLIMITED, Facts, Finding
from autolaunch.doctor.floors import Floors

GIB = 1024**3
_LIMITS = {
    "nofile": ("open files", "shards, sockets and libraries of every rank are open files", "n"),
    "nproc": ("processes and threads", "every rank starts a thread a core for several libraries", "u"),
}


def several_devices(facts: Facts) -> bool:
    """Whether ranks talk to each other: in the plan of the model that was named, or in any of this host."""
    if facts.wanted is not None and facts.wanted.feasible:
        return facts.wanted.devices > 1
    return sum(each.vendor != "apple" for each in facts.report.accelerators) > 1


def shared_memory(facts: Facts, floors: Floors) -> Iterator[Finding]:
    """Shared memory (/dev/shm), through which the ranks of one engine talk."""
    space, floor = facts.host.shared_memory, floors.shared_memory
    if space is None or not several_devices(facts):
        return
    short = min(space.total_bytes, space.free_bytes) < floor.floor_bytes
    if not short and space.total_bytes >= floor.wanted_bytes:
        return
    size = f"{_gib(floor.wanted_bytes)}"
    full = short and space.total_bytes >= floor.floor_bytes
    in_container = facts.host.container is not None
    yield Finding(
        code="memory.shared",
        severity="stops" if short else "slows",
        title=f"{_gib(space.free_bytes)} are free of the {_gib(space.total_bytes)} of /dev/shm",
        why="the ranks of tensor parallelism hand each other data there, and end with a bus error when it is full; "
        + (
            "see what fills it"
            if full
            else f"start the container with --shm-size={size.replace(' GiB', 'g')} or --ipc=host"
            if in_container
            else f"{size} are enough"
        ),
        command="ls -lS /dev/shm"
        if full
        else None
        if in_container
        else f"sudo mount -o remount,size={floor.wanted_bytes // GIB}G /dev/shm",
        numbers={
            "total_bytes": space.total_bytes,
            "free_bytes": space.free_bytes,
            "floor_bytes": floor.floor_bytes,
            "wanted_bytes": floor.wanted_bytes,
        },
    )


def limits(facts: Facts, floors: Floors) -> Iterator[Finding]:
    """Limits of this user's processes, by the hard ones: engines raise the soft ones themselves where they may."""
    for name, (title, why, letter) in _LIMITS.items():
        limit, floor = facts.host.limits.get(name), floors.limits[name]
        # Nobody raises the soft limit of processes by itself.
        most = None if limit is None else limit.soft if name == "nproc" else limit.hard
        if most is None or most >= floor.wanted:
            continue
        mend = (
            f"start the container with --ulimit {name}={floor.wanted}"
            if facts.host.container
            else "the unit that autolaunch service writes sets its own"
        )
        yield Finding(
            code=f"limit.{name}",
            severity="stops" if most < floor.floor else "slows",
            title=f"at most {most:,} {title} (ulimit -H{letter}); {floor.wanted:,} are wanted",
            why=f"{why}; {mend}",
            command=f"ulimit -S{letter} {floor.wanted}"
            if limit is not None and limit.hard >= floor.wanted
            else f"echo '{facts.host.user} - {name} {floor.wanted}' | sudo tee /etc/security/limits.d/autolaunch.conf"
            if facts.host.os == "linux" and not facts.host.container
            else None,
            numbers={"limit": most, "floor": floor.floor, "wanted": floor.wanted},
        )
    memlock = facts.host.limits.get("memlock")
    if facts.host.infiniband and memlock is not None and memlock.hard < UNLIMITED:
        yield Finding(
            code="limit.memlock",
            severity="slows",
            title=f"at most {_gib(memlock.hard)} of memory may be locked (ulimit -Hl)",
            why="InfiniBand registers the memory that nodes send each other from; with a limit they fall back to TCP"
            + ("; start the container with --ulimit memlock=-1" if facts.host.container else ""),
            command=None
            if facts.host.container
            else f"echo '{facts.host.user} - memlock unlimited' | sudo tee /etc/security/limits.d/autolaunch-ib.conf",
            numbers={"limit_bytes": memlock.hard},
        )
    tasks, floor = facts.host.tasks_limit, floors.limits["nproc"]
    if tasks is not None and tasks < floor.wanted:
        yield Finding(
            code="limit.tasks",
            severity="stops" if tasks < floor.floor else "slows",
            title=f"the control group allows {tasks:,} threads; {floor.wanted:,} are wanted",
            why="every rank starts a thread a core for several libraries"
            + (f"; start the container with --pids-limit={floor.wanted}" if facts.host.container else ""),
            numbers={"limit": tasks, "floor": floor.floor, "wanted": floor.wanted},
        )


def memory(facts: Facts, floors: Floors) -> Iterator[Finding]:
    """Control groups, huge pages, swap, strict accounting."""
    host, wanted = facts.host, facts.wanted
    own, allowed = host.memory_total_bytes, host.memory_limit_bytes
    if own is not None and allowed is not None and allowed < own:
        yield Finding(
            code="memory.cgroup",
            severity="info",
            title=f"a control group allows {_gib(allowed)} of the host's {_gib(own)}",
            why="plans count with what is allowed"
            + ("; start the container with a larger --memory for more" if host.container else ""),
            numbers={"allowed_bytes": allowed, "total_bytes": own},
        )
    if host.hugepages_bytes:
        yield Finding(
            code="memory.hugepages",
            severity="slows",
            title=f"{_gib(host.hugepages_bytes)} are set aside as huge pages",
            why="no engine here uses them, and nothing else may: plans count without them",
            command="sudo sysctl vm.nr_hugepages=0",
            numbers={"reserved_bytes": host.hugepages_bytes},
        )
    if host.transparent_hugepages == "never" and not facts.report.accelerators:
        yield Finding(
            code="memory.thp",
            severity="slows",
            title="transparent huge pages are off",
            why="a processor that reads weights of many gigabytes looks up eight times as many pages and more",
            command="echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )
    if host.swap_used_bytes and own and host.swap_used_bytes > own // 20:
        yield Finding(
            code="memory.swap",
            severity="slows",
            title=f"{_gib(host.swap_used_bytes)} are swapped out",
            why="weights or caches that are read back from swap stall answers; find who needs so much memory",
            command="ps -eo pid,user,rss,comm --sort=-rss",
            numbers={"used_bytes": host.swap_used_bytes},
        )
    if host.overcommit == 2 and host.commit_limit_bytes is not None and host.committed_bytes is not None:
        left = max(0, host.commit_limit_bytes - host.committed_bytes)
        needs = 0 if wanted is None else int(wanted.host_bytes * floors.memory.overcommit_margin)
        yield Finding(
            code="memory.overcommit",
            severity="stops" if needs > left else "slows",
            title=f"memory is accounted strictly (vm.overcommit_memory=2), {_gib(left)} are left",
            why="CUDA and engines map far more than they use: their start ends in 'cannot allocate memory'",
            command="sudo sysctl vm.overcommit_memory=0",
            numbers={"left_bytes": left, "needed_bytes": needs},
        )


def apple(facts: Facts, floors: Floors) -> Iterator[Finding]:
    """What macOS lets a GPU wire of the memory, against what a model takes."""
    device = next((each for each in facts.report.accelerators if each.vendor == "apple"), None)
    total = None if device is None else device.memory_total_bytes
    if device is None or device.metal is None or total is None:
        return
    limit = device.metal.wired_limit_bytes or device.metal.recommended_working_set_bytes
    most = total - floors.apple.macos_bytes
    if limit is None:
        return
    if limit > most:
        yield Finding(
            code="apple.wired",
            severity="slows",
            title=f"GPUs may wire {_gib(limit)} of {_gib(total)}",
            why="too little is left for macOS: wired memory cannot be swapped, and a full Mac panics",
            command=f"sudo sysctl iogpu.wired_limit_mb={most // 1024**2}",
            numbers={"limit_bytes": limit, "safe_bytes": most},
        )
    wanted = facts.wanted
    if wanted is None or wanted.memory_bytes <= limit:
        return
    fits = wanted.memory_bytes <= most
    yield Finding(
        code="apple.wired",
        severity="stops",
        title=f"GPUs may wire {_gib(limit)}; {wanted.model} takes {_gib(wanted.memory_bytes)}",
        why="macOS keeps a share back by itself; it is lost at a reboot, and set again by a launch daemon"
        if fits
        else "it does not fit this Mac: autolaunch advise tells what would",
        command=f"sudo sysctl iogpu.wired_limit_mb={-(-wanted.memory_bytes // 1024**2)}" if fits else None,
        numbers={"limit_bytes": limit, "needed_bytes": wanted.memory_bytes},
    )


def clock(facts: Facts, floors: Floors) -> Iterator[Finding]:
    """A clock that is wrong: certificates are judged by it."""
    wrong = facts.host.clock_year < floors.clock.earliest_year
    if wrong or facts.host.clock_synchronised is False:
        yield Finding(
            code="host.clock",
            severity="stops" if wrong else "slows",
            title=f"the clock says {facts.host.clock_year}" if wrong else "the clock is not set by the network",
            why="hubs and package indexes are refused (TLS) by a clock that is wrong, and measurements of several "
            "hosts cannot be compared" + ("; a container has the clock of its host" if facts.host.container else ""),
            command=None
            if facts.host.container
            else "sudo timedatectl set-ntp true"
            if facts.host.os == "linux"
            else "sudo systemsetup -setusingnetworktime on",
            numbers={"year": facts.host.clock_year},
        )


def tools(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """What makes engines' environments."""
    if facts.host.uv is None:
        here = facts.wanted is not None and facts.wanted.installed
        yield Finding(
            code="tools.uv",
            severity="slows" if here else "stops",
            title="uv is not installed",
            why="it makes the environments of the engines" + ("; the one of this plan is here" if here else ""),
            command="pip install uv",
        )


def container(facts: Facts, floors: Floors) -> Iterator[Finding]:  # noqa: ARG001 (every check is called alike)
    """A container that was given no GPU."""
    named = facts.host.container
    if named is None or facts.report.accelerators:
        return
    if any(each.outcome == "failed" for each in facts.report.findings):
        return  # told as the driver's fault
    yield Finding(
        code="host.container",
        severity="info",
        title=f"this is a container ({named}) without a GPU",
        why="if the host has some, start it with --gpus all (NVIDIA), or --device /dev/kfd --device /dev/dri (AMD)",
    )


def _gib(size_bytes: int) -> str:
    if size_bytes < GIB // 10:
        return f"{size_bytes / 1024**2:.0f} MiB"
    return f"{size_bytes / GIB:.1f} GiB".replace(".0 GiB", " GiB")
