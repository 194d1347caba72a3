"""The checkpoint as a folder on this machine: generated, the user's own, or fetched from a hub.

Nothing is handed to an engine that is incomplete, damaged, or holds code.
"""

from __future__ import annotations

import glob
import json
import os
import re
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any

from autolaunch.headers import regular, whole_gguf, whole_safetensors
from autolaunch.hubs.obtaining import Progress, Wanted, obtain
from selector.contract import Candidate, Checkpoint
from selector.errors import DownloadError
from selector.facts import ModelFacts

#: Files whose loading can run code.
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
CODE = frozenset({".py", ".pyc", ".pyo", ".pyz", ".so", ".dylib"})
#: What brings code into an engine: Transformers' key for it, and mlx-lm's.
CODE_KEYS = ("auto_map", "model_file")
#: What engines read for certain, so that none of it may be too large to look into.
READ_BY_ENGINES = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
#: Bookkeeping of git and of the hub's client, which no engine reads.
NOT_LOOKED_INTO = frozenset({".git", ".cache"})
CONFIG_BYTES, TOKENIZER_BYTES = 16 * 2**20, 256 * 2**20


def local_checkpoint(
    candidate: Candidate,
    model: ModelFacts,
    *,
    home: Path,
    model_path: Path | None = None,
    offline: bool = False,
    trust_code: bool = False,
    hub_pinned: bool = False,
    on_progress: Progress = lambda _message, _fraction, _transfer: None,
    cancelled: Event | None = None,
) -> Path:
    """The folder to serve: complete, checked, absolute. Set ``cancelled`` and a download ends.

    Unless ``hub_pinned`` the weights may come from ModelScope where Hugging Face does not answer.

    Raises:
        HubUnreachable: a later try may do; what has come is kept. Also when it was cancelled.
        NoRoomOnDisk: before the first byte, or the disk became full.
        DownloadError: it is not there, not whole, damaged, or holds code (``trust_code`` lets code pass).
    """
    checkpoint = candidate.checkpoint
    if model_path is None and checkpoint.repo.startswith("/"):
        model_path = Path(checkpoint.repo)  # a profile of a folder (autolaunch models add FOLDER)
    if model_path is not None:
        on_progress(f"checking {model_path}", None, None)
        checked(model_path, candidate.checkpoint, trust_code=trust_code)
        return model_path.absolute()
    if model.generated:
        from engines import miniature  # only a launch of a miniature needs it

        on_progress(f"making the miniature {model.id}", None, None)
        made = miniature.checkpoint_of(model, checkpoint.repo)
        return miniature.generate(model, home / "models" / made.repo.rpartition("/")[2], made)
    obtained = obtain(
        wanted_of(checkpoint, model, hub_pinned=hub_pinned),
        home=home,
        offline=offline,
        on_progress=on_progress,
        cancelled=cancelled,
    )
    checked(obtained.folder, checkpoint, trust_code=trust_code)
    return obtained.folder


def wanted_of(checkpoint: Checkpoint, model: ModelFacts, *, hub_pinned: bool) -> Wanted:
    """Where a planned checkpoint may be had: at the hub that was asked for, or at the first that answers."""
    facts = next(
        (
            each
            for each in model.checkpoints
            if checkpoint.repo in (each.repo, each.modelscope) and checkpoint.file_prefix == each.file_prefix
        ),
        None,
    )
    if checkpoint.hub == "modelscope":
        return Wanted(modelscope=checkpoint.repo, revision=checkpoint.revision, file_prefix=checkpoint.file_prefix)
    # A commit of one hub is none of the other's.
    elsewhere = None if hub_pinned or facts is None or checkpoint.revision is not None else facts.modelscope
    return Wanted(
        huggingface=checkpoint.repo,
        modelscope=elsewhere,
        revision=checkpoint.revision,
        file_prefix=checkpoint.file_prefix,
    )


def weights_of(folder: Path, checkpoint: Checkpoint) -> Path:
    """What an engine is told to load: the folder, or the first file of a GGUF checkpoint in it.

    Raises:
        DownloadError: the folder has no file of that name.
    """
    if checkpoint.format != "gguf":
        return folder
    prefix = checkpoint.file_prefix or ""
    found = sorted(folder.glob(f"{glob.escape(prefix)}*.gguf"))
    # A folder that the user named holds what it holds, perhaps without the hub's sub-folder.
    found = found or sorted(folder.glob(f"{glob.escape(PurePosixPath(prefix).name)}*.gguf"))
    if not found:
        raise DownloadError(f"{folder} has no file {prefix}*.gguf")
    return found[0]


