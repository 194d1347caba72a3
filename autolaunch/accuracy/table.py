"""``docs/accuracy.md``: what the comparisons and the order say, as Markdown. The same findings give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from autolaunch.accuracy.compare import KINDS, Comparison, Group, Kind
from autolaunch.accuracy.order import CLEAR, Pair, Split
from selector.measurements import Measurement, Metric, Run

_GIB = 1 << 30
_GB = 10**9
HEAD = """\
# How near the estimates come

Written by `scripts/validate`; `scripts/check` fails when it is not what the estimates of today give, or when a bar
below is broken. The measurements and where each was published are in `profiles/measurements`.

Every measured configuration is planned with everything pinned that its author says, and the plan's figure is set
beside the measured one. *Factor* is predicted over measured. The *mean* is `exp(mean |ln factor|)`, so a mean of 1.10
says that a figure is usually off by a tenth, either way; *worst* is the row that is furthest off. What a measurement's
own rounding leaves open is taken for it. Rows of one source are correlated, so each source has its own mean. *Fitted*
rows are those that constants of the estimates were chosen with, *checked* rows were found later and only check them.
*Speed* is decode and throughput: with CUDA graphs or on an engine that has none, and eager. *Prompts* are prefill and
the time to the first token. The *size* of a checkpoint is computed from the shapes of its model and its layout; a plan
itself takes the published size where there is one.
Rows of an engine older than the oldest that is planned are estimated in the version after the arrow.
"""


class Bar(NamedTuple):
    """What a kind promises: the mean distance of every source, and of any row; ``None`` promises nothing."""

    mean: float | None
    worst: float | None


class Findings(NamedTuple):
    """Everything that the table shows; ``excluded`` are measurements that could not be compared."""

    comparisons: tuple[Comparison, ...]
    groups: tuple[Group, ...]
    pairs: tuple[Pair, ...]
    splits: tuple[Split, ...]
    excluded: tuple[Measurement, ...]


# --- bars --------------------------------------------------------------------------------------------


def broken(found: Findings, bars: Mapping[Kind, Bar], order_share: float) -> tuple[str, ...]:
    """The promises that are not kept, a sentence each."""
    return (*_broken_groups(found.groups, bars), *_broken_order(found.pairs, order_share), *_broken_splits(found))


def _broken_groups(groups: Iterable[Group], bars: Mapping[Kind, Bar]) -> Iterator[str]:
    for group in groups:
        bar = bars[group.kind]
        if group.source is None:
            if group.refused and bar.worst is not None:
                yield f"{KINDS[group.kind]}: {group.refused} of {group.rows} rows have no figure or a wrong verdict"
            continue
        if bar.mean is not None and group.mean is not None and group.mean > bar.mean:
            told = f"{group.source} is off by a mean factor of {_factor(group.mean)}"
            yield f"{KINDS[group.kind]}: {told}, {bar.mean:g} at most"
        worst = group.worst
        if bar.worst is not None and math.isfinite(worst.distance) and worst.distance > bar.worst:
            name = worst.measurement.result.id
            yield f"{KINDS[group.kind]}: {name} is off by a factor of {_factor(worst.distance)}, {bar.worst:g} at most"


def _broken_order(pairs: tuple[Pair, ...], order_share: float) -> Iterator[str]:
    for title, some in _orders(pairs):
        if some and (share := _share(some)) < order_share:
            yield f"Order: {title}: {share:.1%} of {len(some)} pairs are ranked as measured, {order_share:.0%} at least"


def _broken_splits(found: Findings) -> Iterator[str]:
    for split in found.splits:
        name = f"{split.replicas} x {split.narrow.run.id} against {split.wide.run.id}"
        if not _agree(split.throughput_measured, split.throughput_predicted):
            yield f"Replicas: {name}: the throughput comes out otherwise than measured"
        if split.interval_measured is not None and not _agree(split.interval_measured, split.interval_predicted):
            yield f"Replicas: {name}: the time between tokens comes out otherwise than measured"


def _agree(measured: float, predicted: float | None) -> bool:
    """Whether two ratios lie on the same side of 1; a measured one that is not clear agrees with any."""
    clear = max(measured, 1 / measured) > CLEAR
    return not clear or (predicted is not None and (predicted > 1) == (measured > 1))


def _orders(pairs: tuple[Pair, ...]) -> tuple[tuple[str, tuple[Pair, ...]], ...]:
    one = tuple(pair for pair in pairs if pair.one_accelerator)
    return ("all pairs", pairs), ("on one kind of accelerator", one)


def _share(pairs: tuple[Pair, ...]) -> float:
    return sum(pair.alike for pair in pairs) / len(pairs)


# --- Markdown ----------------------------------------------------------------------------------------


def markdown(found: Findings, bars: Mapping[Kind, Bar], order_share: float, missed: Mapping[str, str]) -> str:
    """The whole page, ending in a newline. ``missed`` says why a promise that is not kept is not, by its sentence."""
    parts = [HEAD, *_summary(found, bars, order_share, missed), *_replicas(found.splits), *_misranked(found.pairs)]
    for kind, title in KINDS.items():
        parts += _rows(title, [each for each in found.comparisons if each.kind == kind])
    parts += _excluded(found.excluded)
    return "\n".join(parts).rstrip("\n") + "\n"


def _table(heads: str, rows: Iterable[Iterable[str]]) -> list[str]:
    """``heads`` are separated by ``|``; those that begin with ``>`` are set to the right."""
    names = heads.split("|")
    lines = [[name.lstrip(">") for name in names], ["--:" if name.startswith(">") else "---" for name in names]]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _summary(found: Findings, bars: Mapping[Kind, Bar], order_share: float, missed: Mapping[str, str]) -> list[str]:
    rows = [
        [
            KINDS[group.kind],
            group.source or "**all**",
            str(group.rows),
            str(group.refused or ""),
            _factor(group.mean),
            _factor(group.mean_fitted),
            _factor(group.mean_checked),
            f"{_distance(group.worst.distance)} ({group.worst.measurement.result.id})"
            if group.worst.distance > 1
            else "",
        ]
        for group in found.groups
    ]
    lines = ["## By kind and source", ""]
    lines += _table("what|source|>rows|>no figure|>mean|>fitted|>checked|worst", rows)
    lines += ["## Bars", ""]
    lines += [f"- {KINDS[kind]}: {_promise(bar)}." for kind, bar in bars.items()]
    lines += [f"- Order: at least {order_share:.0%} of the pairs are ranked as they were measured.", ""]
    faults = broken(found, bars, order_share)
    lines += ["Missed:", ""] if faults else ["All of them are kept.", ""]
    lines += [f"- {fault}{'' if fault not in missed else ': ' + missed[fault]}." for fault in faults]
    lines += [""] if faults else []
    lines += ["## Order", "", _ORDER, ""]
    lines += _table(
        "pairs|>count|>ranked as measured",
        [[title, str(len(some)), f"{_share(some):.1%}" if some else ""] for title, some in _orders(found.pairs)],
    )
    return lines


_ORDER = """\
Of two configurations that one source measured on one model under one workload, and that are more than a tenth apart,
the plan should rank the better one higher. Throughput is compared a device, which is to say scaled by replicas to the
same number of devices. The workload is one when as many requests were sent, as many at once, with lengths within a
tenth of each other."""


def _promise(bar: Bar) -> str:
    mean = None if bar.mean is None else f"a mean factor of at most {bar.mean:g} by source"
    worst = None if bar.worst is None else f"no row beyond {bar.worst:g}"
    if bar.worst == 1:
        worst = "every verdict right"
    return ", ".join(each for each in (mean, worst) if each) or "shown, not promised"


def _replicas(splits: Iterable[Split]) -> list[str]:
    rows = [
        [
            f"{split.replicas} x TP {split.narrow.run.tensor} against TP {split.wide.run.tensor}",
            _configuration(split.wide.run, layout=False),
            _workload(split.wide),
            _factor(split.throughput_measured),
            _factor(split.throughput_predicted),
            _factor(split.interval_measured),
            _factor(split.interval_predicted),
            _layout(split.chosen_throughput),
            _layout(split.chosen_latency),
        ]
        for split in splits
    ]
    if not rows:
        return []
    return [
        "## Replicas of a narrow layout against one wide one",
        "",
        "Ratios of the replicas to the wide layout: throughput (above 1, the replicas give more) and the time between",
        "two tokens (above 1, the replicas are slower; measured as the median under load, predicted for one sequence).",
        "The last columns are what a plan takes for these objectives when the layout is free.",
        "",
        *_table(
            "layouts|configuration|workload|>throughput measured|>predicted|>interval measured|>predicted"
            "|for throughput|for latency",
            rows,
        ),
    ]


def _misranked(pairs: Iterable[Pair]) -> list[str]:
    rows = [
        [
            pair.better.measurement.result.id,
            pair.worse.measurement.result.id,
            _factor(pair.measured),
            "none" if pair.predicted is None else _factor(pair.predicted),
        ]
        for pair in pairs
        if not pair.alike
    ]
    if not rows:
        return []
    return [
        "### Ranked otherwise than measured",
        "",
        *_table("measured better|measured worse|>measured ratio|>predicted ratio", rows),
    ]


def _rows(title: str, comparisons: list[Comparison]) -> list[str]:
    if not comparisons:
        return []
    rows = []
    for each in comparisons:
        run, result = each.measurement.run, each.measurement.result
        metric = result.metric
        told = each.prediction
        predicted = "none" if told.value is None else shown(metric, told.value)
        remark = "; ".join(text for text in (told.refusal, result.note) if text)
        rows.append(
            [
                f"[{result.id}]({run.source})",
                _configuration(run, version=told.version),
                _workload(each.measurement),
                _TITLES.get(metric, metric.replace("_", " ")),
                shown(metric, result.value),
                predicted,
                _factor(each.factor),
                {"fit": "fitted", "check": "checked"}[result.used],
                result.trust,
                remark,
            ]
        )
    return [
        f"## {title}",
        "",
        *_table("row|configuration|workload|figure|>measured|>predicted|>factor|used|trust|remark", rows),
    ]


def _excluded(measurements: Iterable[Measurement]) -> list[str]:
    rows = [
        [f"[{each.result.id}]({each.run.source})", _title(each.result.metric), each.result.excluded or ""]
        for each in measurements
    ]
    return ["## Not compared", "", *_table("row|figure|why", rows)] if rows else []


# --- cells -------------------------------------------------------------------------------------------

_TITLES: dict[Metric, str] = {
    "checkpoint_bytes": "size",
    "weights_bytes_per_device": "weights a device",
    "kv_cache_bytes_per_device": "KV cache a device",
    "peak_bytes": "peak",
    "decode_tokens_per_second": "decode, tokens/s",
    "output_tokens_per_second": "output, tokens/s",
    "prefill_tokens_per_second": "prefill, tokens/s",
    "time_to_first_token_seconds": "time to first token",
    "time_per_token_seconds": "time a token",
}


def _title(metric: Metric) -> str:
    return _TITLES.get(metric, metric.replace("_", " "))


def shown(metric: Metric, value: bool | float) -> str:
    """A figure as a person reads it: GB of files, GiB of memory, tokens/s, seconds, yes or no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if metric == "checkpoint_bytes":
        return f"{value / _GB:.2f} GB"
    if metric == "peak_bytes" or "_bytes_" in metric:
        return f"{value / _GIB:.2f} GiB"
    if metric == "kv_cache_tokens":
        return f"{value:,.0f}"
    if metric.endswith("_seconds"):
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.1f} s"
    return f"{value:,.1f}"


