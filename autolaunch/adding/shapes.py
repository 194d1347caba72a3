"""``config.json`` as an :class:`~selector.facts.Architecture`, held against the tensors' names. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from selector.errors import DownloadError
from selector.facts import Architecture, Vision

#: What is supported, and the class that engines know it by.
CLASSES = {"glm4_moe": "Glm4MoeForCausalLM", "glm4v_moe": "Glm4vMoeForConditionalGeneration"}
#: What brings code into an engine: Transformers' key for it, and mlx-lm's.
CODE_KEYS = ("auto_map", "model_file")


def refuse_code(config: object, named: str) -> None:
    """
    Raises:
        DownloadError: a part of the configuration asks for code of the repository's own.
    """
    waiting = [config]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            asked = next((key for key in CODE_KEYS if one.get(key) is not None), None)
            if asked is not None:
                raise DownloadError(
                    f"{named} asks for code of its own ({asked}), which is not run",
                    hint="the GLM checkpoints need none on current engines: take the released one",
                )
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def architecture_of(config: Mapping[str, object], tensors: Collection[str], told: str) -> Architecture:
    """The shape of the model that ``config`` describes.

    Args:
        tensors: the names that the weights have. Where they tell more than the configuration, they decide.
        told: where it is from.

    Raises:
        DownloadError: another architecture, or a key is missing or cannot be.
    """
    kind = config.get("model_type")
    if kind not in CLASSES:
        supported = " and ".join(CLASSES)
        raise DownloadError(
            f"this is a model of type {str(kind)[:60]!a}, and {supported} are supported",
            hint="autolaunch serves GLM-4.5 to 4.7 and what has their architecture",
        )
    language = config.get("text_config", config)
    if not isinstance(language, dict):
        raise DownloadError("config.json: text_config is no object")
    layers = language.get("num_hidden_layers")
    beyond = f".layers.{layers}."
    predicting = [name for name in tensors if beyond in name]
    own = any(name.endswith(("embed_tokens.weight", "shared_head.head.weight")) for name in predicting)
    rope = language.get("rope_parameters") or language.get("rope_scaling") or {}
    rope = rope if isinstance(rope, dict) else {}
    vision = config.get("vision_config")
    fields: dict[str, object] = {
        name: language.get(name) for name in Architecture.__struct_fields__ if name in language
    } | {
        "model_type": kind,
        "class_name": CLASSES[str(kind)],
        "num_nextn_predict_layers": language.get("num_nextn_predict_layers") or 0,
        "attention_bias": any(name.endswith("q_proj.bias") for name in tensors),
        "use_qk_norm": any(name.endswith("self_attn.q_norm.weight") for name in tensors),
        "partial_rotary_factor": _first("partial_rotary_factor", language, rope, 0.5),
        "rope_theta": _first("rope_theta", language, rope, None),
        "routed_scaling_factor": language.get("routed_scaling_factor", 1.0),
        "mrope_section": rope.get("mrope_section"),
        "mtp_has_own_embedding_and_head": own,
        "vision": None if vision is None else _vision(vision, language),
        "source": f"{told}, config.json",
    }
    fields.setdefault("n_shared_experts", 0)
    try:
        return msgspec.convert({name: value for name, value in fields.items() if value is not None}, Architecture)
    except msgspec.ValidationError as error:
        raise DownloadError(f"config.json does not describe such a model: {error}") from error


def _first(name: str, language: Mapping[str, object], rope: Mapping[str, object], otherwise: object) -> object:
    """A figure that Transformers 4 has beside the others, and Transformers 5 among those of the rotation."""
    for each in (language, rope):
        if each.get(name) is not None:
            return each[name]
    return otherwise


def _vision(told: object, language: Mapping[str, object]) -> Vision:
    if not isinstance(told, dict):
        raise DownloadError("config.json: vision_config is no object")
    fields = {name: told[name] for name in Vision.__struct_fields__ if name in told}
    fields.setdefault("in_channels", 3)
    fields.setdefault("out_hidden_size", language.get("hidden_size"))
    try:
        return msgspec.convert(fields, Vision)
    except msgspec.ValidationError as error:
        raise DownloadError(f"config.json does not describe such a vision tower: {error}") from error
