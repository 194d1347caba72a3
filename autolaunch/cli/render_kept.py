"""What is kept up, as a person reads it."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from autolaunch.cli.render_measured import render_compared
from autolaunch.cli.render_plan import layout, short_layout
from autolaunch.cli.terminal import Terminal, clean, count, duration, gib, heading, plural, rate, table, wrapped
from autolaunch.daemon.control.contract import (
    ChosenDocument,
    DeploymentDocument,
    EventDocument,
    HostDocument,
    Phase,
    ReplicaDocument,
    StatusDocument,
)

_COLOURS: dict[Phase, str] = {
    "ready": "green",
    "degraded": "yellow",
    "failed": "red",
    "backing off": "yellow",
}
_LEVELS = {"error": "red", "warning": "yellow"}
#: The width of what stands before a colon of a deployment's page.
_LABEL = 12


def render_process(status: StatusDocument, now: datetime) -> str:
    """``daemon, process 4711, for 3 h 5 min; clients ask http://127.0.0.1:8000/v1``."""
    what = "daemon" if status.kind == "daemon" else "launch in the foreground"
    url = f"; clients ask {status.url}" if status.url is not None else ""
    return heading(f"{what}, process {status.pid}, for {_ago(status.started, now)}{url}")


def render_table(deployments: tuple[DeploymentDocument, ...], terminal: Terminal, now: datetime) -> str:
    """A row a replica, and below them what is to be said of each."""
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for each in (each for deployment in deployments for each in deployment.replicas):
        chosen = each.chosen
        rows.append(
            (
                clean(each.unit),
                each.phase,
                _ago(each.since, now),
                "" if chosen is None else f"{chosen.engine.name} {chosen.engine.version}",
                "" if chosen is None else (short_layout(chosen.parallel) or _single(chosen)),
                "" if each.requests is None else count(each.requests),
            )
        )
        detail = _detail(each, now)
        if detail:
            note = wrapped(detail, terminal, first=f"  {clean(each.unit)}: ", rest="    ")
            notes.append(click.style(note, fg=_COLOURS.get(each.phase)))
    head = ("name", "state", "since", "engine", "layout", "requests")
    columns = len(head) if any(row[-1] for row in rows) else len(head) - 1
    shown = table(
        head[:columns], [row[:columns] for row in rows], flex=(0, 3), right=(5,), width=terminal.width_columns
    )
    return "\n".join((shown, *notes))


def render_hosts(hosts: tuple[HostDocument, ...], terminal: Terminal, now: datetime) -> str:
    """A row a host that the gateway sends requests to, and below them why one is down."""
    rows: list[tuple[str, ...]] = [
        (
            clean(each.name),
            each.state,
            _ago(each.since, now),
            clean(
                ", ".join(one.name if one.state == "serving" else f"{one.name} ({one.state})" for one in each.models)
            ),
            count(each.requests),
        )
        for each in hosts
    ]
    notes = [
        click.style(wrapped(clean(each.fault), terminal, first=f"  {clean(each.name)}: ", rest="    "), fg="yellow")
        for each in hosts
        if each.fault is not None
    ]
    head = ("host", "state", "since", "models", "requests")
    return "\n".join((table(head, rows, flex=(0, 3), right=(4,), width=terminal.width_columns), *notes))


def render_daemon(status: StatusDocument, terminal: Terminal, now: datetime) -> str:
    """The daemon itself."""
    parts = [f"autolaunch {status.version}", render_process(status, now)]
    if status.configuration is not None:
        parts.append(f"  configuration {clean(status.configuration)}")
    if status.wrong is not None:
        told = f"the old configuration holds, the new one is wrong: {clean(status.wrong)}"
        parts.append(click.style(wrapped(told, terminal, first="  "), fg="red"))
    return "\n".join(parts)


