"""The miniatures' config files keep the layout of the released checkpoints."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from engines.miniature import config as miniature_config
from engines.miniature.tokenizer import STOP_TOKENS, vocabulary
from selector.catalog import Catalog

CATALOG = Catalog()
TINY = CATALOG.model("glm-tiny").architecture
TINY_VISION = CATALOG.model("glm-tiny-v").architecture
WORDS = vocabulary(1024)
STOPS = [WORDS.token_id(token) for token in STOP_TOKENS]


def text_config() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(miniature_config.config_json(TINY, WORDS))
    return found


def vision_config() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(miniature_config.config_json(TINY_VISION, WORDS))
    return found


def test_rope_is_flat_because_mlx_lm_reads_no_nested_one() -> None:
    config = text_config()
    assert config["rope_theta"] == 1_000_000
    assert config["partial_rotary_factor"] == 0.5
    assert "rope_scaling" in config
    assert config["rope_scaling"] is None
    assert "rope_parameters" not in config


def test_the_config_repeats_every_shape_of_the_profile() -> None:
    shapes = msgspec.to_builtins(TINY)
    config = text_config()
    for name in TINY.__struct_fields__:
        if name not in {"class_name", "mrope_section", "mtp_has_own_embedding_and_head", "vision", "source"}:
            assert config[name] == shapes[name], name
    assert config["architectures"] == ["Glm4MoeForCausalLM"]
    assert config["torch_dtype"] == "float32"


def test_a_vision_config_nests_its_language_and_its_tower() -> None:
    config = vision_config()
    assert config["model_type"] == "glm4v_moe"
    assert config["text_config"]["model_type"] == "glm4v_moe_text"
    assert config["text_config"]["use_qk_norm"] is False  # mlx-vlm asks for it there
    assert config["text_config"]["rope_scaling"] == {"rope_type": "default", "mrope_section": [2, 3, 3]}
    assert TINY_VISION.vision is not None
    assert config["vision_config"] == config["vision_config"] | msgspec.to_builtins(TINY_VISION.vision)


def test_ids_in_the_configs_are_those_of_the_tokenizer() -> None:
    config = vision_config()
    assert config["image_token_id"] == WORDS.token_id("<|image|>")
    assert config["video_end_token_id"] == WORDS.token_id("<|end_of_video|>")
    for part in (text_config(), config, config["text_config"]):
        assert part["eos_token_id"] == STOPS
    generation = json.loads(miniature_config.generation_config_json(TINY, WORDS))
    assert generation["eos_token_id"] == STOPS


def test_the_largest_image_leaves_most_of_the_context_free() -> None:
    vision = TINY_VISION.vision
    assert vision is not None
    sizes = json.loads(miniature_config.preprocessor_config_json(TINY_VISION, vision))["size"]
    tokens = sizes["longest_edge"] // (14 * 2) ** 2 // 2
    assert tokens == TINY_VISION.max_position_embeddings // 8
    released = CATALOG.model("glm-4.5v").architecture
    assert released.vision is not None
    sizes = json.loads(miniature_config.preprocessor_config_json(released, released.vision))["size"]
    assert sizes == {"shortest_edge": 12_544, "longest_edge": 9_633_792}
