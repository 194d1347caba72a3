"""A systemd of the tests' own: process 1 of new namespaces, with mounts of its own and a cgroup of its own.

It is the host's systemd program with the host's /usr. All that it writes (/etc, /run, /var, /tmp, homes, the journal)
lies in memory, in its own mounts, and goes with it. autolaunch is there as a host has it that was set up well:
below ``PLACE``, where any user may read it, whoever runs the tests and wherever the sources lie.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[2]
#: Where autolaunch and what it needs are found inside.
PLACE = Path("/run/autolaunch-test")
PROGRAM = PLACE / "bin/autolaunch"
PYTHON = PLACE / "bin/python"
#: A folder of the tests that is seen inside at the same place in PLACE, and may be written there by anybody.
SHARED = PLACE / "shared"

SYSTEMD = Path("/lib/systemd/systemd")
PROGRAMS = ("unshare", "nsenter", "systemctl", "journalctl", "systemd-analyze", "mount")
QUEUES = Path("/dev/mqueue")
NAMESPACES = ("--pid", "--mount", "--uts", "--ipc", "--cgroup")
START_SECONDS = 20.0

_Answer = TypeVar("_Answer")
#: Those of one run of the tests are told apart.
_NUMBERS = itertools.count()

#: Run as the first process, which becomes systemd. Its arguments are pairs: a thing of the host, and its place inside.
_FIRST = """\
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
cp -a /etc /mnt/etc
# Held before what hides them is mounted, and put in place after it.
number=0
for argument in "$@"; do
  number=$((number + 1))
  [ $((number % 2)) = 1 ] || continue
  if [ -d "$argument" ]; then mkdir /mnt/$number; else touch /mnt/$number; fi
  mount --rbind "$argument" /mnt/$number
done
for folder in /run /root /home /var/lib /var/cache /var/log; do mount -t tmpfs -o mode=755 tmpfs $folder; done
for folder in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $folder; done
mount --bind /mnt/etc /etc
number=0
for argument in "$@"; do
  number=$((number + 1))
  [ $((number % 2)) = 0 ] || continue
  held=/mnt/$((number - 1))
  if [ -d $held ]; then mkdir -p "$argument"; else mkdir -p "${argument%/*}"; [ -e "$argument" ] || : > "$argument"; fi
  mount --rbind $held "$argument"
done
mkdir -p /run/systemd/system
# No unit of the host's: what a boot does to devices, mounts and sysctls would be done to the host.
mount -t tmpfs -o mode=755 tmpfs /usr/lib/systemd/system
rm -rf /etc/systemd/system /etc/systemd/user /etc/autolaunch /etc/sysusers.d/autolaunch.conf
rm -f /etc/tmpfiles.d/autolaunch.conf /etc/systemd/journald.conf
mkdir -p /etc/systemd/system /etc/systemd/user /var/log/journal
printf '[Journal]\\nStorage=persistent\\nReadKMsg=no\\nAudit=no\\nForwardToWall=no\\nRateLimitBurst=0\\n' \\
  > /etc/systemd/journald.conf
for name in test sysinit basic shutdown multi-user network-online sockets timers paths slices local-fs umount; do
  printf '[Unit]\\nDefaultDependencies=no\\n' > /usr/lib/systemd/system/$name.target
done
# Not the host's /dev/log.
printf '[Unit]\\nDefaultDependencies=no\\n[Socket]\\nListenDatagram=/run/systemd/journal/socket\\n%s\\n' \\
  'ListenStream=/run/systemd/journal/stdout
PassCredentials=yes
PassSecurity=yes
SocketMode=0666' > /usr/lib/systemd/system/systemd-journald.socket
printf '[Unit]\\nDefaultDependencies=no\\nRequires=systemd-journald.socket\\nAfter=systemd-journald.socket\\n%s\\n' \\
  '[Service]
Type=notify
ExecStart=/lib/systemd/systemd-journald
Sockets=systemd-journald.socket
StandardOutput=null
Restart=always' > /usr/lib/systemd/system/systemd-journald.service
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# What it says goes to the journal, once there is one, and never to the host's console.
for device in console kmsg; do mount --bind /dev/null /dev/$device; done
hostname autolaunch-test
# As a boot leaves it; the peers are all in here.
mount --make-rshared /
exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
  /lib/systemd/systemd --system --unit=test.target --log-target=journal --log-level=info --show-status=no
