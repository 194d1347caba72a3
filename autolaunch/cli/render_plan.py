"""A plan as a person reads it: the choice, its memory, its command, what came next, what was refused."""

from __future__ import annotations

import shlex

import click

from autolaunch.cli.machine_line import machine_line, troubles
from autolaunch.cli.render_memory import render_memory
from autolaunch.cli.terminal import (
    Terminal,
    clean,
    compact,
    count,
    duration,
    gib,
    heading,
    plural,
    ranges,
    rate,
    shortened,
    table,
    wrapped,
)
from selector.contract import Advice, Candidate, Checkpoint, Command, LaunchPlan, Limits, Note, Parallel, Rejection
from selector.notes import set_aside
from selector.plan import devices_short, names_a_node
from selector.score import download_seconds

_LABEL = 11
#: Room for the longest severity and a space.
_NOTE = 12
_SEVERITIES = ("crash", "oom", "silent", "performance", "info")
_COLORS = {"crash": "red", "oom": "red", "silent": "yellow", "performance": "yellow", "info": None}
_SHOWN_REFUSALS = 6


def render_plan(plan: LaunchPlan, terminal: Terminal, *, show_all: bool = False, verbose: bool = False) -> str:
    """The whole plan. Sections are a blank line apart; nothing is wider than ``terminal.width_columns``."""
    parts = [render_head(plan, terminal)]
    if plan.chosen is None:
        parts += _infeasible(plan, terminal)
    else:
        parts.append(render_choice(plan.chosen, terminal))
        parts.append(render_memory(plan, plan.chosen, terminal))
        if plan.chosen.command is not None:
            parts.append(f"{heading('Command')}\n{render_command(plan.chosen.command, terminal)}")
        parts += _notes(plan.chosen.notes, terminal)
        parts += _alternatives(plan, terminal, show_all=show_all)
    parts += _refusals(plan.rejected, terminal, show_all=show_all)
    if plan.chosen is not None:
        parts += render_advice("Worth knowing", plan.advice, terminal)
    if verbose:
        sentences = (wrapped(clean(line), terminal, first="  ", rest="    ") for line in plan.explain().splitlines())
        parts.append("\n".join((heading("In words"), *sentences)))
    return "\n\n".join(parts)


def render_head(plan: LaunchPlan, terminal: Terminal) -> str:
    """The machine, or that nothing fits it; what could not be asked; what was pinned."""
    if plan.chosen is None:
        machine = clean(machine_line(plan.hardware))
        told = f"No plan for {plan.model} fits this machine."
        lines = [click.style(told, fg="red", bold=True), wrapped(f"here is {machine}", terminal, first="  ")]
    else:
        lines = [render_machine(plan, terminal)]
    if plan.hardware.nodes > 1:
        from autolaunch.cli.render_probe import network_between

        lines.append(wrapped(network_between(plan.hardware), terminal, first="  ", rest="  "))
    lines += [click.style(wrapped(each, terminal, first="  "), fg="yellow") for each in troubles(plan.hardware)]
    if plan.request.pinned:
        pinned = ", ".join(f"{name} {_pin(value)}" for name, value in sorted(plan.request.pinned.items()))
        lines.append(wrapped(f"pinned: {clean(pinned)}", terminal, first="  "))
    return "\n".join(lines)


def render_machine(plan: LaunchPlan, terminal: Terminal) -> str:
    """``glm-4.6 on 8 × NVIDIA H200 (140.4 GiB each)``, in as many lines as it takes."""
    line = wrapped(f"{plan.model} on {clean(machine_line(plan.hardware))}", terminal, rest="  ")
    return click.style(plan.model, bold=True) + line.removeprefix(plan.model)


