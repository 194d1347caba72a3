"""A miniature's tensors as a quantized checkpoint stores them: names, kinds of numbers and shapes are the format's.

Which parts are quantized, in what groups, and whether the multi-token-prediction layer is there, is what the
catalogue tells of the checkpoint (``storage``). Weights are random bits under scales that give them their spread.
What nobody published is no format here: an engine would fail on a guess, or worse, not fail.

- fp8: compressed-tensors ``float-quantized``: https://github.com/vllm-project/compressed-tensors; zai-org's FP8
  files have a scale a row, activations dynamic per token, and leave out lm_head and every router.
- awq: AutoAWQ's ``gemm`` files: vllm/model_executor/layers/quantization/awq.py of vLLM 0.33. QuantTrio's leave out
  the modules named below: https://github.com/vllm-project/vllm/issues/30165.
- mlx: as mlx_lm.convert 0.32 and mlx_vlm.convert 0.7 save them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from engines.miniature.tensors import LARGEST_E4M3, Bits, Dtype, Fill, Signs, Tensor
from selector.errors import ConfigurationError
from selector.facts import Architecture, CheckpointFacts, Component, ModelFacts, Storage
from selector.values import Value

#: What QuantTrio's AWQ files keep in 16 bits, in vLLM's terms: any part of a module's name.
AWQ_LEFT_OUT = ("embed_tokens", "shared_experts", "shared_head", "lm_head")
#: A value of fp8 is at most this many spreads: the outermost of 256 quantiles is 2.9.
_REACH = 3.0


class Stored(Value, frozen=True, kw_only=True):
    """A checkpoint's tensors, what config.json says of them, and the framework that safetensors metadata name."""

    tensors: tuple[Tensor | Bits, ...]
    dtype: str
    quantization: dict[str, object]
    made_for: str = "pt"


def stored(model: ModelFacts, checkpoint: CheckpointFacts, found: tuple[Tensor, ...]) -> Stored:
    """``found``, the tensors of an unquantized checkpoint, in the format of ``checkpoint``.

    Raises:
        ConfigurationError: nothing certain is known of that format's layout.
    """
    architecture, storage = model.architecture, checkpoint.storage
    if checkpoint.format == "fp32":
        return Stored(tensors=found, dtype="float32", quantization={})
    if storage is not None and checkpoint.format == "bf16":
        return Stored(tensors=tuple(map(_plain, found)), dtype="bfloat16", quantization={})
    if storage is not None and checkpoint.format == "fp8":
        return _fp8(architecture, storage, found)
    if storage is not None and checkpoint.format == "mlx":
        return _mlx(architecture, storage, found)
    # Of a vision model's AWQ files it is not published which modules are left out, nor how its width is padded.
    if storage is not None and checkpoint.format == "awq" and architecture.vision is None:
        return _awq(architecture, storage, found)
    raise ConfigurationError(
        f"there is no miniature of {model.id} in the format {checkpoint.format} ({checkpoint.quantization})",
        hint="the layout of such files is not published in full; rehearse another checkpoint, bf16 or fp8 say",
    )


# --- what is quantized --------------------------------------------------------------------------------


def component(name: str) -> Component | None:
    """The part of the model whose matrix ``name`` is; ``None`` for biases, norms and what is between parts."""
    if not name.endswith(".weight"):
        return None
    module = name.removesuffix(".weight")
    last = module.rpartition(".")[2]
    if ".visual." in name:
        return "vision"
    if last == "embed_tokens":
        return "embedding"
    if last == "lm_head" or module.endswith(".shared_head.head"):
        return "lm_head"
    if ".self_attn." in name:
        return "attention" if last.endswith("_proj") else None
    if module.endswith(".mlp.gate"):
        return "router"
    if ".mlp.experts." in name:
        return "routed_experts"
    if ".mlp.shared_experts." in name:
        return "shared_experts"
    return "dense_mlp" if ".mlp." in name else None


def _predicts(architecture: Architecture, name: str) -> bool:
    """Whether a tensor is of the multi-token-prediction layer, which is numbered as one layer more."""
    _, layers, rest = name.partition(".layers.")
    return bool(layers) and int(rest.partition(".")[0]) >= architecture.num_hidden_layers


def _is_quantized(architecture: Architecture, storage: Storage, name: str) -> bool:
    if _predicts(architecture, name) and not storage.mtp_quantized:
        return False
    return component(name) in storage.quantized


def _plain(tensor: Tensor) -> Tensor:
    # The router's correction is in float32 in every released checkpoint.
    precise = tensor.name.endswith(".e_score_correction_bias")
    return tensor if precise else msgspec.structs.replace(tensor, dtype="BF16")


def _constant(name: str, dtype: Dtype, shape: tuple[int, ...], value: float) -> Tensor:
    return Tensor(name=name, shape=shape, fills=(Fill(elements=math.prod(shape), mean=value),), dtype=dtype)


def _spread(tensor: Tensor) -> float:
    return tensor.fills[0].spread


def uniform_spread(bits: int) -> float:
    """The standard deviation of ``bits`` random bits read as a number."""
    return math.sqrt((4**bits - 1) / 12)


# --- formats ------------------------------------------------------------------------------------------


