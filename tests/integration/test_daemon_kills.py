"""``autolaunch serve`` over the fake engine, killed at hand or short of disk: what a later daemon finds and does."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.fakes.served import Served, entry
from tests.integration.test_daemon import get

Serve = Callable[..., Served]
WRONG_OPTION = "--say 'vllm: error: unrecognized arguments: --no-such-option'"


def guards(one: Served) -> list[psutil.Process]:
    return [process for process in one.processes() if any("guard.py" in each for each in process.cmdline())]


def kill_daemon_and_guards(one: Served) -> None:
    """All at once, as far as can be: none of them gets to do anything about the other."""
    killed = [*guards(one)]
    assert one.process is not None
    for process in killed:
        process.suspend()
    one.process.send_signal(signal.SIGKILL)
    for process in killed:
        process.kill()
    one.process.wait(10)


def test_a_killed_daemons_engine_goes_with_it(serve: Serve) -> None:
    one = serve()
    one.begin()
    one.kill()
    one.nothing_left(seconds=5.0, swept=False)


def test_after_a_kill_exactly_one_engine_runs_and_the_failures_still_count(serve: Serve) -> None:
    one = serve()
    os.kill(one.begin(), signal.SIGKILL)
    one.until(lambda: len(one.state()["deployments"]["a"].get("failures", ())) == 1)
    before = one.state()["deployments"]["a"]["failures"]
    one.kill()
    one.begin()
    assert len(one.engines()) == 1
    assert one.state()["deployments"]["a"]["failures"] == before
    first = one.engines()[0].pid
    one.kill()  # while it serves: its guard may still be at work when the next daemon comes
    one.begin()
    assert [each.pid for each in one.engines()] != [first]
    assert len(one.engines()) == 1
    assert one.stop() == 0


@pytest.mark.parametrize("mode", ["ready", "children", "worker"])
def test_daemon_and_guard_killed_at_once_what_is_left_is_found_and_ended(serve: Serve, mode: str) -> None:
    """The engine itself goes with its guard; children in other sessions, or by other names, do not."""
    one = serve(FAKE_MODES=mode)
    one.begin()
    before = {process.pid for process in one.processes()}
    kill_daemon_and_guards(one)
    one.until(lambda: one.engines() == [])
    left = [process.pid for process in one.processes()]
    assert len(left) == {"ready": 0, "children": 2, "worker": 1}[mode]
    one.begin()
    after = {process.pid for process in one.processes()}
    assert not before & after
    assert len(one.engines()) == 1
    assert len(one.told("engine.left")) == (0 if mode == "ready" else 1)
    assert all(str(pid) in one.told("engine.left")[0]["message"] for pid in left)
    assert one.stop() == 0


def test_what_would_not_end_is_named_and_nothing_is_started_beside_it(serve: Serve) -> None:
    one = serve()
    one.begin()
    one.kill()
    one.nothing_left(seconds=5.0, swept=False)
    one.environ["FAKE_STUCK"] = "123456"
    one.start()
    one.until(lambda: one.told("daemon.ready"))
    (said,) = one.told("deployment.failed", "a")
    assert "123456" in said["message"]
    assert "would not end" in said["message"]
    assert one.engines() == []
    assert one.stop(swept=False) == 0
    assert one.state()["deployments"]["a"]["latched"]["reason"] == "processes left"


def test_what_has_failed_for_good_stays_so_over_a_restart_and_is_explained_again(serve: Serve) -> None:
    one = serve(FAKE_MODES="exit", FAKE_OPTIONS=WRONG_OPTION)
    one.start()
    one.until(lambda: one.told("deployment.failed", "a"))
    assert one.stop() == 0
    one.environ["FAKE_MODES"] = "ready"
    one.start()
    one.until(lambda: one.told("daemon.ready"))
    (said,) = one.told("deployment.failed", "a")
    assert "--no-such-option" in said["message"]
    assert one.engines() == []
    assert one.stop() == 0


def test_a_deployment_that_was_changed_while_no_daemon_ran_starts_anew(serve: Serve) -> None:
    one = serve(FAKE_MODES="exit", FAKE_OPTIONS=WRONG_OPTION)
    one.start()
    one.until(lambda: one.told("deployment.failed", "a"))
    assert one.stop() == 0
    one.environ["FAKE_MODES"] = "ready"
    one.configure(entry("a", one.port, context_tokens=2048))
    one.begin()
    assert one.stop() == 0


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"schema": 7}', b"[" * 100_000])
def test_a_corrupt_state_file_is_set_aside_and_serving_goes_on(serve: Serve, content: bytes) -> None:
    one = serve()
    (one.home / "daemon").mkdir()
    (one.home / "daemon" / "state.json").write_bytes(content)
    one.begin()
    (said,) = one.told("state")
    assert "set aside" in said["message"]
    (aside,) = (one.home / "daemon").glob("state.json.corrupt-*")
    assert aside.read_bytes() == content
    assert one.stop() == 0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Puts a file system of 64 KiB in a folder's place, and fills it."""
    mounted: list[Path] = []

    def fill(folder: Path) -> None:
        folder.mkdir(parents=True)
        command = ("mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(folder))
        # By whatever mount the system has.
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("file systems cannot be mounted here")
        mounted.append(folder)
        with pytest.raises(OSError, match="No space left"), (folder / "full").open("wb", buffering=0) as file:
            while file.write(b"0" * 4096):
                pass

    yield fill
    for folder in mounted:
        subprocess.run(("umount", str(folder)), check=True)  # noqa: S607 - as above


def test_a_full_disk_costs_state_and_logs_and_not_the_serving(serve: Serve, small: Callable[[Path], None]) -> None:
    one = serve()
    for name in ("daemon", "logs"):
        small(one.home / name)
    one.start()
    one.until(lambda: one.told("engine.ready"))
    one.until(lambda: one.told("state"))
    assert len(one.told("state")) == 1
    assert "cannot be written" in one.told("state")[0]["message"]
    assert get(one.port)[0] == 200
    (one.home / "daemon" / "full").unlink()
    os.kill(one.engines()[0].pid, signal.SIGKILL)
    one.until(lambda: len(one.told("state")) == 2)
    assert "again" in one.told("state")[1]["message"]
    assert one.stop() == 0
    assert len(one.state()["deployments"]["a"]["failures"]) == 1
