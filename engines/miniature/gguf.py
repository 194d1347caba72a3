"""A miniature as one GGUF file, in the layout that llama.cpp's own converter gives the released checkpoints.

The same random tensors under llama.cpp's names, each layer's experts joined into one, the
multi-token-prediction layer counted as a layer more (``block_count``), the tokenizer and the chat template inside.
Names, keys and values: https://github.com/ggml-org/llama.cpp ``conversion/glm.py``, ``gguf-py/gguf/constants.py``,
``gguf-py/gguf/tensor_mapping.py``; the file: https://github.com/ggml-org/ggml ``docs/gguf.md``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from struct import pack
from typing import BinaryIO

import msgspec

from engines.miniature import blocks, weights
from engines.miniature.blocks import BLOCKS, Kind
from engines.miniature.tensors import Tensor
from engines.miniature.tokenizer import END_OF_TEXT, MARKUP_TOKENS, SPECIAL_TOKENS, Vocabulary
from selector.facts import Architecture
from selector.values import Value

ALIGNMENT = 32
#: Numbers of the file format: kinds of values, of tokens, of tensors.
UINT32, FLOAT32, BOOL, STRING, ARRAY, INT32 = 4, 6, 7, 8, 9, 5
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
NUMBERS = {"F32": 0, "BF16": 30, **{kind: block.number for kind, block in BLOCKS.items()}}
#: ``general.file_type``, the mixture that a kind of matrices is known by (Q4_K_M and the like).
FILE_TYPES: dict[Kind, int] = {"F32": 0, "BF16": 32, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18}
SIGMOID = 2  # how the released router weighs experts
QUANTIZATION_VERSION = 2

_PLAIN_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_EXPERT = re.compile(r"mlp\.experts\.\d+\.(gate|up|down)_proj\.weight")
#: What a part of a layer is called; the suffix stays.
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "eh_proj": "nextn.eh_proj",
    "enorm": "nextn.enorm",
    "hnorm": "nextn.hnorm",
    "embed_tokens": "nextn.embed_tokens",
    "shared_head.head": "nextn.shared_head_head",
    "shared_head.norm": "nextn.shared_head_norm",
}


class Joined(Value, frozen=True, kw_only=True):
    """A tensor of the file: those of the checkpoint that it is made of, one after the other."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Tensor, ...]
    kind: Kind = "F32"

    @property
    def size_bytes(self) -> int:
        if self.kind in BLOCKS:
            return blocks.size_bytes(self.kind, math.prod(self.shape))
        return sum(part.size_bytes for part in self.parts)

    def data(self) -> Iterator[bytearray]:
        if self.kind in BLOCKS:
            yield from blocks.data(self.kind, self.name, self.parts)
            return
        for part in self.parts:
            yield from part.data()


class GgufFile(Value, frozen=True, kw_only=True):
    """The whole checkpoint in one file. ``metadata`` is its keys and values as they are stored."""

    file_name: str
    metadata: tuple[bytes, ...]
    tensors: tuple[Joined, ...]

    def header(self) -> bytes:
        """What comes before the data, padded to where the first tensor begins."""
        found = bytearray(b"GGUF" + pack("<IQQ", 3, len(self.tensors), len(self.metadata)))
        for entry in self.metadata:
            found += entry
        offset = 0
        for tensor in self.tensors:
            # Its own order of dimensions is the innermost first.
            found += _text(tensor.name) + pack("<I", len(tensor.shape))
            found += pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape)) + pack("<IQ", NUMBERS[tensor.kind], offset)
            offset += _aligned(tensor.size_bytes)
        return bytes(found.ljust(_aligned(len(found)), b"\0"))

    def size_bytes(self) -> int:
        return len(self.header()) + sum(_aligned(tensor.size_bytes) for tensor in self.tensors)

    def write(self, file: BinaryIO) -> None:
        file.write(self.header())
        for tensor in self.tensors:
            file.writelines(tensor.data())
            file.write(bytes(_aligned(tensor.size_bytes) - tensor.size_bytes))


def kind_of(quantization: str) -> Kind | None:
    """The kind of a file's matrices by the name it is offered under; ``None`` where that is not known.

    Unsloth's dynamic files (``UD-Q4_K_XL``) mix kinds by a recipe that is not published: the one that they are
    named for stands for all.
    """
    name = quantization.removeprefix("UD-")
    return next((kind for kind in FILE_TYPES if name == kind or (kind in BLOCKS and name.startswith(f"{kind}_"))), None)


def gguf_file(
    file_name: str, name: str, architecture: Architecture, vocabulary: Vocabulary, template: str, kind: Kind = "F32"
) -> GgufFile:
    """The miniature of a text model called ``name``, its matrices of ``kind``, ``template`` its chat template."""
    plain = weights.tensors(architecture, weights.tongue(vocabulary))
    tensors = tuple(_of_kind(tensor, kind) for tensor in joined(plain))
    metadata = (*_model_keys(architecture, name, kind), *_tokenizer_keys(vocabulary, template))
    return GgufFile(file_name=file_name, metadata=metadata, tensors=tensors)


def _of_kind(tensor: Joined, kind: Kind) -> Joined:
    """As ``llama-quantize`` chooses: norms, biases and routers stay in F32, the head is in Q6_K."""
    if len(tensor.shape) == 1 or tensor.name.endswith("ffn_gate_inp.weight"):
        return tensor
    if kind in BLOCKS and tensor.name == "output.weight":
        kind = "Q6_K"
    elif kind in ("Q2_K", "Q3_K") and tensor.name.endswith(("token_embd.weight", "embed_tokens.weight", "head.weight")):
        kind = "Q4_K"
    parts = tensor.parts
    if kind == "BF16":
        parts = tuple(msgspec.structs.replace(part, dtype="BF16") for part in parts)
    return msgspec.structs.replace(tensor, kind=kind, parts=parts)


