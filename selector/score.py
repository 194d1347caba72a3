"""Ranks candidates: five terms from 0 to 1 and their weights by objective.

``quality``   how near the weights stand to the original, ``1 - (1 - quality) x 8`` of the profile's figure.
``speed``     logarithmic against the fastest candidate of the list, a fifth for each halving: tokens a second
              of one request's answer (latency), of all (throughput), or the geometric mean of both (the others).
``context``   logarithmic between 4,096 tokens and what was asked for, or the model's own limit.
``headroom``  1 where the KV cache holds two full contexts. Requests that wait are counted by the speed.
``download``  1 where the weights are here already, else ``1 / (1 + hours to fetch them)``.

A logarithm keeps the order of any two candidates whatever else is in the list. Ties break by fewer devices,
then checkpoint, engine and layout by name and number, so that the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, log2
from typing import NamedTuple

import msgspec

from selector.asked import PlanRequest
from selector.contract import Candidate, Checkpoint, ScoreTerms
from selector.facts import checkpoint_id
from selector.memory import MINIMUM_CONTEXT_TOKENS
from selector.request import Objective


class Weights(NamedTuple):
    """What each term counts for one objective; they add up to 1. The fields are those of ``ScoreTerms``."""

    quality: float
    speed: float
    context: float
    headroom: float
    download: float


#: A choice of ours, not a measurement: whoever asks for throughput still wants answers, so no weight is 0; a download
#: happens once, so it decides between plans that are otherwise close.
WEIGHTS: dict[Objective, Weights] = {
    "balanced": Weights(quality=0.35, speed=0.40, context=0.14, headroom=0.09, download=0.02),
    "latency": Weights(quality=0.20, speed=0.64, context=0.09, headroom=0.05, download=0.02),
    "throughput": Weights(quality=0.20, speed=0.64, context=0.05, headroom=0.09, download=0.02),
    "context": Weights(quality=0.25, speed=0.15, context=0.49, headroom=0.09, download=0.02),
    "quality": Weights(quality=0.74, speed=0.15, context=0.05, headroom=0.04, download=0.02),
}
#: The line that weights come over: a gigabit (assumed; no machine tells).
DOWNLOAD_BYTES_PER_SECOND = 125_000_000

QUALITY_SLOPE = 8.0
SPEED_OCTAVES = 5.0
FULL_HEADROOM_CONTEXTS = 2
_HOUR = 3600
_DIGITS = 4


def answer_rate(candidate: Candidate, request: PlanRequest) -> float:
    """Tokens a second of the mean request's answer, from the question on; 0 where the speed is unknown.

    ``output / (time to first token + output / decode)``: a long prompt is part of the wait.
    """
    decode = candidate.speed.decode_tokens_per_second
    if not decode:
        return 0.0
    tokens = request.workload.output_tokens
    return tokens / ((candidate.speed.time_to_first_token_seconds or 0.0) + tokens / decode)


def speed_figure(candidate: Candidate, request: PlanRequest) -> float:
    """Tokens a second that the objective looks at; 0 where the speed is unknown."""
    one = answer_rate(candidate, request)
    throughput = candidate.speed.throughput_tokens_per_second or 0.0
    if request.objective == "latency":
        return one
    if request.objective == "throughput":
        return throughput
    return float((one * (throughput or one)) ** 0.5)


def download_seconds(checkpoint: Checkpoint) -> float:
    """How long the weights take to come; 0 where they are here or made on the spot."""
    return 0.0 if checkpoint.local else checkpoint.download_bytes / DOWNLOAD_BYTES_PER_SECOND


def full_headroom_tokens(request: PlanRequest, model_context_tokens: int) -> int:
    """KV cache, over all replicas, beyond which more of it counts for nothing."""
    wanted = request.context_tokens or model_context_tokens
    return FULL_HEADROOM_CONTEXTS * min(wanted, model_context_tokens)


def terms(
    candidate: Candidate, quality: float, fastest: float, request: PlanRequest, model_context_tokens: int
) -> ScoreTerms:
    """The terms of a candidate; ``fastest`` is the best :func:`speed_figure` of the list."""
    figure = speed_figure(candidate, request)
    speed = 0.0 if figure <= 0 or fastest <= 0 else speed_term(log2(figure / fastest))
    wanted = request.context_tokens or model_context_tokens
    if wanted <= MINIMUM_CONTEXT_TOKENS:
        context = 1.0
    else:
        reach = log2(max(1.0, candidate.limits.context_tokens / MINIMUM_CONTEXT_TOKENS))
        context = min(1.0, reach / log2(wanted / MINIMUM_CONTEXT_TOKENS))
    room = candidate.memory.kv_cache_tokens * candidate.parallel.data
    return ScoreTerms(
        quality=round(max(0.0, 1 - (1 - quality) * QUALITY_SLOPE), _DIGITS),
        speed=round(speed, _DIGITS),
        context=round(context, _DIGITS),
        headroom=round(min(1.0, room / full_headroom_tokens(request, model_context_tokens)), _DIGITS),
        download=round(1 / (1 + download_seconds(candidate.checkpoint) / _HOUR), _DIGITS),
    )


def speed_term(octaves: float) -> float:
    """1 at the fastest, a fifth less for each halving; from the fourth on ever less of it, and never nothing."""
    straight = 1 + octaves / SPEED_OCTAVES
    last = 1 / SPEED_OCTAVES
    return straight if straight >= last else last * exp(octaves + SPEED_OCTAVES - 1)


def total(score_terms: ScoreTerms, objective: Objective) -> float:
    """The weighted mean of the terms."""
    weights = WEIGHTS[objective]
    return round(
        weights.quality * score_terms.quality
        + weights.speed * score_terms.speed
        + weights.context * score_terms.context
        + weights.headroom * score_terms.headroom
        + weights.download * score_terms.download,
        _DIGITS,
    )


def rows(score_terms: ScoreTerms, weights: Weights) -> tuple[tuple[str, float, float, float], ...]:
    """Name, weight, value and contribution of every term; the contributions add up to the score."""
    values = (
        score_terms.quality,
        score_terms.speed,
        score_terms.context,
        score_terms.headroom,
        score_terms.download,
    )
    return tuple(
        (name, weight, value, weight * value)
        for name, weight, value in zip(Weights._fields, weights, values, strict=True)
    )


def ranked(
    feasible: Iterable[tuple[Candidate, float]], request: PlanRequest, model_context_tokens: int
) -> tuple[Candidate, ...]:
    """Candidates with their checkpoints' quality, scored and in order; ``rank`` counts from 1."""
    here = [(_placed(candidate, request.local), quality) for candidate, quality in feasible]
    scored = [
        msgspec.structs.replace(candidate, score=points, score_terms=found)
        for candidate, found, points in _scored(here, request, model_context_tokens)
    ]
    scored.sort(key=order)
    return tuple(
        msgspec.structs.replace(candidate, rank=position) for position, candidate in enumerate(scored, start=1)
    )


