"""``autolaunch bench``: how fast an endpoint is, beside what was foretold; and measurements between hosts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple, get_args

import click
import msgspec

from autolaunch.cli.options import HOW, SHOWN, WANTED, Command, Tokens, Whole, Word, choice, option
from autolaunch.cli.terminal import Terminal, clean, plural, write
from selector.errors import NotServing, UsageError
from selector.request import WORKLOADS, WorkloadName
from selector.values import Value

EXAMPLES = """\
  autolaunch bench                                what is kept up here, as it was planned
  autolaunch bench glm-4.6 --workload agent       by the figures of a workload
  autolaunch bench --input-tokens 2000 --output-tokens 200 --concurrency 16
  autolaunch bench --url http://host:8000/v1 --model glm-4.6 --api-key-file key
  autolaunch bench --export rows.jsonl            on the one host, then on another:
  autolaunch bench --import rows.jsonl
"""
#: At once, of an endpoint that no plan of ours is of.
_CONCURRENCY = 8


class Asked(Value, frozen=True, kw_only=True):
    """The command's options, by their names."""

    name: str | None = None
    workload: WorkloadName | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    concurrency: int | None = None
    requests: int | None = None
    seconds: int | None = None
    url: str | None = None
    model: str | None = None
    api_key_file: Path | None = None
    export: Path | None = None
    import_: Path | None = None
    as_json: bool = False
    verbose: bool = False


class _Target(NamedTuple):
    """What is measured. ``deployment`` and ``plan`` are of an endpoint of this host."""

    endpoint: Any
    deployment: str | None = None
    plan: Any = None


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("name", required=False)
@option(
    WANTED,
    "--workload",
    type=choice(get_args(WorkloadName)),
    metavar="NAME",
    help="chat, agent, long-context or batch.",
)
@option(WANTED, "--input-tokens", type=Tokens(), metavar="TOKENS", help="The length of a prompt.")
@option(WANTED, "--output-tokens", type=Tokens(), metavar="TOKENS", help="The length of an answer.")
@option(WANTED, "--concurrency", type=Whole(), metavar="N", help="Requests at once; the plan's own number otherwise.")
@option(WANTED, "--requests", type=Whole(), metavar="N", help="Requests that are sent together; four rounds otherwise.")
@option(WANTED, "--seconds", type=Whole(), metavar="N", help="How long each of the two measurements is at most (120).")
@option(
    HOW, "--url", type=Word(), metavar="URL", help="Another endpoint that speaks OpenAI's API; nothing is kept of it."
)
@option(HOW, "--model", type=Word(), metavar="NAME", help="The model's name there.")
@option(HOW, "--api-key-file", type=click.Path(path_type=Path), metavar="FILE", help="A file with the key of a client.")
@option(
    HOW, "--export", type=click.Path(path_type=Path), metavar="FILE", help="Write what was measured here; - prints it."
)
@option(
    HOW, "--import", "import_", type=click.Path(path_type=Path), metavar="FILE", help="Take what another host wrote."
)
@option(SHOWN, "--json", "as_json", is_flag=True, help="JSON on standard output (schema 1), and nothing else.")
@option(SHOWN, "--verbose", is_flag=True, help="Say more; on a fault of ours, where it happened.")
def bench(**given: Any) -> None:
    """Load the endpoint of NAME, and show what was foretold beside what was measured.

    Requests are sent one by one, then many at once, by guidellm, whose environment is made the first time. What is
    measured on this host is kept, and corrects its next plans. NAME is not needed where one deployment serves.
    """
    asked = msgspec.convert(given, Asked)
    if asked.export is not None or asked.import_ is not None:
        _exchange(asked, given)
    else:
        _measure(asked)


# --- measuring --------------------------------------------------------------------------------------


def _measure(asked: Asked) -> None:
    from autolaunch import api
    from autolaunch.bench.environment import guidellm
    from autolaunch.bench.kept import beside, keep
    from autolaunch.bench.run import bench as measured
    from autolaunch.cli.progress import Progress
    from autolaunch.cli.render_bench import render_bench

    target = _target(asked)
    load = _load(asked, target)
    terminal = Terminal.of(sys.stderr)
    with Progress(sys.stderr, terminal) as progress:
        tool = guidellm(api.home(), on_progress=progress.event)
        found = measured(target.endpoint, load, tool, on_event=progress.event)
    if target.plan is not None and target.deployment is not None:
        found = keep(beside(found, target.deployment, target.plan, load), target.plan)
    if asked.as_json:
        write(sys.stdout, found.to_json())
        return
    out = Terminal.of(sys.stdout)
    write(sys.stdout, render_bench(found, out), out)


