"""What an earlier daemon started and could not end: found by what it left in the state file, and ended.

The guard ends an engine with its daemon, SIGKILL or not (:mod:`autolaunch.daemon.guard`). Only where the guard was
killed too can something be left. It is ours if it carries the run's mark in its environment, or is the very process
(id and start time) that was noted down, or is in the session that such a process leads. Nothing else is touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil

from autolaunch.daemon.deployment import Fault, Kept, KeptDeployment, KeptRun
from autolaunch.daemon.guard import FOLLOW_SECONDS, KILL_SECONDS
from autolaunch.daemon.process import GRACE_SECONDS
from autolaunch.launching import RUN_MARK

#: What a guard that lost its daemon takes at most: the grace, and its own bound.
GUARD_SECONDS = GRACE_SECONDS + FOLLOW_SECONDS + KILL_SECONDS
#: A start time is kept in hundredths of a second.
_SAME_SECONDS = 0.02


def started_at(pid: int) -> float:
    """When a process started, in seconds since the boot (elsewhere than on Linux since 1970); 0 when it is gone.

    The kernel's own figure: the wall clock, which psutil adds, may have been set since.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        pass
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def survivors(run: KeptRun) -> tuple[int, ...]:
    """The processes of ``run`` that are still there, the guard among them."""
    known = {run.guard_pid: run.guard_started, run.engine_pid: run.engine_started}
    living = {pid for pid, started in known.items() if started and abs(started_at(pid) - started) < _SAME_SECONDS}
    found = set(living)
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            in_session = run.engine_pid in living and os.getsid(process.pid) == run.engine_pid
            if in_session or process.environ().get(RUN_MARK) == run.mark:
                found.add(process.pid)
        except (psutil.Error, OSError):
            continue  # gone, or another user's: not ours
    return tuple(sorted(pid for pid in found if _lives(pid)))


def end_survivors(
    run: KeptRun,
    *,
    patience_seconds: float = GUARD_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[int, ...]:
    """Ends what is left of ``run``, within ``patience_seconds`` and ten more; returns what would not end.

    A guard that is still there is at it already, and is waited for; what has none is asked and then killed.
    """
    deadline = clock() + patience_seconds
    left = survivors(run)
    while left and run.guard_pid in left and clock() < deadline:
        sleep(0.1)
        left = survivors(run)
    for number, seconds in ((signal.SIGTERM, FOLLOW_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        deadline = clock() + seconds
        while left and clock() < deadline:
            for pid in left:
                _signal(pid, number)
            sleep(0.1)
            left = survivors(run)
    return left


def end_all(kept: Kept, say: Callable[[str, str], None]) -> dict[str, KeptDeployment]:
    """Ends engines that outlived their daemon, all at once; gives the deployments whose did not end, given up on.

    ``say`` is told of each deployment, by its name, that something was left of; from threads.
    """

    def end(name: str, each: KeptDeployment) -> tuple[str, KeptDeployment] | None:
        found = () if each.run is None else survivors(each.run)
        if each.run is None or not found:
            return None
        say(name, f"an earlier daemon left processes {list(found)}: ending them")
        left = end_survivors(each.run)
        if not left:
            return None
        message = f"processes {list(left)} of an earlier daemon's engine would not end"
        hint = "end them, or reboot"
        fault = Fault(reason="processes left", permanent=True, message=message, hint=hint)
        return name, msgspec.structs.replace(each, latched=fault, run=None)

    with ThreadPoolExecutor(8, thread_name_prefix="survivors") as pool:
        return dict(filter(None, pool.map(end, kept.deployments.keys(), kept.deployments.values())))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(psutil.Error):
        psutil.Process(pid).send_signal(number)