def joined(found: tuple[Tensor, ...]) -> tuple[Joined, ...]:
    """The checkpoint's tensors under llama.cpp's names, in their order; the experts of a layer become one."""
    places: dict[str, list[Tensor]] = {}
    for tensor in found:
        places.setdefault(_name(tensor.name), []).append(tensor)
    return tuple(
        Joined(
            name=name,
            shape=(len(parts), *parts[0].shape) if name.endswith("_exps.weight") else parts[0].shape,
            parts=tuple(parts),
        )
        for name, parts in places.items()
    )


def _name(name: str) -> str:
    if name in _PLAIN_NAMES:
        return _PLAIN_NAMES[name]
    _, _, number, rest = name.split(".", 3)
    block = f"blk.{number}"
    expert = _EXPERT.fullmatch(rest)
    if expert is not None:
        return f"{block}.ffn_{expert[1]}_exps.weight"
    if rest == "mlp.gate.e_score_correction_bias":
        return f"{block}.exp_probs_b.bias"
    part, _, suffix = rest.rpartition(".")
    return f"{block}.{_PARTS[part]}.{suffix}"


# --- keys and values ----------------------------------------------------------------------------------


def _aligned(count: int) -> int:
    return count + -count % ALIGNMENT


def _text(text: str) -> bytes:
    raw = text.encode()
    return pack("<Q", len(raw)) + raw


def _string(key: str, value: str) -> bytes:
    return _text(key) + pack("<I", STRING) + _text(value)


def _whole(key: str, value: int) -> bytes:
    return _text(key) + pack("<II", UINT32, value)


def _real(key: str, value: float) -> bytes:
    return _text(key) + pack("<If", FLOAT32, value)


def _strings(key: str, values: tuple[str, ...]) -> bytes:
    return _text(key) + pack("<IIQ", ARRAY, STRING, len(values)) + b"".join(map(_text, values))


def _numbers(key: str, values: tuple[int, ...]) -> bytes:
    return _text(key) + pack(f"<IIQ{len(values)}i", ARRAY, INT32, len(values), *values)


def _model_keys(architecture: Architecture, name: str, kind: Kind) -> Iterator[bytes]:
    yield _string("general.architecture", "glm4moe")
    yield _string("general.type", "model")
    yield _string("general.name", name)
    yield _whole("general.file_type", FILE_TYPES[kind])
    yield _whole("general.quantization_version", QUANTIZATION_VERSION)
    predicting = architecture.num_nextn_predict_layers
    wholes = {
        "block_count": architecture.num_hidden_layers + predicting,
        "context_length": architecture.max_position_embeddings,
        "embedding_length": architecture.hidden_size,
        "feed_forward_length": architecture.intermediate_size,
        "attention.head_count": architecture.num_attention_heads,
        "attention.head_count_kv": architecture.num_key_value_heads,
        "attention.key_length": architecture.head_dim,
        "attention.value_length": architecture.head_dim,
        "rope.dimension_count": math.floor(architecture.head_dim * architecture.partial_rotary_factor),
        "expert_count": architecture.n_routed_experts,
        "expert_used_count": architecture.num_experts_per_tok,
        "expert_group_count": 1,
        "expert_group_used_count": 1,
        "expert_gating_func": SIGMOID,
        "expert_feed_forward_length": architecture.moe_intermediate_size,
        "expert_shared_count": architecture.n_shared_experts,
        "leading_dense_block_count": architecture.first_k_dense_replace,
        "nextn_predict_layers": predicting,
    }
    for key, value in wholes.items():
        yield _whole(f"glm4moe.{key}", value)
    yield _real("glm4moe.rope.freq_base", architecture.rope_theta)
    yield _real("glm4moe.attention.layer_norm_rms_epsilon", architecture.rms_norm_eps)
    yield _real("glm4moe.expert_weights_scale", architecture.routed_scaling_factor)
    yield _text("glm4moe.expert_weights_norm") + pack("<I?", BOOL, True)


def _tokenizer_keys(vocabulary: Vocabulary, template: str) -> Iterator[bytes]:
    plain = len(vocabulary.tokens) - len(SPECIAL_TOKENS)
    # llama.cpp takes what looks like <|this|> for control, markup or not.
    shown = tuple(token for token in MARKUP_TOKENS if not token.startswith("<|"))
    kinds = (*(NORMAL,) * plain, *(USER_DEFINED if token in shown else CONTROL for token in SPECIAL_TOKENS))
    yield _string("tokenizer.ggml.model", "gpt2")
    yield _string("tokenizer.ggml.pre", "glm4")
    yield _strings("tokenizer.ggml.tokens", vocabulary.tokens)
    yield _numbers("tokenizer.ggml.token_type", kinds)
    yield _strings("tokenizer.ggml.merges", vocabulary.merges)
    # As the converter has them; <|endoftext|> for the end of a turn would never end one.
    for key, token in (
        ("bos", "[gMASK]"),
        ("eos", END_OF_TEXT),
        ("eot", "<|user|>"),
        ("eom", "<|observation|>"),
        ("unknown", END_OF_TEXT),
        ("padding", END_OF_TEXT),
    ):
        yield _whole(f"tokenizer.ggml.{key}_token_id", vocabulary.token_id(token))
    yield _string("tokenizer.chat_template", template)