"""


def why_not() -> str | None:
    """Why a systemd of the tests' own cannot run here, ``None`` where it can."""
    if sys.platform != "linux":
        return "systemd is Linux's"
    if os.geteuid() != 0:
        return "a systemd in namespaces of its own needs root"
    if not SYSTEMD.exists():
        return f"there is no {SYSTEMD}"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} is not installed"
    if _cgroup2() is None:
        return "no cgroup2 hierarchy is mounted"
    unshare = shutil.which("unshare") or "unshare"
    tried = subprocess.run([unshare, "--fork", *NAMESPACES, "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "namespaces cannot be made here"


def _cgroup2() -> Path | None:
    """Our own folder in the cgroup2 hierarchy."""
    found = re.search(r"^\S+ \S+ \S+ / (\S+) .* - cgroup2 ", Path("/proc/self/mountinfo").read_text(), re.MULTILINE)
    own = re.search(r"^0::(\S+)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    return None if found is None or own is None else Path(found[1]) / own[1].lstrip("/")


class Systemd:
    """A running systemd. :meth:`stop` ends it and everything in it."""

    def __init__(self, folder: Path, binds: tuple[tuple[Path, Path], ...] = ()) -> None:
        """``folder`` is empty and the tests' own. ``binds`` are more things of the host, each with its place inside."""
        self.folder = folder
        #: What is :data:`SHARED` inside.
        self.shared = folder / "place/shared"
        self._since = 0
        self.log_path = folder / "systemd.log"
        _lay_out(folder / "place")
        #: A new IPC namespace gets its queues mounted there; /dev is the host's.
        self._queues_were_there = QUEUES.exists()
        parent = _cgroup2()
        assert parent is not None
        self._cgroup = parent / f"autolaunch-test-{os.getpid()}-{next(_NUMBERS)}"
        self._cgroup.mkdir()
        script = folder / "first.sh"
        script.write_text(_FIRST)
        site = Path(sysconfig.get_path("purelib"))
        python = Path(sys.base_prefix)
        pairs = [
            (folder / "place", PLACE),
            (python, PLACE / "python"),
            (ROOT, PLACE / "source"),
            (site, PLACE / "site"),
        ]
        if python.is_relative_to("/root") or python.is_relative_to("/home"):
            # Where environments that were made outside look for it. Their folders are hidden inside.
            pairs.append((python, python))
        pairs += binds
        members = str(self._cgroup / "cgroup.procs")
        # The shell moves itself before it becomes unshare: the new cgroup namespace begins there.
        become = f'echo $$ > {members} && exec unshare --fork --kill-child {" ".join(NAMESPACES)} --mount-proc sh "$@"'
        argv = [
            "sh",
            "-c",
            become,
            "sh",
            str(script),
            *(str(each) for pair in pairs for each in pair),
        ]
        with self.log_path.open("wb") as log:
            self._outer = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self.pid = self._wait_for_pid()
            self.wait_until(
                lambda: self.run("systemctl", "is-system-running").stdout.strip() in {"running", "degraded"}
            )
            self.systemctl("start", "systemd-journald.service")
        except BaseException:
            self.stop()
            raise

    def _wait_for_pid(self) -> int:
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")

        def found() -> int | None:
            if self._outer.poll() is not None:
                raise AssertionError(f"systemd did not start: {self.log_path.read_text()[-2000:]}")
            pids = children.read_text().split()
            with contextlib.suppress(OSError):
                if pids and Path(f"/proc/{pids[0]}/comm").read_text().strip() == "systemd":
                    return int(pids[0])
            return None

        pid = self.wait_until(found)
        assert isinstance(pid, int)
        return pid

    # --- asking and telling it ----------------------------------------------------------------------

    def run(self, *argv: str, user: str | None = None, timeout_seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, as root or as ``user``, whatever comes of it."""
        inside = [
            "nsenter",
            f"--target={self.pid}",
            "--all",
            "--wd=/",
            "env",
            "-i",
            "LC_ALL=C",
            "TERM=dumb",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
        ]
        if user is not None:
            inside += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        return subprocess.run(
            [*inside, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_seconds,
            cwd="/",
        )

    def must(self, *argv: str, user: str | None = None) -> str:
        """Runs a command inside that has to succeed, and gives what it printed."""
        ended = self.run(*argv, user=user)
        assert ended.returncode == 0, f"{argv} exited {ended.returncode}: {ended.stderr}{ended.stdout}"
        return ended.stdout

    def autolaunch(self, *arguments: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs the autolaunch that is inside."""
        return self.run(str(PROGRAM), *arguments, user=user)

    def systemctl(self, *arguments: str) -> str:
        """Runs systemctl, which has to succeed."""
        return self.must("systemctl", *arguments)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit, as ``ActiveState``."""
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def status(self, unit: str) -> str:
        """What the service said last that it does."""
        return self.show(unit, "StatusText")

    def main_pid(self, unit: str) -> int:
        """The main process's id as it is inside; 0: none."""
        return int(self.show(unit, "MainPID"))

    def processes(self, unit: str) -> tuple[int, ...]:
        """The ids, inside, of all processes of a unit."""
        group = self.show(unit, "ControlGroup")
        listed = self.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs") if group else None
        return tuple(int(pid) for pid in listed.stdout.split()) if listed is not None else ()

    def restarts(self, unit: str) -> int:
        return int(self.show(unit, "NRestarts"))

    def kill(self, unit: str, signal_name: str, who: str = "main") -> None:
        """Sends a signal to a unit's main process, or (``all``) to all of its processes."""
        self.systemctl("kill", f"--kill-who={who}", f"--signal={signal_name}", unit)

    def process(self, pid: int) -> tuple[str, str]:
        """The command line and the environment of a process inside, NUL-separated; empty when it is gone."""
        try:
            words, environment = (self.inside(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            return "", ""
        return words.decode(errors="replace"), environment.decode(errors="replace")

    def journal(self, unit: str, *more: str, output: str = "cat") -> str:
        """What a unit printed, and what systemd said of it, since :meth:`forget` was last called."""
        self.run("journalctl", "--sync")
        asked = ("--no-pager", f"--output={output}", f"--unit={unit}", f"--since=@{self._since / 1e6:.6f}")
        return self.run("journalctl", *asked, *more).stdout

    def _all_said(self) -> str:
        if not hasattr(self, "pid"):
            return self.log_path.read_text(errors="replace")
        return self.run("journalctl", "--no-pager", "--output=short-monotonic").stdout

    def read(self, path: str | Path) -> str:
        return self.must("cat", str(path))

    def write(self, path: str | Path, text: str, mode: int = 0o644) -> None:
        """Writes a file inside."""
        inside = self.inside(path)
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_text(text)
        inside.chmod(mode)

    def inside(self, path: str | Path) -> Path:
        """Where something inside is seen from outside, by root."""
        return Path(f"/proc/{self.pid}/root{Path(path).absolute()}")

    def exists(self, path: str | Path) -> bool:
        return os.path.lexists(self.inside(path))

    # --- units --------------------------------------------------------------------------------------

    def write_unit(self, name: str, text: str) -> None:
        """A unit of the tests, known from now on."""
        self.write(f"/etc/systemd/system/{name}", text)
        self.systemctl("daemon-reload")

    def drop_in(self, unit: str, name: str, text: str) -> None:
        """Changes a unit as an administrator would: the unit as it was installed, and this."""
        self.write_unit(f"{unit}.d/{name}.conf", text)

    def forget(self, unit: str) -> None:
        """Stops a unit and removes its files, its drop-ins and, for :meth:`journal`, what was said so far."""
        self.run("systemctl", "kill", "--signal=KILL", "--kill-who=all", unit)
        self.run("systemctl", "stop", unit)
        self.run("systemctl", "disable", unit)
        self.run("rm", "-rf", f"/etc/systemd/system/{unit}", f"/etc/systemd/system/{unit}.d")
        self.systemctl("daemon-reload")
        self.run("systemctl", "reset-failed", unit)
        self.forget_the_journal()

    def forget_the_journal(self) -> None:
        """What was said so far is not what :meth:`journal` gives."""
        self.run("journalctl", "--sync")
        # By its time, and not by its cursor: 252 loses an entry after a cursor that it filters out.
        shown = self.run("journalctl", "--no-pager", "--lines=1", "--output=json").stdout
        self._since = int(json.loads(shown)["__REALTIME_TIMESTAMP"]) + 1 if shown.strip() else 0

    def wait_until(self, condition: Callable[[], _Answer], *, seconds: float = START_SECONDS) -> _Answer:
        """Asks until the answer is true, and gives it."""
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds} s in vain; the journal says:\n{self._all_said()[-3000:]}")
            time.sleep(0.05)
        return answer

    def wait_for_state(self, unit: str, state: str, *, seconds: float = START_SECONDS) -> None:
        """Until a unit is ``active``, ``failed``, ``inactive``, ``activating``."""
        self.wait_until(lambda: self.show(unit, "ActiveState") == state, seconds=seconds)

    def stop(self) -> None:
        """Ends it. The kernel ends all that is in a process namespace with its first process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(getattr(self, "pid", self._outer.pid), signal.SIGKILL)
        self._outer.wait(timeout=30)
        if not self._queues_were_there and QUEUES.exists():
            QUEUES.rmdir()
        for _ in range(100):
            for folder in sorted(self._cgroup.rglob("*"), key=lambda path: -len(path.parts)):
                if folder.is_dir():
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            with contextlib.suppress(OSError):
                self._cgroup.rmdir()
                return
            time.sleep(0.05)
        raise AssertionError(f"{self._cgroup} cannot be removed: something still runs in it")


def _lay_out(place: Path) -> None:
    """An environment of Python by hand, of folders that are bound in: the interpreter, the packages, the sources."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = place / "lib" / python / "site-packages"
    for folder in (place / "bin", site, place / "shared"):
        folder.mkdir(parents=True)
    (place / "pyvenv.cfg").write_text(f"home = {PLACE}/python/bin\ninclude-system-site-packages = false\n")
    (site / "autolaunch-test.pth").write_text(f"{PLACE}/source\n{PLACE}/site\n")
    (place / "bin/python").symlink_to(PLACE / "python/bin" / python)
    program = place / "bin/autolaunch"
    program.write_text(f"#!{PYTHON}\nfrom autolaunch.__main__ import main\n\nmain()\n")
    program.chmod(0o755)
    for folder in (place, place / "bin", place / "lib"):
        folder.chmod(0o755)
    (place / "shared").chmod(0o1777)
