"""A lock launched again: the same configuration, or a refusal that says what is other.

Nothing is taken from the file on trust. What it says that ran is planned again on the hardware that it says it ran on;
layout, limits and command have to come out the same, or somebody, or another release, has another idea of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import msgspec

from autolaunch import __version__, api
from autolaunch.daemon.deployment import Deployment
from autolaunch.locked import Difference, Lock, differences, differing_files, plan_of, read_lock
from autolaunch.pinning import pins_of
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan, Limits
from selector.errors import AutolaunchError, DownloadError, LockError, NoFeasiblePlan, OtherHardware, UsageError
from selector.hardware import HardwareReport
from selector.request import Pins
from selector.values import Value

_AGAIN = "--replan plans again on this machine, as near to the lock as it can, and writes it anew"
#: What of a whole configuration may go when it is planned again, a step after the other.
_KEPT_IN_TURN: tuple[tuple[str, ...], ...] = (
    ("engine", "engine_version", "repo", "format", "quantization", "hub", "revision", "kv_cache_dtype", "speculative"),
    ("engine", "repo", "format", "quantization", "hub", "revision"),
    ("repo", "format", "quantization", "hub", "revision"),
    (),
)


def pins_in(lock: Lock, known: Catalog) -> Pins:
    """Everything of the lock's plan that can be pinned."""
    return pins_of(lock.plan, lock.probe, known)


def plan_again(lock: Lock, pins: Pins, known: Catalog, report: HardwareReport | None) -> LaunchPlan:
    """The lock's request with ``pins``: on a machine of ``report``, or on this one."""
    return api.plan(
        lock.model,
        hardware=report,
        objective=lock.request.objective,
        context_tokens=lock.plan.limits.context_tokens,
        concurrency=lock.request.concurrency,
        input_tokens=lock.request.input_tokens,
        output_tokens=lock.request.output_tokens,
        pins=pins,
        known=known,
        learned=False if report is not None else None,
    )


def checked(lock: Lock, known: Catalog, path: Path) -> Lock:
    """Holds that the lock's command is what its plan comes to on its own hardware.

    Raises:
        LockError: it is not, or the plan cannot be.
    """
    written = f"{path}: it was written by {lock.release}, and this is {__version__}, which"
    by = f"{written} plans otherwise" if lock.release != __version__ else f"{path}: it was changed by hand"
    hint = "autolaunch MODEL --lock FILE --replan writes it anew"
    try:
        derived = plan_again(lock, pins_in(lock, known), known, lock.probe).chosen
    except AutolaunchError as error:
        raise LockError(f"{by}: its plan cannot be: {error.message}", hint=hint) from error
    if derived is None:
        raise LockError(f"{by}: nothing on its own hardware comes to its plan", hint=hint)
    derived = with_command(derived, lock, known)
    for what, one, other in _compared(plan_of(lock), derived):
        raise LockError(f"{by}: {what} is {one}, and its plan comes to {other}", hint=hint)
    return lock


def with_command(candidate: Candidate, lock: Lock, known: Catalog) -> Candidate:
    """``candidate`` with the command as the lock would have it."""
    return api.with_command(candidate, known.model(lock.model), lock.probe)


def _compared(locked: Candidate, derived: Candidate) -> Iterator[tuple[str, object, object]]:
    one, other = locked.checkpoint, derived.checkpoint
    for key in ("repo", "hub", "format", "quantization", "file_prefix", "revision", "download_bytes"):
        yield from _unlike(f"plan.checkpoint.{key}", getattr(one, key), getattr(other, key))
    for key in ("name", "version", "package"):  # an engine of the user's own lies where no profile knows
        yield from _unlike(f"plan.engine.{key}", getattr(locked.engine, key), getattr(derived.engine, key))
    yield from _unlike("plan.parallel", locked.parallel, derived.parallel)
    yield from _unlike("plan.limits", locked.limits, derived.limits)
    if locked.command is not None and derived.command is not None:
        one_argv, other_argv = locked.command.argv, derived.command.argv
        for place, (one_word, other_word) in enumerate(zip_longest(one_argv, other_argv, fillvalue="nothing")):
            yield from _unlike(f"command.argv[{place}]", one_word[:80], other_word[:80])
        yield from _unlike("command.env", locked.command.env, derived.command.env)


