"""llama-server's options out of llama.cpp's sources (``common/arg.cpp``): its parser is not reachable from Python.

Every option is one ``common_arg({names…}, …, [](common_params & params, …) {…})`` with the programs that have it. What
it takes is told by the parameters of its handler.
"""

from __future__ import annotations

import re
from typing import Any

_COMMENT = re.compile(r"^\s*//.*$|/\*\w+\*/", re.MULTILINE)
_NAMES = re.compile(r"\{((?:\s*\"-[^\"]+\"\s*,?)+)\}")
_HANDLER = re.compile(r"\[[^\]]*\]\s*\(\s*common_params\s*&\s*\w*\s*(?P<rest>(?:,[^)]*)?)\)")
_SETS = re.compile(r"\.set_(?P<which>examples|excludes)\(\s*\{(?P<programs>[^}]*)\}")
#: Programs whose options llama-server takes; an option that names none is common to all.
_OURS = frozenset({"LLAMA_EXAMPLE_SERVER", "LLAMA_EXAMPLE_COMMON"})


def options(source: str) -> list[dict[str, Any]]:
    """The options of llama-server, as ``profiles/flags`` has them.

    Raises:
        ValueError: the file is not written as it was (b11434).
    """
    found = []
    source = _COMMENT.sub("", source)
    for block in source.split("add_opt(common_arg(")[1:]:
        lists = []
        rest = block.lstrip()
        while (names := _NAMES.match(rest)) is not None:
            lists += re.findall(r'"(-[^"]+)"', names[1])
            rest = rest[names.end() :].lstrip(" \n,")
        handler = _HANDLER.search(rest)
        if not lists or handler is None:
            raise ValueError(f"an option is not written as expected: {block[:120]!r}")
        programs = {each["which"]: set(re.findall(r"\w+", each["programs"])) for each in _SETS.finditer(block)}
        if not programs.get("examples", _OURS) & _OURS or programs.get("excludes", set()) & _OURS:
            continue
        parameters = [each for each in handler["rest"].split(",") if each.strip()]
        if any(lists[-1] in each["names"] for each in found):
            continue  # written once for the server and once for the others
        option: dict[str, Any] = {"names": lists, "takes": _takes(parameters)}
        if any(re.match(r"\s*int\b", each) for each in parameters):
            option["type"] = "int"
        if "arg_removed(" in block.split("add_opt(")[0]:
            option["removed"] = True
        found.append(option)
    if len(found) < 100:
        raise ValueError(f"only {len(found)} options were found")
    return found


def _takes(parameters: list[str]) -> str:
    if len(parameters) == 2:
        return "two"
    return "one" if parameters and "bool" not in parameters[0] else "none"
