"""The ladder, rung by rung: what is changed because of what, and what never is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from autolaunch.daemon.deployment import Changes, Deployment, Fault, Reason
from autolaunch.daemon.ladder import MAX_STEPS, RUNGS, avoided, choose, engine_of, layout_of, next_changes
from autolaunch.daemon.planning import plan_for
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.hardware import HardwareReport
from selector.machines import report_from_spec
from selector.request import Pins

CATALOG = Catalog()
MACHINE = report_from_spec("8xh100", CATALOG)
OOM: Reason = "out of memory"


def deployment(**wishes: Any) -> Deployment:
    return Deployment(name="a", **({"model": "glm-4.6"} | wishes))


def planned(
    wanted: Deployment, changes: Changes | None = None, report: HardwareReport = MACHINE
) -> tuple[LaunchPlan, Candidate]:
    changes = changes or Changes()
    plan = plan_for(wanted, report, changes, known=CATALOG)
    chosen = choose(plan, changes, wanted, None)
    assert chosen is not None, plan.explain()
    return plan, chosen


def failed(reason: Reason, **told: Any) -> Fault:
    return Fault(reason=reason, permanent=True, message="it failed", **told)


def step(
    wanted: Deployment, fault: Fault, changes: Changes | None = None, report: HardwareReport = MACHINE, **more: Any
) -> Changes | None:
    changes = changes or Changes()
    _, chosen = planned(wanted, changes, report)
    return next_changes(chosen, fault, changes, wanted, report=report, known=CATALOG, **more)


def taken(wanted: Deployment, fault: Fault, report: HardwareReport = MACHINE) -> tuple[str, ...]:
    """The rungs that are taken when the same fault comes again and again."""
    changes, first = Changes(), planned(wanted, report=report)[1]
    while (chosen := choose(plan_for(wanted, report, changes, known=CATALOG), changes, wanted, first)) is not None:
        more = next_changes(chosen, fault, changes, wanted, report=report, known=CATALOG)
        if more is None:
            break
        changes = more
    return changes.rungs


def test_the_engines_own_number_comes_first_and_is_taken_as_it_is() -> None:
    changes = step(deployment(), failed("kv cache does not fit", fitting_context_tokens=54_321))
    assert changes is not None
    assert changes.context_tokens == 54_321
    assert changes.steps == (
        "kv cache does not fit: context lowered from 202,752 to 54,321 tokens, which the engine says fit",
    )
    assert planned(deployment(), changes)[1].limits.context_tokens == 54_321


@pytest.mark.parametrize("fits", [0, 512, 202_752, 10**9])
def test_a_number_that_would_serve_nobody_or_is_no_less_is_not_taken(fits: int) -> None:
    changes = step(deployment(), failed("kv cache does not fit", fitting_context_tokens=fits))
    assert changes is not None
    assert changes.rungs == ("sequences",)


def test_a_context_that_was_asked_for_is_never_lowered() -> None:
    wanted = deployment(context_tokens=100_000)
    fault = failed("kv cache does not fit", fitting_context_tokens=54_321)
    assert not {"context", "fitting context"} & set(taken(wanted, fault))


def test_sequences_are_halved_also_below_a_concurrency_that_was_asked_for() -> None:
    """It is a load that is offered: what does not run at once waits."""
    wanted = deployment(concurrency=64)
    _, chosen = planned(wanted)
    assert chosen.limits.max_sequences == 64
    changes = step(wanted, failed(OOM))
    assert changes is not None
    after = planned(wanted, changes)[1]
    assert after.limits.max_sequences == 32
    assert msgspec.structs.replace(after.limits, max_sequences=64) == chosen.limits


def test_the_order_of_memory_is_sequences_context_utilization_graphs_layout() -> None:
    assert taken(deployment(), failed(OOM)) == (
        *("sequences", "sequences", "context", "context"),
        *("memory utilization", "memory utilization", "eager", "layout"),
    )


def test_a_smaller_share_is_never_taken_when_the_cache_does_not_fit() -> None:
    assert "memory utilization" not in taken(deployment(), failed("kv cache does not fit"))


def test_the_share_is_not_lowered_below_what_one_context_needs() -> None:
    """Of a plan that is tight as it is."""
    wanted = deployment(context_tokens=32_768, pinned=Pins(max_sequences=1, quantization="FP8"))
    _, chosen = planned(wanted)
    device = chosen.memory.per_device
    full = msgspec.structs.replace(
        chosen,
        memory=msgspec.structs.replace(
            chosen.memory,
            kv_cache_tokens=40_000,
            per_device=msgspec.structs.replace(device, kv_cache_bytes=device.total_bytes // 15),
        ),
    )
    changes = next_changes(full, failed(OOM), Changes(), wanted, report=MACHINE, known=CATALOG)
    assert changes is not None
    assert changes.rungs == ("eager",)


def test_what_was_pinned_is_left_out() -> None:
    pins = Pins(
        max_sequences=16,
        memory_utilization=0.8,
        eager=False,
        tensor_parallel=8,
        engine="vllm",
        repo="zai-org/GLM-4.6-FP8",
    )
    assert taken(deployment(pinned=pins, context_tokens=8192), failed(OOM)) == ()


def test_engines_are_told_no_limit_that_they_do_not_have() -> None:
    """llama.cpp takes neither a share of the memory nor a word on CUDA graphs."""
    machine = report_from_spec("8xh100+1000gb", CATALOG)
    wanted = deployment(pinned=Pins(engine="llamacpp"))
    assert not {"memory utilization", "eager"} & set(taken(wanted, failed(OOM), machine))


def test_main_memory_that_ran_out_is_no_matter_of_a_cache_on_devices() -> None:
    assert taken(deployment(), failed("out of host memory"))[0] == "layout"
    on_host = taken(deployment(model="glm-tiny"), failed("out of host memory"), report_from_spec("cpu-64gb", CATALOG))
    assert on_host[0] == "sequences"


def test_a_capture_that_failed_is_started_without_graphs_and_then_laid_out_otherwise() -> None:
    assert taken(deployment(), failed("graph capture"))[:3] == ("eager", "layout", "eager")


def test_an_error_of_a_device_is_let_pass_once() -> None:
    assert step(deployment(), failed("device error")) is None
    changes = step(deployment(), failed("device error"), repeated=True)
    assert changes is not None
    assert changes.rungs == ("eager",)


@pytest.mark.parametrize("reason", ["model not supported", "import error"])
def test_an_engine_that_cannot_is_left_with_all_its_layouts(reason: Reason) -> None:
    wanted = deployment()
    plan, chosen = planned(wanted)
    changes = next_changes(chosen, failed(reason), Changes(), wanted, report=MACHINE, known=CATALOG, plan=plan)
    assert changes is not None
    assert changes.avoid == (f"{engine_of(chosen)} *",)
    other = choose(plan_for(wanted, MACHINE, changes, known=CATALOG), changes, wanted, chosen)
    assert other is not None
    assert engine_of(other) != engine_of(chosen)
    assert other.score_terms.quality >= chosen.score_terms.quality


def test_a_missing_kernel_is_looked_for_in_another_layout_of_the_same_engine_first() -> None:
    wanted = deployment()
    plan, chosen = planned(wanted)
    changes = step(wanted, failed("missing kernel"))
    assert changes is not None
    assert changes.avoid == (layout_of(chosen),)
    assert (changes.pinned, changes.context_tokens) == (None, None)
    other = choose(plan_for(wanted, MACHINE, changes, known=CATALOG), changes, wanted, chosen)
    assert other is not None
    assert engine_of(other) == engine_of(chosen)
    assert layout_of(other) != layout_of(chosen)
    assert plan.chosen == chosen


def test_a_layout_is_only_left_where_the_ranking_has_another() -> None:
    wanted = deployment(pinned=Pins(tensor_parallel=8, pipeline_parallel=1, engine="vllm", repo="zai-org/GLM-4.6-FP8"))
    plan, chosen = planned(wanted)
    alone = msgspec.structs.replace(plan, alternatives=())
    fault = failed("missing kernel")
    assert next_changes(chosen, fault, Changes(), wanted, report=MACHINE, known=CATALOG, plan=alone) is None


def test_a_lower_quality_is_only_taken_where_it_was_allowed() -> None:
    wanted = deployment()
    plan, chosen = planned(wanted, Changes(avoid=("nothing",)))
    lower = next(each for each in plan.alternatives if each.score_terms.quality < chosen.score_terms.quality)
    only = msgspec.structs.replace(plan, chosen=lower, alternatives=())
    assert choose(only, Changes(), wanted, chosen) is None
    assert choose(only, Changes(), deployment(lower_accuracy=True), chosen) == lower


def test_weights_whose_place_was_given_are_not_exchanged() -> None:
    wanted = deployment(model_path="/models/GLM-4.6-FP8", lower_accuracy=True)
    plan, chosen = planned(wanted, Changes(avoid=("nothing",)))
    changes = Changes(avoid=(f"{engine_of(chosen)} *",))
    other = choose(plan, changes, wanted, chosen)
    assert other is not None
    assert other.checkpoint == chosen.checkpoint
    assert other.engine.name != chosen.engine.name
    assert avoided(chosen, changes.avoid)


def with_uuids(report: HardwareReport) -> HardwareReport:
    return msgspec.structs.replace(
        report,
        accelerators=tuple(msgspec.structs.replace(each, uuid=f"GPU-{each.index}") for each in report.accelerators),
    )


def test_a_lost_device_is_left_out_and_the_limits_are_free_again() -> None:
    report, wanted = with_uuids(MACHINE), deployment()
    before = step(wanted, failed(OOM), report=report)
    assert before is not None
    changes = step(wanted, failed("device lost", devices=("GPU-3",)), before, report=report)
    assert changes is not None
    assert changes.without_devices == ("GPU-3",)
    assert (changes.pinned, changes.context_tokens) == (None, None)
    assert changes.steps[-1] == "device lost: device 3 (GPU-3) is left out"
    left = planned(wanted, changes, report)[1].parallel
    assert 3 not in left.devices
    assert left.ranks == len(left.devices) <= 7
    assert step(wanted, failed("device lost", devices=("GPU-3",)), changes, report=report) is None


def test_devices_that_the_user_named_are_not_left_out_and_unknown_ones_cannot_be() -> None:
    report = with_uuids(MACHINE)
    lost = failed("device lost", devices=("GPU-3",))
    assert step(deployment(pinned=Pins(gpus=(0, 1, 2, 3, 4, 5, 6, 7))), lost, report=report) is None
    assert step(deployment(pinned=Pins(gpu_count=8)), lost, report=report) is None
    assert step(deployment(), failed("device lost"), report=report) is None


def test_a_configuration_that_was_changed_and_fits_no_more_is_left() -> None:
    wanted = deployment()
    changes = step(wanted, failed(OOM))
    assert changes is not None
    left = step(wanted, failed("no plan"), changes)
    assert left is not None
    assert left.rungs == ("sequences", "layout")
    assert step(wanted, failed("no plan")) is None


@pytest.mark.parametrize(
    "reason", ["bad argument", "bad weights", "driver", "disk full", "port in use", "download", "options", "stalled"]
)
def test_other_faults_are_helped_by_no_change(reason: Reason) -> None:
    assert reason not in RUNGS
    assert step(deployment(), failed(reason)) is None


def test_no_more_steps_are_taken_than_are_allowed() -> None:
    full = Changes(steps=("one",) * MAX_STEPS)
    assert step(deployment(), failed(OOM), full) is None


def test_while_serving_it_is_sequences_then_context_then_the_share() -> None:
    wanted = deployment()
    assert taken(wanted, failed(OOM, serving=True))[:6] == taken(wanted, failed(OOM))[:6]
