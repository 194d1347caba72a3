"""An engine's own parser: what it knows, and what it says to commands. Run inside that engine's environment.

    python scripts/real_parser.py KIND [STUB ...] < QUESTION.json > ANSWER.json

``KIND`` is one of ``vllm``, ``sglang``, ``mlx-lm``, ``mlx-vlm``, ``transformers``. A ``STUB`` is a package that the
parser's module imports and does not need: it is not installed, and a mock stands in. The question is a JSON list of
commands, each a list of tokens as the parser takes them (after ``vllm serve``, for instance). The answer holds
``options``, as ``profiles/flags`` has them, and ``verdicts``: for each command ``null`` or what the parser has
against it. It imports the engine and nothing of autolaunch, and needs no GPU: nothing is started.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.machinery
import io
import json
import sys
import typing
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import MagicMock

Option = dict[str, Any]
Judge = Callable[[list[str]], None]

#: Kinds of values that a recorded option tells apart; a parser's own conversion functions are not told.
_TYPES = {int: "int", float: "float"}


class Seen(Exception):
    """Raised in place of parsing, where a parser is made inside of a main function."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__("a parser was made")
        self.parser = parser


class Stubs:
    """Finds the named packages, and all that lies in them, as mocks."""

    def __init__(self, names: list[str]) -> None:
        self.names = frozenset(names)

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]  # a loader by its two methods

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        return MagicMock(name=spec.name, __path__=[], __spec__=spec, __version__="0")

    def exec_module(self, module: object) -> None:
        """There is nothing in it."""


def main(kind: str, *stubs: str) -> int:
    sys.meta_path.insert(0, Stubs(list(stubs)))  # type: ignore[arg-type]  # a finder by its one method
    commands: list[list[str]] = json.load(sys.stdin)
    answer = sys.stdout
    # What an engine prints while it is imported is not part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        options, judge = KINDS[kind]()
        verdicts = [verdict(judge, command) for command in commands]
    json.dump({"options": options, "verdicts": verdicts}, answer)
    return 0


