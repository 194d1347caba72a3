"""Between Ray's worker and what it runs on a node: when the worker lets go, or is gone, all that it ran is ended.

Sent to the node as text and run there by its Python (``python -I - CHANNEL_FD INPUT_FD GRACE_SECONDS PROGRAM
[ARGUMENT…]``): it imports nothing but the standard library. The program reads what ``INPUT_FD`` holds. Once nothing of
it is left the keeper writes ``exited CODE`` (128 and the signal's number where it was ended by one) or ``failed WHY``
to the channel. The channel's end is the order to end.

It is nobody's child: when a worker of Ray exits it kills its own children, and a keeper that is killed keeps nothing
(``RAY_kill_child_processes_on_worker_exit``; Ray 2.60). On Linux it is the subreaper of everything the program starts,
so that a descendant in a session of its own is found; elsewhere the program's process group is what is ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
#: When SIGKILL has not worked by then, the process is in the kernel's hands.
KILL_SECONDS = 5.0


class Keeper:
    """One program and all that descends from it."""

    def __init__(self, channel: socket.socket, grace_seconds: float) -> None:
        self._channel, self._grace_seconds = channel, grace_seconds
        self._status: int | None = None
        self._told = False
        self._wakeup, self._wakeup_write = os.pipe()
        for end in (self._wakeup, self._wakeup_write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD:
            self._told = True

    def run(self, argv: list[str], its_input: int) -> str:
        """Runs the program to its end or until it is told, with that descriptor to read; what came of it."""
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            child = subprocess.Popen(
                argv,
                stdin=its_input,
                start_new_session=True,
                # Killed with this one, should somebody kill it.
                preexec_fn=lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 - one thread
            )
        except OSError as error:
            return f"failed {error.strerror}"
        os.close(its_input)
        while self._status is None and not self._told:
            self._wait(child.pid, 60.0)
        if self._status is None:
            _signal_group(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_seconds
        while self._status is None and time.monotonic() < deadline:
            self._wait(child.pid, 0.2, listens=False)
        self._kill(child.pid)
        child.returncode = 0  # reaped here: subprocess has nothing to look after
        return f"exited {1 if self._status is None else self._status}"

    def _wait(self, main: int, seconds: float, *, listens: bool = True) -> None:
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        if listens:
            poll.register(self._channel, select.POLLIN)  # it carries nothing: readable means closed
        ready = {descriptor for descriptor, _ in poll.poll(seconds * 1000)}
        if self._channel.fileno() in ready:
            self._told = True
        if self._wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 4096)
        self._reap(main)

    def _reap(self, main: int) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == main:
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else 128 - code

    def _kill(self, main: int) -> None:
        """What the program started and left goes with it."""
        _signal_group(main, signal.SIGKILL)
        deadline = time.monotonic() + KILL_SECONDS
        while time.monotonic() < deadline:
            left = descendants(os.getpid())
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self._wait(main, 0.02, listens=False)
            if not left and self._status is not None:
                return


def descendants(root: int) -> list[int]:
    """The living processes below ``root``, where the kernel shows them in ``/proc``."""
    below: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if sys.platform == "linux" else ():  # noqa: PTH208 - names are all that is wanted
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - pathlib is not worth its import here
                state, parent = file.read(4096).rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    below.setdefault(int(parent), []).append(int(name))
    found: list[int] = []
    left = [root]
    while left:
        children = below.get(left.pop(), [])
        found += children
        left += children
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def main(arguments: list[str]) -> int:
    if os.fork():
        os._exit(0)
    os.setsid()
    descriptor, its_input, grace_seconds, *argv = arguments
    channel = socket.socket(fileno=int(descriptor))
    os.set_inheritable(channel.fileno(), False)
    outcome = Keeper(channel, float(grace_seconds)).run(argv, int(its_input))
    with contextlib.suppress(OSError):  # nobody is there to hear
        channel.sendall(outcome.encode(errors="replace") + b"\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
