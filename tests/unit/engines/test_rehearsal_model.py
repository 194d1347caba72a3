"""A model cut down for a rehearsal keeps what an engine's checks and kernels look at."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from engines import miniature
from engines.miniature import rehearsal as rehearsal_model
from selector.catalog import Catalog
from selector.contract import Candidate, Parallel
from selector.errors import ConfigurationError
from selector.facts import CheckpointFacts, ModelFacts
from selector.sound import model_faults
from tests.fakes.plans import candidate

CATALOG = Catalog()
KEPT = (
    *("model_type", "class_name", "num_attention_heads", "num_key_value_heads", "head_dim", "num_experts_per_tok"),
    *("n_shared_experts", "moe_intermediate_size", "intermediate_size", "max_position_embeddings", "attention_bias"),
    *("num_nextn_predict_layers", "use_qk_norm", "partial_rotary_factor", "mrope_section", "routed_scaling_factor"),
    "mtp_has_own_embedding_and_head",
)
MODELS = ("glm-4.6", "glm-4.5v", "glm-4.5", "glm-4.5-air", "glm-4.6v", "glm-4.7")


def planned(model: ModelFacts, checkpoint: CheckpointFacts, parallel: Parallel) -> Candidate:
    like = candidate("vllm", model.id)
    chosen = msgspec.structs.replace(
        like.checkpoint,
        repo=checkpoint.repo,
        format=checkpoint.format,
        quantization=checkpoint.quantization,
        file_prefix=checkpoint.file_prefix,
    )
    return msgspec.structs.replace(like, checkpoint=chosen, parallel=parallel)


def cut(name: str, place: int = 0, **parallel: int) -> ModelFacts:
    model = CATALOG.model(name)
    layout = msgspec.convert(parallel, Parallel)
    return rehearsal_model.cut_down(model, planned(model, model.checkpoints[place], layout))


@pytest.mark.parametrize("name", MODELS)
def test_what_kernels_and_checks_look_at_is_the_real_models(name: str) -> None:
    real, found = CATALOG.model(name), cut(name)
    for part in KEPT:
        assert getattr(found.architecture, part) == getattr(real.architecture, part), part
    assert found.context_tokens == real.context_tokens
    assert found.generated
    if real.architecture.vision is not None:
        assert found.architecture.vision is not None
        for part in ("num_heads", "hidden_size", "patch_size", "intermediate_size", "image_size"):
            assert getattr(found.architecture.vision, part) == getattr(real.architecture.vision, part)


@pytest.mark.parametrize("name", MODELS)
def test_it_passes_the_catalogues_own_checks_and_is_small(name: str) -> None:
    found = cut(name, tensor=8)
    assert list(model_faults(found)) == []
    assert found.checkpoints[0].download_bytes == miniature.size_bytes(found) < 300_000_000


def test_every_checkpoint_is_made_in_its_own_format_or_refused_with_a_reason() -> None:
    refused = []
    for name in MODELS:
        model = CATALOG.model(name)
        for place, checkpoint in enumerate(model.checkpoints):
            try:
                made = cut(name, place).checkpoints
            except ConfigurationError as error:
                assert error.hint
                refused.append((name, checkpoint.format, checkpoint.quantization))
                continue
            assert len(made) == 1
            assert (made[0].format, made[0].quantization) == (checkpoint.format, checkpoint.quantization)
            assert made[0].storage == checkpoint.storage
    assert {(format_, quantization) for _, format_, quantization in refused} == {
        *(("gptq", "Int4-Int8Mix"), ("awq", "AWQ-FP16Mix"), ("int4", "AWQ-4bit"), ("nvfp4", "NVFP4"), ("awq", "Int4")),
        *(("gguf", "UD-TQ1_0"), ("gguf", "UD-IQ1_M"), ("gguf", "UD-IQ2_M")),
    }
    assert [name for name, format_, kind in refused if (format_, kind) == ("awq", "Int4")] == ["glm-4.5v"]


def test_two_checkpoints_have_two_folders() -> None:
    model = CATALOG.model("glm-4.6")
    names = set()
    for place, checkpoint in enumerate(model.checkpoints):
        if checkpoint.quantization in {"BF16", "FP8", "Int4", "4bit", "Q6_K"}:
            names.add(cut("glm-4.6", place).checkpoints[0].repo)
    assert len(names) == 6  # BF16 twice, once as GGUF


def test_a_stage_has_a_layer_at_least_and_there_are_two_of_experts() -> None:
    few, many = cut("glm-4.6").architecture, cut("glm-4.6", pipeline=8).architecture
    assert (few.num_hidden_layers, few.first_k_dense_replace) == (3, 1)
    assert many.num_hidden_layers == 8


@pytest.mark.parametrize(("ranks", "experts"), [(1, 16), (8, 16), (16, 16), (32, 32), (12, 24)])
def test_each_rank_has_as_many_experts(ranks: int, experts: int) -> None:
    assert cut("glm-4.6", tensor=ranks).architecture.n_routed_experts == experts


def test_the_real_shapes_without_weights_hold_what_a_dummy_load_reads(tmp_path: Path) -> None:
    model = CATALOG.model("glm-4.6")
    fp8 = next(each for each in model.checkpoints if each.format == "fp8")
    folder = rehearsal_model.dummy_folder(model, planned(model, fp8, Parallel(tensor=8)), tmp_path / "dummy")
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["n_routed_experts"], config["vocab_size"]) == (92, 160, 151_552)
    assert (config["hidden_size"], config["torch_dtype"]) == (5120, "bfloat16")
    told = config["quantization_config"]
    assert told["quant_method"] == "compressed-tensors"
    assert {"lm_head", "model.layers.3.mlp.gate", "model.layers.92.mlp.gate"} <= set(told["ignore"])
    assert "model.layers.2.mlp.gate" not in told["ignore"]  # a dense layer has no router
    assert not list(folder.glob("*.safetensors*"))
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("format_", ["gguf", "mlx"])
def test_no_engine_makes_up_weights_in_formats_that_vllm_does_not_read(format_: str, tmp_path: Path) -> None:
    model = CATALOG.model("glm-4.6")
    checkpoint = next(each for each in model.checkpoints if each.format == format_)
    with pytest.raises(ConfigurationError, match="dummy"):
        rehearsal_model.dummy_folder(model, planned(model, checkpoint, Parallel()), tmp_path / "dummy")


def test_a_checkpoint_that_the_model_has_not_is_named() -> None:
    model = CATALOG.model("glm-4.6")
    stranger = msgspec.structs.replace(model.checkpoints[0], repo="somebody/else")
    with pytest.raises(ConfigurationError, match="somebody/else"):
        rehearsal_model.cut_down(model, planned(model, stranger, Parallel()))
