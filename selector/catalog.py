"""The readers of ``profiles/``: models, engines and accelerators, read when they are asked for.

A catalog looks in several directories of one shape (``models/``, ``engines/``, ``accelerators/``). Of two
descriptions with one id, the later directory's wins, so a user's own file adds to what is shipped or replaces
it. Nothing is read at construction, and each file at most once: a plan needs three files of the twenty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from profiles import DIRECTORY
from selector.engine_facts import EngineFacts
from selector.errors import ProfileError, UnknownModel, UsageError
from selector.facts import AcceleratorFacts, AcceleratorFile, ModelFacts
from selector.hardware import Accelerator, Vendor
from selector.sound import Fault, accelerator_faults, engine_faults, model_faults
from selector.values import readable

#: The vendors whose accelerators are described, in the order in which they are looked through.
VENDORS: tuple[Vendor, ...] = ("nvidia", "amd", "apple")
#: The largest profile that is read; ours have 20 KiB at most.
MAXIMUM_BYTES = 1 << 20
#: A card sold with 24 GB under a name known for 48 GB is another card; drivers differ by a few hundred MiB.
MEMORY_TOLERANCE = 0.1

_MIB = 1 << 20
_GIB = 1 << 30
_T = TypeVar("_T")


class ModelMatch(NamedTuple):
    """A model by whatever name it was asked for; ``repo`` is the checkpoint that the name pins, if it does."""

    model: ModelFacts
    repo: str | None


class Catalog:
    """What is known of models, engines and accelerators.

    Args:
        directories: folders of the shape of ``profiles/``, the later ones before the earlier; those that do not
            exist are empty.
    """

    def __init__(self, directories: Iterable[Path] = (DIRECTORY,)) -> None:
        self._directories = tuple(directories)
        self._listings: dict[str, dict[str, Path]] = {}
        self._models: dict[str, ModelFacts] = {}
        self._engines: dict[str, EngineFacts] = {}
        self._accelerators: dict[Vendor, tuple[AcceleratorFacts, ...]] = {}

    # --- models

    def model_ids(self) -> tuple[str, ...]:
        """Every model's id, sorted."""
        return tuple(self._files("models"))

    def model(self, model_id: str) -> ModelFacts:
        """The model of exactly this id.

        Raises:
            UnknownModel: there is none.
            ProfileError: its file is wrong.
        """
        known = self._models.get(model_id)
        if known is None:
            path = self._files("models").get(model_id)
            if path is None:
                raise self._unknown_model(model_id)
            known = read_profile(path, ModelFacts)
            _check_model(path, known)
            self._models[model_id] = known
        return known

    def find_model(self, name: str) -> ModelMatch:
        """The model that a person means: an id, an alias, or a repository of either hub, in any case of letters.

        A base repository's name is an alias and pins nothing; any other checkpoint's pins that checkpoint. The
        name is only compared, never made part of a path.

        Raises:
            UnknownModel: nothing is called so; the hint holds the nearest name, or all ids.
            ProfileError: a file that had to be read is wrong.
        """
        wanted = name.lower() if name.isascii() else ""
        ids = self.model_ids()
        if wanted in ids:
            return ModelMatch(self.model(wanted), None)
        # Repositories are named after their model, so the first file read is nearly always the right one.
        order = sorted(ids, key=lambda each: (each not in wanted, -len(each), each)) if wanted else ()
        for model in map(self.model, order):
            if wanted in {alias.lower() for alias in model.aliases}:
                return ModelMatch(model, None)
            for checkpoint in model.checkpoints:
                if wanted in {checkpoint.repo.lower(), (checkpoint.modelscope or checkpoint.repo).lower()}:
                    return ModelMatch(model, checkpoint.repo)
        raise self._unknown_model(name)

    def _unknown_model(self, name: str) -> UnknownModel:
        names = {each: each for each in self.model_ids()}
        for model in (self.model(each) for each in self.model_ids()):
            names |= {each.lower(): each for each in (*model.aliases, *(file.repo for file in model.checkpoints))}
        near = nearest(name.lower(), names)
        hint = f"known models: {', '.join(self.model_ids())}" if near is None else f"did you mean {names[near]}?"
        return UnknownModel(f"no model is called {shown(name)}", hint=hint)

    # --- engines

    def engine_names(self) -> tuple[str, ...]:
        """Every engine's name, sorted."""
        return tuple(self._files("engines"))

    def engine(self, name: str) -> EngineFacts:
        """The engine of this name.

        Raises:
            UsageError: there is none.
            ProfileError: its file is wrong.
        """
        known = self._engines.get(name)
        if known is None:
            path = self._files("engines").get(name)
            if path is None:
                near = nearest(name, self.engine_names())
                hint = f"known engines: {', '.join(self.engine_names())}" if near is None else f"did you mean {near}?"
                raise UsageError(f"no engine is called {shown(name)}", hint=hint)
            known = read_profile(path, EngineFacts)
            _check_name(path, "name", known.name)
            _refuse(path, engine_faults(known))
            self._engines[name] = known
        return known

    # --- accelerators

    def accelerators(self, vendor: Vendor) -> tuple[AcceleratorFacts, ...]:
        """A vendor's accelerators, in the order of the files.

        Raises:
            ProfileError: a file is wrong.
        """
        known = self._accelerators.get(vendor)
        if known is None:
            found: dict[str, AcceleratorFacts] = {}
            for directory in self._directories:
                path = directory / "accelerators" / f"{vendor}.toml"
                if path.is_file():
                    found |= {each.id: each for each in _accelerator_file(path, vendor)}
            known = self._accelerators[vendor] = tuple(found.values())
        return known

    def every_accelerator(self) -> tuple[AcceleratorFacts, ...]:
        """The accelerators of all vendors."""
        return tuple(each for vendor in VENDORS for each in self.accelerators(vendor))

    def accelerator_for(self, device: Accelerator) -> AcceleratorFacts | None:
        """What is known of a device that a driver reported, or ``None``.

        By the driver's name, first as it is and then without vendor, brand and punctuation. Of several with one
        name, compute capability, GPU cores and memory decide, and where they leave more than one the slowest is
        taken. Of a MIG slice the bandwidth is the share of the memory that it has, and the rates the share of the
        seven compute slices.
        """
        name, _, profile = device.name.partition(" MIG ")
        known = self.accelerators(device.vendor)
        found = [each for each in known if name in each.driver_names]
        if not found:
            plain = _plain(name)
            found = [
                each for each in known if plain in {_plain(known_as) for known_as in (*each.driver_names, each.name)}
            ]
        found = [each for each in found if _same_capability(each, device)]
        sliced = device.mig_parent_uuid is not None or bool(profile)
        if len(found) > 1:
            found = _by_cores(found, device)
        if len(found) > 1 and not sliced:
            found = _by_memory(found, device)
        if not found:
            return None
        facts = min(found, key=lambda each: (each.bandwidth_gb_per_second, each.id))
        return _slice(facts, device, profile) if sliced else facts

    # --- files

    def _files(self, kind: str) -> dict[str, Path]:
        """The files of one folder over all directories, by name without ending, sorted."""
        known = self._listings.get(kind)
        if known is None:
            found = {}
            for directory in self._directories:
                try:
                    entries = sorted((directory / kind).iterdir())
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise ProfileError(f"{place_of(directory / kind)}: {error.strerror}") from error
                for path in entries:
                    if path.suffix == ".toml" and not path.name.startswith(".") and path.is_file():
                        found[path.stem] = path
            known = self._listings[kind] = dict(sorted(found.items()))
        return known


