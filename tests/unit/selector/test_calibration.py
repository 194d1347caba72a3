"""What was measured corrects the next plan within stated bounds, and nothing absurd does."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolaunch import api
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.hardware import HardwareReport
from selector.machines import report_from_spec
from selector.measured import Calibration, Measured, configuration_of
from selector.request import Pins

AT = 1_795_176_000.0
KNOWN = Catalog()
H100S = report_from_spec("8xh100", KNOWN)
CPU = report_from_spec("cpu-64gb", KNOWN)
MAC = report_from_spec("m3-ultra-512gb", KNOWN)
CASES = [("glm-4.6", H100S, "vllm"), ("glm-4.6", H100S, "sglang"), ("glm-4.6", MAC, "mlx")]


def plan(model: str, report: HardwareReport, engine: str | None, *told: Calibration, **more: Any) -> LaunchPlan:
    pins = msgspec.structs.replace(more.pop("pins", Pins()), engine=engine)
    return api.plan(model, hardware=report, known=KNOWN, pins=pins, calibrations=told, **more)


def chosen(model: str, report: HardwareReport, engine: str | None, *told: Calibration, **more: Any) -> Candidate:
    found = plan(model, report, engine, *told, **more).chosen
    assert found is not None
    return found


def calibration(one: Candidate, report: HardwareReport, *, own: bool = True, **figures: Any) -> Calibration:
    device = next((each for each in report.accelerators if each.index in one.parallel.devices), None)
    host = report.host
    name, total = (
        (device.name, device.memory_total_bytes) if device else (host.cpu.brand or "CPU", host.memory_total_bytes)
    )
    assert total is not None
    figures.setdefault("source", "bench")
    return Calibration(
        device=name,
        device_bytes=total,
        engine=one.engine.name,
        version=one.engine.version,
        package=one.engine.package,
        repo=one.checkpoint.repo,
        quantization=one.checkpoint.quantization,
        file_prefix=one.checkpoint.file_prefix,
        revision=one.checkpoint.revision,
        configuration=configuration_of(one),
        measured=Measured(at=AT, **figures),
        own=own,
    )


def codes(one: Candidate) -> set[str]:
    return {each.code for each in one.notes if each.code.startswith("learned")}


def without_notes(one: Candidate) -> Candidate:
    kept = tuple(each for each in one.notes if not each.code.startswith("learned"))
    return msgspec.structs.replace(one, notes=kept)


@pytest.mark.parametrize(("model", "report", "engine"), CASES)
def test_the_very_configuration_is_as_it_was_measured(model: str, report: HardwareReport, engine: str) -> None:
    first = chosen(model, report, engine)
    speed, device = first.speed, first.memory.per_device
    assert speed.decode_tokens_per_second is not None
    assert speed.throughput_tokens_per_second is not None
    assert speed.load_seconds is not None
    told = calibration(
        first,
        report,
        weights_bytes=int(1.03 * device.weights_bytes),
        kv_cache_tokens=int(0.97 * first.memory.kv_cache_tokens),
        decode_tokens_per_second=0.9 * speed.decode_tokens_per_second,
        throughput_tokens_per_second=0.8 * speed.throughput_tokens_per_second,
        concurrency=speed.concurrency,
        load_seconds=2 * speed.load_seconds,
    )
    pins = Pins(
        repo=first.checkpoint.repo,
        tensor_parallel=first.parallel.tensor,
        pipeline_parallel=first.parallel.pipeline,
        data_parallel=first.parallel.data,
        max_sequences=first.limits.max_sequences,
        speculative=first.limits.speculative,
    )
    second = chosen(
        model,
        report,
        engine,
        told,
        pins=pins,
        context_tokens=first.limits.context_tokens,
        concurrency=speed.concurrency,
    )
    plain = chosen(
        model, report, engine, pins=pins, context_tokens=first.limits.context_tokens, concurrency=speed.concurrency
    )
    assert configuration_of(second) == configuration_of(first)
    block = KNOWN.engine(engine).memory.block_tokens
    assert second.memory.per_device.weights_bytes == pytest.approx(told.measured.weights_bytes, abs=2)
    if KNOWN.engine(engine).memory.kind != "demand":
        assert told.measured.kv_cache_tokens is not None
        assert 0 <= told.measured.kv_cache_tokens - second.memory.kv_cache_tokens <= block + 1
    assert second.speed.decode_tokens_per_second == pytest.approx(told.measured.decode_tokens_per_second, abs=0.01)
    assert plain.speed.throughput_tokens_per_second is not None
    assert second.speed.load_seconds == pytest.approx(told.measured.load_seconds, abs=0.1)
    assert second.speed.basis == "measured"
    assert codes(second) == {"learned.measured"}
    assert plain.speed.basis != "measured"


def test_another_layout_is_corrected_by_factors_and_does_not_call_itself_measured() -> None:
    first = chosen("glm-4.6", H100S, "vllm", pins=Pins(tensor_parallel=8))
    assert first.speed.decode_tokens_per_second is not None
    told = calibration(
        first,
        H100S,
        weights_bytes=int(1.05 * first.memory.per_device.weights_bytes),
        decode_tokens_per_second=0.5 * first.speed.decode_tokens_per_second,
    )
    pins = Pins(tensor_parallel=4, repo=first.checkpoint.repo)
    before, after = (chosen("glm-4.6", H100S, "vllm", *each, pins=pins) for each in ((), (told,)))
    assert before.parallel == after.parallel
    assert after.memory.per_device.weights_bytes == pytest.approx(
        1.05 * before.memory.per_device.weights_bytes, rel=1e-6
    )
    assert before.speed.decode_tokens_per_second is not None
    assert after.speed.decode_tokens_per_second == pytest.approx(0.5 * before.speed.decode_tokens_per_second, abs=0.01)
    assert (after.memory.basis, after.speed.basis) == (before.memory.basis, before.speed.basis)
    assert codes(after) == {"learned.measured"}


def test_a_smaller_cache_than_foretold_lowers_the_context_that_is_promised() -> None:
    pins = Pins(tensor_parallel=4, gpu_count=4, repo="QuantTrio/GLM-4.6-GPTQ-Int4-Int8Mix")
    first = chosen("glm-4.6", H100S, "vllm", pins=pins)
    tokens = first.memory.kv_cache_tokens
    assert first.limits.context_tokens == tokens // 1024 * 1024, "the cache is what bounds it"
    told = calibration(first, H100S, kv_cache_tokens=int(0.9 * tokens))
    second = chosen("glm-4.6", H100S, "vllm", told, pins=pins)
    assert second.memory.kv_cache_tokens == pytest.approx(0.9 * tokens, abs=16)
    assert second.limits.context_tokens == second.memory.kv_cache_tokens // 1024 * 1024
    assert second.memory.basis == first.memory.basis, "another context is not the configuration that was measured"


def test_what_was_not_measured_is_taken_for_no_faster_than_what_was() -> None:
    """Else whatever was measured a little slower than foretold would lose its place to what never ran."""
    first = chosen("glm-4.6", H100S, None)
    assert first.speed.decode_tokens_per_second is not None
    told = calibration(first, H100S, decode_tokens_per_second=0.7 * first.speed.decode_tokens_per_second)
    second = plan("glm-4.6", H100S, None, told, keep_all=True)
    assert second.chosen is not None
    assert second.chosen.checkpoint.repo == first.checkpoint.repo
    assert second.chosen.engine == first.engine
    others = [each for each in second.alternatives if each.engine.name != first.engine.name]
    assert others
    assert all("learned.device" in codes(each) for each in others)
    faster = calibration(first, H100S, decode_tokens_per_second=1.2 * first.speed.decode_tokens_per_second)
    third = plan("glm-4.6", H100S, None, faster, keep_all=True)
    assert not any("learned.device" in codes(each) for each in third.alternatives)


def test_elsewhere_and_otherwise_it_holds_nothing() -> None:
    first = chosen("glm-4.6", H100S, "vllm")
    told = calibration(first, H100S, load_seconds=500.0)
    for change in (
        {"device": "NVIDIA H200"},
        {"device_bytes": 1},
        {"version": "0.1"},
        {"package": "x"},
        {"revision": "a"},
        {"quantization": "BF16"},
        {"repo": "other/model"},
    ):
        assert chosen("glm-4.6", H100S, "vllm", msgspec.structs.replace(told, **change)) == first


def test_ones_own_comes_before_what_was_imported_and_only_that_is_called_measured() -> None:
    first = chosen("glm-4.6", H100S, "vllm")
    assert first.speed.decode_tokens_per_second is not None
    pins = Pins(repo=first.checkpoint.repo, tensor_parallel=first.parallel.tensor)
    own = calibration(first, H100S, decode_tokens_per_second=0.8 * first.speed.decode_tokens_per_second)
    other = calibration(
        first, H100S, own=False, source="imported", decode_tokens_per_second=0.6 * first.speed.decode_tokens_per_second
    )
    alone = chosen("glm-4.6", H100S, "vllm", other, pins=pins)
    assert alone.speed.decode_tokens_per_second == pytest.approx(other.measured.decode_tokens_per_second, abs=0.01)
    assert alone.speed.basis == first.speed.basis
    assert "another host" in next(each.message for each in alone.notes if each.code == "learned.measured")
    both = chosen("glm-4.6", H100S, "vllm", other, own, pins=pins)
    assert both.speed.decode_tokens_per_second == pytest.approx(own.measured.decode_tokens_per_second, abs=0.01)


ABSURD: list[dict[str, Any]] = [
    {"weights_bytes": 1 << 45},
    {"weights_bytes": 0},
    {"kv_cache_tokens": 1 << 50},
    {"kv_cache_tokens": 1},
    {"activations_bytes": 1 << 40},
    {"decode_tokens_per_second": 1e9},
    {"decode_tokens_per_second": 1e-9},
    {"source": "served", "samples": 1, "decode_tokens_per_second": 50.0},
    {"load_seconds": 1e9},
    {"load_seconds": 1e-9},
    {"time_to_first_token_seconds": 1e6},
    {"prefill_tokens_per_second": 1e12},
]


@pytest.mark.parametrize("figures", ABSURD)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_what_is_absurd_is_refused_and_the_plan_is_as_without_it(engine: str, figures: dict[str, Any]) -> None:
    first = chosen("glm-4.6", H100S, engine)
    second = chosen("glm-4.6", H100S, engine, calibration(first, H100S, **figures))
    assert without_notes(second) == first
    assert codes(second) == {"learned.refused"}


@pytest.mark.parametrize(
    "change",
    [
        {"tensor": 0}, {"tensor": -8}, {"tensor": 7}, {"tensor": 1 << 40}, {"pipeline": 0}, {"pipeline": 1000},
        {"data": 0}, {"nodes": 0}, {"nodes": 4096}, {"devices": 0},
        {"context_tokens": 0}, {"context_tokens": 1 << 50}, {"max_sequences": 0},
        {"max_sequences": 1 << 50}, {"memory_utilization": 0.0}, {"memory_utilization": 7.0},
        {"speculative": "x"}, {"gpu_layers": 3}, {"device_layers": (1, 2)}, {"cpu_expert_layers": 5},
    ],
)  # fmt: skip
def test_a_configuration_that_is_none_is_refused(change: dict[str, Any]) -> None:
    first = chosen("glm-4.6", H100S, "vllm")
    told = calibration(first, H100S, load_seconds=300.0)
    wrong = msgspec.structs.replace(told, configuration=msgspec.structs.replace(told.configuration, **change))
    second = chosen("glm-4.6", H100S, "vllm", wrong)
    assert without_notes(second) == first
    assert codes(second) == {"learned.refused"}


def test_faster_than_the_memory_can_be_read_is_refused() -> None:
    report = report_from_spec("m3-ultra-512gb", KNOWN)
    first = chosen("glm-4.6", report, "mlx")
    assert first.speed.decode_tokens_per_second is not None
    second = chosen(
        "glm-4.6",
        report,
        "mlx",
        calibration(first, report, decode_tokens_per_second=2.9 * first.speed.decode_tokens_per_second),
    )
    (note,) = [each for each in second.notes if each.code == "learned.refused"]
    assert "memory can be read" in note.message


def test_mapped_files_are_no_measure_of_memory() -> None:
    first = chosen("glm-tiny", CPU, "llamacpp")
    told = calibration(first, CPU, resident_bytes=first.memory.per_device.weights_bytes // 2)
    assert without_notes(chosen("glm-tiny", CPU, "llamacpp", told)) == first


def test_nothing_of_it_is_read_in_where_nothing_was_measured() -> None:
    import subprocess

    program = (
        "import sys; from autolaunch import api; api.plan('glm-4.6', hardware='8xh100'); "
        "sys.exit(bool({'sqlite3', 'selector.lessons', 'autolaunch.calibrated'} & set(sys.modules)))"
    )
    assert subprocess.run((sys.executable, "-c", program), check=False).returncode == 0


# --- laws -----------------------------------------------------------------------------------------------

_factor = st.floats(min_value=0.01, max_value=30.0)


@st.composite
def told_of(draw: st.DrawFn, one: Candidate, report: HardwareReport) -> Calibration:
    device, speed = one.memory.per_device, one.speed

    def times(figure: float | None) -> float | None:
        return draw(st.none() | _factor.map(lambda factor: (figure or 1.0) * factor))

    def whole(figure: int) -> int | None:
        found = times(figure)
        return None if found is None else int(found)

    return calibration(
        one, report, own=draw(st.booleans()),
        weights_bytes=whole(device.weights_bytes), kv_cache_tokens=whole(one.memory.kv_cache_tokens),
        activations_bytes=whole(device.activations_bytes), graphs_bytes=whole(device.graphs_bytes),
        resident_bytes=whole(device.total_bytes - device.reserve_bytes), load_seconds=times(speed.load_seconds),
        decode_tokens_per_second=times(speed.decode_tokens_per_second),
        time_to_first_token_seconds=times(speed.time_to_first_token_seconds),
        throughput_tokens_per_second=times(speed.throughput_tokens_per_second), concurrency=speed.concurrency,
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(data=st.data(), engine=st.sampled_from(["vllm", "sglang"]))
def test_whatever_was_measured_no_item_is_negative_and_no_device_is_overfull(data: st.DataObject, engine: str) -> None:
    first = chosen("glm-4.6", H100S, engine)
    told = data.draw(told_of(first, H100S))
    found = plan("glm-4.6", H100S, engine, told, keep_all=True)
    assert found == plan("glm-4.6", H100S, engine, told, keep_all=True)
    for each in (found.chosen, *found.alternatives):
        if each is None:
            continue
        device = each.memory.per_device
        items = [getattr(device, name) for name in device.__struct_fields__]
        assert min(items) >= 0
        used = sum(items) - device.total_bytes - device.usable_bytes
        assert used == device.total_bytes
        assert device.weights_bytes + device.kv_cache_bytes <= device.usable_bytes
        plain = next((one for one in (first,) if configuration_of(one) == configuration_of(each)), None)
        if plain is not None and plain.checkpoint == each.checkpoint:
            assert each.speed.decode_tokens_per_second is not None
            assert plain.speed.decode_tokens_per_second is not None
            ratio = each.speed.decode_tokens_per_second / plain.speed.decode_tokens_per_second
            assert 0.33 <= ratio <= 3.01
            assert abs(device.weights_bytes - plain.memory.per_device.weights_bytes) <= max(
                1 << 30, 0.151 * plain.memory.per_device.weights_bytes
            )


@settings(max_examples=15, deadline=None)
@given(data=st.data(), free=st.lists(st.integers(40, 79), min_size=2, max_size=2, unique=True).map(sorted))
def test_more_free_memory_is_never_a_worse_plan_whatever_was_measured(data: st.DataObject, free: list[int]) -> None:
    first = chosen("glm-4.6", H100S, "vllm")
    told = data.draw(told_of(first, H100S))

    def holding(gib: int) -> int:
        devices = tuple(msgspec.structs.replace(each, memory_free_bytes=gib << 30) for each in H100S.accelerators)
        report = msgspec.structs.replace(H100S, accelerators=devices)
        pins = Pins(repo=first.checkpoint.repo, tensor_parallel=8, max_sequences=16)
        found = plan("glm-4.6", report, "vllm", told, pins=pins).chosen
        return -1 if found is None else found.memory.kv_cache_tokens

    assert holding(free[0]) <= holding(free[1])
