"""Which files make up a miniature, by the format of its checkpoint.

The weights come last, so that a disk that fills up has cost little.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from engines import (
    miniature_config,
    miniature_gguf,
    miniature_quantized,
    miniature_shards,
    miniature_tensors,
    miniature_tokenizer,
    miniature_weights,
)
from selector.errors import ConfigurationError
from selector.facts import CheckpointFacts, ModelFacts
from selector.values import Value

TEMPLATE_FILE = Path(__file__).with_name("miniature_files") / "chat_template.jinja"
#: Tells versions of the generator apart, should the same shapes, words and template ever give other files.
GENERATION = 3


class File(Protocol):
    """A file to be: its name, its size before it is written, and its bytes."""

    @property
    def file_name(self) -> str: ...

    def size_bytes(self) -> int: ...

    def write(self, file: BinaryIO, /) -> None: ...


class Text(Value, frozen=True, kw_only=True):
    file_name: str
    text: str

    def size_bytes(self) -> int:
        return len(self.text.encode())

    def write(self, file: BinaryIO, /) -> None:
        file.write(self.text.encode())


class Layout(Value, frozen=True, kw_only=True):
    """One checkpoint of a generated model: its files, and the sum of everything that decides them."""

    model: ModelFacts
    checkpoint: CheckpointFacts

    def recipe(self) -> str:
        """The sum of the shapes, the checkpoint's format, the words, the chat template and the generator."""
        # The source of the shapes is no part of them.
        shapes = msgspec.json.encode(msgspec.structs.replace(self.model.architecture, source=""))
        checkpoint = self.checkpoint
        told = (
            miniature_tensors.SEED.encode(),
            f"{self.model.id}/{checkpoint.format}/{checkpoint.quantization}/{checkpoint.file_prefix}".encode(),
            shapes,
            miniature_tokenizer.WORDS_FILE.read_bytes(),
            TEMPLATE_FILE.read_bytes(),
        )
        return sha256(b"%d %s %s %s %s %s" % (GENERATION, *told)).hexdigest()

    def files(self) -> tuple[File, ...]:
        """
        Raises:
            ConfigurationError: there is no miniature of this format.
        """
        if self.checkpoint.format == "gguf":
            return self._gguf()
        return self._safetensors()

    def _gguf(self) -> tuple[File, ...]:
        architecture, checkpoint = self.model.architecture, self.checkpoint
        if architecture.model_type != "glm4_moe" or checkpoint.quantization != "F32":
            raise ConfigurationError(
                f"there is no miniature of {self.model.id} as GGUF in {checkpoint.quantization}",
                hint="GGUF miniatures are of text models, in F32",
            )
        name = f"{checkpoint.file_prefix or self.model.id}.gguf"
        vocabulary = miniature_tokenizer.vocabulary(architecture.vocab_size)
        template = TEMPLATE_FILE.read_text(encoding="utf-8")
        return (miniature_gguf.gguf_file(name, self.model.title, architecture, vocabulary, template),)

    def _safetensors(self) -> tuple[File, ...]:
        architecture, vision = self.model.architecture, self.model.architecture.vision
        vocabulary = miniature_tokenizer.vocabulary(architecture.vocab_size)
        plain = miniature_weights.tensors(architecture, miniature_weights.tongue(vocabulary))
        stored = miniature_quantized.stored(self.model, self.checkpoint, plain)
        shards = miniature_shards.shards(stored.tensors, stored.made_for)
        processor = None if vision is None else miniature_config.PROCESSOR
        texts = {
            "config.json": miniature_config.config_json(architecture, vocabulary, stored.dtype, stored.quantization),
            "generation_config.json": miniature_config.generation_config_json(architecture, vocabulary),
            "tokenizer.json": miniature_tokenizer.tokenizer_json(vocabulary),
            "tokenizer_config.json": miniature_tokenizer.tokenizer_config_json(
                vocabulary, architecture.max_position_embeddings, processor
            ),
            "special_tokens_map.json": miniature_tokenizer.special_tokens_map_json(),
            "chat_template.jinja": TEMPLATE_FILE.read_text(encoding="utf-8"),
            "model.safetensors.index.json": miniature_shards.index_json(shards),
        }
        if vision is not None:
            config = miniature_config
            texts["preprocessor_config.json"] = config.preprocessor_config_json(architecture, vision)
            texts["video_preprocessor_config.json"] = config.video_preprocessor_config_json(architecture, vision)
        return (*(Text(file_name=name, text=text) for name, text in texts.items()), *shards)
