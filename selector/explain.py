"""Why this plan: plain sentences about the choice, what it stands on, and what came second."""

from __future__ import annotations

from selector import notes, score
from selector.contract import Candidate, LaunchPlan, ScoreTerms
from selector.devices import GIB
from selector.request import Objective


def layout(candidate: Candidate) -> str:
    """A layout in words: ``"tensor parallel 4 x 2 replicas"``."""
    parallel = candidate.parallel
    if not parallel.devices:
        return "the CPU"
    parts = []
    if parallel.tensor > 1:
        parts.append(f"tensor parallel {parallel.tensor}")
    if parallel.pipeline > 1:
        parts.append(f"{parallel.pipeline} pipeline stages")
    if parallel.expert:
        parts.append("expert parallel")
    if parallel.data > 1:
        parts.append(f"{parallel.data} replicas")
    if parallel.nodes > 1:
        parts.append(f"{parallel.nodes} nodes a replica")
    return ", ".join((*(parts or ["one device"]), *notes.set_aside(candidate.limits)))


def _title(candidate: Candidate) -> str:
    return (
        f"{candidate.checkpoint.repo} ({candidate.checkpoint.quantization}) with {candidate.engine.name} "
        f"{candidate.engine.version}, {layout(candidate)}"
    )


def score_rows(candidate: Candidate, objective: Objective) -> list[str]:
    """A row a term: ``quality 0.960 x weight 0.35 = 0.336``; they add up to the score."""
    rows = score.rows(candidate.score_terms, score.WEIGHTS[objective])
    return [f"  {name} {value:.3f} x weight {weight:.2f} = {part:.3f}" for name, weight, value, part in rows]


def _largest_difference(first: ScoreTerms, second: ScoreTerms, weights: score.Weights) -> str:
    ours, theirs = score.rows(first, weights), score.rows(second, weights)
    gaps = {name: part - other for (name, _, _, part), (_, _, _, other) in zip(ours, theirs, strict=True)}
    leading = max(gaps, key=lambda name: gaps[name])
    trailing = min(gaps, key=lambda name: gaps[name])
    sentence = f"behind mostly in {leading}"
    return f"{sentence}, ahead in {trailing}" if gaps[trailing] < -0.0005 else sentence


def explain(plan: LaunchPlan) -> str:
    """The plan in plain sentences, a line each."""
    chosen = plan.chosen
    if chosen is None:
        lines = [f"Nothing that is allowed serves {plan.model} here."]
        lines += [f"{each.repo} with {each.engine}: {each.message}." for each in plan.rejected]
        lines += [each.message if each.command is None else f"{each.message}: {each.command}" for each in plan.advice]
        return "\n".join(lines)
    device = chosen.memory.per_device
    speed = chosen.speed
    lines = [
        f"Chosen: {_title(chosen)}.",
        (
            f"Each device holds {device.weights_bytes / GIB:.1f} GiB of weights and "
            f"{device.kv_cache_bytes / GIB:.1f} GiB of KV cache out of {device.usable_bytes / GIB:.1f} usable: "
            f"{chosen.memory.kv_cache_tokens:,} tokens a replica, {chosen.limits.context_tokens:,} for one request."
        ),
    ]
    if speed.decode_tokens_per_second is not None and speed.throughput_tokens_per_second is not None:
        lines.append(
            f"Expected: {speed.decode_tokens_per_second:,.0f} tokens/s for one sequence, "
            f"{speed.throughput_tokens_per_second:,.0f} with {speed.concurrency} at once ({speed.basis})."
        )
    if chosen.parallel.nodes > 1:
        from selector.nodes import stages

        lines.append(stages(plan.hardware, chosen.parallel))
    objective = plan.request.objective
    lines.append(f"Its score is {chosen.score:.3f} of 1 for the objective {objective}:")
    lines += score_rows(chosen, objective)
    if plan.alternatives:
        second = plan.alternatives[0]
        difference = _largest_difference(chosen.score_terms, second.score_terms, score.WEIGHTS[objective])
        lines.append(
            f"Second: {_title(second)}; {chosen.score - second.score:.3f} points {difference} "
            f"(score {second.score:.3f})."
        )
        lines += score_rows(second, objective)
        lines += [f"The second {note.message}." for note in second.notes if note.code == "second"]
    lines += [f"{note.severity}: {note.message}." for note in chosen.notes]
    lines += [each.message if each.command is None else f"{each.message}: {each.command}" for each in plan.advice]
    return "\n".join(lines)
