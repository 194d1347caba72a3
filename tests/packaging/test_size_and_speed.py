from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.packaging.conftest import Installed

pytestmark = pytest.mark.timeout(300)  # the first of them builds and installs

ROUNDS = 9
PLAN = ("plan", "glm-4.6", "--hardware", "8xh200", "--json")


def test_the_core_installs_in_less_than_60_megabytes(installed: Installed, capsys: pytest.CaptureFixture[str]) -> None:
    """With its compiled modules; uv, which a machine may have already, is not counted."""
    size_bytes = sum(
        path.stat().st_size
        for path in installed.site_packages.rglob("*")
        if path.is_file() and not path.relative_to(installed.site_packages).parts[0].startswith("uv")
    )
    with capsys.disabled():
        print(f"\nthe core takes {size_bytes / 1e6:.1f} MB (at most 60)")  # noqa: T201
    assert size_bytes < 60e6


def test_importing_autolaunch_takes_less_than_a_tenth_of_a_second(
    installed: Installed, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import time; began = time.perf_counter(); import autolaunch; print(time.perf_counter() - began)"
    taken_seconds = [float(installed.run(installed.python, "-c", code)) for _ in range(ROUNDS + 1)][1:]
    median_seconds = statistics.median(taken_seconds)
    with capsys.disabled():
        print(f"\nimport autolaunch takes {median_seconds * 1000:.1f} ms (at most 100)")  # noqa: T201
    assert median_seconds < 0.1


def test_a_cold_plan_takes_at_most_twelve_bare_interpreter_starts(
    installed: Installed, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measured in pairs, one after the other, so that a busy machine slows both."""

    def seconds(*argv: str) -> float:
        began = time.perf_counter()
        installed.run(*argv)
        return time.perf_counter() - began

    python, command = str(installed.python), str(installed.command)
    pairs = [(seconds(python, "-c", "pass"), seconds(command, *PLAN)) for _ in range(ROUNDS + 1)][1:]
    ratio = statistics.median(plan for _, plan in pairs) / statistics.median(bare for bare, _ in pairs)
    with capsys.disabled():
        print(f"\na cold plan takes {ratio:.1f} bare interpreter starts (at most 12)")  # noqa: T201
    assert ratio <= 12