def _unlike(what: str, one: object, other: object) -> Iterator[tuple[str, object, object]]:
    if one != other:
        yield what, one, other


# --- beside it ------------------------------------------------------------------------------------------


class Beside(Value, frozen=True, kw_only=True):
    """What somebody asks for together with a lock; it may say the same again, and nothing else."""

    model: str | None = None
    pins: Pins = Pins()
    context_tokens: int | None = None
    engine_options: tuple[str, ...] = ()
    model_path: Path | None = None
    engine_path: Path | None = None


def refuse_contradictions(lock: Lock, path: Path, beside: Beside, known: Catalog) -> None:
    """Holds that nothing was asked for that the lock has otherwise.

    Raises:
        UsageError: the first thing that was.
        UnknownModel: a model that nobody described.
    """
    if beside.model is not None:
        match = known.find_model(beside.model)
        if match.model.id != lock.model or match.repo not in (None, lock.plan.checkpoint.repo):
            raise UsageError(f"{path} is a lock of {lock.model} ({lock.plan.checkpoint.repo}), not of {beside.model}")
    for name, given, has in _asked(lock, beside, known):
        raise UsageError(
            f"{name} {given} was asked for, and {path} has {has}",
            hint="leave it out to have what the lock has; a lock of its own needs another file",
        )
    if beside.engine_options != lock.engine_options:
        shown = " ".join(lock.engine_options) or "none"
        raise UsageError(
            f"{path} is of a launch with other options for its engine: {shown}",
            hint="they are not taken from the file: give the same ones again, after --",
        )
    for own, given_path, option in (
        (lock.own_weights, beside.model_path, "--model-path"),
        (lock.own_engine, beside.engine_path, "--engine-path"),
    ):
        if own and given_path is None:
            raise UsageError(f"{path} is of a launch with {option}: say again where that lies")
    if beside.engine_path is not None and not lock.own_engine:
        raise UsageError(f"{path} has an engine that autolaunch installed, and --engine-path is another one")


def deployment_of(deployment: Deployment, path: Path, known: Catalog) -> Deployment:
    """``deployment`` with all that the lock in ``path`` has.

    Raises:
        LockError: the lock is none, or was changed.
        UsageError: the deployment asks for something else.
    """
    lock = checked(read_lock(path), known, path)
    beside = Beside(
        model=deployment.model,
        pins=deployment.pinned,
        context_tokens=deployment.context_tokens,
        engine_options=deployment.engine_options,
        model_path=deployment.model_path,
        engine_path=deployment.engine_path,
    )
    refuse_contradictions(lock, path, beside, known)
    return msgspec.structs.replace(
        deployment,
        objective=lock.request.objective,
        context_tokens=lock.plan.limits.context_tokens,
        concurrency=lock.request.concurrency,
        input_tokens=lock.request.input_tokens,
        output_tokens=lock.request.output_tokens,
        workload=None,
        pinned=pins_in(lock, known),
        lock=path,
    )


def replayed_here(deployment: Deployment, path: Path, known: Catalog) -> tuple[Deployment, LaunchPlan]:
    """``deployment`` with all that the lock in ``path`` has, and its plan on this machine, as it is now.

    Raises:
        LockError: the lock is none, or was changed.
        UsageError: the deployment asks for something else.
        OtherHardware: the lock is of another machine.
        NoFeasiblePlan: it does not fit now.
    """
    lock = checked(read_lock(path), known, path)
    deployment = msgspec.structs.replace(deployment_of(deployment, path, known), model=lock.model)
    report = api.probe()
    refuse_other_hardware(lock, report, path)
    decided = api.plan(
        lock.model,
        hardware=report,
        here=True,
        objective=lock.request.objective,
        context_tokens=lock.plan.limits.context_tokens,
        concurrency=lock.request.concurrency,
        input_tokens=lock.request.input_tokens,
        output_tokens=lock.request.output_tokens,
        pins=deployment.pinned,
        known=known,
        engine_path=deployment.engine_path,
    )
    return deployment, msgspec.structs.replace(decided, chosen=replayed(lock, decided, known, path))


