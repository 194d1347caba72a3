"""What of a model's weights is on this machine already, by a few looks into the hub's cache.

A file is linked into a snapshot when it has come whole, so the names tell: shard 3 of 93 is called so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from selector.facts import ModelFacts
from selector.score import checkpoint_id

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?:safetensors|gguf)")
_WEIGHTS = (".safetensors", ".gguf")


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Where the hub's client keeps repositories: ``HF_HUB_CACHE`` by either name, ``HF_HOME``, or its default."""
    explicit = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    home = environ.get("HF_HOME") or str(Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(home).expanduser() / "hub"


def weights_here(model: ModelFacts, cache: Path, revision: str | None = None) -> frozenset[str]:
    """The checkpoints of a model whose weights are whole in ``cache``, by :func:`selector.score.checkpoint_id`.

    Args:
        revision: the commit or the name of one; the repository's ``main`` otherwise.
    """
    return frozenset(
        checkpoint_id(each.repo, each.file_prefix)
        for each in model.checkpoints
        if (snapshot := _snapshot(cache, each.repo, revision or "main")) is not None
        and _whole(snapshot, each.file_prefix)
    )


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