def _target(asked: Asked) -> _Target:
    """The endpoint that was named, or the one of this host that serves.

    Raises:
        UsageError: options that contradict each other, or there are several.
        NotSteered: there is none.
        NotServing: it does not serve now.
    """
    from autolaunch.bench.endpoint import Endpoint, checked_url, read_key

    key = None if asked.api_key_file is None else read_key(asked.api_key_file.expanduser())
    if asked.url is not None:
        if asked.name is not None:
            raise UsageError(f"{asked.name} is of this host, and --url names another endpoint")
        if asked.model is None:
            raise UsageError("--url takes --model NAME, too", hint=f"curl {asked.url.rstrip('/')}/models lists them")
        return _Target(Endpoint(base_url=checked_url(asked.url), model=asked.model, key=key))
    if asked.model is not None:
        raise UsageError("--model is of an endpoint that --url names", hint=f"autolaunch bench {asked.model}")
    from autolaunch.cli.reach import holder_of, something
    from autolaunch.daemon.control.contract import SERVING

    everyone = something()
    name = asked.name
    if name is None:
        serving = [
            one.name for each in everyone.reached for one in each.deployments if one.phase in (*SERVING, "asleep")
        ]
        if len(serving) != 1:
            there = ", ".join(serving)
            if not serving:
                raise NotServing("nothing here serves yet", hint="autolaunch ps tells how far it is")
            raise UsageError(f"{len(serving)} deployments serve here: {there}", hint=f"autolaunch bench {serving[0]}")
        name = serving[0]
    client = holder_of(name, everyone).client
    found = client.deployment(name)
    if found.phase not in (*SERVING, "asleep") or found.url is None:
        raise NotServing(f"{found.name} is {found.phase}", hint=f"autolaunch wait {found.name} waits until it serves")
    endpoint = Endpoint(base_url=checked_url(found.url), model=found.name, key=key)
    return _Target(endpoint, found.name, client.plan(found.name))


def _load(asked: Asked, target: _Target) -> Any:
    """What was asked for; where nothing was, what the plan reckons with."""
    from autolaunch.bench.load import load_of

    named = None if asked.workload is None else WORKLOADS[asked.workload]
    chosen = None if target.plan is None else target.plan.chosen
    usual = WORKLOADS["chat"] if target.plan is None else target.plan.request
    source = named or usual
    concurrency = asked.concurrency or (None if named is None else named.concurrency)
    if concurrency is None:
        concurrency = _CONCURRENCY if chosen is None else chosen.speed.concurrency
    load = load_of(
        input_tokens=asked.input_tokens or source.input_tokens,
        output_tokens=asked.output_tokens or source.output_tokens,
        concurrency=concurrency,
        requests=asked.requests,
        seconds=asked.seconds,
    )
    if chosen is not None and load.input_tokens + load.output_tokens > chosen.limits.context_tokens:
        raise UsageError(
            f"a request of {load.input_tokens:,} + {load.output_tokens:,} tokens is longer than the context of "
            f"{target.deployment}, {chosen.limits.context_tokens:,}",
            hint="--input-tokens makes it shorter",
        )
    return load


# --- between hosts ----------------------------------------------------------------------------------


def _exchange(asked: Asked, given: dict[str, Any]) -> None:
    from autolaunch.bench.exchange import Exported, exported_lines, import_rows, write_rows

    alone = {"export", "import_", "as_json", "verbose"}
    if (asked.export is not None and asked.import_ is not None) or any(
        value is not None for name, value in given.items() if name not in alone
    ):
        raise UsageError("--export and --import stand alone: nothing is measured")
    if asked.export is not None:
        lines = exported_lines()
        if str(asked.export) == "-":
            if asked.as_json:
                raise UsageError("--export - prints rows, which are JSON, a line each")
            write(sys.stdout, "\n".join(lines), newline=bool(lines))
            return
        write_rows(asked.export.expanduser(), lines)
        told = f"{plural(len(lines), 'row')} in {clean(str(asked.export))}"
        _told(Exported(rows=len(lines), path=str(asked.export)), told, as_json=asked.as_json)
        return
    assert asked.import_ is not None  # noqa: S101 - the other of two; tells the type checker
    from autolaunch import api

    done = import_rows(asked.import_.expanduser(), api.probe())
    like = "none of them of" if not done.like_this else f"{done.like_this} of them of"
    _told(done, f"{plural(done.rows, 'row')} taken, {like} hardware like this host's", as_json=asked.as_json)


def _told(document: Value, text: str, *, as_json: bool) -> None:
    write(sys.stdout, msgspec.json.encode(document).decode() if as_json else text)
