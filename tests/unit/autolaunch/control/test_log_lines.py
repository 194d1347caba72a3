"""The lines of an engine's log: the last ones, and those that come, over rotations and restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from autolaunch.daemon.control.log_lines import BLOCK_BYTES, Lines, Source
from autolaunch.daemon.control.views import shown


def written(path: Path, *lines: str) -> Source:
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    return Source(path)


def tail(source: Source, count: int) -> list[str]:
    lines = Lines(shown)
    try:
        return lines.tail(source, count)
    finally:
        lines.close()


def test_the_last_lines_are_given_oldest_first(tmp_path: Path) -> None:
    source = written(tmp_path / "a.log", *(str(number) for number in range(50)))
    assert tail(source, 3) == ["47", "48", "49"]
    assert tail(source, 0) == []
    assert len(tail(source, 1000)) == 50


def test_lines_of_a_file_that_was_set_aside_come_before(tmp_path: Path) -> None:
    written(tmp_path / "a.log.1", "old 1", "old 2")
    source = written(tmp_path / "a.log", "new")
    assert tail(source, 2) == ["old 2", "new"]
    assert tail(source, 10) == ["old 1", "old 2", "new"]
    assert tail(source, 1) == ["new"]


def test_many_long_lines_are_cut_out_of_the_end_whole(tmp_path: Path) -> None:
    source = written(tmp_path / "a.log", *(f"{number:05d}" + "x" * 1900 for number in range(200)))
    found = tail(source, 100)
    assert [line[:5] for line in found] == [f"{number:05d}" for number in range(100, 200)]
    assert all(len(line) == 1905 for line in found)
    assert BLOCK_BYTES < 100 * 1905


def test_what_comes_is_given_in_whole_lines_once(tmp_path: Path) -> None:
    source = written(tmp_path / "a.log", "first")
    lines = Lines(shown)
    assert lines.tail(source, 10) == ["first"]
    assert lines.more(source) == []
    with source.path.open("a") as file:
        file.write("second\nthi")
    assert lines.more(source) == ["second"]
    assert lines.more(source) == []
    written(source.path, "rd")
    assert lines.more(source) == ["third"]
    lines.close()


def test_a_rotation_loses_and_repeats_nothing(tmp_path: Path) -> None:
    source = written(tmp_path / "a.log", "1")
    lines = Lines(shown)
    assert lines.tail(source, 10) == ["1"]
    written(source.path, "2")
    source.path.replace(tmp_path / "a.log.1")
    written(source.path, "3")
    assert lines.more(source) + lines.more(source) == ["2", "3"]
    assert lines.more(source) == []
    lines.close()


def test_another_engines_log_follows_after_the_last_lines_of_the_one_before(tmp_path: Path) -> None:
    first = written(tmp_path / "a.log", "1")
    lines = Lines(shown)
    lines.tail(first, 10)
    written(first.path, "its end")
    second = written(tmp_path / "b.log", "begins")
    assert lines.more(second) + lines.more(second) == ["its end", "begins"]
    lines.close()


def test_a_log_that_is_not_there_yet_is_found_when_it_is(tmp_path: Path) -> None:
    source, lines = Source(tmp_path / "a.log"), Lines(shown)
    assert lines.tail(source, 5) == []
    assert lines.more(source) == []
    written(source.path, "1")
    assert lines.more(source) == ["1"]
    lines.close()


def test_keys_tokens_and_control_characters_are_not_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sentinel")
    path = tmp_path / "a.log"
    path.write_bytes(b"args: --api-key 0123sentinel hf_sentinel \x1b[31mred\x1b[0m \xff\n")
    assert tail(Source(path, ("0123sentinel", None)), 5) == ["args: --api-key <key> <HF_TOKEN> red \ufffd"]
