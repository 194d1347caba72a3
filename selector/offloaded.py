"""The candidates whose experts, or layers, stay in main memory beside devices. Loaded only where some may.

One replica alone, on all devices and on those without the fuller ones: each further device takes experts out of main
memory, so that fewer of them are never better; and replicas would read the same main memory in turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import log2
from typing import NamedTuple

import msgspec

from selector import notes, offload, score
from selector.aside import aside
from selector.asked import PlanRequest
from selector.contract import Candidate, Limits, Note, Parallel, Rejection, Speed
from selector.devices import GIB, Alike, Way
from selector.facts import Architecture, CheckpointFacts
from selector.ground import Ground, Lot
from selector.hardware import HardwareReport
from selector.legality import Refusal, Verdict
from selector.main_memory import MainMemory
from selector.memory import Fit
from selector.placement import Placement
from selector.ready import Ready, rejection
from selector.weighed import speed_of
from selector.weights import LayerSizes, layer_sizes

Waiting = tuple[Ready, Ground, list[Candidate]]


class Found(NamedTuple):
    """Candidates with their checkpoints' quality, and refusals where main memory is what is short."""

    good: list[tuple[Candidate, float]]
    bad: list[Rejection]


def beside(
    host: MainMemory,
    waiting: Iterable[Waiting],
    feasible: list[tuple[Candidate, float]],
    request: PlanRequest,
    report: HardwareReport,
) -> Found:
    """What main memory makes of checkpoints that leave devices too little for the context.

    Args:
        waiting: each checkpoint and engine with a group of devices, and its candidates that lie there whole.
        feasible: all candidates so far. What cannot come before the best of them is left out.
    """
    drivers = {each.vendor: each.version for each in report.drivers}
    found = Found([], [])
    whole: dict[tuple[str, CheckpointFacts], list[Candidate]] = {}
    for one, _, good in waiting:
        whole.setdefault((one.engine.name, one.facts), []).extend(good)
    bar: _Bar | None = None
    for one, ground, _ in waiting:
        wanted = request.context_tokens or one.model.context_tokens
        # Weights that lie on devices whole, with all the context, are no slower there.
        fitting = whole[one.engine.name, one.facts]
        if any(each.limits.context_tokens >= wanted for each in fitting):
            continue
        bar = bar or _Bar.of(feasible, request, one.model.context_tokens)
        if bar.above(one, ground, request):
            continue
        driver = next((version for vendor, version in drivers.items() if vendor == ground.group.kind), None)
        beyond = max([each.memory.kv_cache_tokens for each in fitting], default=0)
        made = candidate(one, ground, request, report, host, driver, beyond)
        if isinstance(made, Candidate):
            found.good.append((made, one.facts.quality))
        elif made is not None:
            found.bad.append(rejection(one.checkpoint.repo, one.facts, one.engine, *made))
    return found


