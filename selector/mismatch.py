"""Why a document does not fit a value type, in a person's terms. Loaded only when one does not."""

from __future__ import annotations

import difflib
import re

import msgspec
from msgspec import inspect

_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$(.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*?)`(?: - at `\$(.*)`)?$", re.DOTALL)
_VALUE = re.compile(r"Invalid enum value '(.*?)'(?: - at `\$(.*)`)?$", re.DOTALL)
_OTHER = re.compile(r"(.*?)(?: - at `\$(.*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[")


def explain(error: msgspec.ValidationError, kind: type) -> str:
    """``checkpoints[2].quantizaton: unknown key, did you mean 'quantization'?`` and the like.

    Args:
        error: what msgspec raised.
        kind: the type it was asked for.
    """
    message = str(error)
    if found := _UNKNOWN.match(message):
        key, path = found[1], found[2] or ""
        near = difflib.get_close_matches(key, _keys(kind, path), n=1)
        meant = f", did you mean {near[0]!r}?" if near else ""
        return f"{_join(path, ascii(key)[1:-1])}: unknown key{meant}"
    if found := _MISSING.match(message):
        return f"{_join(found[2] or '', found[1])}: missing"
    if found := _VALUE.match(message):
        value, path = found[1], found[2] or ""
        values = [str(each) for each in _values(kind, path)]
        near = difflib.get_close_matches(value, values, n=1)
        meant = f", did you mean {near[0]!r}?" if near else f": it is none of {', '.join(values)}" if values else ""
        return f"{path}: invalid enum value {value!a}{meant}".lstrip(".: ")
    found = _OTHER.match(message)
    if found is None or not found[2]:
        return message[:1].lower() + message[1:]
    return f"{found[2].lstrip('.')}: {found[1][:1].lower()}{found[1][1:]}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}".lstrip(".")


def _keys(kind: type, path: str) -> list[str]:
    """The keys that the object at a path of msgspec's takes."""
    struct = _struct(_at(kind, path))
    return [] if struct is None else [field.encode_name for field in struct.fields]


def _at(kind: type, path: str) -> inspect.Type:
    """The type of what is at a path of msgspec's; of an unknown path, anything."""
    here: inspect.Type = inspect.type_info(kind)
    for step in _STEP.finditer(path):
        held = _struct(here)
        if step[1] is not None and held is not None:
            found = [field.type for field in held.fields if field.encode_name == step[1]]
            if not found:
                return inspect.AnyType()
            here = found[0]
        elif step[1] is None:
            here = next((each.item_type for each in _options(here) if isinstance(each, inspect.VarTupleType)), here)
    return here


def _values(kind: type, path: str) -> tuple[object, ...]:
    """The values that are allowed at a path of msgspec's."""
    literals = (each for each in _options(_at(kind, path)) if isinstance(each, inspect.LiteralType))
    return tuple(value for each in literals for value in each.values)


def _options(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _struct(kind: inspect.Type) -> inspect.StructType | None:
    return next((each for each in _options(kind) if isinstance(each, inspect.StructType)), None)
