"""The smallest machines that serve a request: fewest devices, then least memory, one of each family of devices.

Every accelerator of the catalogue is looked at in counts of 1, 2, 3, 4, 6 and 8, and in two nodes; what cannot hold the
smallest file is passed over without planning, and a machine is only named when a plan for it was made (one that runs
all requests at once, where a number of them was asked for).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from selector.asked import PlanRequest
from selector.case import Case, Shelf, figures
from selector.contract import Advice, Candidate
from selector.facts import CheckpointFacts, ModelFacts
from selector.hardware import Vendor
from selector.ready import LEAST_SHARE_LOADED
from selector.request import Pins
from selector.search import LOWEST_QUALITY_UNASKED, Facts
from selector.typed import typed

COUNTS = (1, 2, 3, 4, 6, 8)
NODES = 2
#: Machines of a vendor that are named: in a plan that does not fit, and where advice was asked for.
FEW: dict[Vendor, int] = {"nvidia": 2, "amd": 1, "apple": 1}
SEVERAL: dict[Vendor, int] = {"nvidia": 4, "amd": 2, "apple": 2}


class _Machine(NamedTuple):
    """Sorts by what is smaller."""

    devices: int
    memory_bytes: int
    name: str
    vendor: Vendor
    family: str


def smallest_machines(case: Case, shelf: Shelf, most: dict[Vendor, int]) -> tuple[Advice, ...]:
    """The smallest machine of each family that does, ``most`` of a vendor, with what would run there."""
    return _smallest(case.model, _elsewhere(case), case.facts, shelf, tuple(most.items()))


@lru_cache(maxsize=64)  # the machine that is here has no part in it: hosts that are all too small share one answer
def _smallest(
    model: ModelFacts, free: PlanRequest, facts: Facts, shelf: Shelf, most: tuple[tuple[Vendor, int], ...]
) -> tuple[Advice, ...]:
    least = min((each.download_bytes for each in model.checkpoints if _allowed(each, free.pins)), default=0)
    left, served, named = dict(most), set[str](), []
    for machine in sorted(_machines(facts, shelf)):
        small = machine.memory_bytes < least * LEAST_SHARE_LOADED
        if small or machine.family in served or not left.get(machine.vendor, 0):
            continue
        report = shelf.report(machine.name)
        found = Case(model, report, free, facts).holding(report)
        if found is None:
            continue
        served.add(machine.family)
        left[machine.vendor] -= 1
        named.append(_named(machine, *found))
    return tuple(named)


def same_devices(case: Case, shelf: Shelf) -> Iterator[Advice]:
    """The fewest of the devices that are here that would do, when more of them would."""
    free = _elsewhere(case)
    for name in more_of_the_same(case):
        report = shelf.report(name)
        found = case.holding(report, free)
        if found is not None:
            memory = sum(each.memory_total_bytes or 0 for each in report.accelerators)
            machine = _Machine(len(report.accelerators), memory, name, report.accelerators[0].vendor, "")
            yield _named(machine, *found)
            return


def _elsewhere(case: Case) -> PlanRequest:
    """The request without the pins that speak of the machine that is here."""
    return case.pinned(
        gpus=None,
        gpu_count=None,
        tensor_parallel=None,
        pipeline_parallel=None,
        data_parallel=None,
        memory_utilization=None,
    )


def _named(machine: _Machine, best: Candidate, request: PlanRequest) -> Advice:
    rate = best.speed.decode_tokens_per_second
    speed = "" if rate is None else f", {rate:,.0f} tokens/s"
    return Advice(
        kind="hardware",
        message=f"{machine.name}: {_short(best)} on {best.engine.name}, context {best.limits.context_tokens:,}{speed}",
        numbers={"devices": machine.devices, "memory_bytes": machine.memory_bytes, **figures(best)},
        command=typed(request, machine.name),
    )


def _short(best: Candidate) -> str:
    """``GLM-4.6-AWQ Int4``: a machine in a line; its plan gives the whole name."""
    name, quantization = best.checkpoint.repo.rpartition("/")[2], best.checkpoint.quantization
    return name if quantization.lower() in name.lower().split("-") else f"{name} {quantization}"


def _allowed(checkpoint: CheckpointFacts, pins: Pins) -> bool:
    """Whether the planner would take these weights on some machine."""
    if pins.quantization is not None:
        return pins.quantization.lower() == checkpoint.quantization.lower()
    if pins.repo is not None:
        return pins.repo.lower() in (checkpoint.repo.lower(), (checkpoint.modelscope or "").lower())
    return checkpoint.quality >= LOWEST_QUALITY_UNASKED and pins.format in (None, checkpoint.format)


def _machines(facts: Facts, shelf: Shelf) -> Iterator[_Machine]:
    for name in shelf.names:
        devices = shelf.report(name).accelerators
        if not devices or not devices[0].memory_total_bytes:
            continue
        device = devices[0]
        known = facts.accelerator_for(device)
        family = f"{device.vendor} {name if known is None else known.architecture.split()[0]}"
        memory = device.memory_total_bytes or 0
        alone = device.memory_kind == "unified"
        counts = (1,) if alone else COUNTS
        for count in counts:
            spec = name if alone else f"{count}x{name}"
            yield _Machine(count, count * memory, spec, device.vendor, family)
        if device.vendor != "apple":
            count = counts[-1]
            yield _Machine(NODES * count, NODES * count * memory, f"{NODES}x{count}x{name}", device.vendor, family)


def more_of_the_same(case: Case) -> Iterator[str]:
    """More of the devices that are here, up to a node of eight: the upgrade nearest at hand."""
    report = case.report
    known = {found.id for device in report.accelerators if (found := case.facts.accelerator_for(device)) is not None}
    if len(known) != 1 or report.nodes > 1 or any(each.memory_kind == "unified" for each in report.accelerators):
        return
    for count in range(len(report.accelerators) + 1, COUNTS[-1] + 1):
        yield f"{count}x{min(known)}"
