"""``autolaunch MODEL``: probe, plan, prepare, start, prove that it answers; then serve, or ask once; then stop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from autolaunch.cli.asked import Asked
from autolaunch.cli.options import (
    HOW,
    Command,
    Port,
    Word,
    choice,
    hardware_option,
    nodes_option,
    option,
    pin_options,
    shown_options,
    wanted_options,
)
from autolaunch.cli.plan import planned, refuse_engine, refuse_unasked, show_plan
from autolaunch.cli.running import How, run_launch
from autolaunch.cli.terminal import Terminal, write
from autolaunch.given import address, is_loopback
from selector.contract import LaunchPlan
from selector.errors import NoFeasiblePlan, UsageError

EXAMPLES = """\
  autolaunch glm-tiny --ask "hello"          prove this machine with a miniature
  autolaunch glm-4.6                         the best that fits; Ctrl-C stops
  autolaunch glm-4.6 --dry-run               the plan alone
  autolaunch glm-4.6 --rehearse              prove the plan before any download
  autolaunch glm-4.6 --lock glm.lock         keep this very launch; then, again:
  autolaunch --lock glm.lock
  autolaunch glm-4.6 --nodes auto            over the nodes of a Ray cluster
  autolaunch glm-4.5v --objective latency --context 32k --port 8080
  autolaunch glm-4.6 --model-path /models/GLM-4.6-FP8 --repo zai-org/GLM-4.6-FP8
  autolaunch glm-tiny -- --log-level DEBUG   options for the engine itself
"""


class Launch(Command):
    """Its help speaks of ``autolaunch MODEL``: nobody types the command's own name."""

    typed_by_name = False

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        # What stands behind -- is the engine's, also where click would find a --help of ours in it.
        ours, engine = args, None
        if "--" in args:
            cut = args.index("--")
            ours, engine = args[:cut], args[cut + 1 :]
        # Bare, it must not take the model's name for its mode.
        ours = ["--rehearse=miniature" if each == "--rehearse" else each for each in ours]
        extra["obj"] = tuple(engine or ())
        return super().make_context(info_name if self.typed_by_name else "", ours, parent, **extra)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click passes it)
        formatter.write("Usage: autolaunch MODEL [OPTIONS] [-- ENGINE OPTIONS]\n")


@click.command(cls=Launch, examples=EXAMPLES)
@click.argument("model", required=False)
@wanted_options
@pin_options
@option(
    HOW,
    "--model-path",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The checkpoint's files, when they are here already; nothing is fetched.",
)
@option(HOW, "--offline", is_flag=True, help="Fetch no weights; use what the hub's cache holds.")
@option(
    HOW,
    "--host",
    type=Word(),
    default="127.0.0.1",
    metavar="ADDRESS",
    help="Where clients reach it (127.0.0.1, this machine alone); 0.0.0.0 is every address, and takes --api-key-file.",
)
@option(
    HOW,
    "--port",
    type=Port(),
    default=8000,
    metavar="PORT",
    help="The port where clients reach it (8000); 0 takes a free one.",
)
@option(
    HOW,
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Serve only who has a key of this file. `autolaunch keys add NAME --file FILE` makes keys; it keeps hashes.",
)
@option(HOW, "--ask", metavar="TEXT", help="Start, ask this, stream the answer with its timings, stop.")
@option(
    HOW,
    "--image",
    "images",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    metavar="FILE",
    help="With --ask: an image that the question is about (PNG, JPEG, GIF, WebP); may be given again.",
)
@option(
    HOW,
    "--rehearse",
    type=choice(("miniature", "dummy")),
    metavar="[=dummy]",
    help="Prove the plan without the weights: on a miniature of the same architecture and quantization, or on the "
    "full shapes with made-up weights (dummy: vLLM, SGLang). Ends with a report.",
)
@option(
    HOW,
    "--lock",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep this launch in FILE once it has proved itself; where FILE is there, launch exactly what it has.",
)
@option(HOW, "--replan", is_flag=True, help="With --lock: plan again, as near to FILE as may be, and write it anew.")
@option(HOW, "--dry-run", is_flag=True, help="Show the plan, as `autolaunch plan` does; start nothing.")
@hardware_option
@nodes_option
@shown_options
@click.pass_obj
def launch(engine_options: tuple[str, ...], /, **given: Any) -> None:
    """Get MODEL up on this machine and serve it until Ctrl-C, as an OpenAI-compatible endpoint."""
    names = set(How.__struct_fields__) - {"engine_path", "replayed"}
    if given["lock"] is not None:
        given["lock"] = given["lock"].expanduser().absolute()
    if given["model"] is None:
        if given["lock"] is None:
            raise click.MissingParameter(ctx=click.get_current_context(), param_type="argument", param_hint="'MODEL'")
        given["model"] = ""
    if given["api_key_file"] is not None:
        given["api_key_file"] = given["api_key_file"].expanduser().absolute()
    engine_path = None if given["engine_path"] is None else Path(given["engine_path"]).expanduser().absolute()
    how = How(
        **{name: value for name, value in given.items() if name in names},
        engine_path=engine_path,
        engine_options=engine_options,
    )
    asked = msgspec.convert({name: value for name, value in given.items() if name not in names}, Asked)
    refuse_contradictions(asked, how)
    if how.api_key_file is not None:
        from autolaunch.daemon.gateway.keys import Keys

        Keys.read(how.api_key_file)  # what is wrong with it is told before anything is looked for or fetched
    from autolaunch import api

    known = api.catalog()
    if how.lock is None:
        decided = planned(asked, known)
    else:
        from autolaunch.cli.replay import planned_with_lock

        asked, how, decided = planned_with_lock(asked, how, known, how.lock)
    if how.dry_run:
        show_plan(decided, asked)
        return
    if decided.chosen is None:
        refuse_unasked(decided.hardware)
        refuse_engine(decided, asked)
        _tell_why_not(decided, asked)
        raise click.exceptions.Exit(NoFeasiblePlan.exit_code)
    if how.rehearse is not None:
        from autolaunch.cli.rehearse import run_rehearsal

        run_rehearsal(decided, decided.chosen, known, how, as_json=asked.as_json)
        return
    run_launch(decided, decided.chosen, known, asked, how)


