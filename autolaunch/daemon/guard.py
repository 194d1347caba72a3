"""The guard: a small process between autolaunch and an engine, so that no engine outlives its launcher.

It is a program of its own (run by path with ``python -I``), so that nothing has to be done between fork
and exec in a launcher that may have threads. What holds:

* Linux and macOS: the launcher's end of a socket closes when it ends in any way, SIGKILL too; the guard
  then stops the engine as if it had been asked to.
* Linux: the guard is the child subreaper of everything the engine starts, so a descendant that left
  the session and lost its parent becomes the guard's child and is ended too; and the engine itself is
  killed by the kernel if the guard is.
* macOS has neither: a descendant that left the session *and* lost its parent is not found.

Usage: ``guard.py SOCKET_FD GRACE_SECONDS PROGRAM [ARGUMENT…]``. It writes ``started PID`` or
``failed MESSAGE`` to the socket, later ``exited CODE`` before it cleans up (negative: a signal), and ``left PID…`` if
something would not die; it reads ``kill`` (no more grace) and end of file (stop). It exits as the engine did.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
#: What descendants get to follow the engine's main process by themselves (shared memory, caches).
FOLLOW_SECONDS = 2.0
#: When SIGKILL has not worked by then, the process is in the kernel's hands.
KILL_SECONDS = 10.0
#: How often the guard looks whether its launcher is still its parent (a forked copy may hold the socket).
PARENT_SECONDS = 5.0


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class Guard:
    def __init__(self, channel: socket.socket, grace_seconds: float, argv: list[str]) -> None:
        self.channel = channel
        self.grace_seconds = grace_seconds
        self.argv = argv
        self.parent = os.getppid()
        self.engine = 0
        self.status: int | None = None
        self.kill_now = False
        self.told_to_stop = False
        self.listening = True
        self.wakeup, wakeup_write = socket.socketpair()
        for end in (self.wakeup, wakeup_write):
            end.setblocking(False)
        self._wakeup_write = wakeup_write  # kept open
        signal.set_wakeup_fd(wakeup_write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD:
            self.told_to_stop = True

    def tell(self, message: str) -> None:
        with contextlib.suppress(OSError):  # the launcher is gone; the loop sees it
            self.channel.sendall(message.encode() + b"\n")

    def run(self) -> int:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        own = os.getpid()

        def in_child() -> None:  # this process has one thread, so this is safe
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != own:
                os._exit(1)

        try:
            child = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=in_child,  # noqa: PLW1509 - one thread
            )
        except OSError as error:
            self.tell(f"failed {error.strerror}")
            return 127
        self.engine = child.pid
        self.tell(f"started {child.pid}")
        # While the engine begins, and not before it; at the end there may be no disk to read it from.
        import psutil  # noqa: F401 - read now, used when descendants are counted

        # From here on children are reaped below, whoever they are.
        while self.status is None and not self.told_to_stop:
            self._wait(PARENT_SECONDS)
            if os.getppid() != self.parent:
                self.told_to_stop = True
        self._stop()
        child.returncode = 0  # reaped here: subprocess has nothing to look after
        return self._exit_code()

    def _wait(self, seconds: float) -> None:
        """Sleeps until a child ends, the launcher speaks, or the time is over; then takes all of it in."""
        watched = [self.wakeup, self.channel] if self.listening else [self.wakeup]
        poll = select.poll()  # select itself refuses descriptors above 1023, and ours is as high as the launcher's
        for each in watched:
            poll.register(each, select.POLLIN)
        readable = {descriptor for descriptor, _ in poll.poll(seconds * 1000)}
        if self.wakeup.fileno() in readable:
            with contextlib.suppress(BlockingIOError):
                self.wakeup.recv(4096)
        if self.channel.fileno() in readable:
            self._listen()
        self._reap()

    def _listen(self) -> None:
        try:
            message = self.channel.recv(4096)
        except OSError:
            message = b""
        self.told_to_stop = True
        if b"kill" in message:
            self.kill_now = True
        # Closed, poll would return at once for ever.
        self.listening = bool(message)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.engine:
                self.status = status
                self.tell(f"exited {os.waitstatus_to_exitcode(status)}")

    def _descendants(self) -> list[int]:
        """Everything below the guard; on macOS also what is still in the engine's session."""
        found: set[int] = set()
        import psutil

        with contextlib.suppress(psutil.Error):
            found.update(
                child.pid
                for child in psutil.Process().children(recursive=True)
                if child.status() != psutil.STATUS_ZOMBIE
            )
        if sys.platform != "linux":
            for pid in psutil.pids():
                try:
                    if pid != os.getpid() and os.getsid(pid) == self.engine:
                        found.add(pid)
                except OSError:
                    continue
        return sorted(found)

    def _stop(self) -> None:
        self._reap()
        deadline = time.monotonic() + self.grace_seconds
        if self.status is None:
            _signal_group(self.engine, signal.SIGTERM)
        while self.status is None and not self.kill_now and time.monotonic() < deadline:
            self._wait(0.5)
        if self.status is not None and not self.kill_now:
            self._follow(min(max(deadline, time.monotonic()), time.monotonic() + FOLLOW_SECONDS))
        self._kill()

    def _follow(self, deadline: float) -> None:
        """Gives what the engine left behind a moment to end by itself."""
        left = self._descendants()
        for pid in left:
            _signal(pid, signal.SIGTERM)
        while left and not self.kill_now and time.monotonic() < deadline:
            self._wait(0.05)
            left = self._descendants()

    def _kill(self) -> None:
        if self.status is None:
            _signal_group(self.engine, signal.SIGKILL)
        deadline = time.monotonic() + KILL_SECONDS
        left = self._descendants()
        while left or self.status is None:
            for pid in left:
                _signal(pid, signal.SIGKILL)
            self.kill_now = self.told_to_stop = True
            self._wait(0.02)
            left = self._descendants()
            if time.monotonic() > deadline:
                self.tell("left " + " ".join(map(str, left)))
                return

    def _exit_code(self) -> int:
        if self.status is None:
            return 1
        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.set_wakeup_fd(-1)
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return os.waitstatus_to_exitcode(self.status)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        _signal(group, number)


def main(arguments: list[str]) -> int:
    descriptor, grace_seconds, *argv = arguments
    channel = socket.socket(fileno=int(descriptor))
    channel.setblocking(True)
    os.set_inheritable(channel.fileno(), False)
    return Guard(channel, float(grace_seconds), argv).run()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
