"""Tries every candidate and ranks what fits: candidates, legality, memory, throughput, score."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from selector import candidates, legality, memory, score, throughput
from selector.architecture import StoredWeights, stored_weights
from selector.contract import (
    Candidate,
    Checkpoint,
    EngineChoice,
    Memory,
    Note,
    Parallel,
    Rejection,
    ScoreTerms,
)
from selector.devices import GIB, Group, Unusable, groups
from selector.facts import AcceleratorFacts, CheckpointFacts, EngineFacts, Hub, Loads, ModelFacts, Package
from selector.hardware import Accelerator, HardwareReport
from selector.legality import Refusal
from selector.request import Pins, PlanRequest

#: Checkpoints below this quality are shown as refused unless the user pins them: accuracy is never lowered
#: silently. Three bits a weight are the lowest that is offered unasked.
LOWEST_QUALITY_UNASKED = 0.9
#: Below this, the chosen plan says what is lost.
QUALITY_WORTH_A_NOTE = 0.985


class Facts(Protocol):
    """What the planner asks of the catalogue."""

    def engine_names(self) -> tuple[str, ...]: ...
    def engine(self, name: str) -> EngineFacts: ...
    def accelerator_for(self, device: Accelerator) -> AcceleratorFacts | None: ...


class Decision(NamedTuple):
    """Every candidate in order and every refusal, before they are cut for a reader."""

    ranked: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]


class _Try(NamedTuple):
    """What stays the same for all layouts of one checkpoint with one engine on one group."""

    model: ModelFacts
    checkpoint: CheckpointFacts
    weights: StoredWeights
    engine: EngineFacts
    choice: EngineChoice
    loads: Loads
    group: Group
    request: PlanRequest
    hub: Hub
    repo: str
    report: HardwareReport


def decide(model: ModelFacts, report: HardwareReport, request: PlanRequest, facts: Facts) -> Decision:
    """Try everything and rank it. Pure: the same arguments give the same answer."""
    pins = request.pins
    found, unusable = groups(report, facts.accelerator_for, pins.gpus)
    if model.generated:
        found = _modest(found, pins)
    if pins.gpu_count is not None:
        found = tuple(group for group in found if group.kind != "cpu")
    wanted = model.context_tokens if request.context_tokens is None else request.context_tokens
    beyond = None
    if wanted > model.context_tokens:
        beyond = Refusal(
            "context.beyond_model",
            f"{model.title} takes {model.context_tokens:,} tokens at most; {wanted:,} were asked for",
            {"needed_tokens": wanted, "room_tokens": model.context_tokens},
        )
    engines = [facts.engine(name) for name in facts.engine_names() if pins.engine in (None, name)]
    feasible: list[tuple[Candidate, float]] = []
    rejected: list[Rejection] = []
    for checkpoint in model.checkpoints:
        repo, hub = _repository(checkpoint, pins)
        refusal = beyond or _unwanted(checkpoint, pins) or (None if found or unusable else _NO_DEVICE)
        weights = stored_weights(model.architecture, checkpoint)
        for engine in engines:
            if refusal is not None:
                rejected.append(_rejection(repo, checkpoint, engine, None, refusal))
                continue
            rejected += [_rejection(repo, checkpoint, engine, None, _unknown_device(each)) for each in unusable]
            for whole in found:
                group = candidates.select_group(whole, pins)
                ready = _choice(engine, model, checkpoint, group, pins)
                if isinstance(ready, Refusal):
                    if group.kind != "cpu" or len(found) == 1:
                        rejected.append(_rejection(repo, checkpoint, engine, None, ready))
                    continue
                choice, loads = ready
                good, bad = _layouts(
                    _Try(model, checkpoint, weights, engine, choice, loads, group, request, hub, repo, report)
                )
                feasible += [(candidate, checkpoint.quality) for candidate in good]
                rejected += bad
    return Decision(_ranked(feasible, request, model.context_tokens), _unique(rejected))


def _choice(
    engine: EngineFacts, model: ModelFacts, checkpoint: CheckpointFacts, group: Group, pins: Pins
) -> tuple[EngineChoice, Loads] | Refusal:
    """The engine in the version and environment that would load this checkpoint here, or why it would not."""
    package = _package(engine, model, group)
    version = pins.engine_version or package.version or engine.version
    loads = legality.loader(engine, version, checkpoint, model.architecture, group)
    if isinstance(loads, Refusal):
        return loads
    refusal = (
        legality.too_old(engine, package, version)
        or legality.unkept_pin(engine, pins)
        or _below_floor(checkpoint, pins)
    )
    return refusal or (EngineChoice(name=engine.name, version=version, package=package.name), loads)


def _modest(found: tuple[Group, ...], pins: Pins) -> tuple[Group, ...]:
    """A miniature proves that things work: one device, and the host's own processor where a Mac's GPU is not."""
    if pins.engine is None and pins.gpus is None and pins.gpu_count is None:
        found = tuple(group for group in found if group.kind in ("cpu", "apple")) or found
    return tuple(group.first(1) if pins.gpu_count is None else group for group in found)


def _repository(checkpoint: CheckpointFacts, pins: Pins) -> tuple[str, Hub]:
    if pins.hub == "modelscope" and checkpoint.modelscope is not None:
        return checkpoint.modelscope, "modelscope"
    return checkpoint.repo, "huggingface"


def names(checkpoint: CheckpointFacts) -> tuple[str, ...]:
    """The checkpoint's ids on the hubs, in lower case."""
    return tuple(name.lower() for name in (checkpoint.repo, checkpoint.modelscope) if name is not None)