def render_deployment(deployment: DeploymentDocument, terminal: Terminal, now: datetime) -> str:
    """Everything of one deployment."""
    parts = []
    for each in deployment.replicas:
        state = f"{each.phase} for {_ago(each.since, now)}"
        lines = [f"{heading(clean(each.unit))}  {click.style(state, fg=_COLOURS.get(each.phase))}"]
        model = f"{deployment.model} (deployed at run time)" if deployment.added else deployment.model
        for label, text in (("model", model), ("address", deployment.url), *_rows(each, now)):
            if text:
                first = f"  {label:<{_LABEL}}"
                lines += [wrapped(clean(line), terminal, first=first) for line in text.splitlines()[:1]]
                rest = " " * len(first)
                lines += [wrapped(clean(line), terminal, first=rest) for line in text.splitlines()[1:]]
        if each.measurements:
            lines += ["", render_compared(each.measurements, terminal)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def render_event(event: EventDocument) -> str:
    """One line: when, what, to what, and in words."""
    figures = " ".join(f"{name}={value}" for name, value in event.figures.items() if value is not None)
    name = f"{event.deployment} " if event.deployment else ""
    told = clean(f"{event.event} {name}{event.message}{f' ({figures})' if figures else ''}")
    when = click.style(event.time.astimezone().strftime("%Y-%m-%d %H:%M:%S"), dim=True)
    return f"{when} {click.style(told, fg=_LEVELS.get(event.level))}"


def now_utc() -> datetime:
    return datetime.now(UTC)


def _rows(each: ReplicaDocument, now: datetime) -> list[tuple[str, str | None]]:
    chosen, engine, fault = each.chosen, each.engine, each.fault
    rows: list[tuple[str, str | None]] = []
    if chosen is not None:
        limits = chosen.limits
        process = "" if engine is None else f", process {engine.pid} at {engine.address}"
        rows += [
            ("engine", f"{chosen.engine.name} {chosen.engine.version}{process}"),
            ("checkpoint", f"{chosen.checkpoint.repo} ({chosen.checkpoint.quantization})"),
            ("layout", layout(chosen.parallel, chosen.engine.name, limits)),
            (
                "limits",
                (
                    f"context {count(limits.context_tokens)}, {plural(limits.max_sequences, 'request')} at once, "
                    f"KV cache {limits.kv_cache_dtype}"
                ),
            ),
            ("foretold", _foretold(chosen)),
        ]
    rows += [
        ("measured", _measured(each.measured)),
        ("load", None if each.load is None else _load(each)),
        ("requests", None if each.requests is None else f"{count(each.requests)} under way"),
        ("changed", "\n".join(each.changes)),
    ]
    if fault is not None:
        rows += [("fault" if each.phase not in ("ready", "degraded") else "last fault", fault.message)]
        rows += [("", fault.hint), ("last lines", "\n".join(fault.lines[-12:]))]
    tries = plural(each.failures, "failure") if each.failures else ""
    if each.next_try_at is not None:
        tries = ", ".join(filter(None, (tries, f"tried again {until(each.next_try_at, now)}")))
    rows += [("tries", tries), ("log", each.log_path)]
    return rows


def _single(chosen: ChosenDocument) -> str:
    devices = chosen.parallel.devices
    return f"device {devices[0]}" if devices else "CPU"


def _foretold(chosen: ChosenDocument) -> str:
    each, speed = chosen.memory.per_device, chosen.speed
    where = "a device" if chosen.parallel.devices else "of main memory"
    return (
        f"{gib(each.weights_bytes)} weights and {gib(each.kv_cache_bytes)} KV cache {where}; "
        f"{rate(speed.decode_tokens_per_second)} tokens/s for one request, "
        f"{rate(speed.throughput_tokens_per_second)} for {speed.concurrency}"
    )


def _measured(measured: dict[str, int | float]) -> str:
    parts = []
    for name, value in measured.items():
        title = name.rpartition("_")[0].replace("_", " ").replace("kv ", "KV ")
        if name.endswith("_bytes"):
            parts.append(f"{title} {gib(int(value))}")
        elif name.endswith("_seconds"):
            parts.append(f"{title} {duration(value)}")
        elif name.endswith("_tokens"):
            parts.append(f"{title} {count(value)} tokens")
    return ", ".join(parts)


def _detail(each: ReplicaDocument, now: datetime) -> str:
    """Where it is on its way, or why it is on none."""
    if each.load is not None:
        return _load(each)
    if each.fault is None or each.phase not in ("failed", "backing off"):
        return ""
    again = "" if each.next_try_at is None else f"; tried again {until(each.next_try_at, now)}"
    return f"{clean(each.fault.message)}{again}"


def _load(each: ReplicaDocument) -> str:
    if each.load is None:
        return ""
    known = "" if each.load.fraction is None else f" ({each.load.fraction:.0%})"
    return f"{clean(each.load.message)}{known}"


def _ago(then: datetime, now: datetime) -> str:
    return duration(max(0.0, (now - then).total_seconds()))


def until(then: datetime, now: datetime) -> str:
    """``in 4 s``, or ``now``."""
    seconds = (then - now).total_seconds()
    return f"in {duration(seconds)}" if seconds > 0 else "now"
