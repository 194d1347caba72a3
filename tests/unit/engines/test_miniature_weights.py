"""The miniatures' tensors: names, shapes and values, read by the real safetensors library."""

from __future__ import annotations

import json
import math
from array import array
from io import BytesIO
from itertools import pairwise

import msgspec
import pytest
import safetensors

from engines.miniature import tensors as miniature_tensors
from engines.miniature.call import CHAIN, TRIGGERS
from engines.miniature.shards import index_json, shards
from engines.miniature.tensors import Fill, Signs, Tensor
from engines.miniature.tokenizer import vocabulary
from engines.miniature.weights import LOGIT_SPREAD, QUIET, SPREAD, Tongue, tensors, tongue
from selector.catalog import Catalog
from selector.facts import Architecture

CATALOG = Catalog()
TINY = CATALOG.model("glm-tiny").architecture
TINY_VISION = CATALOG.model("glm-tiny-v").architecture
WORDS = (535, 988)
TONGUE = Tongue(words=WORDS)


def named(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in tensors(architecture, TONGUE)}


def values(tensor: Tensor) -> array[float]:
    found = array("f")
    for chunk in tensor.data():
        found.frombytes(chunk)
    return found


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        # Published, and computed from the published sizes of the files.
        ("glm-4.6", 356_785_898_816),
        ("glm-4.5", 358_337_791_296),
        ("glm-4.5-air", 110_468_824_832),
        ("glm-4.5v", 107_710_933_120),
    ],
)
def test_the_tensors_of_a_real_model_add_up_to_its_published_parameters(model: str, parameters: int) -> None:
    found = tensors(CATALOG.model(model).architecture, Tongue(words=(1000, 151_000)))
    assert sum(math.prod(tensor.shape) for tensor in found) == parameters
    assert len({tensor.name for tensor in found}) == len(found)


@pytest.mark.parametrize("architecture", [TINY, TINY_VISION], ids=["text", "vision"])
def test_fills_cover_a_tensor_exactly(architecture: Architecture) -> None:
    for tensor in tensors(architecture, TONGUE):
        assert sum(fill.elements for fill in tensor.fills) == math.prod(tensor.shape)


def test_a_dense_layer_has_one_mlp_and_the_others_have_experts() -> None:
    found = named(TINY)
    assert found["model.layers.0.mlp.down_proj.weight"] == (128, 256)
    assert "model.layers.0.mlp.gate.weight" not in found
    assert found["model.layers.1.mlp.gate.weight"] == (8, 128)
    assert found["model.layers.1.mlp.gate.e_score_correction_bias"] == (8,)
    assert found["model.layers.3.mlp.experts.7.up_proj.weight"] == (64, 128)
    assert found["model.layers.3.mlp.shared_experts.gate_proj.weight"] == (64, 128)
    assert found["model.layers.3.self_attn.q_proj.bias"] == (256,)
    assert found["model.layers.3.self_attn.q_norm.weight"] == (32,)


def test_the_prediction_layer_comes_after_the_last_and_borrows_the_embedding_as_in_4_6() -> None:
    found = named(TINY)
    assert found["model.layers.4.eh_proj.weight"] == (128, 256)
    assert {"model.layers.4.enorm.weight", "model.layers.4.hnorm.weight"} <= found.keys()
    assert "model.layers.4.shared_head.norm.weight" in found
    assert "model.layers.4.mlp.experts.7.up_proj.weight" in found
    assert not {"model.layers.4.embed_tokens.weight", "model.layers.4.shared_head.head.weight"} & found.keys()


def test_the_prediction_layer_of_4_5_has_its_own_embedding_and_head() -> None:
    found = named(msgspec.structs.replace(TINY, mtp_has_own_embedding_and_head=True))
    assert found["model.layers.4.embed_tokens.weight"] == found["model.layers.4.shared_head.head.weight"] == (1024, 128)


def test_a_vision_model_keeps_its_language_and_its_tower_under_the_released_names() -> None:
    found = named(TINY_VISION)
    assert {name.split(".")[1] for name in found} == {"language_model", "visual", "weight"}
    assert found["lm_head.weight"] == found["model.language_model.embed_tokens.weight"] == (1024, 128)
    assert found["model.visual.patch_embed.proj.weight"] == (64, 3, 2, 14, 14)
    assert found["model.visual.embeddings.position_embedding.weight"] == (16, 64)
    assert found["model.visual.blocks.1.attn.qkv.weight"] == (192, 64)
    assert found["model.visual.downsample.weight"] == (128, 64, 2, 2)
    assert found["model.visual.merger.post_projection_norm.bias"] == (128,)
    assert "model.language_model.layers.4.eh_proj.weight" not in found


def test_random_values_have_the_spread_and_lose_nothing_in_bf16() -> None:
    tensor = Tensor(name="x", shape=(512, 512), fills=(Fill(elements=512 * 512, spread=SPREAD),))
    found = values(tensor)
    assert math.isclose(sum(found) / len(found), 0, abs_tol=SPREAD / 100)
    assert math.isclose(math.sqrt(sum(value * value for value in found) / len(found)), SPREAD, rel_tol=0.01)
    raw = b"".join(tensor.data())
    assert not any(raw[0::4])
    assert not any(raw[1::4])


def test_norms_are_one_and_biases_zero_to_the_bit() -> None:
    by_name = {tensor.name: tensor for tensor in tensors(TINY, TONGUE)}
    assert set(values(by_name["model.norm.weight"])) == {1.0}
    assert set(values(by_name["model.layers.1.mlp.gate.e_score_correction_bias"])) == {0.0}


