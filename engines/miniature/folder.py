"""The miniatures: whole checkpoints of a few megabytes, made on the spot, that real engines load.

Random weights from a fixed seed in the released architectures and file layout: what an engine does with
them, it does with the real ones, but for the sense of the answers. The same model gives the same bytes.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path

import msgspec

from engines.miniature.layout import File, Layout
from selector.errors import DownloadError, NoRoomOnDisk
from selector.facts import CheckpointFacts, ModelFacts
from selector.values import Value, readable

MANIFEST = "miniature.json"

_OUT_OF_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class FileEntry(Value, frozen=True, kw_only=True):
    name: str
    size_bytes: int
    sha256: str


class Manifest(Value, frozen=True, kw_only=True):
    """``miniature.json``: every other file. ``recipe`` is the sum of what they were made of."""

    recipe: str
    files: tuple[FileEntry, ...]


def checkpoint_of(model: ModelFacts, repo: str) -> CheckpointFacts:
    """The checkpoint of a generated model that goes by ``repo`` (``autolaunch/…``); the first, if none does."""
    return next((each for each in model.checkpoints if each.repo == repo), model.checkpoints[0])


def size_bytes(model: ModelFacts, checkpoint: CheckpointFacts | None = None) -> int:
    """What :func:`generate` writes, all files together, in bytes. Nothing is written to know it."""
    layout = Layout(model=model, checkpoint=checkpoint or model.checkpoints[0])
    return _size_bytes(layout.files(), layout.recipe())


def _size_bytes(files: tuple[File, ...], recipe: str) -> int:
    blank = tuple(FileEntry(name=file.file_name, size_bytes=file.size_bytes(), sha256="0" * 64) for file in files)
    manifest = Manifest(recipe=recipe, files=blank)
    return sum(entry.size_bytes for entry in blank) + len(_manifest_json(manifest))


def generate(model: ModelFacts, directory: Path, checkpoint: CheckpointFacts | None = None) -> Path:
    """The miniature of ``model`` at ``directory``, made if it is not there whole, and that path, absolute.

    ``checkpoint`` is the one of the model's to make, by default the first. A whole one is recognised by its
    manifest and reused. One that was altered, or was made for other shapes, is replaced; what an interrupted
    run left beside it is removed. A folder that holds anything else is not touched. Two callers never write
    the same one.

    Raises:
        NoRoomOnDisk: seen before the first byte, or while writing.
        DownloadError: the folder cannot be written, or is somebody else's.
        ConfigurationError: there is no miniature in the checkpoint's format.
    """
    return _generate(Layout(model=model, checkpoint=checkpoint or model.checkpoints[0]), directory)


def generate_without_weights(model: ModelFacts, directory: Path, checkpoint: CheckpointFacts) -> Path:
    """Everything but the weights of a checkpoint, in the shapes of ``model``, at ``directory``, as :func:`generate`.

    Raises:
        As :func:`generate`.
    """
    return _generate(Layout(model=model, checkpoint=checkpoint, weights=False), directory)


def _generate(layout: Layout, directory: Path) -> Path:
    directory, model = directory.absolute(), layout.model
    recipe = layout.recipe()
    if _is_whole(directory, recipe):
        return directory
    files = layout.files()  # what cannot be made fails before a folder is
    with _typed_errors(model, directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(directory.with_name(f".{directory.name}.lock")):
            if not _is_whole(directory, recipe):  # by whom we waited for
                _make(model, files, directory, recipe)
    return directory


def _manifest_json(manifest: Manifest) -> bytes:
    return json.dumps(msgspec.to_builtins(manifest), indent=2).encode() + b"\n"


# --- on the disk --------------------------------------------------------------------------------------


def _is_whole(directory: Path, recipe: str) -> bool:
    """Whether every file is there as it was made. Reads them all: some milliseconds."""
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=readable(Manifest))
        if manifest.recipe != recipe:
            return False
        for entry in manifest.files:
            with (directory / entry.name).open("rb") as file:
                if file_digest(file, "sha256").hexdigest() != entry.sha256:
                    return False
    except (OSError, ValueError):  # msgspec's errors are ValueErrors; so is a name with a NUL
        return False
    return bool(manifest.files)


def _make(model: ModelFacts, files: tuple[File, ...], directory: Path, recipe: str) -> None:
    if not _is_ours(directory):
        raise DownloadError(
            f"{directory} is there, and is no miniature", hint="move it away, or name another place (AUTOLAUNCH_HOME)"
        )
    prefix = f".{directory.name}.partial-"
    for neighbour in tuple(directory.parent.iterdir()):
        if neighbour.name.startswith(prefix):  # we hold the lock: nobody writes it any more
            shutil.rmtree(neighbour)
    needed_bytes, free_bytes = _size_bytes(files, recipe), shutil.disk_usage(directory.parent).free
    if free_bytes < needed_bytes:
        raise NoRoomOnDisk(
            f"{model.id} needs {_mb(needed_bytes)} in {directory.parent}, {_mb(free_bytes)} are free",
            hint="free some room, or set AUTOLAUNCH_HOME to a folder on a larger disk",
        )
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
    replaced = draft.with_name(draft.name + "-old")
    try:
        entries = tuple(_write(draft, file) for file in files)
        (draft / MANIFEST).write_bytes(_manifest_json(Manifest(recipe=recipe, files=entries)))
        draft.chmod(0o755)  # mkdtemp's own is for us alone; another user's engine may read a miniature
        if directory.exists():
            # A folder with files in it cannot be renamed over. What is left of the old one, should we be
            # killed here, is cleaned up by the next run.
            directory.rename(replaced)
        draft.rename(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _write(draft: Path, file: File) -> FileEntry:
    path = draft / file.file_name
    with path.open("wb") as target:
        file.write(target)
    with path.open("rb") as written:
        digest = file_digest(written, "sha256").hexdigest()
    return FileEntry(name=file.file_name, size_bytes=path.stat().st_size, sha256=digest)


def _is_ours(directory: Path) -> bool:
    """Whether a folder may be replaced: it is not there, is empty, or was made here."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        return False
    return not directory.exists() or (directory / MANIFEST).is_file() or not any(directory.iterdir())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _typed_errors(model: ModelFacts, directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = error.filename or directory
        if error.errno in _OUT_OF_ROOM:
            raise NoRoomOnDisk(
                f"the disk filled up while {model.id} was made at {directory}",
                hint="free some room, or set AUTOLAUNCH_HOME to a folder on a larger disk",
            ) from error
        hint = "set AUTOLAUNCH_HOME to a folder of yours" if error.errno in _NOT_ALLOWED else None
        raise DownloadError(f"{model.id} cannot be made: {place}: {error.strerror}", hint=hint) from error


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
