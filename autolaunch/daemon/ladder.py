"""The ladder: what to change, one thing at a time, because a configuration failed. Pure.

Of memory that ran out, in this order: the context that the engine itself says fits; fewer sequences at once; a shorter
context; a smaller share of the device's memory; no CUDA graphs; another layout; another engine or checkpoint. A rung
that the user pinned is left out, and one that can give no more. Other faults have the rungs that can help them
(:data:`RUNGS`). At most :data:`MAX_STEPS` steps are taken in all: each costs a load, which takes minutes.

A requested concurrency is an offered load: what does not run at once waits. So sequences are lowered below it, where
the number of sequences itself was not pinned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from autolaunch.daemon.deployment import Changes, Deployment, Fault, Reason, Rung
from autolaunch.pinning import pins_of
from selector.contract import Candidate, LaunchPlan
from selector.facts import checkpoint_id
from selector.hardware import HardwareReport
from selector.memory import MINIMUM_CONTEXT_TOKENS
from selector.plan import shown_pins
from selector.request import WORKLOADS
from selector.search import Facts

MAX_STEPS = 8
#: How often a rung is taken at most, over all steps.
MOST: dict[Rung, int] = {"sequences": 2, "context": 2, "memory utilization": 2}
#: How many layouts of one engine and checkpoint are left before it is.
LAYOUTS = 2
#: One step of memory utilization, and below what none is taken: less than that is another plan, not a margin.
UTILIZATION_STEP, LEAST_UTILIZATION = 0.05, 0.6

_LEAVE: tuple[Rung, ...] = ("layout", "candidate")
#: The rungs that can help a fault, in order. No other fault is helped by a change: it is told, or tried again as it is.
RUNGS: dict[Reason, tuple[Rung, ...]] = {
    "out of memory": ("fitting context", "sequences", "context", "memory utilization", "eager", *_LEAVE),
    # A smaller share would leave the cache less still.
    "kv cache does not fit": ("fitting context", "sequences", "context", "eager", *_LEAVE),
    "out of host memory": ("sequences", "context", *_LEAVE),
    "graph capture": ("eager", *_LEAVE),
    "device error": ("eager", *_LEAVE),
    "missing kernel": _LEAVE,
    "model not supported": ("candidate",),
    "import error": ("candidate",),
    "device lost": ("devices",),
    "no plan": _LEAVE,
}
#: In ``Changes.avoid``: every layout of an engine and checkpoint.
_EVERY = "*"


class _Case(NamedTuple):
    candidate: Candidate
    fault: Fault
    changes: Changes
    deployment: Deployment
    report: HardwareReport
    known: Facts
    plan: LaunchPlan | None
    first: Candidate | None

    def choices(self) -> tuple[str, ...]:
        """The limits that the engine can be told on these devices."""
        kinds = {each.vendor for each in self.report.accelerators if each.index in self.candidate.parallel.devices}
        return self.known.engine(self.candidate.engine.name).on(next(iter(kinds), "cpu")).choices

    def lowered(self, rung: Rung, what: str, *, context_tokens: int | None = None, **limit: float | bool) -> Changes:
        """The very configuration with one limit replaced."""
        pins = pins_of(self.candidate, self.report, self.known)
        return msgspec.structs.replace(
            self.changes,
            pinned=msgspec.structs.replace(pins, **limit),
            context_tokens=context_tokens or self.candidate.limits.context_tokens,
            **self._said(rung, what),
        )

    def freed(self, rung: Rung, what: str, **change: tuple[str, ...]) -> Changes:
        """The planner left free again, but for what is left out."""
        return msgspec.structs.replace(
            self.changes, pinned=None, context_tokens=None, **change, **self._said(rung, what)
        )

    def _said(self, rung: Rung, what: str) -> dict[str, tuple[str, ...]]:
        sentence = f"{self.fault.reason}: {what}"
        return {"steps": (*self.changes.steps, sentence), "rungs": (*self.changes.rungs, rung)}


def next_changes(
    candidate: Candidate,
    fault: Fault,
    changes: Changes,
    deployment: Deployment,
    *,
    report: HardwareReport,
    known: Facts,
    plan: LaunchPlan | None = None,
    first: Candidate | None = None,
    repeated: bool = False,
) -> Changes | None:
    """What to change in one step because ``candidate`` failed of ``fault``; ``None`` when nothing may be.

    Args:
        candidate: what ran, or was to run, under ``changes``.
        report: the machine that it was planned on, with every device's index.
        known: the catalogue: what limits an engine can be told.
        plan: the ranking of the whole search (``keep_all``), where there is one: a layout or an engine is only left
            when another is in it. A plan of ``changes.pinned`` holds nothing else, and is not asked.
        first: the candidate before any change: no lower quality of weights is taken than its (:func:`choose`).
        repeated: the same fault had ended the same configuration before. An error of a device is let pass once.
    """
    if len(changes.steps) >= MAX_STEPS:
        return None
    if fault.reason == "device error" and not repeated:
        return None
    if fault.reason == "no plan" and changes.pinned is None:
        return None  # the planner was free, and found nothing
    if plan is not None and changes.pinned is not None and plan.request.pinned == shown_pins(changes.pinned):
        plan = None
    case = _Case(candidate, fault, changes, deployment, report, known, plan, first)
    for rung in RUNGS.get(fault.reason, ()):
        if changes.rungs.count(rung) < MOST.get(rung, MAX_STEPS):
            changed = _STEPS[rung](case)
            if changed is not None:
                return changed
    return None


# --- limits ------------------------------------------------------------------------------------------


def _fitting(case: _Case) -> Changes | None:
    """The engine has measured: its number, and no guess of ours."""
    fits, now = case.fault.fitting_context_tokens, case.candidate.limits.context_tokens
    if fits is None or case.deployment.context_tokens is not None or not least_context(case.deployment) <= fits < now:
        return None
    what = f"context lowered from {now:,} to {fits:,} tokens, which the engine says fit"
    return case.lowered("fitting context", what, context_tokens=fits)


def _sequences(case: _Case) -> Changes | None:
    now = case.candidate.limits.max_sequences
    free = case.deployment.pinned.max_sequences is None and "max_sequences" in case.choices()
    if not free or now <= 1 or not _caches_where_it_ran_out(case):
        return None
    fewer = now // 2
    return case.lowered("sequences", f"sequences at once lowered from {now} to {fewer}", max_sequences=fewer)


def _context(case: _Case) -> Changes | None:
    now = case.candidate.limits.context_tokens
    shorter = now // 2
    if (
        case.deployment.context_tokens is not None
        or shorter < least_context(case.deployment)
        or not _caches_where_it_ran_out(case)
    ):
        return None
    return case.lowered("context", f"context lowered from {now:,} to {shorter:,} tokens", context_tokens=shorter)


def _utilization(case: _Case) -> Changes | None:
    """What is outside of the share grows (activations, graphs), as long as the cache still holds one whole context."""
    limits, memory = case.candidate.limits, case.candidate.memory
    less = round(limits.memory_utilization - UTILIZATION_STEP, 3)
    free = case.deployment.pinned.memory_utilization is None and "memory_utilization" in case.choices()
    if not free or less < LEAST_UTILIZATION:
        return None
    cache = memory.per_device.kv_cache_bytes
    left = max(0.0, cache - UTILIZATION_STEP * memory.per_device.total_bytes)
    if memory.kv_cache_tokens * left < limits.context_tokens * cache:
        return None
    what = f"memory utilization lowered from {limits.memory_utilization:g} to {less:g}"
    return case.lowered("memory utilization", what, memory_utilization=less)


def _eager(case: _Case) -> Changes | None:
    if case.deployment.pinned.eager is not None or case.candidate.limits.eager or "eager" not in case.choices():
        return None
    return case.lowered("eager", "started without CUDA graphs (eager)", eager=True)


def _caches_where_it_ran_out(case: _Case) -> bool:
    """Whether a smaller cache frees the memory that ran out: of the host's, only what is kept there."""
    limits = case.candidate.limits
    on_host = not case.candidate.parallel.devices or limits.gpu_layers is not None or limits.cpu_expert_layers > 0
    return case.fault.reason != "out of host memory" or on_host


