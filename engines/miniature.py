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
from hashlib import file_digest, sha256
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from engines import miniature_config, miniature_tokenizer, miniature_weights
from selector.errors import DownloadError, NoRoomOnDisk
from selector.facts import ModelFacts
from selector.values import Value

MANIFEST = "miniature.json"
TEMPLATE_FILE = Path(__file__).with_name("miniature_files") / "chat_template.jinja"
#: Tells versions of this generator apart, should the same shapes, words and template ever give other files.
GENERATION = 1

_OUT_OF_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class FileEntry(Value, frozen=True, kw_only=True):
    name: str
    size_bytes: int
    sha256: str


class Manifest(Value, frozen=True, kw_only=True):
    """``miniature.json``: every other file. ``recipe`` is the sum of the shapes, the words, the
    chat template and this generator."""

    recipe: str
    files: tuple[FileEntry, ...]


class _File(Protocol):
    """A file to be: its name, its size before it is written, and its bytes."""

    @property
    def file_name(self) -> str: ...

    def size_bytes(self) -> int: ...

    def write(self, file: BinaryIO, /) -> None: ...


class _Text(Value, frozen=True, kw_only=True):
    file_name: str
    text: str

    def size_bytes(self) -> int:
        return len(self.text.encode())

    def write(self, file: BinaryIO, /) -> None:
        file.write(self.text.encode())


def size_bytes(model: ModelFacts) -> int:
    """What :func:`generate` writes, all files together, in bytes. Nothing is written to know it."""
    files = _files(model)
    blank = tuple(FileEntry(name=file.file_name, size_bytes=file.size_bytes(), sha256="0" * 64) for file in files)
    return sum(entry.size_bytes for entry in blank) + len(_manifest_json(Manifest(recipe=_recipe(model), files=blank)))


def generate(model: ModelFacts, directory: Path) -> Path:
    """The miniature of ``model`` at ``directory``, made if it is not there whole, and that path, absolute.

    A whole one is recognised by its manifest and reused. One that was altered, or was made for other
    shapes, is replaced; what an interrupted run left beside it is removed. A folder that holds
    anything else is not touched. Two callers never write the same one.

    Raises:
        NoRoomOnDisk: seen before the first byte, or while writing.
        DownloadError: the folder cannot be written, or is somebody else's.
    """
    directory = directory.absolute()
    recipe = _recipe(model)
    if _is_whole(directory, recipe):
        return directory
    with _typed_errors(model, directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(directory.with_name(f".{directory.name}.lock")):
            if not _is_whole(directory, recipe):  # by whom we waited for
                _make(model, directory, recipe)
    return directory


def _recipe(model: ModelFacts) -> str:
    # The source of the shapes is no part of them.
    shapes = msgspec.json.encode(msgspec.structs.replace(model.architecture, source=""))
    told = (
        miniature_weights.SEED.encode(),
        shapes,
        miniature_tokenizer.WORDS_FILE.read_bytes(),
        TEMPLATE_FILE.read_bytes(),
    )
    return sha256(b"%d %s %s %s %s" % (GENERATION, *told)).hexdigest()


def _files(model: ModelFacts) -> tuple[_File, ...]:
    architecture, vision = model.architecture, model.architecture.vision
    vocabulary = miniature_tokenizer.vocabulary(architecture.vocab_size)
    shards = miniature_weights.shards(miniature_weights.tensors(architecture, vocabulary.words))
    processor = None if vision is None else miniature_config.PROCESSOR
    texts = {
        "config.json": miniature_config.config_json(architecture, vocabulary),
        "generation_config.json": miniature_config.generation_config_json(architecture, vocabulary),
        "tokenizer.json": miniature_tokenizer.tokenizer_json(vocabulary),
        "tokenizer_config.json": miniature_tokenizer.tokenizer_config_json(
            vocabulary, architecture.max_position_embeddings, processor
        ),
        "special_tokens_map.json": miniature_tokenizer.special_tokens_map_json(),
        "chat_template.jinja": TEMPLATE_FILE.read_text(encoding="utf-8"),
        "model.safetensors.index.json": miniature_weights.index_json(shards),
    }
    if vision is not None:
        texts["preprocessor_config.json"] = miniature_config.preprocessor_config_json(architecture, vision)
        texts["video_preprocessor_config.json"] = miniature_config.video_preprocessor_config_json(architecture, vision)
    return (*(_Text(file_name=name, text=text) for name, text in texts.items()), *shards)


def _manifest_json(manifest: Manifest) -> bytes:
    return json.dumps(msgspec.to_builtins(manifest), indent=2).encode() + b"\n"


# --- on the disk --------------------------------------------------------------------------------------


def _is_whole(directory: Path, recipe: str) -> bool:
    """Whether every file is there as it was made. Reads them all: some milliseconds."""
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
        if manifest.recipe != recipe:
            return False
        for entry in manifest.files:
            with (directory / entry.name).open("rb") as file:
                if file_digest(file, "sha256").hexdigest() != entry.sha256:
                    return False
    except (OSError, ValueError):  # msgspec's errors are ValueErrors; so is a name with a NUL
        return False
    return bool(manifest.files)


def _make(model: ModelFacts, directory: Path, recipe: str) -> None:
    if not _is_ours(directory):
        raise DownloadError(
            f"{directory} is there, and is no miniature", hint="move it away, or name another place (AUTOLAUNCH_HOME)"
        )
    prefix = f".{directory.name}.partial-"
    for neighbour in tuple(directory.parent.iterdir()):
        if neighbour.name.startswith(prefix):  # we hold the lock: nobody writes it any more
            shutil.rmtree(neighbour)
    needed_bytes, free_bytes = size_bytes(model), shutil.disk_usage(directory.parent).free
    if free_bytes < needed_bytes:
        raise NoRoomOnDisk(
            f"{model.id} needs {_mb(needed_bytes)} in {directory.parent}, {_mb(free_bytes)} are free",
            hint="free some room, or set AUTOLAUNCH_HOME to a folder on a larger disk",
        )
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
    replaced = draft.with_name(draft.name + "-old")
    try:
        entries = tuple(_write(draft, file) for file in _files(model))
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


def _write(draft: Path, file: _File) -> FileEntry:
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
