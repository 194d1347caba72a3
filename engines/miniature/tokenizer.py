"""The miniatures' tokenizer: byte-level BPE as GLM-4 splits it, with English words for a vocabulary.

Any text round-trips: the 256 bytes come first. The last ids are GLM's own special tokens, in the
released order. Every id between is spelt in letters, so that random weights babble words.
"""

from __future__ import annotations

import json
from itertools import islice, product
from pathlib import Path

from engines.miniature.call import CALL_TOKENS
from selector.errors import ConfigurationError
from selector.values import Value

WORDS_FILE = Path(__file__).with_name("files") / "words.txt"

END_OF_TEXT = "<|endoftext|>"
#: In the order of the released GLM-4.5 and 4.6 vocabularies, where ``<|endoftext|>`` is 151329.
CONTROL_TOKENS = (
    END_OF_TEXT,
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|begin_of_audio|>",
    "<|end_of_audio|>",
    "<|begin_of_transcription|>",
    "<|end_of_transcription|>",
)
#: Also one token each, but text that an answer may hold: a parser has to see them.
MARKUP_TOKENS = (
    "<|code_prefix|>",
    "<|code_middle|>",
    "<|code_suffix|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "/nothink",
    "<|begin_of_box|>",
    "<|end_of_box|>",
)
MEDIA_TOKENS = ("<|image|>", "<|video|>")
SPECIAL_TOKENS = CONTROL_TOKENS + MARKUP_TOKENS + MEDIA_TOKENS
#: What ends an answer: the end, or the turn of somebody else.
STOP_TOKENS = (END_OF_TEXT, "<|user|>", "<|observation|>")

#: What GLM-4's pre-tokenizer keeps apart (llama.cpp calls it ``glm4``): contractions, letters with one
#: sign before them, up to three digits, other signs, line ends, blanks.
SPLIT_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


class Vocabulary(Value, frozen=True, kw_only=True):
    """Every id has a token. ``words`` are the ids (first, end) that are spelt as whole words.

    ``tokens`` are in byte-level spelling (a blank is ``Ġ``), those of a tool call after the words, the special
    tokens last.
    """

    tokens: tuple[str, ...]
    merges: tuple[str, ...]
    words: tuple[int, int]

    def token_id(self, text: str) -> int:
        """The id of a token that is ``text``: a special one, or a plain one."""
        if text in SPECIAL_TOKENS:
            return len(self.tokens) - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index(text)
        return self.tokens.index(_spelt(text))


def byte_alphabet() -> tuple[str, ...]:
    """The printable stand-in of each byte, as every byte-level BPE since GPT-2 has it.

    Bytes that Latin-1 prints stand for themselves; the others, in order, take the letters from U+0100.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return tuple(chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256))


def _spelt(text: str) -> str:
    alphabet = byte_alphabet()
    return "".join(alphabet[byte] for byte in text.encode())


def vocabulary(size: int) -> Vocabulary:
    """A vocabulary of exactly ``size`` ids.

    Each word is reached letter by letter (``Ġ``+``s``, ``Ġs``+``e``, ``Ġse``+``a``), so a word costs as many
    ids as it has beginnings that are not there yet. Words are taken in the file's order while they fit;
    what is left over, and the long tail of a full-sized vocabulary, are pairs of words. (The file holds a
    word of one letter, so that there is one however small the room.)

    Raises:
        ConfigurationError: ``size`` has no room for the bytes and the special tokens.
    """
    alphabet = byte_alphabet()
    fixed = len(alphabet) + len(CALL_TOKENS) + len(SPECIAL_TOKENS)
    room = size - fixed
    if room < 1:  # converters of other engines ask for at least one merge
        least = fixed + 1
        raise ConfigurationError(
            f"vocab_size = {size} is too small for a miniature", hint=f"it takes {least} at the least"
        )
    blank = alphabet[ord(" ")]
    words: dict[str, None] = {}
    merges: dict[str, str] = {}  # token -> merge, in order
    for word in WORDS_FILE.read_text(encoding="ascii").split():
        spelt = blank + word
        beginnings = [spelt[:length] for length in range(2, len(spelt) + 1)]
        missing = [token for token in beginnings if token not in merges]
        if len(merges) + len(missing) <= room:
            merges.update((token, f"{token[:-1]} {token[-1]}") for token in missing)
            words[spelt] = None
    left = room - len(merges)
    for first, second in islice(product(tuple(words), repeat=2), left):
        merges[first + second] = f"{first} {second}"
        words[first + second] = None
    fragments = [token for token in merges if token not in words]
    calls = map(_spelt, CALL_TOKENS)
    first_word = len(alphabet) + len(fragments)
    return Vocabulary(
        tokens=(*alphabet, *fragments, *words, *calls, *SPECIAL_TOKENS),
        merges=tuple(merges.values()),
        words=(first_word, first_word + len(words)),
    )


def _added_tokens(vocabulary: Vocabulary) -> dict[int, dict[str, object]]:
    # ``special`` tokens are left out of decoded text; markup is not, or nobody could parse it.
    return {
        vocabulary.token_id(token): {
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token not in MARKUP_TOKENS,
        }
        for token in SPECIAL_TOKENS
    }


def tokenizer_json(vocabulary: Vocabulary) -> str:
    """``tokenizer.json``, as the tokenizers library reads it."""
    plain = vocabulary.tokens[: -len(SPECIAL_TOKENS)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
    return _json(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": number, **token} for number, token in _added_tokens(vocabulary).items()],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                # The tokens of a call have no merges, and llama.cpp takes a whole word for its token anyway.
                "ignore_merges": True,
                "vocab": {token: number for number, token in enumerate(plain)},
                # "a b" rather than ["a", "b"]: readers of every age take it.
                "merges": vocabulary.merges,
            },
        }
    )


def tokenizer_config_json(vocabulary: Vocabulary, context_tokens: int, processor: str | None) -> str:
    """``tokenizer_config.json``; ``processor`` is the class that puts images and text together."""
    return _json(
        {
            "added_tokens_decoder": {str(number): token for number, token in _added_tokens(vocabulary).items()},
            "additional_special_tokens": CONTROL_TOKENS,
            "clean_up_tokenization_spaces": False,
            "do_lower_case": False,
            "eos_token": END_OF_TEXT,
            "extra_special_tokens": {},
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": context_tokens,
            "pad_token": END_OF_TEXT,
            "padding_side": "left",
            **({} if processor is None else {"processor_class": processor}),
            "remove_space": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
    )


def special_tokens_map_json() -> str:
    """``special_tokens_map.json``."""
    return _json({"additional_special_tokens": CONTROL_TOKENS, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT})


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
