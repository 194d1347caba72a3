"""Where the control socket lies, who may have it, and that nobody's is taken."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from autolaunch.daemon.control.listening import MODE, Door, Peer, connected, peer_of
from autolaunch.daemon.control.places import SYSTEM_SOCKET, daemon_socket, launch_socket, to_ask
from selector.errors import ConfigurationError, DaemonRunning


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    return folder


def test_a_keepers_folder_is_the_daemons(tmp_path: Path, runtime: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": "/run/autolaunch:/run/other", "XDG_RUNTIME_DIR": str(runtime)}
    assert daemon_socket(environ, tmp_path) == Path("/run/autolaunch/control.sock")
    assert daemon_socket({"RUNTIME_DIRECTORY": "relative"}, tmp_path) == tmp_path / "control" / "control.sock"


def test_without_a_keeper_it_is_the_users_runtime_folder_or_the_home(tmp_path: Path, runtime: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(runtime)}
    assert daemon_socket(environ, tmp_path) == runtime / "autolaunch-own" / "control.sock"
    assert launch_socket(environ, tmp_path, 7) == runtime / "autolaunch-own" / "launch-7.sock"
    named = {**environ, "AUTOLAUNCH_HOME": str(tmp_path)}
    assert daemon_socket(named, tmp_path) == tmp_path / "control" / "control.sock"
    for wrong in ("", "relative", str(tmp_path / "missing"), "/dev/null"):
        assert daemon_socket({"XDG_RUNTIME_DIR": wrong}, tmp_path) == tmp_path / "control" / "control.sock"
    runtime.chmod(0o777)  # anybody could put a socket there
    assert daemon_socket(environ, tmp_path) == tmp_path / "control" / "control.sock"


def test_daemons_are_looked_for_in_order_and_launches_beside_them(tmp_path: Path, runtime: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(runtime)}
    own = runtime / "autolaunch-own"
    own.mkdir()
    for name in ("launch-12.sock", "launch-x.sock", "launch-1.sock.lock", "other"):
        (own / name).touch()
    found = to_ask(environ, tmp_path)
    assert found.daemons == (own / "control.sock", runtime / "autolaunch" / "control.sock", SYSTEM_SOCKET)
    assert found.launches == (own / "launch-12.sock",)
    assert to_ask({**environ, "AUTOLAUNCH_SOCKET": "/x/y"}, tmp_path) == ((Path("/x/y"),), ())


def test_the_socket_is_for_its_user_and_group_alone_and_goes_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "control" / "control.sock"
    door = Door(path)
    assert stat.S_IMODE(path.stat().st_mode) == MODE == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    door.close()
    assert not path.exists()


def test_a_path_too_long_for_an_address_is_listened_on_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120) / "control.sock"
    door = Door(path)
    door.socket.listen()
    with connected(path, 1.0) as connection:
        assert peer_of(connection) is not None
    door.close()
    assert not path.exists()


def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert path.exists()
    door = Door(path)
    door.socket.listen()
    connected(path, 1.0).close()
    door.close()


def test_a_socket_that_somebody_listens_on_is_never_taken(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    first = Door(path)
    first.socket.listen()
    with pytest.raises(DaemonRunning, match="another process listens"):
        Door(path)
    connected(path, 1.0).close()
    first.close()


def test_what_was_replaced_meanwhile_is_not_removed_by_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    first = Door(path)
    path.unlink()
    second = Door(path)
    first.close()
    assert path.exists()
    second.close()


def test_a_file_or_a_link_at_its_place_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    path = tmp_path / "control.sock"
    for linked in (False, True):
        if linked:
            path.symlink_to(target)
        else:
            path.write_text("kept")
        with pytest.raises(ConfigurationError, match="is no socket"):
            Door(path)
        assert path.read_text() == "kept"
        path.unlink()


def test_a_folder_that_others_can_write_into_or_a_link_to_one_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ConfigurationError, match="others can write"):
        Door(shared / "control.sock")
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(own)
    with pytest.raises(ConfigurationError):
        Door(tmp_path / "link" / "control.sock")


def test_root_the_own_user_and_the_sockets_group_may_ask_and_nobody_else(tmp_path: Path) -> None:
    door = Door(tmp_path / "control.sock")
    own = os.geteuid()
    assert door.group is None
    assert door.allows(Peer(0, frozenset()))
    assert door.allows(Peer(own, frozenset()))
    assert not door.allows(Peer(own + 12345, frozenset({0, 4711})))
    assert not door.allows(None)
    door.group = 4711
    assert door.allows(Peer(own + 12345, frozenset({4711})))
    assert not door.allows(Peer(own + 12345, frozenset({4712})))
    door.close()


def test_the_kernel_tells_who_is_at_the_other_end() -> None:
    one, other = socket.socketpair()
    with one, other:
        found = peer_of(one)
    assert found is not None
    assert found.uid == os.geteuid()
    assert set(os.getgroups()) | {os.getegid()} == found.groups
