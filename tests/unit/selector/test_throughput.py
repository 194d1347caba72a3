"""Speed: the physics that published measurements show. (How near the figures come is another matter.)"""

from __future__ import annotations

import msgspec
import pytest

from autolaunch import api
from selector.catalog import Catalog
from selector.contract import Candidate, Speed
from selector.hardware import HardwareReport
from selector.machines import report_from_spec
from selector.request import Pins


def chosen(
    catalog: Catalog, model: str, machine: str | HardwareReport, pins: Pins, concurrency: int | None = None
) -> Candidate:
    plan = api.plan(model, hardware=machine, known=catalog, pins=pins, concurrency=concurrency)
    assert plan.chosen is not None, plan.explain()
    return plan.chosen


def figures(speed: Speed) -> tuple[float, float]:
    assert speed.decode_tokens_per_second is not None
    assert speed.throughput_tokens_per_second is not None
    return speed.decode_tokens_per_second, speed.throughput_tokens_per_second


def test_two_replicas_of_four_beat_one_of_eight_in_throughput_and_lose_in_latency(catalog: Catalog) -> None:
    """Measured on 8xH200 with GLM-4.6-FP8 on SGLang: 2 x 7081 against 7859 tokens/s (gpustack)."""
    one = chosen(catalog, "glm-4.6", "8xh200", Pins(engine="sglang", quantization="FP8", tensor_parallel=8))
    two = chosen(
        catalog, "glm-4.6", "8xh200", Pins(engine="sglang", quantization="FP8", tensor_parallel=4, data_parallel=2)
    )
    (one_decode, one_throughput), (two_decode, two_throughput) = figures(one.speed), figures(two.speed)
    assert two_throughput > 1.3 * one_throughput
    assert one_decode > two_decode


def test_a_single_sequence_on_many_gpus_is_bound_by_latency(catalog: Catalog) -> None:
    """GLM-4.6 at TP 4 and more takes 14.8 to 18 ms a token, whatever the bandwidth."""
    for machine in ("8xh200", "8xb200"):
        decode, _ = figures(chosen(catalog, "glm-4.6", machine, Pins(quantization="BF16", tensor_parallel=8)).speed)
        assert 14.0 < 1000 / decode < 19.0


def test_a_mac_is_bound_by_bandwidth(catalog: Catalog) -> None:
    """GLM-4.5-Air at 3 bit on an M2 Max of 400 GB/s: 25.6 tokens/s measured."""
    decode, _ = figures(chosen(catalog, "glm-4.5-air", "m2-max-64gb", Pins(quantization="3bit")).speed)
    assert decode == pytest.approx(25.6, rel=0.2)


def test_eager_is_slower_than_graphs(catalog: Catalog) -> None:
    pins = Pins(engine="vllm", quantization="FP8", tensor_parallel=8)
    graphs, _ = figures(chosen(catalog, "glm-4.6", "8xh200", pins).speed)
    eager, _ = figures(chosen(catalog, "glm-4.6", "8xh200", msgspec.structs.replace(pins, eager=True)).speed)
    assert eager < graphs / 2


def test_more_sequences_give_more_throughput(catalog: Catalog) -> None:
    pins = Pins(engine="vllm", quantization="FP8", tensor_parallel=8)
    rates = [figures(chosen(catalog, "glm-4.6", "8xh200", pins, count).speed)[1] for count in (1, 8, 64)]
    assert rates == sorted(rates)
    assert rates[2] > 4 * rates[0]


def test_an_unknown_bandwidth_gives_no_invented_speed(catalog: Catalog) -> None:
    known = report_from_spec("8xh100", catalog)
    strange = msgspec.structs.replace(
        known,
        accelerators=tuple(msgspec.structs.replace(each, name="NVIDIA X999 Prototype") for each in known.accelerators),
    )
    found = chosen(catalog, "glm-4.6", strange, Pins())
    assert found.speed.decode_tokens_per_second is None
    assert found.speed.throughput_tokens_per_second is None
    assert found.speed.basis == "assumed"
    assert found.speed.load_seconds is not None


def test_an_unknown_arithmetic_rate_leaves_decode_known(catalog: Catalog) -> None:
    found = chosen(catalog, "glm-4.5v", "m5-max-128gb", Pins())
    assert found.speed.decode_tokens_per_second is not None
    assert found.speed.prefill_tokens_per_second is None
