"""The lock of a launch that proved itself: everything that it takes to have the very same one again.

``write_lock`` keeps it in a file, ``read_lock`` reads one as if a stranger had written it, ``differences`` says what is
other on another machine. Nothing of a lock is executed: the command that it holds is made anew from its plan, on its
own hardware, and has to come out the same (:mod:`autolaunch.replaying`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from autolaunch import __version__
from autolaunch.api import with_command
from autolaunch.daemon import small_file
from selector.contract import Candidate, Checkpoint, Command, LaunchPlan, Request
from selector.errors import LockError, UnknownHardware
from selector.facts import EngineName, ModelFacts
from selector.hardware import HardwareReport
from selector.values import Value, readable

#: The largest lock that is read. Most of one are the hashes of an engine's packages.
MAXIMUM_BYTES = 8 << 20
#: Files up to this size are hashed; what the hub's client fetched has its hash for a name, whatever its size.
HASHED_BYTES = 64 << 20
#: Variables of a user's environment that engines read.
READ_BY_ENGINES = (
    "VLLM_",
    "SGLANG_",
    "SGL_",
    "GGML_",
    "LLAMA_",
    "MLX_",
    "NCCL_",
    "CUDA_",
    "TORCH_",
    "PYTORCH_",
    "OMP_",
)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MOST_FILES, _MOST_VARIABLES = 4096, 256
Text = Annotated[str, Meta(max_length=300)]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class LockedFile(Value, frozen=True, kw_only=True):
    """A file of the checkpoint, by its path in it. ``sha256`` is ``None`` where nobody has reckoned it."""

    path: Text
    size_bytes: Annotated[int, Meta(ge=0)]
    sha256: Hash | None = None


class LockedEngine(Value, frozen=True, kw_only=True):
    """``requirements`` are its packages with versions and hashes; ``None`` of an engine that the user installed."""

    name: EngineName
    version: Text
    package: Text
    requirements: Annotated[str, Meta(max_length=4 << 20)] | None = None
    requirements_sha256: Hash | None = None


class Lock(Value, frozen=True, kw_only=True):
    """A launch. Schema 1.

    Attributes:
        release: of autolaunch, which wrote it.
        plan: what ran, its checkpoint at its commit, without its command.
        command: the plan's, as a person would type it: neither addresses nor paths nor keys.
        engine_options: what was passed on after ``--``; who replays it passes them on again.
        own_weights: they lay where the user said (``--model-path``); ``own_engine``: so did the engine.
        environment: the user's own variables that engines read, for comparison.
        probe: the machine.
    """

    schema: Literal[1] = 1
    release: Text
    written: datetime
    model: Text
    request: Request
    engine: LockedEngine
    plan: Candidate
    command: Command
    files: Annotated[tuple[LockedFile, ...], Meta(max_length=_MOST_FILES)]
    engine_options: Annotated[tuple[Text, ...], Meta(max_length=256)] = ()
    own_weights: bool = False
    own_engine: bool = False
    environment: Annotated[dict[str, str], Meta(max_length=_MOST_VARIABLES)] = msgspec.field(default_factory=dict)
    probe: HardwareReport


class Difference(Value, frozen=True, kw_only=True):
    """Something that is other than a lock has it. ``matters``: what was proved there is not proved here."""

    what: str
    locked: str
    now: str
    matters: bool = True

    def __str__(self) -> str:
        return f"{self.what}: {self.locked} in the lock, {self.now} here"


# --- made and written -----------------------------------------------------------------------------------


def lock_of(
    plan: LaunchPlan,
    candidate: Candidate,
    model: ModelFacts,
    *,
    folder: Path,
    requirements: str | None,
    engine_options: tuple[str, ...] = (),
    own_weights: bool = False,
    own_engine: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Lock:
    """The lock of ``candidate``, which serves from ``folder``.

    Args:
        candidate: all replicas of it together.
        requirements: the engine's packages (``requirements.lock`` of its environment), where they are known.
        environ: the environment that it was launched in; the process's own by default.

    Raises:
        LockError: it cannot be kept without a secret.
    """
    from autolaunch.given import without_secrets

    if any(without_secrets(each) != each for each in engine_options):
        raise LockError("the options for the engine hold a token, and a lock holds none")
    engine, commit = candidate.engine, commit_of(folder)
    checkpoint = msgspec.structs.replace(candidate.checkpoint, local=None)
    if commit is not None:
        checkpoint = msgspec.structs.replace(checkpoint, revision=commit)
    ran = msgspec.structs.replace(candidate, checkpoint=checkpoint, command=None, notes=())
    probe = _without_processes(plan.hardware)
    command = with_command(ran, model, probe).command
    assert command is not None  # noqa: S101 - it was made just now
    return Lock(
        release=__version__,
        written=datetime.now(UTC).replace(microsecond=0),
        model=plan.model,
        request=msgspec.structs.replace(plan.request, pinned={}),
        engine=LockedEngine(
            name=engine.name,
            version=engine.version,
            package=engine.package,
            requirements=requirements,
            requirements_sha256=None if requirements is None else sha256(requirements.encode()).hexdigest(),
        ),
        plan=ran,
        command=command,
        files=files_in(folder, candidate.checkpoint),
        engine_options=engine_options,
        own_weights=own_weights,
        own_engine=own_engine,
        environment=read_by_engines(os.environ if environ is None else environ),
        probe=probe,
    )


def write_lock(path: Path, lock: Lock) -> None:
    """Puts ``lock`` at ``path``, in the place of what is there, at once.

    Raises:
        LockError: it cannot be written there.
    """
    content = msgspec.json.format(msgspec.json.encode(lock), indent=2) + b"\n"
    try:
        small_file.replace(path, content, lambda descriptor: os.fchmod(descriptor, 0o644))
    except OSError as error:
        raise LockError(f"{path} cannot be written: {error.strerror or error}") from error


def requirements_in(environment: Path) -> str | None:
    """The packages of an engine's environment with their hashes; ``None`` of one that autolaunch did not make."""
    from engines.environments import LOCK, read_manifest
    from engines.environments.requirements import digest

    manifest = read_manifest(environment)
    try:
        text = (environment / LOCK).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return text if manifest is not None and manifest.lock_sha256 == digest(text) else None


