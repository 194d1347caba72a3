"""What a hub holds of a checkpoint: each file with its size and its hash, at one commit. Nothing is read here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from selector.facts import Hub
from selector.values import Value

INDEX = "model.safetensors.index.json"
#: More than any checkpoint has; a listing beyond is none.
MOST_FILES, MOST_BYTES, MOST_PATH = 20_000, 2**50, 512
#: What is fetched beside the weights: configuration, tokenizer, chat template. Never code, never pickles.
BESIDE = frozenset({".json", ".jinja", ".txt", ".model"})
_TEMPLATES = "additional_chat_templates"
_PART = re.compile(r"(-\d{5}-of-\d{5})?\.gguf")

SHA256, SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


class HubFile(Value, frozen=True, kw_only=True):
    """A file of a repository. ``git_sha1`` is git's name of the content (a hash of its length and of it).

    Large files have the one hash, small ones the other; a cache that another tool filled may know neither.
    """

    path: str
    size_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None


class Listing(Value, frozen=True, kw_only=True):
    """The files of one checkpoint, exactly those that serving it needs. ``revision`` is a commit."""

    repo: str
    hub: Hub
    revision: str
    files: tuple[HubFile, ...]

    @property
    def size_bytes(self) -> int:
        """All of them together."""
        return sum(each.size_bytes for each in self.files)


class NotAListing(Exception):
    """What a hub answered is no listing of files; says why."""


def sound(files: Iterable[HubFile]) -> tuple[HubFile, ...]:
    """The files, ordered by path, as far as their names may be files of a folder of ours.

    Raises:
        NotAListing: too many, twice the same, or a name that leads elsewhere, a size or a hash that is none.
    """
    found: dict[str, HubFile] = {}
    for each in files:
        if len(found) == MOST_FILES:
            raise NotAListing(f"it lists more than {MOST_FILES} files")
        if not _below(each.path):
            raise NotAListing(f"it lists a file {each.path[:100]!a}")
        if each.path in found:
            raise NotAListing(f"it lists {each.path} twice")
        if not 0 <= each.size_bytes <= MOST_BYTES:
            raise NotAListing(f"it says that {each.path} is {each.size_bytes} bytes long")
        if (each.sha256 is not None and not SHA256.fullmatch(each.sha256)) or (
            each.git_sha1 is not None and not SHA1.fullmatch(each.git_sha1)
        ):
            raise NotAListing(f"it gives a hash of {each.path} that is none")
        found[each.path] = each
    return tuple(found[path] for path in sorted(found))


def _below(path: str) -> bool:
    parts = path.split("/")
    return (
        0 < len(path) <= MOST_PATH
        and path.isprintable()
        and "\\" not in path
        and all(part not in ("", ".", "..") for part in parts)
    )


def needed(
    files: Iterable[HubFile], file_prefix: str | None = None, shards: frozenset[str] | None = None
) -> tuple[HubFile, ...]:
    """What serving takes of a repository's files.

    Args:
        file_prefix: with which the GGUF files of the quantization begin; ``None`` for a checkpoint in safetensors.
        shards: those that the index names; ``None`` where there is no index.

    Raises:
        NotAListing: a shard of the index is not there, or there are no weights at all.
    """
    files = tuple(files)
    if file_prefix is not None:
        found = tuple(each for each in files if _is_part(each.path, file_prefix))
        if not found:
            raise NotAListing(f"it has no file {file_prefix}*.gguf")
        return found
    if shards is None:
        weights = tuple(each for each in files if "/" not in each.path and each.path.endswith(".safetensors"))
    else:
        lost = sorted(shards - {each.path for each in files})
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise NotAListing(f"its index names {lost[0][:100]}{more}, which it does not have")
        weights = tuple(each for each in files if each.path in shards)
    if not weights:
        raise NotAListing("it holds no weights in safetensors")
    return (*(each for each in files if _is_beside(each.path)), *weights)


def _is_part(path: str, file_prefix: str) -> bool:
    return path.startswith(file_prefix) and _PART.fullmatch(path[len(file_prefix) :]) is not None


def _is_beside(path: str) -> bool:
    place = PurePosixPath(path)
    if place.suffix not in BESIDE:
        return False
    return "/" not in path or (place.parent.name == _TEMPLATES and len(place.parts) == 2)
