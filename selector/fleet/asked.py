"""What a fleet is asked for: hosts in groups, deployments, and what counts."""

from __future__ import annotations

from typing import Literal, get_args

from selector.hardware import HardwareReport
from selector.request import Objective, Pins, WorkloadName
from selector.values import Value

#: ``throughput``: the most output tokens a second, each deployment's minimum of replicas first. ``replicas``: as many
#: as can be of the replicas that are wanted (the maximum, or the minimum without one), on the fewest devices.
FleetObjective = Literal["throughput", "replicas"]
FLEET_OBJECTIVES: tuple[FleetObjective, ...] = get_args(FleetObjective)
#: How the packing is found; ``exact`` needs the extra ``fleet`` (HiGHS).
FleetMethod = Literal["exact", "heuristic"]


class HostGroup(Value, frozen=True, kw_only=True):
    """Equal hosts that reach one another: ``count`` of them (``rack-a/1`` and so on), or those of ``names``.

    ``hardware`` is one host: a name as ``--hardware`` takes it (``8xh100``), the path of a recorded
    ``autolaunch probe --json``, or the report itself.
    """

    name: str
    hardware: str | HardwareReport
    count: int | None = None
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many hosts there are."""
        return len(self.names) or (1 if self.count is None else self.count)

    def hosts(self) -> tuple[str, ...]:
        """The hosts' names, in order."""
        return self.names or tuple(f"{self.name}/{number}" for number in range(1, self.size + 1))


class FleetDeployment(Value, frozen=True, kw_only=True):
    """A model that is to be served, with the request that a plan of it would be made of.

    The figures and pins are those of one replica, as :func:`autolaunch.plan` takes them. ``maximum_replicas`` of
    ``None`` is as many as pay. ``weight`` says what a token of this deployment is worth beside the others'.
    """

    name: str
    model: str
    objective: Objective = "balanced"
    context_tokens: int | None = None
    concurrency: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    workload: WorkloadName | None = None
    pinned: Pins = Pins()
    minimum_replicas: int = 1
    maximum_replicas: int | None = None
    weight: float = 1.0


class FleetRequest(Value, frozen=True, kw_only=True):
    """The hosts there are and what they are to serve; names are unique among hosts and among deployments."""

    schema: Literal[1] = 1
    objective: FleetObjective = "throughput"
    hosts: tuple[HostGroup, ...]
    deployments: tuple[FleetDeployment, ...]