def least_context(deployment: Deployment) -> int:
    """Tokens below which no context is lowered unasked: a mean request that was asked for, and what serves anybody."""
    named = WORKLOADS[deployment.workload or "chat"]
    inputs, outputs = deployment.input_tokens, deployment.output_tokens
    if deployment.workload is None and inputs is None and outputs is None:
        return MINIMUM_CONTEXT_TOKENS
    asked = (inputs or named.input_tokens) + (outputs or named.output_tokens)
    return max(asked, MINIMUM_CONTEXT_TOKENS)


# --- another configuration ---------------------------------------------------------------------------


def engine_of(candidate: Candidate) -> str:
    """The engine and the checkpoint of a candidate: ``vllm 0.33.0 zai-org/GLM-4.6-FP8 FP8``."""
    engine, checkpoint = candidate.engine, candidate.checkpoint
    weights = checkpoint_id(checkpoint.repo, checkpoint.file_prefix)
    return f"{engine.name} {engine.version} {weights} {checkpoint.quantization}"


def layout_of(candidate: Candidate) -> str:
    """A configuration without its limits and devices: ``vllm 0.33.0 zai-org/GLM-4.6-FP8 FP8 TP8 PP1 DP1``."""
    parallel, limits = candidate.parallel, candidate.limits
    parts = [f"TP{parallel.tensor}", f"PP{parallel.pipeline}", f"DP{parallel.data}"]
    parts += ["EP"] if parallel.expert else []
    parts += [] if parallel.devices else ["CPU"]
    parts += [f"layers{limits.gpu_layers}"] if limits.gpu_layers is not None else []
    parts += [f"experts{limits.cpu_expert_layers}"] if limits.cpu_expert_layers else []
    parts += ["MTP"] if limits.speculative == "mtp" else []
    return f"{engine_of(candidate)} {' '.join(parts)}"


