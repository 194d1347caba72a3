"""A repository as a profile: read from the hub or a folder, written where the user's own profiles are.

What nobody measured says so: quality is that of the nearest checkpoint that is known, and its source says which.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import msgspec

from autolaunch.adding import gguf
from autolaunch.adding.shapes import architecture_of, refuse_code
from autolaunch.adding.sources import File, Folder, OnHub, Source
from autolaunch.adding.storing import Stored, stored
from autolaunch.adding.tensors import tensors_of
from autolaunch.daemon import small_file
from autolaunch.freeing import HUB_ID
from selector.architecture import active_parameters, parameters
from selector.catalog import Catalog
from selector.errors import ConfigurationError, DownloadError, UnknownModel, UsageError
from selector.facts import Architecture, CheckpointFacts, Format, Hub, ModelFacts, Parsers

CONFIG_BYTES, INDEX_BYTES = 1 << 20, 64 << 20
ID = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_PART = re.compile(r"-\d{5}-of-\d{5}$")
#: The first that a name of a file ends with, as Q4_K_M or UD-Q2_K_XL.
_QUANTIZATION = re.compile(r"(?:UD-)?(?:I?Q\d[A-Z0-9_]*|TQ\d_\d|BF16|F16|F32|MXFP4[A-Z0-9_]*)$", re.IGNORECASE)


def source_of(place: str, *, hub: Hub = "huggingface", revision: str | None = None) -> Source:
    """The repository that is meant: a folder's path (``./x``, ``/x``, ``~/x``), or a hub's id.

    Raises:
        UsageError: it is neither.
        DownloadError: the hub has no such thing, or does not answer.
    """
    if place.startswith(("/", "./", "../", "~", ".")):
        if revision is not None:
            raise UsageError("--revision chooses among the commits of a hub, and this is a folder")
        return Folder(Path(place).expanduser())
    if HUB_ID.fullmatch(place) is None or ".." in place:
        raise UsageError(f"{place[:100]!a} is no ORG/REPO", hint="as in zai-org/GLM-4.6; a folder begins with / or ./")
    return OnHub(place, hub, revision)


def refuse_known(place: str, known: Catalog) -> None:
    """
    Raises:
        UsageError: a profile has it already.
    """
    try:
        match = known.find_model(place)
    except UnknownModel:
        return
    raise UsageError(
        f"{place} is known already, as a checkpoint of {match.model.id}", hint=f"autolaunch plan {place} plans with it"
    )


def profile_of(source: Source, known: Catalog, *, name: str | None = None) -> ModelFacts:
    """What the repository is, as a profile has it.

    Args:
        name: its id; made from the repository's name otherwise.

    Raises:
        DownloadError: it is of another architecture, asks for code, has pickles alone, or is damaged.
        UsageError: the id is none, or is taken.
    """
    models = tuple(known.model(each) for each in known.model_ids())
    model_id = checked_id(name, known) if name is not None else free_id(source.repo, known)
    of_gguf = tuple(each for each in source.files if each.path.endswith(".gguf"))
    shards = tuple(each for each in source.files if each.path.endswith(".safetensors") and "/" not in each.path)
    if shards:
        return _of_safetensors(source, shards, model_id, models)
    if of_gguf:
        return _of_gguf(source, of_gguf, model_id, models)
    pickles = next((each.path for each in source.files if each.path.lower().endswith(_PICKLES)), None)
    if pickles is not None:
        raise DownloadError(
            f"{source.repo} has its weights in {pickles} alone, which can run code when it is loaded",
            hint="a repository in safetensors has none of that",
        )
    raise DownloadError(f"{source.repo} has no weights: neither *.safetensors nor *.gguf")


# --- names --------------------------------------------------------------------------------------------


def checked_id(name: str, known: Catalog) -> str:
    """
    Raises:
        UsageError: it is none, or is taken.
    """
    if ID.fullmatch(name) is None or ".." in name:
        raise UsageError(
            f"{name[:60]!a} cannot be a model's id", hint="lower-case letters, digits, '.' and '-', as in glm-4.6-mine"
        )
    if name in known.model_ids():
        raise UsageError(f"there is a model {name} already", hint="--name gives it another id")
    return name


def free_id(repo: str, known: Catalog) -> str:
    """An id for a repository: its own name, with its owner's where that is taken."""
    owner, _, own = repo.rpartition("/")
    owner = owner.rpartition("/")[2]
    for text in (own, f"{own}-{owner}"):
        found = re.sub(r"[^a-z0-9.]+", "-", text.lower()).replace("..", ".").strip("-.")[:60].strip("-.")
        if ID.fullmatch(found) and found not in known.model_ids():
            return found
    raise UsageError(f"no id can be made of {repo}", hint="--name gives it one")


# --- safetensors ------------------------------------------------------------------------------------------


