"""The checkpoint as a folder on this machine: generated, the user's own, or fetched from a hub.

Nothing is handed to an engine that is incomplete, damaged, or holds code.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any

from autolaunch.headers import regular, whole_gguf, whole_safetensors
from autolaunch.hub_cache import cache_directory
from engines.leash import on_leash
from selector.contract import Candidate, Checkpoint
from selector.errors import DownloadError, HubUnreachable, NoRoomOnDisk
from selector.facts import ModelFacts

#: What is fetched of a repository: weights, configuration, tokenizer, template. Never code, never pickles.
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.gguf")
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
ROOM_MARGIN = 1.02

Progress = Callable[[str, float | None], None]

#: Run as a process of its own, so that an interrupt ends it at once (the client's threads would not), and
#: so that the hub's token is in no process but this one. Says the folder, or the error's kind and text.
_FETCH = """
import sys
from huggingface_hub import snapshot_download
repo, revision, local, *patterns = sys.argv[1:]
try:
    print(snapshot_download(repo, revision=revision or None, allow_patterns=patterns, local_files_only=local == "1"))
except Exception as error:
    print(type(error).__name__ + ": " + str(error)[:2000], file=sys.stderr)
    raise SystemExit(1)
"""


def local_checkpoint(
    candidate: Candidate,
    model: ModelFacts,
    *,
    home: Path,
    model_path: Path | None = None,
    offline: bool = False,
    trust_code: bool = False,
    on_progress: Progress = lambda _message, _fraction: None,
    cancelled: Event | None = None,
) -> Path:
    """The folder to serve: complete, checked, absolute. Set ``cancelled`` and a download ends.

    Raises:
        HubUnreachable: a later try may do; what has come is kept. Also when it was cancelled.
        NoRoomOnDisk: before the first byte.
        DownloadError: it is not there, not whole, damaged, or holds code (``trust_code`` lets code pass).
    """
    checkpoint = candidate.checkpoint
    if model_path is None and checkpoint.repo.startswith("/"):
        model_path = Path(checkpoint.repo)  # a profile of a folder (autolaunch models add FOLDER)
    if model_path is not None:
        on_progress(f"checking {model_path}", None)
        checked(model_path, candidate.checkpoint, trust_code=trust_code)
        return model_path.absolute()
    if model.generated:
        from engines import miniature  # only a launch of a miniature needs it

        on_progress(f"making the miniature {model.id}", None)
        made = miniature.checkpoint_of(model, checkpoint.repo)
        return miniature.generate(model, home / "models" / made.repo.rpartition("/")[2], made)
    if checkpoint.hub == "modelscope":
        raise DownloadError(
            "ModelScope comes with the modelscope extra, which this release does not have yet",
            hint="fetch the repository with modelscope's own tool and give its folder with --model-path",
        )
    folder = _fetched(checkpoint, offline=offline, on_progress=on_progress, cancelled=cancelled)
    checked(folder, checkpoint, trust_code=trust_code)
    return folder


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
    header says. Hashes are the hub client's.

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


# --- Hugging Face -----------------------------------------------------------------------------------


def _fetched(checkpoint: Checkpoint, *, offline: bool, on_progress: Progress, cancelled: Event | None = None) -> Path:
    cache = cache_directory(os.environ)
    blobs = cache / ("models--" + checkpoint.repo.replace("/", "--")) / "blobs"
    have_bytes = _size(blobs)
    if not offline:
        _room(checkpoint, cache, max(0, checkpoint.download_bytes - have_bytes))
    patterns: tuple[str, ...] = WANTED if checkpoint.file_prefix is None else (f"{checkpoint.file_prefix}*",)
    argv = (sys.executable, "-c", _FETCH, checkpoint.repo, checkpoint.revision or "", "01"[offline], *patterns)
    environment = dict(os.environ) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONSAFEPATH": "1"}
    with on_leash(argv, environment=environment, stdout=subprocess.PIPE) as process:
        # An interrupt ends it; what has come is kept, and the next try goes on from there.
        while True:
            try:
                out, told = process.communicate(timeout=1.0 if cancelled is None else 0.25)
                break
            except subprocess.TimeoutExpired:
                if cancelled is not None and cancelled.is_set():
                    raise HubUnreachable(f"fetching {checkpoint.repo} was cancelled") from None
                done = _size(blobs)
                fraction = min(1.0, done / checkpoint.download_bytes) if checkpoint.download_bytes else None
                on_progress(f"fetching {checkpoint.repo}: {done / 1e9:.1f} GB", fraction)
    if process.returncode != 0:
        raise _refusal(checkpoint, told.decode(errors="replace").strip(), offline=offline)
    return Path(os.fsdecode(out.strip().splitlines()[-1]))


def _room(checkpoint: Checkpoint, cache: Path, missing_bytes: int) -> None:
    place = next(path for path in (cache, *cache.parents) if path.exists())
    needed_bytes, free_bytes = int(missing_bytes * ROOM_MARGIN), shutil.disk_usage(place).free
    if needed_bytes > free_bytes:
        raise NoRoomOnDisk(
            f"{checkpoint.repo} needs {needed_bytes / 1e9:.1f} GB more in {cache}, {free_bytes / 1e9:.1f} GB are free",
            hint="free some room, or set HF_HOME to a folder on a larger disk",
        )


def _size(folder: Path) -> int:
    """Bytes of the files in ``folder``, of what is under way too."""
    total_bytes = 0
    try:
        for entry in os.scandir(folder):
            try:
                total_bytes += entry.stat().st_size
            except OSError:
                continue  # renamed meanwhile
    except OSError:
        return 0
    return total_bytes


def _refusal(checkpoint: Checkpoint, told: str, *, offline: bool) -> DownloadError:
    line = told.splitlines()[-1] if told else "no reason given"
    kind = line.partition(":")[0]
    if offline:
        return DownloadError(
            f"{checkpoint.repo} is not on this machine, or not whole, and --offline forbids fetching it",
            hint="launch once without --offline, or give a folder with --model-path",
        )
    if kind == "GatedRepoError" or "401" in line or "403" in line:
        return DownloadError(
            f"the hub does not let this account read {checkpoint.repo}",
            hint="accept its terms on the hub, and set HF_TOKEN or run: hf auth login",
        )
    if kind in {"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError"}:
        at = f" at {checkpoint.revision}" if checkpoint.revision else ""
        return DownloadError(f"the hub has no {checkpoint.repo}{at}")
    if "No space left" in line:
        return NoRoomOnDisk(f"the disk became full while {checkpoint.repo} was fetched", hint="free some room")
    return HubUnreachable(
        f"{checkpoint.repo} could not be fetched: {line[:300]}",
        hint="is there a network? a mirror is taken from HF_ENDPOINT; what has come is kept",
    )