def test_no_two_matrices_are_alike() -> None:
    found = [b"".join(tensor.data()) for tensor in tensors(TINY, TONGUE) if any(fill.spread for fill in tensor.fills)]
    assert len(set(found)) == len(found)


def test_the_head_speaks_words_aloud_and_the_rest_under_its_breath() -> None:
    head = next(tensor for tensor in tensors(TINY, TONGUE) if tensor.name == "lm_head.weight")
    found, width = values(head), TINY.hidden_size

    def loudness(first: int, end: int) -> float:
        part = found[first * width : end * width]
        return math.sqrt(sum(value * value for value in part) / len(part)) * math.sqrt(width)

    assert math.isclose(loudness(*WORDS), LOGIT_SPREAD, rel_tol=0.02)
    for rows in ((0, WORDS[0]), (WORDS[1], 1024)):
        assert math.isclose(loudness(*rows), LOGIT_SPREAD * QUIET, rel_tol=0.02)


def rows(name: str, spoken: Tongue) -> list[array[float]]:
    tensor = next(tensor for tensor in tensors(TINY, spoken) if tensor.name == name)
    found, width = values(tensor), TINY.hidden_size
    return [found[place : place + width] for place in range(0, len(found), width)]


def product(one: array[float], other: array[float]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))


def test_each_token_of_a_call_calls_for_the_next_over_all_words() -> None:
    words = vocabulary(TINY.vocab_size)
    embedding, head = rows("model.embed_tokens.weight", tongue(words)), rows("lm_head.weight", tongue(words))
    steps = [[words.token_id(token) for token in step] for step in (TRIGGERS, *CHAIN)]
    for step, following in pairwise(steps):
        for token in step:
            # The last norm leaves of the signs what they are: one, and minus one.
            said = [product(embedding[token], row) for row in head]
            ranked = sorted(range(len(said)), key=said.__getitem__, reverse=True)
            assert ranked[: len(following)] == following
            assert said[following[-1]] - said[ranked[len(following)]] > 4


def test_nothing_but_a_call_makes_a_token_of_a_call_likely() -> None:
    words = vocabulary(TINY.vocab_size)
    embedding, head = rows("model.embed_tokens.weight", tongue(words)), rows("lm_head.weight", tongue(words))
    calls = {words.token_id(token) for step in CHAIN for token in step}
    for word in range(*words.words, 7):
        size = math.sqrt(product(embedding[word], embedding[word]) / TINY.hidden_size)
        said = [product(embedding[word], row) / size for row in head]
        assert max(range(len(said)), key=said.__getitem__) not in calls


def test_rows_of_signs_change_no_other_row() -> None:
    words = vocabulary(TINY.vocab_size)
    plain = rows("lm_head.weight", Tongue(words=words.words))
    pairs = enumerate(zip(plain, rows("lm_head.weight", tongue(words)), strict=True))
    changed = [number for number, (one, other) in pairs if one != other]
    assert changed == sorted(words.token_id(token) for step in CHAIN for token in step)


def test_signs_across_two_chunks_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = Tensor(name="x", shape=(3, 100), fills=(Fill(elements=300),), signs=(Signs(row=1, stream="s", size=0.5),))
    whole = values(tensor)
    monkeypatch.setattr(miniature_tensors, "_CHUNK_ELEMENTS", 130)
    assert values(tensor) == whole
    assert set(whole[:100]) == set(whole[200:]) == {0.0}
    assert set(whole[100:200]) == {0.5, -0.5}


def test_a_tensor_larger_than_a_chunk_is_written_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miniature_tensors, "_CHUNK_ELEMENTS", 1000)
    chunks = list(Tensor(name="x", shape=(2500,), fills=(Fill(elements=2500, spread=1.0),)).data())
    assert [len(chunk) for chunk in chunks] == [4000, 4000, 2000]
    assert chunks[0] != chunks[1]


@pytest.mark.parametrize("architecture", [TINY, TINY_VISION], ids=["text", "vision"])
def test_both_shards_are_what_the_safetensors_library_reads(architecture: Architecture) -> None:
    expected = tensors(architecture, TONGUE)
    parts = shards(expected)
    read: dict[str, tuple[int, ...]] = {}
    for shard in parts:
        file = BytesIO()
        shard.write(file)
        raw = file.getvalue()
        assert len(raw) == shard.size_bytes()
        assert int.from_bytes(raw[:8], "little") % 8 == 0
        for name, content in safetensors.deserialize(raw):  # type: ignore[no-untyped-call]  # it has no stub
            assert content["dtype"] == "F32"
            read[name] = tuple(content["shape"])
    assert read == {tensor.name: tensor.shape for tensor in expected}


def test_the_index_names_the_file_of_every_tensor_and_the_files_are_about_equal() -> None:
    parts = shards(tensors(TINY, TONGUE))
    index = json.loads(index_json(parts))
    assert index["weight_map"] == {tensor.name: shard.file_name for shard in parts for tensor in shard.tensors}
    assert index["metadata"]["total_size"] == sum(tensor.size_bytes for shard in parts for tensor in shard.tensors)
    sizes = [shard.size_bytes() for shard in parts]
    assert max(sizes) < 1.2 * min(sizes)


def test_one_huge_tensor_still_leaves_a_tensor_for_each_file() -> None:
    found = (
        Tensor(name="a", shape=(9000,), fills=(Fill(elements=9000),)),
        Tensor(name="b", shape=(10,), fills=(Fill(elements=10),)),
    )
    assert [len(shard.tensors) for shard in shards(found)] == [1, 1]
