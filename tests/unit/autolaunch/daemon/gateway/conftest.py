"""The gateway's clock for tests: what it looks at once a second it looks at fifty times."""

from __future__ import annotations

import pytest

from autolaunch.daemon.gateway import http, listener


@pytest.fixture
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(http, "LINGER_SECONDS", 0.1)
