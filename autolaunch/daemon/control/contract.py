"""What is said over the control socket: the documents of the API, version 1, for the daemon and for who asks it.

Each has a schema number. A later release may add fields to them, so what is not known is passed over when they are
read. Times are in UTC. ``None`` is what is not known, or what there is none of.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, field

from selector.contract import Checkpoint, EngineChoice, Limits, Memory, Parallel, Speed
from selector.values import Value

#: What a person calls it: the machine's phases, and the two ways of resting that a deployment in ``planned`` has.
Phase = Literal[
    "planned", "preparing", "loading", "ready", "degraded", "draining", "backing off", "failed", "asleep", "stopped"
]
SERVING: frozenset[Phase] = frozenset({"ready", "degraded"})
#: A time in UTC.
Moment = Annotated[datetime, Meta(tz=True)]
Kind = Literal["daemon", "launch"]
Verb = Literal["start", "stop", "restart", "retry"]
VERBS: tuple[Verb, ...] = ("start", "stop", "restart", "retry")
Figure = str | int | float | bool | None

#: The most lines and events that are asked for at once, and what is given unasked.
MOST_LINES, SOME_LINES = 10_000, 100
#: As a terminal has it: what is followed has no end.
Flag = Literal[0, 1]


class Document(Value, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A part of the API's answers."""


class Told(Document, frozen=True, kw_only=True):
    """``code`` is stable and for programs, ``message`` one sentence, ``hint`` what to do about it."""

    code: str
    message: str
    hint: str | None = None


class ErrorDocument(Document, frozen=True, kw_only=True):
    """Every answer that is none."""

    schema: Literal[1] = 1
    error: Told


class FaultDocument(Document, frozen=True, kw_only=True):
    """Why it does not serve, or what ended it last. ``permanent``: the same again fails the same way.

    ``serving``: tokens had come before. ``lines`` are the engine's last ones.
    """

    reason: str
    permanent: bool
    message: str
    hint: str | None = None
    serving: bool = False
    lines: tuple[str, ...] = ()


class EngineDocument(Document, frozen=True, kw_only=True):
    """The engine's process. Its ``address`` (host:port, loopback) is not for clients: they ask the gateway."""

    pid: int
    address: str


class LoadDocument(Document, frozen=True, kw_only=True):
    """How far a load is. ``fraction`` is 0 to 1 of this stage alone; ``done`` and ``total`` what it counts."""

    stage: str
    message: str
    fraction: float | None = None
    done: int | None = None
    total: int | None = None


class ChosenDocument(Document, frozen=True, kw_only=True):
    """What it runs as, and what was foretold of that."""

    checkpoint: Checkpoint
    engine: EngineChoice
    parallel: Parallel
    limits: Limits
    memory: Memory
    speed: Speed


class Compared(Document, frozen=True, kw_only=True):
    """One figure as it was foretold and as it was measured (:class:`autolaunch.comparison.Comparison`).

    ``bytes`` are the fullest device's. A figure of which one is not known is not told.
    """

    name: str
    unit: Literal["bytes", "tokens", "tokens/s", "seconds"]
    predicted: float
    measured: float


class ReplicaDocument(Document, frozen=True, kw_only=True):
    """One engine of a deployment, or the place of one.

    Attributes:
        unit: tells replicas apart: ``glm-4.6``, ``glm-4.6#2``.
        run: the number of the try.
        failures: those that count towards giving up; ``next_try_at`` is when it is tried again by itself.
        changes: what differs from the plan that would be made of the deployment alone, a sentence a step.
        measured: what the engine said of itself, by the names of ``Server.figures``; only what it has said.
        measurements: what was foretold and is known now, of the start and of requests that it had to itself.
        requests: under way now.
        log_path: what the engine prints, or the last one printed.
        folder: where the weights are that it has, once they are there.
    """

    unit: str
    phase: Phase
    since: Moment
    wanted: Literal["running", "stopped"]
    run: int
    failures: int = 0
    next_try_at: Moment | None = None
    fault: FaultDocument | None = None
    chosen: ChosenDocument | None = None
    engine: EngineDocument | None = None
    load: LoadDocument | None = None
    changes: tuple[str, ...] = ()
    measured: dict[str, int | float] = field(default_factory=dict)
    measurements: tuple[Compared, ...] = ()
    requests: int | None = None
    log_path: str | None = None
    folder: str | None = None


