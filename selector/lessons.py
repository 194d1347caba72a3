"""Calibrations made into lessons: each beside what the planner says of the very configuration that was measured.

The prediction is made anew at every plan, for the measured configuration, at the workload it was measured with and on a
device that nobody else uses: so a lesson is right for the profiles of this release, whichever release was running then,
and it does not change with what others hold of the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from selector import calibration, throughput
from selector.asked import PlanRequest
from selector.calibration import Correction, Factors, Learned, Lesson
from selector.contract import Note, Parallel, PerDevice, Rejection
from selector.devices import GIB, Alike, Device, Group, Way
from selector.interconnect import Wire, way
from selector.legality import Refusal
from selector.measured import Calibration, Configuration, Measured, configuration
from selector.memory import kv_dtype
from selector.placement import Floor
from selector.ready import Ready
from selector.request import Pins, Workload
from selector.weighed import Weighed, weighed

#: No layout has more ranks.
RANKS = 4096
_Key = tuple[Ready, Alike, Way, Parallel, bool, float, PlanRequest, Wire | None]
_Place = tuple[str, ...]
Row = tuple[Floor, tuple[Ready | Rejection, ...]]


class Lessons:
    """The lessons of a plan, by engine, checkpoint and kind of device."""

    def __init__(self, by_place: dict[tuple[_Place, str, int], tuple[Lesson, ...]]) -> None:
        self._by_place = by_place

    def __bool__(self) -> bool:
        return bool(self._by_place)

    def of(
        self, one: Ready, device: Device, parallel: Parallel, request: PlanRequest, *, speculative: bool
    ) -> Learned | None:
        """What holds for a layout on devices like this one."""
        kind = (device.name, device.total_bytes)
        own = self._by_place.get((_place(one), *kind), ())
        others = [each for key, found in self._by_place.items() if key[1:] == kind for each in found]
        if not others:
            return None
        layout = Configuration(
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            data=parallel.data,
            expert=parallel.expert,
            nodes=parallel.nodes,
            devices=len(parallel.devices),
            context_tokens=0,
            max_sequences=0,
            kv_cache_dtype=kv_dtype(one.engine, one.checkpoint.format, request.pins.kv_cache_dtype),
            memory_utilization=0.0,
            speculative="mtp" if speculative else "off",
            eager=bool(request.pins.eager),
        )
        return calibration.learned(own, layout, others, one.choice.name)


class Taught(NamedTuple):
    """What a layout needs and gives after what was measured, and what is said of that."""

    weighed: Weighed
    notes: tuple[Note, ...]


def taught(key: _Key, by: Learned, parallel: Parallel) -> Taught | Refusal:
    """:func:`selector.weighed.weighed`, corrected. ``parallel`` names the devices."""
    found = weighed(*key, correction=None if by.correction == Correction() else by.correction)
    if isinstance(found, Refusal):
        return found
    fit, speed = found
    very = configuration(parallel, fit.limits)
    fit = fit._replace(memory=calibration.remembered(fit.memory, by, very))
    return Taught(Weighed(fit, calibration.corrected(speed, by, very)), calibration.notes(by, very))


def lessons(
    calibrations: Iterable[Calibration],
    rows: Iterable[Sequence[Row]],
    request: PlanRequest,
    drivers: Mapping[str, str | None],
) -> Lessons:
    """What the calibrations teach of the checkpoints and devices in ``rows``, an engine's each."""
    found: dict[tuple[_Place, str, int], list[Lesson]] = {}
    told = tuple(calibrations)
    for by_floor in rows:
        for floor, answers in by_floor:
            group = floor.group
            kinds = {(each.name, each.total_bytes): each for each in group.devices}
            here = [each for each in told if (each.device, each.device_bytes) in kinds]
            for one in answers if here else ():
                if not isinstance(one, Ready):
                    continue
                place = _place(one)
                for each in here:
                    if _place_of(each) == place:
                        device = kinds[each.device, each.device_bytes]
                        lesson = _lesson_in(one, group, device, each, request, drivers.get(group.kind))
                        key = (place, each.device, each.device_bytes)
                        if lesson not in found.setdefault(key, []):  # a device may be in several groups
                            found[key].append(lesson)
    return Lessons({key: tuple(each) for key, each in found.items()})


def _place(one: Ready) -> _Place:
    checkpoint, choice = one.checkpoint, one.choice
    named = (checkpoint.repo, checkpoint.quantization, checkpoint.file_prefix or "", checkpoint.revision or "")
    return (choice.name, choice.version, choice.package, *named)


def _place_of(each: Calibration) -> _Place:
    named = (each.repo, each.quantization, each.file_prefix or "", each.revision or "")
    return (each.engine, each.version, each.package, *named)


# --- one lesson ---------------------------------------------------------------------------------------------


