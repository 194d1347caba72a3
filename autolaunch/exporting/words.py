"""One value, one word: in a shell, and in a unit of systemd."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

from autolaunch.unit_files import unit_word


class Raw(str):
    """Shell text of ours that stands for a word as it is, such as ``"$port"``. Nothing from outside is ever in it."""

    __slots__ = ()


def word(text: str) -> str:
    """``text`` as one word of a shell."""
    return str(text) if isinstance(text, Raw) else shlex.quote(text)


def words(argv: Iterable[str]) -> str:
    return " ".join(map(word, argv))


def lines(argv: Iterable[str], indent: str = "") -> str:
    """A command over several lines, an option and its value on each."""
    rows: list[list[str]] = [[]]
    for each in argv:
        if each.startswith("--") and rows[-1]:
            rows.append([])
        rows[-1].append(word(each))
    return f" \\\n{indent}  ".join(" ".join(row) for row in rows)


def exported(environment: Mapping[str, str], indent: str = "") -> str:
    return "".join(f"{indent}export {name}={word(value)}\n" for name, value in sorted(environment.items()))


def unit_command(argv: Iterable[str]) -> str:
    """A command of a unit, an option and its value on each line."""
    rows: list[list[str]] = [[]]
    for each in argv:
        if each.startswith("--") and rows[-1]:
            rows.append([])
        rows[-1].append(unit_word(each, command=True))
    return " \\\n    ".join(" ".join(row) for row in rows)


def start_script(
    *, folder: str, patterns: tuple[str, ...] = (), key_variable: str | None = None, key_file: str = ""
) -> str:
    """What a shell does before it becomes the engine: takes the key out of its file, finds the GGUF's first file.

    Args:
        folder: where the weights are; ``patterns`` are the GGUF files' beginnings below it (none: no GGUF).
        key_variable: the variable that the engine takes its key from, ``None`` for no key.
        key_file: the file, as a shell's word: it may hold a variable of ours.
    """
    steps = ["set -eu"]
    if key_variable is not None:
        steps += [f"{key_variable}=$(cat {key_file})", f'[ -n "${key_variable}" ]', f"export {key_variable}"]
    if patterns:
        found = " ".join(f"{shlex.quote(f'{folder}/{pattern}')}*.gguf" for pattern in patterns)
        steps += [f'for first in {found}; do if [ -f "$first" ]; then break; fi; done', 'set -- "$@" --model "$first"']
    return "; ".join((*steps, 'exec "$@"'))
