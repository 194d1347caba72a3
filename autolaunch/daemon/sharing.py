"""Deployments of one configuration, planned together: which devices each may use. Pure.

Devices that the user pinned (``--gpus``) are dealt first. Every other deployment gets the fewest devices that make it
feasible (1, 2, 4, 8 and so on, or all that are left), together in an island of fast links where one has room, of the
kind with the least memory that will do. Where the first choice of one leaves nothing for another, its next ones are
tried, until all have something or nothing is left to try; then the later ones go without.

What is spare is dealt in turns, the first deployment first: each takes its next number of devices if its plan gets
better by it. A plan may have several replicas (:mod:`autolaunch.daemon.replicas`), and gets better by every further
one: would one deployment take all that helps it before the next has its turn, that one would stay with the least.

A deployment that would lie wholly on devices, had it all of them, is dealt as many as that takes: with fewer an engine
keeps layers in main memory, or serves from the processor, and is slow. Where that does not work out for all, such a
place counts as feasible too, for the last deployment first.

On a host without devices its main memory is dealt instead, in eighths of what is free.

Every trial is a decision of the planner, made once for devices that are alike: some milliseconds each, and at most
:data:`MOST_TRIALS` of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from autolaunch import api
from autolaunch.daemon.deployment import Deployment, Fault
from autolaunch.daemon.planning import Share, limited, nearest, wholly_on_devices
from autolaunch.daemon.pools import Devices, Memory, Pool, Units
from selector.asked import PlanRequest
from selector.catalog import Catalog
from selector.contract import Candidate
from selector.errors import AutolaunchError
from selector.hardware import HardwareReport
from selector.request import WORKLOADS
from selector.score import ranked
from selector.search import Decision, decide
from selector.wishes import checked_figures, pins_on_checkpoints, workload_of

#: Beyond so many trials nothing further is tried: what has been found is dealt.
MOST_TRIALS = 96


def share(
    report: HardwareReport, deployments: tuple[Deployment, ...], known: Catalog, *, tolerant: bool = False
) -> dict[str, Share]:
    """What of the machine each deployment may use, by its name.

    ``report`` is of the machine without the deployments' own engines: their memory counts as free in it. Of the same
    report and deployments come the same shares. One deployment alone has all there is.

    ``tolerant``: one whose wishes cannot be is left out, instead, and its own plan will say what is wrong with it.

    Raises:
        UsageError: a deployment whose wishes cannot be; UnknownModel.
        EngineError: there is no engine at an ``engine_path`` that could serve the model.
        ProfileError: a profile is wrong.
    """
    if len(deployments) < 2:
        return {each.name: Share(devices=_everything(report)) for each in deployments}
    if not report.accelerators and not report.host.memory_available_bytes:
        return {each.name: Share() for each in deployments}  # nothing is known that could be dealt
    pool: Pool = Devices(report) if report.accelerators else Memory(report)
    wishes = []
    for each in deployments:
        try:
            wishes.append(_Wish.of(each, known))
        except AutolaunchError:
            if not tolerant:
                raise
    dealt = _Dealer(pool, tuple(wishes), known).dealt()
    return {each.name: dealt.get(each.name, Share()) for each in deployments}


def without_share(deployment: Deployment, share: Share) -> Fault | None:
    """The fault of a deployment that got nothing; ``None`` where it has a share."""
    if share.reason is None:
        return None
    return Fault(
        reason="no plan",
        permanent=True,
        message=f"nothing of this machine is left for {deployment.name}: {share.reason}",
        hint="give deployments fewer devices with --gpus, or take one of them out of the configuration",
    )


def _everything(report: HardwareReport) -> frozenset[int] | None:
    return frozenset(each.index for each in report.accelerators) or None


# --- who wants it ------------------------------------------------------------------------------------


class _Wish(NamedTuple):
    """A deployment as the planner is asked for it."""

    deployment: Deployment
    request: PlanRequest

    @classmethod
    def of(cls, deployment: Deployment, known: Catalog) -> _Wish:
        """As :func:`autolaunch.api.plan` does, with as many replicas as are best where no number is pinned."""
        match, pins = known.find_model(deployment.model), deployment.pinned
        if match.repo is not None:
            pins = msgspec.structs.replace(pins, repo=match.repo)
        checked_figures(
            objective=deployment.objective,
            workload=deployment.workload,
            context_tokens=deployment.context_tokens,
            concurrency=deployment.concurrency,
            input_tokens=deployment.input_tokens,
            output_tokens=deployment.output_tokens,
            pins=pins,
        )
        pins = pins_on_checkpoints(match.model, pins, deployment.model)
        if deployment.engine_path is not None:
            found = api.installation_at(deployment.engine_path, match.model, known, pins)
            pins = msgspec.structs.replace(pins, engine=found.engine, engine_version=found.version)
        named, concurrency = WORKLOADS[deployment.workload or "chat"], deployment.concurrency
        request = PlanRequest(
            model=match.model.id,
            objective=deployment.objective,
            context_tokens=deployment.context_tokens,
            concurrency=named.concurrency if concurrency is None else concurrency,
            workload=workload_of(
                deployment.workload,
                deployment.input_tokens,
                deployment.output_tokens,
                deployment.context_tokens,
                match.model,
            ),
            pins=pins,
            local=api.weights_here(match.model.id, known, pins.revision),
        )
        return cls(deployment, request)

    def counts(self, most: int, *, devices: bool = True) -> tuple[int, ...]:
        """Numbers of units to try, the fewest first; 0 is a place on the host's processor."""
        pins = self.request.pins
        if pins.gpu_count is not None:
            return (pins.gpu_count,) if pins.gpu_count <= most else ()
        ranks = (pins.tensor_parallel or 1) * (pins.pipeline_parallel or 1) * (pins.data_parallel or 1)
        ranks = ranks if devices else 1  # parts of main memory have no ranks
        return tuple(sorted({*(1 << bit for bit in range(most.bit_length()) if 1 << bit >= ranks), ranks, most} - {0}))


