"""What of the reference is made whenever the documentation is built, so that it cannot be stale.

The page of the commands is their own help. Names of the Python API, and values that they hand out, which no page has
placed by hand are listed at the end of the page of the API.

A hook of mkdocs (``mkdocs.yml``), run in the environment of ``scripts/docs``.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import click

import autolaunch as package
from autolaunch.cli.app import LAUNCH, autolaunch
from selector.values import Value

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

API_PAGE = "reference/python.md"
REFERENCE = Path(__file__).resolve().parents[1] / "docs/reference"
PAGE = "reference/commands.md"
#: As wide as a terminal that nobody has made wider.
COLUMNS = 80


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=page()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    if page.file.src_uri != API_PAGE:
        return markdown
    text = "\n".join(path.read_text(encoding="utf-8") for path in REFERENCE.glob("*.md"))
    placed = set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    whole = [name for name in placed if name.count(".") > 1 and inspect.ismodule(_found(name))]
    named, values = api()
    left = [name for name in (*sorted(named), *sorted(values)) if name not in placed]
    left = [name for name in left if not any(name.startswith(f"{module}.") for module in whole)]
    return "\n\n".join((markdown, *(f"::: {name}" for name in left)))


def _found(name: str) -> object:
    module, _, last = name.rpartition(".")
    try:
        return getattr(import_module(module), last, None) or import_module(name)
    except ImportError:
        return None


def api() -> tuple[set[str], set[str]]:
    """The names of the Python API, and those of the values that it hands out and takes."""
    named = {f"autolaunch.{name}" for name in package.__all__ if name != "__version__"}
    values = {kind for name in package.__all__ for kind in values_of(getattr(package, name))}
    return named, {f"{each.__module__}.{each.__qualname__}" for each in values if each.__name__ not in package.__all__}


def values_of(thing: object) -> set[type[Value]]:
    """The values that a function, a class or its methods hand out, and what those are made of."""
    found: set[type[Value]] = set()
    left: list[object] = [thing]
    if inspect.isclass(thing) and not issubclass(thing, Value):
        left += [each for name, each in inspect.getmembers(thing) if not name.startswith("_")]
    while left:
        each = left.pop()
        if isinstance(each, property):
            left.append(each.fget)
        elif inspect.isclass(each) and issubclass(each, Value) and each not in found:
            found.add(each)
            left += _hints(each).values()
        elif inspect.isfunction(each):
            left.append(_hints(each).get("return"))
        left += get_args(each)
    return found


def _hints(thing: Any) -> dict[str, object]:
    """Its annotations, with those names too that its module imports for the type checker alone."""
    tree = ast.parse(inspect.getsource(import_module(thing.__module__)))
    conditions = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    names = {
        alias.asname or alias.name: getattr(import_module(node.module), alias.name)
        for condition in conditions
        for node in condition.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    return get_type_hints(thing, localns=names)


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
