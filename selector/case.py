"""What advice is about: a model, a machine, a request; and what the planner says when one thing of it is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from selector.asked import PlanRequest
from selector.contract import Advice, AdviceKind, Candidate, Number
from selector.facts import ModelFacts
from selector.hardware import HardwareReport
from selector.request import Pins
from selector.search import Decision, Facts, decide
from selector.typed import typed


class Shelf(NamedTuple):
    """Machines to choose from: the names of one device as ``--hardware`` takes them, and the report of any name."""

    names: tuple[str, ...]
    report: Callable[[str], HardwareReport]


class Case(NamedTuple):
    """``machine`` is the ``--hardware`` that was asked about, ``None`` for this machine: commands repeat it."""

    model: ModelFacts
    report: HardwareReport
    request: PlanRequest
    facts: Facts
    machine: str | None = None

    def decided(self, *, request: PlanRequest | None = None, report: HardwareReport | None = None) -> Decision | None:
        """The planner's answer to a changed request, or on a changed machine; ``None`` where nothing fits."""
        decision = decide(self.model, report or self.report, request or self.request, self.facts)
        return decision if decision.ranked else None

    def pinned(self, **pins: object) -> PlanRequest:
        """The request with further pins, or without those that are ``None``."""
        return msgspec.structs.replace(self.request, pins=msgspec.structs.replace(self.request.pins, **pins))

    def pinned_to(self, candidate: Candidate, **pins: object) -> PlanRequest:
        """The request for the very configuration of a candidate, and further pins."""
        parallel = candidate.parallel
        layout = {} if not parallel.devices else {"tensor_parallel": parallel.tensor, "data_parallel": parallel.data}
        if parallel.pipeline > 1:
            layout["pipeline_parallel"] = parallel.pipeline
        return self.pinned(
            **{
                "engine": candidate.engine.name,
                "repo": candidate.checkpoint.repo,
                "quantization": candidate.checkpoint.quantization,
                **layout,
                **pins,
            }
        )

    def quality(self, candidate: Candidate) -> float:
        """The profile's figure for the candidate's weights, 0 to 1."""
        checkpoint = candidate.checkpoint
        return next(
            each.quality
            for each in self.model.checkpoints
            if checkpoint.repo in (each.repo, each.modelscope) and checkpoint.quantization == each.quantization
        )

    def held(self, candidate: Candidate) -> int:
        """Requests of the mean length that run at once, over all replicas."""
        workload = self.request.workload
        room = candidate.memory.kv_cache_tokens // max(1, workload.input_tokens + workload.output_tokens)
        return min(candidate.limits.max_sequences, room) * candidate.parallel.data

    def holding(
        self, report: HardwareReport, request: PlanRequest | None = None
    ) -> tuple[Candidate, PlanRequest] | None:
        """The best plan on a machine that runs all requests at once that were asked for, and the request for it.

        Where the chosen one lets some wait, the first of the others that does not; any plan where no number was asked.
        """
        request = request or self.request
        found = self.decided(request=request, report=report)
        asked = request.concurrency or 0
        best = None if found is None else next((each for each in found.ranked if self.held(each) >= asked), None)
        if found is None or best is None:
            return None
        if best is found.ranked[0]:
            return best, request
        narrow = self._replace(request=request).pinned_to(best)
        again = self.decided(request=narrow, report=report)
        if again is None or self.held(again.ranked[0]) < asked:
            return None
        return again.ranked[0], narrow

    def advice(self, kind: AdviceKind, message: str, best: Candidate, request: PlanRequest | None = None) -> Advice:
        """Advice that was planned: ``best`` is what comes of it, ``request`` the command for it."""
        return Advice(
            kind=kind,
            message=message,
            numbers=figures(best),
            command=None if request is None else typed(request, self.machine),
        )


def figures(best: Candidate) -> dict[str, Number]:
    """What a plan gives, for programs."""
    found: dict[str, Number] = {
        "context_tokens": best.limits.context_tokens,
        "kv_cache_tokens": best.memory.kv_cache_tokens * best.parallel.data,
    }
    if best.speed.decode_tokens_per_second is not None:
        found["decode_tokens_per_second"] = best.speed.decode_tokens_per_second
    return found


def title(best: Candidate) -> str:
    """``QuantTrio/GLM-4.6-AWQ (Int4) with sglang``."""
    return f"{best.checkpoint.repo} ({best.checkpoint.quantization}) with {best.engine.name}"


def share(quality: float) -> str:
    """``99.5%``, ``100%``: of the original's quality."""
    return f"{quality:.1%}".replace(".0%", "%")


#: Pins that say which weights are wanted.
WEIGHTS = frozenset({"repo", "format", "quantization", "hub", "revision"})


def given(pins: Pins) -> list[str]:
    """The names of what was pinned."""
    return [name for name in Pins.__struct_fields__ if getattr(pins, name) is not None]