def commit_of(folder: Path) -> str | None:
    """The commit of a snapshot in the hub's cache; ``None`` of any other folder."""
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None


def files_in(folder: Path, checkpoint: Checkpoint) -> tuple[LockedFile, ...]:
    """The files of a checkpoint with their sizes, and their hashes where they are small or the hub has told them."""
    found = []
    for at, _, names in os.walk(folder):
        for name in names:
            path = Path(at, name)
            inside = path.relative_to(folder).as_posix()
            if path.is_file() and not inside.startswith(".") and inside.startswith(checkpoint.file_prefix or ""):
                size = path.stat().st_size
                found.append(LockedFile(path=inside, size_bytes=size, sha256=_hash(path, size)))
    return tuple(sorted(found, key=lambda each: each.path)[:_MOST_FILES])


def _hash(path: Path, size_bytes: int) -> str | None:
    if path.is_symlink() and _SHA256.fullmatch(leads_to := path.readlink().name):
        return leads_to
    if size_bytes > HASHED_BYTES:
        return None
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def read_by_engines(environ: Mapping[str, str]) -> dict[str, str]:
    """What of an environment changes how engines run; nothing that is, or leads to, a credential."""
    from autolaunch.given import without_secrets
    from engines.environments import without_engine_secrets

    found = sorted(without_engine_secrets(environ).items())
    names = [(name, value) for name, value in found if name.startswith(READ_BY_ENGINES) and len(value) < 4096]
    return {name: without_secrets(value) for name, value in names[:_MOST_VARIABLES]}


def _without_processes(report: HardwareReport) -> HardwareReport:
    """A machine, without what others happened to run on it."""
    devices = tuple(msgspec.structs.replace(each, processes=()) for each in report.accelerators)
    return msgspec.structs.replace(report, accelerators=devices)


# --- read ---------------------------------------------------------------------------------------------


