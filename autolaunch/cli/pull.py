"""``autolaunch pull``: the weights of a model, fetched and verified; nothing is started."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, get_args

import click
import msgspec

from autolaunch.cli.options import (
    HOW,
    PINNED,
    SHOWN,
    Command,
    Word,
    choice,
    hardware_option,
    hub_options,
    option,
)
from autolaunch.cli.terminal import Terminal, duration, plural, wrapped, write
from selector.facts import EngineName, Format, Hub
from selector.request import Pins
from selector.values import Value

if TYPE_CHECKING:
    from autolaunch.pulling import Pulled
    from autolaunch.server import LaunchEvent

EXAMPLES = """\
  autolaunch pull glm-4.6                    what the plan for this machine chooses
  autolaunch pull zai-org/GLM-4.6-FP8        this one, on a login node without GPUs too
  autolaunch pull unsloth/GLM-4.6-GGUF --quantization Q4_K_M
  autolaunch pull glm-4.6 --hardware 8xh200  what that machine would be given
  autolaunch pull glm-4.6 --quantization FP8 --offline    is it here, and whole?
"""


class FileRow(Value, frozen=True, kw_only=True):
    """``sha256`` or git's name of the content, as the hub has it."""

    path: str
    size_bytes: int
    sha256: str | None
    git_sha1: str | None


class PulledDocument(Value, frozen=True, kw_only=True):
    """``hub`` and ``revision`` are ``None`` of a miniature, which is made here."""

    schema: int = 1
    model: str
    repo: str
    hub: Hub | None
    revision: str | None
    quantization: str
    folder: str
    size_bytes: int
    fetched_bytes: int
    here_bytes: int
    seconds: float
    files: tuple[FileRow, ...]


class TransferRow(Value, frozen=True, kw_only=True):
    done_bytes: int
    total_bytes: int
    bytes_per_second: float | None
    left_seconds: float | None


class StepDocument(Value, frozen=True, kw_only=True):
    """A line of ``--json --follow`` before the last."""

    schema: int = 1
    event: str = "weights"
    message: str
    fraction: float | None
    seconds: float
    transfer: TransferRow | None


class Given(Value, frozen=True, kw_only=True):
    """The command's options."""

    model: str
    repo: str | None = None
    format: Format | None = None
    quantization: str | None = None
    engine: EngineName | None = None
    hub: Hub | None = None
    revision: str | None = None
    hardware: str | None = None
    offline: bool = False
    follow: bool = False
    as_json: bool = False
    verbose: bool = False


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model")
@option(PINNED, "--repo", type=Word(), metavar="ORG/NAME", help="The checkpoint, by its name on the hub.")
@option(PINNED, "--format", type=choice(get_args(Format)), metavar="NAME", help="Its format: bf16, fp8, mlx, gguf …")
@option(PINNED, "--quantization", type=Word(), metavar="NAME", help="The quantization, as FP8, Int4 or 4bit.")
@option(PINNED, "--engine", type=choice(get_args(EngineName)), metavar="NAME", help="One that this engine serves best.")
@hub_options
@hardware_option
@option(HOW, "--offline", is_flag=True, help="Fetch nothing: verify what is here, or say that it is not.")
@option(SHOWN, "--follow", "-f", is_flag=True, help="With --json: a line for each step, then one for the result.")
@option(SHOWN, "--json", "as_json", is_flag=True, help="JSON on standard output (schema 1), and nothing else.")
@option(SHOWN, "--verbose", is_flag=True, help="Every file with its hash; on a fault of ours, where it happened.")
def pull(**given: Any) -> None:
    """Fetch the weights of MODEL and hold them against their hashes. Nothing is started.

    Where MODEL and the options name one checkpoint, that one; otherwise what the plan for this machine chooses. A
    Ctrl-C keeps what has come: the next pull goes on from there.
    """
    from autolaunch.cli.progress import Progress
    from autolaunch.pulling import pull as pulled_by

    asked = msgspec.convert(given, Given)
    pins = Pins(
        repo=asked.repo,
        format=asked.format,
        quantization=asked.quantization,
        engine=asked.engine,
        hub=asked.hub,
        revision=asked.revision,
    )
    if asked.as_json and asked.follow:
        _line(
            _document(pulled_by(asked.model, pins=pins, hardware=asked.hardware, offline=asked.offline, on_event=_step))
        )
        return
    terminal = Terminal.of(sys.stderr)
    with Progress(sys.stderr, terminal) as progress:
        pulled = pulled_by(
            asked.model,
            pins=pins,
            hardware=asked.hardware,
            offline=asked.offline,
            on_event=(lambda _: None) if asked.as_json else progress.event,
        )
    if asked.as_json:
        write(sys.stdout, msgspec.json.format(msgspec.json.encode(_document(pulled)), indent=2).decode())
    else:
        terminal = Terminal.of(sys.stdout)
        write(sys.stdout, _rendered(pulled, terminal, verbose=asked.verbose), terminal)


def _document(pulled: Pulled) -> PulledDocument:
    return PulledDocument(
        model=pulled.model,
        repo=pulled.repo,
        hub=pulled.hub,
        revision=pulled.revision,
        quantization=pulled.quantization,
        folder=str(pulled.folder),
        size_bytes=pulled.size_bytes,
        fetched_bytes=pulled.fetched_bytes,
        here_bytes=pulled.here_bytes,
        seconds=round(pulled.seconds, 3),
        files=tuple(
            FileRow(path=each.path, size_bytes=each.size_bytes, sha256=each.sha256, git_sha1=each.git_sha1)
            for each in pulled.files
        ),
    )


def _step(event: LaunchEvent) -> None:
    transfer = event.transfer
    row = None
    if transfer is not None:
        row = TransferRow(
            done_bytes=transfer.done_bytes,
            total_bytes=transfer.total_bytes,
            bytes_per_second=transfer.bytes_per_second,
            left_seconds=transfer.left_seconds,
        )
    _line(StepDocument(message=event.message, fraction=event.fraction, seconds=round(event.seconds, 3), transfer=row))


def _line(document: Value) -> None:
    write(sys.stdout, msgspec.json.encode(document).decode())


def _rendered(pulled: Pulled, terminal: Terminal, *, verbose: bool) -> str:
    from autolaunch.hubs.refusals import TITLES
    from autolaunch.hubs.speed import amount

    commit = (pulled.revision or "")[:12]
    origin = "made on this machine" if pulled.hub is None else f"from {TITLES[pulled.hub]}, commit {commit}"
    came = f"{amount(pulled.fetched_bytes)} fetched" if pulled.fetched_bytes else "all of it was here"
    if pulled.fetched_bytes and pulled.here_bytes >= 1e6:
        came += f", {amount(pulled.here_bytes)} were here"
    files = plural(len(pulled.files), "file")
    told = f"{files}, {amount(pulled.size_bytes)}, each as its hash says; {came} in {duration(pulled.seconds)}"
    parts = [
        f"{pulled.repo} ({pulled.quantization})",
        wrapped(origin, terminal, first="  "),
        wrapped(told, terminal, first="  "),
        f"  {pulled.folder}",
    ]
    if verbose:
        parts += [f"  {each.sha256 or each.git_sha1 or ''}  {each.path}" for each in pulled.files]
    return "\n".join(parts)
