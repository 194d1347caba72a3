"""The memory of a plan as a bar a device, with its legend."""

from __future__ import annotations

from collections.abc import Iterator

import click

from autolaunch.cli.terminal import Terminal, bar, gib, heading, wrapped
from selector.contract import Candidate, LaunchPlan, PerDevice

#: (field, name, sign, colour) in the order of the bar. The signs differ, so that a bar reads without colour.
_PARTS = (
    ("weights_bytes", "weights", "█", "blue"),
    ("kv_cache_bytes", "KV cache", "▓", "green"),
    ("activations_bytes", "activations", "▒", "yellow"),
    ("graphs_bytes", "graphs", "░", "magenta"),
    ("runtime_bytes", "runtime", "▚", "cyan"),
    ("reserve_bytes", "reserve", "·", None),
)
_BARS_SHOWN = 16


def render_memory(plan: LaunchPlan, chosen: Candidate, terminal: Terminal) -> str:
    """One bar a device, scaled to the largest; the figures are those of the fullest device."""
    figures = chosen.memory.per_device
    unified = any(device.memory_kind == "unified" for device in plan.hardware.accelerators)
    names = [f"GPU {index}" for index in chosen.parallel.devices] if not unified else []
    names = names or ["memory"]
    label = max(len(name) for name in names)
    room = terminal.width_columns - label - 4 - 11
    drawn = _bar(figures, room)
    lines = [heading("Memory" if len(names) == 1 else "Memory of each GPU")]
    lines += [f"  {name:<{label}}  {drawn} {gib(figures.total_bytes):>10}" for name in names[:_BARS_SHOWN]]
    if len(names) > _BARS_SHOWN:
        lines.append(f"  and {len(names) - _BARS_SHOWN} more like these")
    lines += _legend(figures, label, terminal)
    low, high = gib(chosen.memory.low_bytes), gib(chosen.memory.high_bytes)
    if low.split()[-1] == high.split()[-1]:  # one unit is enough
        low = low.split()[0]
    span = f"{low} to {high} expected without the KV cache"
    lines.append(click.style(wrapped(f"{span} ({chosen.memory.basis})", terminal, first=" " * (label + 4)), dim=True))
    return "\n".join(lines)


def _bar(figures: PerDevice, room: int) -> str:
    sizes = tuple(getattr(figures, field) for field, *_ in _PARTS)
    cells = bar(tuple(max(0, size) for size in sizes), room)
    return "".join(
        click.style(sign * width, fg=color) if color else sign * width
        for (_, _, sign, color), width in zip(_PARTS, cells, strict=True)
        if width
    )


def _legend(figures: PerDevice, label: int, terminal: Terminal) -> Iterator[str]:
    """``█ weights 44.3 GiB``, as many a line as fit."""
    line, used = " " * (label + 2), label + 2
    for field, name, sign, color in _PARTS:
        size = getattr(figures, field)
        if size <= 0:
            continue
        text = f" {name} {gib(size)}"
        if used + 2 + 1 + len(text) > terminal.width_columns:
            yield line
            line, used = " " * (label + 2), label + 2
        line += f"  {click.style(sign, fg=color) if color else sign}{text}"
        used += 3 + len(text)
    yield line
