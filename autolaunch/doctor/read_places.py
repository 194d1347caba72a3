"""Reads folders, keys, ports, who holds devices, and what earlier runs left: of this host, as this user may."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from autolaunch.doctor.checks_place import WEIGHTS
from autolaunch.doctor.facts import Folder, Holder, Port, Secret
from autolaunch.doctor.read_host import space_of
from selector.errors import AutolaunchError, ConfigurationError
from selector.hardware import HardwareReport
from selector.values import readable

if TYPE_CHECKING:
    import psutil

    from autolaunch.daemon.configuration import Configuration
    from selector.catalog import Catalog

#: So many folders of runs are looked at.
_MOST_RUNS = 1000
_STATE_BYTES = 8 << 20
_DEFAULT_PORT = 8000


def read_configuration(known: Catalog) -> tuple[Configuration | None, str | None]:
    """The daemon's configuration where there is one, or what is wrong with it."""
    from autolaunch.daemon import configuration

    path = configuration.default_path()
    if not os.access(path, os.R_OK):
        return None, None
    try:
        return configuration.read(path, known), None
    except ConfigurationError as error:
        return None, error.message


def read_folders(home: Path, weights: Path, mounts: tuple[tuple[str, str], ...]) -> tuple[Folder, ...]:
    """The folders that a launch writes, each by the nearest of its parents that is there."""
    return tuple(
        _folder(purpose, path, mounts)
        for purpose, path in ((WEIGHTS, weights), ("environments", home / "engines"), ("logs and state", home))
    )


def _folder(purpose: str, path: Path, mounts: tuple[tuple[str, str], ...]) -> Folder:
    place = next((each for each in (path, *path.parents) if os.access(each, os.F_OK)), path)
    with contextlib.suppress(OSError):
        place = place.resolve()
    under = [(point, kind) for point, kind in mounts if place == Path(point) or Path(point) in place.parents]
    return Folder(
        purpose=purpose,
        path=str(place),
        writable=os.access(place, os.W_OK | os.X_OK),
        space=space_of(place),
        filesystem=max(under, key=lambda each: len(each[0]))[1] if under else None,
    )


