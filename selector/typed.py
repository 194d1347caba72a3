"""A request as a person would type it again: for advice that can be pasted."""

from __future__ import annotations

import shlex

from selector.asked import PlanRequest
from selector.request import WORKLOADS, Pins


def typed(request: PlanRequest, machine: str | None) -> str:
    """The command line of a request: a launch here, or a plan for the ``--hardware`` that was asked about."""
    words = ["autolaunch", request.model] if machine is None else ["autolaunch", "plan", request.model]
    if machine is not None:
        words += ["--hardware", machine]
    elif request.nodes is not None:
        words += ["--nodes", request.nodes]
    chat = WORKLOADS["chat"]
    wishes = {
        "objective": None if request.objective == "balanced" else request.objective,
        "context": request.context_tokens,
        "concurrency": request.concurrency,
        "input-tokens": _unless(request.workload.input_tokens, chat.input_tokens),
        "output-tokens": _unless(request.workload.output_tokens, chat.output_tokens),
    }
    for name, value in wishes.items():
        words += [] if value is None else [f"--{name}", str(value)]
    return shlex.join([*words, *_pinned(request.pins)])


def _unless(value: int, usual: int) -> int | None:
    return None if value == usual else value


def _pinned(pins: Pins) -> list[str]:
    words: list[str] = []
    for name in Pins.__struct_fields__:
        value = getattr(pins, name)
        option = f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if name == "expert_parallel":
            words.append(option if value else "--no-expert-parallel")
        elif name == "eager":
            words += [option] if value else []
        elif name == "gpu_count":
            words += ["--gpus", str(value)]
        elif name == "gpus":
            listed = ",".join(map(str, value))
            words += ["--gpus", listed if len(value) > 1 else f"{listed},"]
        else:
            words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    return words