# --- which accelerator it is -------------------------------------------------------------------------


def _plain(name: str) -> str:
    """A device's name without what drivers of different years put around it."""
    words = name.lower().replace("(r)", " ").replace("(tm)", " ").replace("-", " ").replace("_", " ").split()
    return "".join(
        word
        for word in words
        if word not in {"nvidia", "amd", "apple", "geforce", "tesla", "instinct", "oam", "generation"}
    )


def _same_capability(facts: AcceleratorFacts, device: Accelerator) -> bool:
    return None in (facts.compute_capability, device.compute_capability) or (
        facts.compute_capability == device.compute_capability
    )


def _by_cores(found: list[AcceleratorFacts], device: Accelerator) -> list[AcceleratorFacts]:
    cores = None if device.metal is None else device.metal.gpu_cores
    return [each for each in found if cores in each.gpu_cores] or found


def _by_memory(found: list[AcceleratorFacts], device: Accelerator) -> list[AcceleratorFacts]:
    total = device.memory_total_bytes
    if total is None:
        return found

    def distance(facts: AcceleratorFacts) -> float:
        sizes = [size * _GIB for size in facts.memory_options_gib]
        sizes += [] if facts.memory_total_mib is None else [facts.memory_total_mib * _MIB]
        return min((abs(size - total) / size for size in sizes), default=1.0)

    return [each for each in found if distance(each) <= MEMORY_TOLERANCE] or found