def _fp8(architecture: Architecture, storage: Storage, found: tuple[Tensor, ...]) -> Stored:
    tensors: list[Tensor | Bits] = []
    for tensor in found:
        if not _is_quantized(architecture, storage, tensor.name):
            tensors.append(_plain(tensor))
            continue
        scale = _REACH * _spread(tensor) / LARGEST_E4M3
        fill = Fill(elements=math.prod(tensor.shape), spread=_spread(tensor) / scale)
        tensors.append(msgspec.structs.replace(tensor, fills=(fill,), dtype="F8_E4M3"))
        tensors.append(_constant(f"{tensor.name}_scale", "F32", (tensor.shape[0], 1), scale))
    number: dict[str, object] = {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None}
    group = {
        "targets": ["Linear"],
        "weights": number | {"strategy": "channel", "dynamic": False},
        "input_activations": number | {"strategy": "token", "dynamic": True},
        "output_activations": None,
    }
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "config_groups": {"group_0": group},
        "ignore": _left_out(architecture, storage, found),
    }
    return Stored(tensors=tuple(tensors), dtype="bfloat16", quantization={"quantization_config": quantization})


def _left_out(architecture: Architecture, storage: Storage, found: tuple[Tensor, ...]) -> list[str]:
    """Modules with a matrix that is not quantized; an embedding is no linear layer."""
    return [
        tensor.name.removesuffix(".weight")
        for tensor in found
        if tensor.name.endswith(".weight")
        and len(tensor.shape) == 2
        and component(tensor.name) != "embedding"
        and not tensor.name.endswith("position_embedding.weight")
        and not _is_quantized(architecture, storage, tensor.name)
    ]


def _awq(architecture: Architecture, storage: Storage, found: tuple[Tensor, ...]) -> Stored:
    bits, group = round(storage.bits), storage.group_size or 128
    packed = 32 // bits
    middle = 1 << bits - 1
    zeros = sum(middle << place * bits for place in range(packed)) - (1 << 32)  # as a signed number
    tensors: list[Tensor | Bits] = []
    for tensor in found:
        if not _is_quantized(architecture, storage, tensor.name):
            tensors.append(_plain(tensor))
            continue
        module, (outputs, inputs) = tensor.name.removesuffix(".weight"), tensor.shape
        groups, columns = inputs // group, outputs // packed
        scale = _spread(tensor) / uniform_spread(bits)
        tensors += [
            Bits(name=f"{module}.qweight", dtype="I32", shape=(inputs, columns), bits=bits),
            _constant(f"{module}.qzeros", "I32", (groups, columns), zeros),
            _constant(f"{module}.scales", "F16", (groups, outputs), scale),
        ]
    # The prediction layer is named as well, whole: vLLM goes by parts of names.
    layer = [f".layers.{architecture.num_hidden_layers}."] if architecture.num_nextn_predict_layers else []
    quantization = {
        "quant_method": "awq",
        "bits": bits,
        "group_size": group,
        "version": "gemm",
        "zero_point": True,
        "modules_to_not_convert": [*AWQ_LEFT_OUT, *layer],
    }
    return Stored(tensors=tuple(tensors), dtype="float16", quantization={"quantization_config": quantization})


def _mlx(architecture: Architecture, storage: Storage, found: tuple[Tensor, ...]) -> Stored:
    bits, group = round(storage.bits), storage.group_size or 64
    tensors: list[Tensor | Bits] = []
    for parts in _joined(tensor for tensor in found if not _predicts(architecture, tensor.name)):
        first = parts[0]
        name = _mlx_name(first.name)
        if not _is_quantized(architecture, storage, first.name):
            tensors.append(_plain(msgspec.structs.replace(first, name=name, shape=_mlx_shape(first))))
            continue
        outer = (len(parts), first.shape[0]) if component(first.name) == "routed_experts" else (first.shape[0],)
        columns = first.shape[1]
        tensors.append(Bits(name=name, dtype="U32", shape=(*outer, columns * bits // 32), bits=bits, signs=first.signs))
        tensors += _affine(name.removesuffix(".weight"), first, len(parts), (*outer, columns // group), bits)
    quantization = {"group_size": group, "bits": bits, "mode": "affine"}
    both: dict[str, object] = {"quantization": quantization, "quantization_config": quantization}
    return Stored(tensors=tuple(tensors), dtype="bfloat16", quantization=both, made_for="mlx")


def _affine(module: str, like: Tensor, parts: int, shape: tuple[int, ...], bits: int) -> Iterator[Tensor]:
    """Scales and biases: a weight is its bits times the one plus the other."""
    largest = (1 << bits) - 1
    per_row = shape[-1]
    for kind, of_spread, of_size in (
        ("scales", 1 / uniform_spread(bits), 2 / largest),
        ("biases", -largest / 2 / uniform_spread(bits), -1.0),
    ):
        fills = tuple(
            Fill(elements=fill.elements // like.shape[-1] * per_row * parts, mean=fill.spread * of_spread)
            for fill in like.fills
        )
        signs = tuple(Signs(row=each.row, stream=None, size=each.size * of_size) for each in like.signs)
        yield Tensor(name=f"{module}.{kind}", shape=shape, fills=fills, signs=signs, dtype="BF16")


def _joined(found: Iterator[Tensor]) -> list[list[Tensor]]:
    """The experts of a layer together, as MLX has them in one tensor; everything else by itself."""
    places: dict[str, list[Tensor]] = {}
    for tensor in found:
        places.setdefault(_mlx_name(tensor.name), []).append(tensor)
    return list(places.values())


def _mlx_name(name: str) -> str:
    if ".mlp.experts." in name:
        before, _, after = name.partition(".mlp.experts.")
        name = f"{before}.mlp.switch_mlp.{after.partition('.')[2]}"
    if name.startswith("model.visual."):
        return "vision_tower." + name.removeprefix("model.visual.")
    if name.startswith("model.language_model."):
        return "language_model.model." + name.removeprefix("model.language_model.")
    return name


def _mlx_shape(tensor: Tensor) -> tuple[int, ...]:
    """MLX has a convolution's channels last."""
    if len(tensor.shape) <= 2:
        return tensor.shape
    return (tensor.shape[0], *tensor.shape[2:], tensor.shape[1])
