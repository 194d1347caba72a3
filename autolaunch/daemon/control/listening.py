"""The control socket as a file, and who is at its other end."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
import struct
import sys
import time
from pathlib import Path
from typing import NamedTuple

from selector.errors import ConfigurationError, DaemonRunning

#: Members of it may steer a daemon whose socket is the group's: who installed the service put them into it.
GROUP = "autolaunch"
MODE = 0o660
BACKLOG = 128
#: A path that does not fit into an address of a UNIX socket is reached through its folder.
ADDRESS_BYTES = 103 if sys.platform == "darwin" else 107
#: How long an answer may take from who listens there already; one that is too busy to answer is there.
LOOK_SECONDS = 1.0
#: How soon a full queue is tried again.
RETRY_SECONDS = 0.02

#: Of macOS: ``SOL_LOCAL``, ``LOCAL_PEERCRED`` and its ``struct xucred`` (version, uid, number of groups, groups).
_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED = 0, 1, struct.Struct("=IIh2x16I")
#: Of Linux 4.13, which Python has no name for; room for so many groups.
_SO_PEERGROUPS, _GROUPS = 59, 1024


class Peer(NamedTuple):
    """Who connected, as the kernel has it from the moment of the connection. ``groups`` are all of its groups."""

    uid: int
    groups: frozenset[int]


def peer_of(connection: socket.socket) -> Peer | None:
    """Who is at the other end of ``connection``; ``None`` where the kernel does not tell."""
    try:
        if sys.platform == "darwin":
            data = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED.size)
            _, uid, count, *groups = _XUCRED.unpack(data)
            return Peer(uid, frozenset(groups[: max(0, min(count, 16))]))
        _, uid, gid = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except (OSError, struct.error):
        return None
    return Peer(uid, frozenset((gid, *_groups(connection))))


def _groups(connection: socket.socket) -> tuple[int, ...]:
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS)
    except OSError:
        return ()
    return struct.unpack(f"={len(data) // 4}I", data[: len(data) // 4 * 4])


class Door:
    """The socket of ``path``, bound and not yet listened on. Its folder is made where there is none.

    Attributes:
        group: the id of the group whose members may ask, or ``None``.

    Raises:
        DaemonRunning: somebody listens there.
        ConfigurationError: there can be no socket here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = _folder(path.parent)
        try:
            self._make_room()
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.socket.bind(self._address())
                # Nobody can connect before it is listened on: it is never open to more than these.
                os.chmod(path.name, MODE, dir_fd=self._folder)
                found = os.stat(path.name, dir_fd=self._folder, follow_symlinks=False)
            except BaseException:
                self.socket.close()
                raise
        except OSError as error:
            os.close(self._folder)
            raise _unusable(path, error) from error
        except BaseException:
            os.close(self._folder)
            raise
        self.socket.setblocking(False)
        self._identity = (found.st_dev, found.st_ino)
        self.group = found.st_gid if _is_ours(found.st_gid) else None

    def allows(self, peer: Peer | None) -> bool:
        """Root, our own user, and members of the group that the socket was made for."""
        if peer is None:
            return False
        return peer.uid in (0, os.geteuid()) or (self.group is not None and self.group in peer.groups)

    def remove(self) -> None:
        """Takes the file away, if it is ours still: nobody comes in any more."""
        with contextlib.suppress(OSError):
            found = os.stat(self.path.name, dir_fd=self._folder, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path.name, dir_fd=self._folder)

    def close(self) -> None:
        """Takes the file away, and ends it."""
        self.remove()
        self.socket.close()
        os.close(self._folder)

    def _address(self) -> str:
        whole = str(self.path)
        return whole if len(os.fsencode(whole)) <= ADDRESS_BYTES else f"/proc/self/fd/{self._folder}/{self.path.name}"

    def _make_room(self) -> None:
        """Takes away what an earlier one left; never the socket that somebody listens on."""
        try:
            found = os.stat(self.path.name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise ConfigurationError(f"{self.path} is there, and is no socket", hint="it is none of autolaunch's")
        if _listens(self._address()):
            hint = "AUTOLAUNCH_HOME gives another daemon a folder of its own"
            raise DaemonRunning(f"another process listens at {self.path}", hint=hint)
        os.unlink(self.path.name, dir_fd=self._folder)


def connected(path: Path, timeout_seconds: float) -> socket.socket:
    """A connection to the socket of ``path``, however long its path is.

    Raises:
        OSError: there is none, nobody listens, or it is not for this user.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_seconds)
        if len(os.fsencode(path)) <= ADDRESS_BYTES:
            _connect(connection, str(path), timeout_seconds)
            return connection
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _connect(connection, f"/proc/self/fd/{folder}/{path.name}", timeout_seconds)
        finally:
            os.close(folder)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(connection: socket.socket, address: str, timeout_seconds: float) -> None:
    """Linux does not wait for room among those that are not accepted yet where there is a time limit."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            connection.connect(address)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
            time.sleep(RETRY_SECONDS)  # a full queue of a UNIX socket tells nobody when it has room
        else:
            return


def _folder(path: Path) -> int:
    """A descriptor of the folder: ours, and nobody else can put anything into it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(path, error) from error
    found = os.fstat(folder)
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        os.close(folder)
        raise ConfigurationError(
            f"{path} is another user's, or others can write into it: the control socket is not put there",
            hint=f"chmod go-w {path}; or AUTOLAUNCH_HOME names another folder",
        )
    return folder


def _listens(address: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(LOOK_SECONDS)
        try:
            connection.connect(address)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


def _is_ours(group: int) -> bool:
    try:
        return grp.getgrgid(group).gr_name == GROUP
    except KeyError:
        return False


def _unusable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be the control socket: {error.strerror or error}",
        hint="AUTOLAUNCH_HOME names a folder that this user can write",
    )
