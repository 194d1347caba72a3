"""What happens to a deployment (events), and what is to be done for it (actions).

Both carry the ``run`` that they belong to: the number of the try. An action is asked for once a run; its answer is one
of the events named beside it.
"""

from __future__ import annotations

from typing import Literal

from autolaunch.daemon.deployment import Changes, Deployment, Fault
from selector.contract import Candidate
from selector.values import Value

Level = Literal["info", "warning", "error"]

# --- events ---------------------------------------------------------------------------------------------


class Planned(Value, frozen=True, kw_only=True, tag=True):
    """There is a plan (answers ``Plan``)."""

    run: int
    candidate: Candidate


class Refused(Value, frozen=True, kw_only=True, tag=True):
    """No plan, no weights, no environment, or no process: nothing runs (answers ``Plan``, ``Prepare``, ``Launch``).

    ``changes`` is the next step of the ladder, where there is one (:mod:`autolaunch.daemon.ladder`).
    """

    run: int
    fault: Fault
    changes: Changes | None = None


class Prepared(Value, frozen=True, kw_only=True, tag=True):
    """Weights and environment are there (answers ``Prepare``)."""

    run: int


class Ready(Value, frozen=True, kw_only=True, tag=True):
    """A token came back, ``seconds`` after the start (answers ``Launch``)."""

    run: int
    seconds: float


class Ended(Value, frozen=True, kw_only=True, tag=True):
    """The engine is no use any more: it, or one of its workers, exited, stalled, or does not complete.

    Some of its processes may still be there. It answers ``Launch`` or comes at any time after it. ``changes`` as above.
    """

    run: int
    fault: Fault
    changes: Changes | None = None


class Gone(Value, frozen=True, kw_only=True, tag=True):
    """Everything of the run has ended and the devices' memory is back, or ``left`` says what not (answers ``End``)."""

    run: int
    left: Fault | None = None


class Probed(Value, frozen=True, kw_only=True, tag=True):
    """A token came back, or not (answers ``Probe``)."""

    run: int
    ok: bool
    message: str = ""


class Used(Value, frozen=True, kw_only=True, tag=True):
    """There were requests; with ``waiting`` all that is known is that somebody is connected, not that answers come."""

    run: int
    waiting: bool = False


class DevicesLost(Value, frozen=True, kw_only=True, tag=True):
    """Devices, by UUID, are no longer there for work. ``changes``: those of the ladder, where the engine has them."""

    devices: tuple[str, ...]
    message: str
    changes: Changes | None = None


class Command(Value, frozen=True, kw_only=True, tag=True):
    """Somebody wants something.

    start: run it. stop: end it until ``start``. restart: end it and plan anew. retry: forget its failures and try
    again. ask: a request came for a model that is asleep. close: the daemon leaves, so end it, but remember that it
    was wanted.
    """

    verb: Literal["start", "stop", "restart", "retry", "ask", "close"]


class Replaced(Value, frozen=True, kw_only=True, tag=True):
    """The configuration was read again."""

    deployment: Deployment


Event = Planned | Refused | Prepared | Ready | Ended | Gone | Probed | Used | DevicesLost | Command | Replaced

# --- actions --------------------------------------------------------------------------------------------


class Plan(Value, frozen=True, kw_only=True, tag=True):
    """Make a plan under ``changes``."""

    run: int
    changes: Changes


class Prepare(Value, frozen=True, kw_only=True, tag=True):
    """Fetch and check what the candidate needs."""

    run: int


class Launch(Value, frozen=True, kw_only=True, tag=True):
    """Start the engine and wait for its first token."""

    run: int


class Probe(Value, frozen=True, kw_only=True, tag=True):
    """Ask the engine for a token."""

    run: int


class End(Value, frozen=True, kw_only=True, tag=True):
    """End whatever the run has started, wait for the devices' memory, and give the devices back."""

    run: int


class Remember(Value, frozen=True, kw_only=True, tag=True):
    """Keep for later plans that the candidate served (no ``fault``), or how it failed."""

    fault: Fault | None


class Forget(Value, frozen=True, kw_only=True, tag=True):
    """Forget what was remembered of this machine: somebody says that it is another matter now."""


class Tell(Value, frozen=True, kw_only=True, tag=True):
    """Say something: ``name`` is stable, ``message`` is for a person."""

    name: str
    message: str
    level: Level = "info"
    hint: str | None = None
    reason: str | None = None
    seconds: float | None = None


Action = Plan | Prepare | Launch | Probe | End | Remember | Forget | Tell
