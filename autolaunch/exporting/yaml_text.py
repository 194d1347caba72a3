"""YAML that every reader reads alike: what could be anything but text to one of them stands in quotes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Node = str | int | bool | None | Sequence["Node"] | Mapping[str, "Node"]

#: Text that is text to readers of YAML 1.1 and 1.2, less the words below.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"})


def documents(*nodes: Node) -> str:
    """The documents, one after the other, each behind ``---``. Keys keep their order; no line is folded."""
    import yaml  # a dependency of the hub's client; a plan is made without it

    class Writer(yaml.SafeDumper):  # type: ignore[misc] # it has no stubs
        """Indents the items of lists, writes long text as blocks, and knows no anchors."""

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 - PyYAML's
            super().increase_indent(flow, False)

        def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's
            return True

    def text(writer: yaml.SafeDumper, value: str) -> object:
        if "\n" in value:
            style = "|"
        elif _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
            style = ""
        else:
            style = '"'
        return writer.represent_scalar("tag:yaml.org,2002:str", value, style=style or None)

    Writer.add_representer(str, text)
    Writer.add_representer(tuple, Writer.represent_list)
    every = [
        yaml.dump(each, Dumper=Writer, sort_keys=False, default_flow_style=False, width=2**31, allow_unicode=True)
        for each in nodes
    ]
    return "".join(f"---\n{each}" for each in every)
