"""What lies on a rank: weights and KV cache under tensor, pipeline and expert parallelism.

A tensor-parallel rank holds of a layer (vLLM's ``models/glm4_moe.py``, SGLang's alike):

* ``1 / TP`` of every projection and MLP, with its biases and scales, but the scales of a matrix whose *inputs* are
  divided (output projection, down projection): one scale an output row is whole on every rank;
* keys and values down to one KV head, repeated on the ranks beyond;
* routed experts cut like an MLP, or whole experts dealt out (expert parallelism: scales and all are divided);
* router, norms and the MTP layer's joining projection whole; the router in the engine's own width;
* of the vision tower ``1 / TP`` of its matrices where the heads divide, else all of it.

The vocabulary is padded to 64 rows and divided. Layers are dealt out to pipeline stages by the engine's rule,
embedding on the first, head on the last. A checkpoint whose layout is unknown is spread evenly and scaled to the
size of its files; one whose layout is known is counted exactly: GLM-4.5V-FP8 at TP 2 comes to 51.36 GiB where vLLM
logged 51.41 (https://github.com/vllm-project/vllm/issues/25143), GLM-4.6-FP8 with MTP at TP 4 to 84.10 where it
logged 84.22 (https://github.com/KempnerInstitute/hpc-agentic-recipes), though its files are 0.7 % larger.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

from selector.architecture import (
    Layer,
    StoredWeights,
    embedding,
    layer,
    matrix_bytes,
    mtp_layer,
    part_bytes,
    vision,
)
from selector.contract import Parallel
from selector.engine_facts import MemoryRule
from selector.facts import Architecture, Storage

#: Rows to which vLLM and SGLang pad the vocabulary (DEFAULT_VOCAB_PADDING_SIZE of vocab_parallel_embedding.py).
VOCABULARY_ROWS = 64
#: What accelerate's balanced map leaves each device beyond its even share, in layers (get_balanced_memory).
BALANCED_BUFFER_LAYERS = 1.25

Dealing = Literal["pipeline", "even", "balanced"]
LayerKind = Literal["dense", "sparse", "mtp"]


class Shares(NamedTuple):
    """Bytes of one layer by what divides them over the ranks of a stage."""

    split: float = 0.0
    keys_values: float = 0.0
    experts: float = 0.0
    expert_scales: float = 0.0
    whole: float = 0.0

    def on_rank(self, arch: Architecture, tensor: int, *, expert: bool) -> float:
        """Bytes on one of ``tensor`` ranks."""
        scales = self.expert_scales / (tensor if expert else 1)
        keys_values = self.keys_values / min(tensor, arch.num_key_value_heads)
        return (self.split + self.experts) / tensor + keys_values + scales + self.whole


class Stage(NamedTuple):
    """The fullest rank of one pipeline stage. ``kv_layers`` counts the MTP layer where it is loaded."""

    weight_bytes: int
    layers: int
    kv_layers: int
    first: bool
    last: bool


def layer_shares(one: Layer, storage: Storage, *, quantized: bool = True, router_bits: int | None = None) -> Shares:
    """A layer's bytes by what divides them; an embedding and a head among its parts are left out."""
    split = keys_values = experts = expert_scales = whole = 0.0
    plain = storage.plain_bits / 8
    for name, part in one.parts.items():
        if name in ("embedding", "lm_head"):
            continue
        if name in ("router", "norms"):
            width = plain if name == "norms" or router_bits is None else router_bits / 8
            whole += sum(matrix.weights for matrix in part.matrices) * width + part.plain * plain + part.float32 * 4
            continue
        whole += part.plain_whole * plain
        biases = (part.plain - part.plain_whole) * plain
        rows = sum(matrix.rows * matrix.copies for matrix in part.matrices if matrix.division != "inputs")
        for matrix in part.matrices:
            packed, scales = matrix_bytes(matrix, name, storage, quantized=quantized)
            bias = 0.0 if matrix.division == "inputs" else biases * matrix.rows * matrix.copies / rows
            unsplit = matrix.division == "inputs" and storage.group_size is None
            if name == "routed_experts":
                experts += packed + (0.0 if unsplit else scales)
                expert_scales += scales if unsplit else 0.0
            elif matrix.division == "kv_heads":
                keys_values += packed + scales + bias
            else:
                split += packed + bias + (0.0 if unsplit else scales)
                whole += scales if unsplit else 0.0
    return Shares(split, keys_values, experts, expert_scales, whole)


@lru_cache(maxsize=512)  # pure, and the same for every way of dividing the model
def _shares(arch: Architecture, storage: Storage, kind: LayerKind, quantized: bool, router_bits: int | None) -> Shares:
    one = mtp_layer(arch) if kind == "mtp" else layer(arch, dense=kind == "dense")
    return layer_shares(one, storage, quantized=quantized, router_bits=router_bits)


