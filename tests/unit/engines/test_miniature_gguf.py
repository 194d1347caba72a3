"""The GGUF miniature: what llama.cpp reads out of its header, and that the bytes behind it are the checkpoint's."""

from __future__ import annotations

from io import BytesIO
from math import prod
from struct import calcsize, unpack_from

import msgspec
import pytest

from engines.miniature import gguf as miniature_gguf
from engines.miniature import weights as miniature_weights
from engines.miniature.gguf import ALIGNMENT, GgufFile
from engines.miniature.tokenizer import STOP_TOKENS, vocabulary
from selector.catalog import Catalog

TINY = Catalog().model("glm-tiny").architecture
WORDS = vocabulary(TINY.vocab_size)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Reader:
    """A reader of the format as its specification has it, written apart from the writer."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.place = raw, 0
        assert raw[:4] == b"GGUF"
        self.place = 4
        version, tensors, keys = self.number("I"), self.number("Q"), self.number("Q")
        assert version == 3
        self.keys: dict[str, object] = {}
        for _ in range(int(keys)):
            name = self.text()
            self.keys[name] = self.value(int(self.number("I")))
        self.tensors: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(int(tensors)):
            name = self.text()
            sizes = tuple(int(self.number("Q")) for _ in range(int(self.number("I"))))
            self.tensors[name] = (sizes, int(self.number("I")), int(self.number("Q")))
        self.data = self.place + -self.place % ALIGNMENT

    def number(self, kind: str) -> float:
        found: float = unpack_from(f"<{kind}", self.raw, self.place)[0]
        self.place += calcsize(f"<{kind}")
        return found

    def text(self) -> str:
        length = int(self.number("Q"))
        self.place += length
        return self.raw[self.place - length : self.place].decode()

    def value(self, kind: int) -> object:
        if kind == 8:
            return self.text()
        if kind == 9:
            inner, count = int(self.number("I")), int(self.number("Q"))
            return [self.value(inner) for _ in range(count)]
        return self.number(_NUMBERS[kind])


def made() -> GgufFile:
    return miniature_gguf.gguf_file("tiny.gguf", "Tiny", TINY, WORDS, "{{ a template }}")


@pytest.fixture(scope="module")
def read() -> Reader:
    file = BytesIO()
    made().write(file)
    return Reader(file.getvalue())


def test_the_file_is_as_long_as_it_says(read: Reader) -> None:
    assert len(read.raw) == made().size_bytes()


def test_the_shapes_are_told_under_llama_cpps_keys(read: Reader) -> None:
    keys = read.keys
    assert (keys["general.architecture"], keys["general.name"], keys["general.file_type"]) == ("glm4moe", "Tiny", 0)
    assert {key: keys[f"glm4moe.{key}"] for key in ("expert_count", "expert_used_count", "expert_shared_count")} == {
        "expert_count": 8,
        "expert_used_count": 2,
        "expert_shared_count": 1,
    }
    assert (keys["glm4moe.attention.key_length"], keys["glm4moe.rope.dimension_count"]) == (32, 16)
    assert (keys["glm4moe.expert_gating_func"], keys["glm4moe.expert_weights_norm"]) == (2, True)
    assert (keys["glm4moe.rope.freq_base"], keys["glm4moe.expert_weights_scale"]) == (1e6, 2.5)


def test_the_prediction_layer_counts_as_a_layer_as_in_the_released_files(read: Reader) -> None:
    assert (read.keys["glm4moe.block_count"], read.keys["glm4moe.nextn_predict_layers"]) == (5, 1)
    assert {name for name in read.tensors if ".nextn." in name} == {
        f"blk.4.nextn.{part}.weight" for part in ("eh_proj", "enorm", "hnorm", "shared_head_norm")
    }


def test_a_layer_of_experts_holds_what_llama_cpp_asks_for(read: Reader) -> None:
    assert {name.removeprefix("blk.1.") for name in read.tensors if name.startswith("blk.1.")} == {
        *("attn_norm.weight", "post_attention_norm.weight", "attn_q_norm.weight", "attn_k_norm.weight"),
        *(f"attn_{part}.{kind}" for part in "qkv" for kind in ("weight", "bias")),
        *("attn_output.weight", "ffn_gate_inp.weight", "exp_probs_b.bias"),
        *(f"ffn_{part}_{kind}.weight" for part in ("gate", "up", "down") for kind in ("exps", "shexp")),
    }
    assert {"blk.0.ffn_gate.weight", "token_embd.weight", "output_norm.weight", "output.weight"} <= set(read.tensors)


def test_an_own_embedding_and_head_of_the_prediction_layer_have_names_too() -> None:
    lent = msgspec.structs.replace(TINY, mtp_has_own_embedding_and_head=True)
    names = {
        each.name for each in miniature_gguf.joined(miniature_weights.tensors(lent, miniature_weights.tongue(WORDS)))
    }
    assert {"blk.4.nextn.embed_tokens.weight", "blk.4.nextn.shared_head_head.weight"} <= names


def test_experts_lie_one_after_the_other_with_the_innermost_dimension_first(read: Reader) -> None:
    sizes, kind, offset = read.tensors["blk.2.ffn_down_exps.weight"]
    assert (sizes, kind) == ((64, 128, 8), 0)
    by_name = {tensor.name: tensor for tensor in miniature_weights.tensors(TINY, miniature_weights.tongue(WORDS))}
    for expert in range(8):
        expected = b"".join(by_name[f"model.layers.2.mlp.experts.{expert}.down_proj.weight"].data())
        begins = read.data + offset + expert * len(expected)
        assert read.raw[begins : begins + len(expected)] == expected


def test_tensors_are_aligned_and_follow_each_other_to_the_end(read: Reader) -> None:
    end = 0
    for sizes, _, offset in read.tensors.values():
        assert offset == end
        assert offset % ALIGNMENT == 0
        end += prod(sizes) * 4 + -prod(sizes) * 4 % ALIGNMENT
    assert read.data + end == len(read.raw)


def test_the_tokenizer_is_glm4s_with_its_ends_of_a_turn(read: Reader) -> None:
    keys = read.keys
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "glm4")
    assert keys["tokenizer.ggml.tokens"] == list(WORDS.tokens)
    assert keys["tokenizer.ggml.merges"] == list(WORDS.merges)
    ends = [keys[f"tokenizer.ggml.{end}_token_id"] for end in ("eos", "eot", "eom")]
    assert ends == [WORDS.token_id(token) for token in STOP_TOKENS]
    kinds = keys["tokenizer.ggml.token_type"]
    assert isinstance(kinds, list)
    assert kinds[WORDS.token_id("<|user|>")] == 3  # control: never shown
    assert kinds[WORDS.token_id("<tool_call>")] == 4  # text that a parser has to see
    assert kinds[0] == 1
    assert keys["tokenizer.chat_template"] == "{{ a template }}"
