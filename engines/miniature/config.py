"""The miniatures' config files, in the layout of the released checkpoints.

That is the layout of Transformers 4: flat ``rope_theta``, ``rope_scaling`` and ``partial_rotary_factor``
(mlx-lm reads no other), ``torch_dtype`` (Transformers 5 and vLLM read it too).
"""

from __future__ import annotations

import json

from engines.miniature.tokenizer import END_OF_TEXT, STOP_TOKENS, Vocabulary
from selector.facts import Architecture, Vision

#: The Transformers that the released files name; nothing newer is needed to read them.
TRANSFORMERS_VERSION = {"glm4_moe": "4.54.0", "glm4v_moe": "4.55.0.dev0"}
PROCESSOR = "Glm4vProcessor"
#: Pixels over height, width and the two frames of a patch, that the released GLM-4.5V takes.
LEAST_PIXELS, MOST_IMAGE_PIXELS, MOST_VIDEO_PIXELS = 12_544, 9_633_792, 47_040_000
#: CLIP's own, which the vision tower was trained with.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def config_json(
    architecture: Architecture,
    vocabulary: Vocabulary,
    dtype: str = "float32",
    quantization: dict[str, object] | None = None,
) -> str:
    """``config.json``. ``quantization`` is what a quantized checkpoint adds to it, under its own keys."""
    ends: dict[str, object] = {
        "eos_token_id": [vocabulary.token_id(token) for token in STOP_TOKENS],
        "pad_token_id": vocabulary.token_id(END_OF_TEXT),
    }
    top: dict[str, object] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "transformers_version": TRANSFORMERS_VERSION[architecture.model_type],
        **(quantization or {}),
    }
    language = ends | _language(architecture)
    vision = architecture.vision
    if vision is None:
        return _json(top | language)
    return _json(
        top
        | ends
        | {
            "image_start_token_id": vocabulary.token_id("<|begin_of_image|>"),
            "image_end_token_id": vocabulary.token_id("<|end_of_image|>"),
            "video_start_token_id": vocabulary.token_id("<|begin_of_video|>"),
            "video_end_token_id": vocabulary.token_id("<|end_of_video|>"),
            "image_token_id": vocabulary.token_id("<|image|>"),
            "video_token_id": vocabulary.token_id("<|video|>"),
            "text_config": language
            | {"model_type": f"{architecture.model_type}_text", "tie_word_embeddings": False, "torch_dtype": dtype},
            "vision_config": _vision(architecture, vision),
        }
    )


def _language(architecture: Architecture) -> dict[str, object]:
    section = architecture.mrope_section
    return {
        "attention_bias": architecture.attention_bias,
        "attention_dropout": 0.0,
        "first_k_dense_replace": architecture.first_k_dense_replace,
        "head_dim": architecture.head_dim,
        "hidden_act": "silu",
        "hidden_size": architecture.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": architecture.intermediate_size,
        "max_position_embeddings": architecture.max_position_embeddings,
        "moe_intermediate_size": architecture.moe_intermediate_size,
        "n_group": 1,
        "n_routed_experts": architecture.n_routed_experts,
        "n_shared_experts": architecture.n_shared_experts,
        "norm_topk_prob": True,
        "num_attention_heads": architecture.num_attention_heads,
        "num_experts_per_tok": architecture.num_experts_per_tok,
        "num_hidden_layers": architecture.num_hidden_layers,
        "num_key_value_heads": architecture.num_key_value_heads,
        "num_nextn_predict_layers": architecture.num_nextn_predict_layers,
        "partial_rotary_factor": architecture.partial_rotary_factor,
        "rms_norm_eps": architecture.rms_norm_eps,
        "rope_scaling": None if section is None else {"rope_type": "default", "mrope_section": section},
        "rope_theta": architecture.rope_theta,
        "routed_scaling_factor": architecture.routed_scaling_factor,
        "topk_group": 1,
        "use_cache": True,
        # mlx-vlm asks for it in text_config.
        "use_qk_norm": architecture.use_qk_norm,
        "vocab_size": architecture.vocab_size,
    }


def _vision(architecture: Architecture, vision: Vision) -> dict[str, object]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "depth": vision.depth,
        "hidden_act": "silu",
        "hidden_size": vision.hidden_size,
        "image_size": vision.image_size,
        "in_channels": vision.in_channels,
        "initializer_range": 0.02,
        "intermediate_size": vision.intermediate_size,
        "model_type": architecture.model_type,
        "num_heads": vision.num_heads,
        "out_hidden_size": vision.out_hidden_size,
        "patch_size": vision.patch_size,
        "rms_norm_eps": architecture.rms_norm_eps,
        "spatial_merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }


def generation_config_json(architecture: Architecture, vocabulary: Vocabulary) -> str:
    """``generation_config.json``, with the released GLM's own sampling for who asks for none."""
    return _json(
        {
            "_from_model_config": True,
            "do_sample": True,
            "eos_token_id": [vocabulary.token_id(token) for token in STOP_TOKENS],
            "pad_token_id": vocabulary.token_id(END_OF_TEXT),
            "temperature": 1.0,
            "top_p": 0.95,
            "transformers_version": TRANSFORMERS_VERSION[architecture.model_type],
        }
    )


def preprocessor_config_json(architecture: Architecture, vision: Vision) -> str:
    """``preprocessor_config.json``."""
    pixels = min(MOST_IMAGE_PIXELS, _most_pixels(architecture, vision))
    return _json(_preprocessing(vision, pixels) | {"image_processor_type": "Glm4vImageProcessor"})


def video_preprocessor_config_json(architecture: Architecture, vision: Vision) -> str:
    """``video_preprocessor_config.json``."""
    pixels = min(MOST_VIDEO_PIXELS, _most_pixels(architecture, vision))
    return _json(_preprocessing(vision, pixels) | {"video_processor_type": "Glm4vVideoProcessor"})


def _most_pixels(architecture: Architecture, vision: Vision) -> int:
    # An eighth of the context for an image: engines set memory aside for the largest one.
    tokens = architecture.max_position_embeddings // 8
    return tokens * (vision.patch_size * vision.spatial_merge_size) ** 2 * vision.temporal_patch_size


def _preprocessing(vision: Vision, most_pixels: int) -> dict[str, object]:
    return {
        "do_rescale": True,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "merge_size": vision.spatial_merge_size,
        "patch_size": vision.patch_size,
        "processor_class": PROCESSOR,
        "size": {"shortest_edge": LEAST_PIXELS, "longest_edge": most_pixels},
        "temporal_patch_size": vision.temporal_patch_size,
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
