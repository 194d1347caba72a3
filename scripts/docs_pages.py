"""The page of the commands, made from their own help whenever the documentation is built: it cannot be stale.

A hook of mkdocs (``mkdocs.yml``), run in the environment of ``scripts/docs``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from autolaunch.cli.app import LAUNCH, autolaunch

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PAGE = "reference/commands.md"
#: As wide as a terminal that nobody has made wider.
COLUMNS = 80


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """Every command with its help, as ``--help`` prints it on a terminal of 80 columns."""
    parts = [
        "# Commands",
        "What `--help` of each command prints. Every command that prints a result takes `--json`.",
    ]
    for name, text in helps():
        parts += [f"## {name}", f"```text\n{text.rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def helps() -> Iterator[tuple[str, str]]:
    """Each command as it is typed, and its help."""
    root = _context(autolaunch, "autolaunch", None)
    yield "autolaunch", root.get_help()
    yield from _of(autolaunch, LAUNCH, "autolaunch MODEL", root)
    for name in autolaunch.list_commands(root):
        yield from _of(autolaunch, name, f"autolaunch {name}", root)


def _of(group: click.Group, name: str, typed: str, parent: click.Context) -> Iterator[tuple[str, str]]:
    command = group.get_command(parent, name)
    if command is None:
        raise LookupError(f"{typed}: there is no such command")
    context = _context(command, name, parent)
    yield typed, command.get_help(context)
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            yield from _of(command, each, f"{typed} {each}", context)


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    settings = {**command.context_settings, "terminal_width": COLUMNS}
    return click.Context(command, info_name=name, parent=parent, **settings)