class DeploymentDocument(Document, frozen=True, kw_only=True):
    """One deployment. ``phase`` and ``since`` are those of the replica that is furthest; ``url`` is the gateway's.

    ``added``: it was deployed while the daemon ran, and stands in no configuration.
    """

    schema: Literal[1] = 1
    name: str
    model: str
    added: bool = False
    phase: Phase
    since: Moment
    url: str | None = None
    replicas: tuple[ReplicaDocument, ...]


class DeploymentsDocument(Document, frozen=True, kw_only=True):
    schema: Literal[1] = 1
    deployments: tuple[DeploymentDocument, ...]


class BriefDocument(Document, frozen=True, kw_only=True):
    name: str
    phase: Phase


class HostModelDocument(Document, frozen=True, kw_only=True):
    """A model at another host. ``state``: ``serving``, ``loading``, ``asleep``, ``stopped``, ``failed``, as that host
    says; ``unreachable`` while it says nothing.
    """

    name: str
    state: str


class HostDocument(Document, frozen=True, kw_only=True):
    """Another host that the gateway sends requests to.

    Attributes:
        state: ``up``: it answers. ``asking``: it was not heard of yet. ``down``: it is sent nothing.
        requests: those that were sent on to it and have not ended.
        failures: how often it went down, or was not there, since the start.
        fault: why it is down, or what broke just now.
    """

    name: str
    url: str
    state: Literal["asking", "up", "down"]
    since: Moment
    models: tuple[HostModelDocument, ...] = ()
    requests: int = 0
    failures: int = 0
    fault: str | None = None


class StatusDocument(Document, frozen=True, kw_only=True):
    """The daemon, or the launch in the foreground, itself.

    ``configuration`` is its file's path; ``wrong`` what is wrong with that file as it is now, while an older content
    holds. ``url`` is where clients ask. ``hosts`` are others that the gateway sends requests to.
    """

    schema: Literal[1] = 1
    version: str
    kind: Kind
    pid: int
    started: Moment
    configuration: str | None = None
    wrong: str | None = None
    url: str | None = None
    deployments: tuple[BriefDocument, ...] = ()
    hosts: tuple[HostDocument, ...] = ()


class ReloadDocument(Document, frozen=True, kw_only=True):
    """``holds``: the configuration is the file's from now on; else ``wrong`` says why the old one holds still."""

    schema: Literal[1] = 1
    holds: bool
    wrong: str | None = None


class EventDocument(Document, frozen=True, kw_only=True):
    """Something that happened, numbered from 1 since the start.

    ``events.missed`` stands for those that a reader was too slow for, or that were before anything kept: ``figures``
    has their number as ``events``. Asked for what came after a number that there was not yet, as by one who asked
    before a restart, it is the first, without a number, and all that there is follows.
    """

    schema: Literal[1] = 1
    serial: int
    time: Moment
    level: Literal["error", "warning", "notice", "info", "debug"]
    event: str
    message: str
    deployment: str | None = None
    figures: dict[str, Figure] = field(default_factory=dict)


class LogsQuery(Value, frozen=True, kw_only=True):
    """``lines`` from the end, and with ``follow`` what comes, over restarts of the engine too."""

    lines: Annotated[int, Meta(ge=0, le=MOST_LINES)] = SOME_LINES
    follow: Flag = 0


class EventsQuery(Value, frozen=True, kw_only=True):
    """Those after serial number ``since``, and with ``follow`` what comes."""

    since: Annotated[int, Meta(ge=0, le=2**53)] = 0
    follow: Flag = 0


class NoQuery(Value, frozen=True, kw_only=True):
    """Nothing is asked beside the path."""
