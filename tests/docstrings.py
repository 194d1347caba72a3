"""The examples in the docstrings of the public API, as scripts: indented code above the sections."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from collections.abc import Iterator
from textwrap import dedent, indent

import autolaunch

#: What an example may take for granted: it is what the one before it made.
GIVEN = {"plan": "autolaunch.LaunchPlan", "server": "autolaunch.Launch", "client": "autolaunch.Client"}
FUNCTIONS = tuple(name for name in autolaunch.__all__ if inspect.isfunction(getattr(autolaunch, name)))
#: What is made by hand, or in whose hands a launch is.
CLASSES = ("AsyncClient", "AsyncLaunch", "Client", "Launch")
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields):$", re.MULTILINE)


def text_of(name: str) -> str:
    return inspect.getdoc(getattr(autolaunch, name)) or ""


def examples(name: str) -> tuple[str, ...]:
    """The code in the docstring of a public name, and of what a public class has."""
    found = [text_of(name)]
    if inspect.isclass(one := getattr(autolaunch, name)):
        found += [inspect.getdoc(each) or "" for key, each in vars(one).items() if not key.startswith("_")]
    return tuple(code for text in found for code in _code(_SECTION.split(text)[0]))


def _code(text: str) -> Iterator[str]:
    for block in re.findall(r"(?:^ {4}.*\n?|^\n(?= {4}))+", text, re.MULTILINE):
        yield dedent(block).strip() + "\n"


def script(name: str) -> str:
    """All of its examples, each a function of what it takes for granted, as a user's script would have them."""
    parts = ["import autolaunch"]
    for number, code in enumerate(examples(name)):
        tree = ast.parse(f"async def f():\n{indent(code, '    ')}")
        names = [each for each in ast.walk(tree) if isinstance(each, ast.Name)]
        made = {each.id for each in names if isinstance(each.ctx, ast.Store)}
        taken = sorted({each.id for each in names} - made - {"autolaunch"} - set(dir(builtins)))
        waits = any(isinstance(each, (ast.Await, ast.AsyncFor, ast.AsyncWith)) for each in ast.walk(tree))
        given = ", ".join(f"{each}: {GIVEN[each]}" for each in taken)
        parts.append(f"{'async ' if waits else ''}def example_{number}({given}) -> None:\n{indent(code, '    ')}")
    return "\n\n\n".join(parts) + "\n"
