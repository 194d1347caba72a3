"""What the planner is asked: the wish, the pins, and what is known of the machine beside its report."""

from __future__ import annotations

from selector.measured import Calibration
from selector.request import WORKLOADS, Objective, Pins, Workload
from selector.values import Value


class PlanRequest(Value, frozen=True, kw_only=True):
    """What is wanted, and what the planner is told beside it.

    ``context_tokens`` is a wish of the user: kept, or the plan is refused. ``concurrency`` is a load that is offered:
    what does not run at once waits. ``local`` holds the weights that are here already
    (:func:`selector.facts.checkpoint_id`); ``None`` where nobody looked. ``calibrations`` are what was measured on the
    machine (:mod:`selector.calibration`). ``nodes`` is the address of the cluster that a launch is planned for:
    commands repeat it, and another engine or more replicas are no way out there.
    """

    model: str
    objective: Objective = "balanced"
    context_tokens: int | None = None
    concurrency: int | None = None
    workload: Workload = WORKLOADS["chat"]
    pins: Pins = Pins()
    local: frozenset[str] | None = None
    calibrations: tuple[Calibration, ...] = ()
    nodes: str | None = None
