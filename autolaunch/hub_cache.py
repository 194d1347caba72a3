"""What of a model's weights is on this machine already, by a few looks at files; none of them is read.

What counts: all shards are there by their names (shard 3 of 93 is called so, and a file gets its name when it has come
whole), and each is as it was when autolaunch last held it against its hash (:mod:`autolaunch.hubs.kept`). A cache that
another tool filled has no such stamps: its files then have to be as long as that tool's own list of them says, where
there is one. They are hashed before they are served.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from selector.facts import CheckpointFacts, ModelFacts, checkpoint_id

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?:safetensors|gguf)")
_WEIGHTS = (".safetensors", ".gguf")
_TREE_BYTES = 16 * 2**20


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Where the hub's client keeps repositories: ``HF_HUB_CACHE`` by either name, ``HF_HOME``, or its default."""
    explicit = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    home = environ.get("HF_HOME") or str(Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(home).expanduser() / "hub"


def weights_here(
    model: ModelFacts, cache: Path, revision: str | None = None, *, home: Path | None = None
) -> frozenset[str]:
    """The checkpoints of a model whose weights are whole in ``cache``, by :func:`selector.facts.checkpoint_id`.

    Args:
        revision: the commit or the name of one; the repository's ``main`` otherwise.
        home: where it is kept what was verified; ``None`` looks at names and lengths alone. Then what came from
            ModelScope counts as well.
    """
    found = {
        checkpoint_id(each.repo, each.file_prefix)
        for each in model.checkpoints
        if (snapshot := _snapshot(cache, each.repo, revision or "main")) is not None
        and _whole(snapshot, each.file_prefix)
        and _unchanged(home, each, snapshot)
    }
    if home is None or not (home / "weights").is_dir():
        return frozenset(found)
    from autolaunch.hubs.kept import of_modelscope  # only where something was fetched

    return frozenset(found | of_modelscope(home, model, revision))


def _unchanged(home: Path | None, checkpoint: CheckpointFacts, snapshot: Path) -> bool:
    """Whether the files are still those that were verified, or as long as they have to be where none was."""
    if home is not None and (home / "weights").is_dir():
        from autolaunch.hubs.kept import load  # as above

        kept = load(home, "huggingface", checkpoint.repo, snapshot.name, checkpoint.file_prefix)
        if kept is not None:
            return kept.whole and Path(kept.folder) == snapshot.absolute()
    try:
        with (snapshot.parents[1] / "trees" / f"{snapshot.name}.json").open("rb") as file:
            lengths = _lengths(file.read(_TREE_BYTES + 1))
    except OSError:
        return True  # clients before 2.0 keep no list
    return all(_length(snapshot / name) in (None, size_bytes) for name, size_bytes in lengths.items())


def _length(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None  # not every file of a repository is needed


def _lengths(content: bytes) -> dict[str, int]:
    """The weights of a list of files that the hub's client keeps, with their lengths; nothing of one that is none."""
    import json

    try:
        found = json.loads(content) if len(content) <= _TREE_BYTES else None
    except (ValueError, RecursionError):
        return {}
    files = found.get("files") if isinstance(found, dict) else None
    return {
        name: size
        for name, each in (files.items() if isinstance(files, dict) else ())
        if name.endswith(_WEIGHTS) and isinstance(each, dict) and isinstance(size := each.get("size"), int)
    }


def _snapshot(cache: Path, repo: str, revision: str) -> Path | None:
    place = cache / ("models--" + repo.replace("/", "--"))
    try:
        commit = (place / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = revision
    if repo.startswith("/"):  # a profile of a folder of this machine
        return Path(repo) if Path(repo).is_dir() else None
    folder = place / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def _whole(snapshot: Path, file_prefix: str | None) -> bool:
    """Whether all shards are there that the names of those that are there speak of."""
    begins = snapshot / (file_prefix or "x")
    try:
        found = [path.name for path in begins.parent.iterdir() if path.suffix in _WEIGHTS and path.is_file()]
    except OSError:
        return False
    names = found if file_prefix is None else [name for name in found if name.startswith(begins.name)]
    shards: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if (shard := _SHARD.fullmatch(name)) is not None:
            shards.setdefault((shard["stem"], int(shard["count"])), set()).add(int(shard["number"]))
    return bool(names) and all(len(numbers) == count for (_, count), numbers in shards.items())