def avoided(candidate: Candidate, avoid: tuple[str, ...]) -> bool:
    """Whether a candidate is one of those that are not taken again."""
    return layout_of(candidate) in avoid or f"{engine_of(candidate)} {_EVERY}" in avoid


def choose(plan: LaunchPlan, changes: Changes, deployment: Deployment, first: Candidate | None) -> Candidate | None:
    """The candidate of a ranking to take: the best that is not avoided; of the engine and checkpoint left last, if any.

    Never weights of a lower quality than those of ``first``, unless the deployment allows it; never other weights than
    its, where the user gave their place. ``first`` is what the planner chose before any change; ``None``: this is it.
    """
    ranking = () if plan.chosen is None else (plan.chosen, *plan.alternatives)
    allowed = [
        each
        for each in ranking
        if not avoided(each, changes.avoid) and (first is None or _serves(each, first, deployment))
    ]
    failed = changes.avoid[-1] if changes.avoid else ""
    near = [each for each in allowed if failed.startswith(f"{engine_of(each)} ")]
    return next(iter(near or allowed), None)


def _serves(each: Candidate, first: Candidate, deployment: Deployment) -> bool:
    same = (each.checkpoint.repo, each.checkpoint.quantization, each.checkpoint.file_prefix) == (
        first.checkpoint.repo,
        first.checkpoint.quantization,
        first.checkpoint.file_prefix,
    )
    if same or deployment.model_path is not None:
        return same
    # The term is 0 for all the lowest, which it does not tell apart.
    quality = each.score_terms.quality
    return deployment.lower_accuracy or (quality >= first.score_terms.quality and quality > 0)


def _layout(case: _Case) -> Changes | None:
    """The same engine and weights, laid out otherwise; not for ever, where there are many layouts."""
    candidate, rungs = case.candidate, case.changes.rungs
    since = max((place for place, rung in enumerate(rungs) if rung == "candidate"), default=-1) + 1
    if rungs[since:].count("layout") >= LAYOUTS or not candidate.parallel.devices:
        return None
    avoid = (*case.changes.avoid, layout_of(candidate))
    changed = case.freed("layout", f"{layout_of(candidate)} is left out, for another layout", avoid=avoid)
    if case.plan is None:
        return None if case.deployment.pinned.tensor_parallel is not None else changed
    found = choose(case.plan, changed, case.deployment, case.first)
    return None if found is None or engine_of(found) != engine_of(candidate) else changed


def _candidate(case: _Case) -> Changes | None:
    pins, engine = case.deployment.pinned, engine_of(case.candidate)
    avoid = (*case.changes.avoid, f"{engine} {_EVERY}")
    changed = case.freed("candidate", f"{engine} is left out, for another engine or checkpoint", avoid=avoid)
    if case.plan is None:
        one_engine = pins.engine is not None or case.deployment.engine_path is not None
        one_checkpoint = case.deployment.model_path is not None or (pins.repo or pins.quantization) is not None
        return None if one_engine and one_checkpoint else changed
    return changed if choose(case.plan, changed, case.deployment, case.first) is not None else None


def _devices(case: _Case) -> Changes | None:
    """The devices that are lost are left out. Pinned devices are the user's, and so is their number."""
    before = case.changes.without_devices
    lost = tuple(uuid for uuid in dict.fromkeys(case.fault.devices) if uuid not in before)
    if not lost:
        return None
    index = {each.uuid: each.index for each in case.report.accelerators}
    pins = case.deployment.pinned
    left = sum(each.uuid not in (*before, *lost) for each in case.report.accelerators)
    if any(index.get(uuid) in (pins.gpus or ()) for uuid in lost) or left < (pins.gpu_count or 0):
        return None
    names = ", ".join(f"device {index[uuid]} ({uuid})" if uuid in index else uuid for uuid in lost)
    return case.freed("devices", f"{names} is left out", without_devices=(*before, *lost))


_STEPS: dict[Rung, Callable[[_Case], Changes | None]] = {
    "fitting context": _fitting,
    "sequences": _sequences,
    "context": _context,
    "memory utilization": _utilization,
    "eager": _eager,
    "layout": _layout,
    "candidate": _candidate,
    "devices": _devices,
}
