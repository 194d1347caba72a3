"""What would have to change for the second plan to come first: the smallest single changes, computed.

Each is solved for on the score's own terms (:mod:`selector.score`) and then tried: a change is only told when the
whole list, scored again with it, has the second in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal, NamedTuple

import msgspec

from selector import score
from selector.asked import PlanRequest
from selector.contract import Candidate, Note, Speed
from selector.request import OBJECTIVES, Objective

#: Nobody makes an engine faster than this by turning a screw: beyond it speed is not what is missing.
MOST_TIMES_AS_FAST = 4.0
#: Factors are told, and tried, in hundredths.
_HUNDREDTH = 0.01
#: Changes that are told in one sentence.
_TOLD = 2

Scored = tuple[tuple[Candidate, float], ...]


#: What rounding the terms and the score to four digits may hide.
_ROUNDING = 0.001


class Change(NamedTuple):
    """``value`` is an objective's name, tokens of context, a factor of speed, or a quality from 0 to 1."""

    kind: Literal["objective", "download", "context", "speed", "quality"]
    value: str | int | float
    message: str


def changes(ranked: Scored, second: Candidate, request: PlanRequest, model_context_tokens: int) -> Iterator[Change]:
    """What would put ``second`` in front of all others, a change of one thing each; what a person can do comes first.

    Args:
        ranked: every candidate with its checkpoint's quality, the best first.
        second: one of them, not the first.
    """
    question = Question(ranked, second, request, model_context_tokens)
    for find in _FINDERS:
        yield from find(question)


def note(found: Iterator[Change]) -> Note | None:
    """The first changes as one note on the second candidate."""
    told = " or ".join(change.message for change in islice(found, _TOLD))
    return Note(severity="info", code="second", message=f"would come first {told}") if told else None


class Question(NamedTuple):
    """Everything that is scored again."""

    ranked: Scored
    second: Candidate
    request: PlanRequest
    model_context_tokens: int

    @property
    def gap(self) -> float:
        return self.ranked[0][0].score - self.second.score

    @property
    def weights(self) -> score.Weights:
        return score.WEIGHTS[self.request.objective]

    def answered_by(self, change: Change) -> bool:
        """Whether the list, scored with the change, has the second in front."""
        request, scored = _with(self, change)
        second = next((candidate for candidate, _ in scored if _same(candidate, self.second)), None)
        return second is not None and score.leads(second, scored, request, self.model_context_tokens)

    def quality(self) -> float:
        return next(quality for candidate, quality in self.ranked if _same(candidate, self.second))


def applied(question: Question, change: Change) -> Candidate | None:
    """What comes first when the whole list is scored again with one thing changed."""
    request, scored = _with(question, change)
    return score.best(scored, request, question.model_context_tokens)


def _with(question: Question, change: Change) -> tuple[PlanRequest, Scored]:
    """The request and the list with one thing changed."""
    request, scored = question.request, question.ranked
    if change.kind == "objective":
        objective = next(each for each in OBJECTIVES if each == change.value)
        request = msgspec.structs.replace(request, objective=objective)
    elif change.kind == "context":
        tokens = int(change.value)
        request = msgspec.structs.replace(request, context_tokens=tokens)
        scored = tuple(
            (_with_context(candidate, tokens), quality)
            for candidate, quality in scored
            if candidate.limits.context_tokens >= tokens
        )
    else:
        # What is here is told a candidate by now, and not looked up again.
        request = msgspec.structs.replace(request, local=None)
        # Weights belong to every plan that loads them, a speed to this one alone.
        alike = _same if change.kind == "speed" else _same_weights
        scored = tuple(
            _changed(candidate, quality, change) if alike(candidate, question.second) else (candidate, quality)
            for candidate, quality in scored
        )
    return request, scored


def _with_context(candidate: Candidate, tokens: int) -> Candidate:
    limits = msgspec.structs.replace(candidate.limits, context_tokens=min(tokens, candidate.limits.context_tokens))
    return msgspec.structs.replace(candidate, limits=limits)


def _changed(candidate: Candidate, quality: float, change: Change) -> tuple[Candidate, float]:
    if change.kind == "quality":
        return candidate, float(change.value)
    if change.kind == "download":
        checkpoint = msgspec.structs.replace(candidate.checkpoint, local=True)
        return msgspec.structs.replace(candidate, checkpoint=checkpoint), quality
    return msgspec.structs.replace(candidate, speed=_faster(candidate, float(change.value))), quality


