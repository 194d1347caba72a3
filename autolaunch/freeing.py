"""Freeing the room that checkpoints take: exactly their files, and never while somebody has them in use.

The hub's own client can delete a commit of its cache. It cannot delete one quantization of several, gives up on a cache
that an interrupted download left, and unlinks whatever a link in a snapshot leads to; so the cache is walked here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from autolaunch.on_disk import Entry, Repository, belongs, made_folder, repository
from selector.errors import ConfigurationError, InUse
from selector.facts import CheckpointFacts, Hub, ModelFacts

#: What a hub's id is made of: two names, none of them a way to another folder.
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")

_WEIGHTS = (".gguf", ".safetensors")


class Doomed(NamedTuple):
    """What would go of one repository, or of one folder that was made here.

    Attributes:
        root: the repository's folder; nothing outside of it is touched.
        paths: files and links, those first without which nothing looks whole any more.
        everything: the folder goes with all in it.
        freed_bytes: what the disk has more of then.
        shared_bytes: what stays because another commit, or another quantization, has it too.
        unfinished_bytes: what stays of downloads that nobody can tell whose they are.
    """

    model: str
    repo: str
    hub: Hub | None
    quantizations: tuple[str, ...]
    root: Path
    paths: tuple[Path, ...]
    everything: bool
    freed_bytes: int
    shared_bytes: int = 0
    unfinished_bytes: int = 0

    @property
    def files(self) -> frozenset[str]:
        """The real files that go."""
        if self.everything:
            found = {os.path.join(at, name) for at, _, names in os.walk(self.root) for name in names}  # noqa: PTH118 - strings are what is compared
        else:
            found = set(map(str, self.paths))
        return frozenset(found | {os.path.realpath(path) for path in found if _within(path, self.root)})


def doomed_of(
    model: ModelFacts,
    checkpoints: Iterable[CheckpointFacts],
    *,
    cache: Path,
    home: Path,
    revision: str | None = None,
) -> tuple[Doomed, ...]:
    """What freeing these checkpoints of a model would take away, a repository each; nothing is touched.

    Args:
        revision: only this commit of them.

    Raises:
        ConfigurationError: a folder of the cache is not one, but a link to somewhere else.
    """
    wanted: dict[str, list[CheckpointFacts]] = {}
    for each in checkpoints:
        if HUB_ID.fullmatch(each.repo) and ".." not in each.repo:
            wanted.setdefault(each.repo, []).append(each)
    found = []
    for repo, of_repo in wanted.items():
        if model.generated:
            found += [_made(model, each, home) for each in of_repo]
            continue
        here = repository(cache, repo)
        if here is not None:
            known = {each.file_prefix for each in model.checkpoints if each.repo == repo}
            every = {each.file_prefix for each in of_repo} == known
            found.append(_cached(model, of_repo, _checked(here.folder, cache), revision, every=every))
    return tuple(each for each in found if each is not None and (each.paths or each.everything))


def _checked(folder: Path, cache: Path) -> Path:
    """The repository's folder in the real cache.

    Raises:
        ConfigurationError: it, or a folder in it, is a link.
    """
    for each in (folder, folder / "blobs", folder / "snapshots", folder / "refs"):
        if each.is_symlink():
            raise ConfigurationError(
                f"{each} is a link to {each.readlink()}, and what lies there is not the cache's",
                hint="remove it by hand, if it is yours to remove",
            )
    return cache.resolve() / folder.name


def _made(model: ModelFacts, checkpoint: CheckpointFacts, home: Path) -> Doomed | None:
    from engines.miniature import MANIFEST

    folder = made_folder(home.resolve(), checkpoint.repo)
    if folder.is_symlink() or not (folder / MANIFEST).is_file():
        return None
    size = sum(path.lstat().st_size for path in folder.iterdir())
    return Doomed(model.id, checkpoint.repo, None, (checkpoint.quantization,), folder, (folder / MANIFEST,), True, size)


def _cached(
    model: ModelFacts, checkpoints: list[CheckpointFacts], folder: Path, revision: str | None, *, every: bool
) -> Doomed | None:
    """``every``: all quantizations of the repository that are known are to go."""
    here = repository(folder.parent, checkpoints[0].repo)
    if here is None:
        return None
    prefixes = tuple(each.file_prefix for each in checkpoints)

    def asked(entry: Entry) -> bool:
        return any(belongs(entry, prefix) for prefix in prefixes)

    # Weights that were not asked for, perhaps of a quantization that no profile knows, keep the files beside them too.
    others = any(not asked(entry) for each in here.snapshots for entry in each.entries if entry.name.endswith(_WEIGHTS))
    narrowed = others or (bool(here.unfinished) and not every)
    links: list[Path] = []
    going: dict[Path, int] = {}
    staying: dict[Path, int] = {}
    for snapshot in here.snapshots:
        of_commit = revision is None or snapshot.commit == revision
        for entry in snapshot.entries:
            mine = of_commit and (not narrowed or asked(entry))
            if mine:
                links.append(entry.path)
            (going if mine else staying)[entry.blob or entry.path] = entry.size_bytes
    everything = not staying and not narrowed and (revision is None or bool(links))
    unfinished = sum(size for _, size in here.unfinished)
    if everything:
        return _all_of(model, checkpoints, here, (*links, *going), going)
    freed = {path: size for path, size in going.items() if path not in staying}
    # Files under way have their hashes for names: whose they are, nobody can tell.
    keep_unfinished = not every or revision is not None
    if not keep_unfinished:
        freed |= dict(here.unfinished)
    blobs = [path for path in freed if path not in links]
    return Doomed(
        model.id,
        checkpoints[0].repo,
        "huggingface",
        _present(checkpoints, here),
        here.folder,
        (*links, *blobs),
        everything=False,
        freed_bytes=sum(freed.values()),
        shared_bytes=sum(size for path, size in going.items() if path in staying),
        unfinished_bytes=unfinished if keep_unfinished else 0,
    )


def _present(checkpoints: list[CheckpointFacts], here: Repository) -> tuple[str, ...]:
    """The quantizations of which there is a file."""
    names = [entry for snapshot in here.snapshots for entry in snapshot.entries]
    return tuple(each.quantization for each in checkpoints if any(belongs(entry, each.file_prefix) for entry in names))


def _all_of(
    model: ModelFacts,
    checkpoints: list[CheckpointFacts],
    here: Repository,
    paths: tuple[Path, ...],
    going: dict[Path, int],
) -> Doomed:
    sizes = {path: size for path, size in going.items() if _within(str(path), here.folder)} | dict(here.unfinished)
    # Blobs that no commit refers to any more go with the rest.
    for path in (here.folder / "blobs").glob("*"):
        if path not in sizes and path.is_file() and not path.is_symlink():
            sizes[path] = path.lstat().st_size
    return Doomed(
        model.id,
        checkpoints[0].repo,
        "huggingface",
        _present(checkpoints, here),
        here.folder,
        paths,
        everything=True,
        freed_bytes=sum(sizes.values()),
    )


def _within(path: str, root: Path) -> bool:
    return os.path.realpath(path).startswith(f"{os.path.realpath(root)}{os.sep}")


# --- doing it -----------------------------------------------------------------------------------------


def free(doomed: Doomed) -> int:
    """Takes it away, what tells that it is whole first; the bytes that were freed.

    Raises:
        InUse: it is being fetched or made at this moment.
        ConfigurationError: it cannot be removed by this user; what is gone is gone.
    """
    with _held(doomed):
        try:
            return _gone(doomed)
        except OSError as error:
            raise ConfigurationError(
                f"{error.filename or doomed.root} cannot be removed: {error.strerror}",
                hint="whoever fetched it can remove it" if error.errno in (errno.EACCES, errno.EPERM) else None,
            ) from error


def _gone(doomed: Doomed) -> int:
    for path in doomed.paths:
        path.unlink(missing_ok=True)
    if doomed.everything:
        shutil.rmtree(doomed.root)
        locks = doomed.root.parent / ".locks" / doomed.root.name
        if doomed.hub is not None and not locks.is_symlink():
            shutil.rmtree(locks, ignore_errors=True)
        return doomed.freed_bytes
    commits = set()
    for path in doomed.paths:
        for above in path.parents:
            if above == doomed.root / "snapshots" or doomed.root not in above.parents:
                break
            if above.parent == doomed.root / "snapshots":
                commits.add(above)
            with contextlib.suppress(OSError):  # something else is in it
                above.rmdir()
    _forget_names({each.name for each in commits if not each.exists()}, doomed.root / "refs")
    return doomed.freed_bytes


def _forget_names(commits: set[str], refs: Path) -> None:
    """The names (``main``) of commits that are no longer there."""
    for at, _, names in os.walk(refs):
        for name in names:
            path = Path(at, name)
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if not path.is_symlink() and path.stat().st_size < 1024 and path.read_text().strip() in commits:
                    path.unlink()


@contextlib.contextmanager
def _held(doomed: Doomed) -> Iterator[None]:
    """Keeps whoever fetches or makes it out meanwhile, by the locks that they take.

    Raises:
        InUse: one of them is taken.
    """
    import fcntl

    if doomed.hub is None:
        locks = [doomed.root.with_name(f".{doomed.root.name}.lock")]
    else:
        locks = sorted((doomed.root.parent / ".locks" / doomed.root.name).glob("*.lock"))
    with contextlib.ExitStack() as stack:
        for lock in locks:
            try:
                descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:  # nobody ever took it, or it is not ours to take
                continue
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                doing = "made" if doomed.hub is None else "fetched"
                raise InUse(f"{doomed.repo} is being {doing} right now", hint="end that, or wait for it") from error
            except OSError:  # a file system without locks
                continue
        yield
