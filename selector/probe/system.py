"""The seams between the probes and the machine: everything a probe touches comes in through a :class:`System`.

Tests and the recorder of machines hand in another root directory, another platform and recorded outputs; the
probes themselves are the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from selector.hardware import Accelerator, Driver, Finding, Link
from selector.probe.interfaces import Interface, interfaces
from selector.probe.text import printable, read_text
from selector.values import Value

#: system_profiler answers in under a second on an idle Mac; a busy one gets time, a stuck one does not hold us.
COMMAND_SECONDS = 10.0
OUTPUT_LIMIT_BYTES = 1 << 20
#: A process's name is at most 15 bytes to Linux (TASK_COMM_LEN is 16); its first argument is read this far.
_COMM_BYTES, _PROGRAM_BYTES = 16, 4096


class Probed(Value, frozen=True, kw_only=True):
    """What one vendor's probe came back with. ``findings`` has at least one entry."""

    accelerators: tuple[Accelerator, ...] = ()
    links: tuple[Link, ...] = ()
    drivers: tuple[Driver, ...] = ()
    findings: tuple[Finding, ...]


class Completed(NamedTuple):
    """A command's output, or why there is none. A command that fails may still have said something."""

    output: str
    failure: str | None = None


class HostMemory(NamedTuple):
    total_bytes: int | None
    available_bytes: int | None


Runner = Callable[[tuple[str, ...]], Completed]


class System(msgspec.Struct, frozen=True, kw_only=True):
    """One machine as the probes see it. ``platform`` is ``sys.platform``'s word."""

    root: Path
    platform: str
    machine: str | None
    kernel: str | None
    environment: Mapping[str, str]
    run: Runner
    cores: Callable[[], int | None]
    memory: Callable[[], HostMemory]
    process_name: Callable[[int], str | None]
    disk_free: Callable[[Path], int | None]
    interfaces: Callable[[], Mapping[str, Interface]]


def this_system(environment: Mapping[str, str] | None = None) -> System:
    """The machine this runs on."""
    name = os.uname()
    return System(
        root=Path("/"),
        platform=sys.platform,
        machine=name.machine,
        kernel=name.release,
        environment=os.environ if environment is None else environment,
        run=run,
        cores=usable_cores,
        memory=host_memory,
        process_name=process_name,
        disk_free=disk_free,
        interfaces=interfaces,
    )


def usable_cores() -> int | None:
    """Logical processors this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def host_memory() -> HostMemory:
    """What psutil says; asked only where there is no /proc/meminfo, since importing it takes its time."""
    import psutil

    memory = psutil.virtual_memory()
    return HostMemory(memory.total, memory.available)


def process_name(pid: int) -> str | None:
    """A process's name, or ``None``: it may be gone, or run in another container's process namespace."""
    if sys.platform != "linux":
        import psutil

        try:
            return printable(psutil.Process(pid).name())
        except (psutil.Error, OSError, ValueError):
            return None
    # Importing psutil would take longer than all questions to the driver.
    place = Path("/proc") / str(pid)
    name = printable(read_text(place / "comm", _COMM_BYTES))
    if name is not None and len(name.encode()) >= _COMM_BYTES - 1:
        # The kernel cut it; the command line may begin with the whole of it.
        program = (read_text(place / "cmdline", _PROGRAM_BYTES) or "").partition("\0")[0]
        whole = printable(program.rpartition("/")[2])
        name = whole if whole is not None and whole.startswith(name) else name
    return name


def disk_free(path: Path) -> int | None:
    """Bytes that this user may still write at ``path`` or its nearest existing parent."""
    for place in (path, *path.parents):
        try:
            disk = os.statvfs(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):  # ValueError: a NUL in the path
            return None
        return disk.f_bavail * disk.f_frsize
    return None


def run(argv: tuple[str, ...]) -> Completed:
    """Run a command without a shell, bounded in time (:data:`COMMAND_SECONDS`) and output (1 MiB).

    Its standard error is dropped. A grandchild that keeps the pipe open does not hold us past the deadline.
    """
    import select
    import subprocess
    import time

    deadline = time.monotonic() + COMMAND_SECONDS
    chunks: list[bytes] = []
    size = 0
    failure: str | None = None
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},  # some tools translate their keys
        )
    except OSError as error:
        return Completed("", f"{argv[0]} could not be run: {error.strerror or error}")
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for above
    with process.stdout as pipe:
        poll = select.poll()  # select itself refuses descriptors above 1023, which a server may have
        poll.register(pipe, select.POLLIN)
        while failure is None:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                failure = f"{argv[0]} did not answer within {COMMAND_SECONDS:g} seconds"
                break
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                break
            chunks.append(chunk)
            size += len(chunk)
            if size > OUTPUT_LIMIT_BYTES:
                failure = f"{argv[0]} wrote more than {OUTPUT_LIMIT_BYTES} bytes"
    if failure is None:
        try:
            status = process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            failure = f"{argv[0]} did not end within {COMMAND_SECONDS:g} seconds"
        else:
            failure = None if status == 0 else f"{argv[0]} exited with {status}"
    if process.returncode is None:
        process.kill()
        process.wait()
    return Completed(b"".join(chunks).decode("utf-8", "replace"), failure)