def _faster(candidate: Candidate, factor: float) -> Speed:
    """Every rate times ``factor``, the first token sooner by as much."""
    speed = candidate.speed

    def times(value: float | None, by: float) -> float | None:
        return None if value is None else value * by

    return msgspec.structs.replace(
        speed,
        decode_tokens_per_second=times(speed.decode_tokens_per_second, factor),
        throughput_tokens_per_second=times(speed.throughput_tokens_per_second, factor),
        prefill_tokens_per_second=times(speed.prefill_tokens_per_second, factor),
        time_to_first_token_seconds=times(speed.time_to_first_token_seconds, 1 / factor),
    )


def _same(one: Candidate, other: Candidate) -> bool:
    return _key(one) == _key(other)


def _same_weights(one: Candidate, other: Candidate) -> bool:
    return (one.checkpoint.repo, one.checkpoint.quantization) == (other.checkpoint.repo, other.checkpoint.quantization)


def _key(candidate: Candidate) -> tuple[object, ...]:
    checkpoint, limits = candidate.checkpoint, candidate.limits
    return (
        checkpoint.repo,
        checkpoint.quantization,
        candidate.engine.name,
        candidate.parallel,
        limits.kv_cache_dtype,
        limits.speculative,
        limits.eager,
        limits.cpu_expert_layers,
        limits.gpu_layers,
    )


# --- one thing each, solved -------------------------------------------------------------------------


def _objectives(question: Question) -> Iterator[Change]:
    """The first objective under which it wins: there is no smaller and no larger one."""
    for objective in OBJECTIVES:
        if objective != question.request.objective and _passes_the_first(question, objective):
            change = Change("objective", objective, f"with --objective {objective}")
            if question.answered_by(change):
                yield change
                return


def _passes_the_first(question: Question, objective: Objective) -> bool:
    """Whether it may be better than the first under an objective: only their speeds have to be looked at again."""
    first, second = question.ranked[0][0], question.second
    request = msgspec.structs.replace(question.request, objective=objective)
    speeds = [score.speed_figure(each, request) for each in (first, second)]
    if min(speeds) <= 0:
        return True
    weights, ours, theirs = score.WEIGHTS[objective], second.score_terms, first.score_terms
    gained = (
        weights.quality * (ours.quality - theirs.quality)
        + weights.speed * math.log2(speeds[1] / speeds[0]) / score.SPEED_OCTAVES
        + weights.context * (ours.context - theirs.context)
        + weights.headroom * (ours.headroom - theirs.headroom)
        + weights.download * (ours.download - theirs.download)
    )
    return gained > -_ROUNDING


def _download(question: Question) -> Iterator[Change]:
    change = Change("download", 0, "if its weights were here")
    if not question.second.checkpoint.local and question.answered_by(change):
        yield change


def _context(question: Question) -> Iterator[Change]:
    """It holds less than the first: asked for no more than that, both hold all that was asked for."""
    tokens = question.second.limits.context_tokens
    workload = question.request.workload
    first = question.ranked[0][0].limits.context_tokens
    change = Change("context", tokens, f"if no more than {tokens:,} tokens of context were asked for")
    if workload.input_tokens + workload.output_tokens <= tokens < first and question.answered_by(change):
        yield change


def _speed(question: Question) -> Iterator[Change]:
    """``gap = weight x log2(factor) / octaves``, in the next hundredth, and one more where rounding asks for it."""
    if not score.speed_figure(question.second, question.request):
        return
    exact = 2 ** (question.gap * score.SPEED_OCTAVES / question.weights.speed)
    for more in (0, 1):
        factor = round(math.ceil(exact / _HUNDREDTH - 1e-9) * _HUNDREDTH + more * _HUNDREDTH, 2)
        change = Change("speed", factor, f"if it were {factor:.2f} times as fast")
        if factor > 1 and factor <= MOST_TIMES_AS_FAST and question.answered_by(change):
            yield change
            return


def _quality(question: Question) -> Iterator[Change]:
    """``gap = weight x slope x difference``, in thousandths of the original's quality."""
    quality = question.quality()
    needed = quality + question.gap / (question.weights.quality * score.QUALITY_SLOPE)
    for more in (0, 1):
        wanted = (math.ceil(needed * 1000 - 1e-6) + more) / 1000
        change = Change("quality", wanted, f"if it kept {wanted:.1%} of the original's quality")
        if quality < wanted <= 1 and question.answered_by(change):
            yield change
            return


_FINDERS: tuple[Callable[[Question], Iterator[Change]], ...] = (_objectives, _download, _context, _speed, _quality)