def _slice(facts: AcceleratorFacts, device: Accelerator, profile: str) -> AcceleratorFacts:
    share = None
    if device.memory_total_bytes and facts.memory_total_mib:
        share = min(1.0, device.memory_total_bytes / (facts.memory_total_mib * _MIB))
    compute = int(profile[0]) / 7 if profile[:1].isdigit() and profile[1:2] == "g" else share
    if share is None or compute is None:
        return facts
    rates = ("bf16_tflops", "fp16_tflops", "fp8_tflops", "int8_tops", "fp4_tflops")
    known = {rate: getattr(facts, rate) for rate in rates}
    scaled = {rate: figure * min(compute, 1.0) for rate, figure in known.items() if figure is not None}
    return msgspec.structs.replace(facts, bandwidth_gb_per_second=facts.bandwidth_gb_per_second * share, **scaled)


# --- reading -----------------------------------------------------------------------------------------


def read_profile(path: Path, kind: type[_T]) -> _T:
    """One file of facts, read strictly.

    Raises:
        ProfileError: it cannot be read, or a key is wrong; the message holds the file and the path of the key.
    """
    import tomli  # tomllib's parser, compiled: it reads a plan's profiles in a third of the time

    try:
        with path.open("rb") as file:
            content = file.read(MAXIMUM_BYTES + 1)
        if len(content) > MAXIMUM_BYTES:
            raise ProfileError(f"{place_of(path)}: larger than {MAXIMUM_BYTES // _MIB} MiB, which no profile is")
        document = tomli.loads(content.decode())
    except OSError as error:
        raise ProfileError(f"{place_of(path)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ProfileError(f"{place_of(path)}: not UTF-8 (byte {error.start})") from error
    except tomli.TOMLDecodeError as error:
        raise ProfileError(f"{place_of(path)}: not TOML: {error}") from error
    except RecursionError as error:
        raise ProfileError(f"{place_of(path)}: nested too deeply") from error
    try:
        return msgspec.convert(document, readable(kind))
    except msgspec.ValidationError as error:
        from selector.mismatch import explain

        raise ProfileError(f"{place_of(path)}: {explain(error, kind)}") from error


def place_of(path: Path) -> str:
    """A file as a person should see it: ours from ``profiles/`` on, others in full."""
    return str(path.relative_to(DIRECTORY.parent)) if path.is_relative_to(DIRECTORY) else str(path)


def _check_name(path: Path, key: str, name: str) -> None:
    if name != path.stem:
        raise ProfileError(f"{place_of(path)}: {key}: is {shown(name)}, but the file's name says {shown(path.stem)}")


def _check_model(path: Path, model: ModelFacts) -> None:
    """What types cannot say: a name that can be asked for, figures that can be reckoned with."""
    _check_name(path, "id", model.id)
    if (
        model.id != model.id.lower()
        or not model.id.isascii()
        or not model.id.replace("-", "").replace(".", "").isalnum()
    ):
        raise ProfileError(f"{place_of(path)}: id: use lower-case letters, digits, dots and hyphens")
    _refuse(path, model_faults(model))


def _refuse(path: Path, faults: Iterator[Fault]) -> None:
    """One fault is told at a time: the first is often the cause of the others."""
    for key, reason in faults:
        raise ProfileError(f"{place_of(path)}: {key}: {reason}")


def _accelerator_file(path: Path, vendor: Vendor) -> tuple[AcceleratorFacts, ...]:
    accelerators = read_profile(path, AcceleratorFile).accelerators
    names: dict[str, int] = {}
    for index, facts in enumerate(accelerators):
        key = f"accelerators[{index}]"
        if facts.vendor != vendor:
            raise ProfileError(f"{place_of(path)}: {key}.vendor: is {facts.vendor}, but the file's name says {vendor}")
        _refuse(path, accelerator_faults(key, facts))
        for name in (facts.id, *facts.aliases):
            if (first := names.setdefault(name.lower(), index)) != index:
                raise ProfileError(f"{place_of(path)}: {key}: {shown(name)} is a name of accelerators[{first}] already")
    return accelerators


# --- names -------------------------------------------------------------------------------------------


def shown(text: str) -> str:
    """A foreign string fit for a message: quoted, escaped, and not longer than a line."""
    return ascii(text if len(text) <= 80 else f"{text[:77]}...")


def nearest(wanted: str, known: Iterable[str]) -> str | None:
    """The known name most like what was typed, if any is like it at all.

    Of those that are alike, the one that the fewest slips of the finger lead to; of several, rather one with a
    letter exchanged or put in than a shorter one: ``h201`` is meant for ``h200``, not for ``h20``.
    """
    import difflib

    wanted = wanted[:200]
    alike = difflib.get_close_matches(wanted, list(known), n=8)  # the likest first, which min keeps among equals
    return min(alike, key=lambda each: (_slips(wanted, each), len(each) < len(wanted)), default=None)


def _slips(one: str, other: str) -> int:
    """How many letters must be put in, left out or exchanged to make the one of the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], place
        for column, counterpart in enumerate(other, 1):
            diagonal, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, diagonal + (letter != counterpart)),
            )
    return row[-1]
