"""All files of a checkpoint, side by side: what is here is held against its hash, the rest arrives. Runs in the worker.

The order: listing, room on the disk, contents. A file counts once its hash is right; then it gets its name and a
stamp. One that is damaged is dropped and fetched again once. Whatever cannot be got ends all of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from autolaunch.hubs import kept, places
from autolaunch.hubs.arriving import Arriving, Stopped, hashed
from autolaunch.hubs.listing import INDEX, HubFile, Listing, NotAListing, needed
from autolaunch.hubs.refused import Broken, Denied
from autolaunch.hubs.speed import amount
from autolaunch.hubs.wire import Answer, Finished, Listed, Moved, Question, Said

#: More shards in an index than this many bytes can name are no index.
INDEX_BYTES = 64 * 2**20
#: Beside the files: their names in the cache, and what the file system keeps of them.
ROOM_SHARE, ROOM_BYTES = 1.001, 2**20
TELL_SECONDS = 0.25


class Source(Protocol):
    """A repository of a hub."""

    def listing(self, revision: str | None) -> Listing:
        """All files of the repository, at the commit that ``revision`` stands for."""
        ...

    def target(self, file: HubFile, folder: Path) -> Path:
        """Where the content goes."""
        ...

    def elsewhere(self, file: HubFile) -> tuple[Path, ...]:
        """Other places in which the hub's client may have the same content."""
        ...

    def alone(self, file: HubFile) -> contextlib.AbstractContextManager[None]:
        """Within it no other process fetches the same content."""
        ...

    def fetch(self, file: HubFile, commit: str, arriving: Arriving) -> None:
        """Has the rest of a file arrive."""
        ...


