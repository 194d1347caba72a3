"""The stub of NVML, compiled once a session, and a way to ask the real probe about a scenario of it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.fakes.nvml import stub
from tests.fakes.nvml.scenarios import WORKSTATION

Ask = Callable[..., stub.Asked]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux" or (shutil.which("gcc") is None and shutil.which("cc") is None):
        pytest.skip("the stub of NVML needs Linux and a C compiler")
    return stub.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def no_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub.build_none(tmp_path_factory.mktemp("no-nvml"))


@pytest.fixture
def ask(library: Path, tmp_path: Path) -> Ask:
    """Probe a scenario on a host of its own (``WORKSTATION``)."""

    def probe(
        scenario: stub.Scenario,
        environment: Mapping[str, str] | None = None,
        host: stub.LinuxHost | None = WORKSTATION,
    ) -> stub.Asked:
        return stub.ask(library, scenario, tmp_path, host=host, environment=environment)

    return probe
