"""What the beginning of a GGUF file says of its model. The tensors' names come after the tokenizer, and are not read.

So a header cannot tell all of an architecture: whether queries and keys are normalised, for one. Where every figure
that it does tell is that of a known model, the model is that one; any other is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from autolaunch.adding.sources import File, Source
from selector.errors import DownloadError
from selector.facts import Architecture, ModelFacts

#: The keys of a model come before its tokenizer, within the first few kilobytes.
HEADER_BYTES = 1 << 20
_MOST_VALUES, _MOST_TEXT = 1 << 16, 1 << 16
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_FORMS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
Value = int | float | str | bool


class Header(NamedTuple):
    """Keys with their values, as far as the tokenizer's words; ``words`` is how many it has."""

    values: dict[str, Value]
    words: int | None


def header_of(source: Source, file: File) -> Header:
    """
    Raises:
        DownloadError: it cannot be had, or is none.
    """
    data = source.read(file, 0, HEADER_BYTES)
    try:
        return _walked(data)
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise DownloadError(f"{file.path} of {source.repo}: its beginning is no GGUF header: {error}") from error


class _Walk:
    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return value  # type: ignore[no-any-return] # the form says what it is

    def text(self) -> str:
        length = self.number("<Q")
        if length > _MOST_TEXT or self.place + length > len(self.data):
            raise ValueError("a text that leads beyond it")
        self.place += length
        return self.data[self.place - length : self.place].decode(errors="replace")

    def array(self) -> int:
        """Passes over an array of numbers; of texts only how many they are is told, and the walk ends."""
        of, count = self.number("<I"), self.number("<Q")
        if of == _STRING:
            return count
        if of not in _SIZES or count > len(self.data):
            raise ValueError("an array of something else")
        self.place += _SIZES[of] * count
        return count


def _walked(data: bytes) -> Header:
    walk = _Walk(data)
    if data[:4] != b"GGUF":
        raise ValueError("it does not begin as one")
    walk.place = 4
    version, _, values = walk.number("<I"), walk.number("<Q"), walk.number("<Q")
    if not 2 <= version <= 3 or values > _MOST_VALUES:
        raise ValueError("a version or a count that cannot be")
    found: dict[str, Value] = {}
    for _ in range(values):
        key, kind = walk.text(), walk.number("<I")
        if kind == _ARRAY:
            count = walk.array()
            if key == "tokenizer.ggml.tokens":
                return Header(found, count)
            continue
        if kind == _STRING:
            found[key] = walk.text()
        elif kind in _FORMS:
            found[key] = walk.number(_FORMS[kind])
        else:
            raise ValueError("an unknown kind of value")
    return Header(found, None)


def named_after(model: ModelFacts, repo: str) -> tuple[int, str]:
    """How much of a repository's name is the model's, for a choice among equals."""
    return (len(model.id) if model.id in repo.lower() else 0, model.id)


def with_context(architecture: Architecture, header: Header) -> Architecture:
    """The architecture with the header's own context, where it has one."""
    context = header.values.get("glm4moe.context_length")
    if type(context) is not int or not 0 < context < 1 << 30:
        return architecture
    return msgspec.structs.replace(architecture, max_position_embeddings=context)


def known_architecture(header: Header, models: Iterable[ModelFacts], repo: str) -> ModelFacts:
    """The known model whose figures are the header's; of several the one that the repository is called after.

    Raises:
        DownloadError: there is none.
    """
    told = header.values
    kind = told.get("general.architecture")
    if kind != "glm4moe":
        raise DownloadError(
            f"this is a GGUF file of the architecture {str(kind)[:60]!a}, and glm4moe is the one supported"
        )
    alike = [
        model
        for model in models
        if all(told.get(f"glm4moe.{key}") == value for key, value in _figures(model.architecture).items())
        and header.words in (None, model.architecture.vocab_size)
    ]
    if alike:
        return max(alike, key=lambda each: named_after(each, repo))
    raise DownloadError(
        "a GGUF file's header does not tell all of a model's shape, and this one is none of a known model",
        hint="add the repository that it was made from, in safetensors",
    )


def _figures(shape: Architecture) -> dict[str, int | None]:
    if shape.vision is not None:
        return {"block_count": -1}  # llama.cpp has the vision tower in a file of its own
    return {
        "block_count": shape.num_hidden_layers + shape.num_nextn_predict_layers,
        "embedding_length": shape.hidden_size,
        "feed_forward_length": shape.intermediate_size,
        "attention.head_count": shape.num_attention_heads,
        "attention.head_count_kv": shape.num_key_value_heads,
        "attention.key_length": shape.head_dim,
        "expert_count": shape.n_routed_experts,
        "expert_used_count": shape.num_experts_per_tok,
        "expert_feed_forward_length": shape.moe_intermediate_size,
        "expert_shared_count": shape.n_shared_experts,
        "leading_dense_block_count": shape.first_k_dense_replace,
    }
