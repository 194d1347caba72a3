"""How long one step takes: the time model under every speed. Seconds.

A pass of ``s`` sequences through the model, each adding one token, takes on every rank

    gpu(s)  = weights(s) / (bandwidth x bandwidth_efficiency)       weights that s sequences touch, and their KV cache
            + 2 x active parameters x s / (rate x decode_efficiency)
            + 2 x layers x (collective latency + all-reduced bytes / link)         with tensor parallelism
            + s x sequence_seconds                                   sampling and scheduling a token
    pass(s) = gpu(s) + layers x layer_seconds                        with CUDA graphs
            = max(gpu(s), layers x eager_layer_seconds)              without: the host launches, all else hides behind

    + per node crossed: network latency + s x handed-over bytes / network rate        with stages on several nodes

``weights(s)``: attention, shared parts and head once; of the routed experts the expected number of different ones,
``E x (1 - (1 - k/E)^s)`` of them when each of ``s`` tokens picks ``k`` of ``E`` at random. Over ``tensor`` ranks each
reads its share. Pipeline stages pass one sequence on in turn; a full pipeline holds as many batches as stages, and
each of them needs the network for its own time: a slow one is what the round waits for.
A prompt's token costs ``2 x active parameters`` operations at ``prefill_efficiency`` of the rate of the kernel,
``4 x layers x heads x head_dim x position`` for attention at ``attention_efficiency`` of the 16-bit rate, and its
share of the all-reduces and of the way to the next node. With MTP a pass verifies the proposed tokens of each sequence
beside its last one.

Why each term is there: for one sequence at tensor parallel 4 and more the latency term is nearly all (14.8 ms a
token over 92 layers, whatever the bandwidth); on a Mac the bandwidth; at concurrency 16 to 100 the touched experts;
beyond, the sequences' own cost; for prompts of 32,000 tokens attention. The constants stand in ``profiles/engines``
with their sources, and ``docs/accuracy.md`` holds what they give against what was measured.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from selector.architecture import active_parameters
from selector.devices import Device, Way
from selector.engine_facts import CollectiveRule, EngineFacts
from selector.facts import Architecture

if TYPE_CHECKING:
    from selector.interconnect import Wire

#: Bytes of a hidden state's element: 16 bits in every engine.
HIDDEN_BYTES = 2
#: What a pipeline stage hands to the next, a token: the hidden state, and the residual that is added to it later (vLLM
#: 0.33 ``vllm/model_executor/models/glm4_moe.py``, IntermediateTensors).
HANDED_STATES = 2
#: Expert parallelism against slices of the experts: +3.5 % to -7 % published, by machine and engine.
EXPERT_PARALLEL_FACTOR = 0.98
#: All-reduces a layer under tensor parallelism: after attention and after the experts.
COLLECTIVES_PER_LAYER = 2


class Site(NamedTuple):
    """What a rank works with, at full efficiency: bytes and operations a second, and the way to the other ranks.

    ``None`` is unknown. ``wide_flops`` is the 16-bit rate that attention runs at, ``link_seconds`` the latency of a
    small all-reduce, ``link_bytes_per_second`` what large ones reach. ``assumed`` says that a rate is nobody's figure
    of this device, ``link_assumed`` that the link's is none. ``network_seconds`` is the latency of a handover to a
    stage on another node, ``network_bytes_per_second`` what the way there reaches, ``network_assumed`` that nobody told
    of it.
    """

    bandwidth: float | None
    flops: float | None
    wide_flops: float | None
    assumed: bool
    link_seconds: float
    link_bytes_per_second: float
    link_assumed: bool
    network_seconds: float = 0.0
    network_bytes_per_second: float = math.inf
    network_assumed: bool = False


class Pass(NamedTuple):
    """The coefficients of one candidate's passes, ready for many batch sizes.

    Bytes and operations are of one tensor rank, all stages together; ``kv_bytes`` a sequence at the mean context.
    ``crossings`` is how often a token goes to another node, ``crossing_seconds`` what its bytes take each time.
    """

    experts_bytes: float
    rest_bytes: float
    expert_share: float
    kv_bytes: float
    bandwidth: float
    operations_seconds: float
    reduce_seconds: float
    reduce_latency: float
    launch_seconds: float
    eager: bool
    sequence_seconds: float
    handover_seconds: float
    tokens: int
    gain: float
    draft_share: float
    draft_seconds: float
    stages: int
    pipeline_efficiency: float
    crossings: int = 0
    crossing_seconds: float = 0.0

    def seconds(self, sequences: float) -> float:
        """One pass of so many sequences."""
        tokens = sequences * self.tokens
        touched = 1.0 - math.pow(1.0 - self.expert_share, tokens)
        gpu = (self.rest_bytes + self.experts_bytes * touched + sequences * self.kv_bytes) / self.bandwidth
        gpu += tokens * (self.operations_seconds + self.reduce_seconds + self.sequence_seconds) + self.reduce_latency
        taken = max(gpu, self.launch_seconds) if self.eager else gpu + self.launch_seconds
        if self.crossings:
            taken += self.crossings * tokens * self.crossing_seconds
        return (taken + self.handover_seconds) * self.draft_share + self.draft_seconds

    def round_seconds(self, sequences: float) -> float:
        """Seconds in which ``sequences`` that run together each get their next ``gain`` tokens."""
        if self.stages == 1:
            return self.seconds(sequences)
        # Every stage works on another batch; with fewer sequences than stages some stand idle.
        batch = max(1.0, sequences / self.stages)
        taken = self.seconds(batch) / (self.pipeline_efficiency if sequences >= self.stages else 1.0)
        # Every batch goes over the same wire in turn.
        return max(taken, sequences * self.tokens * self.crossing_seconds) if self.crossings else taken


def site(engine: EngineFacts, device: Device, way: Way, kernel: str, wire: Wire | None = None) -> Site:
    """What the device gives a kernel, the slowest way between two of a group's devices, and the one between nodes.

    ``wire`` is ``None`` where the network is not known. A host's bandwidth and rate are assumed: nobody probes them.
    """
    if device.kind == "cpu":
        rule = engine.speed
        bandwidth = None if rule.cpu_bandwidth_gb_per_second is None else rule.cpu_bandwidth_gb_per_second * 1e9
        flops = None if rule.cpu_tflops is None else rule.cpu_tflops * 1e12
        return Site(bandwidth, flops, flops, True, 0.0, math.inf, False)
    return Site(
        device.bandwidth_bytes_per_second,
        device.flops(kernel),
        device.flops("bf16"),
        False,
        *_link(engine, device, way, wire),
        *_network(engine.speed.collectives, wire),
    )


def _network(rule: CollectiveRule | None, wire: Wire | None) -> tuple[float, float, bool]:
    """Latency and rate of a handover to another node, and whether nobody told of the way."""
    if rule is None:
        return 0.0, math.inf, False
    for each in rule.networks:
        if wire is not None and each.kind == wire.kind:
            rate: float | None = wire.bytes_per_second
            if wire.assumed or rate is None:
                rate = min(rate or math.inf, each.unknown_gb_per_second * 1e9)
            return each.handover_seconds, rate * each.efficiency, wire.assumed or wire.bytes_per_second is None
    return rule.network_seconds, math.inf, True


def _link(engine: EngineFacts, device: Device, way: Way, wire: Wire | None) -> tuple[float, float, bool]:
    rule = engine.speed.collectives
    if rule is None or way == "none":
        return 0.0, math.inf, False
    if way == "network" and wire is not None:
        for each in rule.networks:
            if each.kind == wire.kind:
                return each.all_reduce_seconds, *_network(rule, wire)[1:]
    facts = device.facts
    if way == "fast":
        known = None if facts is None or facts.link_gb_per_second is None else facts.link_gb_per_second * 1e9
        rate = device.link_bytes_per_second or known
        if rate is not None:
            return rule.link_seconds, rate * rule.link_efficiency, device.link_bytes_per_second is None
    # What the report tells of PCIe, else the card's own at its best, else a common rate: the last two are assumed.
    known = None if facts is None or facts.pcie_gb_per_second is None else facts.pcie_gb_per_second * 1e9
    rate = device.pcie_bytes_per_second or known or rule.unknown_gb_per_second * 1e9
    return rule.pcie_seconds, rate * rule.pcie_efficiency, device.pcie_bytes_per_second is None


def all_reduce_bytes(arch: Architecture, tensor: int) -> float:
    """Bytes that one token's all-reduces move over a rank's link, all layers: a ring sends ``2 (n - 1) / n``."""
    if tensor == 1:
        return 0.0
    return (
        COLLECTIVES_PER_LAYER * arch.num_hidden_layers * arch.hidden_size * HIDDEN_BYTES * 2.0 * (tensor - 1) / tensor
    )


@lru_cache(maxsize=64)
def operations_per_token(arch: Architecture) -> float:
    """Operations of one token outside attention's scores: two for each active parameter."""
    return 2.0 * active_parameters(arch)