def _factor(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value - 1) < 0.1 else f"{value:.2f}"


def _distance(value: float) -> str:
    return _factor(value) if math.isfinite(value) else "none"


def _layout(layout: tuple[int, int] | None) -> str:
    if layout is None:
        return "none"
    tensor, data = layout
    return f"TP {tensor}" if data == 1 else f"{data} x TP {tensor}"


def _configuration(run: Run, *, layout: bool = True, version: str | None = None) -> str:
    words = [run.repo if run.quantization is None else f"{run.repo} {run.quantization}"]
    if run.engine is not None:
        arrow = "" if version is None else f" → {version}"
        words.append(f"{run.engine} {run.engine_version or ''}{arrow}".strip())
    if run.machine is not None:
        words.append(run.machine)
    if layout and run.tensor is not None and run.tensor * (run.pipeline or 1) > 1:
        words.append(" ".join(_ranks(run)))
    words += [word for word, given in (("eager", run.eager), ("MTP", run.speculative == "mtp")) if given]
    words += [] if run.memory_utilization is None else [f"share {run.memory_utilization:g}"]
    words += [] if run.kv_cache_dtype is None else [f"KV {run.kv_cache_dtype}"]
    words += [] if run.batched_tokens is None else [f"batch {run.batched_tokens}"]
    return ", ".join(words)


def _ranks(run: Run) -> Iterator[str]:
    if run.tensor is not None and run.tensor > 1:
        yield f"TP {run.tensor}"
    if (run.pipeline or 1) > 1:
        yield f"PP {run.pipeline}"
    if run.expert:
        yield "EP"


def _workload(measurement: Measurement) -> str:
    """``214 + 200, 1000 at once``: mean input and output tokens, and the requests under way."""
    result = measurement.result
    if result.input_tokens is None:
        return ""
    answer = "" if result.output_tokens is None else f" + {result.output_tokens}"
    return f"{result.input_tokens}{answer}, {result.concurrency or '?'} at once"
