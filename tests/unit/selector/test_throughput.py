"""Speed: the physics that published measurements show. (How near the figures come is another matter.)"""

from __future__ import annotations

import math

import msgspec
import pytest

from autolaunch import api
from selector.catalog import Catalog
from selector.contract import Candidate, Speed
from selector.hardware import HardwareReport
from selector.machines import report_from_spec
from selector.request import Pins
from selector.steps import Pass
from selector.throughput import LONGEST_ANSWER_TOKENS, answer_scale, drain_seconds


def chosen(
    catalog: Catalog,
    model: str,
    machine: str | HardwareReport,
    pins: Pins,
    concurrency: int | None = None,
    tokens: tuple[int, int] | None = None,
) -> Candidate:
    prompt, answer = (None, None) if tokens is None else tokens
    plan = api.plan(
        model,
        hardware=machine,
        known=catalog,
        pins=pins,
        concurrency=concurrency,
        input_tokens=prompt,
        output_tokens=answer,
    )
    assert plan.chosen is not None, plan.explain()
    return plan.chosen


def figures(speed: Speed) -> tuple[float, float]:
    assert speed.decode_tokens_per_second is not None
    assert speed.throughput_tokens_per_second is not None
    return speed.decode_tokens_per_second, speed.throughput_tokens_per_second


def test_two_replicas_of_four_beat_one_of_eight_in_throughput_and_lose_in_latency(catalog: Catalog) -> None:
    """Measured on 8xH200, GLM-4.6-FP8 on SGLang: 2 x 3416 against 3792 tokens/s (gpustack), 1000 prompts each."""
    pins = Pins(engine="sglang", quantization="FP8", tensor_parallel=8, speculative="off")
    one = chosen(catalog, "glm-4.6", "8xh200", pins, 1000, (214, 200))
    halves = msgspec.structs.replace(pins, tensor_parallel=4, data_parallel=2)
    two = chosen(catalog, "glm-4.6", "8xh200", halves, 2000, (214, 200))
    (one_decode, one_throughput), (two_decode, two_throughput) = figures(one.speed), figures(two.speed)
    assert two_throughput > 1.3 * one_throughput
    assert one_decode > two_decode


def test_a_single_sequence_on_many_gpus_is_bound_by_latency(catalog: Catalog) -> None:
    """GLM-4.6 at TP 4 and more takes 14.8 to 18 ms a token, whatever the bandwidth."""
    for machine in ("8xh200", "8xb200"):
        decode, _ = figures(
            chosen(catalog, "glm-4.6", machine, Pins(quantization="BF16", tensor_parallel=8, speculative="off")).speed
        )
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


def one_pass(**changes: object) -> Pass:
    """A pass whose terms are round numbers: 1 s of experts when all are touched, 0.1 s of the rest."""
    plain: dict[str, object] = {
        "experts_bytes": 1.0,
        "rest_bytes": 0.1,
        "expert_share": 0.05,
        "kv_bytes": 0.0,
        "bandwidth": 1.0,
        "operations_seconds": 0.0,
        "reduce_seconds": 0.0,
        "reduce_latency": 0.0,
        "launch_seconds": 0.5,
        "eager": False,
        "sequence_seconds": 0.0,
        "handover_seconds": 0.0,
        "tokens": 1,
        "gain": 1.0,
        "draft_share": 1.0,
        "draft_seconds": 0.0,
        "stages": 1,
        "pipeline_efficiency": 1.0,
    }
    return Pass(**{**plain, **changes})  # type: ignore[arg-type]  # every value above is of its field's type


def test_a_step_reads_the_experts_that_its_tokens_pick() -> None:
    one = one_pass()
    assert one.seconds(1) == pytest.approx(0.5 + 0.1 + 0.05)
    assert one.seconds(2) == pytest.approx(0.5 + 0.1 + 0.0975)
    assert one.seconds(10_000) == pytest.approx(1.6)


def test_without_graphs_the_host_hides_what_the_gpu_does() -> None:
    eager = one_pass(eager=True)
    assert eager.seconds(1) == 0.5
    assert eager.seconds(10_000) == pytest.approx(1.1)


def test_a_full_pipeline_works_on_as_many_batches_as_it_has_stages() -> None:
    piped = one_pass(stages=4, pipeline_efficiency=0.5)
    assert piped.round_seconds(1) == pytest.approx(piped.seconds(1))
    assert piped.round_seconds(400) == pytest.approx(piped.seconds(100) / 0.5)


@pytest.mark.parametrize(("mean", "longest"), [(200, 1024), (1, 1024), (1000, 1024), (5, 6)])
def test_the_spread_of_answers_keeps_their_mean(mean: int, longest: int) -> None:
    scale = answer_scale(mean, longest)
    assert scale * (1 - math.exp(-longest / scale)) == pytest.approx(mean, rel=1e-6)


def test_answers_as_long_as_the_longest_are_not_spread() -> None:
    assert answer_scale(1024, 1024) == math.inf
    assert drain_seconds(one_pass(), 64, 2000) == pytest.approx(2000 * one_pass().seconds(64))


@pytest.mark.parametrize("sequences", [2, 16, 256, 1024])
def test_a_draining_batch_takes_as_long_as_a_simulated_one(sequences: int) -> None:
    """Against adding up every step: after ``k`` steps ``exp(-k / scale)`` of the answers are still being written."""
    one, scale = one_pass(), answer_scale(200, LONGEST_ANSWER_TOKENS)
    alive = (sequences * math.exp(-step / scale) for step in range(LONGEST_ANSWER_TOKENS))
    added = sum(one.seconds(max(1.0, count)) for count in alive if count >= 0.5)
    assert drain_seconds(one, sequences, 200) == pytest.approx(added, rel=0.02)


