"""``autolaunch export``: the plan as units, manifests or scripts that run without autolaunch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from autolaunch.cli.asked import Asked
from autolaunch.cli.launch import Launch
from autolaunch.cli.options import (
    HOW,
    SHOWN,
    Port,
    Word,
    choice,
    hardware_option,
    option,
    pin_options,
    wanted_options,
)
from autolaunch.cli.plan import planned, refuse_engine, refuse_unasked
from autolaunch.cli.terminal import Terminal, write
from autolaunch.exporting import Artefact, ExportOptions, Target
from autolaunch.exporting import export as export_plan
from selector.errors import UsageError

EXAMPLES = """\
  autolaunch export glm-4.6 --to shell                a script, as it stands
  autolaunch export glm-4.6 --to systemd --output units/
  autolaunch export glm-4.6 --to kubernetes --hardware 8xh200 --output glm.yaml
  autolaunch export glm-4.6 --to slurm --hardware 2x8xh100 --format bf16
  autolaunch export glm-4.6 --to compose --model-path /models/GLM-4.6-FP8
"""


class Export(Launch):
    """Takes options for the engine behind ``--``, as a launch does."""

    typed_by_name = True

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click passes it)
        formatter.write("Usage: autolaunch export MODEL --to TARGET [OPTIONS] [-- ENGINE OPTIONS]\n")


@click.command(cls=Export, examples=EXAMPLES)
@click.argument("model")
@option(
    HOW,
    "--to",
    required=True,
    type=choice(get_args(Target)),
    metavar="TARGET",
    help="systemd, compose, kubernetes, slurm or shell.",
)
@option(
    HOW,
    "--output",
    default="-",
    metavar="PATH",
    help="A file, or a folder (several files take one: units/); - is standard output. What is there is written over.",
)
@wanted_options
@pin_options
@option(HOW, "--served-name", type=Word(), metavar="NAME", help="What requests call the model (its own name).")
@option(
    HOW,
    "--model-path",
    type=Word(),
    metavar="FOLDER",
    help="Where the checkpoint is on the machine that runs it; nothing is fetched.",
)
@option(
    HOW,
    "--host",
    type=Word(),
    metavar="ADDRESS",
    help="Where clients reach it: 127.0.0.1, that machine alone, but for Slurm (its node's addresses).",
)
@option(HOW, "--port", type=Port(), default=8000, metavar="PORT", help="The first replica's port (8000).")
@option(
    HOW,
    "--api-key-file",
    type=Word(),
    metavar="FILE",
    help="The file with the key that clients send, on the machine that runs it. (Kubernetes: a secret.)",
)
@hardware_option
@option(SHOWN, "--json", "as_json", is_flag=True, help="JSON on standard output (schema 1), and nothing else.")
@option(SHOWN, "--verbose", is_flag=True, help="On a fault of ours, where it happened.")
@click.pass_obj
def export(engine_options: tuple[str, ...], /, **given: Any) -> None:
    """Write the plan for MODEL as something that runs without autolaunch; nothing is started.

    systemd: units. compose: a file for Docker Compose. kubernetes: a Deployment, or a LeaderWorkerSet beyond one node.
    slurm: a batch script. shell: a script. What each needs and does not do stands at its top.
    """
    to: Target = given.pop("to")
    output = given.pop("output")
    names = set(ExportOptions.__struct_fields__)
    options = ExportOptions(**{name: given.pop(name) for name in names & set(given)}, extra=engine_options)
    asked = msgspec.convert(given, Asked)
    if asked.engine_path is not None:
        raise UsageError("--engine-path is an engine of this machine: an export brings its own, or names it in itself")
    decided = planned(asked)
    if decided.chosen is None:
        refuse_unasked(decided.hardware)
        refuse_engine(decided, asked)
    artefact = export_plan(decided, to, options=options)
    if asked.as_json:
        document = {"schema": 1, "model": decided.model, "to": artefact.to, "files": artefact.files}
        write(sys.stdout, msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    elif output == "-":
        write(sys.stdout, _in_one(artefact).removesuffix("\n"), Terminal.of(sys.stdout))
    else:
        for path in _written(artefact, output):
            write(sys.stderr, f"wrote {path}", Terminal.of(sys.stderr))


def _in_one(artefact: Artefact) -> str:
    """The files one after the other, each behind its name where there are several."""
    if len(artefact.files) == 1:
        return artefact.files[0].text
    return "\n".join(f"# ==> {file.name} <==\n{file.text}" for file in artefact.files)


def _written(artefact: Artefact, output: str) -> list[Path]:
    """Writes the files into the folder, or the only one to the path, that ``output`` names.

    Raises:
        UsageError: there is no such place, or it takes no file.
    """
    place = Path(output).expanduser()
    in_folder = output.endswith("/") or place.is_dir()
    if not in_folder and len(artefact.files) > 1:
        names = ", ".join(file.name for file in artefact.files)
        raise UsageError(
            f"{len(artefact.files)} files come out: {names}", hint=f"--output {output}/ is a folder for them"
        )
    written = []
    try:
        if in_folder:
            place.mkdir(exist_ok=True)
        for file in artefact.files:
            path = place / file.name if in_folder else place
            path.write_text(file.text, encoding="utf-8")
            path.chmod(file.mode)
            written.append(path)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be written: {error.strerror or error}") from error
    return written
