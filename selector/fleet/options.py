"""What a replica of a deployment gives on each kind of host: the planner's own layouts, one for each number of devices.

Each is what ``autolaunch plan MODEL --data-parallel 1 --gpus N`` ranks first, of weights at least as near the original
as those of the best of all numbers: packing more replicas onto a host never costs accuracy that the planner would not
give up itself. A number of devices on which the model only just runs, at a fraction of the output a device that others
give, is left out: nobody who asks for a replica means that one. A thousand equal hosts are planned once.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from selector.asked import PlanRequest
from selector.contract import Candidate, Rejection
from selector.facts import ModelFacts
from selector.fleet.asked import FleetDeployment
from selector.fleet.kinds import HostKind, Lot, several
from selector.plan import nearest_rejections
from selector.search import Decision, Facts, decide

#: Hosts that one replica spans at most; tried only where none serves it alone.
MOST_SPANNED = 4
#: Of the most output a device that a replica on the same host gives, the least that one has to.
LEAST_SHARE = 0.25


class Wanted(NamedTuple):
    """A deployment, its model, and what the planner is asked for a replica of it."""

    deployment: FleetDeployment
    model: ModelFacts
    request: PlanRequest


class Way(NamedTuple):
    """One way of serving a deployment on a kind of host: on so many devices of a lot, or on whole hosts."""

    deployment: int
    lot: int
    slots: int
    hosts: int
    candidate: Candidate


class Ways(NamedTuple):
    """All ways on one kind of host, and of deployments without any the refusal that came nearest."""

    found: tuple[Way, ...]
    refused: dict[int, Rejection]


class Options:
    """The ways of serving deployments; what was planned once is known."""

    def __init__(self, wanted: tuple[Wanted, ...], facts: Facts) -> None:
        self._wanted, self._facts = wanted, facts

    def on(self, kind: HostKind) -> Ways:
        """The ways on a kind of host."""
        found: list[Way] = []
        refused: dict[int, Rejection] = {}
        known: dict[PlanRequest, tuple[list[Way], Rejection | None]] = {}
        for place, each in enumerate(self._wanted):
            key = each.request
            if key not in known:
                known[key] = self._ways(kind, each)
            ways, nearest = known[key]
            found += [way._replace(deployment=place) for way in ways]
            if not ways and nearest is not None:
                refused[place] = nearest
        return Ways(tuple(found), refused)

    def _ways(self, kind: HostKind, each: Wanted) -> tuple[list[Way], Rejection | None]:
        found: list[Way] = []
        nearest: list[Rejection] = []
        for place, lot in enumerate(kind.lots):
            decision = self._decided(each, kind, lot)
            nearest += decision.rejected
            memory_bytes = kind.report.host.memory_available_bytes
            best: dict[int, Candidate] = {}
            for candidate in decision.ranked:
                taken = len(candidate.parallel.devices) or (0 if lot.devices else 1)
                share = taken / max(1, len(kind.report.accelerators))
                if not taken or not lot.takes(taken) or self._quality(each, candidate) < self._least(each, decision):
                    continue
                # Replicas side by side share main memory by their devices.
                if memory_bytes is None or candidate.memory.host_bytes <= memory_bytes * share:
                    best.setdefault(taken, candidate)
            found += [Way(0, place, slots, 1, candidate) for slots, candidate in _undominated(best)]
        if not found and len(kind.lots) == 1 and kind.lots[0].devices:
            found += self._spanning(kind, each)
        told = nearest_rejections(tuple(nearest))
        return found, min(told, key=_shortage, default=None)

    def _spanning(self, kind: HostKind, each: Wanted) -> list[Way]:
        """The fewest whole hosts of one group that serve a replica together."""
        most = min(MOST_SPANNED, max(group.size for group in kind.groups))
        for hosts in range(2, most + 1):
            report = several(kind.report, hosts)
            devices = len(report.accelerators)
            for candidate in decide(each.model, report, _one(each.request), self._facts).ranked:
                if candidate.parallel.nodes == hosts and len(candidate.parallel.devices) == devices:
                    return [Way(0, 0, kind.lots[0].slots, hosts, candidate)]
        return []

    def _decided(self, each: Wanted, kind: HostKind, lot: Lot) -> Decision:
        request = _one(each.request)
        if len(lot.devices) < len(kind.report.accelerators):
            pins = msgspec.structs.replace(request.pins, gpus=tuple(sorted(lot.devices)))
            request = msgspec.structs.replace(request, pins=pins)
        return decide(each.model, kind.report, request, self._facts)

    def _least(self, each: Wanted, decision: Decision) -> float:
        return self._quality(each, decision.ranked[0])

    def _quality(self, each: Wanted, candidate: Candidate) -> float:
        checkpoint = candidate.checkpoint
        return next(
            known.quality
            for known in each.model.checkpoints
            if checkpoint.repo in (known.repo, known.modelscope) and checkpoint.quantization == known.quantization
        )


def _one(request: PlanRequest) -> PlanRequest:
    """The request for a single replica."""
    return msgspec.structs.replace(request, pins=msgspec.structs.replace(request.pins, data_parallel=1))


def _undominated(best: dict[int, Candidate]) -> list[tuple[int, Candidate]]:
    """Without those that take more devices and give no more, or that give hardly anything for theirs."""
    rates = {slots: each.speed.throughput_tokens_per_second or 0.0 for slots, each in best.items()}
    each_device = max((rate / slots for slots, rate in rates.items()), default=0.0)
    found: list[tuple[int, Candidate]] = []
    most = -1.0
    for slots, candidate in sorted(best.items()):
        gives = rates[slots]
        if gives > most and gives >= LEAST_SHARE * each_device * slots:
            found.append((slots, candidate))
            most = gives
    return found


def _shortage(each: Rejection) -> float:
    needed, usable = each.numbers.get("needed_bytes"), each.numbers.get("usable_bytes")
    return needed / usable if needed and usable else float("inf")
