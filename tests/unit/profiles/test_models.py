"""The shipped models: complete, sourced, and with the figures of the founding documents."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from profiles import DIRECTORY
from selector import architecture
from selector.catalog import Catalog
from selector.facts import CheckpointFacts, ModelFacts

RELEASED = ("glm-4.5", "glm-4.5-air", "glm-4.5v", "glm-4.6", "glm-4.6v", "glm-4.7")
MINIATURES = ("glm-tiny", "glm-tiny-v")

#: Repository on Hugging Face -> repository on ModelScope, bytes of its files. The lists of the founding documents.
FOUNDING = {
    "zai-org/GLM-4.5V": ("ZhipuAI/GLM-4.5V", 215_421_877_760),
    "zai-org/GLM-4.5V-FP8": ("ZhipuAI/GLM-4.5V-FP8", 109_999_771_648),
    "QuantTrio/GLM-4.5V-AWQ": ("tclf90/GLM-4.5V-AWQ", 60_300_000_000),
    "mlx-community/GLM-4.5V-3bit": ("mlx-community/GLM-4.5V-3bit", 48_503_733_760),
    "mlx-community/GLM-4.5V-4bit": ("mlx-community/GLM-4.5V-4bit", 61_857_185_280),
    "mlx-community/GLM-4.5V-5bit": ("mlx-community/GLM-4.5V-5bit", 75_210_636_800),
    "mlx-community/GLM-4.5V-6bit": ("mlx-community/GLM-4.5V-6bit", 88_564_088_320),
    "mlx-community/GLM-4.5V-8bit": ("mlx-community/GLM-4.5V-8bit", 115_270_991_360),
    "zai-org/GLM-4.6": ("ZhipuAI/GLM-4.6", 713_571_826_432),
    "zai-org/GLM-4.6-FP8": ("ZhipuAI/GLM-4.6-FP8", 361_292_648_939),
    "QuantTrio/GLM-4.6-GPTQ-Int4-Int8Mix": ("tclf90/GLM-4.6-GPTQ-Int4-Int8Mix", 232_000_000_000),
    "QuantTrio/GLM-4.6-AWQ": ("tclf90/GLM-4.6-AWQ", 196_800_000_000),
    "mlx-community/GLM-4.6-4bit": ("mlx-community/GLM-4.6-4bit", 198_556_925_568),
    "mlx-community/GLM-4.6-5bit": ("mlx-community/GLM-4.6-5bit", 242_647_252_608),
}
#: Checkpoints beyond them whose size is known.
BEYOND = {
    "mlx-community/GLM-4.6-6bit": 286_737_579_648,
    "mlx-community/GLM-4.6-8bit": 374_918_233_728,
    "zai-org/GLM-4.5-Air": 220_937_661_440,
    "zai-org/GLM-4.5-Air-FP8": 113_144_711_680,
    "QuantTrio/GLM-4.5-Air-AWQ-FP16Mix": 74_088_185_856,
    "cyankiwi/GLM-4.5-Air-AWQ-4bit": 59_100_000_000,
    "nvidia/GLM-4.7-NVFP4": 215_000_000_000,
}
#: unsloth's GGUF of GLM-4.6, GB as its page gives them.
GGUF = {
    "UD-TQ1_0": 84.1,
    "UD-IQ1_M": 107,
    "UD-IQ2_M": 122,
    "UD-Q2_K_XL": 135,
    "UD-Q3_K_XL": 158,
    "UD-Q4_K_XL": 204,
    "Q5_K_M": 253,
    "Q6_K": 293,
    "BF16": 714,
}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


def checkpoints(catalog: Catalog) -> Iterator[tuple[ModelFacts, CheckpointFacts]]:
    for model in map(catalog.model, catalog.model_ids()):
        for checkpoint in model.checkpoints:
            yield model, checkpoint


def test_the_whole_family_and_the_miniatures_are_described(catalog: Catalog) -> None:
    assert catalog.model_ids() == (*RELEASED, *MINIATURES)


@pytest.mark.parametrize("repo", FOUNDING)
def test_every_founding_checkpoint_is_there_with_both_hubs_and_its_bytes(catalog: Catalog, repo: str) -> None:
    found = {file.repo: (file.modelscope, file.download_bytes) for _, file in checkpoints(catalog)}
    assert found[repo] == FOUNDING[repo]


@pytest.mark.parametrize("repo", BEYOND)
def test_a_published_size_is_carried_exactly(catalog: Catalog, repo: str) -> None:
    assert {file.repo: file.download_bytes for _, file in checkpoints(catalog)}[repo] == BEYOND[repo]


def test_every_quantization_of_the_gguf_repository_is_one_checkpoint_with_a_prefix(catalog: Catalog) -> None:
    found = [file for file in catalog.model("glm-4.6").checkpoints if file.format == "gguf"]
    assert {file.quantization: file.download_bytes for file in found} == {
        name: round(size * 1e9) for name, size in GGUF.items()
    }
    assert all(file.file_prefix is not None and file.quantization in file.file_prefix for file in found)


def test_every_released_model_has_bf16_and_fp8_of_the_maker(catalog: Catalog) -> None:
    for model_id in RELEASED:
        model = catalog.model(model_id)
        base = next(alias for alias in model.aliases if alias.startswith("zai-org/"))
        assert {(file.repo, file.format) for file in model.checkpoints} >= {(base, "bf16"), (f"{base}-FP8", "fp8")}


def test_a_hub_id_belongs_to_one_model(catalog: Catalog) -> None:
    owners: dict[str, set[str]] = {}
    for model, checkpoint in checkpoints(catalog):
        for name in (checkpoint.repo, checkpoint.modelscope, *model.aliases):
            if name is not None:
                owners.setdefault(name.lower(), set()).add(model.id)
    assert {name: models for name, models in owners.items() if len(models) > 1} == {}


def test_the_contexts_are_those_of_the_released_configs(catalog: Catalog) -> None:
    assert {each: catalog.model(each).context_tokens for each in RELEASED} == {
        "glm-4.5": 131_072,
        "glm-4.5-air": 131_072,
        "glm-4.5v": 65_536,  # documents that say 131,072 are wrong
        "glm-4.6": 202_752,
        "glm-4.6v": 131_072,
        "glm-4.7": 202_752,
    }
    for model in map(catalog.model, catalog.model_ids()):
        assert model.context_tokens == model.architecture.max_position_embeddings


def test_the_shapes_are_those_that_traps_are_about(catalog: Catalog) -> None:
    text, vision = catalog.model("glm-4.6").architecture, catalog.model("glm-4.5v").architecture
    assert (text.head_dim, text.hidden_size // text.num_attention_heads) == (128, 53)
    assert (text.use_qk_norm, vision.use_qk_norm) == (True, False)
    assert (text.num_nextn_predict_layers, vision.num_nextn_predict_layers) == (1, 0)
    assert vision.vision is not None
    assert (vision.vision.num_heads, vision.vision.intermediate_size) == (12, 10_944)
    own = {each: catalog.model(each).architecture.mtp_has_own_embedding_and_head for each in RELEASED}
    assert [each for each in RELEASED if own[each]] == ["glm-4.5", "glm-4.5-air", "glm-4.7"]


def test_quality_falls_with_the_bits_and_says_what_it_rests_on(catalog: Catalog) -> None:
    for model, checkpoint in checkpoints(catalog):
        whole = checkpoint.format in {"bf16", "fp32"} or checkpoint.quantization in {"BF16", "F32"}
        assert (checkpoint.quality == 1.0) == whole, (model.id, checkpoint.repo)
        assert checkpoint.quality_source.startswith("by definition" if whole else "assumed:"), checkpoint.repo
    bits = {file.quantization: file.quality for file in catalog.model("glm-4.5v").checkpoints if file.format == "mlx"}
    assert [bits[f"{each}bit"] for each in (3, 4, 5, 6, 8)] == sorted(bits.values())


def test_mlx_checkpoints_keep_a_scale_and_a_bias_for_64_weights_and_drop_the_mtp_layer(catalog: Catalog) -> None:
    for _, checkpoint in checkpoints(catalog):
        if checkpoint.format == "mlx":
            storage = checkpoint.storage
            assert storage is not None
            assert f"{storage.bits:g}bit" == checkpoint.quantization
            assert (storage.group_size, storage.scale_bits, storage.zero_bits, storage.mtp) == (64, 16, 16, False)


def test_a_layout_that_nobody_published_is_left_out(catalog: Catalog) -> None:
    for model, checkpoint in checkpoints(catalog):
        if model.generated:
            assert checkpoint.storage is not None  # ours, so it is known
        elif checkpoint.format in {"gptq", "gguf", "nvfp4", "int4"}:
            assert checkpoint.storage is None, checkpoint.repo
        elif checkpoint.quantization != "AWQ-FP16Mix":
            assert checkpoint.storage is not None, checkpoint.repo


def test_a_layout_reproduces_the_bytes_on_the_hub(catalog: Catalog) -> None:
    for model, checkpoint in checkpoints(catalog):
        if checkpoint.storage is not None and not model.generated:
            stored = architecture.stored_weights(model.architecture, checkpoint)
            by_layout = stored.total / stored.scale
            # 0.65 % is what the measured GLM-4.6-FP8 has beyond its layout.
            assert by_layout == pytest.approx(checkpoint.download_bytes, rel=0.007), checkpoint.repo


def test_vllm_and_sglang_know_the_parsers_of_every_released_model(catalog: Catalog) -> None:
    tools = {
        each: {parser.engine: (parser.tool, parser.reasoning) for parser in catalog.model(each).parsers}
        for each in RELEASED
    }
    assert all(set(each) == {"vllm", "sglang"} for each in tools.values())
    assert tools["glm-4.6"]["vllm"] == ("glm45", "glm45")
    assert tools["glm-4.7"]["vllm"] == ("glm47", "glm45")


def test_miniatures_are_generated_and_keep_every_part_of_the_architecture(catalog: Catalog) -> None:
    for model_id, like in (("glm-tiny", "glm-4.6"), ("glm-tiny-v", "glm-4.5v")):
        tiny, released = catalog.model(model_id), catalog.model(like)
        assert tiny.generated
        assert not released.generated
        assert tiny.checkpoints[0].repo == f"autolaunch/{model_id}"  # the one that is made when nobody says which
        assert all(file.repo.startswith(f"autolaunch/{model_id}") for file in tiny.checkpoints)
        for part in ("model_type", "class_name", "num_nextn_predict_layers", "attention_bias", "use_qk_norm"):
            assert getattr(tiny.architecture, part) == getattr(released.architecture, part), part
        assert (tiny.architecture.vision is None) == (released.architecture.vision is None)


def tables(value: object, path: str = "") -> Iterator[tuple[str, dict[str, object]]]:
    if isinstance(value, dict):
        yield path, value
        for key, part in value.items():
            yield from tables(part, f"{path}.{key}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from tables(part, f"{path}[{index}]")


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("[ma]*/*.toml")), ids=lambda path: path.stem)
def test_every_table_of_figures_says_its_source(path: Path) -> None:
    found = list(tables(tomllib.loads(path.read_text())))
    for place, table in found:
        if place.endswith((".vision", ".storage")) or ".results[" in place or (place == "" and "accelerators" in table):
            continue  # parts of a table that says it
        source = str(table.get("source", ""))
        assert len(source) > 10, f"{path.name}{place}"
        assert "public repository file" not in source
        assert "shared/" not in source
