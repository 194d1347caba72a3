"""Tries every candidate that may win and ranks what fits: candidates, legality, memory, throughput, score.

The dimensions are checkpoint (with its quantization), engine, tensor and pipeline parallelism, whole experts, replicas,
speculative decoding, experts and layers in main memory, devices; context and sequences are limits that
:mod:`selector.memory` finds. The precision of the KV cache is the weights' own unless it is pinned. What cannot win is
left out by rules of :mod:`selector.candidates`, :mod:`selector.placement` and :mod:`selector.offloaded`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from selector import candidates, notes, score
from selector.asked import PlanRequest
from selector.budgets import FREE_MARGIN_BYTES
from selector.contract import Candidate, Note, Parallel, Rejection
from selector.devices import GIB, Alike, Device, Group, groups
from selector.engine_facts import EngineFacts
from selector.facts import AcceleratorFacts, ModelFacts
from selector.ground import Ground, Grounds, Lot
from selector.hardware import Accelerator, HardwareReport
from selector.legality import Refusal
from selector.main_memory import beside_devices
from selector.placement import Floor, Placement
from selector.ready import (
    LOWEST_QUALITY_UNASKED,
    NO_DEVICE,
    Ready,
    beyond_model,
    names,
    ready,
    rejection,
    repository,
    spare,
    unique,
    unknown_device,
    unwanted,
)
from selector.ready import forget as forget_ready
from selector.weighed import forget as forget_weighed
from selector.weighed import weighed

if TYPE_CHECKING:
    from selector.lessons import Lessons

__all__ = ["LOWEST_QUALITY_UNASKED", "Decision", "Facts", "decide", "names"]


class Facts(Protocol):
    """What the planner asks of the catalogue. One catalogue is one key: its facts do not change."""

    def __hash__(self) -> int: ...
    def engine_names(self) -> tuple[str, ...]: ...
    def engine(self, name: str) -> EngineFacts: ...
    def accelerator_for(self, device: Accelerator) -> AcceleratorFacts | None: ...


class Decision(NamedTuple):
    """Every candidate in order and every refusal, before they are cut for a reader."""

    ranked: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]


class _Ask(NamedTuple):
    """What stays the same for a whole plan."""

    model: ModelFacts
    request: PlanRequest
    report: HardwareReport
    wanted_tokens: int
    roomy_tokens: int
    drivers: dict[str, str | None]
    lessons: Lessons | None = None


class _Size:
    """What is known of one size of tensor parallelism, while more and more stages of it are tried."""

    def __init__(self, stages: candidates.Stages) -> None:
        self._stages = stages
        self._fitted = False
        self._covered = 0
        self.roomy = False

    def done(self, lot: Lot) -> bool:
        """Whether fewer stages fit and do as well: with room enough, and replicas that keep as many devices at work."""
        if (self.roomy and not self._stages.side_by_side) or (
            self._fitted and lot.bare.pipeline not in self._stages.filling
        ):
            return True
        return self._covered > 0 and lot.most_devices <= self._covered

    def learn(self, ask: _Ask, made: list[Candidate]) -> None:
        """``made`` are the candidates of the stages that were tried."""
        for each in made:
            self._fitted = True
            self.roomy = self.roomy or _roomy(each, ask, 1)
            if _roomy(each, ask, each.parallel.data):
                self._covered = max(self._covered, each.parallel.ranks * each.parallel.data)


class _Found:
    """What one checkpoint on one engine and group came to."""

    def __init__(self) -> None:
        self.good: list[Candidate] = []
        self.bad: list[tuple[Parallel, Refusal]] = []
        #: Free memory, in steps, under the sizes of tensor parallelism that fit over fast links, at full speed.
        self.fast: dict[int, int] = {}

    def learn(self, lot: Lot) -> None:
        """That a layout fits and no fault of the engine slows it."""
        if lot.fast is not None:
            self.fast[lot.bare.tensor] = max(lot.fast, self.fast.get(lot.bare.tensor, 0))

    def wider(self, lot: Lot) -> bool:
        """Whether a wider size does the work of these stages: as many ranks or more, on devices no fuller."""
        tensor, ranks = lot.bare.tensor, lot.bare.ranks
        return any(
            size > tensor and (size >= ranks or ranks % size == 0) and level >= lot.level
            for size, level in self.fast.items()
        )


def decide(model: ModelFacts, report: HardwareReport, request: PlanRequest, facts: Facts) -> Decision:
    """Try everything and rank it. Pure: the same arguments give the same answer."""
    pins = request.pins
    found, unusable = groups(report, facts.accelerator_for, pins.gpus)
    if model.generated:
        found = candidates.modest(found, pins)
    if pins.gpu_count is not None:
        found = tuple(group for group in found if group.kind != "cpu")
    wanted = model.context_tokens if request.context_tokens is None else request.context_tokens
    beyond = beyond_model(model, wanted)
    roomy = score.full_headroom_tokens(request, model.context_tokens)
    drivers: dict[str, str | None] = {each.vendor: each.version for each in report.drivers}
    host = beside_devices(report)
    engines = [facts.engine(name) for name in facts.engine_names() if pins.engine in (None, name)]
    floors = [Floor(group) for group in found]
    grounds = Grounds(model.architecture, pins, request.concurrency)
    rows = {engine.name: [(floor, ready(model, engine, floor.group, pins)) for floor in floors] for engine in engines}
    nowhere = None if found or unusable else NO_DEVICE
    taught = None
    if request.calibrations:
        from selector.lessons import lessons  # nothing is known of most machines

        taught = lessons(request.calibrations, rows.values(), request, drivers)
        request = msgspec.structs.replace(request, calibrations=())
    ask = _Ask(model, request, report, wanted, roomy, drivers, taught)
    feasible: list[tuple[Candidate, float]] = []
    rejected: list[Rejection] = []
    short: list[tuple[Ready, Ground, list[Candidate]]] = []
    for place, checkpoint in enumerate(model.checkpoints):
        repo, _ = repository(checkpoint, pins)
        refusal = beyond or unwanted(checkpoint, pins) or spare(model, place, pins) or nowhere
        for engine in engines:
            if refusal is not None:
                rejected.append(rejection(repo, checkpoint, engine, None, refusal))
                continue
            rejected += [rejection(repo, checkpoint, engine, None, unknown_device(each)) for each in unusable]
            for floor, answers in rows[engine.name]:
                one = answers[place]
                if isinstance(one, Rejection):
                    if floor.group.kind != "cpu" or len(found) == 1:
                        rejected.append(one)
                    continue
                ground = grounds.of(one.engine, floor)
                tried = _layouts(ask, one, ground)
                feasible += [(candidate, checkpoint.quality) for candidate in tried.good]
                rejected += [rejection(repo, checkpoint, engine, *each) for each in tried.bad]
                if engine.offload is not None and host is not None and floor.group.kind != "cpu":
                    short.append((one, ground, tried.good))
    if host is not None and short:
        from selector import offloaded  # most plans have no such engine, or no such machine

        more = offloaded.beside(host, short, feasible, request, report)
        feasible += more.good
        rejected += more.bad
    alone = len(found) + len(unusable) == 1  # nothing can be refused twice
    ranked = score.ranked(feasible, request, model.context_tokens)
    return Decision(ranked, tuple(rejected) if alone else unique(rejected))


def _layouts(ask: _Ask, one: Ready, ground: Ground) -> _Found:
    """All layouts of one checkpoint, engine and group that may win, the widest tensor parallelism first."""
    found = _Found()
    free = ask.request.pins.pipeline_parallel is None
    on_host = ground.group.kind == "cpu"
    for stages in ground.shapes:
        sizes = {False: _Size(stages), True: _Size(stages)}
        heavy: tuple[int, bool] | None = None
        for pipeline in stages.counts:
            # Weights that are more than is free on any device, or on this layout's, rule it out without more ado.
            if free and one.heavier_than(ground.most_free_bytes, stages.tensor, pipeline, on_host=on_host):
                heavy = (pipeline, False)
                continue
            bare = ground.lot(stages.tensor, pipeline, expert=False)
            if free and bare.fullest is None and bare.refusal is None:  # nor is there room for more stages
                if all(each.parallel.tensor != stages.tensor for each in found.good):
                    found.bad.append((bare.bare, _too_small(ask, ground.group, bare.bare)))
                break
            if free and pipeline > 1 and found.wider(bare):
                continue
            experts = _experts(ask, one, ground.group, bare.bare)
            for expert in experts:
                lot = ground.lot(stages.tensor, pipeline, expert=True) if expert else bare
                if free and sizes[expert].done(lot):
                    continue
                if free and one.heavier_than(lot.free_bytes, stages.tensor, pipeline, expert=expert, on_host=on_host):
                    heavy = (pipeline, expert)
                    continue
                before = len(found.good)
                _replicas(ask, one, ground, lot, found, most_only=sizes[expert].roomy)
                sizes[expert].learn(ask, found.good[before:])
                if len(found.good) > before and len(experts) == 1:  # no fault slows it
                    found.learn(lot)
        if heavy is not None:
            lot = ground.lot(stages.tensor, heavy[0], expert=heavy[1])
            found.bad.append((lot.bare, lot.refusal or _too_heavy(ask, one, ground, lot)))
    return found


def _too_heavy(ask: _Ask, one: Ready, ground: Ground, lot: Lot) -> Refusal:
    """What the weights alone rule out, told for the most stages of a size."""
    on_host = ground.group.kind == "cpu"
    bare, usable = lot.bare, lot.free_bytes
    share = one.share_bytes(bare.tensor, bare.pipeline, expert=bare.expert, on_host=on_host)
    where = "of main memory" if on_host else "a GPU"
    taken = ground.usable_bytes - usable
    others = f" ({taken / GIB:.1f} taken by others)" if taken > FREE_MARGIN_BYTES else ""
    refusal = Refusal(
        "memory.weights",
        f"needs {share / GIB:.1f} GiB {where} for its weights alone; {usable / GIB:.1f} usable{others}",
        {"needed_bytes": share, "usable_bytes": usable, "weights_bytes": share, "free_bytes": usable},
    )
    return _told_of_node(ask, ground, lot.fullest, refusal)


def _told_of_node(ask: _Ask, ground: Ground, fullest: Device | None, refusal: Refusal) -> Refusal:
    """Of several nodes that differ, which one a refusal is about."""
    if ask.report.nodes == 1 or fullest is None or not refusal.code.startswith("memory."):
        return refusal
    from selector.nodes import told_of

    return told_of(ask.report, ground.group, ground.most_free_bytes, fullest, refusal)


def _experts(ask: _Ask, one: Ready, group: Group, bare: Parallel) -> tuple[bool, ...]:
    """Whole experts on a rank are tried where slices of them are refused or slowed."""
    pinned = ask.request.pins.expert_parallel
    if pinned is not None:
        return (pinned,)
    if bare.tensor == 1 or "expert" not in one.engine.parallel:
        return (False,)
    sliced = one.verdict(group, bare, speculative=False, driver=ask.drivers.get(group.kind))
    return (False, True) if isinstance(sliced, Refusal) or sliced.speed_factor < 1 else (False,)


def _roomy(candidate: Candidate, ask: _Ask, replicas: int) -> bool:
    """Whether more memory would be of no use: the whole context, and a cache for as much as is ever rewarded."""
    room = candidate.memory.kv_cache_tokens * replicas
    return candidate.limits.context_tokens >= ask.wanted_tokens and room >= ask.roomy_tokens


def _replicas(ask: _Ask, one: Ready, ground: Ground, lot: Lot, found: _Found, *, most_only: bool) -> None:
    """Every placement, number of replicas and kind of decoding of a layout.

    ``most_only`` leaves out a single replica where more would stand beside it: fewer stages do it as well.
    """
    if lot.refusal is not None:
        pinned = ask.request.pins.data_parallel
        parallel = lot.bare if pinned is None else msgspec.structs.replace(lot.bare, data=pinned)
        found.bad.append((parallel, lot.refusal))
        return
    refused: dict[int, tuple[Parallel, Refusal]] = {}
    fitted: set[int] = set()
    for places in lot.tries:
        # Those inside nodes come first. Where some are, fewer may be quicker than more that wait for the network.
        inside = bool(places) and places[0].placed is not None and places[0].placed.nodes == 1
        for parallel, placed, fewest in places:
            count = parallel.data
            if most_only and fewest and len(places) > 1:
                continue
            if placed is None:
                refused[count] = (parallel, _too_small(ask, ground.group, parallel))
                break
            answers = _decodings(ask, one, ground.group, parallel, placed)
            if isinstance(answers, Refusal):
                refused[count] = (parallel, _told_of_node(ask, ground, placed.weakest, answers))
                if fewest:
                    break  # further replicas lie on fuller devices
                continue
            found.good += answers
            fitted.add(count)
            if (most_only or not fewest) and _roomy(answers[0], ask, count) and (placed.nodes == 1 or not inside):
                break  # there is room enough on the fullest devices: fewer replicas have no use for more
    found.bad += [each for count, each in refused.items() if count not in fitted]


def _too_small(ask: _Ask, group: Group, parallel: Parallel) -> Refusal:
    needed = parallel.ranks * parallel.data
    if len(group.nodes) > 1:
        from selector.nodes import too_few

        return too_few(ask.report, group, parallel)
    return Refusal(
        "layout.devices",
        f"needs {needed} devices, {len(group.devices)} are there",
        {"needed_devices": needed, "devices": len(group.devices)},
    )


def _decodings(
    ask: _Ask, one: Ready, group: Group, parallel: Parallel, placed: Placement
) -> tuple[Candidate, ...] | Refusal:
    """The candidates of a placement, one a kind of decoding; the refusal when none of them can be.

    Speculative decoding that nobody asked for and that cannot be is no refusal: the layout stands without it.
    """
    on_devices = msgspec.structs.replace(parallel, devices=placed.indices)
    lying = group if group.link == placed.link else group._replace(link=placed.link)
    made: list[Candidate] = []
    pins, objective = ask.request.pins, ask.request.objective
    choices = candidates.speculative_choices(one.engine, has_mtp=one.has_mtp, pins=pins, objective=objective)
    for speculative in choices:
        answer = _candidate(ask, one, lying, parallel, on_devices, placed, speculative=speculative)
        if not isinstance(answer, Refusal):
            made.append(answer)
        elif not made:
            return answer
    return tuple(made)


def _candidate(
    ask: _Ask,
    one: Ready,
    group: Group,
    parallel: Parallel,
    on_devices: Parallel,
    placed: Placement,
    *,
    speculative: bool,
) -> Candidate | Refusal:
    request, engine = ask.request, one.engine
    if speculative and not one.has_mtp:
        return Refusal("rule.no_mtp", f"{one.checkpoint.repo} holds no MTP layer for speculative decoding", {})
    pinned_dtype = request.pins.kv_cache_dtype
    if pinned_dtype is not None and pinned_dtype not in engine.kv_cache_dtypes:
        return Refusal("engine.kv_cache_dtype", f"{engine.title} has no {pinned_dtype} KV cache", {})
    verdict = one.verdict(group, parallel, speculative=speculative, driver=ask.drivers.get(group.kind))
    if isinstance(verdict, Refusal):
        return verdict
    like = Alike(placed.weakest)
    key = (one, like, group.link, parallel, speculative, verdict.speed_factor, request, placed.wire)
    more: tuple[Note, ...] = ()
    by = ask.lessons and ask.lessons.of(one, placed.weakest, on_devices, request, speculative=speculative)
    if by:
        from selector.lessons import taught

        answer = taught(key, by, on_devices)
        if isinstance(answer, Refusal):
            return answer
        (fit, speed), more = answer
    else:
        found = weighed(*key)
        if isinstance(found, Refusal):
            return found
        fit, speed = found
    needs = fit.memory if placed.free_known else msgspec.structs.replace(fit.memory, basis="assumed")
    said = notes.of(one, request, ask.report, placed, parallel, fit.limits, needs, speed)
    return one.candidate(on_devices, fit.limits, needs, speed, (*said, *verdict.notes, *more))


def forget() -> None:
    """Drop what earlier plans worked out (for measuring a first one)."""
    forget_weighed()
    forget_ready()
    for name in ("selector.offloaded", "selector.lessons"):
        if (loaded := sys.modules.get(name)) is not None:
            loaded.forget()