class _Bar(NamedTuple):
    """What has to be reached: points that the best candidate has at least, where ``fastest`` has a speed term of 1."""

    points: float
    fastest: float

    @classmethod
    def of(cls, feasible: list[tuple[Candidate, float]], request: PlanRequest, model_context_tokens: int) -> _Bar:
        """The bar of the fastest candidate, or of the best weights' where that is higher."""
        rated = [(score.speed_figure(each, request), quality, each) for each, quality in feasible]
        fastest = max((figure for figure, _, _ in rated), default=0.0)
        if fastest <= 0:
            return cls(-1.0, 1.0)
        tried = (max(rated, key=lambda each: each[:2]), max(rated, key=lambda each: (each[1], each[0])))
        points = [
            score.total(score.terms(each, quality, fastest, request, model_context_tokens), request.objective)
            for _, quality, each in tried
        ]
        return cls(max(points), fastest)

    def above(self, one: Ready, ground: Ground, request: PlanRequest) -> bool:
        """Whether a checkpoint stays below from main memory, whatever context and room it has there.

        At least those experts are read there for which all the group's free memory is too little.
        """
        weights, sizes = score.WEIGHTS[request.objective], _sizes(one)
        free = sum([device.free_bytes for device in ground.group.devices])
        arch, engine = one.model.architecture, one.engine
        sparse = arch.num_hidden_layers - arch.first_k_dense_replace
        whole = arch.first_k_dense_replace * sizes.dense + sparse * (sizes.light + sizes.experts)
        there = min(sparse, int((whole - free) // sizes.experts))
        if self.points < 0 or there <= 0:
            return False
        limits = Limits(
            context_tokens=0,
            max_sequences=request.pins.max_sequences or engine.batch_defaults[0].sequences,
            kv_cache_dtype="bf16",
            memory_utilization=1.0,
            batched_tokens=engine.batch_defaults[0].batched_tokens,
            cpu_expert_layers=there,
        )
        costs = aside(arch, one.weights, engine, ground.group.devices[0], limits)
        sequences, answer = limits.max_sequences, request.workload.output_tokens
        prompt = request.workload.input_tokens * costs.prompt_seconds_per_token(
            request.workload.input_tokens, limits.batched_tokens
        )
        single = answer / (prompt + answer * costs.step_seconds(1))
        together = sequences * answer / (sequences * prompt + answer * costs.step_seconds(sequences))
        figure = {"latency": single, "throughput": together}.get(request.objective, (single * together) ** 0.5)
        model_context = one.model.context_tokens
        target = request.context_tokens or model_context
        most = offload.most_tokens(target, limits.max_sequences, request)
        room = min(1.0, most / score.full_headroom_tokens(request, model_context))
        points = weights.quality * max(0.0, 1 - (1 - one.facts.quality) * score.QUALITY_SLOPE)
        points += weights.speed * score.speed_term(log2(figure / self.fastest))
        return points + weights.context + weights.headroom * room + weights.download < self.points


def _sizes(one: Ready) -> LayerSizes:
    scale = 1.0 if one.weights.exact else one.weights.scale
    return layer_sizes(one.model.architecture, one.weights.storage, scale, one.engine.memory.router_bits)


def candidate(
    one: Ready,
    ground: Ground,
    request: PlanRequest,
    report: HardwareReport,
    host: MainMemory,
    driver: str | None,
    beyond: int,
) -> Candidate | tuple[Parallel, Refusal] | None:
    """The best that can be planned with more than ``beyond`` tokens of cache, which lie on devices whole.

    The refusal of the nearest layout where main memory is what is short; ``None`` where the devices are.
    """
    lots = _lots(one, ground, request, driver)
    keys = tuple([(Alike(placed.weakest), lot.bare, placed.link) for lot, placed, _ in lots])
    found = _weighed(one, keys, request, beyond, host.free_bytes) if lots else None
    if found is None:
        return None
    number, fit, speed = found
    lot, placed, verdict = lots[number]
    if speed is None:
        return lot.bare, _too_little(fit, host)
    if not (placed.free_known and host.free_known):
        fit = fit._replace(memory=msgspec.structs.replace(fit.memory, basis="assumed"))
    said = notes.of(one, request, report, placed, lot.bare, fit.limits, fit.memory, speed)
    told = _told(one.model.architecture, fit.limits, fit.memory.host_bytes)
    parallel = msgspec.structs.replace(lot.bare, devices=placed.indices)
    return one.candidate(parallel, fit.limits, fit.memory, speed, (told, *said, *verdict.notes))


def _lots(one: Ready, ground: Ground, request: PlanRequest, driver: str | None) -> list[tuple[Lot, Placement, Verdict]]:
    """The layouts to look at, and where one replica of each would lie."""
    if request.pins.data_parallel not in (None, 1):
        return []
    found = []
    for stages in ground.shapes:
        sliced = ground.group.devices[0].sliced and request.pins.pipeline_parallel is None
        for count in (1,) if sliced else stages.sound:  # slices of a GPU are not joined
            if stages.tensor > 1:
                continue
            lot = ground.lot(1, count, expert=bool(request.pins.expert_parallel))
            placed = lot.nearest
            if lot.refusal is not None or placed is None or (ground.group.joint and placed.families == 1):
                continue
            verdict = one.verdict(ground.group, lot.bare, speculative=False, driver=driver)
            if not isinstance(verdict, Refusal):
                found.append((lot, placed, verdict))
    return found


@lru_cache(maxsize=1 << 12)  # pure, and the same for every device of a kind that has as much memory free
def _weighed(
    one: Ready,
    keys: tuple[tuple[Alike, Parallel, Way], ...],
    request: PlanRequest,
    beyond_tokens: int,
    host_bytes: int,
) -> tuple[int, Fit, Speed | None] | None:
    """The best for the objective; without a speed the nearest one, for which main memory is too small.

    What they differ in is the context and the speed. Which is worth more does not hang on the rest of a list, but
    where all of them are sixteen times slower than the fastest (:mod:`selector.score`).
    """
    found = offload.fits(
        arch=one.model.architecture,
        model_context_tokens=one.model.context_tokens,
        weights=one.weights,
        checkpoint_format=one.checkpoint.format,
        engine=one.engine,
        places=tuple([offload.Place(device.device, parallel) for device, parallel, _ in keys]),
        request=request,
        beyond_tokens=beyond_tokens,
        host_bytes=host_bytes,
    )
    made: list[tuple[int, Fit, Speed]] = []
    for number, fit in found:
        if fit.memory.host_bytes > host_bytes:
            if not made:
                return number, fit, None
            break
        like, parallel, link = keys[number]
        left_aside = aside(one.model.architecture, one.weights, one.engine, like.device, fit.limits)
        made.append((number, fit, speed_of(one, like, link, parallel, fit, request, aside=left_aside)))
    if len(made) < 2:
        return made[0] if made else None
    tried = [
        (one.candidate(keys[number][1], fit.limits, fit.memory, speed, ()), one.facts.quality)
        for number, fit, speed in made
    ]
    anywhere = msgspec.structs.replace(request, local=None)  # the weights are the same, wherever they are
    best = score.best(tried, anywhere, one.model.context_tokens)
    return next(each for each, (candidate, _) in zip(made, tried, strict=True) if candidate is best)


def _too_little(fit: Fit, host: MainMemory) -> Refusal:
    needed = fit.memory.host_bytes
    return Refusal(
        "memory.host",
        f"needs {needed / GIB:.1f} GiB of main memory beside the devices, which do not hold it all; "
        f"{host.free_bytes / GIB:.1f} can be had",
        {"needed_bytes": needed, "usable_bytes": host.free_bytes, "total_bytes": host.total_bytes},
    )


def _told(arch: Architecture, limits: Limits, host_bytes: int) -> Note:
    """What lies in main memory, and that it is slow there."""
    sparse = arch.num_hidden_layers - arch.first_k_dense_replace
    whole = "" if limits.gpu_layers is None else f" and {arch.num_hidden_layers - limits.gpu_layers} layers whole"
    return Note(
        severity="performance",
        code="offload",
        message=f"the routed experts of {limits.cpu_expert_layers} of {sparse} layers{whole} stay in main memory, "
        f"{host_bytes / GIB:.0f} GiB with what the engine needs there; how fast it is read is assumed",
    )


def forget() -> None:
    """Drop what earlier plans worked out."""
    _weighed.cache_clear()