def _lesson_in(
    one: Ready, group: Group, device: Device, each: Calibration, request: PlanRequest, driver: str | None
) -> Lesson:
    wrong = _impossible(one, each.configuration)
    if wrong is not None:
        return Lesson(each, refused=(wrong,))
    of = each.configuration
    parallel = Parallel(
        tensor=of.tensor, pipeline=of.pipeline, data=of.data, expert=of.expert, nodes=of.nodes, devices=()
    )
    verdict = one.verdict(group, parallel, speculative=of.speculative == "mtp", driver=driver)
    if isinstance(verdict, Refusal):
        return Lesson(each, refused=(f"the configuration is none that is planned: {verdict.message}",))
    empty = msgspec.structs.replace(device, free_bytes=device.allocatable_bytes, free_known=True)
    workload = Workload(
        input_tokens=each.measured.input_tokens or request.workload.input_tokens,
        output_tokens=each.measured.output_tokens or request.workload.output_tokens,
    )
    static = one.engine.memory.kind == "static_fraction"
    asked = PlanRequest(
        model=request.model,
        context_tokens=of.context_tokens,
        concurrency=each.measured.concurrency or request.concurrency,
        workload=workload,
        pins=Pins(
            engine_version=request.pins.engine_version,
            max_sequences=of.max_sequences,
            kv_cache_dtype=of.kv_cache_dtype,
            memory_utilization=None if static else of.memory_utilization,
            eager=of.eager or None,
        ),
    )
    wire = None if parallel.nodes == 1 else _joined_by(group)
    return _lesson(one, Alike(empty), group.link, parallel, verdict.speed_factor, asked, each, wire)


def _joined_by(group: Group) -> Wire | None:
    """The way that the nodes of a group have in common: which of them it was measured on is not kept."""
    ends = {device.node: device.reach for device in group.devices}
    return way(ends.values())


def _impossible(one: Ready, of: Configuration) -> str | None:
    """Why a configuration is none of this model, before anything is worked out of it."""
    arch = one.model.architecture
    counts = (of.tensor, of.pipeline, of.data, of.nodes, of.context_tokens, of.max_sequences)
    if min(counts) < 1 or max(of.tensor, of.pipeline, of.data, of.nodes, of.devices) > RANKS:
        return "its layout or its limits are of no configuration"
    ranks = of.tensor * of.pipeline * of.data
    if of.nodes > ranks or (not of.devices and ranks > 1):
        return "its layout has more nodes or ranks than it has devices for"
    if arch.num_attention_heads % of.tensor:
        return "its tensor parallelism does not divide the model's heads"
    if of.context_tokens > one.model.context_tokens or of.pipeline > arch.num_hidden_layers:
        return "its context or its stages are more than the model has"
    if not 0 < of.memory_utilization <= 1 or of.max_sequences > 1 << 20:
        return "its share of memory or its sequences are of no configuration"
    if of.kv_cache_dtype not in one.engine.kv_cache_dtypes or of.speculative not in ("mtp", "off"):
        return f"{one.engine.title} has no such KV cache or decoding"
    if of.gpu_layers is not None or of.cpu_expert_layers or of.device_layers:
        return "layouts with layers in main memory are not corrected"
    return None


@lru_cache(maxsize=1 << 10)
def _lesson(
    one: Ready,
    device: Alike,
    link: Way,
    parallel: Parallel,
    factor: float,
    asked: PlanRequest,
    each: Calibration,
    wire: Wire | None,
) -> Lesson:
    mtp = each.configuration.speculative == "mtp" and one.has_mtp
    key = (one, device, link, parallel, mtp, factor, asked, wire)
    found = weighed(*key)
    if isinstance(found, Refusal):
        return Lesson(each, refused=(f"the configuration does not fit an empty device: {found.message}",))
    judge = _Judge(each.measured, device.device)
    correction = _memory(judge, key, found)
    memory = bool(judge.said)
    assumed = found.speed.basis == "assumed"
    ceiling = None if assumed else throughput.fastest_decode(one, device.device, parallel, mtp=mtp)
    factors = _speeds(judge, found, assumed=assumed, ceiling=ceiling)
    on_demand = one.engine.memory.kind == "demand"
    return Lesson(each, correction, factors, memory, assumed, tuple(judge.refused), tuple(judge.said), on_demand)


class _Judge:
    """What is believed of a measurement, and what is said of that."""

    def __init__(self, measured: Measured, device: Device) -> None:
        self.measured, self.device = measured, device
        self.said: list[str] = []
        self.refused: list[str] = []

    def item(self, name: str, measured: int | None, predicted: int, least_bytes: int) -> int | None:
        """The bytes that an item is more than predicted, if that is believed."""
        if measured is None:
            return None
        delta = calibration.near(measured, predicted, least_bytes)
        if delta is None or measured > self.device.total_bytes:
            self.refused.append(f"{name} {_size(measured)} where {_size(predicted)} was foretold")
            return None
        self.said.append(f"{name} {_size(measured)} where {_size(predicted)} was foretold")
        return delta

    def speed(
        self, name: str, measured: float | None, predicted: float | None, bounds: tuple[float, float], unit: str
    ) -> float | None:
        if measured is None or predicted is None:
            return None
        factor = calibration.within(measured, predicted, bounds)
        sentence = f"{name} {_figure(measured)} {unit} where {_figure(predicted)} was foretold"
        (self.refused if factor is None else self.said).append(sentence)
        return factor


