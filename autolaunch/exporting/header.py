"""What stands at the top of every artefact: what it is, what was predicted, how it is run, what it does not do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import wrap

from autolaunch import __version__
from autolaunch.exporting.work import Work
from selector.explain import layout

#: So wide that a comment's line is at most 100 long.
WIDTH = 98

#: What of autolaunch's own work nobody does for an artefact.
NOT_DONE = (
    "It does not try again with less memory when the engine runs out of it, end an engine that answers /health and "
    "generates nothing, keep keys of clients apart, or compare what was predicted with what is measured: autolaunch "
    "does, where it serves itself."
)


def header(work: Work, what: str, how: Iterable[str], told: Iterable[str] = ()) -> str:
    """The comment, every line behind ``#``. Lines of ``how`` that begin with two spaces stand as they are."""
    lines = [f"{what} {work.name}. Made by autolaunch {__version__}; it runs without it.", ""]
    lines += _summary(work)
    lines += ["", "How it is run:"]
    for each in how:
        lines += [each] if each.startswith("  ") else wrap(each, WIDTH)
    lines.append("")
    for each in (*told, *_said_of_engine(work), NOT_DONE):
        lines += wrap(each, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {_printable(line)}".rstrip() + "\n" for line in lines)


def _printable(line: str) -> str:
    """A line that stays one, whatever a name in it holds."""
    return "".join(each if each.isprintable() else "?" for each in line)


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def _summary(work: Work) -> Iterator[str]:
    candidate = work.candidate
    checkpoint, memory, speed, limits = candidate.checkpoint, candidate.memory, candidate.speed, candidate.limits
    yield f"Model       {work.model.title}, {checkpoint.repo} ({checkpoint.quantization}), {_revision(work)}"
    yield f"Engine      {work.facts.title} {candidate.engine.version}, {layout(candidate)}"
    yield f"Machine     {_machine(work)}"
    device = memory.per_device
    of = "of memory" if work.kind == "cpu" else "a device"
    yield (
        f"Memory      {_gib(device.weights_bytes)} weights and {_gib(device.kv_cache_bytes)} KV cache in "
        f"{_gib(device.total_bytes)} {of} ({memory.basis})"
    )
    yield f"Context     {limits.context_tokens:,} tokens a request, {memory.kv_cache_tokens:,} in the KV cache"
    if speed.decode_tokens_per_second is not None:
        together = speed.throughput_tokens_per_second
        more = "" if together is None else f", {together:,.0f} with {speed.concurrency} requests at a time"
        yield f"Speed       {speed.decode_tokens_per_second:,.0f} tokens/s for one request{more} ({speed.basis})"
    if speed.load_seconds is not None:
        yield f"Load        {speed.load_seconds:,.0f} s predicted; {work.start_seconds // 60} min are allowed"


def _revision(work: Work) -> str:
    if work.options.model_path is not None:
        return "from a folder"
    revision = work.candidate.checkpoint.revision
    return f"revision {revision}" if revision else "its newest revision (--revision pins one)"


def _machine(work: Work) -> str:
    devices = work.devices(1)
    if not devices:
        return "the CPU"
    total = work.candidate.parallel.ranks * work.replicas
    nodes = work.candidate.parallel.nodes
    return f"{total} x {devices[0].name or 'device'}" + (f" on {nodes * work.replicas} machines" if nodes > 1 else "")


def _said_of_engine(work: Work) -> Iterator[str]:
    if not work.checks_key:
        yield (
            f"{work.facts.title} asks nobody for a key: whoever reaches its port may use it, and a page in a browser "
            "on this machine reaches the loopback. autolaunch puts a check before it."
        )
    if work.candidate.parallel.nodes > 1:
        yield (
            "vLLM's processes on several machines talk over ports that ask nobody for a key: they belong into a "
            "network of their own. Ray, which the plan's own command names, is not needed."
        )
    if work.replicas > 1 and work.to != "kubernetes":
        yield (
            f"Its {work.replicas} replicas have a port each; nothing here divides requests among them. Put a load "
            "balancer before them (least connections), or let autolaunch serve, which does."
        )