def test_a_benchmark_that_ends_gives_less_than_a_server_kept_full(catalog: Catalog) -> None:
    pins = Pins(engine="vllm", quantization="FP8", tensor_parallel=8, speculative="off")
    speed = chosen(catalog, "glm-4.6", "8xh200", pins, 1000).speed
    few = chosen(catalog, "glm-4.6", "8xh200", pins, 4).speed
    assert speed.sustained_tokens_per_second is not None
    assert few.sustained_tokens_per_second is not None
    assert figures(speed)[1] < 0.9 * speed.sustained_tokens_per_second
    assert figures(few)[1] > 0.98 * few.sustained_tokens_per_second


def test_mtp_pays_for_one_sequence_more_than_for_a_full_batch(catalog: Catalog) -> None:
    """A second token to verify is nearly free beside a step's latency, and touches more experts in a batch."""

    def gain(count: int) -> float:
        pins = Pins(engine="vllm", quantization="FP8", tensor_parallel=8, speculative="off")
        without = figures(chosen(catalog, "glm-4.6", "8xh200", pins, count).speed)[1]
        mtp = msgspec.structs.replace(pins, speculative="mtp")
        return figures(chosen(catalog, "glm-4.6", "8xh200", mtp, count).speed)[1] / without

    assert 1.3 < gain(1) < 1.89
    assert gain(256) < gain(1)


def test_attention_is_what_a_long_prompt_costs(catalog: Catalog) -> None:
    """Measured: 3,883 tokens/s over a prompt of 198,031 tokens, four times less than over short ones."""

    def prefill(tokens: int) -> float:
        plan = api.plan(
            "glm-4.6",
            hardware="4xh200",
            known=catalog,
            pins=Pins(engine="vllm", quantization="FP8", tensor_parallel=4, eager=True, speculative="mtp"),
            input_tokens=tokens,
            output_tokens=1,
        )
        assert plan.chosen is not None
        assert plan.chosen.speed.prefill_tokens_per_second is not None
        return plan.chosen.speed.prefill_tokens_per_second

    assert prefill(198_031) == pytest.approx(3_883, rel=0.2)
    assert prefill(2_000) > 3.5 * prefill(198_031)


def test_a_link_over_pcie_costs_prefill(catalog: Catalog) -> None:
    fast = report_from_spec("8xh100", catalog)
    slow = msgspec.structs.replace(fast, links=())
    pins = Pins(engine="vllm", quantization="FP8", tensor_parallel=8)
    over_nvlink, over_pcie = (chosen(catalog, "glm-4.6", each, pins).speed for each in (fast, slow))
    assert over_nvlink.prefill_tokens_per_second is not None
    assert over_pcie.prefill_tokens_per_second is not None
    assert over_pcie.prefill_tokens_per_second < over_nvlink.prefill_tokens_per_second / 2
    assert figures(over_pcie)[0] < figures(over_nvlink)[0]


@pytest.mark.parametrize("concurrency", [1, 3, 7, 8, 9, 16, 100])
def test_no_more_is_served_than_so_many_requests_ask_for(catalog: Catalog, concurrency: int) -> None:
    """Eight replicas and nine requests: one replica runs two, and none is counted twice."""
    pins = Pins(engine="sglang", quantization="FP8", tensor_parallel=1, data_parallel=8)
    found = chosen(catalog, "glm-4.5-air", "8xb200", pins, concurrency)
    decode, throughput = figures(found.speed)
    assert throughput <= concurrency * decode
    assert found.speed.concurrency == concurrency
    fewer = chosen(catalog, "glm-4.5-air", "8xb200", pins, max(1, concurrency - 1))
    assert figures(fewer.speed)[1] <= throughput


def test_a_link_is_as_fast_as_the_report_tells(catalog: Catalog) -> None:
    told = report_from_spec("4xa100-pcie-80gb", catalog)

    def with_links(kind: str, rate: int | None) -> Speed:
        links = tuple(msgspec.structs.replace(each, kind=kind, bandwidth_bytes_per_second=rate) for each in told.links)
        report = msgspec.structs.replace(told, links=links)
        return chosen(catalog, "glm-4.5-air", report, Pins(engine="vllm", format="bf16", tensor_parallel=4)).speed

    rates = [with_links("pcie", rate * 10**9) for rate in (1, 16, 63)]
    prefill = [each.prefill_tokens_per_second or 0 for each in rates]
    assert prefill == sorted(prefill)
    assert prefill[2] > 2 * prefill[0]
    assert {each.basis for each in rates} == {"derived"}
    assert with_links("pcie", None).basis == "assumed"
    assert (with_links("nvlink", 300 * 10**9).prefill_tokens_per_second or 0) > prefill[2]


def test_a_round_waits_for_the_wire_that_all_its_batches_share() -> None:
    """Four batches of ten: on their way each adds a second of wire to its own pass, and together they take four."""
    quick = one_pass(stages=4, crossings=1, crossing_seconds=0.001)
    slow = one_pass(stages=4, crossings=1, crossing_seconds=0.1)
    assert quick.round_seconds(40) == pytest.approx(quick.seconds(10))
    assert slow.seconds(10) == pytest.approx(one_pass().seconds(10) + 1.0)
    assert slow.round_seconds(40) == pytest.approx(4.0)
