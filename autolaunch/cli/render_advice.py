"""Advice as a person reads it: what fits now in a line, what would do more, the smallest machines."""

from __future__ import annotations

from autolaunch.cli.render_plan import (
    changes,
    layout,
    nearest_refusal,
    render_head,
    render_machines,
)
from autolaunch.cli.render_plan import (
    render_advice as render_changes,
)
from autolaunch.cli.terminal import Terminal, clean, count, rate, wrapped
from selector.contract import Candidate, LaunchPlan


def render_advice(plan: LaunchPlan, terminal: Terminal) -> str:
    """Sections are a blank line apart; nothing but a command is wider than ``terminal.width_columns``."""
    parts = [render_head(plan, terminal)]
    if plan.chosen is None:
        parts += nearest_refusal(plan, terminal)
        parts += render_changes("What would make it fit here", changes(plan), terminal)
    else:
        parts[0] += f"\n{_now(plan.chosen, terminal)}"
        parts += render_changes("What would do more here", changes(plan), terminal) or [
            "  Nothing that could be changed here would do more."
        ]
    parts += render_machines(plan, terminal)
    return "\n\n".join(parts)


def _now(chosen: Candidate, terminal: Terminal) -> str:
    checkpoint, speed = chosen.checkpoint, chosen.speed
    fast = "" if speed.decode_tokens_per_second is None else f", {rate(speed.decode_tokens_per_second)} tokens/s"
    here = ", the weights are here" if checkpoint.local else ""
    where = layout(chosen.parallel, chosen.engine.name, chosen.limits)
    text = (
        f"fits now: {checkpoint.repo} ({checkpoint.quantization}) with {chosen.engine.name}, {where}, "
        f"context {count(chosen.limits.context_tokens)}{fast}{here}"
    )
    return wrapped(clean(text), terminal, first="  ", rest="    ")