def stage_layers(layers: int, stages: int, dealing: Dealing = "pipeline") -> tuple[int, ...]:
    """Layers of each stage, equal layers assumed.

    ``pipeline``: even, one more on as many stages as are left over, counted from the last but one
    (``get_pp_indices`` of vLLM and SGLang: 46 over 4 are 11, 12, 12, 11). ``even``: the first stages take one more.
    ``balanced``: accelerate fills a device up to its even share and a buffer of 1.25 layers, the first one keeping
    room for a layer, and leaves the rest to the last (``get_balanced_memory``, ``infer_auto_device_map``).
    """
    even, left = divmod(layers, stages)
    if dealing == "balanced" and stages > 1:
        full = int(layers / stages + BALANCED_BUFFER_LAYERS)
        counts = []
        remaining = layers
        for position in range(stages - 1):
            counts.append(min(remaining, full - 1 if position == 0 else full))
            remaining -= counts[-1]
        return (*counts, remaining)
    counts = [even] * stages
    for position in range(left):
        counts[position if dealing == "even" or stages == 1 else -2 - position] += 1
    return tuple(counts)


def vision_bytes(arch: Architecture, storage: Storage, tensor: int, *, whole: bool) -> float:
    """The vision tower on one rank: 16 bits in every checkpoint."""
    if arch.vision is None:
        return 0.0
    tower = vision(arch.vision)
    divided = 0 if whole else tower.parameters - tower.plain_whole
    return (tower.parameters - divided + divided / tensor) * storage.plain_bits / 8


def rank_stages(
    arch: Architecture,
    weights: StoredWeights,
    parallel: Parallel,
    rule: MemoryRule,
    *,
    mtp: bool,
    whole_vision: bool,
    on_host: bool = False,
) -> tuple[Stage, ...]:
    """Every pipeline stage's fullest rank. ``on_host`` says that the device is main memory itself."""
    return _rank_stages(
        arch,
        weights.storage,
        1.0 if weights.exact else weights.scale,
        parallel.tensor,
        parallel.pipeline,
        parallel.expert,
        rule,
        mtp,
        whole_vision,
        on_host,
    )


@lru_cache(maxsize=4096)  # pure, and the same for every device and batch that a plan tries
def _rank_stages(
    arch: Architecture,
    storage: Storage,
    scale: float,
    tensor: int,
    pipeline: int,
    expert: bool,
    rule: MemoryRule,
    mtp: bool,
    whole_vision: bool,
    on_host: bool,
) -> tuple[Stage, ...]:
    def on_rank(kind: LayerKind, *, quantized: bool = True) -> float:
        shares = _shares(arch, storage, kind, quantized, rule.router_bits)
        return shares.on_rank(arch, tensor, expert=expert)

    dense, sparse = on_rank("dense"), on_rank("sparse")
    padded = -(-arch.vocab_size // VOCABULARY_ROWS) * VOCABULARY_ROWS / arch.vocab_size if tensor > 1 else 1.0
    table = part_bytes(embedding(arch), "embedding", storage) * padded / tensor
    head = part_bytes(embedding(arch), "lm_head", storage) * padded / tensor
    tower = vision_bytes(arch, storage, tensor, whole=whole_vision)
    extra = 0.0
    if mtp:
        extra = on_rank("mtp", quantized=storage.mtp_quantized) * arch.num_nextn_predict_layers
        if arch.mtp_has_own_embedding_and_head and not rule.mtp_shares_embedding:
            extra += table + head
    counts = stage_layers(arch.num_hidden_layers, pipeline, rule.stages)
    found, passed = [], 0
    for position, count in enumerate(counts):
        first, last = position == 0, position == len(counts) - 1
        dense_here = max(0, min(arch.first_k_dense_replace - passed, count))
        size = dense_here * dense + (count - dense_here) * sparse
        if first and (on_host or not rule.host_embedding):
            size += table
        if first or rule.vision_on_every_stage:
            size += tower
        if last:
            size += head + arch.hidden_size * storage.plain_bits / 8 + extra
        kv_layers = count + (arch.num_nextn_predict_layers if last and mtp else 0)
        found.append(Stage(int(size * scale), count, kv_layers, first, last))
        passed += count
    return tuple(found)


class LayerSizes(NamedTuple):
    """Bytes of one undivided layer and of what stands before and after them.

    ``light`` is a sparse layer without its routed ``experts``, ``head`` the output head with the last norm.
    """

    dense: float
    light: float
    experts: float
    table: float
    head: float


@lru_cache(maxsize=256)  # pure, and the same for every device
def layer_sizes(arch: Architecture, storage: Storage, scale: float, router_bits: int | None) -> LayerSizes:
    """The layers of a checkpoint as one rank would hold them; ``scale`` brings them to the size of its files."""
    dense = _shares(arch, storage, "dense", quantized=True, router_bits=router_bits).on_rank(arch, 1, expert=False)
    sparse = _shares(arch, storage, "sparse", quantized=True, router_bits=router_bits)
    experts = sparse.experts + sparse.expert_scales
    table = part_bytes(embedding(arch), "embedding", storage)
    head = part_bytes(embedding(arch), "lm_head", storage) + arch.hidden_size * storage.plain_bits / 8
    light = sparse.on_rank(arch, 1, expert=False) - experts
    return LayerSizes(*(scale * size for size in (dense, light, experts, table, head)))


def rank_kv_bytes_per_token(arch: Architecture, parallel: Parallel, layers: int, element_bytes: int) -> int:
    """KV cache of one token in ``layers`` layers on one rank: keys and values of its KV heads, at least one."""
    heads = max(1, arch.num_key_value_heads // parallel.tensor)
    return 2 * layers * heads * arch.head_dim * element_bytes