def _unwanted(checkpoint: CheckpointFacts, pins: Pins) -> Refusal | None:
    """Whether a pin leaves this checkpoint out."""
    if pins.hub == "modelscope" and checkpoint.modelscope is None:
        return Refusal("pin.hub", "this checkpoint is not known to be on ModelScope", {})
    if pins.repo is not None and pins.repo.lower() not in names(checkpoint):
        return Refusal("pin.repo", f"{pins.repo} was asked for", {})
    if pins.format is not None and pins.format != checkpoint.format:
        return Refusal("pin.format", f"format {pins.format} was asked for", {})
    if pins.quantization is not None and pins.quantization.lower() != checkpoint.quantization.lower():
        return Refusal("pin.quantization", f"quantization {pins.quantization} was asked for", {})
    return None


def _below_floor(checkpoint: CheckpointFacts, pins: Pins) -> Refusal | None:
    """Accuracy is never lowered unasked."""
    asked = pins.quantization is not None or (pins.repo is not None and checkpoint.file_prefix is None)
    if checkpoint.quality < LOWEST_QUALITY_UNASKED and not asked:
        return Refusal(
            "quality.floor",
            f"{checkpoint.quantization} loses too much accuracy to be chosen unasked; "
            f"--quantization {checkpoint.quantization} asks for it",
            {"quality": checkpoint.quality, "least_quality": LOWEST_QUALITY_UNASKED},
        )
    return None


_NO_DEVICE = Refusal("device.none", "there is no device here whose memory is known", {})


def _unknown_device(device: Unusable) -> Refusal:
    where = device.name if device.index is None else f"{device.name} (device {device.index})"
    return Refusal("device.unknown_memory", f"{where} cannot be planned with: {device.reason}", {})


def _layouts(one: _Try) -> tuple[list[Candidate], list[Rejection]]:
    """All layouts of one checkpoint, engine and group, the widest tensor parallelism first.

    More pipeline stages are tried only while fewer do not fit; and where the links are fast, stages inside a node
    only while no wider tensor parallelism is legal, which is quicker for one sequence and no slower for many.
    """
    pins = one.request.pins
    good: list[Candidate] = []
    bad: list[Rejection] = []
    fitted: set[tuple[int, bool]] = set()
    legal: set[int] = set()
    for layout in candidates.layouts(one.engine, one.checkpoint, one.group, pins):
        key = (layout.tensor, layout.expert)
        wider = one.group.link == "fast" and any(tensor > layout.tensor for tensor in legal)
        if key in fitted or (layout.pipeline > 1 and wider and pins.pipeline_parallel is None):
            continue
        ranks = layout.tensor * layout.pipeline
        for data in candidates.replica_counts(one.engine, one.group, ranks, pins):
            parallel = Parallel(tensor=layout.tensor, pipeline=layout.pipeline, data=data, expert=layout.expert)
            answer = _candidate(one, parallel)
            if isinstance(answer, Refusal):
                bad.append(_rejection(one.repo, one.checkpoint, one.engine, parallel, answer))
                if answer.code.startswith("memory."):
                    legal.add(layout.tensor)
                if one.request.concurrency is None:
                    break  # replicas do not help each other, unless what is asked for is shared out over them
                continue
            good.append(answer)
            fitted.add(key)
            legal.add(layout.tensor)
    return good, bad


def _speculative(one: _Try, parallel: Parallel) -> bool:
    """MTP pays for one sequence at a time: on when asked for, or for latency where it works."""
    pinned = one.request.pins.speculative
    if pinned is not None:
        return pinned == "mtp"
    able = "mtp" in one.engine.speculative and bool(one.weights.mtp_layer) and parallel.pipeline == 1
    return able and one.request.objective == "latency"


