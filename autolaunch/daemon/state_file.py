"""The state file: what outlives the daemon, whole at every moment, and never a reason not to serve.

A reader sees the old state or the new one: it is written beside the file and renamed over it. What cannot be read is
set aside and said, what cannot be written is said once, and the daemon goes on with what it has in memory.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from autolaunch.daemon.deployment import Kept, KeptDeployment

#: The largest file that is read; a hundred deployments with their last lines are a tenth of it.
MAXIMUM_BYTES = 8 << 20
#: So many that could not be read are kept, the newest.
SET_ASIDE = 5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """What tells one boot of this machine from another; process ids and monotonic times mean nothing beyond it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            found = _BOOT_ID.read_text().strip()
            if found:
                return found
    import psutil

    return f"{psutil.boot_time():.0f}"


class StateFile:
    """The file at ``path``; its folder is made when it is first written. One process writes it."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._written: bytes | None = None
        self._failing = False

    def read(self, boot_id: str) -> tuple[Kept, str | None]:
        """The state as far as it holds in this boot, and what is to be said of it.

        A state of another boot keeps only what is wanted: what ran does not, its clock has begun anew, and what a
        reboot mends (a driver, a lost device, memory that was held) is what is given up on most.
        """
        empty = Kept(boot_id=boot_id)
        try:
            # Without waiting: a pipe in the file's place has no end of its own.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return empty, self._set_aside("is no regular file")
                with os.fdopen(descriptor, "rb", closefd=False) as file:
                    content = file.read(MAXIMUM_BYTES + 1)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return empty, None
        except OSError as error:
            return empty, f"the state in {self.path} cannot be read, and is begun anew: {error.strerror}"
        if len(content) > MAXIMUM_BYTES:
            return empty, self._set_aside("is larger than any that autolaunch writes")
        try:
            kept = msgspec.json.decode(content, type=Kept)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return empty, self._set_aside(_why(content, error))
        if kept.boot_id == boot_id:
            self._written = content
            return kept, None
        wanted = {name: KeptDeployment(wanted=each.wanted) for name, each in kept.deployments.items()}
        return Kept(boot_id=boot_id, deployments=wanted), None

    def write(self, kept: Kept) -> str | None:
        """Makes ``kept`` what the file holds; says, once, that it cannot, and once that it can again."""
        content = msgspec.json.encode(kept, order="deterministic")
        if content == self._written:
            return None
        try:
            self._replace(content)
        except OSError as error:
            # What the file holds is not known any more: a rename may have been done and its folder not synced.
            self._written = None
            if self._failing:
                return None
            self._failing = True
            return (
                f"the state cannot be written to {self.path}: {error.strerror}; serving goes on, and what is learned "
                "since then is lost when the daemon ends"
            )
        self._written = content
        if not self._failing:
            return None
        self._failing = False
        return f"the state is written to {self.path} again"

    def _replace(self, content: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = self.path.with_name(f"{self.path.name}.new")
        try:
            # One that a killed writer left is written over.
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(descriptor, 0o600)
                left = memoryview(content)
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            beside.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _set_aside(self, why: str) -> str:
        """Keeps what cannot be read for whoever wants to look at it; says where."""
        place = self.path.with_name(f"{self.path.name}.corrupt-{int(self._clock())}")
        try:
            self.path.replace(place)
        except OSError as error:
            return f"the state in {self.path} {why}, and is begun anew (it cannot be set aside: {error.strerror})"
        for old in sorted(self.path.parent.glob(f"{self.path.name}.corrupt-*"), key=_age)[:-SET_ASIDE]:
            with contextlib.suppress(OSError):
                old.unlink()
        return f"the state in {self.path} {why}, and is begun anew; it was set aside as {place.name}"


def _age(path: Path) -> tuple[int, str]:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0, path.name


def _why(content: bytes, error: Exception) -> str:
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        schema = msgspec.json.decode(content, type=dict[str, msgspec.Raw]).get("schema")
        if schema is not None and bytes(schema) != b"1":
            return f"is of schema {bytes(schema)[:20].decode(errors='replace')!a}, which this release does not read"
    return f"is corrupt ({str(error)[:200]})"
