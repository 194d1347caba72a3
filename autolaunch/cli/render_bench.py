"""A benchmark as a person reads it."""

from __future__ import annotations

from autolaunch.bench.report import Stretch
from autolaunch.bench.run import Bench
from autolaunch.cli.terminal import Terminal, clean, count, duration, heading, plural, rate, table, wrapped
from autolaunch.comparison import Comparison


def render_bench(found: Bench, terminal: Terminal) -> str:
    """The measured figures, those that were foretold beside them, and what was sent."""
    load = found.load
    what = "" if found.engine is None else f": {clean(found.checkpoint or '')} on {clean(found.engine)}"
    parts = [heading(wrapped(f"{clean(found.model)} at {clean(found.url)}{what}", terminal))]
    parts += [
        _sent("one by one", found.alone, terminal),
        _sent(f"{load.concurrency} at once", found.together, terminal),
    ]
    if found.figures:
        rows: list[tuple[str, ...]] = [
            (each.name, _figure(each, each.predicted), _figure(each, each.measured), _ratio(each))
            for each in found.figures
        ]
        shown = table(("", "foretold", "measured", ""), rows, right=(1, 2, 3), flex=0, width=terminal.width_columns)
    else:
        shown = table(("", "measured"), _bare(found), right=(1,), flex=0, width=terminal.width_columns)
    parts += ["", shown, ""]
    if found.kept:
        parts.append("  kept: the next plans of this host count with it")
    elif found.why_not is not None:
        parts.append(wrapped(f"not kept: {clean(found.why_not)}", terminal, first="  "))
    elif found.deployment is None:
        parts.append("  not kept: no plan of this host is of this endpoint")
    return "\n".join(parts).rstrip()


def _sent(how: str, stretch: Stretch, terminal: Terminal) -> str:
    tokens = f"{count(stretch.input_tokens or 0)} + {count(stretch.output_tokens or 0)} tokens each"
    text = f"{how}: {plural(stretch.requests, 'request')}, {tokens}, in {duration(stretch.seconds)}"
    if stretch.errors:
        text += f"; {stretch.errors} failed: {clean(stretch.error or 'nobody says why')}"
    if stretch.incomplete:
        text += f"; {stretch.incomplete} were under way when the time was over"
    return wrapped(text, terminal, first="  ", rest="    ")


def _bare(found: Bench) -> list[tuple[str, ...]]:
    seen = found.measured
    together = f"{found.load.concurrency} requests"
    rows = (
        ("one request", seen.decode_tokens_per_second, _speed),
        (together, seen.throughput_tokens_per_second, _speed),
        ("first token", seen.time_to_first_token_seconds, duration),
        ("prompt", seen.prefill_tokens_per_second, _speed),
    )
    return [(name, show(value)) for name, value, show in rows if value is not None]


def _figure(one: Comparison, value: float) -> str:
    return duration(value) if one.unit == "seconds" else _speed(value)


def _speed(value: float) -> str:
    return f"{rate(value)} tok/s"


def _ratio(one: Comparison) -> str:
    if not one.predicted:
        return ""
    ratio = one.measured / one.predicted
    return f"{ratio:.2f}×" if ratio >= 0.1 else f"{ratio:.1g}×"
