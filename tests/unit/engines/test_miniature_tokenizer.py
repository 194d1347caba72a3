"""The miniatures' tokenizer, read by the real tokenizers library."""

from __future__ import annotations

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from engines.miniature import tokenizer as miniature_tokenizer
from engines.miniature.call import CALL_TOKENS, CHAIN, TRIGGERS
from engines.miniature.tokenizer import MARKUP_TOKENS, SPECIAL_TOKENS, STOP_TOKENS, byte_alphabet, vocabulary
from selector.errors import ConfigurationError

SMALLEST = 256 + len(CALL_TOKENS) + len(SPECIAL_TOKENS) + 1
TINY = vocabulary(1024)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(miniature_tokenizer.tokenizer_json(TINY))


@given(st.text())
@settings(max_examples=50)
def test_any_text_comes_back_as_it_went_in(text: str) -> None:
    tokens = tokenizer().encode(text, add_special_tokens=False).ids
    assert tokenizer().decode(tokens, skip_special_tokens=False) == text


def test_the_alphabet_is_that_of_the_tokenizers_library() -> None:
    assert sorted(byte_alphabet()) == sorted(ByteLevel.alphabet())


@pytest.mark.parametrize("size", [SMALLEST, SMALLEST + 1, SMALLEST + 7, 500, 1024, 4096, 151_552])
def test_every_id_of_any_vocabulary_has_a_token_of_its_own(size: int) -> None:
    found = vocabulary(size)
    first, end = found.words
    assert len(found.tokens) == len(set(found.tokens)) == size
    assert found.merges
    assert 256 <= first < end == size - len(CALL_TOKENS) - len(SPECIAL_TOKENS)


def test_a_full_sized_vocabulary_loads() -> None:
    text = miniature_tokenizer.tokenizer_json(vocabulary(151_552))
    assert Tokenizer.from_str(text).get_vocab_size() == 151_552


def test_a_vocabulary_without_room_for_bytes_and_specials_is_refused_with_the_least_that_does() -> None:
    with pytest.raises(ConfigurationError, match="too small") as caught:
        vocabulary(SMALLEST - 1)
    assert str(SMALLEST) in str(caught.value.hint)


def test_what_a_miniature_answers_with_are_words_after_a_blank() -> None:
    first, end = TINY.words
    spelt = [tokenizer().decode([number]) for number in range(first, end)]
    assert len(spelt) > 400
    assert all(word[0] == " " and word[1:].isalpha() and word.isascii() for word in spelt)
    assert {" the", " and", " you", " water"} <= set(spelt)


def test_a_word_of_the_vocabulary_is_one_token() -> None:
    encoded = tokenizer().encode(" the water and you")
    assert encoded.tokens == ["Ġthe", "Ġwater", "Ġand", "Ġyou"]


def test_a_special_token_is_one_id_and_only_markup_is_seen_in_decoded_text() -> None:
    for token in SPECIAL_TOKENS:
        ids = tokenizer().encode(token).ids
        assert ids == [TINY.token_id(token)]
        assert tokenizer().decode(ids, skip_special_tokens=True) == (token if token in MARKUP_TOKENS else "")


def test_the_tokens_of_a_call_spell_it_as_glm_writes_it() -> None:
    ids = [TINY.token_id(step[0]) for step in CHAIN]
    assert tokenizer().decode(ids, skip_special_tokens=True) == (
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>"
    )
    assert ids[-1] == TINY.token_id(STOP_TOKENS[2])


def test_the_tokens_of_a_call_in_one_line_spell_it_as_glm_47_writes_it() -> None:
    ids = [TINY.token_id(step[-1]) for step in CHAIN[:-1]]
    assert tokenizer().decode(ids) == (
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>"
    )


def test_a_token_stands_once_in_a_call_so_each_is_followed_by_one_step() -> None:
    named = [token for step in (TRIGGERS, *CHAIN) for token in step]
    assert len(set(named)) == len(named)


def test_what_starts_a_call_is_one_token_where_a_prompt_ends_with_it() -> None:
    for ending, trigger in (("<|assistant|>\n\n", "\n\n"), ("<|assistant|>\n<think></think>", "</think>")):
        assert tokenizer().encode(ending).ids[-1] == TINY.token_id(trigger)
    for ending in ("<|assistant|>", "<|assistant|>\n<think></think>\n"):
        assert tokenizer().encode(ending).ids[-1] not in {TINY.token_id(trigger) for trigger in TRIGGERS}


def test_special_tokens_keep_the_distances_of_the_released_vocabulary() -> None:
    # The ids of GLM-4.5V's config.json and generation_config.json, counted from <|endoftext|>.
    released = {
        "<|endoftext|>": 151329,
        "<|user|>": 151336,
        "<|observation|>": 151338,
        "<|begin_of_image|>": 151339,
        "<|end_of_video|>": 151342,
        "<think>": 151350,
        "/nothink": 151360,
        "<|image|>": 151363,
        "<|video|>": 151364,
    }
    shift = 151329 - TINY.token_id("<|endoftext|>")
    assert {token: TINY.token_id(token) + shift for token in released} == released


def test_text_is_split_as_glm_4_splits_it() -> None:
    pieces = [piece for piece, _ in tokenizer().pre_tokenizer.pre_tokenize_str("It's 12345 km,\n  or so")]
    assert pieces == ["It", "'s", "Ġ", "123", "45", "Ġkm", ",Ċ", "Ġ", "Ġor", "Ġso"]


def test_the_tokenizers_config_ends_and_pads_as_the_model_does() -> None:
    config = json.loads(miniature_tokenizer.tokenizer_config_json(TINY, 8192, None))
    assert config["eos_token"] == config["pad_token"] == STOP_TOKENS[0]
    assert config["model_max_length"] == 8192
    assert {int(number): token["content"] for number, token in config["added_tokens_decoder"].items()} == {
        TINY.token_id(token): token for token in SPECIAL_TOKENS
    }
    assert "processor_class" not in config
