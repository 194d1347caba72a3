"""Where the environments of the real engines are kept between runs, and what all tests of engines share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
import pytest

from tests.fakes.served import Served
from tests.fakes.supervised import Bench, FakeEngine, patched

#: Made once a machine: an environment of vLLM alone is 2.5 GB.
HOME = Path(os.environ.get("AUTOLAUNCH_TEST_HOME") or platformdirs.user_cache_dir("autolaunch-tests", appauthor=False))


@pytest.fixture(scope="session")
def engines_home() -> Path:
    """A home that all tests of real engines share."""
    return HOME


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    """Makes a bench over a fake engine: its modes, start by start, and what is wished of the deployment."""

    def make(*modes: str, **more: object) -> Bench:
        engine = FakeEngine(*modes)
        patched(monkeypatch, tmp_path, engine)
        return Bench(tmp_path / "home", engine, **more)

    return make


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Makes daemons that are not started yet, over the fake engine; none of their processes may outlive the test."""
    made: list[Served] = []

    def make(**environ: str) -> Served:
        made.append(Served(tmp_path / str(len(made)), environ=environ))
        return made[-1]

    yield make
    left = [process for each in made for process in each.processes()]
    for each in made:
        each.close()
    assert left == [], "the test left these"
