"""Exact parameter counts and stored bytes of a GLM mixture-of-experts model, from its config alone.

The tensors are those of the released checkpoints (``model.safetensors.index.json`` of zai-org/GLM-4.5-Air,
zai-org/GLM-4.6 and zai-org/GLM-4.5V); the totals reproduce the published sizes to the byte where the storage
is known (``tests/unit/selector/test_architecture.py``).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

from selector.facts import Architecture, CheckpointFacts, Component, Storage, Vision

#: What tensor parallelism divides of a matrix: its outputs, its inputs, or the KV heads among its outputs.
Division = Literal["outputs", "inputs", "kv_heads"]


class Matrix(NamedTuple):
    """``copies`` equal weight matrices of ``rows`` (outputs) by ``columns`` (inputs)."""

    rows: int
    columns: int
    copies: int = 1
    division: Division = "outputs"

    @property
    def weights(self) -> int:
        return self.rows * self.columns * self.copies


class Part(NamedTuple):
    """Matrices that a checkpoint may quantize, and parameters (biases, norms) that it never does.

    ``float32`` are parameters kept in 32 bits whatever the checkpoint (the router's correction bias).
    ``plain_whole`` of the ``plain`` parameters are not divided by tensor parallelism.
    """

    matrices: tuple[Matrix, ...] = ()
    plain: int = 0
    float32: int = 0
    plain_whole: int = 0

    @property
    def parameters(self) -> int:
        return sum(matrix.weights for matrix in self.matrices) + self.plain + self.float32


class Layer(NamedTuple):
    """The parts of one decoder layer; a dense layer has no router, a sparse one no dense MLP."""

    parts: dict[Component, Part]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts.values())


def _mlp(hidden: int, intermediate: int, count: int = 1) -> tuple[Matrix, ...]:
    return (Matrix(intermediate, hidden, 2 * count), Matrix(hidden, intermediate, count, "inputs"))


def attention(arch: Architecture) -> Part:
    """One layer's projections (head_dim is its own figure: not hidden_size / heads), biases and QK norms."""
    queries = arch.num_attention_heads * arch.head_dim
    keys = arch.num_key_value_heads * arch.head_dim
    norms = 2 * arch.head_dim if arch.use_qk_norm else 0
    return Part(
        (
            Matrix(queries, arch.hidden_size),
            Matrix(keys, arch.hidden_size, 2, "kv_heads"),
            Matrix(arch.hidden_size, queries, 1, "inputs"),
        ),
        plain=(queries + 2 * keys if arch.attention_bias else 0) + norms,
        plain_whole=norms,
    )


def layer(arch: Architecture, *, dense: bool) -> Layer:
    """One decoder layer of the main model."""
    parts: dict[Component, Part] = {"attention": attention(arch), "norms": Part(plain=2 * arch.hidden_size)}
    if dense:
        parts["dense_mlp"] = Part(_mlp(arch.hidden_size, arch.intermediate_size))
    else:
        parts["routed_experts"] = Part(_mlp(arch.hidden_size, arch.moe_intermediate_size, arch.n_routed_experts))
        parts["shared_experts"] = Part(_mlp(arch.hidden_size, arch.moe_intermediate_size * arch.n_shared_experts))
        parts["router"] = Part((Matrix(arch.n_routed_experts, arch.hidden_size),), float32=arch.n_routed_experts)
    return Layer(parts)


def embedding(arch: Architecture) -> Part:
    return Part((Matrix(arch.vocab_size, arch.hidden_size),))


def vision(tower: Vision) -> Part:
    """The vision tower. Its MLPs are ``out_hidden_size`` wide; ``intermediate_size`` is the merger's."""
    hidden, out = tower.hidden_size, tower.out_hidden_size
    block = Part((Matrix(hidden, hidden, 4), *_mlp(hidden, out)), plain=2 * hidden)
    patch = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
    positions = (tower.image_size // tower.patch_size) ** 2
    fixed = (patch * hidden + hidden) + positions * hidden + 2 * hidden
    downsample = hidden * tower.spatial_merge_size**2 * out + out
    merger = out * out + 2 * out + sum(matrix.weights for matrix in _mlp(out, tower.intermediate_size))
    return Part(
        plain=tower.depth * block.parameters + fixed + downsample + merger,
        # Engines divide the blocks' matrices and the merger's; convolutions, positions and norms are whole.
        plain_whole=tower.depth * block.plain + fixed + downsample + 2 * out,
    )


def mtp_layer(arch: Architecture) -> Layer:
    """The multi-token-prediction layer: a sparse layer, its joining projection and, for some, embedding and head."""
    parts = dict(layer(arch, dense=False).parts)
    joining = Part((Matrix(arch.hidden_size, 2 * arch.hidden_size),), plain=3 * arch.hidden_size)
    parts["norms"] = Part(joining.matrices, joining.plain + parts["norms"].plain)
    if arch.mtp_has_own_embedding_and_head:
        parts["embedding"] = embedding(arch)
        parts["lm_head"] = embedding(arch)
    return Layer(parts)


def parameters(arch: Architecture, *, mtp: bool = False) -> int:
    """All parameters, of the main model alone or with its MTP layers."""
    dense = arch.first_k_dense_replace
    total = 2 * embedding(arch).parameters + arch.hidden_size
    total += dense * layer(arch, dense=True).parameters
    total += (arch.num_hidden_layers - dense) * layer(arch, dense=False).parameters
    if arch.vision is not None:
        total += vision(arch.vision).parameters
    if mtp:
        total += arch.num_nextn_predict_layers * mtp_layer(arch).parameters
    return total


def active_parameters(arch: Architecture) -> int:
    """Parameters read for one token of one sequence, without the input embedding and the vision tower."""
    sparse = layer(arch, dense=False)
    experts = sparse.parts["routed_experts"].parameters * arch.num_experts_per_tok // arch.n_routed_experts
    one_sparse = sparse.parameters - sparse.parts["routed_experts"].parameters + experts
    dense = arch.first_k_dense_replace
    return (
        dense * layer(arch, dense=True).parameters
        + (arch.num_hidden_layers - dense) * one_sparse
        + embedding(arch).parameters
        + arch.hidden_size
    )


def kv_bytes_per_token(arch: Architecture, *, element_bytes: float, mtp: bool = False) -> float:
    """Keys and values of all layers for one token, all heads, in bytes (one layer more with MTP on)."""
    layers = arch.num_hidden_layers + (arch.num_nextn_predict_layers if mtp else 0)
    return 2 * layers * arch.num_key_value_heads * arch.head_dim * element_bytes


# --- bytes ------------------------------------------------------------------------------------------


def matrix_bytes(
    matrix: Matrix, component: Component, storage: Storage, *, quantized: bool = True
) -> tuple[float, float]:
    """Stored bytes of a matrix: its packed weights, and beside them its scales and zero points."""
    if not (quantized and component in storage.quantized):
        return matrix.weights * storage.plain_bits / 8, 0.0
    groups = matrix.rows * (1 if storage.group_size is None else -(-matrix.columns // storage.group_size))
    scales = matrix.copies * groups * (storage.scale_bits + storage.zero_bits) / 8
    return matrix.weights * storage.bits / 8, scales


def part_bytes(part: Part, component: Component, storage: Storage, *, quantized: bool = True) -> float:
    """Stored bytes of a part: packed weights with their scales and zero points, the rest plain."""
    total = part.plain * storage.plain_bits / 8 + part.float32 * 4.0
    return total + sum(sum(matrix_bytes(each, component, storage, quantized=quantized)) for each in part.matrices)


def bitsandbytes_nf4(*, experts_are_linear: bool) -> Storage:
    """What bitsandbytes makes of 16-bit weights at load time, in NF4 with double quantization.

    4 bits, one 8-bit absmax for 64 weights and one 32-bit scale for 256 of those (Dettmers et al., "QLoRA",
    https://arxiv.org/abs/2305.14314, section 3: 0.127 bits a weight). It replaces ``nn.Linear`` alone, and never the
    head: from Transformers 5 the routed experts are three-dimensional parameters, no linear layers, and stay as they
    are (https://github.com/huggingface/transformers, models/glm4_moe/modeling_glm4_moe.py).
    """
    linear: tuple[Component, ...] = ("attention", "dense_mlp", "shared_experts")
    quantized = (*linear, "routed_experts") if experts_are_linear else linear
    return Storage(bits=4, quantized=quantized, group_size=64, scale_bits=8 + 32 / 256)


def layer_bytes(one: Layer, storage: Storage, *, quantized: bool = True) -> dict[Component, float]:
    return {name: part_bytes(part, name, storage, quantized=quantized) for name, part in one.parts.items()}


class StoredWeights(NamedTuple):
    """A checkpoint's bytes, by where they go. Layers are dictionaries by component.

    ``scale`` is what the sum was multiplied by to equal the size on the hub: 1.0 where the layout is known
    exactly, 1.007 for GLM-4.6-FP8, whose files are 0.7 % larger than its described layout. ``storage`` is that
    layout, or the even one that stands for it; :mod:`selector.weights` tells what a rank holds of it.
    """

    embedding: float
    lm_head: float
    final_norm: float
    vision: float
    dense_layer: dict[Component, float]
    sparse_layer: dict[Component, float]
    mtp_layer: dict[Component, float]
    total: float
    scale: float
    exact: bool
    storage: Storage


def uniform_storage(arch: Architecture, checkpoint: CheckpointFacts) -> Storage:
    """For a checkpoint whose layout nobody published: every matrix at the mean width that its size implies."""
    matrices: tuple[Component, ...] = (
        "embedding",
        "lm_head",
        "attention",
        "dense_mlp",
        "routed_experts",
        "shared_experts",
    )
    mtp = arch.num_nextn_predict_layers > 0 and checkpoint.format in ("gguf", "gptq", "nvfp4")
    bits = 8 * checkpoint.download_bytes / parameters(arch, mtp=mtp)
    return Storage(bits=bits, quantized=matrices, mtp=mtp, mtp_quantized=True)


@lru_cache(maxsize=256)  # pure, and asked for again by every plan that advice makes
def stored_weights(arch: Architecture, checkpoint: CheckpointFacts) -> StoredWeights:
    """The checkpoint's bytes by part, scaled to the size its files really have."""
    storage = checkpoint.storage or uniform_storage(arch, checkpoint)
    dense = layer_bytes(layer(arch, dense=True), storage)
    sparse = layer_bytes(layer(arch, dense=False), storage)
    has_mtp = storage.mtp and arch.num_nextn_predict_layers > 0
    mtp = layer_bytes(mtp_layer(arch), storage, quantized=storage.mtp_quantized) if has_mtp else {}
    tower = vision(arch.vision).parameters * storage.plain_bits / 8 if arch.vision is not None else 0.0
    embedding_bytes = part_bytes(embedding(arch), "embedding", storage)
    head_bytes = part_bytes(embedding(arch), "lm_head", storage)
    norm = arch.hidden_size * storage.plain_bits / 8
    computed = (
        embedding_bytes
        + head_bytes
        + norm
        + tower
        + arch.first_k_dense_replace * sum(dense.values())
        + (arch.num_hidden_layers - arch.first_k_dense_replace) * sum(sparse.values())
        + sum(mtp.values())
    )
    scale = checkpoint.download_bytes / computed
    return StoredWeights(
        embedding=embedding_bytes * scale,
        lm_head=head_bytes * scale,
        final_norm=norm * scale,
        vision=tower * scale,
        dense_layer={name: value * scale for name, value in dense.items()},
        sparse_layer={name: value * scale for name, value in sparse.items()},
        mtp_layer={name: value * scale for name, value in mtp.items()},
        total=computed * scale,
        scale=scale,
        exact=checkpoint.storage is not None,
        storage=storage,
    )
