"""What a person's terminal can show, and the figures of the product as a person reads them.

Renderers write Unicode and colour freely; :func:`write` takes away what the stream cannot show.
"""

from __future__ import annotations

import os
from itertools import zip_longest
from typing import TextIO

import click

from autolaunch.given import without_secrets
from selector.values import Value

GIB = 1024**3

# One character for one character, so that columns stay columns.
_ASCII = str.maketrans("█▓▒░▚·…×✓✗─•~–—≈", "#=+~%.~xvx-*~--~")
_COMPACT_FROM = 10_000
#: A table's column is not folded below this many columns of the terminal.
_NARROWEST = 10


class Terminal(Value, frozen=True, kw_only=True):
    """``width_columns`` is what a line may fill: at least 80, at most 120 (longer lines are hard to read)."""

    width_columns: int = 80
    color: bool = False
    unicode: bool = True

    @classmethod
    def of(cls, stream: TextIO) -> Terminal:
        """What ``stream`` can show. ``NO_COLOR`` and ``TERM=dumb`` are honoured."""
        interactive = stream.isatty()
        color = interactive and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        columns = 80
        if interactive or "COLUMNS" in os.environ:
            from shutil import get_terminal_size

            columns = get_terminal_size((80, 24)).columns
        try:
            "█▓▒░▚·…×✓✗─≈".encode(getattr(stream, "encoding", None) or "ascii")
        except (UnicodeEncodeError, LookupError):
            unicode = False
        else:
            unicode = True
        return cls(width_columns=max(80, min(columns, 120)), color=color, unicode=unicode)


class Unwritable(click.ClickException):
    """Neither the user's words nor our code is wrong: the disk behind the output is full, or the terminal is gone."""


def write(stream: TextIO, text: str, terminal: Terminal | None = None, *, newline: bool = True) -> None:
    """Print ``text`` as far as ``stream`` can show it.

    Raises:
        BrokenPipeError: nobody reads the stream any more.
        Unwritable: it takes no more, for another reason.
    """
    terminal = terminal or Terminal.of(stream)
    if not terminal.unicode:
        text = text.translate(_ASCII)
        encoding = getattr(stream, "encoding", None) or "ascii"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        click.echo(text, file=stream, color=terminal.color, nl=newline)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritable(f"the output cannot be written: {error.strerror or error}") from error


def clean(text: str) -> str:
    """Text of others (drivers, engines, arguments) without control characters and without our secrets."""
    text = without_secrets(text)
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def gib(size_bytes: int) -> str:
    """``44.3 GiB``; small sizes in MiB."""
    if 0 < size_bytes < GIB // 10:
        return f"{size_bytes / 1024**2:.1f} MiB"
    return f"{size_bytes / GIB:,.1f} GiB"


def count(number: float) -> str:
    """``202,752``."""
    return f"{round(number):,}"


def compact(number: float) -> str:
    """``198k``: thousands of 1024 where they divide evenly enough for a table, whole below ten thousand."""
    return f"{number / 1024:.0f}k" if number >= _COMPACT_FROM else f"{number:.0f}"


def rate(tokens_per_second: float | None) -> str:
    """Tokens a second as far as an estimate is worth reading: ``3.4``, ``62``, ``4,100``; ``?`` where unknown."""
    if tokens_per_second is None:
        return "?"
    if tokens_per_second < 10:
        return f"{tokens_per_second:.1f}"
    if tokens_per_second < 1000:
        return f"{tokens_per_second:.0f}"
    return f"{round(tokens_per_second, -2 if tokens_per_second >= 10_000 else -1):,.0f}"


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``35 s``, ``3 min 20 s``, ``1 h 5 min``; ``?`` where unknown."""
    if seconds is None:
        return "?"
    if seconds < 0.095:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 GPU``, ``8 GPUs``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def ranges(numbers: tuple[int, ...]) -> str:
    """``0-3, 6``: device indices as a person lists them."""
    parts: list[str] = []
    ordered = sorted(set(numbers))
    start = 0
    for position in range(1, len(ordered) + 1):
        if position == len(ordered) or ordered[position] != ordered[position - 1] + 1:
            first, last = ordered[start], ordered[position - 1]
            parts.append(str(first) if first == last else f"{first}-{last}")
            start = position
    return ", ".join(parts)


def wrapped(text: str, terminal: Terminal, *, first: str = "", rest: str | None = None) -> str:
    """``text`` in lines that fit, the first after ``first``, the others after ``rest`` (as wide, by default)."""
    import textwrap  # a plan in JSON wraps nothing

    return textwrap.fill(
        text,
        terminal.width_columns,
        initial_indent=first,
        subsequent_indent=" " * len(first) if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def shortened(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns; the middle goes, since both ends of a repository's name tell."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def heading(text: str) -> str:
    return click.style(text, bold=True)


def table(
    head: tuple[str, ...],
    rows: list[tuple[str, ...]],
    *,
    right: tuple[int, ...] = (),
    flex: int | tuple[int, ...],
    width: int,
) -> str:
    """Columns two spaces apart, indented by two; those of ``flex`` give way, the widest first, until a line fits.

    ``right`` are the columns of figures, which end where their heading ends.
    """
    flexible = (flex,) if isinstance(flex, int) else flex
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    while sum(widths) + 2 * len(head) > width and (left := [each for each in flexible if widths[each] > _NARROWEST]):
        widths[max(left, key=widths.__getitem__)] -= 1
    lines = []
    for position, row in enumerate(cells):
        columns = [_folded(text, widths[column]) if column in flexible else [text] for column, text in enumerate(row)]
        for shown in zip_longest(*columns, fillvalue=""):
            aligned = (
                text.rjust(widths[column]) if column in right else text.ljust(widths[column])
                for column, text in enumerate(shown)
            )
            line = f"  {'  '.join(aligned)}".rstrip()
            lines.append(click.style(line, dim=True) if position == 0 else line)
    return "\n".join(lines)


def _folded(text: str, width: int) -> list[str]:
    """Words go on below; a single long name loses its middle."""
    import textwrap

    words = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return [shortened(word, width) for word in words] or [""]


def bar(shares: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Columns of a bar of ``width`` for each share: rounded so that they add up, at least one for what is not zero."""
    total = sum(shares)
    if total <= 0:
        return tuple(0 for _ in shares)
    exact = [share * width / total for share in shares]
    cells = [max(1, int(value)) if share > 0 else 0 for share, value in zip(shares, exact, strict=True)]
    order = sorted(range(len(shares)), key=lambda index: (cells[index] - exact[index], index))
    for index in order:
        if sum(cells) >= width:
            break
        if shares[index] > 0:
            cells[index] += 1
    while sum(cells) > width:
        cells[cells.index(max(cells))] -= 1
    return tuple(cells)