_Result = TypeVar("_Result")


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class Fetching:
    """One checkpoint on its way."""

    def __init__(self, question: Question, source: Source, say: Callable[[Answer], None]) -> None:
        self._question, self._source, self._say = question, source, say
        self._patience = question.patience
        self._home, self._cache = Path(question.home), Path(question.cache)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._here_bytes = self._fetched_bytes = self._checked_bytes = self._to_check_bytes = 0
        self._wanted_bytes: int | None = None

    def run(self) -> None:
        """Answers the question.

        Raises:
            Broken, Denied, NotAListing, OSError: as they say. What has come is kept.
        """
        question = self._question
        whole = self._tried(lambda: self._source.listing(question.revision), lambda: 0, self._patience.first_tries)
        folder = places.snapshot(question.hub, self._cache, question.repo, whole.revision)
        before = kept.load(self._home, whole.hub, whole.repo, whole.revision, question.file_prefix)
        stamps = () if before is None or before.folder != str(folder) else before.stamps
        self._kept = kept.Kept(listing=whole, file_prefix=question.file_prefix, folder=str(folder), stamps=stamps)
        listing = msgspec.structs.replace(whole, files=needed(whole.files, question.file_prefix, self._shards(whole)))
        self._kept = msgspec.structs.replace(self._kept, listing=listing)
        kept.keep(self._home, self._kept)
        self._wanted_bytes = listing.size_bytes
        self._say(Listed(listing=listing))
        places.remember(question.hub, self._cache, question.repo, question.revision, listing.revision)
        unsure = self._unsure(listing, folder)
        self._room(unsure, folder)
        self._all(unsure, listing, folder)
        self._say(Finished(folder=str(folder), fetched_bytes=self._fetched_bytes))

    def _shards(self, whole: Listing) -> frozenset[str] | None:
        """The weights that the index names, for which the index has to be here first."""
        index = next((each for each in whole.files if each.path == INDEX), None)
        if index is None or self._question.file_prefix is not None:
            return None
        if index.size_bytes > INDEX_BYTES:
            raise NotAListing(f"its {INDEX} is {index.size_bytes} bytes long")
        folder = Path(self._kept.folder)
        self._room((index,), folder)
        self._one(index, whole.revision, folder)
        with self._lock:  # counted again with the others
            self._here_bytes = 0
        try:
            found = msgspec.json.decode((folder / INDEX).read_bytes(), type=_Index)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise NotAListing(f"its {INDEX} is none") from error
        if not found.weight_map:
            raise NotAListing(f"its {INDEX} names no shards")
        return frozenset(found.weight_map.values())

    def _unsure(self, listing: Listing, folder: Path) -> tuple[HubFile, ...]:
        """The files that are not here, or not known to be whole; the largest first, so that none comes last alone."""
        stamps = {each.path: each for each in self._kept.stamps}
        unsure = []
        for file in listing.files:
            stamp = stamps.get(file.path)
            if stamp is not None and kept.stamped(folder, file, stamp.sha256) == stamp:
                self._here_bytes += file.size_bytes
            else:
                unsure.append(file)
        return tuple(sorted(unsure, key=lambda file: (-file.size_bytes, file.path)))

    def _room(self, unsure: tuple[HubFile, ...], folder: Path) -> None:
        """Before the first byte.

        Raises:
            Denied: there is not enough room.
        """
        missing_bytes = sum(self._missing_bytes(file, folder) for file in unsure)
        if not missing_bytes:
            return
        needed_bytes = int(missing_bytes * ROOM_SHARE) + ROOM_BYTES
        place = next(each for each in (self._cache, *self._cache.parents) if each.exists())
        free_bytes = shutil.disk_usage(place).free
        if needed_bytes > free_bytes:
            raise Denied(
                "disk",
                f"{self._question.repo} needs {amount(needed_bytes)} more in {self._cache}, "
                f"{amount(free_bytes)} are free",
            )

    def _missing_bytes(self, file: HubFile, folder: Path) -> int:
        """How much of a file has still to come. What is here in its length is taken for it until it was hashed."""
        target = self._source.target(file, folder)
        for place, may_be_part in ((folder / file.path, False), (target, False), (_incomplete(target), True)):
            try:
                size_bytes = place.stat().st_size
            except OSError:
                continue
            if size_bytes == file.size_bytes:
                return 0
            if may_be_part:
                return max(0, file.size_bytes - size_bytes)
        return file.size_bytes

    def _all(self, unsure: tuple[HubFile, ...], listing: Listing, folder: Path) -> None:
        self._tell()
        pool = ThreadPoolExecutor(self._question.threads)
        waiting: set[Future[None]] = {pool.submit(self._one, file, listing.revision, folder) for file in unsure}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=TELL_SECONDS, return_when=FIRST_EXCEPTION)
                for one in done:
                    one.result()
                self._tell()
        finally:
            # Those that wait for a server are not waited for: this process ends.
            self._stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        if not self._kept.whole:
            raise Broken("files changed while they were fetched", kind="damaged")

    def _one(self, file: HubFile, commit: str, folder: Path) -> None:
        """Has one file here and whole, and says so in what is kept.

        Raises:
            Broken, Denied, Stopped, OSError: as they say.
        """
        named, target = folder / file.path, self._source.target(file, folder)
        sha256 = self._checked(file, named, target)
        if sha256 is None and self._question.offline:
            raise Denied("damaged", f"{named} is not whole")
        if sha256 is None:
            with self._source.alone(file):
                sha256 = self._stamped_by_others(file, folder) or self._checked(file, named, target, drop=True)
                if sha256 is None:
                    sha256 = self._fetched(file, commit, target)
                    if target != named:
                        _link(named, target)
        _synced(named)
        stamp = kept.stamped(folder, file, sha256)
        if stamp is None:
            raise Broken(f"{named} changed while it was fetched", kind="damaged")
        with self._lock:
            self._kept = kept.with_stamps(self._kept, (stamp,))
            if self._wanted_bytes is not None:  # before, it is not known which files are needed
                kept.keep(self._home, self._kept)

    def _stamped_by_others(self, file: HubFile, folder: Path) -> str | None:
        """The hash of what another process fetched while this one waited for it."""
        one = self._kept.listing
        found = kept.load(self._home, one.hub, one.repo, one.revision, self._kept.file_prefix)
        for stamp in () if found is None else found.stamps:
            if stamp.path == file.path and kept.stamped(folder, file, stamp.sha256) == stamp:
                self._add(file.size_bytes, 0)
                return stamp.sha256
        return None

    def _checked(self, file: HubFile, named: Path, target: Path, *, drop: bool = False) -> str | None:
        """The hash of what is here, if it is right, under its name; with ``drop`` what is damaged goes."""
        ours = (target, named)
        for place in dict.fromkeys((*ours, *self._source.elsewhere(file))):
            try:
                size_bytes = place.stat().st_size
            except OSError:
                continue
            if size_bytes == file.size_bytes:
                with self._lock:
                    self._to_check_bytes += size_bytes
                found = hashed(place, file, self._stop, self._check)
                if found.right:
                    self._add(size_bytes, 0)
                    if place != named and not named.exists():
                        _link(named, place)
                    return found.sha256
            if drop and place in ours:
                self._say(Said(message=f"{file.path} is here but damaged: it is fetched again"))
                place.unlink()
        return None

    def _fetched(self, file: HubFile, commit: str, target: Path) -> str:
        target.parent.mkdir(parents=True, exist_ok=True)
        incomplete = _incomplete(target)
        for _ in range(2):
            with Arriving(incomplete, file, self._stop, self._add) as arriving:
                if not arriving.whole:
                    fetch = partial(self._source.fetch, file, commit, arriving)
                    self._tried(fetch, partial(getattr, arriving, "came_bytes"), self._patience.tries)
                if arriving.hashing.right:
                    incomplete.replace(target)
                    return arriving.hashing.sha256
                self._add(-arriving.came_bytes, 0)
            incomplete.unlink()
            self._say(Said(message=f"{file.path} came damaged: it is fetched again"))
        raise Denied("damaged", f"{file.path} of {self._question.repo} came damaged twice: its hash is not the hub's")

    def _tried(self, do: Callable[[], _Result], came: Callable[[], int], tries: int) -> _Result:
        """Does it, again and again while something comes of it, and some times more.

        Raises:
            Broken: patience came to its end.
            Denied, Stopped, OSError: at once.
        """
        patience, failures, before = self._patience, 0, came()
        while True:
            try:
                return do()
            except Broken as error:
                failures, before = (0 if came() > before else failures), came()
                failures += 1
                asked_seconds = error.wait_seconds
                if failures >= tries or (asked_seconds or 0) > patience.most_asked_seconds:
                    asked = f" and asks to wait {asked_seconds:.0f} s" if asked_seconds else ""
                    raise Broken(f"{error.message}{asked}", kind=error.kind) from error
                grown_seconds = min(patience.most_seconds, patience.first_seconds * 2 ** (failures - 1))
                if self._stop.wait(grown_seconds if asked_seconds is None else asked_seconds):
                    raise Stopped from error

    # --- how far it is --------------------------------------------------------------------------------

    @property
    def missing_bytes(self) -> int | None:
        """What has not come, where the files are known."""
        with self._lock:
            return None if self._wanted_bytes is None else max(0, self._wanted_bytes - self._here_bytes)

    def _add(self, here_bytes: int, fetched_bytes: int) -> None:
        with self._lock:
            self._here_bytes += here_bytes
            self._fetched_bytes += fetched_bytes

    def _check(self, count: int) -> None:
        with self._lock:
            self._checked_bytes += count

    def _tell(self) -> None:
        with self._lock:
            moved = Moved(
                here_bytes=self._here_bytes,
                fetched_bytes=self._fetched_bytes,
                checked_bytes=self._checked_bytes,
                to_check_bytes=self._to_check_bytes,
            )
        self._say(moved)


def _incomplete(target: Path) -> Path:
    """What has come of a file, where the clients of the 1 series have it as well."""
    return target.with_name(f"{target.name}.incomplete")


def _synced(named: Path) -> None:
    """Has it on the disk: a stamp that outlives a loss of power speaks of contents that do, too."""
    descriptor = os.open(named, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS):  # a file system that has nothing to write
            raise
    finally:
        os.close(descriptor)


def _link(named: Path, target: Path) -> None:
    """Gives a content its name in the snapshot, as the hub's client does."""
    named.parent.mkdir(parents=True, exist_ok=True)
    made = named.with_name(f".{named.name}.{os.getpid()}")
    made.unlink(missing_ok=True)
    made.symlink_to(os.path.relpath(target, named.parent))
    made.replace(named)
