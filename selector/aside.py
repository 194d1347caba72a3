"""What it costs that experts and layers lie in main memory: a slower step, and a slower prompt.

A step reads what it touches there at the bandwidth of main memory while the host computes it, so that the longer of
the two counts, and every such layer is a way there and back. A prompt of 32 tokens or more is computed on the device
(llama.cpp's ``--op-offload``, 32 by ``GGML_OP_OFFLOAD_MIN_BATCH`` of ggml-cuda): the weights are copied there over
PCIe, once a batch, only the experts that some token of the batch wants
(https://github.com/ggml-org/llama.cpp/pull/15346), and all of them to the first device
(``ggml_backend_sched_backend_id_from_cur`` of ggml-backend.cpp takes the first that would).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from selector.architecture import StoredWeights, active_parameters, layer
from selector.contract import Limits
from selector.devices import Device
from selector.engine_facts import EngineFacts
from selector.facts import Architecture
from selector.steps import Pass


class Aside(NamedTuple):
    """What of a model lies in main memory, and the rates there: bytes and operations a second that are reached.

    ``experts`` is the share of all routed experts, ``layers`` of all layers with their KV cache, ``operations`` of a
    token's arithmetic. ``experts_bytes`` and ``rest_bytes`` are what a batch of a prompt copies at ``copy_rate``;
    ``score_operations`` are attention's in those layers, one token before one other.
    """

    experts: float
    layers: float
    operations: float
    bandwidth: float
    flops: float
    crossing_seconds: float
    experts_bytes: float
    rest_bytes: float
    copy_rate: float
    expert_share: float
    score_operations: float
    score_flops: float
    token_operations: float

    def slowed(self, one: Pass) -> Pass:
        """The passes of the same layout as if everything lay on the devices, with what lies in main memory."""
        read = self.experts * one.experts_bytes * self.expert_share + self.layers * one.rest_bytes
        computed = self.operations * self.token_operations / self.flops
        # What is computed for longer than it is read is not waited for a second time, and the other way round.
        slower = -1.0 if computed > read / self.bandwidth else one.bandwidth / self.bandwidth - 1
        there = computed if slower < 0 else 0.0
        return one._replace(
            experts_bytes=one.experts_bytes * (1 + self.experts * slower),
            rest_bytes=one.rest_bytes * (1 + self.layers * slower),
            kv_bytes=one.kv_bytes * (1 + self.layers * (one.bandwidth / self.bandwidth - 1)),
            operations_seconds=one.operations_seconds * (1 - self.operations) + there,
            launch_seconds=one.launch_seconds + self.crossing_seconds,
        )

    def step_seconds(self, sequences: int) -> float:
        """What a step of so many sequences takes at least: the experts that they touch are read."""
        touched = 1 - (1 - self.expert_share) ** sequences
        return self.experts_bytes * touched / self.bandwidth

    def prompt_seconds_per_token(self, prompt_tokens: int, batched_tokens: int) -> float:
        """What is added for each token of a prompt: copies, and attention over the cache in main memory."""
        batches = math.ceil(prompt_tokens / batched_tokens)
        touched = 1 - (1 - self.expert_share) ** min(prompt_tokens, batched_tokens)
        copied = batches * (self.experts_bytes * touched + self.rest_bytes) / self.copy_rate
        return copied / prompt_tokens + self.score_operations * prompt_tokens / 2 / self.score_flops


@lru_cache(maxsize=64)
def _active(arch: Architecture) -> tuple[float, float]:
    """Parameters that a token reads, and those of routed experts among them."""
    experts = layer(arch, dense=False).parts["routed_experts"].parameters
    sparse_layers = arch.num_hidden_layers - arch.first_k_dense_replace
    routed = sparse_layers * experts * arch.num_experts_per_tok / arch.n_routed_experts
    return active_parameters(arch), routed


def aside(arch: Architecture, weights: StoredWeights, engine: EngineFacts, device: Device, limits: Limits) -> Aside:
    """The costs of what ``limits`` leave in main memory beside devices like ``device``.

    Raises:
        ValueError: the engine's profile has no ``offload``, or no rates of main memory.
    """
    rule, speed = engine.offload, engine.speed
    if rule is None or speed.cpu_bandwidth_gb_per_second is None or speed.cpu_tflops is None:
        raise ValueError(f"{engine.name} is not planned with weights in main memory")
    sparse_layers = arch.num_hidden_layers - arch.first_k_dense_replace
    whole = 0 if limits.gpu_layers is None else arch.num_hidden_layers - limits.gpu_layers
    experts, layers = limits.cpu_expert_layers / sparse_layers, whole / arch.num_hidden_layers
    active, routed = _active(arch)
    rest = sum(size for name, size in weights.sparse_layer.items() if name != "routed_experts")
    facts = device.facts
    pcie = device.pcie_bytes_per_second or (
        rule.unknown_gb_per_second * 1e9
        if facts is None or facts.pcie_gb_per_second is None
        else facts.pcie_gb_per_second * 1e9
    )
    return Aside(
        experts=experts,
        layers=layers,
        operations=(experts * routed + layers * (active - routed)) / active,
        bandwidth=speed.cpu_bandwidth_gb_per_second * 1e9 * speed.bandwidth_efficiency,
        flops=speed.cpu_tflops * 1e12 * speed.decode_efficiency,
        crossing_seconds=limits.cpu_expert_layers * rule.crossing_seconds,
        experts_bytes=limits.cpu_expert_layers * weights.sparse_layer.get("routed_experts", 0.0),
        rest_bytes=whole * rest,
        copy_rate=pcie * rule.copy_efficiency,
        expert_share=arch.num_experts_per_tok / arch.n_routed_experts,
        score_operations=4.0 * whole * arch.num_attention_heads * arch.head_dim,
        score_flops=speed.cpu_tflops * 1e12 * speed.attention_efficiency,
        token_operations=2.0 * active,
    )