def _candidate(one: _Try, parallel: Parallel) -> Candidate | Refusal:
    model, arch, request = one.model, one.model.architecture, one.request
    refusal = legality.layout(arch, one.engine, parallel, one.group)
    if refusal is not None:
        return refusal
    placed = candidates.place(one.group, parallel)
    if placed is None:
        needed = parallel.ranks * parallel.data
        return Refusal(
            "layout.devices",
            f"needs {needed} devices, {len(one.group.devices)} are there",
            {"needed_devices": needed, "devices": len(one.group.devices)},
        )
    speculative = _speculative(one, parallel)
    if speculative and not one.weights.mtp_layer:
        return Refusal("rule.no_mtp", f"{one.repo} holds no MTP layer for speculative decoding", {})
    pinned_dtype = request.pins.kv_cache_dtype
    if pinned_dtype is not None and pinned_dtype not in one.engine.kv_cache_dtypes:
        return Refusal("engine.kv_cache_dtype", f"{one.engine.title} has no {pinned_dtype} KV cache", {})
    verdict = legality.rules(
        one.engine,
        version=one.choice.version,
        model_id=model.id,
        checkpoint=one.checkpoint,
        arch=arch,
        group=one.group,
        parallel=parallel,
        speculative=speculative,
        eager=bool(request.pins.eager),
        driver=next((each.version for each in one.report.drivers if each.vendor == one.group.kind), None),
    )
    if isinstance(verdict, Refusal):
        return verdict
    fullest = min(placed, key=lambda device: device.free_bytes)
    fit = memory.fit(
        arch=arch,
        model_context_tokens=model.context_tokens,
        weights=one.weights,
        checkpoint_format=one.checkpoint.format,
        engine=one.engine,
        device=fullest,
        parallel=parallel,
        speculative=speculative,
        eager=bool(request.pins.eager),
        request=request,
    )
    if isinstance(fit, Refusal):
        return fit
    speed = throughput.estimate(
        arch=arch,
        weights=one.weights,
        engine=one.engine,
        loads=one.loads,
        group=one.group,
        device=fullest,
        parallel=parallel,
        limits=fit.limits,
        kv_bytes_per_token=fit.memory.kv_bytes_per_token,
        kv_cache_tokens=fit.memory.kv_cache_tokens,
        workload=request.workload,
        concurrency=request.concurrency,
        download_bytes=one.checkpoint.download_bytes,
        speed_factor=verdict.speed_factor,
    )
    return Candidate(
        rank=0,
        score=0.0,
        score_terms=ScoreTerms(quality=0.0, speed=0.0, context=0.0, headroom=0.0),
        checkpoint=Checkpoint(
            repo=one.repo,
            hub=one.hub,
            revision=request.pins.revision,
            format=one.checkpoint.format,
            quantization=one.checkpoint.quantization,
            download_bytes=one.checkpoint.download_bytes,
            file_prefix=one.checkpoint.file_prefix,
        ),
        engine=one.choice,
        parallel=msgspec.structs.replace(
            parallel,
            nodes=candidates.nodes_of_a_replica(placed, parallel),
            devices=tuple(device.index for device in placed if device.index is not None),
        ),
        limits=fit.limits,
        memory=fit.memory,
        speed=speed,
        notes=(*_quality_note(one.checkpoint), *_tight_notes(fit.memory, one.report), *verdict.notes),
    )


def _package(engine: EngineFacts, model: ModelFacts, group: Group) -> Package:
    """The environment that serves this architecture on these devices; the first where none is known for them."""
    fitting = [
        package
        for package in engine.packages
        if model.architecture.model_type in package.architectures and group.kind in package.devices
    ]
    return (fitting or engine.packages)[0]


def _tight_notes(needs: Memory, report: HardwareReport) -> tuple[Note, ...]:
    """Where the estimate leaves little room: on the device at its upper end, and in main memory."""
    notes = []
    device = needs.per_device
    if needs.high_bytes > device.usable_bytes:
        message = (
            f"the estimate's upper end is {needs.high_bytes / GIB:.1f} GiB without the KV cache, "
            f"{device.usable_bytes / GIB:.1f} are usable"
        )
        notes.append(Note(severity="oom", code="tight", message=message))
    host = report.host.memory_total_bytes
    if host is not None and needs.host_bytes > host:
        message = f"about {needs.host_bytes / GIB:.0f} GiB of main memory are needed, {host / GIB:.1f} are here"
        notes.append(Note(severity="oom", code="host_memory", message=message))
    return tuple(notes)


def _quality_note(checkpoint: CheckpointFacts) -> tuple[Note, ...]:
    if checkpoint.quality >= QUALITY_WORTH_A_NOTE:
        return ()
    return (
        Note(
            severity="info",
            code="accuracy",
            message=f"{checkpoint.quantization} keeps about {checkpoint.quality:.1%} of the original weights' quality",
            source=checkpoint.quality_source,
        ),
    )


def _ranked(
    feasible: list[tuple[Candidate, float]], request: PlanRequest, model_context_tokens: int
) -> tuple[Candidate, ...]:
    return score.ranked(feasible, request, model_context_tokens)


def _rejection(
    repo: str, checkpoint: CheckpointFacts, engine: EngineFacts, parallel: Parallel | None, refusal: Refusal
) -> Rejection:
    return Rejection(
        repo=repo,
        quantization=checkpoint.quantization,
        engine=engine.name,
        parallel=parallel,
        code=refusal.code,
        message=refusal.message,
        numbers=refusal.numbers,
    )


def _unique(rejected: list[Rejection]) -> tuple[Rejection, ...]:
    """Rejections in the order they were met, the same sentence about the same thing once."""
    seen: dict[tuple[str, str, str, Parallel | None, str], Rejection] = {}
    for each in rejected:
        seen.setdefault((each.repo, each.quantization, each.engine, each.parallel, each.message), each)
    return tuple(seen.values())
