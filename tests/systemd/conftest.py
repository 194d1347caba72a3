"""One systemd for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.harness import Systemd, why_not


@pytest.fixture(scope="session")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    """A real systemd in namespaces of its own. What a test installs in it, it removes."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    running = Systemd(Path(tmp_path_factory.mktemp("systemd")))
    yield running
    running.stop()
