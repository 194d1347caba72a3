"""What a stage's fullest rank holds beside the KV cache: bytes, for a batch.

``activations``  the larger of two peaks of the engine's profile run: ``batched_tokens`` through one layer (the
                 residual stream in ``activation_copies``; for every routed copy of a token its widest input or
                 output and what lies between, as fused_moe's ``cache13`` and ``cache2`` hold them), and, on the
                 last stage, ``max_sequences`` rows of 32-bit logits in ``logits_copies`` (sampling sorts them,
                 with indices and buffers). A vision tower's profile, ``vision_tokens`` of the largest image or
                 video through one block, is a third peak; its outputs stay beside the others.
``graphs``       captured CUDA graphs, a layer at a time.
``runtime``      the context of the driver and, over several devices, the collectives' buffers.

The constants stand in the ``[memory]`` tables of ``profiles/engines`` with the logs that they were held against.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from selector.contract import Parallel
from selector.engine_facts import EngineFacts
from selector.facts import Architecture
from selector.legality import vision_heads_indivisible
from selector.weights import Stage, rank_kv_bytes_per_token


class Needs(NamedTuple):
    """What one stage's fullest rank holds beside the KV cache, and what a token of that costs there.

    ``beside_weights`` is the sum of activations, graphs and runtime.
    """

    weights: int
    activations: int
    graphs: int
    runtime: int
    kv_bytes_per_token: int
    beside_weights: int


def activation_bytes(
    arch: Architecture,
    engine: EngineFacts,
    parallel: Parallel,
    batched_tokens: int,
    max_sequences: int,
    *,
    first: bool = True,
    last: bool = True,
    whole_vision: bool = False,
) -> int:
    """Peak of the profile run on one rank of a stage: 16-bit activations, 32-bit logits on the last stage."""
    rule = engine.memory
    width = arch.moe_intermediate_size / (1 if parallel.expert else parallel.tensor)
    residual = 2 * arch.hidden_size * rule.activation_copies
    routed = 2 * arch.num_experts_per_tok * (max(2 * width, arch.hidden_size) + width)
    peak = batched_tokens * (residual + routed)
    if last:
        hidden = 2 * arch.hidden_size * batched_tokens
        peak = max(peak, hidden + 4 * arch.vocab_size * max_sequences * rule.logits_copies)
    tower = arch.vision
    if tower is not None and first and rule.vision_tokens:
        patches = rule.vision_tokens * tower.spatial_merge_size**2
        # Within a block: the stream and its norm, the gate and up projections and their product.
        inner = 3 * tower.out_hidden_size / (1 if whole_vision else parallel.tensor)
        encoded = 2 * rule.vision_tokens * tower.out_hidden_size
        peak = max(peak + encoded, 2 * patches * (2 * tower.hidden_size + inner))
    return int(peak)


@lru_cache(maxsize=1 << 14)  # pure, and the same for every device that a layout is tried on
def stage_needs(
    arch: Architecture,
    engine: EngineFacts,
    stages: tuple[Stage, ...],
    tensor: int,
    pipeline: int,
    expert: bool,
    eager: bool,
    element_bytes: int,
    batched_tokens: int,
    max_sequences: int,
) -> tuple[Needs, ...]:
    """What the stages need, each that differs from the others once."""
    rule = engine.memory
    parallel = Parallel(tensor=tensor, pipeline=pipeline, expert=expert)
    whole_vision = vision_heads_indivisible(arch, parallel)
    runtime = rule.runtime_bytes + (rule.collective_bytes if parallel.ranks > 1 else 0)
    found = []
    for stage in stages:
        activations = activation_bytes(
            arch,
            engine,
            parallel,
            batched_tokens,
            max_sequences,
            first=stage.first,
            last=stage.last,
            whole_vision=whole_vision,
        )
        graphs = 0 if eager else rule.graphs_bytes_per_layer * stage.layers
        per_token = rank_kv_bytes_per_token(arch, parallel, stage.kv_layers, element_bytes)
        beside = activations + graphs + runtime
        found.append(Needs(stage.weight_bytes, activations, graphs, runtime, per_token, beside))
    return tuple(dict.fromkeys(found))