class Layout(NamedTuple):
    """How a model's work is cut: ranks, stages, how many nodes a replica lies on, whole experts on a rank."""

    tensor: int
    pipeline: int
    nodes: int
    expert: bool

    @property
    def crossings(self) -> int:
        """How many handovers between stages go to another node: those of a node stand together."""
        return min(self.nodes, self.pipeline) - 1


def handed_over_bytes(arch: Architecture) -> float:
    """Bytes of a token that one stage hands to the next.

    Each tensor rank sends its share, and the next stage gathers them: together the whole, once.
    """
    return float(HANDED_STATES * arch.hidden_size * HIDDEN_BYTES)


class Decoding(NamedTuple):
    """How answers are written: with MTP or not, without CUDA graphs or with, and what a token's KV cache takes."""

    mtp: bool
    eager: bool
    kv_bytes_per_token: float
    context_tokens: float


@lru_cache(maxsize=1 << 14)  # pure, and the same for every device of a kind
def passes(
    arch: Architecture,
    engine: EngineFacts,
    here: Site,
    layout: Layout,
    decoding: Decoding,
    experts_bytes: float,
    rest_bytes: float,
    speed_factor: float,
) -> Pass | None:
    """The coefficients of a candidate's passes at a mean context, or ``None`` where the bandwidth is unknown.

    ``experts_bytes`` and ``rest_bytes`` are what is stored of all routed experts and of all else that a token reads.
    An unknown arithmetic rate leaves its term out: what one sequence takes is bound by bandwidth and latency.
    """
    if here.bandwidth is None:
        return None
    rule = engine.speed
    tensor, layers = layout.tensor, arch.num_hidden_layers
    if layout.expert:
        speed_factor *= EXPERT_PARALLEL_FACTOR
    mtp = rule.mtp if decoding.mtp else None
    stages = layout.pipeline if "pipeline" in engine.parallel else 1
    collectives = rule.collectives
    handover, crossings = 0.0, 0
    if layout.pipeline > 1 and collectives is not None:
        crossings = layout.crossings
        inside = layout.pipeline - 1 - crossings
        handover = inside * collectives.handover_seconds + crossings * here.network_seconds
    flops = None if here.flops is None else here.flops * tensor * speed_factor * rule.decode_efficiency
    return Pass(
        experts_bytes=experts_bytes / tensor,
        rest_bytes=rest_bytes / tensor,
        expert_share=arch.num_experts_per_tok / arch.n_routed_experts,
        kv_bytes=decoding.context_tokens * decoding.kv_bytes_per_token / min(tensor, arch.num_key_value_heads),
        bandwidth=here.bandwidth * rule.bandwidth_efficiency * speed_factor,
        operations_seconds=0.0 if flops is None else operations_per_token(arch) / flops,
        reduce_seconds=all_reduce_bytes(arch, tensor) / here.link_bytes_per_second,
        reduce_latency=COLLECTIVES_PER_LAYER * layers * here.link_seconds if tensor > 1 else 0.0,
        launch_seconds=layers * (rule.eager_layer_seconds if decoding.eager else rule.layer_seconds),
        eager=decoding.eager,
        sequence_seconds=rule.sequence_seconds,
        handover_seconds=handover,
        tokens=1 if mtp is None else 1 + mtp.proposed_tokens,
        gain=1.0 if mtp is None else 1.0 + mtp.accepted_tokens,
        draft_share=1.0 if mtp is None else 1.0 + mtp.proposed_tokens * arch.num_nextn_predict_layers / layers,
        draft_seconds=0.0 if mtp is None else mtp.step_seconds,
        stages=stages,
        pipeline_efficiency=1.0 if stages == 1 or collectives is None else collectives.pipeline_efficiency,
        crossings=crossings,
        crossing_seconds=handed_over_bytes(arch) / here.network_bytes_per_second if crossings else 0.0,
    )