def verdict(judge: Judge, command: list[str]) -> str | None:
    """What the parser says against a command; argparse says it on standard error and exits."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            judge(command)
    except SystemExit as end:
        last = said.getvalue().strip().splitlines()[-1:] or [""]
        return last[0] or f"exit {end.code}"
    except Exception as error:  # noqa: BLE001 (whatever a parser raises is its verdict)
        return f"{type(error).__name__}: {error}"
    return None


def vllm() -> tuple[list[Option], Judge]:
    arguments = first_module("vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args")
    from vllm.config.cache import CacheDType
    from vllm.config.speculative import SpeculativeConfig
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = arguments.make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    options = from_argparse(parser, deprecated=vars(parser).get("_deprecated", ()))
    # The parser takes any name for the first two, and the server refuses those that are not registered. Platforms may
    # add to the third, which is why the parser leaves it open.
    named = {
        "tool_call_parser": sorted(ToolParserManager.list_registered()),
        "reasoning_parser": sorted(ReasoningParserManager.list_registered()),
        "kv_cache_dtype": literals(CacheDType),
    }
    for name, choices in named.items():
        choose(options, "--" + name.replace("_", "-"), choices)
    keys = dotted("--speculative-config", SpeculativeConfig)
    options += keys
    listed = {each["names"][0].partition(".")[2]: each.get("choices") for each in keys}

    def judge(command: list[str]) -> None:
        parsed = parser.parse_args(command)
        parsed.subparser = "serve"
        arguments.validate_parsed_serve_args(parsed)
        for name, choices in named.items():
            if getattr(parsed, name) and getattr(parsed, name) not in choices:
                raise ValueError(f"{name} cannot be {getattr(parsed, name)}")
        # The rest is only looked at with the model's own configuration at hand.
        for name, value in (parsed.speculative_config or {}).items():
            if name not in listed or (listed[name] and value not in listed[name]):
                raise ValueError(f"--speculative-config.{name} cannot be {value}")

    return options, judge


def dotted(option: str, configuration: type) -> list[Option]:
    """The keys of an option that takes a configuration as JSON, or each of its keys after a dot."""
    hints = typing.get_type_hints(configuration)
    found = []
    for field in dataclasses.fields(configuration):
        if field.init:
            entry: Option = {"names": [f"{option}.{field.name}"], "takes": "one"}
            choices = literals(hints[field.name])
            found.append(entry | ({"choices": choices} if choices else {}))
    return found


def literals(hint: Any) -> list[str]:
    """The strings that a type allows, where it allows nothing but listed ones."""
    if typing.get_origin(hint) is typing.Literal:
        return sorted(value for value in typing.get_args(hint) if isinstance(value, str))
    inner = [each for each in typing.get_args(hint) if each is not type(None)]
    parts = [literals(each) for each in inner]
    return sorted({value for part in parts for value in part}) if parts and all(parts) else []


def sglang() -> tuple[list[Option], Judge]:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(prog="sglang serve")
    ServerArgs.add_cli_args(parser)
    return from_argparse(parser), lambda command: void(parser.parse_args(command))


def mlx_lm() -> tuple[list[Option], Judge]:
    return inside_main("mlx_lm.server")


def mlx_vlm() -> tuple[list[Option], Judge]:
    return inside_main("mlx_vlm.server")


def inside_main(module: str) -> tuple[list[Option], Judge]:
    """The parser of a server that makes it in its ``main``."""

    def show(self: argparse.ArgumentParser, *_: Any, **__: Any) -> typing.NoReturn:
        raise Seen(self)

    real = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = show  # type: ignore[method-assign,assignment]  # the engine's own call is listened to
    try:
        importlib.import_module(module).main()
    except Seen as seen:
        parser = seen.parser
    finally:
        argparse.ArgumentParser.parse_args = real  # type: ignore[method-assign]  # as it was
    return from_argparse(parser), lambda command: void(parser.parse_args(command))


def transformers() -> tuple[list[Option], Judge]:
    import typer

    app = importlib.import_module("transformers.cli.transformers").app
    group = app if hasattr(app, "commands") else typer.main.get_command(app)
    command = group.commands["serve"]

    def judge(tokens: list[str]) -> None:
        command.make_context("transformers serve", list(tokens))

    return from_click(command), judge


def from_argparse(parser: argparse.ArgumentParser, deprecated: Iterable[argparse.Action] = ()) -> list[Option]:
    names: dict[int, list[str]] = {}
    actions = {}
    # The parser's own table: it holds names that its help does not show.
    for name, action in vars(parser)["_option_string_actions"].items():
        names.setdefault(id(action), []).append(name)
        actions[id(action)] = action
    old = {id(each) for each in deprecated}
    return [argparse_option(actions[key], sorted(names[key]), key in old) for key in names]


def argparse_option(action: argparse.Action, names: list[str], deprecated: bool) -> Option:
    takes = {None: "one", 0: "none", "?": "optional"}.get(action.nargs, "many")
    option: Option = {"names": names, "takes": takes}
    if action.choices is not None:
        option["choices"] = sorted(str(choice) for choice in action.choices)
    if action.type in _TYPES:
        option["type"] = _TYPES[action.type]
    kind = type(action).__name__
    if getattr(action, "error_message", None):
        option["removed"] = True  # it is known only to say what took its place
    elif deprecated or getattr(action, "deprecated", False) or kind.startswith("Deprecated"):
        option["deprecated"] = True
    return option


def from_click(command: Any) -> list[Option]:
    found = []
    for parameter in command.params:
        if parameter.param_type_name != "option":
            continue
        option: Option = {
            "names": sorted((*parameter.opts, *parameter.secondary_opts)),
            "takes": "none" if parameter.is_flag or parameter.count else "one" if parameter.nargs == 1 else "many",
        }
        if getattr(parameter.type, "choices", None):
            option["choices"] = sorted(str(choice) for choice in parameter.type.choices)
        if not parameter.is_flag and parameter.type.name in ("integer", "float"):
            option["type"] = {"integer": "int"}.get(parameter.type.name, parameter.type.name)
        found.append(option)
    return [*found, {"names": ["--help"], "takes": "none"}]


def choose(options: list[Option], name: str, choices: Iterable[str]) -> None:
    for option in options:
        if name in option["names"]:
            option["choices"] = sorted(choices)


def first_module(*names: str) -> Any:
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise SystemExit(f"none of {', '.join(names)} is there")


def void(_: object) -> None:
    """For a judge that is a lambda: its verdict is whether it raises."""


KINDS: dict[str, Callable[[], tuple[list[Option], Judge]]] = {
    "vllm": vllm,
    "sglang": sglang,
    "mlx-lm": mlx_lm,
    "mlx-vlm": mlx_vlm,
    "transformers": transformers,
}


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
