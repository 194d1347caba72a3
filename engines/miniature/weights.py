"""The miniatures' weights: the tensors of the released checkpoints, by name and shape, filled from a seed."""

from __future__ import annotations

import math

from engines.miniature.call import CALL_LOGIT, CHAIN, EMBEDDING_SIZE, SECOND_LOGIT, TRIGGERS
from engines.miniature.tensors import Fill, Signs, Tensor
from engines.miniature.tokenizer import Vocabulary
from selector.facts import Architecture, Vision
from selector.values import Value

#: Standard deviation of matrices, as ``initializer_range`` of the released config.json...
SPREAD = 0.02
#: ... and for very wide ones, this over the root of their inputs: what a layer adds stays small beside the
#: embedding.
WIDE_SPREAD = 0.45
#: Wider for embeddings, so that a word depends on the word before and an answer does not stick to one.
EMBEDDING_SPREAD = 0.12
#: Standard deviation of the logits of words, whatever the width. At temperature 1 too, an answer is then
#: words, but for one token in a thousand.
LOGIT_SPREAD = 4.0
#: How much quieter the logits of other tokens are: at temperature 0 an answer is words, and goes on to its
#: limit, since the tokens that end it are among the quiet ones.
QUIET = 1 / 16


def _random(name: str, *shape: int) -> Tensor:
    spread = min(SPREAD, WIDE_SPREAD / math.sqrt(math.prod(shape[1:])))
    return Tensor(name=name, shape=shape, fills=(Fill(elements=math.prod(shape), spread=spread),))


def _ones(name: str, *shape: int) -> Tensor:
    return Tensor(name=name, shape=shape, fills=(Fill(elements=math.prod(shape), mean=1.0),))


def _zeros(name: str, *shape: int) -> Tensor:
    return Tensor(name=name, shape=shape, fills=(Fill(elements=math.prod(shape)),))


class Tongue(Value, frozen=True, kw_only=True):
    """What the model can say: the ids of ``words`` (first, end), and those of a tool call.

    ``call`` is what starts it, then each step: one token, or a second one that may stand in for it.
    """

    words: tuple[int, int]
    call: tuple[tuple[int, ...], ...] = ()


def tongue(vocabulary: Vocabulary) -> Tongue:
    steps = (TRIGGERS, *CHAIN)
    return Tongue(
        words=vocabulary.words, call=tuple(tuple(vocabulary.token_id(token) for token in step) for step in steps)
    )


def tensors(architecture: Architecture, tongue: Tongue) -> tuple[Tensor, ...]:
    """Every tensor of a checkpoint, in the layout of the released ones.

    Names are those of zai-org's GLM-4.5, 4.6
    and 4.5V on the hub; the sums of their elements, for the real shapes, are the published parameter counts.
    """
    vision = architecture.vision
    language = "model" if vision is None else "model.language_model"
    hidden = architecture.hidden_size
    found = [_embedding(f"{language}.embed_tokens.weight", architecture, tongue)]
    for number in range(architecture.num_hidden_layers):
        dense = number < architecture.first_k_dense_replace
        found += _layer(architecture, f"{language}.layers.{number}", dense=dense)
    found.append(_ones(f"{language}.norm.weight", hidden))
    for number in range(architecture.num_nextn_predict_layers):
        found += _prediction_layer(architecture, f"{language}.layers.{architecture.num_hidden_layers + number}", tongue)
    if vision is not None:
        found += _tower(vision, "model.visual")
    found.append(_head(architecture, "lm_head.weight", tongue))
    return tuple(found)


def _layer(architecture: Architecture, prefix: str, *, dense: bool) -> list[Tensor]:
    hidden, width = architecture.hidden_size, architecture.head_dim
    found = [_ones(f"{prefix}.input_layernorm.weight", hidden)]
    for name, heads in (
        ("q_proj", architecture.num_attention_heads),
        ("k_proj", architecture.num_key_value_heads),
        ("v_proj", architecture.num_key_value_heads),
    ):
        found.append(_random(f"{prefix}.self_attn.{name}.weight", heads * width, hidden))
        if architecture.attention_bias:
            found.append(_zeros(f"{prefix}.self_attn.{name}.bias", heads * width))
    found.append(_random(f"{prefix}.self_attn.o_proj.weight", hidden, architecture.num_attention_heads * width))
    if architecture.use_qk_norm:
        found += [_ones(f"{prefix}.self_attn.{name}.weight", width) for name in ("q_norm", "k_norm")]
    found.append(_ones(f"{prefix}.post_attention_layernorm.weight", hidden))
    if dense:
        return found + _gated(f"{prefix}.mlp", hidden, architecture.intermediate_size)
    experts, expert_width = architecture.n_routed_experts, architecture.moe_intermediate_size
    found.append(_random(f"{prefix}.mlp.gate.weight", experts, hidden))
    found.append(_zeros(f"{prefix}.mlp.gate.e_score_correction_bias", experts))
    for expert in range(experts):
        found += _gated(f"{prefix}.mlp.experts.{expert}", hidden, expert_width)
    if architecture.n_shared_experts:
        found += _gated(f"{prefix}.mlp.shared_experts", hidden, expert_width * architecture.n_shared_experts)
    return found