def checked(folder: Path, checkpoint: Checkpoint | None = None, *, trust_code: bool = False) -> None:
    """Holds that ``folder`` is a whole checkpoint without code.

    Every shard of the index, or every part of the GGUF file that ``checkpoint`` names, is there and as long as its own
    header says. Hashes are held where it is fetched (:mod:`autolaunch.hubs.fetching`).

    Raises:
        DownloadError: what is wrong, with the file's name.
    """
    if not folder.is_dir():
        raise DownloadError(f"{folder} is no folder", hint="--model-path takes the folder that holds config.json")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not trust_code:
        _refuse_code(folder, files)
    if checkpoint is not None and checkpoint.format == "gguf":
        for path in _parts(weights_of(folder, checkpoint)):
            whole_gguf(path)
        return
    _object(folder / "config.json")
    _tokenizer(folder)
    shards = {path.name for path in files if path.suffix == ".safetensors"}
    index = folder / "model.safetensors.index.json"
    places: dict[str, str] = {}
    if index.is_file():
        named = _object(index).get("weight_map")
        found = named.items() if isinstance(named, dict) else ()
        places = {tensor: name for tensor, name in found if isinstance(name, str)}
        if not places:
            raise DownloadError(f"{index} names no shards", hint="fetch this file again")
        wanted = frozenset(places.values())
        missing = sorted(name for name in wanted if Path(name).name != name or name not in shards)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DownloadError(f"{folder} is not whole: {missing[0]}{more} of {len(wanted)} shards missing")
        shards = set(wanted) or shards
    if not shards:
        raise DownloadError(f"{folder} holds no weights (*.safetensors or *.gguf)")
    held = {name: whole_safetensors(folder / name) for name in sorted(shards)}
    # An engine may fill in for a tensor that is not there, and serve noise.
    lost = next((tensor for tensor, name in places.items() if tensor not in held[name]), None)
    if lost is not None:
        raise DownloadError(
            f"{folder / places[lost]} does not hold {lost[:100]!a}, which {index.name} says it does",
            hint="fetch both files again",
        )


def _tokenizer(folder: Path) -> None:
    """Every engine reads it, and none says which file it missed.

    Raises:
        DownloadError: there is none, or it was cut short.
    """
    if (folder / "tokenizer.model").is_file():
        return
    path = folder / "tokenizer.json"
    try:
        with regular(path) as file:
            json.loads(file.read(TOKENIZER_BYTES + 1)[:TOKENIZER_BYTES])
    except FileNotFoundError:
        raise DownloadError(f"{folder} has no tokenizer.json", hint="fetch the checkpoint's other files too") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DownloadError(
            f"{path} is damaged or cut short: it is no whole JSON file", hint="fetch this file again"
        ) from error


def _parts(first: Path) -> list[Path]:
    """All files of a GGUF checkpoint; each name says how many there are.

    Raises:
        DownloadError: one is missing.
    """
    named = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", first.name)
    if named is None:
        return [first]
    count = int(named[2])
    parts = [first.with_name(f"{named[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    missing = next((part.name for part in parts if not part.is_file()), None)
    if missing is not None:
        raise DownloadError(f"{first.parent} is not whole: {missing} is missing")
    return parts


def _refuse_code(folder: Path, files: list[Path]) -> None:
    for place, below, names in os.walk(folder):
        below[:] = sorted(set(below) - NOT_LOOKED_INTO)
        for name in sorted(names):
            if Path(name).suffix.lower() in PICKLES | CODE:
                raise DownloadError(
                    f"{Path(place) / name} can run code when it is loaded",
                    hint="take a checkpoint in safetensors, and move such files away if they are not needed",
                )
    for path in files:
        if path.suffix != ".json":
            continue
        try:
            value = _object(path)
        except DownloadError:
            if path.name in READ_BY_ENGINES:
                raise
            continue  # a list, or a tokenizer of many megabytes
        asked = next((key for key in CODE_KEYS if _holds(value, key)), None)
        if asked is not None:
            raise DownloadError(
                f"{path} asks for code of its own ({asked})",
                hint="the GLM checkpoints need none on current engines: take the released one",
            )


def _holds(value: object, key: str) -> bool:
    """Whether a key has a value anywhere in what was read: a part of the model can ask for code too."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if one.get(key) is not None:
                return True
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return False


def _object(path: Path) -> dict[str, Any]:
    try:
        with regular(path) as file:
            data = file.read(CONFIG_BYTES + 1)
        value = json.loads(data) if len(data) <= CONFIG_BYTES else None
    except FileNotFoundError:
        raise DownloadError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DownloadError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DownloadError(f"{path} is no JSON object of a sensible size")
    return value
