"""What the daemon says of itself: events for the journal, and one line for ``systemctl status``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from autolaunch.daemon import machine
from autolaunch.daemon.happenings import Tell
from autolaunch.daemon.journal import Journal, Level
from autolaunch.daemon.shown import shown_phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from autolaunch.daemon.supervisor import Supervisor
    from autolaunch.server import LaunchEvent

#: How often a load's progress is said.
PROGRESS_SECONDS = 60.0
#: What is no news beside what the machine tells: it says itself that a token came.
_UNSAID = frozenset({"port", "ready"})


class Report:
    """Speaks for the daemon. Everything may be called from any thread.

    Attributes:
        wrong: what is wrong with the configuration as the file has it now, where an older one holds.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.wrong: str | None = None
        self._progress: dict[str, tuple[str, float]] = {}

    def say(self, level: Level, event: str, message: str, name: str | None = None, *, hint: str | None = None) -> None:
        """Something about the daemon, or about deployment ``name``."""
        self.journal.say(level, event, message, deployment=name, hint=hint)

    def host(self, level: Level, event: str, name: str, message: str) -> None:
        """Something about another host that the gateway sends requests to."""
        self.journal.say(level, event, message, host=name)

    def tell(self, one: Supervisor, tell: Tell) -> None:
        """What the machine of a deployment says."""
        server = one.run.server if tell.name == "engine.ready" else None
        self.journal.say(
            tell.level,
            tell.name,
            tell.message,
            deployment=one.state.deployment.key,
            run=one.state.run,
            url=None if server is None else server.base_url,
            reason=tell.reason,
            seconds=tell.seconds,
            hint=with_retry(tell.hint, one.state.deployment.name) if tell.name == "deployment.failed" else tell.hint,
        )

    def hear(self, name: str, event: LaunchEvent) -> bool:
        """What a launch says, each stage once and its progress once a minute; whether it was said."""
        stage, at = self._progress.get(name, ("", 0.0))
        now = time.monotonic()
        if event.stage in _UNSAID or (event.stage == stage and now - at < PROGRESS_SECONDS):
            return False
        self._progress[name] = (event.stage, now)
        self.journal.say(
            "info",
            f"launch.{event.stage}",
            event.message,
            deployment=name,
            seconds=round(event.seconds, 1),
            fraction=event.fraction,
        )
        return True

    def fault_of_ours(self, context: Mapping[str, object]) -> None:
        """What nobody expected in the loop, as asyncio tells it."""
        error = context.get("exception")
        told = context.get("message") if error is None else f"{type(error).__name__}: {error}"
        self.say("error", "internal", f"a fault of autolaunch, not of yours: {told}")

    def status(self, supervisors: Iterable[Supervisor]) -> str:
        """``glm-4.6 ready, 3 of 4 replicas; glm-4.6#2 backing off: …; glm-4.5v loading the weights, 10 of 22``."""
        wrong = () if self.wrong is None else (f"the old configuration holds, the new one is wrong: {self.wrong}",)
        named: dict[str, list[Supervisor]] = {}
        for one in supervisors:
            named.setdefault(one.state.deployment.name, []).append(one)
        found = (said for name, engines in named.items() for said in _statuses(name, engines))
        return "; ".join((*wrong, *found)) or "no deployments"


def with_retry(hint: str | None, name: str) -> str:
    """What is left to do when deployment ``name`` was given up on."""
    again = f"autolaunch retry {name} tries it again"
    return f"{hint}; {again}" if hint else again


def _statuses(name: str, engines: list[Supervisor]) -> Iterator[str]:
    """Of the replicas of one name those that are in one phase together, the ones that serve first."""
    by_phase: dict[str, list[Supervisor]] = {}
    for one in sorted(engines, key=lambda each: each.state.phase not in machine.SERVING):
        by_phase.setdefault(shown_phase(one.state), []).append(one)
    for phase, alike in by_phase.items():
        if len(alike) == 1 and (len(engines) == 1 or phase not in machine.SERVING):
            yield _status_of(alike[0])
        else:
            yield f"{name} {phase}, {len(alike)} of {len(engines)} replicas"


def _status_of(one: Supervisor) -> str:
    state, name, phase = one.state, one.state.deployment.key, shown_phase(one.state)
    if phase == "loading" and one.run.server is not None and one.run.server.progress is not None:
        return f"{name} {one.run.server.progress.message}"
    if phase in ("failed", "backing off") and state.fault is not None:
        return f"{name} {phase}: {state.fault.message}"
    return f"{name} {phase}"
