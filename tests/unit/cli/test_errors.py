"""Errors as the journal takes them; what a person and a script read is tried with each command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from autolaunch.cli.errors import show_error
from autolaunch.cli.main import wants_lines


@pytest.mark.parametrize(("code", "priority"), [("configuration", "<3>"), ("interrupted", "<6>")])
def test_each_line_has_its_priority_where_the_journal_listens(
    code: str, priority: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "journal"
    with taken.open("w") as stream:
        kept, status = os.dup(2), os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setattr(sys, "stderr", stream)
        os.dup2(stream.fileno(), 2)
        try:
            show_error(code, "it is wrong\nin two lines", "do this", 78, as_json=False)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    assert taken.read_text() == f"{priority}autolaunch: it is wrong\n{priority}in two lines\n{priority}hint: do this\n"


def test_a_stream_that_is_not_the_journals_has_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "0:0")  # of the service in which a shell runs
    show_error("usage", "it is wrong", "do this", 2, as_json=False)
    assert capsys.readouterr().err == "autolaunch: it is wrong\n  hint: do this\n"


def test_an_error_among_documents_of_a_line_each_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, count in ((["logs", "--json", "-f", "a"], 1), (["logs", "--json", "--", "-f"], 9)):
        show_error("interrupted", "stopped", None, 130, as_json=True, in_lines=wants_lines(arguments))
        assert capsys.readouterr().out.count("\n") == count
