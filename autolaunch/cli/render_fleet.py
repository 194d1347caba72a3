"""A fleet's plan as a person reads it: by deployment, by kind of host and, where that is asked for, host by host."""

from __future__ import annotations

import click

from autolaunch.cli.terminal import Terminal, clean, count, heading, plural, ranges, rate, table, wrapped
from selector.fleet.contract import FleetPlan, Replica, Served
from selector.fleet.explain import quality


def render_fleet(plan: FleetPlan, terminal: Terminal, *, show_all: bool = False, verbose: bool = False) -> str:
    """The whole plan. Sections are a blank line apart; no table is wider than ``terminal.width_columns``."""
    parts = [_head(plan, terminal), _deployments(plan, terminal)]
    if plan.replicas:
        parts.append(_replicas(plan, terminal))
    parts.append(_hardware(plan, terminal))
    parts += [*_less_accurate(plan, terminal), *_unmet(plan, terminal)]
    if show_all and plan.placements:
        parts.append(_hosts(plan, terminal))
    if verbose:
        sentences = (wrapped(clean(line), terminal, first="  ", rest="    ") for line in plan.explain().splitlines())
        parts.append("\n".join((heading("In words"), *sentences)))
    return "\n\n".join(parts)


def _head(plan: FleetPlan, terminal: Terminal) -> str:
    used = plan.devices - sum(each.idle_devices for each in plan.hardware)
    title = f"{plural(plan.hosts, 'host')}, {count(used)} of {plural(plan.devices, 'device')} in use"
    what = (
        "the most output" if plan.objective == "throughput" else "the replicas that are wanted, on the fewest devices"
    )
    told = f"for {what}: {_value(plan)}. {quality(plan)}"
    return "\n".join((click.style(title, bold=True), wrapped(told, terminal, first="  ")))


def _value(plan: FleetPlan) -> str:
    if plan.objective == "replicas":
        return plural(round(plan.value), "device")
    weighted = "weighted " if any(each.weight != 1 for each in plan.deployments) else ""
    return f"{weighted}{rate(plan.value)} tokens/s"


def _deployments(plan: FleetPlan, terminal: Terminal) -> str:
    weighted = any(each.weight != 1 for each in plan.deployments)
    rows: list[tuple[str, ...]] = [
        (
            clean(each.name),
            each.model,
            *((f"{each.weight:g}",) if weighted else ()),
            count(each.replicas),
            _asked(each),
            count(each.devices),
            rate(each.throughput_tokens_per_second),
        )
        for each in plan.deployments
    ]
    head = ("deployment", "model", *(("weight",) if weighted else ()), "replicas", "asked", "devices", "tok/s")
    right = tuple(range(2, len(head)))
    body = table(head, rows, right=right, flex=(0, 1), width=terminal.width_columns)
    return f"{heading('Deployments')}\n{body}"


def _asked(each: Served) -> str:
    """``2+``, ``2-8``, ``4``: how many replicas were asked for."""
    least, most = each.minimum_replicas, each.maximum_replicas
    if most is None:
        return f"{least:,}+"
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"


def _replicas(plan: FleetPlan, terminal: Terminal) -> str:
    rows: list[tuple[str, ...]] = [
        (
            clean(each.deployment),
            clean(each.hardware) + (f" ×{each.hosts}" if each.hosts > 1 else ""),
            count(each.replicas),
            _layout(each) or ("1 GPU" if each.devices else "CPU"),
            clean(each.repo.rpartition("/")[2]),
            each.engine,
            rate(each.throughput_tokens_per_second),
        )
        for each in plan.replicas
    ]
    head = ("deployment", "host", "times", "layout", "weights", "engine", "tok/s")
    body = table(head, rows, right=(2, 6), flex=(0, 1, 4), width=terminal.width_columns)
    return f"{heading('Replicas')}  how often each stands; tok/s of one\n{body}"


def _layout(each: Replica) -> str:
    """``TP4 PP2 EP``; nothing for one device, which needs none."""
    parts = [f"TP{each.tensor}"] if each.tensor > 1 else []
    parts += [f"PP{each.pipeline}"] if each.pipeline > 1 else []
    return " ".join((*parts, "EP") if each.expert else parts)


def _hardware(plan: FleetPlan, terminal: Terminal) -> str:
    rows: list[tuple[str, ...]] = [
        (
            clean(each.hardware),
            clean(", ".join(each.groups)) if len(each.groups) <= 4 else plural(len(each.groups), "group"),
            count(each.hosts),
            count(each.devices),
            count(each.idle_devices) if each.devices else "",
            count(each.idle_hosts),
        )
        for each in plan.hardware
    ]
    head = ("host", "groups", "hosts", "devices", "idle", "idle hosts")
    body = table(head, rows, right=(2, 3, 4, 5), flex=(0, 1), width=terminal.width_columns)
    return f"{heading('Hosts')}  idle are devices, and hosts that hold nothing\n{body}"


def _less_accurate(plan: FleetPlan, terminal: Terminal) -> list[str]:
    told = [f"{each.name}: {each.less_accurate}" for each in plan.deployments if each.less_accurate is not None]
    lines = [wrapped(clean(each), terminal, first="  ", rest="    ") for each in told]
    return ["\n".join((heading("Weights less accurate than others"), *lines))] if told else []


def _unmet(plan: FleetPlan, terminal: Terminal) -> list[str]:
    lacking = [each for each in plan.deployments if each.reason is not None]
    if not lacking:
        return []
    lines = [click.style("Fewer than the minimum", fg="red", bold=True)]
    for each in lacking:
        told = f"{each.name}: {each.replicas:,} of {each.minimum_replicas:,}: {each.reason}"
        lines.append(wrapped(clean(told), terminal, first="  • ", rest="    "))
    return ["\n".join(lines)]


def _hosts(plan: FleetPlan, terminal: Terminal) -> str:
    """Every host that holds something, a line a replica."""
    rows = []
    for placement in plan.placements:
        each = plan.replicas[placement.replica]
        for hosts in placement.on:
            for place, host in enumerate(hosts):
                part = f", part {place + 1} of {len(hosts)}" if len(hosts) > 1 else ""
                rows.append((host, placement.devices, f"{each.deployment}{part}", _layout(each), each.repo))
    rows.sort(key=lambda row: (_natural(row[0]), row[1]))
    shown: list[tuple[str, ...]] = [
        (clean(host), ranges(devices) or "CPU", clean(deployment), layout, clean(repo.rpartition("/")[2]))
        for host, devices, deployment, layout, repo in rows
    ]
    head = ("host", "devices", "deployment", "layout", "weights")
    return f"{heading('Host by host')}\n{table(head, shown, flex=(0, 2, 4), width=terminal.width_columns)}"


def _natural(name: str) -> tuple[str, int, str]:
    """``rack/10`` after ``rack/9``."""
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    return stem, int(digits[:18] or 0), name
