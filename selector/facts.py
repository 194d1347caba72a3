"""The shape of the files in ``profiles/``: facts about models, accelerators and engines.

Every table that holds a figure holds its ``source``. A file is read strictly: an unknown or a
missing key is an error that names its path (:mod:`selector.catalog`).
"""

from __future__ import annotations

from typing import Literal

from selector.hardware import MemoryKind, Vendor
from selector.values import Value

Format = Literal["bf16", "fp32", "fp8", "awq", "gptq", "int4", "nvfp4", "bnb", "mlx", "gguf"]
Hub = Literal["huggingface", "modelscope"]
Basis = Literal["measured", "derived", "assumed"]
Component = Literal[
    "embedding", "lm_head", "attention", "dense_mlp", "routed_experts", "shared_experts", "router", "norms", "vision"
]
EngineName = Literal["vllm", "sglang", "transformers", "mlx", "llamacpp"]


# --- models -----------------------------------------------------------------------------------------


class Vision(Value, frozen=True, kw_only=True, cache_hash=True):
    """The vision tower, in the terms of ``vision_config`` of config.json."""

    depth: int
    hidden_size: int
    num_heads: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    in_channels: int
    image_size: int
    out_hidden_size: int
    intermediate_size: int


class Architecture(Value, frozen=True, kw_only=True, cache_hash=True):
    """A model's shape, in the terms of config.json (``text_config`` where there is one)."""

    model_type: Literal["glm4_moe", "glm4v_moe"]
    class_name: str
    num_hidden_layers: int
    first_k_dense_replace: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    num_nextn_predict_layers: int
    attention_bias: bool
    use_qk_norm: bool
    partial_rotary_factor: float
    routed_scaling_factor: float
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, ...] | None = None
    mtp_has_own_embedding_and_head: bool = False
    vision: Vision | None = None
    source: str


class Storage(Value, frozen=True, kw_only=True, cache_hash=True):
    """How a checkpoint stores its matrices.

    ``bits`` a weight for the components in ``quantized``, plus one scale of ``scale_bits`` (and one zero
    point of ``zero_bits``) for each ``group_size`` weights of a row, or for each row where ``group_size``
    is ``None``. Everything else is stored at ``plain_bits``. ``mtp`` says whether the multi-token-prediction
    layer is in the files, ``mtp_quantized`` whether it is quantized like the rest.
    """

    bits: float
    quantized: tuple[Component, ...] = ()
    group_size: int | None = None
    scale_bits: float = 0
    zero_bits: float = 0
    plain_bits: int = 16
    mtp: bool = False
    mtp_quantized: bool = False


class CheckpointFacts(Value, frozen=True, kw_only=True, cache_hash=True):
    """One repository (or, for GGUF, one quantization of it: ``file_prefix``).

    ``download_bytes`` is the size on the hub; ``download_basis`` says how it is known.
    ``quality`` is how near it stands to the original weights, 0 to 1; ``quality_source`` says what that rests on.
    """

    repo: str
    modelscope: str | None = None
    format: Format
    quantization: str
    file_prefix: str | None = None
    download_bytes: int
    download_basis: Basis
    quality: float
    quality_source: str
    storage: Storage | None = None
    source: str
    note: str | None = None


class Parsers(Value, frozen=True, kw_only=True):
    """What an engine calls the parsers this model's tool calls and reasoning need."""

    engine: EngineName
    tool: str
    reasoning: str | None = None
    since: str | None = None
    source: str


class ModelFacts(Value, frozen=True, kw_only=True, cache_hash=True):
    """A file of ``profiles/models``. ``id`` is the file's name and what the command line takes."""

    schema: Literal[1]
    id: str
    title: str
    aliases: tuple[str, ...] = ()
    parameters: str
    modalities: tuple[Literal["text", "image", "video"], ...]
    context_tokens: int
    generated: bool = False
    architecture: Architecture
    parsers: tuple[Parsers, ...] = ()
    checkpoints: tuple[CheckpointFacts, ...]
    source: str


# --- accelerators -----------------------------------------------------------------------------------


class AcceleratorFacts(Value, frozen=True, kw_only=True, cache_hash=True):
    """One accelerator. Rates are dense (no sparsity); ``*_gb_per_second`` are 1e9 bytes.

    ``id`` is what ``--hardware`` takes (``8xh100``); ``driver_names`` are the names the driver reports.
    ``memory_total_mib`` is the driver's total, ``cuda_total_mib`` what CUDA reports as total, where known.
    ``link_gb_per_second`` is NVLink or Infinity Fabric, all links of one device in one direction.
    ``link_group`` is how many devices a bridge joins in a machine that ``--hardware`` names (1: a bridge is not
    assumed, ``None``: every pair of a node is linked).
    ``memory_options_gib`` lists the sizes of a machine with unified memory.
    """

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    driver_names: tuple[str, ...] = ()
    vendor: Vendor
    architecture: str
    compute_capability: tuple[int, int] | None = None
    memory_kind: MemoryKind = "dedicated"
    memory_total_mib: int | None = None
    cuda_total_mib: int | None = None
    memory_options_gib: tuple[int, ...] = ()
    bandwidth_gb_per_second: float
    bf16_tflops: float | None = None
    fp16_tflops: float | None = None
    fp8_tflops: float | None = None
    int8_tops: float | None = None
    fp4_tflops: float | None = None
    link_kind: Literal["nvlink", "nvswitch", "infinity-fabric"] | None = None
    link_gb_per_second: float | None = None
    link_group: int | None = None
    pcie_gb_per_second: float | None = None
    gpu_cores: tuple[int, ...] = ()
    confidence: Literal["verified", "datasheet", "single source", "low"]
    source: str
    note: str | None = None


class AcceleratorFile(Value, frozen=True, kw_only=True):
    """A file of ``profiles/accelerators``: one vendor."""

    schema: Literal[1]
    accelerators: tuple[AcceleratorFacts, ...]


# --- errors of devices ------------------------------------------------------------------------------


class XidFacts(Value, frozen=True, kw_only=True):
    """One Xid of the NVIDIA driver. ``action`` is the immediate action of NVIDIA's catalogue.

    ``lost``: the GPU cannot be used until it is reset or the host is rebooted.
    """

    number: int
    meaning: str
    action: str
    lost: bool
    source: str
    note: str | None = None


class XidFile(Value, frozen=True, kw_only=True):
    """``profiles/accelerators/nvidia-xid.toml``. It is not read for a plan."""

    schema: Literal[1]
    source: str
    xids: tuple[XidFacts, ...]


def checkpoint_id(repo: str, file_prefix: str | None) -> str:
    """What tells one set of weights from another: the repository, and the files of it where it holds several."""
    return repo if file_prefix is None else f"{repo}:{file_prefix}"