class _Dealer:
    """One dealing: what was tried is kept."""

    def __init__(self, pool: Pool, wishes: tuple[_Wish, ...], known: Catalog) -> None:
        self._pool, self._wishes, self._known = pool, wishes, known
        self._by_device = isinstance(pool, Devices)
        self._tried: dict[tuple[int, object], Candidate | None] = {}

    @property
    def trials(self) -> int:
        """Decisions of the planner so far."""
        return len(self._tried)

    def dealt(self) -> dict[str, Share]:
        free, pinned, reasons = self._pinned()
        rest = [place for place in range(len(self._wishes)) if place not in pinned and place not in reasons]
        given = self._all(free, rest)
        if given is None:
            given = {}
            for place in rest:
                more = self._all(free, [*given, place])
                if more is None:
                    reasons[place] = self._why(place, free)
                else:
                    given = more
        self._spare(free.difference(*given.values()), given)
        given = self._tidied(free, given)
        shares = {}
        for place, wish in enumerate(self._wishes):
            units = pinned.get(place, given.get(place))
            shares[wish.deployment.name] = (
                msgspec.structs.replace(self._pool.share(frozenset()), reason=reasons[place])
                if units is None
                else self._pool.share(units)
            )
        return shares

    def _pinned(self) -> tuple[Units, dict[int, Units], dict[int, str]]:
        """What is left, and the devices of those that named them: the first to name one has it."""
        free, pinned, reasons = self._pool.units, dict[int, Units](), dict[int, str]()
        for place, wish in enumerate(self._wishes):
            named = wish.request.pins.gpus
            if not named or not self._by_device:
                continue
            gone = sorted(set(named) - free)
            if gone:
                holder = next(
                    (self._wishes[other].deployment.name for other in pinned if gone[0] in pinned[other]), None
                )
                reasons[place] = f"device {gone[0]} " + (f"is pinned by {holder}" if holder else "is not there")
            else:
                pinned[place] = frozenset(named)
                free -= pinned[place]
        return free, pinned, reasons

    def _all(self, free: Units, places: list[int]) -> dict[int, Units] | None:
        """Units for all of ``places``, for as many of the first ones as can be without a slow place."""
        for count in range(len(places), -1, -1):
            found = self._deal(free, places, frozenset(places[:count]), set())
            if found is not None:
                return found
        return None

    def _deal(
        self, free: Units, places: list[int], swift: frozenset[int], dead: set[object]
    ) -> dict[int, Units] | None:
        """Units for ``places``, of which ``swift`` get no slow place; ``dead`` is what was found to lead nowhere."""
        if not places:
            return {}
        key = (len(places), self._pool.like(free))
        if key in dead:
            return None
        first, *others = places
        for units in self._options(first, free, swift=first in swift):
            rest = self._deal(free - units, others, swift, dead)
            if rest is not None:
                return {first: units, **rest}
        dead.add(key)
        return None

    def _options(self, place: int, free: Units, *, swift: bool) -> Iterator[Units]:
        """Units on which a deployment is feasible, those that cost the others least first."""
        wish = self._wishes[place]
        counts = wish.counts(len(free), devices=self._by_device)
        if self._by_device and wish.request.pins.gpu_count is None:
            counts = (*counts, 0)
        for count in counts:
            for units in self._pool.sets(free, count):
                found = self._candidate(place, units)
                if found is None or (swift and self._slow(place, found)):
                    continue
                # On the host's processor it needs none: another may have them.
                yield units if found.parallel.devices or not self._by_device else frozenset()

    def _slow(self, place: int, found: Candidate) -> bool:
        """Whether main memory or the processor does what devices would do, were they all this deployment's."""
        best = self._candidate(place, self._pool.units)
        return best is not None and wholly_on_devices(best) and not wholly_on_devices(found)

    def _candidate(self, place: int, units: Units) -> Candidate | None:
        """The best candidate of a deployment on these units; none any more when enough was tried."""
        key = (place, self._pool.like(units))
        if key not in self._tried:
            if self.trials >= MOST_TRIALS:
                return None
            self._tried[key] = self._decided(place, units)
        return self._tried[key]

    def _decided(self, place: int, units: Units) -> Candidate | None:
        found = self._decision(place, units).ranked
        return found[0] if found else None

    def _decision(self, place: int, units: Units) -> Decision:
        """What the planner says; from main memory of one replica, with its part of it."""
        request, report = self._wishes[place].request, self._pool.report(units)
        replicas, free_bytes = request.pins.data_parallel or 1, report.host.memory_available_bytes
        if replicas > 1 and not report.accelerators:
            report = limited(report, None if free_bytes is None else free_bytes // replicas)
            request = msgspec.structs.replace(request, pins=msgspec.structs.replace(request.pins, data_parallel=1))
        return decide(self._known.model(request.model), report, request, self._known)

    def _spare(self, spare: Units, given: dict[int, Units]) -> None:
        """Deals what is left, a step for each in turn, as long as it makes a plan better."""
        hungry = [place for place in sorted(given) if given[place]]
        hungry = [place for place in hungry if self._wishes[place].request.pins.gpu_count is None]
        for _ in self._pool.units:  # more turns than anybody can take
            for place in tuple(hungry):
                reach = given[place] | spare
                counts = self._wishes[place].counts(len(reach), devices=self._by_device)
                count = next((each for each in counts if each > len(given[place])), 0)
                more = next(self._pool.sets(reach, count), None) if count else None
                if more is None or not self._better(place, given[place], more):
                    hungry.remove(place)
                    continue
                given[place] = self._used(place, more)
                spare = reach - given[place]

    def _tidied(self, free: Units, given: dict[int, Units]) -> dict[int, Units]:
        """As much for each, side by side: what was added later lies next to the rest, where that is as good."""
        tidy = {}
        for place in sorted(given, key=lambda each: (-len(given[each]), each)):
            tidy[place] = next(self._pool.sets(free, len(given[place])), frozenset())
            if self._pool.like(tidy[place]) != self._pool.like(given[place]):
                return given
            free -= tidy[place]
        return tidy

    def _used(self, place: int, units: Units) -> Units:
        """Without the devices that the plan has no use for: seven of which it takes six."""
        found = self._candidate(place, units)
        if found is None or not self._by_device or len(found.parallel.devices) == len(units):
            return units
        fewer = next(self._pool.sets(units, len(found.parallel.devices)), units)
        again = self._candidate(place, fewer)
        return fewer if again is not None and _same(again, found) else units

    def _better(self, place: int, before: Units, after: Units) -> bool:
        """Whether the planner would take the plan on ``after``, had it both in one list."""
        one, other = self._candidate(place, before), self._candidate(place, after)
        if one is None or other is None or len(other.parallel.devices) == len(one.parallel.devices) > 0:
            return False
        request = self._wishes[place].request
        model = self._known.model(request.model)
        quality = {
            (repo, each.quantization): each.quality
            for each in model.checkpoints
            for repo in (each.repo, each.modelscope)
        }
        scored = ranked(
            [(each, quality[each.checkpoint.repo, each.checkpoint.quantization]) for each in (one, other)],
            request,
            model.context_tokens,
        )
        return scored[0].score > scored[1].score and _same(scored[0], other)

    def _why(self, place: int, free: Units) -> str:
        wish = self._wishes[place]
        asked = wish.request.pins.gpu_count
        if asked is not None and asked > len(free):
            return f"it asks for {asked} devices, {len(free)} are not pinned by others"
        alone = self._decision(place, free)
        if not alone.ranked:
            why = nearest(alone.rejected, self._pool.report(free), wish.request.pins.data_parallel or 1)
            return f"it does not fit, with nothing beside it either; {why}"
        return "it fits alone, and not beside the deployments before it"


def _same(one: Candidate, other: Candidate) -> bool:
    """Whether two candidates differ in nothing but which devices they lie on."""
    parallel = msgspec.structs.replace(one.parallel, devices=other.parallel.devices)
    same = len(one.parallel.devices) == len(other.parallel.devices) and parallel == other.parallel
    return same and (one.checkpoint, one.engine, one.limits) == (other.checkpoint, other.engine, other.limits)
