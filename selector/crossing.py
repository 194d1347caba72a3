"""What a reader has to know of a replica on several nodes: how they are joined, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from selector.contract import Limits, Note, Parallel, Severity, Speed
from selector.hardware import HardwareReport
from selector.interconnect import common, kinds_words, reaches, wire_words, words
from selector.nodes import networks, node_names
from selector.placement import Placement
from selector.steps import COLLECTIVES_PER_LAYER, Site, all_reduce_bytes, handed_over_bytes, site

if TYPE_CHECKING:
    from selector.ready import Ready


def crossing(
    one: Ready, report: HardwareReport, placed: Placement, parallel: Parallel, limits: Limits, speed: Speed
) -> Note:
    """The note on the network: its figures, and that they are assumed where nobody told of it."""
    here = site(one.engine, placed.weakest, placed.link, one.loads.kernel, placed.wire)
    many, wire = f"a replica lies on {parallel.nodes} nodes", placed.wire
    if wire is None:
        why = "how they are joined is not known"
        if report.hosts:
            used = {device.node for device in report.accelerators if device.index in placed.indices}
            why = f"no kind of port is known that all of them have ({node_names(report, used)})"
        message = f"{many}, and {why}: {_time(here.network_seconds)} at each handover are assumed, at any rate"
        return Note(severity="performance", code="network.assumed", message=message)
    costs = "; ".join(_costs(one, here, parallel, limits, speed))
    apart = _apart(report, placed, parallel) if wire.assumed else None
    if apart is not None:
        taken = f"taken to reach each other by {words(wire.kind, wire.bytes_per_second)}, since the cluster joins them"
        message = f"{many} with no kind of network in common ({apart}), {taken}: {costs}"
        return Note(severity="performance", code="network.assumed", message=message)
    slow = " and taken as a slow one" if wire.assumed else ""
    message = f"{many} joined by {wire_words(wire)}{slow}: {costs}"
    severity: Severity = "performance" if wire.kind == "ethernet" else "info"
    return Note(severity=severity, code=f"network.{wire.kind}", message=message)


def _apart(report: HardwareReport, placed: Placement, parallel: Parallel) -> str | None:
    """``gpu-a: InfiniBand; gpu-b: Ethernet``: the first replica whose nodes have no kind of port in common."""
    known = reaches(report)
    node = {device.index: device.node for device in report.accelerators}
    for start in range(0, len(placed.indices), parallel.ranks):
        used = {node[index] for index in placed.indices[start : start + parallel.ranks]}
        if len(used) > 1 and common(known[each].wires for each in used) is None:
            return networks(report, {each: kinds_words(known[each].wires) for each in used})
    return None


def _costs(one: Ready, here: Site, parallel: Parallel, limits: Limits, speed: Speed) -> Iterator[str]:
    arch = one.model.architecture
    batch = max(1, round(speed.concurrency / (parallel.data * parallel.pipeline)))
    if parallel.pipeline > 1:
        a_token = handed_over_bytes(arch) / here.network_bytes_per_second
        many = {"one token": 1, f"a batch of {batch:,}": batch, "a chunk of a prompt": limits.batched_tokens}
        told = [f"{_time(here.network_seconds + tokens * a_token)} for {what}" for what, tokens in many.items()]
        yield f"a handover takes {', '.join(told)}"
    if parallel.nodes > parallel.pipeline:  # a group of ranks lies on several of them
        latency = COLLECTIVES_PER_LAYER * arch.num_hidden_layers * here.link_seconds
        taken = latency + batch * all_reduce_bytes(arch, parallel.tensor) / here.link_bytes_per_second
        yield f"all-reduces over it take {_time(latency)} a step for one token, {_time(taken)} for {batch:,}"


def _time(seconds: float) -> str:
    """``0.25 ms``, ``12 ms``, ``1.3 s``."""
    if seconds < 0.0995:
        return f"{seconds * 1e3:.2g} ms"
    return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:,.0f} s"