def _of_safetensors(
    source: Source, shards: tuple[File, ...], model_id: str, models: tuple[ModelFacts, ...]
) -> ModelFacts:
    config = _object(source, "config.json", CONFIG_BYTES)
    for each in source.files:
        if each.path.endswith("config.json") and "/" not in each.path and each.size_bytes <= CONFIG_BYTES:
            refuse_code(config if each.path == "config.json" else _object(source, each.path, CONFIG_BYTES), each.path)
    shards = _of_index(source, shards)
    tensors = tensors_of(source, shards)
    architecture = architecture_of(config, tensors, source.told)
    _reckonable(architecture)
    found = stored(architecture, config, tensors)
    like = nearest(architecture, models, source.repo)
    checkpoint = _checkpoint(source, found, sum(each.size_bytes for each in shards), models)
    return _model(source, model_id, architecture, (checkpoint,), like)


def _reckonable(architecture: Architecture) -> None:
    """
    Raises:
        DownloadError: figures that no model has: nothing can be reckoned with them.
    """
    from selector.sound import architecture_faults

    for key, reason in architecture_faults(architecture):
        raise DownloadError(f"config.json describes no model: {key} {reason}")


def _of_index(source: Source, shards: tuple[File, ...]) -> tuple[File, ...]:
    """The files that the index names; all, where there is none.

    Raises:
        DownloadError: one is not there.
    """
    index = next((each for each in source.files if each.path == "model.safetensors.index.json"), None)
    if index is None:
        return shards
    named = _object(source, index.path, INDEX_BYTES).get("weight_map")
    wanted = {each for each in named.values() if isinstance(each, str)} if isinstance(named, dict) else set()
    here = {each.path: each for each in shards}
    missing = sorted(wanted - set(here))
    if missing or not wanted:
        what = f"{missing[0][:100]!a} is not there" if missing else "it names no shards"
        raise DownloadError(f"{source.repo} is not whole by its index: {what}")
    return tuple(here[each] for each in sorted(wanted))


