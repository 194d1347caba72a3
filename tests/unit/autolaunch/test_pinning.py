"""A whole configuration as pins gives that configuration back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from autolaunch import api
from autolaunch.pinning import pins_of
from selector.catalog import Catalog
from selector.contract import Candidate
from selector.hardware import HardwareReport
from selector.machines import report_from_spec
from selector.request import Pins

RECORDED = sorted((Path(__file__).parents[2] / "data" / "machines").glob("*.json"))
NAMED = ("4090+192gb", "8xa100+512gb", "2x8xh100", "cpu-256gb")
MODELS = ("glm-4.6", "glm-4.5v", "glm-4.5-air", "glm-tiny")


def again(model: str, report: HardwareReport, each: Candidate, known: Catalog) -> Candidate | None:
    context_tokens = each.limits.context_tokens
    pins = pins_of(each, report, known)
    return api.plan(model, hardware=report, known=known, pins=pins, context_tokens=context_tokens).chosen


def shape(each: Candidate | None) -> tuple[object, ...]:
    return () if each is None else (each.checkpoint, each.engine, each.parallel, each.limits)


@pytest.mark.parametrize("machine", [*map(str, RECORDED), *NAMED], ids=lambda path: Path(path).stem)
def test_a_plan_of_all_the_pins_is_that_very_configuration(catalog: Catalog, machine: str) -> None:
    report = api.hardware_report(machine, catalog)
    tried = 0
    for model in MODELS:
        plan = api.plan(model, hardware=report, known=catalog)
        for each in () if plan.chosen is None else (plan.chosen, *plan.alternatives):
            assert shape(again(model, report, each, catalog)) == shape(each)
            tried += 1
    assert tried


def test_experts_in_main_memory_follow_from_the_rest(catalog: Catalog) -> None:
    report = report_from_spec("4090+192gb", catalog)
    plan = api.plan("glm-4.6", hardware=report, known=catalog, pins=Pins(engine="llamacpp"), keep_all=True)
    assert plan.chosen is not None
    assert plan.chosen.limits.cpu_expert_layers > 0
    assert shape(again("glm-4.6", report, plan.chosen, catalog)) == shape(plan.chosen)


def test_the_processor_of_a_machine_with_devices_is_pinned_by_none_of_them(catalog: Catalog) -> None:
    report = report_from_spec("4090+192gb", catalog)
    plan = api.plan("glm-tiny", hardware=report, known=catalog, keep_all=True)
    assert plan.chosen is not None
    assert plan.chosen.parallel.devices == ()
    pins = pins_of(plan.chosen, report, catalog)
    assert pins.gpus == ()
    assert shape(again("glm-tiny", report, plan.chosen, catalog)) == shape(plan.chosen)


def test_limits_that_were_lowered_are_kept(catalog: Catalog) -> None:
    report = report_from_spec("8xh100", catalog)
    plan = api.plan("glm-4.6", hardware=report, known=catalog)
    assert plan.chosen is not None
    smaller = msgspec.structs.replace(plan.chosen.limits, max_sequences=16, context_tokens=65_536)
    lowered = again("glm-4.6", report, msgspec.structs.replace(plan.chosen, limits=smaller), catalog)
    assert lowered is not None
    assert (lowered.limits.max_sequences, lowered.limits.context_tokens) == (16, 65_536)


@pytest.mark.parametrize(("engine", "missing"), [("llamacpp", "memory_utilization"), ("transformers", "max_sequences")])
def test_what_an_engine_cannot_be_told_is_not_pinned(catalog: Catalog, engine: str, missing: str) -> None:
    report = report_from_spec("cpu-64gb", catalog)
    pins = Pins(engine=engine)  # type: ignore[arg-type]  # one of the names
    plan = api.plan("glm-tiny", hardware=report, known=catalog, pins=pins)
    assert plan.chosen is not None
    assert getattr(pins_of(plan.chosen, report, catalog), missing) is None
    assert pins_of(plan.chosen, report).gpus is None