def _asked(lock: Lock, beside: Beside, known: Catalog) -> Iterator[tuple[str, object, object]]:
    """What was given that is not the lock's: name, value, and the lock's."""
    whole, given = pins_in(lock, known), beside.pins
    names = {lock.plan.checkpoint.repo.lower()}
    names |= {
        (each.modelscope or each.repo).lower()
        for each in known.model(lock.model).checkpoints
        if each.repo == lock.plan.checkpoint.repo
    }
    for name in Pins.__struct_fields__:
        wanted, has = getattr(given, name), getattr(whole, name)
        if name == "gpu_count":
            has = len(lock.plan.parallel.devices)
        if isinstance(wanted, str) and isinstance(has, str):
            wanted, has = wanted.lower(), has.lower()
            if name == "repo" and wanted in names:
                continue
        if wanted is not None and has is not None and wanted != has:
            yield f"--{name.replace('_', '-')}", wanted, has
    context = lock.plan.limits.context_tokens
    if beside.context_tokens not in (None, context):
        yield "--context", beside.context_tokens, context


# --- on this machine --------------------------------------------------------------------------------------


def refuse_other_hardware(lock: Lock, report: HardwareReport, path: Path) -> tuple[Difference, ...]:
    """What differs and does not matter.

    Raises:
        OtherHardware: what differs and does.
    """
    found = differences(lock, report)
    serious = [each for each in found if each.matters]
    if serious:
        lines = "\n".join(map(str, serious))
        raise OtherHardware(f"{path} is of other hardware", hint=f"{lines}\n{_AGAIN}")
    return found


def replayed(lock: Lock, decided: LaunchPlan, known: Catalog, path: Path) -> Candidate:
    """The lock's configuration on this machine, as ``decided`` found with all of its pins.

    Raises:
        NoFeasiblePlan: nothing fits now, or less does.
        LockError: it would be started by another command.
    """
    found = decided.chosen
    if found is None:
        raise NoFeasiblePlan(f"what {path} has does not fit this machine now", hint=_AGAIN)
    limits, locked = found.limits, lock.plan.limits
    if limits != locked and not _holds(limits, locked):
        told = ", ".join(
            f"{name} {getattr(locked, name)} would be {getattr(limits, name)}"
            for name in Limits.__struct_fields__
            if getattr(locked, name) != getattr(limits, name)
        )
        raise NoFeasiblePlan(f"what {path} has does not fit the memory that is free now: {told}", hint=_AGAIN)
    again = with_command(msgspec.structs.replace(found, limits=locked), lock, known)
    of_one = with_command(lock.plan, lock, known).command
    if again.command != of_one or again.parallel != lock.plan.parallel:
        raise LockError(f"{path}: it would be started by another command on this machine", hint=_AGAIN)
    return again


def _holds(limits: Limits, locked: Limits) -> bool:
    """Whether what fits now is at least what the lock has; no pin carries all of it."""
    more = msgspec.structs.replace(limits, max_sequences=locked.max_sequences, batched_tokens=locked.batched_tokens)
    return more == locked and limits.max_sequences >= locked.max_sequences


def check_weights(lock: Lock, folder: Path, home: Path | None = None) -> None:
    """Holds that the checkpoint's files are the lock's.

    Raises:
        DownloadError: the first that is not.
    """
    for told in differing_files(lock, folder, home):
        raise DownloadError(f"{folder} is not the checkpoint of the lock: {told}", hint=_AGAIN)


def replanned(
    lock: Lock, known: Catalog, plan: Callable[[Pins, int | None], LaunchPlan]
) -> tuple[LaunchPlan, tuple[str, ...]]:
    """The plan that is nearest to the lock's among those that this machine allows, and what of the lock had to go.

    Args:
        plan: plans with pins and a context (``None``: what fits).
    """
    whole = pins_in(lock, known)
    asked = tuple(name for name in Pins.__struct_fields__ if getattr(whole, name) is not None)
    decided: LaunchPlan | None = None
    for kept in (asked, *_KEPT_IN_TURN):
        for context in dict.fromkeys((lock.plan.limits.context_tokens, None)):
            pins = Pins(**{name: getattr(whole, name) for name in kept})
            try:
                decided = plan(pins, context)
            except UsageError:  # devices that are not there
                continue
            if decided.chosen is not None:
                gone = [name for name in asked if name not in kept]
                return decided, tuple(gone if context else [*gone, "context_tokens"])
    if decided is None:
        decided = plan(Pins(), None)
    return decided, asked
