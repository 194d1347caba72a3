"""The quantized miniatures: names, kinds and shapes of the formats, and that their numbers are the plain ones'."""

from __future__ import annotations

import json
import math
from array import array
from struct import unpack

import msgspec
import pytest

from engines.miniature import quantized as miniature_quantized
from engines.miniature.call import CHAIN, TRIGGERS
from engines.miniature.quantized import Stored, component, stored
from engines.miniature.shards import Shard
from engines.miniature.tensors import Bits, Dtype, Fill, Signs, Tensor, code
from engines.miniature.tokenizer import vocabulary
from engines.miniature.weights import EMBEDDING_SPREAD, SPREAD, tensors, tongue
from selector.catalog import Catalog
from selector.errors import ConfigurationError
from selector.facts import Format, ModelFacts

CATALOG = Catalog()
WORDS = vocabulary(1024)


def small(like: str) -> ModelFacts:
    """A model with the checkpoints of ``like`` in shapes that every group divides."""
    model = CATALOG.model(like)
    shape = CATALOG.model("glm-tiny" if model.architecture.vision is None else "glm-tiny-v").architecture
    wide = msgspec.structs.replace(shape, hidden_size=256, moe_intermediate_size=256, intermediate_size=256)
    if wide.vision is not None:
        wide = msgspec.structs.replace(wide, vision=msgspec.structs.replace(wide.vision, out_hidden_size=256))
    return msgspec.structs.replace(model, architecture=wide)


def made(like: str, format_: Format, quantization: str | None = None) -> Stored:
    model = small(like)
    checkpoint = next(
        each for each in model.checkpoints if each.format == format_ and quantization in (None, each.quantization)
    )
    return stored(model, checkpoint, tensors(model.architecture, tongue(WORDS)))


def table(found: Stored) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in found.tensors}


def raw(found: Stored, name: str) -> bytes:
    return b"".join(next(tensor for tensor in found.tensors if tensor.name == name).data())


def floats(data: bytes, dtype: Dtype) -> list[float]:
    if dtype == "BF16":
        pairs = (data[place : place + 2] for place in range(0, len(data), 2))
        return [unpack("<f", b"\0\0" + pair)[0] for pair in pairs]
    return list(array("f", data)) if dtype == "F32" else list(unpack(f"<{len(data) // 2}e", data))


def e4m3(byte: int) -> float:
    exponent, fraction = byte >> 3 & 15, byte & 7
    size = fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
    return -size if byte & 0x80 else size


def deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


# --- numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "byte"), [(0.0, 0), (1.0, 0x38), (-1.0, 0xB8), (448.0, 0x7E), (1e9, 0x7E)])
def test_numbers_of_fp8_are_the_nearest_of_the_format(value: float, byte: int) -> None:
    assert code(value, "F8_E4M3") == bytes((byte,))


def test_every_number_of_fp8_comes_back_as_itself() -> None:
    for byte in (*range(0x7F), *range(0x81, 0xFF)):
        assert code(e4m3(byte), "F8_E4M3") == bytes((byte,))


def test_rows_of_signs_are_all_ones_and_all_zeros_in_packed_bits() -> None:
    signs = Signs(row=1, stream="s")
    bits = Bits(name="x", shape=(2, 5), dtype="U32", bits=5, signs=(signs,))
    row = int.from_bytes(b"".join(bits.data())[20:], "little")
    assert [row >> 5 * place & 31 for place in range(32)] == [31 if each else 0 for each in signs.positive(32)]


def test_a_tensor_in_any_kind_of_numbers_is_as_long_as_it_says() -> None:
    for dtype, width in (("F32", 4), ("BF16", 2), ("F16", 2), ("F8_E4M3", 1), ("I32", 4)):
        tensor = Tensor(name="x", shape=(3, 7), fills=(Fill(elements=21, mean=2.0),), dtype=dtype)  # type: ignore[arg-type]  # of a loop
        assert len(b"".join(tensor.data())) == tensor.size_bytes == 21 * width