def _pin(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return (",".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


# --- the choice -------------------------------------------------------------------------------------


def layout(parallel: Parallel, engine: str, limits: Limits) -> str:
    """The layout in words, with its devices and what lies in main memory beside them."""
    if not parallel.devices:
        return "on the CPU"
    parts = []
    if parallel.tensor > 1:
        parts.append(f"tensor parallel {parallel.tensor}")
    if parallel.pipeline > 1:
        staged = engine in ("vllm", "sglang")
        parts.append(f"{parallel.pipeline} pipeline stages" if staged else f"layers over {parallel.pipeline} devices")
    if parallel.expert:
        parts.append("expert parallel")
    if parallel.data > 1:
        parts.append(f"{parallel.data} replicas")
    if parallel.nodes > 1:
        parts.append(f"{parallel.nodes} nodes a replica")
    where = f"device{'s' if len(parallel.devices) > 1 else ''} {ranges(parallel.devices)}"
    return ", ".join((*parts, where, *set_aside(limits)))


def short_layout(parallel: Parallel | None) -> str:
    """The layout in a table: ``TP4 PP2 EP ×2``; nothing for one device, which needs none."""
    if parallel is None:
        return ""
    parts = [f"TP{parallel.tensor}"] if parallel.tensor > 1 else []
    parts += [f"PP{parallel.pipeline}"] if parallel.pipeline > 1 else []
    parts += ["EP"] if parallel.expert else []
    parts += [f"×{parallel.data}"] if parallel.data > 1 else []
    return " ".join(parts)


def render_choice(chosen: Candidate, terminal: Terminal) -> str:
    """Checkpoint, engine, layout, context, speed: a line or two each."""
    checkpoint, limits, speed = chosen.checkpoint, chosen.limits, chosen.speed
    revision = f" at {checkpoint.revision}" if checkpoint.revision else ""
    size = gib(checkpoint.download_bytes) if checkpoint.download_bytes else "generated here"
    engine = f"{chosen.engine.name} {chosen.engine.version}"
    if chosen.engine.package != chosen.engine.name:
        engine += f" ({chosen.engine.package})"
    extras = [] if limits.speculative == "off" else [f"speculative {limits.speculative}"]
    extras += ["no graph capture"] if limits.eager else []
    cached = count(chosen.memory.kv_cache_tokens)
    each = " a replica" if chosen.parallel.data > 1 else ""
    rows = [
        ("checkpoint", f"{checkpoint.repo}{revision}, {checkpoint.quantization}, {size}"),
        ("engine", ", ".join([engine, "installed" if chosen.engine.installed else "not installed yet", *extras])),
        ("layout", layout(chosen.parallel, chosen.engine.name, limits)),
        (
            "context",
            f"{count(limits.context_tokens)} tokens a request; {limits.kv_cache_dtype} KV cache of {cached}{each}",
        ),
        ("sequences", f"{count(limits.max_sequences)} at once{each}"),
        ("speed", _speed(chosen)),
    ]
    if speed.load_seconds is not None:
        load_seconds = round(speed.load_seconds, -1) if speed.load_seconds >= 60 else speed.load_seconds
        rows.append(("start", f"about {duration(load_seconds)} to load, {_weights(checkpoint)}"))
    return "\n".join(
        wrapped(clean(text), terminal, first=f"  {name:<{_LABEL}}", rest=" " * (_LABEL + 2)) for name, text in rows
    )


def _weights(checkpoint: Checkpoint) -> str:
    """Whether they are here, or how long they take to come; of a machine that nobody looked at only the latter."""
    if checkpoint.local:
        return "the weights are here"
    seconds = download_seconds(checkpoint)
    fetched = duration(round(seconds / 60) * 60 if seconds >= 60 else seconds)
    return "once the weights are here" + (f" ({fetched} at 1 Gbit/s)" if seconds else "")


def _speed(chosen: Candidate) -> str:
    speed = chosen.speed
    if speed.decode_tokens_per_second is None:
        return "unknown: nobody published this accelerator's figures"
    text = f"about {rate(speed.decode_tokens_per_second)} tokens/s for one request"
    if speed.throughput_tokens_per_second is not None and speed.concurrency > 1:
        text += f", {rate(speed.throughput_tokens_per_second)} with {count(speed.concurrency)} at once"
    if speed.time_to_first_token_seconds is not None:
        text += f"; first token after {duration(speed.time_to_first_token_seconds)}"
    return f"{text} ({speed.basis})"


# --- command and notes ------------------------------------------------------------------------------


def render_command(command: Command, terminal: Terminal) -> str:
    """The command as it can be pasted: an option and its value stay on one line."""
    groups: list[str] = [f"{name}={shlex.quote(value)}" for name, value in sorted(command.env.items())]
    program = len(groups)
    for token in command.argv:
        starts = token.startswith("-") or len(groups) <= program
        if starts and not (len(groups) == program + 1 and groups[-1].endswith(("python", "python3"))):
            groups.append(shlex.quote(token))
        else:
            groups[-1] += f" {shlex.quote(token)}"
    lines: list[str] = []
    for group in groups:
        indent = "  " if not lines else "    "
        if lines and len(lines[-1]) + 1 + len(group) + 2 <= terminal.width_columns:
            lines[-1] += f" {group}"
        else:
            lines.append(f"{indent}{group}")
    return clean(" \\\n".join(lines))


def _notes(notes: tuple[Note, ...], terminal: Terminal) -> list[str]:
    if not notes:
        return []
    lines = [heading("Notes")]
    for note in sorted(notes, key=lambda note: _SEVERITIES.index(note.severity)):
        text = wrapped(clean(note.message), terminal, first=f"  {note.severity:<{_NOTE}}", rest=" " * (_NOTE + 2))
        color = _COLORS[note.severity]
        lines.append(click.style(text, fg=color) if color else text)
    return ["\n".join(lines)]


# --- the others -------------------------------------------------------------------------------------


def _alternatives(plan: LaunchPlan, terminal: Terminal, *, show_all: bool) -> list[str]:
    others = [each for each in plan.alternatives if plan.chosen is None or each.rank != plan.chosen.rank]
    if not others:
        return []
    shown = others if show_all else others[:5]
    # Where there is room the whole name; else what tells these apart, which the family's own name says.
    wide = terminal.width_columns >= 110
    rows: list[tuple[str, ...]] = [
        (
            str(each.rank),
            _checkpoint(each, wide=wide),
            each.engine.name,
            (short_layout(each.parallel) or ("1 GPU" if each.parallel.devices else "CPU"))
            + (" + RAM" if each.limits.cpu_expert_layers else ""),
            compact(each.limits.context_tokens),
            rate(each.speed.decode_tokens_per_second),
            rate(each.speed.throughput_tokens_per_second),
            f"{each.score:.3f}",
        )
        for each in ((plan.chosen, *shown) if plan.chosen is not None else tuple(shown))
    ]
    head = ("#", "checkpoint", "engine", "layout", "context", "tok/s", "all", "score")
    title = heading("Ranked") + f"  for {plan.request.objective}; tok/s of one request, and of all at once"
    body = table(head, rows, right=(0, 4, 5, 6, 7), flex=1, width=terminal.width_columns)
    left = len(others) - len(shown)
    more = f"\n  and {left:,} more: --all lists them" if left else ""
    lacks = [
        wrapped(f"#{each.rank} {clean(note.message)}.", terminal, first="  ", rest="    ")
        for each in shown
        for note in each.notes
        if note.code == "second"
    ]
    return ["\n".join((f"{title}\n{body}{more}", *lacks))]


def _checkpoint(candidate: Candidate, *, wide: bool) -> str:
    checkpoint = candidate.checkpoint
    name = checkpoint.repo if wide else checkpoint.repo.rpartition("/")[2]
    return f"{name} {checkpoint.quantization}" if wide or checkpoint.file_prefix is not None else name


def _refusals(rejected: tuple[Rejection, ...], terminal: Terminal, *, show_all: bool) -> list[str]:
    """Grouped by code, each with its nearest refusal; ``show_all`` gives every one."""
    if not rejected:
        return []
    lines = [heading("Refused") + f"  {plural(len(rejected), 'combination')}"]
    if show_all:
        lines += [wrapped(f"{each.code}: {_refusal(each)}", terminal, first="  ", rest="    ") for each in rejected]
        return ["\n".join(lines)]
    groups: dict[str, list[Rejection]] = {}
    for each in rejected:
        groups.setdefault(each.code, []).append(each)
    ordered = sorted(groups.items(), key=lambda item: (shortage(nearest(item[1])), -len(item[1]), item[0]))
    for code, members in ordered[:_SHOWN_REFUSALS]:
        number = f"{len(members)} × " if len(members) > 1 else ""
        lines.append(wrapped(f"{number}{code}: {_refusal(nearest(members))}", terminal, first="  ", rest="    "))
    left = sum(len(members) for _, members in ordered[_SHOWN_REFUSALS:])
    if left:
        lines.append(f"  and {left} more: --all lists them")
    return ["\n".join(lines)]


def _refusal(each: Rejection) -> str:
    place = " ".join(part for part in (each.engine, short_layout(each.parallel)) if part)
    return clean(f"{each.repo} ({each.quantization}) with {place}: {each.message}")


def shortage(rejection: Rejection) -> float:
    """How many times the need is what there is, of memory before devices; infinite where that is not the matter.

    What was tried here and failed fits by the estimate: nothing comes nearer.
    """
    if rejection.code == "learned.failed":
        return 0.0
    needed, usable = rejection.numbers.get("needed_bytes"), rejection.numbers.get("usable_bytes")
    return needed / usable if needed and usable else devices_short(rejection)


def nearest(rejected: list[Rejection]) -> Rejection:
    """The refusal that lacks least; the first of equals."""
    return min(rejected, key=shortage)


# --- nothing fits -----------------------------------------------------------------------------------


def _infeasible(plan: LaunchPlan, terminal: Terminal) -> list[str]:
    parts = nearest_refusal(plan, terminal)
    parts += render_advice("What would make it fit here", changes(plan), terminal)
    parts += render_machines(plan, terminal)
    return [*parts, *_miniature(plan)]


def nearest_refusal(plan: LaunchPlan, terminal: Terminal) -> list[str]:
    """What comes nearest of all that was refused, if anything was; of several nodes also which of them lacks what."""
    if not plan.rejected:
        return []
    found = nearest(list(plan.rejected))
    lines = [heading("What comes nearest"), wrapped(_refusal(found), terminal, first="  ")]
    named = [each for each in plan.rejected if names_a_node(each)]
    if named and not names_a_node(found):
        lines.append(wrapped(f"over several nodes: {_refusal(nearest(named))}", terminal, first="  "))
    return ["\n".join(lines)]


def _miniature(plan: LaunchPlan) -> list[str]:
    if plan.model in ("glm-tiny", "glm-tiny-v"):
        return []
    return [f"  {click.style('autolaunch glm-tiny', bold=True)} proves this stack on the machine you have."]


def changes(plan: LaunchPlan) -> tuple[Advice, ...]:
    """The advice that starts from what is here."""
    return tuple(each for each in plan.advice if not _names_a_machine(each))


def _names_a_machine(advice: Advice) -> bool:
    """Another machine that serves the model; not what more devices would hold."""
    return advice.kind == "hardware" and "requests" not in advice.numbers


def render_machines(plan: LaunchPlan, terminal: Terminal) -> list[str]:
    """The machines that were advised, and one command for all of them."""
    machines = tuple(each for each in plan.advice if _names_a_machine(each))
    if not machines:
        return []
    together = plan.request.concurrency
    title = "The smallest machines that serve it"
    lines = [heading(title if together is None else f"{title}, {together:,} requests at once")]
    lines += [wrapped(clean(each.message), terminal, first="  • ", rest="    ") for each in machines]
    lines += [_command(machines[0].command)] if machines[0].command is not None else []
    return ["\n".join(lines)]


def render_advice(title: str, advice: tuple[Advice, ...], terminal: Terminal) -> list[str]:
    """Each with the command that can be typed, below it."""
    if not advice:
        return []
    lines = [heading(title)]
    for each in advice:
        lines.append(wrapped(clean(each.message), terminal, first="  • ", rest="    "))
        if each.command is not None:
            lines.append(_command(each.command))
    return ["\n".join(lines)]


def _command(command: str) -> str:
    return click.style(f"      {clean(shortened(command, 200))}", dim=True)
