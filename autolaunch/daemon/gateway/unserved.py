"""Refusals of requests that no engine has answered: why, and when to come again."""

from __future__ import annotations

from autolaunch.daemon.gateway.refusal import Refusal
from autolaunch.daemon.gateway.routing import GONE, Condition, Model, Standing

#: When to come again after the endpoint has ended: where it is kept up, it is there again by then.
ENDING_RETRY_SECONDS = 10.0

_CODES: dict[Condition, str] = {
    "asleep": "model_loading",
    "unreachable": "model_unreachable",
    "stopped": "model_stopped",
    "failed": "model_failed",
}


def engine_died(model: Model) -> Refusal:
    return Refusal(
        503,
        f"the engine of {model.name} gave this request no answer: it has ended, or closed the connection",
        code="engine_died",
        retry_seconds=max(1.0, model.standing().retry_seconds),
        reason="engine_died",
    )


def endpoint_ending(model: Model) -> Refusal:
    message = f"{model.name} is not served any more: this endpoint is about to end"
    return Refusal(503, message, code="stopping", retry_seconds=ENDING_RETRY_SECONDS, reason="stopping")


def not_ready(model: Model, standing: Standing, *, died: bool) -> Refusal:
    if standing is GONE:  # somebody took it out of the configuration while its client waited
        return Refusal(404, f"{model.name} {standing.message}", code="model_not_found", reason="not_ready")
    if standing.condition == "serving":  # its engine has just ended, and nobody has noticed yet
        return engine_died(model)
    code = _CODES.get(standing.condition, "model_loading")
    return Refusal(
        503,
        f"{model.name} {standing.message}",
        code="engine_died" if died and code == "model_loading" else code,
        retry_seconds=standing.retry_seconds,
        reason="engine_died" if died else "not_ready",
        standing=standing,
    )
