"""The search: pins narrow it, nothing is lowered silently, every refusal keeps its reason."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from autolaunch import api
from selector.catalog import Catalog
from selector.contract import LaunchPlan
from selector.devices import GIB
from selector.errors import UnknownModel, UsageError
from selector.hardware import DeviceProcess, HardwareReport, Host
from selector.machines import report_from_spec
from selector.plan import shown_pins
from selector.request import OBJECTIVES, Objective, Pins
from selector.search import LOWEST_QUALITY_UNASKED
from tests.pinned import held


def plan_on(catalog: Catalog, model: str, machine: HardwareReport | str, pins: Pins | None = None) -> LaunchPlan:
    return api.plan(model, hardware=machine, known=catalog, pins=pins, keep_all=True)


def busy(report: HardwareReport, index: int, free_bytes: int) -> HardwareReport:
    """The report with one device filled by another process."""
    return msgspec.structs.replace(
        report,
        accelerators=tuple(
            msgspec.structs.replace(
                each,
                memory_free_bytes=free_bytes,
                processes=(DeviceProcess(pid=4711, name="trainer", used_bytes=60 * GIB),),
            )
            if each.index == index
            else each
            for each in report.accelerators
        ),
    )


PINS = [
    Pins(engine="vllm"),
    Pins(quantization="int4"),
    Pins(format="fp8"),
    Pins(repo="QuantTrio/GLM-4.6-AWQ"),
    Pins(tensor_parallel=4),
    Pins(pipeline_parallel=2),
    Pins(data_parallel=2),
    Pins(expert_parallel=True),
    Pins(kv_cache_dtype="fp8"),
    Pins(memory_utilization=0.85),
    Pins(max_sequences=7),
    Pins(eager=True),
    Pins(gpu_count=4),
    Pins(gpus=(4, 5, 6, 7)),
    Pins(speculative="mtp"),
    Pins(engine_version="0.30.0", engine="vllm"),
    Pins(hub="modelscope"),
]


@pytest.mark.parametrize("pins", PINS, ids=lambda pins: next(iter(shown_pins(pins))))
def test_a_pin_holds_in_every_candidate(catalog: Catalog, pins: Pins) -> None:
    plan = plan_on(catalog, "glm-4.6", "8xh200", pins)
    assert plan.chosen is not None, plan.explain()
    for each in (plan.chosen, *plan.alternatives):
        for name, value in shown_pins(pins).items():
            if name == "gpu_count":
                assert len(each.parallel.devices) <= pins.gpu_count  # type: ignore[operator]  # it is an int here
            elif name == "gpus":
                assert set(each.parallel.devices) <= set(pins.gpus or ())
            else:
                assert held(each)[name] == value


def test_everything_pinned_is_the_estimate_of_that_very_configuration(catalog: Catalog) -> None:
    pins = Pins(
        engine="vllm",
        repo="zai-org/GLM-4.6-FP8",
        tensor_parallel=8,
        pipeline_parallel=1,
        data_parallel=1,
        expert_parallel=True,
        kv_cache_dtype="fp8",
        memory_utilization=0.9,
        max_sequences=64,
        speculative="off",
        eager=False,
    )
    plan = plan_on(catalog, "glm-4.6", "8xh100", pins)
    assert plan.chosen is not None
    assert plan.alternatives == ()
    assert plan.chosen.command is not None
    argv = " ".join(plan.chosen.command.argv)
    for part in (
        "--enable-expert-parallel",
        "--kv-cache-dtype fp8",
        "--gpu-memory-utilization 0.9",
        "--max-num-seqs 64",
    ):
        assert part in argv


def test_a_pinned_configuration_that_cannot_be_is_refused_with_its_reason(catalog: Catalog) -> None:
    plan = plan_on(catalog, "glm-4.6", "4xh100", Pins(quantization="FP8", tensor_parallel=4, engine="vllm"))
    assert plan.chosen is None
    mine = [each for each in plan.rejected if each.quantization == "FP8"]
    assert [each.code for each in mine] == ["memory.weights"]
    assert mine[0].parallel is not None
    assert mine[0].parallel.tensor == 4


def test_nothing_below_the_floor_of_quality_is_chosen_unasked(catalog: Catalog) -> None:
    quality = {each.quantization: each.quality for each in catalog.model("glm-4.6").checkpoints}
    plan = plan_on(catalog, "glm-4.6", "5xrtx4090")
    assert not plan.feasible
    floor = [each for each in plan.rejected if each.code == "quality.floor"]
    assert {each.quantization for each in floor} == {
        name for name, value in quality.items() if value < LOWEST_QUALITY_UNASKED
    }
    asked = plan_on(catalog, "glm-4.6", "5xrtx4090", Pins(quantization="UD-IQ1_M"))
    assert asked.chosen is not None
    assert any(note.code == "accuracy" for note in asked.chosen.notes)


def test_a_lower_quality_that_would_fit_is_advised_with_its_command(catalog: Catalog) -> None:
    plan = plan_on(catalog, "glm-4.6", "5xrtx4090")
    commands = [each.command for each in plan.advice if each.kind == "engine"]
    assert commands == ["autolaunch plan glm-4.6 --hardware 5xrtx4090 --quantization UD-IQ1_M"]


def test_a_context_beyond_the_model_is_refused(catalog: Catalog) -> None:
    plan = api.plan("glm-4.5v", hardware="8xh200", known=catalog, context_tokens=131_072)
    assert not plan.feasible
    assert {each.code for each in plan.rejected} == {"context.beyond_model"}


def test_a_concurrency_that_cannot_be_held_waits_and_is_told(catalog: Catalog) -> None:
    held = api.plan("glm-4.5v", hardware="1xh100", known=catalog, concurrency=16)
    assert held.chosen is not None
    assert held.chosen.limits.max_sequences == 16
    assert not any(note.code == "queue" for note in held.chosen.notes)
    waiting = api.plan("glm-4.5v", hardware="1xh100", known=catalog, concurrency=4096)
    assert waiting.chosen is not None
    assert waiting.chosen.limits.max_sequences < 4096
    assert waiting.chosen.speed.concurrency < 4096
    assert any(note.code == "queue" and note.severity == "performance" for note in waiting.chosen.notes)


def test_a_busy_gpu_is_left_out_when_fewer_will_do(catalog: Catalog) -> None:
    report = busy(report_from_spec("8xh100", catalog), 2, 10 * GIB)
    plan = plan_on(catalog, "glm-4.5v", report)
    assert plan.chosen is not None
    assert 2 not in plan.chosen.parallel.devices


def test_a_busy_gpu_that_is_needed_is_named_with_its_process(catalog: Catalog) -> None:
    """Five H100 hold FP8 in stages; four of them do not."""
    report = busy(report_from_spec("5xh100", catalog), 2, 10 * GIB)
    plan = plan_on(catalog, "glm-4.6", report, Pins(quantization="FP8"))
    assert not plan.feasible
    free = [each.message for each in plan.advice if each.kind == "free_gpu"]
    assert len(free) == 1
    assert "trainer (4711)" in free[0]


def test_a_mac_that_is_short_is_told_the_exact_sysctl(catalog: Catalog) -> None:
    plan = plan_on(catalog, "glm-4.6", "m2-ultra-192gb")
    assert not plan.feasible
    commands = [each.command for each in plan.advice if each.kind == "sysctl"]
    assert commands == ["sudo sysctl iogpu.wired_limit_mb=188416"]


def test_an_unknown_memory_is_a_refusal_that_names_the_device(catalog: Catalog) -> None:
    report = report_from_spec("1xh100", catalog)
    blind = msgspec.structs.replace(
        report,
        accelerators=tuple(
            msgspec.structs.replace(each, memory_total_bytes=None, memory_free_bytes=None)
            for each in report.accelerators
        ),
    )
    plan = plan_on(catalog, "glm-4.5v", blind)
    assert not plan.feasible
    assert any(each.code == "device.unknown_memory" and "device 0" in each.message for each in plan.rejected)


def test_mig_slices_are_never_joined(catalog: Catalog) -> None:
    report = report_from_spec("2xh100", catalog)
    sliced = msgspec.structs.replace(
        report,
        accelerators=tuple(msgspec.structs.replace(each, mig_parent_uuid="GPU-parent") for each in report.accelerators),
    )
    plan = plan_on(catalog, "glm-4.5v", sliced)
    assert plan.chosen is not None
    assert all(each.parallel.ranks == 1 for each in (plan.chosen, *plan.alternatives))


def test_two_nodes_take_tensor_parallelism_inside_and_stages_across(catalog: Catalog) -> None:
    plan = plan_on(catalog, "glm-4.6", "2x8xh100", Pins(quantization="BF16", engine="vllm", format="bf16"))
    assert plan.chosen is not None
    parallel = plan.chosen.parallel
    assert (parallel.tensor, parallel.pipeline, parallel.nodes) == (8, 2, 2)
    assert parallel.devices == tuple(range(16))


@pytest.mark.parametrize("machine", ["8xh100", "cpu-64gb", "m4-max-128gb", "gb10"])
@pytest.mark.parametrize("model", ["glm-tiny", "glm-tiny-v"])
def test_the_miniature_runs_anywhere_on_one_device(catalog: Catalog, model: str, machine: str) -> None:
    plan = plan_on(catalog, model, machine)
    assert plan.chosen is not None
    assert plan.chosen.parallel.ranks * plan.chosen.parallel.data == 1


def test_a_miniature_is_planned_from_its_first_file_unless_an_engine_asks_for_another(catalog: Catalog) -> None:
    free = plan_on(catalog, "glm-tiny", "cpu-64gb")
    assert free.chosen is not None
    assert (free.chosen.engine.name, free.chosen.checkpoint.format) == ("mlx", "fp32")
    assert "checkpoint.spare" in {each.code for each in free.rejected}
    pinned = plan_on(catalog, "glm-tiny", "cpu-64gb", Pins(engine="llamacpp"))
    assert pinned.chosen is not None
    assert pinned.chosen.checkpoint.repo == "autolaunch/glm-tiny-GGUF"


def test_the_same_input_gives_the_same_bytes(catalog: Catalog) -> None:
    first = plan_on(catalog, "glm-4.6", "8xh200").to_json()
    second = plan_on(Catalog(), "glm-4.6", "8xh200").to_json()
    assert first == second


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_ranks_by_its_own_score(catalog: Catalog, objective: Objective) -> None:
    plan = api.plan("glm-4.6", hardware="8xh200", known=catalog, objective=objective, keep_all=True)
    assert plan.chosen is not None
    everything = (plan.chosen, *plan.alternatives)
    assert [each.rank for each in everything] == list(range(1, len(everything) + 1))
    assert [each.score for each in everything] == sorted((each.score for each in everything), reverse=True)


def test_quality_takes_the_original_weights_and_latency_the_widest_group(catalog: Catalog) -> None:
    quality = api.plan("glm-4.6", hardware="8xh200", known=catalog, objective="quality").chosen
    latency = api.plan("glm-4.6", hardware="8xh200", known=catalog, objective="latency").chosen
    throughput = api.plan("glm-4.6", hardware="8xh200", known=catalog, objective="throughput").chosen
    assert quality is not None
    assert latency is not None
    assert throughput is not None
    assert quality.checkpoint.quantization == "BF16"
    assert (latency.parallel.tensor, latency.parallel.data) == (8, 1)
    assert (throughput.parallel.tensor, throughput.parallel.data) == (4, 2)


def test_all_keeps_every_refusal_and_the_rest_the_nearest(catalog: Catalog) -> None:
    everything = plan_on(catalog, "glm-4.6", "4xh100")
    nearest = api.plan("glm-4.6", hardware="4xh100", known=catalog)
    assert len(everything.rejected) > len(nearest.rejected)
    assert all(each in everything.rejected for each in nearest.rejected)
    assert nearest.chosen == everything.chosen


def test_the_id_of_a_checkpoint_pins_it_and_the_id_of_the_model_does_not(catalog: Catalog) -> None:
    pinned = api.plan("QuantTrio/GLM-4.6-AWQ", hardware="8xh200", known=catalog)
    free = api.plan("ZAI-ORG/glm-4.6", hardware="8xh200", known=catalog)
    assert pinned.chosen is not None
    assert pinned.chosen.checkpoint.repo == "QuantTrio/GLM-4.6-AWQ"
    assert free.request.pinned == {}


def test_contradictions_are_said_before_anything_is_planned(catalog: Catalog) -> None:
    with pytest.raises(UsageError, match="another"):
        api.plan("zai-org/GLM-4.6-FP8", hardware="8xh200", known=catalog, pins=Pins(repo="QuantTrio/GLM-4.6-AWQ"))
    with pytest.raises(UsageError, match="device 9"):
        api.plan("glm-4.6", hardware="8xh200", known=catalog, pins=Pins(gpus=(0, 9)))
    with pytest.raises(UsageError, match="16"):
        api.plan("glm-4.6", hardware="8xh200", known=catalog, pins=Pins(gpu_count=16))
    with pytest.raises(UnknownModel):
        api.plan("glm-46", hardware="8xh200", known=catalog)


def test_an_explanation_names_the_choice_and_what_came_second(catalog: Catalog) -> None:
    text = api.plan("glm-4.6", hardware="8xh200", known=catalog).explain()
    assert text.startswith("Chosen: zai-org/GLM-4.6-FP8 (FP8) with sglang")
    assert "Second: zai-org/GLM-4.6-FP8 (FP8) with vllm" in text
    refused = api.plan("glm-4.6", hardware="1xh100", known=catalog).explain()
    assert "usable" in refused
    assert "--hardware " in refused


# --- what a hostile review found --------------------------------------------------------------------


def test_concurrency_is_shared_out_over_replicas(catalog: Catalog) -> None:
    plan = api.plan("glm-4.6", hardware="8xh200", known=catalog, concurrency=500)
    assert plan.chosen is not None
    assert (plan.chosen.parallel.tensor, plan.chosen.parallel.data) == (4, 2)
    assert plan.chosen.limits.max_sequences == 250


def test_pinned_sequences_below_the_concurrency_are_kept_and_the_rest_waits(catalog: Catalog) -> None:
    plan = api.plan("glm-4.6", hardware="8xh200", known=catalog, pins=Pins(max_sequences=4), concurrency=64)
    assert plan.chosen is not None
    assert plan.chosen.limits.max_sequences == 4
    assert any(note.code == "queue" for note in plan.chosen.notes)


def test_a_count_of_gpus_is_never_taken_for_the_processor(catalog: Catalog) -> None:
    report = report_from_spec("2xrtx4090", catalog)
    host = msgspec.structs.replace(report.host, memory_total_bytes=1024 * GIB)
    plan = plan_on(catalog, "glm-4.6", msgspec.structs.replace(report, host=host), Pins(gpu_count=2))
    assert plan.chosen is None or plan.chosen.parallel.devices


def test_mtp_is_only_planned_on_engines_that_have_it(catalog: Catalog) -> None:
    plan = plan_on(catalog, "glm-4.6", "m3-ultra-512gb", Pins(speculative="mtp"))
    assert not plan.feasible
    assert any(each.code == "pin.engine" for each in plan.rejected)


def test_a_version_belongs_to_an_engine(catalog: Catalog) -> None:
    with pytest.raises(UsageError, match="without an engine"):
        plan_on(catalog, "glm-4.6", "8xh200", Pins(engine_version="0.33.0"))
    vision = plan_on(catalog, "glm-4.5v", "m4-max-128gb", Pins(engine="mlx", engine_version="0.7.10"))
    assert vision.chosen is not None
    assert vision.chosen.engine.version == "0.7.10"


@pytest.mark.parametrize("name", ["tclf90/GLM-4.6-AWQ", "ZhipuAI/GLM-4.6-FP8"])
def test_an_id_of_modelscope_means_modelscope(catalog: Catalog, name: str) -> None:
    for plan in (
        api.plan(name, hardware="8xh200", known=catalog),
        api.plan("glm-4.6", hardware="8xh200", known=catalog, pins=Pins(repo=name)),
    ):
        assert plan.chosen is not None
        assert (plan.chosen.checkpoint.repo, plan.chosen.checkpoint.hub) == (name, "modelscope")
        assert plan.chosen.command is not None
        assert any(key.endswith("_USE_MODELSCOPE") for key in plan.chosen.command.env)


def test_devices_are_called_what_their_vendor_calls_them(catalog: Catalog) -> None:
    nvidia, amd = report_from_spec("1xrtx4090", catalog), report_from_spec("8xmi300x", catalog)
    moved = tuple(msgspec.structs.replace(each, index=each.index + 1) for each in amd.accelerators)
    mixed = msgspec.structs.replace(amd, accelerators=(*nvidia.accelerators, *moved), links=())
    chosen = plan_on(catalog, "glm-4.6", mixed).chosen
    assert chosen is not None
    assert chosen.command is not None
    shown = chosen.command.env["HIP_VISIBLE_DEVICES"].split(",")
    assert shown == [str(index - 1) for index in chosen.parallel.devices[: chosen.parallel.ranks]]


def test_over_several_nodes_devices_are_rays_to_give(catalog: Catalog) -> None:
    chosen = plan_on(catalog, "glm-4.6", "2x8xh100", Pins(format="bf16")).chosen
    assert chosen is not None
    assert chosen.engine.name == "vllm"
    assert chosen.command is not None
    assert "CUDA_VISIBLE_DEVICES" not in chosen.command.env


def test_a_share_refers_to_the_total_that_the_engine_sees(catalog: Catalog) -> None:
    chosen = plan_on(catalog, "glm-4.5v", "gb10", Pins(engine="vllm", quantization="Int4")).chosen
    assert chosen is not None
    device = chosen.memory.per_device
    assert chosen.limits.memory_utilization * device.total_bytes == pytest.approx(device.usable_bytes, rel=0.01)


@pytest.mark.parametrize(("engine", "share"), [("vllm", 1.0), ("sglang", 0.999)])
def test_a_share_that_leaves_nothing_for_the_rest_is_refused(catalog: Catalog, engine: str, share: float) -> None:
    pins = msgspec.convert({"engine": engine, "memory_utilization": share}, Pins)
    plan = plan_on(catalog, "glm-4.6", "8xh200", pins)
    assert not plan.feasible


def test_a_pin_that_stands_in_the_way_is_named_and_no_machine_is_sold(catalog: Catalog) -> None:
    plan = plan_on(catalog, "glm-4.6", "8xh200", Pins(tensor_parallel=3))
    assert [each.kind for each in plan.advice] == ["engine"]
    assert "tensor parallel is left free" in plan.advice[0].message
    assert plan.advice[0].command == "autolaunch plan glm-4.6 --hardware 8xh200"


def test_too_many_at_once_are_told_how_many_fit(catalog: Catalog) -> None:
    plan = api.plan("glm-4.5v", hardware="1xh100", known=catalog, concurrency=4096)
    assert any("--concurrency" in (each.command or "") for each in plan.advice)


def test_advice_can_be_typed_as_it_stands(catalog: Catalog) -> None:
    plan = api.plan(
        "glm-4.6", hardware="4xh100", known=catalog, objective="context", pins=Pins(format="gptq"), keep_all=True
    )
    commands = [each.command for each in plan.advice if each.kind == "kv_cache"]
    assert commands
    assert commands[0] is not None
    for part in ("--hardware 4xh100", "--objective context", "--format gptq", "--kv-cache-dtype fp8"):
        assert part in commands[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"objective": "fast"},
        {"workload": "x"},
        {"context_tokens": 0},
        {"context_tokens": -5},
        {"concurrency": 0},
        {"input_tokens": -1},
        {"input_tokens": 300_000},
        {"context_tokens": 4096, "workload": "long-context"},
        {"pins": Pins(tensor_parallel=0)},
        {"pins": Pins(data_parallel=-1)},
        {"pins": Pins(memory_utilization=1.5)},
        {"pins": Pins(repo="zai-org/GLM-4.6-FP9")},
        {"pins": Pins(quantization="fp9")},
        {"pins": Pins(format="fp8", quantization="Int4")},
    ],
    ids=str,
)
def test_a_request_that_makes_no_sense_is_a_usage_error(catalog: Catalog, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        api.plan("glm-4.6", hardware="8xh200", known=catalog, **wrong)


def test_an_empty_machine_still_says_why(catalog: Catalog) -> None:
    plan = plan_on(catalog, "glm-4.6", HardwareReport(host=Host(os="linux")))
    assert not plan.feasible
    assert {each.code for each in plan.rejected} == {"device.none"}


def test_what_is_tight_is_said(catalog: Catalog) -> None:
    report = report_from_spec("8xh100", catalog)
    small = msgspec.structs.replace(report, host=msgspec.structs.replace(report.host, memory_total_bytes=4 * GIB))
    chosen = plan_on(catalog, "glm-4.6", small).chosen
    assert chosen is not None
    assert any(note.code == "host_memory" for note in chosen.notes)


def test_a_thousand_nodes_are_planned_in_seconds(catalog: Catalog) -> None:
    """Cost grows with the devices, not with their square: no timing, a count of what is looked at."""
    report = report_from_spec("128x8xh200", catalog)
    plan = api.plan("glm-4.6", hardware=report, known=catalog)
    assert plan.chosen is not None
    assert plan.chosen.parallel.ranks * plan.chosen.parallel.data == 1024


# --- islands, layouts and what is not asked for ------------------------------------------------------


def in_islands(report: HardwareReport, size: int) -> HardwareReport:
    """The report with NVLink inside groups of ``size`` devices and PCIe between them."""
    ways = tuple(
        msgspec.structs.replace(each, kind="nvlink" if each.from_ // size == each.to // size else "pcie")
        for each in report.links
    )
    return msgspec.structs.replace(report, links=ways)


def test_replicas_lie_one_an_island(catalog: Catalog) -> None:
    report = in_islands(report_from_spec("8xh200", catalog), 2)
    pins = Pins(tensor_parallel=2, data_parallel=4, engine="vllm", quantization="FP8")
    plan = plan_on(catalog, "glm-4.5v", report, pins)
    assert plan.chosen is not None
    assert plan.chosen.parallel.devices == (0, 1, 2, 3, 4, 5, 6, 7)
    apart = msgspec.structs.replace(report, links=tuple(each for each in report.links if each.kind == "pcie"))
    slower = plan_on(catalog, "glm-4.5v", apart, pins)
    assert slower.chosen is not None
    assert (plan.chosen.speed.decode_tokens_per_second or 0) > (slower.chosen.speed.decode_tokens_per_second or 0)


def test_a_group_across_islands_is_as_slow_as_its_slowest_way(catalog: Catalog) -> None:
    pins = Pins(tensor_parallel=4, data_parallel=1, engine="vllm", quantization="FP8")
    whole = plan_on(catalog, "glm-4.5v", report_from_spec("4xh200", catalog), pins).chosen
    halves = plan_on(catalog, "glm-4.5v", in_islands(report_from_spec("4xh200", catalog), 2), pins).chosen
    assert whole is not None
    assert halves is not None
    assert (whole.speed.decode_tokens_per_second or 0) > (halves.speed.decode_tokens_per_second or 0)


def test_for_latency_decoding_is_tried_with_and_without_mtp(catalog: Catalog) -> None:
    pins = Pins(engine="vllm", quantization="FP8")
    plan = api.plan("glm-4.6", hardware="8xh200", known=catalog, objective="latency", pins=pins, keep_all=True)
    assert plan.chosen is not None
    everything = (plan.chosen, *plan.alternatives)
    assert {each.limits.speculative for each in everything} == {"off", "mtp"}
    for each in everything:
        assert each.limits.speculative == "off" or each.parallel.pipeline == 1


def test_what_nobody_asked_for_is_no_refusal(catalog: Catalog) -> None:
    """MTP beside stages of a pipeline crashes: stages without it are planned, their MTP is not refused."""
    stages = Pins(engine="vllm", pipeline_parallel=2)
    machine: str = "8xrtx-pro-6000"
    how: Objective = "latency"
    plan = api.plan("glm-4.6", hardware=machine, known=catalog, objective=how, pins=stages, keep_all=True)
    assert plan.chosen is not None
    assert not any(each.code == "rule.pipeline_and_mtp" for each in plan.rejected)
    asked = msgspec.structs.replace(stages, speculative="mtp")
    refused = api.plan("glm-4.6", hardware=machine, known=catalog, objective=how, pins=asked, keep_all=True)
    assert not refused.feasible
    assert any(each.code == "rule.pipeline_and_mtp" for each in refused.rejected)


def test_whole_experts_are_tried_where_slices_of_them_are_slow_or_refused(catalog: Catalog) -> None:
    plan = plan_on(catalog, "glm-4.5v", "8xh100", Pins(engine="vllm", quantization="Int4"))
    assert plan.chosen is not None
    whole = {(each.parallel.tensor, each.parallel.expert) for each in (plan.chosen, *plan.alternatives)}
    assert (8, True) in whole
    assert (8, False) not in whole, "176 columns of an expert are no multiple of 32"
    assert (1, True) not in whole


def test_weights_that_no_device_holds_are_told_once_for_each_width(catalog: Catalog) -> None:
    plan = plan_on(catalog, "glm-4.6", "4xh100", Pins(engine="vllm", quantization="BF16"))
    assert not plan.feasible
    told = [each for each in plan.rejected if each.quantization == "BF16" and each.parallel is not None]
    assert {each.code for each in told} == {"memory.weights"}
    widths = [each.parallel.tensor for each in told if each.parallel is not None]
    assert sorted(widths) == sorted(set(widths))
    for each in told:
        assert each.numbers["needed_bytes"] > each.numbers["usable_bytes"]
        assert "usable" in each.message


def test_a_width_that_a_fault_slows_does_not_stand_for_stages(catalog: Catalog) -> None:
    """Half of an expert of GLM-4.5-Air is no whole group of 4 bits: two stages of whole ones may be quicker."""
    report = in_islands(report_from_spec("2xrtx-pro-6000", catalog), 2)
    plan = plan_on(catalog, "glm-4.5-air", busy(report, 1, 55 * GIB), Pins(engine="vllm", quantization="AWQ-4bit"))
    assert plan.chosen is not None
    tried = {(each.parallel.tensor, each.parallel.pipeline) for each in (plan.chosen, *plan.alternatives)}
    assert {(2, 1), (1, 2)} <= tried
