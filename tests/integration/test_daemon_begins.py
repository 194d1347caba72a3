"""``autolaunch serve`` over the fake engine, where something hangs or is wrong when it begins or ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from autolaunch.daemon.ports import free_port
from tests.fakes.served import Served, entry
from tests.integration.test_daemon import get

Serve = Callable[..., Served]


def test_a_deployment_that_cannot_be_planned_keeps_no_other_from_serving(serve: Serve, tmp_path: Path) -> None:
    """An engine's path that holds none: the daemon stays to explain it."""
    one = serve()
    one.configure(entry("a", one.port), entry("b", free_port("127.0.0.1", 0), engine_path=str(tmp_path / "none")))
    one.begin()
    one.until(lambda: one.told("deployment.failed", "b"))
    assert str(tmp_path / "none") in one.told("deployment.failed", "b")[0]["message"]
    assert get(one.port)[0] == 200
    assert one.stop() == 0


def test_a_probe_that_hangs_while_it_begins_does_not_keep_it_from_ending(serve: Serve) -> None:
    one = serve(FAKE_PROBE_HANGS_AFTER="0")
    one.start()
    one.until((one.home / "daemon" / "daemon.lock").exists)
    time.sleep(0.5)
    assert one.stop(5.0) == 0
    assert one.told("daemon.ready") == []


def test_a_probe_that_hangs_while_it_plans_is_waited_for_no_longer_than_the_bound(serve: Serve) -> None:
    one = serve(FAKE_PROBE_HANGS_AFTER="1")
    one.start()
    one.until(lambda: one.told("daemon.ready"))
    asked_at = time.monotonic()
    assert one.stop(10.0) == 0
    assert time.monotonic() - asked_at >= 2.0
    assert one.told("daemon.hangs")
