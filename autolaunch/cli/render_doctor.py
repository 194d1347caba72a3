"""An examination as a person reads it: each finding, why it matters, the command that mends it."""

from __future__ import annotations

import click

from autolaunch.cli.machine_line import machine_line
from autolaunch.cli.terminal import Terminal, clean, heading, plural, wrapped
from autolaunch.doctor.examine import Examination
from autolaunch.doctor.facts import Finding, Severity

_HEADS: dict[Severity, tuple[str, str | None]] = {
    "stops": ("stops a launch", "red"),
    "slows": ("slows or may stop one", "yellow"),
    "info": ("good to know", None),
}
_MARKS: dict[Severity, str] = {"stops": "✗", "slows": "•", "info": "·"}


def render_doctor(found: Examination, terminal: Terminal, *, verbose: bool = False) -> str:
    """Findings by what they do to a launch, the worst first."""
    parts = [heading(wrapped(clean(machine_line(found.hardware)), terminal))]
    for severity, (title, colour) in _HEADS.items():
        some = [each for each in found.findings if each.severity == severity]
        if some:
            lines = [click.style(title, fg=colour, bold=True)]
            parts.append("\n".join((*lines, *(_finding(each, terminal, colour, verbose=verbose) for each in some))))
    if found.unknown:
        lines = [
            wrapped(clean(f"{each.what}: {each.why}"), terminal, first="  ? ", rest="    ") for each in found.unknown
        ]
        parts.append("\n".join((click.style("not known", bold=True), *lines)))
    parts.append(_verdict(found))
    return "\n\n".join(parts)


def _finding(finding: Finding, terminal: Terminal, colour: str | None, *, verbose: bool) -> str:
    title = wrapped(clean(finding.title), terminal, first=f"  {_MARKS[finding.severity]} ", rest="    ")
    lines = [click.style(title, fg=colour), wrapped(clean(finding.why), terminal, first="    ")]
    if finding.command is not None:
        # A command is copied: it is never broken into lines.
        lines.append(click.style(f"      {clean(finding.command)}", bold=True))
    if verbose:
        figures = "".join(f" {name}={value}" for name, value in finding.numbers.items())
        lines.append(click.style(wrapped(f"{finding.code}{figures}", terminal, first="    "), dim=True))
    return "\n".join(lines)


def _verdict(found: Examination) -> str:
    stops = sum(each.severity == "stops" for each in found.findings)
    what = "a launch" if found.model is None else f"a launch of {clean(found.model)}"
    if not stops:
        return click.style(f"Nothing here would stop {what}.", fg="green")
    return click.style(f"{plural(stops, 'thing')} would stop {what} (exit code {found.exit_code}).", fg="red")