def refuse_contradictions(asked: Asked, how: How) -> None:
    """Options that cannot both be meant.

    Raises:
        UsageError: the first pair found, in one sentence.
    """
    pairs = (
        (how.ask is not None and how.dry_run, "--ask starts the model and --dry-run starts nothing"),
        (how.ask is not None and how.rehearse is not None, "--rehearse asks questions of its own: leave --ask out"),
        (how.rehearse is not None and how.dry_run, "--rehearse starts an engine and --dry-run starts nothing"),
        (
            how.rehearse is not None and how.model_path is not None,
            "--rehearse makes its weights itself: leave --model-path out",
        ),
        (bool(how.images) and how.ask is None, "--image goes with --ask"),
        (
            asked.hardware is not None and not how.dry_run and how.rehearse is None,
            "--hardware is about another machine: it goes with --dry-run or with autolaunch plan",
        ),
        (
            asked.nodes is not None and (asked.data_parallel or 1) > 1 and not how.dry_run,
            "--nodes starts one engine over the nodes of a cluster: leave --data-parallel out",
        ),
        (
            asked.nodes is not None and how.lock is not None,
            "--lock keeps a launch on one machine, and --nodes is about all of a cluster",
        ),
        (
            asked.nodes is not None and how.rehearse is not None,
            "--rehearse tries this machine, and --nodes is about all of a cluster",
        ),
        (
            asked.show_all and not how.dry_run,
            "--all lists candidates: it goes with --dry-run or with autolaunch plan",
        ),
        (
            bool(how.engine_options) and how.dry_run,
            "options for the engine are for a launch, and --dry-run starts nothing",
        ),
        (
            how.model_path is not None and asked.revision is not None,
            "--model-path takes the files as they are, and --revision chooses among those of a hub",
        ),
        (
            how.model_path is not None and asked.hub is not None,
            "--model-path takes files that are here, and --hub says where to fetch them",
        ),
        (how.ask is not None and not how.ask.strip(), "--ask needs a text"),
        (how.replan and how.lock is None, "--replan goes with --lock FILE"),
        (how.lock is not None and how.rehearse is not None, "--rehearse serves nobody, and --lock keeps what served"),
        (
            how.api_key_file is not None and (how.ask is not None or how.rehearse is not None),
            "--api-key-file is for clients, and --ask and --rehearse serve none",
        ),
    )
    for contradicts, sentence in pairs:
        if contradicts:
            raise UsageError(sentence)
    _refuse_host(how)


def _refuse_host(how: How) -> None:
    if is_loopback(how.host):
        return
    if address(how.host) is None:
        raise UsageError(
            f"--host {how.host} is no address", hint="127.0.0.1, an address of this machine, or 0.0.0.0 for all it has"
        )
    if how.rehearse is not None:
        raise UsageError("--rehearse serves nobody: leave --host out")
    if how.api_key_file is None:
        raise UsageError(
            f"--host {how.host} is open to the network, and nobody would be asked for a key",
            hint="autolaunch keys add NAME --file FILE makes a key, and --api-key-file FILE asks for it",
        )


def _tell_why_not(decided: LaunchPlan, asked: Asked) -> None:
    """Why nothing fits: for people on stderr, since no result follows; for programs the plan itself."""
    if asked.as_json:
        write(sys.stdout, decided.to_json())
        return
    from autolaunch.cli.render_plan import render_plan

    terminal = Terminal.of(sys.stderr)
    write(sys.stderr, render_plan(decided, terminal), terminal)
