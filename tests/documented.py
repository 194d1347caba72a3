"""What the README and the guides show: their blocks, and the commands in them.

A page says in a comment before a block how a test takes it; without one its commands are run and have to succeed:

    <!-- test: exits 3 -->                       they end with that code; "0 or 5" is one of both
    <!-- test: goes on -->                       it is left running while the page goes on
    <!-- test: Ctrl-C -->                        (before no block) what was left running is ended so
    <!-- test: read: REASON -->                  not run, for one of REASONS; held against the real command line
    <!-- test: file NAME -->                     a configuration is written under this name first

What a block shows of an output is held line by line and in order; "…" stands for anything, alone for any lines.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from autolaunch.cli.app import autolaunch
from autolaunch.given import is_word
from selector.catalog import Catalog
from selector.machines import report_from_spec

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
#: Written by scripts and other tests, which hold them.
GENERATED = {DOCS / "accuracy.md": "scripts/validate"}

#: Why a block is not run.
REASONS = {
    "weights": "hundreds of gigabytes would be fetched",
    "root": "it changes the host",
    "a Mac": "there is none here",
    "GPUs": "there are none here",
    "several hosts": "there is one here",
    "the network": "tests have none but loopback",
    "installing": "tests/packaging installs the project, from its wheel and from a clone",
    "a benchmark": "it takes minutes; tests/integration runs it on a miniature",
    "a person's host": "it names files or models of somebody's own",
}
LANGUAGES = frozenset({"console", "python", "toml", "text", "yaml"})

_TOLD = re.compile(r"<!-- test: (.+?) -->\s*")
_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>```+)(?P<language>\w*)(?P<rest>.*)")
_INCLUDED = re.compile(r'--8<-- "([^"]+)"')


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block, or with the language ``end`` the place where a page has what runs ended."""

    page: Path
    line: int
    language: str
    text: str
    told: str = ""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why it is only read."""
        return self.told.removeprefix("read: ") if self.told.startswith("read: ") else None

    @property
    def exit_codes(self) -> frozenset[int]:
        """What its commands may end with."""
        told = self.told.removeprefix("exits ") if self.told.startswith("exits ") else "0"
        return frozenset(map(int, told.split(" or ")))


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A command as it is typed, and what is shown of its output."""

    block: Block
    typed: str
    output: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return f"{self.block.where}: {' '.join(self.typed.split())[:80]}"


class Misspelt(AssertionError):
    """Something in a page that nothing understands."""


def pages() -> tuple[Path, ...]:
    return (README, *(path for path in sorted(DOCS.rglob("*.md")) if path not in GENERATED))


def blocks(page: Path) -> tuple[Block, ...]:
    """The fenced blocks of a page in order.

    Raises:
        Misspelt: a fence without an end, in a language that is no one's, or a comment that tells nothing.
    """
    return tuple(_blocks(page, page.read_text(encoding="utf-8").splitlines()))


def _blocks(page: Path, lines: list[str]) -> Iterator[Block]:
    told, number = "", 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if found := _TOLD.fullmatch(line.strip()):
            told = _checked(found[1], f"{page.relative_to(ROOT)}:{number}")
            if told == "Ctrl-C":
                yield Block(page=page, line=number, language="end", text="")
                told = ""
            continue
        if "<!-- test" in line:
            raise Misspelt(f"{page.relative_to(ROOT)}:{number}: {line}")
        fence = _FENCE.fullmatch(line)
        if fence is None:
            if told and line.strip():
                raise Misspelt(f"{page.relative_to(ROOT)}:{number}: a comment for a test before no block")
            continue
        first, inside = number, []
        while number < len(lines) and lines[number].strip() != fence["ticks"]:
            inside.append(lines[number].removeprefix(fence["indent"]))
            number += 1
        if number == len(lines):
            raise Misspelt(f"{page.relative_to(ROOT)}:{first}: a block without an end")
        number += 1
        language = fence["language"]
        if language not in LANGUAGES and not (page == README and not language):
            raise Misspelt(f"{page.relative_to(ROOT)}:{first}: a block in {language or 'no language'!r}")
        text = "\n".join(inside) + "\n"
        if language == "python":
            text = _INCLUDED.sub(lambda found: (DOCS / found[1]).read_text(encoding="utf-8"), text)
        yield Block(page=page, line=first, language=language, text=text, told=told)
        told = ""


def _checked(told: str, where: str) -> str:
    reason = told.removeprefix("read: ") if told.startswith("read: ") else None
    if (
        reason in REASONS
        or told in {"goes on", "Ctrl-C"}
        or re.fullmatch(r"exits [0-9]+(?: or [0-9]+)*|file [\w.-]+", told)
    ):
        return told
    raise Misspelt(f"{where}: <!-- test: {told} --> says nothing that is known")


# --- commands ---------------------------------------------------------------------------------------

_PROMPT = "$ "
#: How a line of the README's lists begins, which have what a command does beside it.
_LISTED = re.compile(r"(?:sudo |\$ )?(?:autolaunch|systemctl|scripts/|pip) ?")


