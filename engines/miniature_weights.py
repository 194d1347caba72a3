"""The miniatures' weights: the tensors of the released checkpoints, by name and shape, filled from a seed.

Files are written a megabyte at a time in pure Python: the tool installs neither numpy nor torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import lru_cache
from hashlib import shake_256
from statistics import NormalDist
from struct import pack
from typing import BinaryIO

from engines.miniature_call import CALL_LOGIT, CHAIN, EMBEDDING_SIZE, SECOND_LOGIT, TRIGGERS
from engines.miniature_tokenizer import Vocabulary
from selector.facts import Architecture, Vision
from selector.values import Value

#: Part of every random stream; of eight that were tried, the one whose answers repeat themselves least.
SEED = "autolaunch miniature 7"
#: Standard deviation of matrices, as ``initializer_range`` of the released config.json.
SPREAD = 0.02
#: Wider for embeddings, so that a word depends on the word before and an answer does not stick to one.
EMBEDDING_SPREAD = 0.12
#: Standard deviation of the logits of words, whatever the width. At temperature 1 too, an answer is then
#: words, but for one token in a thousand.
LOGIT_SPREAD = 4.0
#: How much quieter the logits of other tokens are: at temperature 0 an answer is words, and goes on to its
#: limit, since the tokens that end it are among the quiet ones.
QUIET = 1 / 16

BYTES_PER_ELEMENT = 4  # float32: MLX's mixture of experts fails in bf16 on its CPU back end
_CHUNK_ELEMENTS = 1 << 18


class Fill(Value, frozen=True, kw_only=True):
    """``elements`` in a row, drawn from a normal distribution; exactly ``mean`` where ``spread`` is 0."""

    elements: int
    mean: float = 0.0
    spread: float = SPREAD


class Signs(Value, frozen=True, kw_only=True):
    """A row of ``size`` or ``-size``, whose signs are those of every row of the same ``stream``."""

    row: int
    stream: str
    size: float


class Tensor(Value, frozen=True, kw_only=True):
    """``fills`` cover the elements in row-major order; the rows of ``signs`` are written over them."""

    name: str
    shape: tuple[int, ...]
    fills: tuple[Fill, ...]
    signs: tuple[Signs, ...] = ()

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * BYTES_PER_ELEMENT


def _random(name: str, *shape: int) -> Tensor:
    return Tensor(name=name, shape=shape, fills=(Fill(elements=math.prod(shape)),))


def _ones(name: str, *shape: int) -> Tensor:
    return Tensor(name=name, shape=shape, fills=(Fill(elements=math.prod(shape), mean=1.0, spread=0.0),))


def _zeros(name: str, *shape: int) -> Tensor:
    return Tensor(name=name, shape=shape, fills=(Fill(elements=math.prod(shape), spread=0.0),))


# --- which tensors ------------------------------------------------------------------------------------


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


# --- how they are filled ------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _tables(mean: float, spread: float) -> tuple[bytes, bytes]:
    """For each of 256 quantiles, the two upper bytes of its float32; the lower two are 0.

    Rounded to bf16's eight bits, so that no engine loses anything and no last bit of a platform's
    logarithm shows.
    """
    normal = NormalDist()
    upper, top = bytearray(256), bytearray(256)
    for step in range(256):
        value = mean + spread * normal.inv_cdf((step + 0.5) / 256) if spread else mean
        upper[step], top[step] = _bf16_as_float32(value)[2:]
    return bytes(upper), bytes(top)


def _bf16_as_float32(value: float) -> bytes:
    bits = int.from_bytes(pack("<f", value), "little") + 0x8000
    return (bits & 0xFFFF0000).to_bytes(4, "little")


def data(tensor: Tensor) -> Iterator[bytearray]:
    """The tensor's little-endian float32, in chunks. It depends on its name and shape alone."""
    begin = 0
    for chunk in _drawn(tensor):
        for signs in tensor.signs:
            _overwrite(chunk, begin, signs, tensor.shape[-1])
        yield chunk
        begin += len(chunk)


def _drawn(tensor: Tensor) -> Iterator[bytearray]:
    for part, fill in enumerate(tensor.fills):
        upper, top = _tables(fill.mean, fill.spread)
        for number, start in enumerate(range(0, fill.elements, _CHUNK_ELEMENTS)):
            count = min(_CHUNK_ELEMENTS, fill.elements - start)
            draws = shake_256(f"{SEED}/{tensor.name}/{part}/{number}".encode()).digest(count)
            chunk = bytearray(count * BYTES_PER_ELEMENT)
            chunk[2::4] = draws.translate(upper)
            chunk[3::4] = draws.translate(top)
            yield chunk


def positive(signs: Signs, width: int) -> tuple[bool, ...]:
    """Which of a row's elements are above 0: about half."""
    return tuple(byte < 128 for byte in shake_256(f"{SEED}/{signs.stream}".encode()).digest(width))


def _overwrite(chunk: bytearray, begin: int, signs: Signs, width: int) -> None:
    """Puts the row of ``signs`` where it lies in a chunk that starts at ``begin`` bytes of the tensor, if it does."""
    place = signs.row * width * BYTES_PER_ELEMENT - begin
    if not -width * BYTES_PER_ELEMENT < place < len(chunk):
        return
    above, below = _bf16_as_float32(signs.size), _bf16_as_float32(-signs.size)
    row = b"".join(above if each else below for each in positive(signs, width))
    first, end = max(place, 0), min(place + len(row), len(chunk))
    chunk[first:end] = row[first - place : end - place]


# --- how they are stored ------------------------------------------------------------------------------


class Shard(Value, frozen=True, kw_only=True):
    """One safetensors file."""

    file_name: str
    tensors: tuple[Tensor, ...]

    def header(self) -> bytes:
        """What comes before the data: the length of the JSON in eight bytes, the JSON, padded to eight."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor in self.tensors:
            end = offset + tensor.size_bytes
            entries[tensor.name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def size_bytes(self) -> int:
        return len(self.header()) + sum(tensor.size_bytes for tensor in self.tensors)

    def write(self, file: BinaryIO) -> None:
        file.write(self.header())
        for tensor in self.tensors:
            file.writelines(data(tensor))


def shards(found: tuple[Tensor, ...]) -> tuple[Shard, Shard]:
    """Two files of about the same size: released checkpoints are sharded, so the sharded path is proved."""
    half = sum(tensor.size_bytes for tensor in found) // 2
    filled = cut = 0
    for tensor in found[:-1]:
        if cut and filled + tensor.size_bytes > half:
            break
        filled += tensor.size_bytes
        cut += 1
    return (
        Shard(file_name="model-00001-of-00002.safetensors", tensors=found[:cut]),
        Shard(file_name="model-00002-of-00002.safetensors", tensors=found[cut:]),
    )


def index_json(parts: tuple[Shard, ...]) -> str:
    """``model.safetensors.index.json``: which file holds which tensor."""
    places = {tensor.name: shard.file_name for shard in parts for tensor in shard.tensors}
    total = sum(tensor.size_bytes for shard in parts for tensor in shard.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return json.dumps(index, indent=2) + "\n"
