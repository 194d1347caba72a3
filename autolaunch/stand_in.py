"""What runs in a plan's place when it is rehearsed: a model, planned on the same devices with the same flags."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from autolaunch import api
from engines.miniature.rehearsal import cut_down, dummy_folder
from selector.asked import PlanRequest
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.engine_facts import EngineFacts
from selector.errors import NoFeasiblePlan, UsageError
from selector.facts import EngineName, ModelFacts
from selector.plan import launch_plan
from selector.request import Pins
from selector.values import Value

Mode = Literal["miniature", "dummy"]

#: Engines that make weights up by themselves.
MAKE_WEIGHTS: tuple[EngineName, ...] = ("vllm", "sglang")
_KEPT_SECONDS = 86_400.0
#: Options that say what is served and as what.
_NAMES = frozenset({"--model", "--model-path", "--hf-repo", "--served-model-name", "--alias"})


class Cast(Value, frozen=True, kw_only=True):
    """What runs in a plan's place: a model, and a plan of it on the same devices with the same flags."""

    model: ModelFacts
    plan: LaunchPlan
    candidate: Candidate
    folder: Path | None = None


def cast(plan: LaunchPlan, chosen: Candidate, catalog: Catalog, *, mode: Mode, home: Path) -> Cast:
    """What is to run in the place of ``chosen``.

    Raises:
        UsageError: nothing can.
        NoFeasiblePlan: not even that fits on these devices.
    """
    model = catalog.model(plan.model)
    if mode == "dummy" and chosen.engine.name not in MAKE_WEIGHTS:
        raise UsageError(
            f"{chosen.engine.name} makes no weights up: only {' and '.join(MAKE_WEIGHTS)} do",
            hint="--rehearse=miniature proves this plan with a small checkpoint",
        )
    if mode == "dummy":
        one = _single(plan, chosen, model, catalog)
        place = home / "rehearsals"
        _sweep(place)
        folder = dummy_folder(model, one.candidate, place / f"{time.time_ns():x}" / plan.model)
        return msgspec.structs.replace(one, folder=folder)
    if model.generated:
        return _single(plan, chosen, model, catalog)
    return _replanned(plan, chosen, cut_down(model, chosen), catalog)


def _sweep(place: Path) -> None:
    """Takes away what rehearsals left that were killed; none of them goes on for a day."""
    for folder in place.iterdir() if place.is_dir() else ():
        with suppress(OSError):  # gone meanwhile
            if time.time() - folder.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _single(plan: LaunchPlan, chosen: Candidate, model: ModelFacts, catalog: Catalog) -> Cast:
    """The plan itself, of its first replica."""
    if chosen.parallel.data == 1:
        return Cast(model=model, plan=plan, candidate=chosen)
    return _replanned(plan, chosen, model, catalog)


def _replanned(plan: LaunchPlan, chosen: Candidate, model: ModelFacts, catalog: Catalog) -> Cast:
    """A plan for another model on the first replica's devices, with everything pinned as ``chosen`` has it."""
    kind = "cpu" if not chosen.parallel.devices else "device"
    pins = _pins(chosen, catalog.engine(chosen.engine.name).on(kind))
    request = PlanRequest(
        model=model.id,
        objective=plan.request.objective,
        context_tokens=min(chosen.limits.context_tokens, model.context_tokens),
        concurrency=chosen.limits.max_sequences,
        pins=pins,
    )
    # Planned as any model: what is generated is otherwise put on one device alone.
    planned = msgspec.structs.replace(model, generated=False)
    decided = launch_plan(planned, plan.hardware, request, catalog, advise=lambda _: ())
    if decided.chosen is None:
        reason = decided.rejected[0].message if decided.rejected else "nothing is known of its devices"
        raise NoFeasiblePlan(f"the rehearsal of {plan.model} does not fit: {reason}")
    decided = api.with_commands(decided, model)
    assert decided.chosen is not None  # noqa: S101 - seen above; tells the type checker
    ran = api.with_command(_laid_out(chosen, decided.chosen, model), model, plan.hardware)
    return Cast(model=model, plan=decided, candidate=ran)


def _laid_out(chosen: Candidate, ran: Candidate, model: ModelFacts) -> Candidate:
    """``ran`` with what of the plan's layout no pin carries: experts in main memory, and the cache's size."""
    arch, limits = model.architecture, chosen.limits
    sparse = arch.num_hidden_layers - arch.first_k_dense_replace
    offloaded = limits.cpu_expert_layers > 0 or limits.gpu_layers is not None
    if offloaded:
        ran = msgspec.structs.replace(
            ran,
            limits=msgspec.structs.replace(
                ran.limits,
                cpu_expert_layers=min(limits.cpu_expert_layers, sparse),
                gpu_layers=None if limits.gpu_layers is None else min(limits.gpu_layers, arch.num_hidden_layers),
            ),
        )
    if not offloaded and ran.memory.kv_cache_tokens <= chosen.memory.kv_cache_tokens:
        return ran
    device = ran.memory.per_device
    share = min(1.0, chosen.memory.kv_cache_tokens / max(1, ran.memory.kv_cache_tokens))
    memory = msgspec.structs.replace(
        ran.memory,
        kv_cache_tokens=min(chosen.memory.kv_cache_tokens, ran.memory.kv_cache_tokens),
        per_device=msgspec.structs.replace(device, kv_cache_bytes=int(device.kv_cache_bytes * share)),
    )
    return msgspec.structs.replace(ran, memory=memory)


def _pins(chosen: Candidate, engine: EngineFacts) -> Pins:
    parallel, limits, can = chosen.parallel, chosen.limits, engine.choices
    return Pins(
        engine=chosen.engine.name,
        engine_version=chosen.engine.version,
        gpus=parallel.devices[: parallel.ranks] or None,
        tensor_parallel=parallel.tensor,
        pipeline_parallel=parallel.pipeline,
        data_parallel=1,
        expert_parallel=parallel.expert if "expert" in engine.parallel else None,
        kv_cache_dtype=limits.kv_cache_dtype if "kv_cache_dtype" in can else None,
        memory_utilization=limits.memory_utilization if "memory_utilization" in can else None,
        max_sequences=limits.max_sequences if "max_sequences" in can else None,
        speculative=limits.speculative if engine.speculative else None,
        eager=limits.eager if "eager" in can else None,
    )


def differing(planned: Candidate, ran: Candidate) -> tuple[str, ...]:
    """Options of two commands that have other values, or that one of them lacks; names and places aside."""
    mine, theirs = _options(planned), _options(ran)
    names = sorted(set(mine) | set(theirs))
    return tuple(name for name in names if name not in _NAMES and mine.get(name) != theirs.get(name))


def _options(candidate: Candidate) -> dict[str, tuple[str, ...]]:
    argv = () if candidate.command is None else candidate.command.argv
    found: dict[str, tuple[str, ...]] = {}
    name = ""
    for token in argv:
        if token.startswith("--"):
            name, _, value = token.partition("=")
            found[name] = (value,) if value else ()
        elif name:
            found[name] = (*found[name], token)
    return found