def read_mounts(platform: str, root: Path = Path("/")) -> tuple[tuple[str, str], ...]:
    """Where what kind of file system is mounted."""
    if platform != "linux":
        import psutil

        return tuple((each.mountpoint, each.fstype) for each in psutil.disk_partitions(all=True))
    found = []
    try:
        lines = (root / "proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return ()
    for line in lines:
        parts = line.split(" ")
        if len(parts) > 2:
            found.append((parts[1].replace("\\040", " "), parts[2]))
    return tuple(found)


def read_secrets(environ: Mapping[str, str], keys_file: Path | None, hub_home: Path) -> tuple[Secret, ...]:
    """The files of keys and tokens that are there, by their permissions; nothing of them is read."""
    token = environ.get("HF_TOKEN_PATH") or str(hub_home / "token")
    found = []
    for purpose, path in (("keys of clients", keys_file), ("the hub's token", Path(token).expanduser())):
        if path is None:
            continue
        with contextlib.suppress(OSError):
            status = path.stat()
            mode = stat.S_IMODE(status.st_mode)
            found.append(Secret(purpose=purpose, path=str(path), mode=mode, is_ours=status.st_uid == os.geteuid()))
    return tuple(found)


def read_ports(configured: Configuration | None, own: frozenset[int]) -> tuple[Port, ...]:
    """Whether somebody listens on the port of a launch, or of the configured gateway."""
    wanted: dict[tuple[str, int], str] = {("127.0.0.1", _DEFAULT_PORT): "of a launch"}
    if configured is not None:
        wanted[_loopback(configured.gateway.host), configured.gateway.port] = "of the gateway"
    return tuple(_port(host, port, purpose, own) for (host, port), purpose in wanted.items() if port)


def _loopback(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 (compared, not bound)


def _port(host: str, port: int, purpose: str, own: frozenset[int]) -> Port:
    taken = False
    # Somebody who takes no connection in a second has it all the same: the question is who listens.
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
        taken = True
    if not taken:
        return Port(port=port, purpose=purpose, taken=False)
    pid, name = _listener(port)
    return Port(port=port, purpose=purpose, taken=True, pid=pid, name=name, ours=pid in own)


def _listener(port: int) -> tuple[int | None, str | None]:
    import psutil

    try:
        for each in psutil.net_connections(kind="tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid:
                return each.pid, psutil.Process(each.pid).name()
    except psutil.Error:
        pass  # macOS tells only root
    return None, None


def own_processes() -> frozenset[int]:
    """The daemons and launches that answer this user, by process id."""
    from autolaunch.client import LOOK_TIMEOUT_SECONDS, Client, clients

    found = set()
    with contextlib.suppress(AutolaunchError):
        for each in clients():
            with contextlib.suppress(AutolaunchError):
                found.add(Client(each.path, timeout_seconds=LOOK_TIMEOUT_SECONDS).status().pid)
    return frozenset(found)


def read_holders(report: HardwareReport) -> tuple[Holder, ...]:
    """Who holds memory of the GPUs, and which of them are engines of ours."""
    import psutil

    found = []
    for device in report.accelerators:
        for each in device.processes:
            user, ours, attended = None, False, None
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(each.pid)
                user = process.username()
                ours = _is_ours(process)
                attended = _is_attended(process) if ours else None
            found.append(
                Holder(
                    pid=each.pid,
                    device=device.index,
                    name=each.name,
                    user=user,
                    used_bytes=each.used_bytes,
                    ours=ours,
                    attended=attended,
                )
            )
    return tuple(found)


def _is_ours(process: psutil.Process) -> bool:
    """Whether it carries the mark of a run of autolaunch's; of others' processes that is not told."""
    import psutil

    from autolaunch.launching import RUN_MARK

    try:
        return RUN_MARK in process.environ()
    except (psutil.Error, OSError):
        return False


def _is_attended(process: psutil.Process) -> bool:
    """Whether one of its parents is autolaunch: the guard, which ends it when its daemon ends."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return any("autolaunch" in " ".join(parent.cmdline()) for parent in process.parents())
    return False


def left_processes(home: Path) -> tuple[int, ...]:
    """Engines of a daemon that is gone, as far as its state tells; while one runs there are none."""
    from autolaunch.daemon import small_file
    from autolaunch.daemon.deployment import Kept
    from autolaunch.daemon.lock import holder
    from autolaunch.daemon.state_file import boot_id
    from autolaunch.daemon.survivors import survivors

    if holder(home / "daemon") is not None:
        return ()
    try:
        content = small_file.read(home / "daemon" / "state.json", _STATE_BYTES).content
        kept = msgspec.json.decode(content, type=readable(Kept))
    except (small_file.Unreadable, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()  # the daemon says it, and begins anew
    if kept.boot_id != boot_id():
        return ()
    runs = (each.run for each in kept.deployments.values() if each.run is not None)
    return tuple(sorted({pid for run in runs for pid in survivors(run)}))


def stale_runs(home: Path) -> tuple[str, ...]:
    """The folders of runs whose lock nobody holds."""
    from autolaunch.daemon.runs import LOCK

    found: list[str] = []
    with contextlib.suppress(OSError), os.scandir(home / "run") as entries:
        folders: Iterable[str] = [entry.path for entry, _ in zip(entries, range(_MOST_RUNS), strict=False)]
        for folder in folders:
            with contextlib.suppress(OSError):  # somebody else's, or gone meanwhile
                lock = os.open(Path(folder) / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    found.append(folder)
                except BlockingIOError:
                    pass  # it runs
                finally:
                    os.close(lock)
    return tuple(sorted(found))
