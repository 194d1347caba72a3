"""Changes of the file of keys: whole at every moment, and as readable afterwards as it was before."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from autolaunch.daemon import small_file
from autolaunch.daemon.gateway.keys import Key, Keys, content_of, parsed
from selector.errors import ConfigurationError, UsageError

#: The user and the group that the service of a host runs as.
SERVICE = "autolaunch"
#: So long another command may take that changes the file at the same time.
LOCK_SECONDS = 5.0
_MODE, _MODE_WITH_GROUP = 0o600, 0o640


def add(path: Path, key: Key) -> Keys:
    """Puts a key at the end of the file, which is made where there is none; gives all that it has then.

    A new file is its owner's alone, mode 0600; root's is the service's to read where there is one: 0640.

    Raises:
        UsageError: the name, or the key itself, is there already.
        ConfigurationError: the file is wrong as it is, or cannot be written.
    """

    def appended(keys: Keys, content: bytes) -> bytes:
        if key.name in keys.names:
            raise UsageError(
                f"{key.name} has a key already", hint=f"autolaunch keys remove {key.name} takes it away; or a new name"
            )
        for each in keys.entries:
            if each.digest == key.digest:
                raise UsageError(f"this is the key of {each.name} already", hint="each client has a key of its own")
        end = b"" if not content or content.endswith(b"\n") else b"\n"
        return content + end + f"{key.line}\n".encode()

    return _changed(path, appended, make=True)


def remove(path: Path, name: str) -> Keys:
    """Takes a key out of the file; comments stay, and so does the file when it was the last. Gives what it has then.

    Raises:
        UsageError: no key has that name.
        ConfigurationError: the file is wrong as it is, or cannot be written.
    """

    def without(keys: Keys, content: bytes) -> bytes:
        if name not in keys.names:
            raise UsageError("no key has that name", hint="autolaunch keys list tells them")
        lines = content.split(b"\n")
        return b"\n".join(line for line in lines if not line.lstrip(b" \t\r").startswith(f"{name}:".encode()))

    return _changed(path, without, make=False)


def _changed(path: Path, change: Callable[[Keys, bytes], bytes], *, make: bool) -> Keys:
    try:
        # What a link leads to is replaced, and not the link.
        path = path.resolve()
        if make:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _locked(path.parent):
            found = content_of(path) if not make or os.path.lexists(path) else None
            before = b"" if found is None else found.content
            after = change(parsed(path, before), before)
            keys = parsed(path, after)
            small_file.replace(path, after, lambda descriptor: _own(descriptor, found))
    except OSError as error:
        raise ConfigurationError(
            f"{path}: {error.strerror or error}", hint="--file FILE takes another" if make else None
        ) from error
    return keys


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among the commands that change files in ``folder``: the kernel lets go of it however we end."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:  # then there is nothing to be alone with
        yield
        return
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ConfigurationError(f"{folder}: another command keeps changing files in it") from error
                time.sleep(0.05)  # a lock that is waited for without end could not be given up
        yield
    finally:
        os.close(descriptor)


def _own(descriptor: int, before: small_file.Content | None) -> None:
    """Whose the new file is: the old one's, or where there was none ours, and the service's to read if we are root."""
    if before is not None:
        status = os.fstat(descriptor)
        if (status.st_uid, status.st_gid) != (before.uid, before.gid):
            os.fchown(descriptor, before.uid, before.gid)
        os.fchmod(descriptor, before.mode)
    elif (group := service_group()) is not None:
        os.fchown(descriptor, 0, group)
        os.fchmod(descriptor, _MODE_WITH_GROUP)
    else:
        os.fchmod(descriptor, _MODE)


def service_group() -> int | None:
    """The number of the service's group, for root on a host that has the service; else ``None``."""
    if os.geteuid() != 0:
        return None
    import grp

    try:
        return grp.getgrnam(SERVICE).gr_gid
    except KeyError:
        return None
