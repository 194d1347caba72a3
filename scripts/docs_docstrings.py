"""Makes of our docstrings what the pages show: Markdown, and of a value's fields one list.

An extension of griffe, read by mkdocs (``mkdocs.yml``) in the environment of ``scripts/docs``.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

#: What values derive from: their fields are documented together, in the class.
VALUES = frozenset({"Value", "Document"})
#: Of its errors every one says two things alone: its code, and mostly its exit code.
ERRORS = "selector.errors"

_ROLE = re.compile(r":(?:py:)?(?:mod|class|meth|func|data|attr|exc):`~?([^`<]+)`")
_LITERAL = re.compile(r"``([^`\n]+)``")
_DOCUMENTED = re.compile(r"^    (\w+(?:, \w+)*)(?: \(.*?\))?: (.*(?:\n {5,}.*)*)", re.MULTILINE)
_SECTION = "Attributes:\n"


class Shown(griffe.Extension):
    """Rewrites docstrings as they are loaded; the sources stay as they are."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
        if isinstance(obj, griffe.Attribute) and isinstance(obj.value, griffe.ExprName):
            obj.value = None  # "plan = plan", of a constructor, says nothing

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        told = cls.docstring.value if cls.docstring else ""
        if not VALUES.isdisjoint(str(base).rpartition(".")[2] for base in cls.bases):
            fields = [each for each in cls.members.values() if _is_field(each)]
            told = with_fields(told, fields)
        elif cls.module.path == ERRORS:
            fields = [each for each in cls.members.values() if isinstance(each, griffe.Attribute)]
            told = with_codes(told, fields)
        else:
            return
        for each in fields:
            del cls.members[each.name]
        if told:
            number = cls.docstring.lineno if cls.docstring else cls.lineno
            cls.docstring = griffe.Docstring(told, parent=cls, lineno=number, parser="google")


def _is_field(member: griffe.Object | griffe.Alias) -> bool:
    return isinstance(member, griffe.Attribute) and member.annotation is not None and "property" not in member.labels


def markdown(text: str) -> str:
    """What a role names is shown as code; whether it has a place of its own is not asked."""
    return _LITERAL.sub(r"`\1`", _ROLE.sub(r"`\1`", text))


def with_codes(text: str, fields: list[Any]) -> str:
    """A docstring with the codes of an error."""
    named = {"code": "code", "exit_code": "exit code"}
    codes = [f"{named[each.name]} `{each.value}`" for each in fields if each.name in named]
    first, _, rest = text.partition("\n")
    said = [first, *([", ".join(codes).capitalize() + "."] if codes else []), rest.strip("\n")]
    return "\n\n".join(part for part in said if part)


def with_fields(text: str, fields: list[Any]) -> str:
    """A docstring with all fields of its class, in their order: what it says of one, its type and its default."""
    said, _, told = text.partition(_SECTION)
    known = {name: what for names, what in _DOCUMENTED.findall(told) for name in names.split(", ")}
    if not fields:
        return text
    lines = [f"    {each.name} ({each.annotation}): {_what(each, known.get(each.name))}" for each in fields]
    return "\n".join((said.rstrip(), "", _SECTION.rstrip(), *lines))


def _what(field: Any, said: str | None) -> str:
    if field.value is None:
        default = "required"
    else:
        value = str(field.value)
        default = "empty by default" if "default_factory" in value else f"default `{value}`"
    return default if said is None else f"{said.rstrip('.')} ({default})."
