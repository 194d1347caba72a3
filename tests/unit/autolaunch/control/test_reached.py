"""Who is asked where several listen: one that hangs holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autolaunch import client as asking
from autolaunch.cli import reach
from autolaunch.cli.ps import _render, document_of
from autolaunch.cli.reach import Everyone, everything, holder_of, something
from autolaunch.cli.terminal import Terminal
from autolaunch.cli.wait import _looked
from autolaunch.daemon.control.listening import connected
from autolaunch.daemon.control.of_launch import SteeredLaunch, control_of
from autolaunch.daemon.control.places import launch_socket
from selector.errors import NotRunning, NotSteered
from tests.unit.autolaunch.control.test_launches import supervisor


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOLAUNCH_HOME", str(tmp_path))
    monkeypatch.delenv("AUTOLAUNCH_SOCKET", raising=False)
    monkeypatch.setattr(reach, "LOOK_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(asking, "LOOK_TIMEOUT_SECONDS", 0.2)
    (tmp_path / "control").mkdir(mode=0o700)
    return tmp_path


@contextlib.contextmanager
def silent(home: Path, pid: int) -> Iterator[Path]:
    """A launch that listens and does not answer, as a stopped process does."""
    path = launch_socket(os.environ, home, pid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.bind(str(path))
        one.listen(8)
        yield path


def while_one_answers(home: Path, ask: Callable[[], None]) -> None:
    async def play() -> None:
        control = control_of(SteeredLaunch({"a": supervisor("a")}, lambda: None), home)
        await control.start()
        try:
            await asyncio.to_thread(ask)
        finally:
            await control.close()

    asyncio.run(play())


def test_one_that_hangs_is_told_and_the_others_are_asked(home: Path) -> None:
    def ask() -> None:
        began = time.monotonic()
        found = everything()
        assert time.monotonic() - began < 2.0
        assert [each.deployments[0].name for each in found.reached] == ["a"]
        assert [each.client.path for each in found.silent] == [first, second]
        assert holder_of("a", something()).status.kind == "launch"
        with pytest.raises(NotSteered, match=rf"nobody who answers has 'b'; nothing answers at {first}"):
            holder_of("b", found)
        document = document_of(found)
        assert [each.socket for each in document.silent] == [str(first), str(second)]
        assert f"nothing answers at {second}" in " ".join(_render(document, Terminal(width_columns=400)).split())

    with silent(home, 1) as first, silent(home, 2) as second:
        while_one_answers(home, ask)


def test_where_all_hang_that_is_the_error(home: Path) -> None:
    with silent(home, 1) as path:
        assert everything().reached == ()
        with pytest.raises(NotSteered, match=str(path)):
            something()
        connected(path, 1.0).close()
    assert everything() == Everyone(())


def test_all_deployments_of_all_processes_are_waited_for(home: Path) -> None:
    async def play() -> None:
        first = control_of(SteeredLaunch({"a": supervisor("a")}, lambda: None), home)
        second = control_of(SteeredLaunch({"b": supervisor("b")}, lambda: None), home)
        second.path = launch_socket(os.environ, home, 1)
        await first.start()
        await second.start()
        try:
            found = await asyncio.to_thread(everything)
            looked = await asyncio.to_thread(_looked, found.reached, None)
            assert sorted(each.name for each in looked) == ["a", "b"]
        finally:
            await first.close()
            await second.close()

    asyncio.run(play())


def test_a_socket_that_is_named_and_is_none_is_an_error_with_its_path(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOLAUNCH_SOCKET", str(home / "nowhere.sock"))
    for ask in (everything, something):
        with pytest.raises(NotRunning, match=r"nowhere\.sock"):
            ask()
