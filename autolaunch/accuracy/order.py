"""Whether the plan ranks configurations as they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

import msgspec

from autolaunch.accuracy.compare import Comparison, Planner, pins_of
from selector.contract import LaunchPlan
from selector.measurements import Measurement, Run

#: Measured configurations are ranked against each other only where they are further apart than this.
CLEAR = 1.1


class Pair(NamedTuple):
    """Two configurations that were measured under one workload; ``better`` is the one that was measured to be."""

    better: Comparison
    worse: Comparison
    measured: float
    predicted: float | None

    @property
    def alike(self) -> bool:
        """Whether the plan ranks them as they were measured."""
        return self.predicted is not None and self.predicted > 1

    @property
    def one_accelerator(self) -> bool:
        return _accelerator(self.better.measurement.run) == _accelerator(self.worse.measurement.run)


class Split(NamedTuple):
    """Replicas of a narrow layout against one wide one on the same machine, as ratios of narrow to wide.

    ``chosen_throughput`` and ``chosen_latency`` are the (tensor, data) that a plan takes for these objectives when
    the layout is free.
    """

    narrow: Measurement
    wide: Measurement
    replicas: int
    throughput_measured: float
    throughput_predicted: float | None
    interval_measured: float | None
    interval_predicted: float | None
    chosen_throughput: tuple[int, int] | None
    chosen_latency: tuple[int, int] | None


def pairs(comparisons: Iterable[Comparison]) -> tuple[Pair, ...]:
    """Every two configurations that can be ranked: by one source, of one model and metric, under one workload.

    The workload is one when as many requests were sent, as many at once, with input and output within a tenth
    (sampled lengths differ by a few tokens). Throughput is compared a device, which is to say scaled by replicas to
    the same number of devices. Pairs that were measured within a tenth of each other say nothing and are left out.
    """
    rows = [each for each in comparisons if each.kind in ("graphs", "eager")]
    return tuple(pair for one, other in combinations(rows, 2) if (pair := _pair(one, other)) is not None)


def _pair(one: Comparison, other: Comparison) -> Pair | None:
    first, second = one.measurement, other.measurement
    same = (
        first.source.id == second.source.id
        and first.run.id != second.run.id
        and first.run.model == second.run.model
        and first.result.metric == second.result.metric
        and first.result.concurrency == second.result.concurrency
        and first.result.requests == second.result.requests
        and _near(first.result.input_tokens, second.result.input_tokens)
        and _near(first.result.output_tokens, second.result.output_tokens)
    )
    if not same:
        return None
    measured = _merit(one, first.result.value) / _merit(other, second.result.value)
    if max(measured, 1 / measured) <= CLEAR:
        return None
    better, worse = (one, other) if measured > 1 else (other, one)
    ours, theirs = better.prediction.value, worse.prediction.value
    predicted = None if ours is None or theirs is None else _merit(better, ours) / _merit(worse, theirs)
    return Pair(better, worse, max(measured, 1 / measured), predicted)


def _merit(row: Comparison, value: float) -> float:
    """A figure of which more is better, and of a throughput what a device gives."""
    metric = row.measurement.result.metric
    if metric.endswith("_seconds"):
        return 1 / value
    return value / row.devices if metric == "output_tokens_per_second" else value


def _near(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and max(one, other) <= CLEAR * min(one, other)


def _accelerator(run: Run) -> str:
    return (run.machine or "").split("x", 1)[-1]


def splits(planner: Planner, rows: Iterable[Measurement]) -> Iterator[Split]:
    """Two layouts of which one is a whole number of times as wide, measured alike: replicas of the narrow one.

    Measured replicas are reckoned as so many times the one that was measured, which is how the source does it.
    """
    wanted = [each for each in rows if each.result.metric == "output_tokens_per_second"]
    for one, other in combinations(wanted, 2):
        narrow, wide = sorted((one, other), key=lambda each: each.run.tensor or 0)
        if _same_but_width(narrow, wide):
            yield _split(planner, narrow, wide)


def _same_but_width(narrow: Measurement, wide: Measurement) -> bool:
    few, many = narrow.run.tensor or 0, wide.run.tensor or 0
    alike = ("model", "repo", "engine", "engine_version", "expert", "eager", "speculative")
    workload = ("concurrency", "requests", "input_tokens", "output_tokens")
    return (
        0 < few < many
        and many % few == 0
        and narrow.source.id == wide.source.id
        and _accelerator(narrow.run) == _accelerator(wide.run)
        and all(getattr(narrow.run, name) == getattr(wide.run, name) for name in alike)
        and all(getattr(narrow.result, name) == getattr(wide.result, name) for name in workload)
        and (narrow.run.pipeline or 1) == (wide.run.pipeline or 1) == 1
    )


def _split(planner: Planner, narrow: Measurement, wide: Measurement) -> Split:
    run, result = wide.run, wide.result
    machine = run.machine or ""
    replicas = (run.tensor or 1) // (narrow.run.tensor or 1)
    pins = msgspec.structs.replace(pins_of(run), engine_version=None)
    speeds = [
        _speed(
            planner.plan(
                run, machine, msgspec.structs.replace(pins, tensor_parallel=tensor, data_parallel=data), result
            )
        )
        for tensor, data in ((narrow.run.tensor, replicas), (run.tensor, 1))
    ]
    free = msgspec.structs.replace(pins, tensor_parallel=None, data_parallel=None, gpu_count=run.tensor)
    return Split(
        narrow=narrow,
        wide=wide,
        replicas=replicas,
        throughput_measured=replicas * float(narrow.result.value) / float(result.value),
        throughput_predicted=_ratio(*(each.throughput for each in speeds)),
        interval_measured=_ratio(_interval(narrow), _interval(wide)),
        interval_predicted=_ratio(*(each.decode for each in reversed(speeds))),
        chosen_throughput=_layout(planner.plan(run, machine, free, result, objective="throughput")),
        chosen_latency=_layout(planner.plan(run, machine, free, result, objective="latency")),
    )


def _interval(row: Measurement) -> float | None:
    for each in row.run.results:
        same = (each.concurrency, each.input_tokens) == (row.result.concurrency, row.result.input_tokens)
        if each.metric == "median_token_interval_seconds" and same:
            return float(each.value)
    return None


class _Speed(NamedTuple):
    decode: float | None
    throughput: float | None


def _speed(plan: LaunchPlan) -> _Speed:
    if plan.chosen is None:
        return _Speed(None, None)
    return _Speed(plan.chosen.speed.decode_tokens_per_second, plan.chosen.speed.throughput_tokens_per_second)


def _layout(plan: LaunchPlan) -> tuple[int, int] | None:
    return None if plan.chosen is None else (plan.chosen.parallel.tensor, plan.chosen.parallel.data)


def _ratio(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first / second