# --- formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.4.shared_head.head.weight", "lm_head"),
        ("model.layers.0.self_attn.o_proj.weight", "attention"),
        ("model.layers.0.self_attn.q_norm.weight", None),
        ("model.layers.0.self_attn.q_proj.bias", None),
        ("model.layers.0.mlp.up_proj.weight", "dense_mlp"),
        ("model.layers.1.mlp.gate.weight", "router"),
        ("model.layers.1.mlp.experts.3.up_proj.weight", "routed_experts"),
        ("model.layers.1.mlp.shared_experts.up_proj.weight", "shared_experts"),
        ("model.layers.4.eh_proj.weight", None),
        ("model.visual.blocks.0.mlp.up_proj.weight", "vision"),
    ],
)
def test_a_matrix_belongs_to_the_part_that_the_catalogue_counts_it_in(name: str, part: str | None) -> None:
    assert component(name) == part


def test_bf16_keeps_names_and_shapes_and_the_routers_correction_in_float32() -> None:
    found = made("glm-4.6", "bf16")
    plain = {tensor.name: tensor.shape for tensor in tensors(small("glm-4.6").architecture, tongue(WORDS))}
    assert {name: shape for name, (_, shape) in table(found).items()} == plain
    assert {name for name, (dtype, _) in table(found).items() if dtype != "BF16"} == {
        f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2, 3, 4)
    }
    assert found.quantization == {}


def test_fp8_has_a_float32_scale_a_row_beside_each_quantized_matrix() -> None:
    found = made("glm-4.6", "fp8")
    names = table(found)
    assert names["model.layers.1.mlp.experts.7.down_proj.weight"] == ("F8_E4M3", (256, 256))
    assert names["model.layers.1.mlp.experts.7.down_proj.weight_scale"] == ("F32", (256, 1))
    assert names["model.layers.4.mlp.experts.7.down_proj.weight"][0] == "F8_E4M3"  # the prediction layer too
    assert names["lm_head.weight"][0] == names["model.embed_tokens.weight"][0] == "BF16"
    assert names["model.layers.1.mlp.gate.weight"][0] == names["model.layers.4.eh_proj.weight"][0] == "BF16"


def test_fp8_weights_times_their_scale_have_the_plain_spread() -> None:
    found, name = made("glm-4.6", "fp8"), "model.layers.1.mlp.experts.7.down_proj.weight"
    scale = floats(raw(found, f"{name}_scale"), "F32")[0]
    assert deviation([e4m3(byte) * scale for byte in raw(found, name)]) == pytest.approx(SPREAD, rel=0.03)


def test_fp8_says_per_channel_and_per_token_and_names_what_it_leaves_out() -> None:
    told = made("glm-4.5v", "fp8").quantization["quantization_config"]
    assert isinstance(told, dict)
    group = told["config_groups"]["group_0"]
    assert (told["quant_method"], told["format"]) == ("compressed-tensors", "float-quantized")
    assert (group["weights"]["strategy"], group["weights"]["dynamic"]) == ("channel", False)
    assert (group["input_activations"]["strategy"], group["input_activations"]["dynamic"]) == ("token", True)
    assert {"lm_head", "model.language_model.layers.1.mlp.gate", "model.visual.blocks.1.attn.qkv"} <= set(
        told["ignore"]
    )
    assert not [name for name in told["ignore"] if "experts" in name or "self_attn" in name or "embed" in name]


def test_awq_packs_eight_weights_of_a_row_of_inputs_with_scales_for_groups_of_128() -> None:
    names = table(made("glm-4.6", "awq"))
    assert names["model.layers.0.self_attn.k_proj.qweight"] == ("I32", (256, 8))
    assert names["model.layers.0.self_attn.k_proj.qzeros"] == ("I32", (2, 8))
    assert names["model.layers.0.self_attn.k_proj.scales"] == ("F16", (2, 64))
    assert "model.layers.0.self_attn.k_proj.weight" not in names
    assert "model.layers.0.self_attn.k_proj.bias" in names
    assert "model.layers.2.mlp.experts.0.up_proj.qweight" in names


