"""Programs that do not outlive us: an installer, a download. Stopped when we end in any way, SIGKILL too.

Between us and the program stands a small process (this file, run by its path with ``python -I``): it holds the
reading end of a pipe, and when the other end closes, because we let go or are gone, it ends the program with its
process group. Nothing has to be done between fork and exec in a process that may have threads.

Usage: ``leash.py PIPE_FD PROGRAM [ARGUMENT…]``, as the leader of a process group. It exits as the program did.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

#: What a program gets to end by itself.
GRACE_SECONDS = 3.0


@contextlib.contextmanager
def on_leash(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    stdout: int,
    working_directory: Path | None = None,
    pass_fds: Sequence[int] = (),
    umask: int = -1,
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs ``argv`` with its standard error on a pipe; left by an exception, it and its children are ended first.

    A ``umask`` of -1 is ours.

    Raises:
        OSError: no process could be made. (A program that cannot be run exits with 127 and says so.)
    """
    read_end, write_end = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                (sys.executable, "-I", __file__, str(read_end), *argv),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                env=dict(environment),
                cwd=working_directory,
                start_new_session=True,
                pass_fds=(read_end, *pass_fds),
                umask=umask,
            )
        finally:
            os.close(read_end)
        with process:
            try:
                yield process
            except BaseException:
                _end(process)
                raise
    finally:
        os.close(write_end)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process group, within the grace time and a moment."""
    for number, patience_seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + patience_seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)


def main(arguments: list[str]) -> int:
    """The process in between. It has one thread."""
    descriptor, *argv = arguments
    pipe = int(descriptor)
    os.set_inheritable(pipe, False)
    wakeup, wakeup_write = os.pipe()
    for end in (wakeup, wakeup_write):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    told: list[int] = []
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        # What was handed to us to hold (a lock) the program holds as well.
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, close_fds=False)
    except OSError as error:
        sys.stderr.write(f"error: {argv[0]} could not be run: {error.strerror}\n")
        return 127
    # The write end never carries anything: readable means closed.
    poll = select.poll()  # select itself refuses descriptors above 1023, and ours is as high as the launcher's
    for each in (pipe, wakeup):
        poll.register(each, select.POLLIN)
    while child.poll() is None and not told:
        readable = {each for each, _ in poll.poll()}
        if pipe in readable:
            told.append(0)
        elif wakeup in readable:
            os.read(wakeup, 4096)
    if not told:
        code = child.returncode
        return code if code >= 0 else 128 - code
    deadline = time.monotonic() + GRACE_SECONDS
    os.killpg(0, signal.SIGTERM)
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(0, signal.SIGKILL)  # what it started and left, and this process
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