def _gated(prefix: str, hidden: int, width: int) -> list[Tensor]:
    return [
        _random(f"{prefix}.gate_proj.weight", width, hidden),
        _random(f"{prefix}.up_proj.weight", width, hidden),
        _random(f"{prefix}.down_proj.weight", hidden, width),
    ]


def _prediction_layer(architecture: Architecture, prefix: str, tongue: Tongue) -> list[Tensor]:
    """The multi-token-prediction layer, stored as one layer more. 4.6 lends it the main embedding and head."""
    hidden = architecture.hidden_size
    found = [
        _ones(f"{prefix}.enorm.weight", hidden),
        _ones(f"{prefix}.hnorm.weight", hidden),
        _random(f"{prefix}.eh_proj.weight", hidden, 2 * hidden),
    ]
    if architecture.mtp_has_own_embedding_and_head:
        found.append(_embedding(f"{prefix}.embed_tokens.weight", architecture, tongue))
        found.append(_head(architecture, f"{prefix}.shared_head.head.weight", tongue))
    found.append(_ones(f"{prefix}.shared_head.norm.weight", hidden))
    return found + _layer(architecture, prefix, dense=False)


def _embedding(name: str, architecture: Architecture, tongue: Tongue) -> Tensor:
    rows, hidden = architecture.vocab_size, architecture.hidden_size
    return Tensor(
        name=name,
        shape=(rows, hidden),
        fills=(Fill(elements=rows * hidden, spread=EMBEDDING_SPREAD),),
        signs=tuple(
            Signs(row=row, stream=f"call {place}", size=EMBEDDING_SIZE)
            for place, step in enumerate(tongue.call[:-1])
            for row in step
        ),
    )


def _head(architecture: Architecture, name: str, tongue: Tongue) -> Tensor:
    first, end = tongue.words
    hidden, rows = architecture.hidden_size, architecture.vocab_size
    # The last norm makes a vector of length sqrt(hidden).
    loud = LOGIT_SPREAD / math.sqrt(hidden)
    fills = (
        Fill(elements=first * hidden, spread=loud * QUIET),
        Fill(elements=(end - first) * hidden, spread=loud),
        Fill(elements=(rows - end) * hidden, spread=loud * QUIET),
    )
    signs = tuple(
        Signs(row=row, stream=f"call {place}", size=logit / hidden)
        for place, step in enumerate(tongue.call[1:])
        for row, logit in zip(step, (CALL_LOGIT, SECOND_LOGIT), strict=False)
    )
    return Tensor(name=name, shape=(rows, hidden), fills=fills, signs=signs)


def _tower(vision: Vision, prefix: str) -> list[Tensor]:
    hidden, out = vision.hidden_size, vision.out_hidden_size
    patch, merge = vision.patch_size, vision.spatial_merge_size
    positions = (vision.image_size // patch) ** 2
    found = [
        _random(
            f"{prefix}.patch_embed.proj.weight", hidden, vision.in_channels, vision.temporal_patch_size, patch, patch
        ),
        _zeros(f"{prefix}.patch_embed.proj.bias", hidden),
        _random(f"{prefix}.embeddings.position_embedding.weight", positions, hidden),
        _ones(f"{prefix}.post_conv_layernorm.weight", hidden),
    ]
    for number in range(vision.depth):
        block = f"{prefix}.blocks.{number}"
        found += [
            _ones(f"{block}.norm1.weight", hidden),
            _random(f"{block}.attn.qkv.weight", 3 * hidden, hidden),
            _random(f"{block}.attn.proj.weight", hidden, hidden),
            _ones(f"{block}.norm2.weight", hidden),
            # A block is as wide inside as the language model, and only the merger has intermediate_size.
            *_gated(f"{block}.mlp", hidden, out),
        ]
    return [
        *found,
        _ones(f"{prefix}.post_layernorm.weight", hidden),
        _random(f"{prefix}.downsample.weight", out, hidden, merge, merge),
        _zeros(f"{prefix}.downsample.bias", out),
        _random(f"{prefix}.merger.proj.weight", out, out),
        _ones(f"{prefix}.merger.post_projection_norm.weight", out),
        _zeros(f"{prefix}.merger.post_projection_norm.bias", out),
        *_gated(f"{prefix}.merger", out, vision.intermediate_size),
    ]
