from __future__ import annotations

import io

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autolaunch.cli.terminal import Terminal, bar, clean, duration, gib, ranges, rate, shortened, table, write


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=6), st.integers(8, 120))
def test_a_bar_is_exactly_as_wide_as_asked_and_hides_nothing(sizes: list[int], width: int) -> None:
    cells = bar(tuple(sizes), width)
    assert sum(cells) == (width if any(sizes) else 0)
    assert all((cell > 0) == (size > 0) for cell, size in zip(cells, sizes, strict=True))


def test_a_bar_keeps_the_proportions() -> None:
    assert bar((50, 25, 25), 40) == (20, 10, 10)


def test_a_stream_that_cannot_show_unicode_gets_ascii_in_the_same_columns() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    write(stream, "█▓ 8 × … ✓ 你")
    stream.flush()
    assert raw.getvalue().decode() == "#= 8 x ~ v \\u4f60\n"


def test_a_stream_that_is_no_terminal_gets_no_colour() -> None:
    stream = io.StringIO()
    write(stream, "\x1b[31mred\x1b[0m")
    assert stream.getvalue() == "red\n"


def test_no_color_is_honoured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Terminal.of(Tty()).color
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Terminal.of(Tty()).color


@pytest.mark.parametrize(("columns", "width"), [("40", 80), ("100", 100), ("400", 120)])
def test_the_width_stays_readable(monkeypatch: pytest.MonkeyPatch, columns: str, width: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert Terminal.of(io.StringIO()).width_columns == width


def test_foreign_text_cannot_drive_the_terminal() -> None:
    assert "\x1b" not in clean("evil\x1b[2Jname\x07\r")
    assert clean("two\nlines") == "two\nlines"


def test_a_hub_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sentinel")
    assert clean("401 for hf_sentinel at the hub") == "401 for <HF_TOKEN> at the hub"


def test_figures_read_as_a_person_writes_them() -> None:
    assert [duration(each) for each in (0.042, 3.14, 59.6, 120, 200, 3900, None)] == [
        *("42 ms", "3.1 s", "1 min", "2 min", "3 min 20 s", "1 h 5 min", "?"),
    ]
    assert [rate(each) for each in (3.41, 61.7, 4123, 12345, None)] == ["3.4", "62", "4,120", "12,300", "?"]
    assert gib(3 * 1024**2) == "3.0 MiB"
    assert ranges((3, 0, 1, 2, 6)) == "0-3, 6"


@given(st.text(min_size=0, max_size=60), st.integers(5, 40))
def test_a_shortened_text_fits(text: str, width: int) -> None:
    assert len(shortened(text, width)) <= width


def test_several_columns_of_a_table_give_way_the_widest_first() -> None:
    rows: list[tuple[str, ...]] = [("name", "one two three four", "alpha beta gamma delta epsilon"), ("x", "one", "")]
    drawn = click.unstyle(table(("a", "b", "c"), rows, flex=(1, 2), width=34))
    assert max(map(len, drawn.splitlines())) <= 34
    assert all(word in drawn for text in rows[0] for word in text.split())


def test_a_table_fits_its_width_and_keeps_every_word() -> None:
    rows: list[tuple[str, ...]] = [("a", "bf16 fp8 awq gptq mlx gguf nvfp4 int4", "12")]
    drawn = table(("name", "formats", "size"), rows, right=(2,), flex=1, width=30)
    assert all(len(line) <= 30 + len("\x1b[2m\x1b[0m") for line in drawn.splitlines())
    assert all(word in drawn for word in rows[0][1].split())
