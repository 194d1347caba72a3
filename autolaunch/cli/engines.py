"""``autolaunch engines``: which are known, installed, and found on this machine."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from autolaunch.cli.options import SHOWN, option
from autolaunch.cli.terminal import Terminal, clean, gib, heading, table, wrapped, write
from selector.engine_facts import EngineFacts, Package
from selector.errors import UsageError
from selector.values import Value

if TYPE_CHECKING:
    from engines.environments import Environment
    from engines.environments.made import Made

_Function = TypeVar("_Function", bound=Callable[..., Any])
#: What changes environments, with its help. Imported when it is asked for.
_CHANGES = {
    "install": "Make the environment of an engine, or of one of its packages.",
    "remove": "Remove environments, and say how much room that gives.",
}
#: What other installers call them.
_OTHERWISE = {"add": "install", "uninstall": "remove", "rm": "remove", "delete": "remove", "list": ""}


class PackageRow(Value, frozen=True, kw_only=True):
    """``installed_at`` is the environment's folder, ``None`` where there is none yet."""

    name: str
    version: str
    architectures: tuple[str, ...]
    devices: tuple[str, ...]
    bytes_on_disk: int
    installed_at: str | None


class EngineRow(Value, frozen=True, kw_only=True):
    name: str
    title: str
    version: str
    minimum_version: str
    formats: tuple[str, ...]
    devices: tuple[str, ...]
    packages: tuple[PackageRow, ...]


class EnvironmentRow(Value, frozen=True, kw_only=True):
    """An environment of ours. ``shared`` is whether all users of the host have it, ``problem`` why it is not used."""

    engine: str
    version: str
    package: str
    directory: str
    shared: bool
    packages: int | None
    bytes_on_disk: int | None
    lock_sha256: str | None
    problem: str | None


class FoundRow(Value, frozen=True, kw_only=True):
    """An engine that somebody else installed: ``place`` is what ``--engine-path`` takes."""

    engine: str
    version: str
    package: str
    place: str
    how: str


class TroubleRow(Value, frozen=True, kw_only=True):
    place: str
    how: str
    message: str


class EnginesDocument(Value, frozen=True, kw_only=True):
    schema: int = 1
    engines: tuple[EngineRow, ...]
    environments: tuple[EnvironmentRow, ...]
    found: tuple[FoundRow, ...]
    troubles: tuple[TroubleRow, ...]


class Engines(click.Group):
    """Lists, unless a command follows."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        word = next((each for each in args if not each.startswith("-")), None)
        if word is not None and word not in _CHANGES:
            near = difflib.get_close_matches(word.lower(), [*_CHANGES, *_OTHERWISE], n=1)
            hint = f"to install one: autolaunch engines install {word}; alone it lists them"
            if near:
                hint = f"did you mean {f'autolaunch engines {_OTHERWISE.get(near[0], near[0])}'.strip()}?"
            raise UsageError(f"autolaunch engines has no {word[:60]!r}", hint=clean(hint))
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click passes it)
        return list(_CHANGES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click passes it)
        if cmd_name not in _CHANGES:
            return None
        command: click.Command = getattr(import_module("autolaunch.cli.engine_changes"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click passes it)
        with formatter.section("Commands"):
            formatter.write_dl(list(_CHANGES.items()))

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click passes it)
        formatter.write("Usage: autolaunch engines [OPTIONS]\n")
        formatter.write("       autolaunch engines install|remove NAME[==VERSION] [OPTIONS]\n")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click passes it)
        formatter.write(f"\nExamples:\n{EXAMPLES}")


EXAMPLES = """\
  autolaunch engines                       what is known, installed and found
  autolaunch engines install mlx           all of it that this machine takes
  autolaunch engines install vllm==0.32.1  another version than the tried one
  autolaunch engines remove mlx-lm
