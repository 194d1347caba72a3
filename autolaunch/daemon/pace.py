"""How fast an engine was for requests that it had to itself: a bounded number of them, and their median.

A request counts when no other was with the engine from its first token on, it was streamed, and long enough to tell.
What one of them took depends on its client and on whatever else ran; the middle of several does not.
"""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from selector.calibration import LEAST_SAMPLES
from selector.measured import Measured

#: The last so many requests; the first tokens of an answer tell nothing of its rate.
SAMPLES = 64
LEAST_TOKENS = 16


class Alone(NamedTuple):
    """One request: seconds until the first token, tokens of the prompt where the engine told them, the answer's."""

    first_token_seconds: float
    rest_seconds: float
    prompt_tokens: int
    answer_tokens: int


class Pace:
    """What requests alone showed. One thread adds; ``measured`` may be asked from any."""

    __slots__ = ("_samples", "added")

    def __init__(self) -> None:
        self._samples: deque[Alone] = deque(maxlen=SAMPLES)
        self.added = 0

    def add(self, one: Alone) -> None:
        """Counts a request, if it tells anything."""
        if one.answer_tokens >= LEAST_TOKENS and one.rest_seconds > 0 and one.first_token_seconds > 0:
            self._samples.append(one)
            self.added += 1

    def clear(self) -> None:
        """Another engine from now on."""
        self._samples.clear()
        self.added = 0

    def measured(self) -> Measured | None:
        """The middle of them; ``None`` where they are too few."""
        found = tuple(self._samples.copy())
        if len(found) < LEAST_SAMPLES:
            return None
        from statistics import fmean, median  # a tenth of what a gateway needs to be read in

        prompts = [each.prompt_tokens for each in found if each.prompt_tokens]
        return Measured(
            source="served",
            at=time.time(),
            samples=len(found),
            decode_tokens_per_second=median((each.answer_tokens - 1) / each.rest_seconds for each in found),
            time_to_first_token_seconds=median(each.first_token_seconds for each in found),
            input_tokens=round(fmean(prompts)) if prompts else None,
            output_tokens=round(fmean(each.answer_tokens for each in found)),
        )