def _memory(judge: _Judge, key: _Key, found: Weighed) -> Correction:
    """The items as the engine told them, then what its processes hold, then what was left for the KV cache."""
    seen, memory, kind = judge.measured, found.fit.memory, key[0].engine.memory.kind
    device = memory.per_device
    weights = judge.item("weights", seen.weights_bytes, device.weights_bytes, calibration.WEIGHTS_BYTES)
    activations = judge.item("activations", seen.activations_bytes, device.activations_bytes, calibration.ITEM_BYTES)
    graphs = None
    if device.graphs_bytes:
        graphs = judge.item("graphs", seen.graphs_bytes, device.graphs_bytes, calibration.ITEM_BYTES)
    one = Correction(
        weights=1.0 if not weights else 1 + weights / device.weights_bytes,
        activations=activations or 0,
        graphs=graphs or 0,
    )
    if kind == "demand":
        return one if seen.resident_bytes is None else one._replace(runtime=_runtime(judge, device, one))
    if seen.kv_cache_tokens is None or not memory.kv_cache_tokens:
        return one
    per_token = device.kv_cache_bytes / memory.kv_cache_tokens
    lost = round((memory.kv_cache_tokens - seen.kv_cache_tokens) * per_token)
    sentence = f"KV cache {seen.kv_cache_tokens:,} tokens where {memory.kv_cache_tokens:,} were foretold"
    if abs(lost) > max(calibration.ITEM_BYTES, int(calibration.ITEM_SHARE * device.kv_cache_bytes)):
        judge.refused.append(sentence)
        return one
    judge.said.append(sentence)
    again = found if one == Correction() else weighed(*key, correction=one)
    if isinstance(again, Refusal):  # the items leave the cache nothing, and it had something
        return one
    room = round((again.fit.memory.kv_cache_tokens - seen.kv_cache_tokens) * per_token)
    if room < 0 and kind != "static_fraction":  # what there is more of was counted for something else
        return one._replace(runtime=max(room, -device.runtime_bytes))
    return one._replace(room=room)


def _runtime(judge: _Judge, device: PerDevice, one: Correction) -> int:
    """What the runtime takes more than was foretold, of an engine that takes memory as it needs it."""
    seen = judge.measured
    assert seen.resident_bytes is not None, "it was looked at"  # noqa: S101 - by who asks
    weights = round(device.weights_bytes * one.weights)
    if seen.resident_bytes < weights:  # files that are mapped are held by nobody: it is no measure of everything
        return 0
    taken = device.kv_cache_bytes if seen.kv_cache_tokens is not None else 0
    fixed = weights + device.activations_bytes + one.activations + device.graphs_bytes + one.graphs
    more = judge.item("in use", seen.resident_bytes, fixed + device.runtime_bytes + taken, calibration.ITEM_BYTES)
    return 0 if more is None else max(more, -device.runtime_bytes)


def _speeds(judge: _Judge, found: Weighed, *, assumed: bool, ceiling: float | None) -> Factors:
    seen, speed = judge.measured, found.speed
    bounds = calibration.ASSUMED_SPEED if assumed else calibration.DERIVED_SPEED
    load = judge.speed("load", seen.load_seconds, speed.load_seconds, calibration.LOAD, "s")
    decode = seen.decode_tokens_per_second
    if seen.source == "served" and seen.samples < calibration.LEAST_SAMPLES:
        judge.refused.append(f"{seen.samples} requests are too few for a speed")
        return Factors(load=load)
    if decode is not None and ceiling is not None and decode > ceiling:
        judge.refused.append(
            f"{_figure(decode)} tokens/s of one request are more than the memory can be read for ({_figure(ceiling)})"
        )
        return Factors(load=load)
    together = seen.concurrency == speed.concurrency
    return Factors(
        decode=judge.speed("one request", decode, speed.decode_tokens_per_second, bounds, "tokens/s"),
        throughput=judge.speed(
            f"{speed.concurrency} requests",
            seen.throughput_tokens_per_second if together else None,
            speed.throughput_tokens_per_second,
            bounds,
            "tokens/s",
        ),
        prefill=judge.speed(
            "prompts", seen.prefill_tokens_per_second, speed.prefill_tokens_per_second, bounds, "tokens/s"
        ),
        first_token=judge.speed(
            "first token",
            seen.time_to_first_token_seconds,
            speed.time_to_first_token_seconds,
            (1 / bounds[1], 1 / bounds[0]),
            "s",
        ),
        load=load,
    )


def _size(value: int) -> str:
    return f"{value / GIB:.1f} GiB" if value >= GIB / 10 else f"{value / (1 << 20):.0f} MiB"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def forget() -> None:
    """Drop what was worked out."""
    _lesson.cache_clear()
