"""The load of a benchmark: how long its requests are, how many, how many at once; and prompts of such a length."""

from __future__ import annotations

import json
import random
from pathlib import Path

from selector.errors import UsageError
from selector.values import Value

#: Of requests, where nothing else was said: alone one after the other, and rounds of all that run at once.
ALONE_REQUESTS, ROUNDS, LEAST_REQUESTS = 4, 4, 16
SECONDS = 120.0
#: The most that is written for guidellm to send.
_PROMPTS_BYTES = 256 << 20
#: Short, frequent words: every tokenizer has about a token for each.
_WORDS = (
    "time", "people", "water", "house", "world", "school", "state", "family", "student", "group",
    "country", "problem", "hand", "part", "place", "case", "week", "company", "system", "program",
    "question", "work", "government", "number", "night", "point", "home", "room", "mother", "area",
    "money", "story", "fact", "month", "book", "word", "business", "issue", "side", "kind",
    "head", "service", "friend", "power", "hour", "game", "line", "end", "member", "law",
    "car", "city", "name", "team", "minute", "idea", "body", "information", "back", "parent",
    "face", "others", "level", "office", "door", "health", "person", "art", "war", "history",
    "party", "result", "change", "morning", "reason", "research", "girl", "guy", "moment", "air",
    "teacher", "force", "education",
)  # fmt: skip


class Load(Value, frozen=True, kw_only=True):
    """``concurrency`` requests at once, of so many tokens; each of the two measurements ends after ``seconds``.

    ``requests`` is how many are sent together; ``alone_requests`` one after the other.
    """

    input_tokens: int
    output_tokens: int
    concurrency: int
    requests: int
    alone_requests: int = ALONE_REQUESTS
    seconds: float = SECONDS


def load_of(
    *,
    input_tokens: int,
    output_tokens: int,
    concurrency: int,
    requests: int | None = None,
    seconds: float | None = None,
) -> Load:
    """A load, with what was not asked for filled in.

    Raises:
        UsageError: one request alone would be too many of the tokens that are asked for.
    """
    if output_tokens < 2:
        raise UsageError("a speed needs answers of two tokens at least", hint="--output-tokens 64, for instance")
    if input_tokens < 1:
        raise UsageError("a prompt has one token at least", hint="--input-tokens 500, for instance")
    count = max(LEAST_REQUESTS, ROUNDS * concurrency) if requests is None else requests
    return Load(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        concurrency=concurrency,
        requests=count,
        alone_requests=min(ALONE_REQUESTS, count),
        seconds=SECONDS if seconds is None else seconds,
    )


def prompt(words: int, seed: int) -> str:
    """Words at random, another text for each seed: what an engine keeps of one prompt is of no use for the next."""
    chosen = random.Random(seed)  # noqa: S311 - prompts are no secrets
    return f"{seed} " + " ".join(chosen.choices(_WORDS, k=max(1, words)))


def write_prompts(path: Path, *, words: int, output_tokens: int, count: int, seed: int) -> None:
    """``count`` prompts for guidellm, a line of JSON each.

    Raises:
        UsageError: they would be more than a quarter of a gigabyte.
    """
    if words * 8 * count > _PROMPTS_BYTES:
        raise UsageError(
            f"{count:,} prompts of {words:,} words are too much to send", hint="--requests or --input-tokens lower it"
        )
    with path.open("x", encoding="utf-8") as file:
        for number in range(count):
            row = {"prompt": prompt(words, seed + number), "output_tokens_count": output_tokens}
            file.write(json.dumps(row) + "\n")