def best(
    feasible: Iterable[tuple[Candidate, float]], request: PlanRequest, model_context_tokens: int
) -> Candidate | None:
    """The first of :func:`ranked`, as it was given: for asking often what a change would do."""
    here = [(_placed(candidate, request.local), quality) for candidate, quality in feasible]
    scored = _scored(here, request, model_context_tokens)
    most = max((points for _, _, points in scored), default=0.0)
    return min((candidate for candidate, _, points in scored if points == most), key=_tie, default=None)


def leads(
    one: Candidate, feasible: Iterable[tuple[Candidate, float]], request: PlanRequest, model_context_tokens: int
) -> bool:
    """Whether ``one`` of the list, as it is in it, is the :func:`best`: none is looked at after the first above it."""
    here = [(candidate, _placed(candidate, request.local), quality) for candidate, quality in feasible]
    fastest = max((speed_figure(candidate, request) for _, candidate, _ in here), default=0.0)

    def points(candidate: Candidate, quality: float) -> float:
        return total(terms(candidate, quality, fastest, request, model_context_tokens), request.objective)

    own = next(points(candidate, quality) for given, candidate, quality in here if given is one)
    for given, candidate, quality in here:
        if given is not one:
            theirs = points(candidate, quality)
            if theirs > own or (theirs == own and _tie(candidate) < _tie(one)):
                return False
    return True


def _scored(
    feasible: list[tuple[Candidate, float]], request: PlanRequest, model_context_tokens: int
) -> list[tuple[Candidate, ScoreTerms, float]]:
    fastest = max((speed_figure(candidate, request) for candidate, _ in feasible), default=0.0)
    found = [
        (candidate, terms(candidate, quality, fastest, request, model_context_tokens))
        for candidate, quality in feasible
    ]
    return [(candidate, each, total(each, request.objective)) for candidate, each in found]


def _placed(candidate: Candidate, local: frozenset[str] | None) -> Candidate:
    """The candidate, telling whether its weights are here; unknown stays unknown (nobody looks for ModelScope's)."""
    checkpoint = candidate.checkpoint
    if local is None or checkpoint.hub != "huggingface":
        return candidate
    here = checkpoint_id(checkpoint.repo, checkpoint.file_prefix) in local
    return msgspec.structs.replace(candidate, checkpoint=msgspec.structs.replace(checkpoint, local=here))


def order(candidate: Candidate) -> tuple[float, tuple[int | str, ...]]:
    """The key that candidates are sorted by, best first."""
    return -candidate.score, _tie(candidate)


def _tie(candidate: Candidate) -> tuple[int | str, ...]:
    """What decides between equal scores."""
    parallel = candidate.parallel
    return (
        len(parallel.devices),
        candidate.checkpoint.repo,
        candidate.checkpoint.quantization,
        candidate.engine.name,
        parallel.pipeline,
        parallel.tensor,
        parallel.data,
        int(parallel.expert),
        candidate.limits.speculative,
        candidate.limits.cpu_expert_layers,
        -(candidate.limits.gpu_layers or 0),
    )