"""


def shown(function: _Function) -> _Function:
    """What is printed."""
    function = option(SHOWN, "--verbose", is_flag=True, help="Say more; on a fault of ours, where it happened.")(
        function
    )
    return option(SHOWN, "--json", "as_json", is_flag=True, help="JSON on standard output (schema 1).")(function)


def show(document: Value, as_json: bool, render: Callable[[Terminal], str]) -> None:
    """Print a document, as it is or as a person reads it."""
    if as_json:
        write(sys.stdout, msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    terminal = Terminal.of(sys.stdout)
    write(sys.stdout, render(terminal), terminal)


# --- the list ---------------------------------------------------------------------------------------


@click.group(cls=Engines, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@shown
@click.pass_context
def engines(ctx: click.Context, as_json: bool, verbose: bool) -> None:
    """List the inference engines: version, whether installed, what they load and on what.

    Below them are the environments that were made, and the engines that are on this machine without autolaunch.
    """
    if ctx.invoked_subcommand is not None:
        ctx.obj = {"as_json": as_json, "verbose": verbose}
        return
    from autolaunch import api
    from engines.environments import Environments
    from engines.environments.installations import search
    from engines.environments.made import made

    known = api.catalog()
    facts = tuple(known.engine(name) for name in known.engine_names())
    environments = Environments.of(api.home())
    found, troubles = search(facts, os.environ, ours=environments.places)
    document = EnginesDocument(
        engines=tuple(_engine_row(each, environments.find) for each in facts),
        environments=tuple(_environment_row(each) for each in made(environments)),
        found=tuple(
            FoundRow(
                engine=each.engine, version=each.version, package=each.package, place=str(each.place), how=each.how
            )
            for each in found
        ),
        troubles=tuple(TroubleRow(place=str(each.place), how=each.how, message=each.message) for each in troubles),
    )
    show(document, as_json, lambda terminal: _render(document, terminal, verbose=verbose))


def _engine_row(facts: EngineFacts, find: Callable[[str, str, Package], Environment | None]) -> EngineRow:

    def row(package: Package) -> PackageRow:
        version = package.version or facts.version
        found = find(facts.name, version, package)
        return PackageRow(
            name=package.name,
            version=version,
            architectures=package.architectures,
            devices=package.devices,
            bytes_on_disk=package.bytes_on_disk,
            installed_at=None if found is None else str(found.directory),
        )

    return EngineRow(
        name=facts.name,
        title=facts.title,
        version=facts.version,
        minimum_version=facts.minimum_version,
        formats=tuple(dict.fromkeys(each for loads in facts.loads for each in loads.formats)),
        devices=tuple(dict.fromkeys(each for loads in facts.loads for each in loads.devices)),
        packages=tuple(row(package) for package in facts.packages),
    )


def _environment_row(one: Made) -> EnvironmentRow:
    manifest = one.manifest
    return EnvironmentRow(
        engine=one.engine,
        version=one.version,
        package=one.package,
        directory=str(one.directory),
        shared=one.shared,
        packages=None if manifest is None else manifest.packages,
        bytes_on_disk=None if manifest is None else manifest.bytes_on_disk,
        lock_sha256=None if manifest is None else manifest.lock_sha256,
        problem=one.problem,
    )


def _render(document: EnginesDocument, terminal: Terminal, *, verbose: bool) -> str:
    rows: list[tuple[str, ...]] = []
    for engine in document.engines:
        here = [package.name for package in engine.packages if package.installed_at is not None]
        rows.append(
            (
                engine.name,
                engine.version,
                ", ".join(here) if len(engine.packages) > 1 and here else "yes" if here else "no",
                " ".join(engine.devices),
                " ".join(engine.formats),
            )
        )
    head = ("engine", "version", "installed", "runs on", "loads")
    parts = [table(head, rows, flex=(2, 3, 4), width=terminal.width_columns)]
    if verbose:
        lines = [
            f"{package.name} {package.version}, {gib(package.bytes_on_disk)}, on {' '.join(package.devices)}"
            for engine in document.engines
            for package in engine.packages
        ]
        parts.append(_section("Packages that can be installed", lines, terminal))
    if document.environments:
        parts.append(_section("Environments", [_environment_line(each) for each in document.environments], terminal))
    if document.found:
        lines = [f"{each.package} {each.version}: {each.place} ({each.how})" for each in document.found]
        parts.append(_section("Found on this machine (used with --engine-path)", lines, terminal))
    if document.troubles:
        lines = [f"{each.message} ({each.how})" for each in document.troubles]
        parts.append(_section("Could not be asked", lines, terminal))
    return "\n\n".join(parts)


def _environment_line(one: EnvironmentRow) -> str:
    size = [] if one.bytes_on_disk is None else [gib(one.bytes_on_disk)]
    told = ", ".join((f"{one.package} {one.version}", *size, *(["for all users"] if one.shared else [])))
    return f"{told}: {one.directory}" + (f" (not used: {one.problem})" if one.problem else "")


def _section(title: str, lines: list[str], terminal: Terminal) -> str:
    return "\n".join((heading(title), *(wrapped(clean(each), terminal, first="  ", rest="    ") for each in lines)))
