"""The plan of a fleet as other programs read it: JSON schema 1. Field names are a contract."""

from __future__ import annotations

from typing import Literal

import msgspec

from selector.facts import EngineName, Format
from selector.fleet.asked import FleetMethod, FleetObjective
from selector.values import Value

#: What is compared, in the order of the objective; ``lacking``, ``wanted`` and ``devices`` are better when lower.
TermName = Literal["lacking_replicas", "wanted_lacking_replicas", "devices", "weighted_throughput_tokens_per_second"]


class Term(Value, frozen=True, kw_only=True):
    """One figure of the objective: what this plan has, and the best that any plan could have (as far as is proven).

    Replicas are counted by their deployments' weights. ``bound`` holds for plans that do as well as this one in the
    terms before; ``None`` where nobody looked for it. ``gap`` is the distance as a share of the bound, 0 where it is
    reached; ``None`` where there is no bound, or it is 0 and is not reached.
    """

    name: TermName
    value: float
    bound: float | None
    gap: float | None


class Replica(Value, frozen=True, kw_only=True):
    """One way of serving a deployment on a kind of host, as the planner laid it out, and how often it is used.

    ``devices`` and ``hosts`` are of one replica; ``devices`` counts over all its hosts (0: the host's processor alone).
    ``throughput_tokens_per_second`` is output at the concurrency of the deployment; ``None`` where nobody published
    the accelerator's figures, which counts for nothing in the objective.
    """

    deployment: str
    hardware: str
    devices: int
    hosts: int
    replicas: int
    repo: str
    format: Format
    quantization: str
    engine: EngineName
    engine_version: str
    tensor: int
    pipeline: int
    expert: bool
    context_tokens: int
    max_sequences: int
    decode_tokens_per_second: float | None
    throughput_tokens_per_second: float | None


class Placement(Value, frozen=True, kw_only=True):
    """Where replicas stand. ``replica`` counts in :attr:`FleetPlan.replicas`, from 0.

    ``on`` has the hosts of each replica (several where one engine spans them), each taking ``devices`` of every one of
    them: indices of the host's report.
    """

    replica: int
    devices: tuple[int, ...]
    on: tuple[tuple[str, ...], ...]


class Served(Value, frozen=True, kw_only=True):
    """What comes of one deployment. ``reason`` is why it has fewer replicas than its minimum.

    ``less_accurate`` says so where replicas have weights further from the original than another kind of host of the
    fleet would serve.
    """

    name: str
    model: str
    weight: float
    minimum_replicas: int
    maximum_replicas: int | None
    replicas: int
    lacking_replicas: int
    devices: int
    throughput_tokens_per_second: float
    reason: str | None = None
    less_accurate: str | None = None


class HardwareUse(Value, frozen=True, kw_only=True):
    """What is used of one kind of host. ``idle_hosts`` hold no replica at all."""

    hardware: str
    groups: tuple[str, ...]
    hosts: int
    idle_hosts: int
    devices: int
    idle_devices: int


class FleetPlan(Value, frozen=True, kw_only=True):
    """Which deployments go where.

    ``feasible`` is false when a deployment has fewer replicas than its minimum; ``deployments`` says which and why.
    ``value``, ``bound`` and ``gap`` are those of the objective's own term, ``terms`` has all of them in order.
    """

    schema: Literal[1] = 1
    objective: FleetObjective
    method: FleetMethod
    feasible: bool
    value: float
    bound: float
    gap: float | None
    terms: tuple[Term, ...]
    hosts: int
    devices: int
    deployments: tuple[Served, ...]
    replicas: tuple[Replica, ...]
    placements: tuple[Placement, ...]
    hardware: tuple[HardwareUse, ...]

    def to_json(self) -> str:
        """The plan as indented JSON, ending without a newline. The same request gives the same bytes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    def explain(self) -> str:
        """The plan in plain sentences (:mod:`selector.fleet.explain`)."""
        from selector.fleet.explain import explain

        return explain(self)
