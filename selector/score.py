"""Ranks candidates: four terms from 0 to 1 and their weights by objective.

``quality``   how near the weights stand to the original, ``1 - (1 - quality) x 8`` of the profile's figure.
``speed``     logarithmic against the fastest candidate of the list, 0 at a thirty-second of it: tokens a second
              of one sequence (latency), of all (throughput), or the geometric mean of both (the others).
``context``   logarithmic between 4,096 tokens and what was asked for, or the model's own limit.
``headroom``  KV cache for four full contexts is 1.

A logarithm keeps the order of any two candidates whatever else is in the list. Ties break by fewer devices,
then checkpoint, engine and layout by name and number, so that the same input gives the same bytes.
"""

from __future__ import annotations

from math import log2

from selector.contract import Candidate, ScoreTerms
from selector.memory import MINIMUM_CONTEXT_TOKENS
from selector.request import Objective, PlanRequest

#: Weights by objective: quality, speed, context, headroom. A choice of ours, not a measurement: whoever asks
#: for throughput still wants answers, so no weight is 0.
WEIGHTS: dict[Objective, tuple[float, float, float, float]] = {
    "balanced": (0.35, 0.40, 0.15, 0.10),
    "latency": (0.20, 0.65, 0.10, 0.05),
    "throughput": (0.20, 0.65, 0.05, 0.10),
    "context": (0.25, 0.15, 0.50, 0.10),
    "quality": (0.75, 0.15, 0.05, 0.05),
}

_QUALITY_SLOPE = 8.0
_SPEED_OCTAVES = 5.0
_FULL_HEADROOM_CONTEXTS = 4


def speed_figure(candidate: Candidate, objective: Objective) -> float:
    """Tokens a second that this objective looks at; 0 where the speed is unknown."""
    decode = candidate.speed.decode_tokens_per_second or 0.0
    throughput = candidate.speed.throughput_tokens_per_second or 0.0
    if objective == "latency":
        return decode
    if objective == "throughput":
        return throughput
    return float((decode * (throughput or decode)) ** 0.5)


def terms(
    candidate: Candidate, quality: float, fastest: float, request: PlanRequest, model_context_tokens: int
) -> ScoreTerms:
    """The four terms of a candidate; ``fastest`` is the best :func:`speed_figure` of the list."""
    figure = speed_figure(candidate, request.objective)
    speed = 0.0 if figure <= 0 or fastest <= 0 else max(0.0, 1 + log2(figure / fastest) / _SPEED_OCTAVES)
    wanted = request.context_tokens or model_context_tokens
    if wanted <= MINIMUM_CONTEXT_TOKENS:
        context = 1.0
    else:
        reach = log2(max(1.0, candidate.limits.context_tokens / MINIMUM_CONTEXT_TOKENS))
        context = min(1.0, reach / log2(wanted / MINIMUM_CONTEXT_TOKENS))
    room = candidate.memory.kv_cache_tokens * candidate.parallel.data
    return ScoreTerms(
        quality=round(max(0.0, 1 - (1 - quality) * _QUALITY_SLOPE), 4),
        speed=round(speed, 4),
        context=round(context, 4),
        headroom=round(min(1.0, room / (_FULL_HEADROOM_CONTEXTS * min(wanted, model_context_tokens))), 4),
    )


def total(score_terms: ScoreTerms, objective: Objective) -> float:
    weights = WEIGHTS[objective]
    values = (score_terms.quality, score_terms.speed, score_terms.context, score_terms.headroom)
    return round(sum(weight * value for weight, value in zip(weights, values, strict=True)), 4)


def order(candidate: Candidate) -> tuple[float, int, str, str, str, tuple[int, ...]]:
    """The key that candidates are sorted by, best first."""
    parallel = candidate.parallel
    return (
        -candidate.score,
        len(parallel.devices),
        candidate.checkpoint.repo,
        candidate.checkpoint.quantization,
        candidate.engine.name,
        (parallel.pipeline, parallel.tensor, parallel.data, int(parallel.expert)),
    )
