"""The engines that the daemon keeps up, as the gateway routes to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from autolaunch.daemon import machine
from autolaunch.daemon.gateway.routing import Endpoint, Standing, Traffic
from autolaunch.daemon.happenings import Command

if TYPE_CHECKING:
    from autolaunch.daemon.supervisor import Supervisor

#: What a load takes where no plan tells, and what is added to a load for planning and checking files.
LOAD_SECONDS, PREPARE_SECONDS = 60.0, 5.0
#: Nobody is told to come again later than this, nor when somebody has to see to the deployment first.
LONGEST_RETRY_SECONDS = 600.0


class Member:
    """A supervisor's deployment: :class:`autolaunch.daemon.gateway.routing.Replica`."""

    def __init__(self, one: Supervisor, clock: Callable[[], float]) -> None:
        self._one = one
        self._clock = clock
        self._endpoint: Endpoint | None = None

    @property
    def name(self) -> str:
        return self._one.state.deployment.name

    @property
    def traffic(self) -> Traffic:
        return self._one.traffic

    @property
    def context_tokens(self) -> int | None:
        candidate = self._one.state.candidate
        return None if candidate is None else candidate.limits.context_tokens

    def endpoint(self) -> Endpoint | None:
        state, server = self._one.state, self._one.run.server
        if state.phase not in machine.SERVING or server is None or self._one.run.number != state.run:
            return None
        known, degraded = self._endpoint, state.phase == "degraded"
        if known is None or known.run != state.run or known.degraded != degraded:
            known = self._endpoint = Endpoint(
                run=state.run,
                engine=server.engine.name,
                host=server.address.reachable_host,
                port=server.address.port,
                served_name=server.served_name,
                degraded=degraded,
                api_key=server.api_key,
            )
        return known

    def standing(self) -> Standing:
        return standing(self._one, self._clock())

    def wake(self) -> None:
        if self._one.state.asleep:
            self._one.post(Command(verb="ask"))


def standing(one: Supervisor, now: float) -> Standing:
    """How a supervisor's deployment stands for clients, at ``now`` by its clock."""
    state = one.state
    if state.phase in machine.SERVING:
        return Standing(condition="serving", message="serves", retry_seconds=1.0)
    if state.phase == "failed":
        message = "has failed and waits for somebody to see to it; the host's operator is told why"
        return Standing(condition="failed", message=message, retry_seconds=LONGEST_RETRY_SECONDS)
    if state.wanted == "stopped":
        return Standing(condition="stopped", message="is stopped", retry_seconds=LONGEST_RETRY_SECONDS)
    load_seconds = _load_seconds(one)
    if state.asleep and state.phase == "planned":
        message = "was stopped because nobody asked; it is started now"
        return Standing(condition="asleep", message=message, retry_seconds=_bounded(load_seconds + PREPARE_SECONDS))
    return _on_the_way(one, now, load_seconds)


def _on_the_way(one: Supervisor, now: float, load_seconds: float) -> Standing:
    state = one.state
    if state.phase == "loading":
        server = one.run.server
        progress = None if server is None else server.progress
        fraction = None if progress is None else progress.fraction
        left = load_seconds * (1 - fraction) if fraction else load_seconds - (now - state.since)
        message = "is loading" if progress is None else f"is loading: {progress.message}"
        return Standing(
            condition="loading",
            message=message,
            retry_seconds=_bounded(left),
            stage="loading" if progress is None else progress.stage,
            fraction=fraction,
        )
    if state.phase == "backing off":
        left = max(0.0, (state.until or now) - now)
        message = f"is started again in {max(1, round(left))} s"
        return Standing(
            condition="loading", message=message, retry_seconds=_bounded(left + load_seconds), stage="pause"
        )
    stage = "ending" if state.phase == "draining" else state.phase
    return Standing(
        condition="loading",
        message="is being prepared" if state.phase != "draining" else "is started again",
        retry_seconds=_bounded(load_seconds + PREPARE_SECONDS),
        stage=stage,
    )


def _load_seconds(one: Supervisor) -> float:
    """What its next load takes: what the last one did, else as planned."""
    if one.load_seconds is not None:
        return one.load_seconds
    decided = one.decided
    return LOAD_SECONDS if decided is None else decided.candidate.speed.load_seconds or LOAD_SECONDS


def _bounded(seconds: float) -> float:
    return min(LONGEST_RETRY_SECONDS, max(1.0, seconds))