def read_lock(path: Path) -> Lock:
    """The lock in a file, held to what a lock can be. Whether its command is its plan's is not looked at here.

    Raises:
        LockError: it cannot be read, or something in it cannot be; the message names the key.
    """
    try:
        content = small_file.read(path, MAXIMUM_BYTES).content
    except small_file.Unreadable as error:
        hint = f"autolaunch MODEL --lock {path} writes it" if error.missing else None
        raise LockError(f"{path}: {error.reason}", hint=hint) from error
    try:
        lock = msgspec.json.decode(content, type=readable(Lock))
    except msgspec.ValidationError as error:
        from selector.mismatch import explain

        raise LockError(f"{path}: {explain(error, Lock)}", hint=_ANEW) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LockError(f"{path}: it is no lock: {str(error)[:200]}", hint=_ANEW) from error
    for key, reason in _impossible(lock):
        raise LockError(f"{path}: {key}: {reason}", hint=_ANEW)
    return lock


_ANEW = "a lock is written by autolaunch MODEL --lock FILE, and not by hand; --replan writes it anew"


def _impossible(lock: Lock) -> Iterator[tuple[str, str]]:
    from autolaunch.given import is_word
    from selector.machines import checked_report

    engine, planned = lock.engine, lock.plan.engine
    if (engine.name, engine.version, engine.package) != (planned.name, planned.version, planned.package):
        yield "engine", f"is {engine.name} {engine.version}, and plan.engine {planned.name} {planned.version}"
    told = None if engine.requirements is None else sha256(engine.requirements.encode()).hexdigest()
    if told != engine.requirements_sha256:
        yield "engine.requirements_sha256", "is not that of the requirements"
    revision = lock.plan.checkpoint.revision
    if revision is not None and not is_word(revision):
        yield "plan.checkpoint.revision", "is no name"
    for place, each in enumerate(lock.files):
        if each.path.startswith("/") or ".." in PurePosixPath(each.path).parts or not each.path.isprintable():
            yield f"files[{place}].path", "leads out of the checkpoint"
    if lock.plan.command is not None:
        yield "plan.command", "stands in command"
    try:
        checked_report(lock.probe)
    except UnknownHardware as error:
        yield "probe", error.message


def plan_of(lock: Lock) -> Candidate:
    """What the lock's launch ran as, with its command."""
    return msgspec.structs.replace(lock.plan, command=lock.command)


# --- compared -----------------------------------------------------------------------------------------


def differing_files(lock: Lock, folder: Path) -> Iterator[str]:
    """What of the checkpoint in ``folder`` is not as the lock has it, a sentence each."""
    here = {each.path: each for each in files_in(folder, lock.plan.checkpoint)}
    for each in lock.files:
        found = here.get(each.path)
        if found is None:
            yield f"{each.path} is missing"
        elif found.size_bytes != each.size_bytes:
            yield f"{each.path} has {found.size_bytes} bytes, and the lock {each.size_bytes}"
        elif None not in (found.sha256, each.sha256) and found.sha256 != each.sha256:
            yield f"{each.path} has another content (sha256 {found.sha256}, and the lock {each.sha256})"


def differences(
    lock: Lock, report: HardwareReport, *, environ: Mapping[str, str] | None = None
) -> tuple[Difference, ...]:
    """What is other on the machine of ``report`` than on the lock's, of what its launch used.

    What is free now is not compared, and neither are names of the very same kind of device.

    Args:
        environ: compare with its variables, too, those that the lock's launch had; ``None`` leaves them out.
    """
    from autolaunch.machine_differences import of_machines

    found = of_machines(lock.probe, report, frozenset(lock.plan.parallel.devices))
    if environ is None:
        return tuple(found)
    now = read_by_engines(environ)
    names: Iterable[str] = sorted(set(lock.environment) | set(now))
    others = (
        Difference(what=name, locked=lock.environment.get(name, "unset"), now=now.get(name, "unset"), matters=False)
        for name in names
        if lock.environment.get(name) != now.get(name)
    )
    return (*found, *others)