def _object(source: Source, path: str, most_bytes: int) -> dict[str, object]:
    file = next((each for each in source.files if each.path == path), None)
    if file is None:
        raise DownloadError(f"{source.repo} has no {path}")
    if file.size_bytes > most_bytes:
        raise DownloadError(f"{path} of {source.repo} has {file.size_bytes} bytes, more than any that makes sense")
    try:
        found = json.loads(source.read(file, 0, file.size_bytes))
    except (ValueError, RecursionError) as error:
        raise DownloadError(f"{path} of {source.repo} is no JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise DownloadError(f"{path} of {source.repo} is no JSON object")
    return found


def _checkpoint(source: Source, found: Stored, size_bytes: int, models: Iterable[ModelFacts]) -> CheckpointFacts:
    bits = found.bits if found.storage is None else found.storage.bits
    quality, why = quality_of(found.format, bits, models)
    return CheckpointFacts(
        repo=source.repo,
        format=found.format,
        quantization=found.quantization,
        download_bytes=size_bytes,
        download_basis="measured",
        quality=quality,
        quality_source=why,
        storage=found.storage,
        source=f"{source.told}: the headers of its files",
        note=None
        if found.storage is not None
        else "its parts are kept in several widths, so the layout is left out and its size spread evenly",
    )


# --- GGUF ---------------------------------------------------------------------------------------------


def _of_gguf(source: Source, files: tuple[File, ...], model_id: str, models: tuple[ModelFacts, ...]) -> ModelFacts:
    groups: dict[str, list[File]] = {}
    for each in files:
        groups.setdefault(_PART.sub("", each.path.removesuffix(".gguf")), []).append(each)
    groups = {prefix: parts for prefix, parts in groups.items() if not PurePosixPath(prefix).name.startswith("mmproj")}
    if not groups:
        raise DownloadError(f"{source.repo} has no GGUF file of a model")
    first = min(next(iter(groups.values())), key=lambda each: each.path)
    header = gguf.header_of(source, first)
    like = gguf.known_architecture(header, models, source.repo)
    shape = gguf.with_context(like.architecture, header)
    checkpoints = []
    for prefix, parts in sorted(groups.items()):
        size = sum(each.size_bytes for each in parts)
        named = _QUANTIZATION.search(PurePosixPath(prefix).name)
        bits = 8 * size / parameters(shape, mtp=shape.num_nextn_predict_layers > 0)
        quality, why = quality_of("gguf", bits, models)
        checkpoints.append(
            CheckpointFacts(
                repo=source.repo,
                format="gguf",
                quantization=(named[0] if named else PurePosixPath(prefix).name)[:60],
                file_prefix=prefix,
                download_bytes=size,
                download_basis="measured",
                quality=quality,
                quality_source=why,
                source=f"{source.told}: the sizes of its files",
            )
        )
    architecture = msgspec.structs.replace(shape, source=f"that of {like.id}, whose figures {first.path} has")
    return _model(source, model_id, architecture, tuple(checkpoints), like)


# --- what is taken from what is known -----------------------------------------------------------------


def nearest(architecture: Architecture, models: Iterable[ModelFacts], repo: str) -> ModelFacts | None:
    """The known model of the same architecture with the most figures in common; released ones before miniatures.

    Of several the one that the repository is called after.
    """
    alike = [each for each in models if each.architecture.model_type == architecture.model_type]
    names = [name for name in Architecture.__struct_fields__ if name != "source"]

    def common(model: ModelFacts) -> int:
        return sum(getattr(model.architecture, name) == getattr(architecture, name) for name in names)

    return max(alike, key=lambda each: (not each.generated, common(each), *gguf.named_after(each, repo)), default=None)


def quality_of(form: Format, bits: float, models: Iterable[ModelFacts]) -> tuple[float, str]:
    """How near a checkpoint may stand to the original weights, and what that rests on."""
    if form in ("bf16", "fp32"):
        return 1.0, "assumed: weights in full width; how near they stand to the released ones was not measured"
    known = [(model, each) for model in models if not model.generated for each in model.checkpoints]
    found = [(abs(_width(each, model) - bits), each.repo, each) for model, each in known if each.format == form]
    if not found:
        return 0.9, f"assumed: nothing is known of {form} checkpoints of this architecture"
    near = min(found, key=lambda each: each[:2])[2]
    why = f"assumed: as {near.repo} ({near.quantization}), the nearest that is known in format and bits a weight"
    return near.quality, f"{why} ({bits:.2f}); of this one nothing was measured"


def _width(checkpoint: CheckpointFacts, model: ModelFacts) -> float:
    """Bits a weight: of the quantized ones where the layout is known, else of all."""
    if checkpoint.storage is not None:
        return checkpoint.storage.bits
    return 8 * checkpoint.download_bytes / parameters(model.architecture)


def _model(
    source: Source,
    model_id: str,
    architecture: Architecture,
    checkpoints: tuple[CheckpointFacts, ...],
    like: ModelFacts | None,
) -> ModelFacts:
    return ModelFacts(
        schema=1,
        id=model_id,
        title=source.repo.rpartition("/")[2][:80],
        parameters=f"{_billions(parameters(architecture))}-A{_billions(active_parameters(architecture))}",
        modalities=("text", "image", "video") if architecture.vision is not None else ("text",),
        context_tokens=architecture.max_position_embeddings,
        architecture=architecture,
        parsers=() if like is None else tuple(_parsers(each, like) for each in like.parsers),
        checkpoints=checkpoints,
        source=source.told,
    )


def _billions(count: int) -> str:
    return f"{count / 1e9:.0f}B" if count >= 10**9 else f"{count / 1e6:.1f}M"


def _parsers(each: Parsers, like: ModelFacts) -> Parsers:
    return msgspec.structs.replace(
        each, source=f"as {like.id} has them, the nearest of its architecture; not tried here"
    )


# --- written ------------------------------------------------------------------------------------------


def write_profile(model: ModelFacts, home: Path) -> Path:
    """Writes it among the user's own profiles, where it is read at once to see that it can be; gives its path.

    Raises:
        ProfileError: what was found is no profile that can be reckoned with.
        ConfigurationError: it cannot be written there.
    """
    folder = home / "profiles" / "models"
    path = folder / f"{model.id}.toml"
    if path.exists():
        raise UsageError(f"{path} is there already", hint="--name gives it another id")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".adding-", dir=folder.parent) as place:
            draft = Path(place, "models", path.name)
            draft.parent.mkdir()
            small_file.replace(draft, toml_of(model).encode(), lambda descriptor: os.fchmod(descriptor, 0o644))
            _read_again(model, Path(place))
            draft.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def _read_again(model: ModelFacts, place: Path) -> None:
    """
    Raises:
        ProfileError: what was found is no profile that can be reckoned with.
        ConfigurationError: the file says something else.
    """
    if Catalog((place,)).model(model.id) != model:
        raise ConfigurationError(f"the profile of {model.id} does not say what was found")


def toml_of(model: ModelFacts) -> str:
    """The profile as a file, its keys in the order of the shipped ones."""
    found = msgspec.to_builtins(model)
    lines = [f"# Written by autolaunch models add {model.checkpoints[0].repo!a}: what it says was read, not tried."]
    lines += _pairs(found, skip=("architecture", "parsers", "checkpoints"))
    vision = found["architecture"].pop("vision", None)
    for name, table in (("architecture", found["architecture"]), ("architecture.vision", vision)):
        if table is not None:
            lines += ["", f"[{name}]", *_pairs(table)]
    for name in ("parsers", "checkpoints"):
        for table in found[name]:
            lines += ["", f"[[{name}]]", *_pairs(table)]
    return "\n".join(lines) + "\n"


def _pairs(table: dict[str, object], skip: tuple[str, ...] = ()) -> list[str]:
    return [f"{name} = {_toml(value)}" for name, value in table.items() if value is not None and name not in skip]


def _toml(value: object) -> str:
    """A value on one line. JSON's texts and numbers are TOML's, but for what is beyond the printable."""
    if isinstance(value, dict):
        return f"{{ {', '.join(_pairs(value))} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        value = "".join(letter if letter.isprintable() else " " for letter in value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
