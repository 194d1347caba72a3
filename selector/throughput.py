"""How fast a candidate answers: decode, throughput, prefill, first token, load. Seconds and tokens a second.

One step of decoding ``s`` sequences on a replica takes

    step(s) = bytes(s) / (ranks' bandwidth x efficiency)
            + layers x (layer latency + collectives)
            + (s - 1) x flops_per_token / (ranks' arithmetic x decode efficiency x shard efficiency)

``bytes(s)`` are the weights that ``s`` sequences touch (attention, shared parts and head once; of the routed
experts the expected number of different ones, ``E x (1 - (1 - k/E)^s)``) and the KV cache they read. At
tensor parallel 4 and more a single sequence is bound by the latency term (0.16-0.20 ms a layer measured for
GLM-4.6 with CUDA graphs), on a Mac by the bandwidth term. ``shard efficiency`` is the loss of wide groups: below
``full_rate_columns`` of an expert a rank, arithmetic and batches slow in proportion, which is why two replicas of
tensor parallel 4 beat one of 8 (measured, 8xH200). Pipeline stages work in turn for one sequence and side
by side for many. Constants stand in ``profiles/engines`` and ``profiles/accelerators`` with their sources.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from selector.architecture import StoredWeights, active_parameters
from selector.contract import Limits, Parallel, Speed
from selector.devices import Device, Group
from selector.facts import Architecture, Basis, EngineFacts, Loads
from selector.request import Workload

#: Seconds of one all-reduce of a small message (assumed: NCCL's latency over NVLink and over PCIe).
COLLECTIVE_SECONDS = {"fast": 1.0e-5, "pcie": 4.0e-5, "none": 0.0}
#: All-reduces a layer under tensor parallelism: after attention and after the experts.
COLLECTIVES_PER_LAYER = 2
#: Seconds to hand a step to the next pipeline stage.
HANDOVER_SECONDS = 2.0e-4
#: Share of the time that the stages of a pipeline are busy at once (assumed: stages of unequal length, few batches).
PIPELINE_EFFICIENCY = 0.55
#: Share of proposed tokens that one MTP layer gets right (measured 0.89 for GLM-4.6 on vLLM,
#: https://github.com/KempnerInstitute/hpc-agentic-recipes), lowered for the verification's own cost.
MTP_GAIN = 1.6
#: Expert parallelism against tensor-parallel experts: +1.6 % to -7 % published, by machine.
EXPERT_PARALLEL_FACTOR = 0.98


class _Rates(NamedTuple):
    """Of one rank: bytes a second, operations a second, both at full efficiency."""

    bandwidth: float | None
    flops: float | None
    assumed: bool


def _rates(engine: EngineFacts, device: Device, kernel: str) -> _Rates:
    if device.kind == "cpu":
        rule = engine.speed
        bandwidth = None if rule.cpu_bandwidth_gb_per_second is None else rule.cpu_bandwidth_gb_per_second * 1e9
        return _Rates(bandwidth, None if rule.cpu_tflops is None else rule.cpu_tflops * 1e12, assumed=True)
    return _Rates(device.bandwidth_bytes_per_second, device.flops(kernel), assumed=False)


def _touched_bytes(arch: Architecture, weights: StoredWeights, sequences: float) -> float:
    """Weights that a step of so many sequences reads, whole model."""
    share = arch.num_experts_per_tok / arch.n_routed_experts
    different = 1 - math.pow(1 - share, sequences)
    sparse = dict(weights.sparse_layer)
    experts = sparse.pop("routed_experts", 0.0)
    sparse_layers = arch.num_hidden_layers - arch.first_k_dense_replace
    return (
        sparse_layers * (sum(sparse.values()) + experts * different)
        + arch.first_k_dense_replace * sum(weights.dense_layer.values())
        + weights.lm_head
    )


def estimate(
    *,
    arch: Architecture,
    weights: StoredWeights,
    engine: EngineFacts,
    loads: Loads,
    group: Group,
    device: Device,
    parallel: Parallel,
    limits: Limits,
    kv_bytes_per_token: int,
    kv_cache_tokens: int,
    workload: Workload,
    concurrency: int | None,
    download_bytes: int,
    speed_factor: float = 1.0,
) -> Speed:
    """The speed of a candidate at a workload. ``concurrency`` ``None`` is as many as fit at the mean request.

    ``speed_factor`` is what the engine's known faults leave (:func:`selector.legality.rules`).

    A rate that rests on an unknown bandwidth or arithmetic rate is ``None``.
    """
    rule = engine.speed
    rates = _rates(engine, device, loads.kernel)
    request_tokens = workload.input_tokens + workload.output_tokens
    most = min(limits.max_sequences, max(1, kv_cache_tokens // max(1, request_tokens))) * parallel.data
    running = max(1, most if concurrency is None else min(concurrency, most))
    per_replica = max(1.0, running / parallel.data)
    load = rule.start_seconds + download_bytes / (rule.read_gb_per_second * 1e9)
    basis: Basis = "assumed" if rates.assumed or rates.bandwidth is None or rates.flops is None else "derived"
    unknown = Speed(
        decode_tokens_per_second=None,
        throughput_tokens_per_second=None,
        prefill_tokens_per_second=None,
        time_to_first_token_seconds=None,
        load_seconds=round(load, 1),
        concurrency=running,
        basis=basis,
    )
    if rates.bandwidth is None:
        return unknown
    bandwidth = rates.bandwidth * rule.bandwidth_efficiency * parallel.tensor * speed_factor
    # Whole experts on a rank gain nothing measurable over slices of them: the loss is the group's, not the kernel's.
    width = arch.moe_intermediate_size // parallel.tensor
    shard = min(1.0, width / rule.full_rate_columns) * (EXPERT_PARALLEL_FACTOR if parallel.expert else 1.0)
    flops = (rates.flops or math.inf) * parallel.tensor * shard * speed_factor
    operations = 2.0 * active_parameters(arch)
    layer = rule.eager_layer_seconds if limits.eager else rule.layer_seconds
    if parallel.tensor > 1:
        layer += COLLECTIVES_PER_LAYER * COLLECTIVE_SECONDS[group.link]
    latency = arch.num_hidden_layers * layer + (parallel.pipeline - 1) * HANDOVER_SECONDS
    context = workload.input_tokens + workload.output_tokens / 2

    def step(sequences: float) -> float:
        read = _touched_bytes(arch, weights, sequences) + sequences * context * kv_bytes_per_token
        return read / bandwidth + latency + (sequences - 1) * operations / (flops * rule.decode_efficiency)

    gain = MTP_GAIN if limits.speculative == "mtp" else 1.0
    stages = parallel.pipeline if "pipeline" in engine.parallel else 1
    one = step(1.0)
    if rates.flops is None:
        # Decoding one sequence is bound by bandwidth and latency; the rest needs an arithmetic rate nobody published.
        return msgspec.structs.replace(unknown, decode_tokens_per_second=round(gain / one, 2))
    side_by_side = stages * PIPELINE_EFFICIENCY if stages > 1 else 1.0
    prefill = flops * rule.prefill_efficiency * side_by_side / operations
    # Stages of a pipeline hold different sequences: a full one finishes a step of each in turn.
    each = max(1.0, per_replica / side_by_side)
    decode_all = side_by_side * each / step(each) * gain
    seconds_a_request = workload.input_tokens / prefill + workload.output_tokens / decode_all
    return Speed(
        decode_tokens_per_second=round(gain / one, 2),
        throughput_tokens_per_second=round(parallel.data * workload.output_tokens / seconds_a_request, 1),
        prefill_tokens_per_second=round(prefill, 1),
        time_to_first_token_seconds=round(workload.input_tokens / prefill + one, 3),
        load_seconds=round(load, 1),
        concurrency=running,
        basis=basis,
    )
