"""In the daemon's place: speaks to systemd as it does, and behaves as it is told, by words on its command line.

late=SECONDS  ready only then            hang=SECONDS  ready at once, then no ping any more
exit=CODE     ends so at the start       child         has a process in a session of its own, which ends by KILL alone
look          prints what it can do in its sandbox, as one line of JSON
open=PATH     prints whether it can open that
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from autolaunch.daemon.notify import Notifier

_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('child', flush=True); time.sleep(600)"
)


def main(words: list[str]) -> int:
    notifier = Notifier.from_environment(os.environ)
    told = dict(word.partition("=")[::2] for word in words)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: asked.append(number))
    if "exit" in told:
        say("ending at once")
        return int(told["exit"])
    if "child" in told:
        subprocess.Popen([sys.executable, "-c", _STUBBORN], start_new_session=True)
    if "look" in told:
        say(json.dumps(look(), sort_keys=True))
    if "open" in told:
        say(f"opens it: {_can(lambda: os.close(os.open(told['open'], os.O_RDWR | os.O_NONBLOCK)))}")
    late, hangs = time.monotonic() + float(told.get("late", 0)), time.monotonic() + float(told.get("hang", "inf"))
    ready, reloads = False, 0
    interval = (notifier.watchdog_seconds or 1) / 2
    pinged = 0.0
    while signal.SIGTERM not in asked:
        now = time.monotonic()
        if not ready and now >= late:
            ready = notifier.ready("all is well")
        elif not ready:
            notifier.status("getting ready")
        if signal.SIGHUP in asked:
            asked.remove(signal.SIGHUP)
            reloads += 1
            notifier.reloading()
            notifier.ready(f"read again {reloads} times")
        if now - pinged >= interval / 2 and now < hangs:
            pinged = now
            notifier.watchdog()
        time.sleep(0.02)
    notifier.stopping("stopping")
    say("stopped in order")
    return 0


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def look() -> dict[str, object]:
    """What a daemon and its engines have to be able to do, and what they must not."""
    return {
        "user": os.getuid() != 0,
        "state": _can(lambda: (Path(os.environ["AUTOLAUNCH_HOME"]) / "tried").write_text("x")),
        "cache": _can(lambda: (Path(os.environ["XDG_CACHE_HOME"]) / "tried").write_text("x")),
        "runtime": _can(lambda: (Path(os.environ["RUNTIME_DIRECTORY"]) / "tried").write_text("x")),
        "uv cache is linked from": _can(_link),
        "compiles": _can(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()),
        "compiles, then runs": _can(_write_then_execute),
        "shared memory": _can(_share_memory),
        "unix": _can(lambda: socket.socket(socket.AF_UNIX).close()),
        "inet": _can(lambda: socket.socket(socket.AF_INET).close()),
        "inet6": _can(lambda: socket.socket(socket.AF_INET6).close()),
        "netlink": _can(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()),
        "session": _can(lambda: subprocess.run(["/bin/true"], check=True, start_new_session=True)),
        "affinity": _can(lambda: os.sched_setaffinity(0, os.sched_getaffinity(0))),
        "process 1 is seen": Path("/proc/1/cmdline").exists(),
        "meminfo is seen": Path("/proc/meminfo").exists(),
        "token": _token(),
        # From here on: must not.
        "packet": _can(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
        "writes /usr": _can(lambda: Path("/usr/tried").write_text("x")),
        "writes /etc": _can(lambda: Path("/etc/autolaunch/tried").write_text("x")),
        "sees /root": _can(lambda: list(Path("/root").iterdir())),
        "is watched by name": any(name.startswith(("NOTIFY_", "WATCHDOG_")) for name in os.environ),
        "tmp of the host": Path("/tmp/of-the-host").exists(),  # noqa: S108 - a name that the test makes
        "disk": _can(lambda: Path("/dev/vda").open("rb").close()),
    }


def _can(act: Callable[[], object]) -> bool:
    try:
        act()
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _link() -> None:
    cached = Path(os.environ["UV_CACHE_DIR"]) / f"cached-{os.getpid()}"
    cached.parent.mkdir(exist_ok=True)
    cached.write_text("x")
    (Path(os.environ["AUTOLAUNCH_HOME"]) / f"linked-{os.getpid()}").hardlink_to(cached)


def _share_memory() -> None:
    at = Path(f"/dev/shm/autolaunch-test-{os.getpid()}")  # noqa: S108 - shared memory is what is tried
    at.write_bytes(b"x")
    at.unlink()


def _write_then_execute() -> None:
    """As most compilers at run time do it: written first, then made executable."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    page = libc.mmap(None, ctypes.c_size_t(4096), 3, 0x22, -1, ctypes.c_long(0))
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(4096), 5) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def _token() -> str | None:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return None if folder is None else (Path(folder) / "hf-token").read_text()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
