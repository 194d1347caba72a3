"""A benchmark of a deployment of this host: what was foretold of it, and the figures kept for the next plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from autolaunch.measured import comparisons
from selector.contract import Candidate, LaunchPlan
from selector.errors import AutolaunchError
from selector.measured import configuration_of
from selector.request import Pins

if TYPE_CHECKING:
    from autolaunch.bench.load import Load
    from autolaunch.bench.run import Bench
    from selector.catalog import Catalog


def foretold(plan: LaunchPlan, load: Load) -> Candidate | None:
    """What runs, estimated anew for this load; ``None`` where that very configuration is not planned so again.

    The estimate is the model's own: what was measured here before does not count in it, or a benchmark would be held
    against the benchmark before.
    """
    from autolaunch import api

    chosen = plan.chosen
    if chosen is None:
        return None
    asked = plan.request
    if (asked.input_tokens, asked.output_tokens) == (load.input_tokens, load.output_tokens) and (
        chosen.speed.concurrency == load.concurrency
    ):
        return chosen
    known = api.catalog()
    try:
        again = api.plan(
            plan.model,
            hardware=plan.hardware,
            objective=asked.objective,
            context_tokens=chosen.limits.context_tokens,
            concurrency=load.concurrency,
            input_tokens=load.input_tokens,
            output_tokens=load.output_tokens,
            pins=pins_of(plan, chosen, known),
            known=known,
            learned=False,
        ).chosen
    except AutolaunchError:
        return None
    same = again is not None and configuration_of(again) == configuration_of(chosen)
    return again if same else None


def pins_of(plan: LaunchPlan, chosen: Candidate, known: Catalog) -> Pins:
    """Everything of a candidate that can be pinned; of the rest an engine can be told only some."""
    engine, parallel, limits = chosen.engine, chosen.parallel, chosen.limits
    facts = known.engine(engine.name).on("gpu" if parallel.devices else "cpu")
    told = facts.choices
    speculative = limits.speculative if facts.speculative else None
    return Pins(
        engine=engine.name,
        engine_version=engine.version,
        repo=chosen.checkpoint.repo,
        format=chosen.checkpoint.format,
        quantization=chosen.checkpoint.quantization,
        gpus=parallel.devices if plan.hardware.accelerators else None,
        tensor_parallel=parallel.tensor,
        pipeline_parallel=parallel.pipeline,
        data_parallel=parallel.data,
        expert_parallel=parallel.expert or None,
        kv_cache_dtype=limits.kv_cache_dtype if "kv_cache_dtype" in told else None,
        memory_utilization=limits.memory_utilization if "memory_utilization" in told else None,
        max_sequences=limits.max_sequences if "max_sequences" in told else None,
        speculative="mtp" if speculative == "mtp" else None,
        eager=limits.eager if "eager" in told else None,
    )


def beside(found: Bench, deployment: str, plan: LaunchPlan, load: Load) -> Bench:
    """``found`` with what was foretold of the deployment."""
    chosen = plan.chosen
    candidate = foretold(plan, load)
    return msgspec.structs.replace(
        found,
        deployment=deployment,
        engine=None if chosen is None else f"{chosen.engine.name} {chosen.engine.version}",
        checkpoint=None if chosen is None else f"{chosen.checkpoint.repo} ({chosen.checkpoint.quantization})",
        figures=() if candidate is None else comparisons(candidate, found.measured),
    )


def keep(found: Bench, plan: LaunchPlan) -> Bench:
    """Keeps the figures for the next plans of this host; ``found`` says whether that could be done."""
    from autolaunch import api
    from autolaunch.daemon.store import Store, where_of

    if plan.chosen is None:
        return msgspec.structs.replace(found, why_not="nobody knows what it runs as")
    if found.together.errors or found.alone.errors:
        return msgspec.structs.replace(found, why_not="some of its requests failed")
    store = Store(api.learned_path())
    trouble = store.measured(where_of(plan.chosen, plan.hardware), plan.chosen, found.measured)
    return msgspec.structs.replace(found, kept=trouble is None, why_not=trouble)
