"""Which files make up a miniature, by the format of its checkpoint.

The weights come last, so that a disk that fills up has cost little.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from engines.miniature import config, gguf, quantized, shards, tensors, tokenizer, weights
from engines.miniature.blocks import BLOCK_WEIGHTS, BLOCKS
from selector.errors import ConfigurationError
from selector.facts import CheckpointFacts, ModelFacts
from selector.values import Value

TEMPLATE_FILE = Path(__file__).with_name("files") / "chat_template.jinja"
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
    """One checkpoint of a generated model: its files, and the sum of everything that decides them.

    Without ``weights`` it is what an engine reads that makes up its own (``--load-format dummy``).
    """

    model: ModelFacts
    checkpoint: CheckpointFacts
    weights: bool = True

    def recipe(self) -> str:
        """The sum of the shapes, the checkpoint's format, the words, the chat template and the generator."""
        # The source of the shapes is no part of them.
        shapes = msgspec.json.encode(msgspec.structs.replace(self.model.architecture, source=""))
        checkpoint = self.checkpoint
        names = (self.model.id, self.model.title, checkpoint.format, checkpoint.quantization, checkpoint.file_prefix)
        told = (
            tensors.SEED.encode(),
            msgspec.json.encode((names, checkpoint.storage, self.weights)),
            shapes,
            tokenizer.WORDS_FILE.read_bytes(),
            TEMPLATE_FILE.read_bytes(),
        )
        return sha256(b"%d %s %s %s %s %s" % (GENERATION, *told)).hexdigest()

    def files(self) -> tuple[File, ...]:
        """
        Raises:
            ConfigurationError: there is no miniature of this format.
        """
        if self.weights and self.checkpoint.format == "gguf":
            return self._gguf()
        if not self.weights and self.checkpoint.format in ("gguf", "mlx"):
            raise ConfigurationError(
                f"{self.model.id} in the format {self.checkpoint.format} cannot be rehearsed with dummy weights",
                hint="only vLLM and SGLang make up weights, and they read no such files: --rehearse=miniature",
            )
        return self._safetensors()

    def _gguf(self) -> tuple[File, ...]:
        architecture, checkpoint = self.model.architecture, self.checkpoint
        kind = gguf.kind_of(checkpoint.quantization)
        whole = kind not in BLOCKS or not any(
            width % BLOCK_WEIGHTS
            for width in (architecture.hidden_size, architecture.intermediate_size, architecture.moe_intermediate_size)
        )
        if architecture.model_type != "glm4_moe" or kind is None or not whole:
            raise ConfigurationError(
                f"there is no miniature of {self.model.id} as GGUF in {checkpoint.quantization}",
                hint="GGUF miniatures are of text models, in F32, BF16 and Q2_K to Q6_K",
            )
        name = f"{checkpoint.file_prefix or self.model.id}.gguf"
        vocabulary = tokenizer.vocabulary(architecture.vocab_size)
        template = TEMPLATE_FILE.read_text(encoding="utf-8")
        return (gguf.gguf_file(name, self.model.title, architecture, vocabulary, template, kind),)

    def _safetensors(self) -> tuple[File, ...]:
        architecture, vision = self.model.architecture, self.model.architecture.vision
        vocabulary = tokenizer.vocabulary(architecture.vocab_size)
        # A configuration names no expert: one stands for all, of which the real models have thousands.
        named = architecture if self.weights else msgspec.structs.replace(architecture, n_routed_experts=1)
        plain = weights.tensors(named, weights.tongue(vocabulary))
        stored = quantized.stored(self.model, self.checkpoint, plain)
        found = shards.shards(stored.tensors, stored.made_for) if self.weights else ()
        processor = None if vision is None else config.PROCESSOR
        texts = {
            "config.json": config.config_json(architecture, vocabulary, stored.dtype, stored.quantization),
            "generation_config.json": config.generation_config_json(architecture, vocabulary),
            "tokenizer.json": tokenizer.tokenizer_json(vocabulary),
            "tokenizer_config.json": tokenizer.tokenizer_config_json(
                vocabulary, architecture.max_position_embeddings, processor
            ),
            "special_tokens_map.json": tokenizer.special_tokens_map_json(),
            "chat_template.jinja": TEMPLATE_FILE.read_text(encoding="utf-8"),
        }
        if found:
            texts["model.safetensors.index.json"] = shards.index_json(found)
        if vision is not None:
            texts["preprocessor_config.json"] = config.preprocessor_config_json(architecture, vision)
            texts["video_preprocessor_config.json"] = config.video_preprocessor_config_json(architecture, vision)
        return (*(Text(file_name=name, text=text) for name, text in texts.items()), *found)