def shown(block: Block) -> tuple[Shown, ...]:
    """The commands of a block, with what is shown of their output.

    Raises:
        Misspelt: lines that are neither.
    """
    lines = block.text.splitlines()
    if block.language != "console" and not (lines and lines[0].startswith(_PROMPT)):
        return tuple(_listed(block, lines)) if block.page == README and not block.language else ()
    if not lines or not lines[0].startswith(_PROMPT):
        raise Misspelt(f"{block.where}: a console block begins with a command, after '$ '")
    found: list[tuple[str, list[str]]] = []
    goes_on = False
    for line in lines:
        if goes_on:
            found[-1] = (f"{found[-1][0]}\n{line}", [])
        elif line.startswith(_PROMPT):
            found.append((line.removeprefix(_PROMPT), []))
        else:
            found[-1][1].append(line)
            continue
        goes_on = line.endswith("\\")
    return tuple(Shown(block=block, typed=typed, output=tuple(output)) for typed, output in found)


def _listed(block: Block, lines: list[str]) -> Iterator[Shown]:
    """Of the README: a block of commands, each with what it does beside it; or else an output."""
    if _LISTED.match(lines[0]) is None:
        return
    for line in lines:
        if _LISTED.match(line) is not None:
            yield from (Shown(block=block, typed=each) for each in _alternatives(re.split(r" {3,}", line)[0]))
        elif line.strip():
            raise Misspelt(f"{block.where}: {line!r} is no command")


_EITHER = re.compile(r"(?P<before>(?:sudo )?autolaunch (?:\w+ )?)(?P<either>\w+(?: ?\| ?\w+)+)(?P<after>.*)")


def _alternatives(typed: str) -> Iterator[str]:
    """``autolaunch stop | restart NAME`` is two commands."""
    found = _EITHER.fullmatch(typed)
    if found is None:
        yield typed
        return
    for each in found["either"].split("|"):
        yield f"{found['before']}{each.strip()}{found['after']}"


def in_words(page: Path) -> tuple[Shown, ...]:
    """The commands that stand in the sentences of a page, as code."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    block = Block(page=page, line=0, language="words", text="")
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text))
    typed = (span for span in spans if re.match(r"(?:sudo )?autolaunch (?![.(])", span))
    return tuple(Shown(block=block, typed=each) for one in typed for each in _alternatives(one))


def options_in_words(page: Path) -> frozenset[str]:
    """The options that stand alone in the sentences of a page, as code."""
    return frozenset(re.findall(r"`(--[a-z][a-z-]*)", page.read_text(encoding="utf-8")))


def simple_commands(typed: str) -> tuple[tuple[str, ...], ...]:
    """A line of a shell as the programs it runs, each with its arguments; where their output goes is left out."""
    lexer = shlex.shlex(typed.replace("\\\n", " "), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, ""
    found: list[list[str]] = [[]]
    place = False
    for token in lexer:
        if place:
            place = False
        elif set(token) <= set("|&;"):
            found.append([])
        elif set(token) <= set("<>&"):
            place = True
        else:
            found[-1].append(token)
    return tuple(tuple(_bare(words)) for words in found if words)


def _bare(words: list[str]) -> list[str]:
    """Without what only says how a program is run: variables, sudo, uv run."""
    while words and (re.fullmatch(r"[A-Z_]+=.*", words[0]) or words[0] in {"sudo", "env"}):
        words = words[1:]
    return words[2:] if words[:2] == ["uv", "run"] else words


# --- held against the real command line -------------------------------------------------------------


def parsed(arguments: tuple[str, ...], known: Catalog, *, whole: bool = True, right: bool = True) -> None:
    """Has the real command line read the arguments of ``autolaunch``, up to where it would begin to act.

    One that is not ``whole`` is only named, without what it is about; one that is not ``right`` may name what is not.

    Raises:
        Misspelt: an option, a command, a model or a machine that there is not.
    """
    told = shlex.join(("autolaunch", *arguments))
    try:
        context = autolaunch.make_context("autolaunch", list(arguments))
        command: click.Command = autolaunch
        while isinstance(command, click.Group) and (rest := [*context._protected_args, *context.args]):
            name, below, rest = command.resolve_command(context, rest)
            assert below is not None
            context, command = below.make_context(name, rest, parent=context), below
    except click.exceptions.Exit:  # --help, --version
        return
    except click.MissingParameter as error:
        if whole:
            raise Misspelt(f"{told}: {error.format_message()}") from error
        return
    except click.ClickException as error:
        raise Misspelt(f"{told}: {error.format_message()}") from error
    if not right:
        return
    values = context.params
    model, machine = values.get("model"), values.get("hardware")
    if isinstance(model, str) and not model.isupper():
        known.find_model(model)
    if isinstance(machine, str) and not machine.isupper() and "/" not in machine and is_word(machine):
        report_from_spec(machine, known)


# --- outputs ----------------------------------------------------------------------------------------


def missing(expected: tuple[str, ...], printed: str) -> list[str]:
    """The first line that is shown and was not printed in its place, with what came there; or nothing."""
    lines = [line.rstrip() for line in printed.splitlines()]
    place = 0
    for line in expected:
        if line.strip() in {"…", ""}:
            continue
        pattern = re.compile(".*".join(map(re.escape, line.rstrip().split("…"))))
        found = next((at for at in range(place, len(lines)) if pattern.fullmatch(lines[at])), None)
        if found is None:
            return [line, *lines[place : place + 40]]
        place = found + 1
    return []
