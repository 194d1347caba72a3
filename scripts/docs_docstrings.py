"""Turns what our docstrings take from reStructuredText into the Markdown of the pages: roles, double backticks.

Read by mkdocs (``mkdocs.yml``), in the environment of ``scripts/docs``.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:py:)?(?:mod|class|meth|func|data|attr|exc):`~?([^`<]+)`")
_LITERAL = re.compile(r"``([^`\n]+)``")


class Markdown(griffe.Extension):
    """What a role names is shown as code; whether it has a page of its own is not asked."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    return _LITERAL.sub(r"`\1`", _ROLE.sub(r"`\1`", text))
