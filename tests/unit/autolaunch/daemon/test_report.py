"""What the daemon says of a launch in its journal."""

from __future__ import annotations

import time
from typing import Any

import pytest

from autolaunch.daemon.journal import Journal
from autolaunch.daemon.report import Report
from autolaunch.server import LaunchEvent


class Heard(Journal):
    """Keeps the messages instead of writing them."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, *said: Any, **_: Any) -> None:
        self.messages.append(said[2])


def test_a_download_is_a_line_a_minute_and_each_new_stage_a_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    journal = Heard()
    report = Report(journal)
    for second in range(0, 126, 5):
        now = 1000.0 + second
        report.hear("glm", LaunchEvent(stage="weights", message=f"{second} s"))
    report.hear("glm", LaunchEvent(stage="environment", message="engine"))
    report.hear("other", LaunchEvent(stage="weights", message="another deployment"))
    assert journal.messages == ["0 s", "60 s", "120 s", "engine", "another deployment"]
