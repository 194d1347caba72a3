"""The engines by name. A module is imported when its engine is asked for."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TypeGuard

from engines.base import Engine
from selector.errors import EngineError
from selector.facts import EngineName

#: A new engine is one module with one subclass of Engine, one file in profiles/engines, and one line here.
_MODULES: dict[EngineName, str] = {
    "vllm": "engines.vllm",
    "sglang": "engines.sglang",
    "transformers": "engines.transformers",
    "mlx": "engines.mlx",
    "llamacpp": "engines.llamacpp",
}


def names() -> tuple[EngineName, ...]:
    """Every engine, in the order of the documentation."""
    return tuple(_MODULES)


@cache
def engine(name: EngineName) -> Engine:
    """The engine called ``name``.

    Raises:
        EngineError: there is none, or its module holds none or several.
    """
    module = _MODULES.get(name)
    if module is None:
        raise EngineError(f"there is no engine {name!r}", hint="known: " + ", ".join(names()))
    found = [value for value in vars(import_module(module)).values() if _is_engine_of(value, module)]
    if len(found) != 1:
        raise EngineError(f"{module} holds {len(found)} engines instead of one")
    return found[0]()


def _is_engine_of(value: object, module: str) -> TypeGuard[type[Engine]]:
    return isinstance(value, type) and issubclass(value, Engine) and value.__module__ == module
