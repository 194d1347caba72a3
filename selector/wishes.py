"""Whether a request makes sense, before anything is planned: figures in range, pins that agree, names that exist."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from selector.errors import UsageError
from selector.facts import ModelFacts
from selector.hardware import HardwareReport
from selector.request import OBJECTIVES, WORKLOADS, Pins, Workload
from selector.search import names
from selector.values import readable


def _is_version(text: str) -> bool:
    """``0.33.0``, ``0.5.3rc1``, ``b11549``, ``0.25.1+cu129``."""
    return text[:1].isalnum() and text.isascii() and all(each.isalnum() or each in ".+-_" for each in text)


def checked_figures(
    *,
    objective: str,
    workload: str | None,
    context_tokens: int | None,
    concurrency: int | None,
    input_tokens: int | None,
    output_tokens: int | None,
    pins: Pins,
) -> None:
    """Holds that every figure can be meant.

    Raises:
        UsageError: the first that cannot.
    """
    try:
        msgspec.convert(msgspec.to_builtins(pins), readable(Pins))
    except msgspec.ValidationError as error:
        raise UsageError(f"a pin cannot be: {error}") from error
    if objective not in OBJECTIVES:
        raise _unknown("objective", objective, OBJECTIVES)
    if workload is not None and workload not in WORKLOADS:
        raise _unknown("workload", workload, WORKLOADS)
    counts = {
        "context": context_tokens,
        "concurrency": concurrency,
        "input tokens": input_tokens,
        "output tokens": output_tokens,
        "tensor parallel": pins.tensor_parallel,
        "pipeline parallel": pins.pipeline_parallel,
        "data parallel": pins.data_parallel,
        "max sequences": pins.max_sequences,
        "gpus": pins.gpu_count,
    }
    for name, count in counts.items():
        if count is not None and not isinstance(count, int):
            raise UsageError(f"{name} is {count!r}; it has to be a whole number")
        if count is not None and count < 1:
            raise UsageError(f"{name} is {count}; it has to be 1 or more")
    share = pins.memory_utilization
    if share is not None and not 0 < share <= 1:
        raise UsageError(f"memory utilization is {share:g}; it is a share of a device, above 0 and at most 1")
    if pins.gpus is not None and pins.gpu_count is not None:
        raise UsageError("devices were pinned by index and by number at once")
    if pins.engine_version is not None and not _is_version(pins.engine_version):
        raise UsageError(
            f"{pins.engine_version[:60]!a} is no version (or empty)", hint="--engine-version takes one, as 0.33.0"
        )
    if pins.engine_version is not None and pins.engine is None:
        raise UsageError(
            f"a version {pins.engine_version} was pinned without an engine", hint="--engine says whose version it is"
        )


def workload_of(
    name: str | None, input_tokens: int | None, output_tokens: int | None, context_tokens: int | None, model: ModelFacts
) -> Workload:
    """The mean request: what was given, what a name stands for, or a usual one that fits the context.

    Raises:
        UsageError: what was given cannot fit one request.
    """
    named = WORKLOADS[name or "chat"]  # type: ignore[index]  # checked_figures holds it
    asked = name is not None or input_tokens is not None or output_tokens is not None
    inputs = named.input_tokens if input_tokens is None else input_tokens
    outputs = named.output_tokens if output_tokens is None else output_tokens
    room = min(model.context_tokens, context_tokens or model.context_tokens)
    if inputs + outputs > room:
        if asked:
            raise UsageError(
                f"a request of {inputs:,} and {outputs:,} tokens does not fit a context of {room:,}",
                hint=f"a context is at most {model.context_tokens:,}; --input-tokens and --output-tokens set it",
            )
        inputs, outputs = max(1, room * 2 // 3), max(1, room // 3)
    return Workload(input_tokens=inputs, output_tokens=outputs)


def pins_on_checkpoints(model: ModelFacts, pins: Pins, asked_as: str) -> Pins:
    """The pins with the hub that a ModelScope id implies.

    Args:
        asked_as: the name that was given for the model; the id of a checkpoint pins it.

    Raises:
        UsageError: no checkpoint of the model is called so, or none is all that was pinned at once.
    """
    wanted = asked_as.lower()
    named = any(wanted in names(checkpoint) for checkpoint in model.checkpoints)
    known = {name for checkpoint in model.checkpoints for name in names(checkpoint)}
    if pins.repo is not None and pins.repo.lower() not in known:
        raise _unknown(f"checkpoint of {model.title}", pins.repo, known)
    qualities = {checkpoint.quantization.lower(): checkpoint.quantization for checkpoint in model.checkpoints}
    if pins.quantization is not None and pins.quantization.lower() not in qualities:
        raise _unknown(f"quantization of {model.title}", pins.quantization, qualities.values())
    repo = wanted if named else pins.repo and pins.repo.lower()
    only_modelscope = repo is not None and all(repo != checkpoint.repo.lower() for checkpoint in model.checkpoints)
    if only_modelscope:
        if pins.hub == "huggingface":
            raise UsageError(f"{repo} is an id of ModelScope, and --hub huggingface was asked for")
        pins = msgspec.structs.replace(pins, hub="modelscope")
    if not any(_agrees(each.format, each.quantization, names(each), pins) for each in model.checkpoints):
        given = [f"{key} {value}" for key in ("repo", "format", "quantization") if (value := getattr(pins, key))]
        raise UsageError(
            f"no checkpoint of {model.title} is {' and '.join(given)} at once", hint="autolaunch models lists them"
        )
    return pins


def _agrees(form: str, quantization: str, ids: tuple[str, ...], pins: Pins) -> bool:
    return (
        pins.format in (None, form)
        and (pins.quantization is None or pins.quantization.lower() == quantization.lower())
        and (pins.repo is None or pins.repo.lower() in ids)
    )


def checked_gpus(pins: Pins, report: HardwareReport) -> None:
    """Holds that the devices that were asked for are there.

    Raises:
        UsageError: the first that is not.
    """
    have = [device.index for device in report.accelerators]
    missing = [index for index in pins.gpus or () if index not in have]
    if missing:
        raise UsageError(
            f"--gpus names device {missing[0]}, which is not there",
            hint=f"devices: {', '.join(map(str, have)) or 'none'}",
        )
    if pins.gpu_count is not None and pins.gpu_count > len(have):
        raise UsageError(f"--gpus asks for {pins.gpu_count} devices, {len(have)} are there")


def _unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    import difflib

    listed = sorted(known)
    lower = {each.lower(): each for each in listed}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    hint = f"did you mean {lower[near[0]]}?" if near else f"known: {', '.join(listed)}"
    return UsageError(f"no {what} is called {name[:96]!r}", hint=hint)