def test_awq_leaves_out_what_quanttrio_leaves_out_and_the_whole_prediction_layer() -> None:
    found = made("glm-4.6", "awq")
    left = [name for name in table(found) if name.endswith("_proj.weight")]
    assert {name for name in left if ".layers.4." not in name} == {
        f"model.layers.{layer}.mlp.shared_experts.{part}_proj.weight"
        for layer in (1, 2, 3)
        for part in ("gate", "up", "down")
    }
    told = found.quantization["quantization_config"]
    assert isinstance(told, dict)
    assert told["modules_to_not_convert"] == [
        *("embed_tokens", "shared_experts", "shared_head", "lm_head", ".layers.4."),
    ]


def test_the_zero_points_of_awq_are_the_middle() -> None:
    zeros = raw(made("glm-4.6", "awq"), "model.layers.0.self_attn.k_proj.qzeros")
    assert set(zeros) == {0x88}


def test_mlx_joins_the_experts_of_a_layer_and_drops_the_prediction_layer() -> None:
    found = made("glm-4.6", "mlx", "4bit")
    names = table(found)
    assert names["model.layers.1.mlp.switch_mlp.up_proj.weight"] == ("U32", (8, 256, 32))
    assert names["model.layers.1.mlp.switch_mlp.up_proj.scales"] == ("BF16", (8, 256, 4))
    assert names["model.layers.1.mlp.switch_mlp.up_proj.biases"] == ("BF16", (8, 256, 4))
    assert names["model.layers.1.mlp.gate.weight"] == ("BF16", (8, 256))
    assert names["model.embed_tokens.weight"] == ("U32", (1024, 32))
    assert not [name for name in names if ".experts." in name or ".layers.4." in name]
    assert found.made_for == "mlx"
    assert found.quantization["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}


def test_mlx_has_its_own_names_in_a_vision_model_and_channels_last() -> None:
    names = table(made("glm-4.5v", "mlx", "4bit"))
    assert "language_model.model.layers.1.mlp.switch_mlp.up_proj.weight" in names
    assert names["vision_tower.patch_embed.proj.weight"] == ("BF16", (64, 2, 14, 14, 3))
    assert names["vision_tower.downsample.weight"] == ("BF16", (256, 2, 2, 64))
    assert not [name for name in names if name.startswith("model.")]


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_an_mlx_row_of_signs_is_of_one_size_and_other_rows_keep_their_spread(bits: int) -> None:
    found = made("glm-4.6", "mlx", f"{bits}bit")
    weights = int.from_bytes(raw(found, "model.embed_tokens.weight"), "little")
    scales = floats(raw(found, "model.embed_tokens.scales"), "BF16")
    biases = floats(raw(found, "model.embed_tokens.biases"), "BF16")

    def row(number: int) -> list[float]:
        values = []
        for place in range(number * 256, number * 256 + 256):
            packed = weights >> place * bits & (1 << bits) - 1
            values.append(packed * scales[place // 64] + biases[place // 64])
        return values

    said = row(WORDS.token_id(TRIGGERS[0]))
    assert [abs(value) for value in said] == pytest.approx([1.0] * 256, rel=0.01)  # of bf16's eight bits
    assert 80 < sum(value > 0 for value in said) < 176
    assert said == pytest.approx(row(WORDS.token_id("</think>")))
    assert deviation(row(600)) == pytest.approx(EMBEDDING_SPREAD, rel=0.2)
    assert row(WORDS.token_id(CHAIN[0][0])) != pytest.approx(said)


@pytest.mark.parametrize(
    ("like", "format_"), [("glm-4.6", "gptq"), ("glm-4.5-air", "int4"), ("glm-4.7", "nvfp4"), ("glm-4.5v", "awq")]
)
def test_a_layout_that_is_not_published_in_full_is_refused_not_guessed(like: str, format_: Format) -> None:
    with pytest.raises(ConfigurationError, match=f"no miniature of {like} in the format {format_}") as caught:
        made(like, format_)
    assert caught.value.hint


def test_a_shard_names_the_framework_that_it_is_made_for() -> None:
    header = Shard(file_name="x", tensors=(), made_for="mlx").header()
    assert json.loads(header[8:])["__metadata__"] == {"format": "mlx"}


def test_the_spread_of_random_bits_is_that_of_a_uniform_number() -> None:
    assert miniature_quantized.uniform_spread(2) == pytest.approx(deviation([0, 1, 2, 3]))