@lru_cache(maxsize=1 << 14)  # pure, and the same for every device of a kind
def prefill_seconds_per_token(
    arch: Architecture,
    engine: EngineFacts,
    here: Site,
    layout: Layout,
    prompt_tokens: int,
    speed_factor: float,
    chunk_tokens: int,
) -> float | None:
    """Seconds a token of a prompt takes, mean over the prompt; ``None`` where the arithmetic rate is unknown.

    Stages of a pipeline work on consecutive chunks of ``chunk_tokens``; each chunk goes over the network whole, and a
    stage that hands one over does nothing else.
    """
    if here.flops is None:
        return None
    rule, tensor = engine.speed, layout.tensor
    if layout.expert:
        speed_factor *= EXPERT_PARALLEL_FACTOR
    linear = operations_per_token(arch) / (here.flops * rule.prefill_efficiency * tensor * speed_factor)
    scores = 4.0 * arch.num_hidden_layers * arch.num_attention_heads * arch.head_dim * prompt_tokens / 2
    attention = scores / ((here.wide_flops or here.flops) * rule.attention_efficiency * tensor)
    seconds = linear + attention + all_reduce_bytes(arch, tensor) / here.link_bytes_per_second
    if layout.pipeline > 1 and "pipeline" in engine.parallel and rule.collectives is not None:
        seconds /= layout.pipeline * rule.collectives.pipeline_efficiency
        if layout.crossings and here.network_bytes_per_second < math.inf:  # of a network that is known
            seconds += handed_over_bytes(arch) / here.network_bytes_per_second
            seconds += here.network_seconds / max(1, min(prompt_tokens, chunk_tokens))
    return seconds
