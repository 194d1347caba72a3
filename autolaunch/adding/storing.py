"""How a checkpoint stores its matrices, from the tensors that it has. Pure.

The format is what the configuration calls it; how many bits a weight takes, in what groups, and which parts are
quantized is counted from the tensors, and held against the model's own arithmetic. Where it does not come out even, as
in a mix of widths, the layout is left out: the plan then spreads the files' size evenly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, get_args

from autolaunch.adding.tensors import Tensor
from selector.architecture import parameters, stored_weights
from selector.errors import DownloadError
from selector.facts import Architecture, CheckpointFacts, Component, Format, Storage

#: A layout is the files' where it comes within this of them; beyond the other, the configuration is another model's.
LAYOUT_TOLERANCE, MODEL_TOLERANCE = 0.005, 0.02
#: What stands in the place of a module's ``weight``, packed; and what beside it.
_PACKED = ("weight", "weight_packed", "qweight")
_SCALES = ("weight_scale", "weight_scale_inv", "scales", "weight_global_scale", "weight_scale_2")
#: Zero points, and the little that some formats have beside them.
_ZEROS = ("qzeros", "biases", "weight_zero_point", "g_idx", "weight_g_idx", "weight_shape", "input_scale")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,4})\.")
_NARROW = {"F8_E4M3": 8, "F8_E5M2": 8, "I8": 8}
_PLAIN = {"BF16": 16, "F16": 16, "F32": 32}
_WIDTHS = {"fp8": "FP8", "nvfp4": "NVFP4", "bf16": "BF16", "fp32": "FP32"}


class Stored(NamedTuple):
    """``quantization`` as the shipped profiles call such; ``bits`` a weight, scales and all."""

    format: Format
    quantization: str
    storage: Storage | None
    bytes: int
    bits: float


class Told(NamedTuple):
    """What a configuration says of quantization."""

    format: Format
    bits: int
    group_size: int | None


def told_of(config: Mapping[str, object]) -> Told | None:
    """The format that a configuration names; ``None``: it names none.

    Raises:
        DownloadError: one that no profile knows.
    """
    keys = ("quantization_config", "compression_config", "quantization")
    section = next((config[key] for key in keys if config.get(key) is not None), None)
    if section is None:
        return None
    if not isinstance(section, dict):
        raise DownloadError("config.json: quantization_config is no object")
    method = str(section.get("quant_method") or "").lower()
    if method == "compressed-tensors":
        return _compressed(section)
    bits, group = _whole(section.get("bits")), _whole(section.get("group_size"))
    if not method and bits and group:
        return Told("mlx", bits, group)
    if method == "fp8":
        return Told("fp8", 8, None)
    if method in ("awq", "gptq") and bits:
        return Told("awq" if method == "awq" else "gptq", bits, group)
    if method == "modelopt" and "nvfp4" in str(section.get("quant_algo")).lower():
        return Told("nvfp4", 4, 16)
    raise DownloadError(
        f"it is quantized by {method[:60] or 'nothing that it names'!a}, and no profile can say that",
        hint=f"profiles know {', '.join(get_args(Format))}",
    )


def _compressed(section: Mapping[str, object]) -> Told:
    form = str(section.get("format") or "")
    groups = section.get("config_groups")
    first = next((each for each in groups.values() if isinstance(each, dict)), {}) if isinstance(groups, dict) else {}
    weights = first.get("weights")
    weights = weights if isinstance(weights, dict) else {}
    bits, group = _whole(weights.get("num_bits")) or 0, _whole(weights.get("group_size"))
    kind = weights.get("type")
    if (form, kind, bits) == ("float-quantized", "float", 8) or (form == "naive-quantized" and bits == 8):
        return Told("fp8", 8, None)
    if form.startswith("nvfp4") or (kind == "float" and bits == 4):
        return Told("nvfp4", 4, group or 16)
    if form == "pack-quantized" and bits in (4, 8):
        return Told("int4", bits, group)
    raise DownloadError(f"it is quantized in the form {form[:60]!a} of compressed-tensors, which no profile can say")


def _whole(value: object) -> int | None:
    return value if type(value) is int and 0 < value <= 1 << 16 else None


def component_of(name: str) -> Component | None:
    """The part of the model that a module is; ``None`` of norms and what is between parts."""
    last = name.rpartition(".")[2]
    if "visual." in name or name.startswith("vision_tower."):
        return "vision"
    if last == "embed_tokens":
        return "embedding"
    if last == "lm_head" or name.endswith("shared_head.head"):
        return "lm_head"
    if ".self_attn." in name:
        return "attention" if last.endswith("_proj") else None
    if name.endswith(".mlp.gate"):
        return "router"
    if ".mlp.experts." in name or ".switch_mlp." in name:
        return "routed_experts"
    if ".mlp.shared_experts." in name:
        return "shared_experts"
    return "dense_mlp" if ".mlp." in name else None


def stored(architecture: Architecture, config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Stored:
    """The format and layout of a checkpoint.

    Raises:
        DownloadError: its files are not those of the model that its configuration describes.
    """
    total = sum(each.size_bytes for each in tensors.values())
    told = told_of(config)
    width = _plain_bits(tensors)
    if told is None:
        form: Format = "fp32" if width == 32 else "bf16"
        name = "F16" if _most(tensors, ("F16",)) > total / 2 else _WIDTHS[form]
        storage = Storage(bits=width, plain_bits=width, mtp=_predicts(architecture, tensors))
        found = _checked(architecture, form, name, storage, total)
        if found is None:
            raise DownloadError(
                "its files do not hold the model that config.json describes: "
                f"{total:,} bytes of tensors are there, and {_expected(architecture, storage):,} would be"
            )
        return found
    counted = _Counted(architecture, tensors)
    storage_or_none = counted.storage(told, width)
    name = _name(told)
    found = None if storage_or_none is None else _checked(architecture, told.format, name, storage_or_none, total)
    return found or _even(architecture, told, name, total)


def _name(told: Told) -> str:
    if told.format == "mlx":
        return f"{told.bits}bit"
    return _WIDTHS.get(told.format) or f"Int{told.bits}"


def _expected(architecture: Architecture, storage: Storage) -> int:
    return round(_facts_total(architecture, "bf16", storage, 1))


def _facts_total(architecture: Architecture, form: Format, storage: Storage | None, total: int) -> float:
    """The bytes that a layout comes to."""
    facts = CheckpointFacts(
        repo="a/b",
        format=form,
        quantization="x",
        download_bytes=total,
        download_basis="measured",
        quality=1.0,
        quality_source="",
        storage=storage,
        source="",
    )
    return total / stored_weights(architecture, facts).scale


def _checked(architecture: Architecture, form: Format, name: str, storage: Storage, total: int) -> Stored | None:
    """A layout that the files bear out; ``None`` of any other."""
    computed = _facts_total(architecture, form, storage, total)
    if abs(total / computed - 1) > LAYOUT_TOLERANCE:
        return None
    return Stored(form, name, storage, total, _bits(architecture, total))


def _even(architecture: Architecture, told: Told, name: str, total: int) -> Stored:
    """A checkpoint whose layout does not come out even: its size has to be possible for its format at least."""
    bits = _bits(architecture, total)
    if not told.bits * (1 - MODEL_TOLERANCE) <= bits <= 16 * (1 + MODEL_TOLERANCE):
        raise DownloadError(
            f"its files do not hold the model that config.json describes: {total:,} bytes of tensors are "
            f"{bits:.2f} bits a weight, and it is said to have {told.bits}"
        )
    return Stored(told.format, name, None, total, bits)


def _bits(architecture: Architecture, total: int) -> float:
    return 8 * total / parameters(architecture)


def _plain_bits(tensors: Mapping[str, Tensor]) -> int:
    """What is not quantized is kept in: the width that most bytes of plain kinds have."""
    wide, narrow = _most(tensors, ("F32",)), _most(tensors, ("BF16", "F16"))
    return 32 if wide > narrow else 16


def _most(tensors: Mapping[str, Tensor], kinds: tuple[str, ...]) -> int:
    found = (each for name, each in tensors.items() if not name.endswith(_SCALES))
    return sum(each.size_bytes for each in found if each.dtype in kinds)


def _predicts(architecture: Architecture, tensors: Mapping[str, Tensor]) -> bool:
    return any(_of_prediction(architecture, name) for name in tensors)


def _of_prediction(architecture: Architecture, name: str) -> bool:
    """Whether a tensor is of the multi-token-prediction layer, which is numbered as one layer more."""
    layer = _LAYER.search(name)
    return layer is not None and "visual" not in name and int(layer[1]) >= architecture.num_hidden_layers


class _Counted:
    """What of each part is packed, in how many bytes, and how many scales it has."""

    def __init__(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
        self._architecture = architecture
        modules: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            module, _, kind = name.rpartition(".")
            modules.setdefault(module, {})[kind] = tensor
        self.packed: set[Component] = set()
        self.plain: set[Component] = set()
        self.scale_bytes = self.zero_bytes = self.scales = 0
        self.mtp = _predicts(architecture, tensors)
        self.mtp_packed = False
        for module, kinds in modules.items():
            self._count(module, kinds)

    def _count(self, module: str, kinds: Mapping[str, Tensor]) -> None:
        part = component_of(module)
        if part is None or not set(kinds) & set(_PACKED):
            return
        scales = [kinds[kind] for kind in _SCALES if kind in kinds]
        if _of_prediction(self._architecture, f"{module}."):
            self.mtp_packed = self.mtp_packed or bool(scales)
            return
        (self.packed if scales else self.plain).add(part)
        for kind, tensor in kinds.items():
            if kind in _SCALES:
                self.scale_bytes += tensor.size_bytes
                self.scales += tensor.elements if kind in ("weight_scale", "weight_scale_inv", "scales") else 0
            elif kind in _ZEROS:
                self.zero_bytes += tensor.size_bytes

    def storage(self, told: Told, plain_bits: int) -> Storage | None:
        """The layout; ``None`` where a part is kept in two ways."""
        if not self.packed or self.packed & self.plain or not self.scales:
            return None
        order: tuple[Component, ...] = get_args(Component)
        return Storage(
            bits=told.bits,
            quantized=tuple(each for each in order if each in self.packed),
            group_size=told.group_size,
            scale_bits=_round(8 * self.scale_bytes / self.scales),
            zero_bits=_round(8 * self.zero_bytes / self.scales),
            plain_bits=plain_bits,
            mtp=self.mtp,
            mtp_quantized=self.mtp and self.mtp_packed,
        )


def _round(bits: float) -> float:
    return round(bits, 4)
