"""What the daemon's parts hand to each other: what is wanted, what went wrong, what was changed because of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from engines.logs import Cause
from selector.request import Objective, Pins, WorkloadName
from selector.values import Value

#: Why a deployment does not serve: what engines fail of (:mod:`engines.logs`), and what happens around them.
Reason = (
    Cause
    | Literal[
        "no plan",
        "no cluster",
        "too few nodes",
        "devices held",
        "installation",
        "download",
        "options",
        "stalled",
        "does not complete",
        "hangs",
        "processes left",
        "fault of ours",
    ]
)

#: What one step of the ladder changes (:mod:`autolaunch.daemon.ladder`).
Rung = Literal[
    "fitting context",
    "sequences",
    "context",
    "memory utilization",
    "eager",
    "layout",
    "candidate",
    "devices",
]


class Deployment(Value, frozen=True, kw_only=True):
    """One model to be kept up: an entry of the configuration, or what a launch in the foreground asks for.

    ``name`` is the served name. ``port`` is its engine's (``None``: any free one). ``idle_seconds``: so long without a
    request, and the engine is stopped until somebody asks (``None``: never). ``wait_for_devices``: when others hold the
    memory, or the cluster at ``nodes`` is not there or too small, wait for that rather than fail. ``lower_accuracy``:
    what is tried when a plan fails may have a smaller quantization than the first one; without it never. ``lock`` is a
    file of a launch that is replayed exactly (:mod:`autolaunch.replaying`); ``pinned`` and the figures are the file's
    then. ``nodes`` is the Ray cluster on whose nodes it is planned and started, as ``--nodes`` takes it; ``None`` is
    this host alone.

    One that is served by several engines is as many deployments of one name (:mod:`autolaunch.daemon.replicas`):
    ``replica`` is 2 for the second, and so on. ``None`` is the first or only one, so that nothing changes for it when
    others come and go.
    """

    name: str
    model: str
    host: str = "127.0.0.1"
    port: int | None = None
    objective: Objective = "balanced"
    context_tokens: int | None = None
    concurrency: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    workload: WorkloadName | None = None
    pinned: Pins = Pins()
    model_path: Path | None = None
    engine_path: Path | None = None
    engine_options: tuple[str, ...] = ()
    offline: bool = False
    idle_seconds: float | None = None
    wait_for_devices: bool = True
    lower_accuracy: bool = False
    lock: Path | None = None
    nodes: str | None = None
    replica: int | None = None

    @property
    def key(self) -> str:
        """By this everything tells it from others: ``glm-4.6``, and ``glm-4.6#2`` for its second replica.

        A served name has no ``#`` in it.
        """
        return self.name if self.replica is None else f"{self.name}#{self.replica}"


class Fault(Value, frozen=True, kw_only=True):
    """Something that ended an engine, or kept one from being started.

    ``permanent``: the same again fails the same way. ``serving``: tokens had come before. ``fitting_context_tokens``
    is the context that the engine itself says would fit. ``devices`` are the UUIDs that are no longer there for work;
    ``lines`` the engine's last ones.
    """

    reason: Reason
    permanent: bool
    message: str
    hint: str | None = None
    serving: bool = False
    fitting_context_tokens: int | None = None
    devices: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


class Changes(Value, frozen=True, kw_only=True):
    """What differs from the plan that would be made of the deployment alone, because that one failed.

    ``pinned`` holds a whole configuration (:func:`autolaunch.pinning.pins_of`) with the limits that were
    lowered; ``None`` leaves the planner free. ``avoid`` are configurations (:func:`autolaunch.daemon.ladder.layout_of`)
    that are not taken again. ``steps`` says what was done, a sentence a step; ``rungs`` are the same steps for
    programs.
    """

    pinned: Pins | None = None
    context_tokens: int | None = None
    avoid: tuple[str, ...] = ()
    without_devices: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    rungs: tuple[Rung, ...] = ()


class KeptRun(Value, frozen=True, kw_only=True):
    """An engine's processes, so that a daemon that comes after this one can tell them from any others.

    ``mark`` stands in the environment of everything that the engine starts (``AUTOLAUNCH_RUN``). Times are seconds
    since the boot, as the kernel keeps them for a process (0: not known).
    """

    mark: str
    guard_pid: int
    guard_started: float
    engine_pid: int
    engine_started: float


class KeptDeployment(Value, frozen=True, kw_only=True):
    """What of a deployment outlives the daemon. Failures are seconds of the boot's monotonic clock, oldest first.

    ``of`` tells the deployment that all of it but ``wanted`` and ``run`` is of: another by the same name starts anew.
    """

    wanted: Literal["running", "stopped"] = "running"
    failures: tuple[float, ...] = ()
    latched: Fault | None = None
    changes: Changes = Changes()
    run: KeptRun | None = None
    of: str | None = None


class Kept(Value, frozen=True, kw_only=True):
    """The state file, schema 1. Of another boot only ``wanted`` still holds."""

    schema: Literal[1] = 1
    boot_id: str
    deployments: dict[str, KeptDeployment] = msgspec.field(default_factory=dict)


def fingerprint(deployment: Deployment) -> str:
    """What tells a deployment from another of the same name."""
    return hashlib.sha256(repr(deployment).encode()).hexdigest()[:16]


def kept_of(deployment: Deployment, kept: KeptDeployment | None) -> KeptDeployment | None:
    """What was kept, as far as it is of this very deployment: what another one failed of says nothing of it."""
    if kept is None or kept.of in (None, fingerprint(deployment)):
        return kept
    stuck = kept.latched if kept.latched is not None and kept.latched.reason == "processes left" else None
    return KeptDeployment(wanted=kept.wanted, latched=stuck)
