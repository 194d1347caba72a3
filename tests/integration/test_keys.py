"""The file of keys on a real file system: owners, permissions, several commands at a time."""

from __future__ import annotations

import grp
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from autolaunch.daemon.gateway import key_file
from autolaunch.daemon.gateway.keys import Keys, key_of, made

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

ROOT = Path(__file__).parents[2]
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
#: Imported as who we are: another user may not reach the interpreter's files.
_AS_NOBODY = f"""
import os, sys
from pathlib import Path
import grp, tempfile
from autolaunch import api
from autolaunch.daemon import configuration
from autolaunch.daemon.gateway import key_file
from autolaunch.daemon.gateway.keys import Keys, key_of, made
from selector.errors import AutolaunchError
known = api.catalog()
known.find_model("glm-tiny")
group = int(sys.argv[2])
os.setgroups([])
os.setgid(group)
os.setuid({NOBODY})
path = Path(sys.argv[1])
try:
    if sys.argv[3] == "check":
        configuration.read(path.with_name("autolaunch.toml"), known)
    if sys.argv[3] == "add":
        key_file.add(path, key_of("other", made()))
    print(Keys.read(path).names)
except AutolaunchError as error:
    print(error.exit_code, error.message, error.hint)
"""


def autolaunch(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return command("keys", *arguments, stdin=stdin)


def command(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        (sys.executable, "-m", "autolaunch", *arguments),
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        timeout=30,
        check=False,
    )


def as_nobody(path: Path, what: str = "read", group: int = NOBODY) -> str:
    ended = subprocess.run(
        (sys.executable, "-c", _AS_NOBODY, str(path), str(group), what),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that anybody may enter, as /etc/autolaunch is; pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def owner(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def test_a_key_is_made_used_and_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    made_one = autolaunch("add", "web", "--file", str(path))
    assert made_one.returncode == 0, made_one.stderr
    secret = made_one.stdout.decode().removesuffix("\n")
    assert Keys.read(path).name_of(secret) == "web"
    brought = autolaunch("add", "mine", "--file", str(path), "--stdin", stdin=b"a-key-of-my-own-that-is-long\n")
    assert (brought.returncode, brought.stdout) == (0, b"")
    assert autolaunch("list", "--file", str(path)).stdout == b"web\nmine\n"
    assert autolaunch("remove", "web", "--file", str(path)).returncode == 0
    assert Keys.read(path).name_of(secret) is None
    assert Keys.read(path).name_of("a-key-of-my-own-that-is-long") == "mine"


def configured(folder: Path) -> Path:
    path = folder / "autolaunch.toml"
    path.write_text(
        f'[[deployments]]\nmodel = "glm-tiny"\n[gateway]\nhost = "::"\nport = 8123\nkeys_file = "{folder / "keys"}"\n'
    )
    return path


def test_a_check_of_the_configuration_tells_who_may_and_finds_what_is_wrong_with_their_keys(tmp_path: Path) -> None:
    check = ("serve", "--check", "--config", str(configured(tmp_path)))
    missing = command(*check)
    assert missing.returncode == 78
    assert b"gateway.keys_file" in missing.stderr
    assert autolaunch("add", "web", "--file", str(tmp_path / "keys")).returncode == 0
    assert command(*check).stdout.endswith(b"is right: glm-tiny at http://[::]:8123, for 1 key\n")
    document = json.loads(command(*check, "--json").stdout)
    assert (document["gateway"], document["keys"]) == ("http://[::]:8123", ["web"])
    (tmp_path / "keys").write_text("a-key-that-somebody-pasted\n")
    wrong = command(*check)
    assert wrong.returncode == 78
    assert b"line 1" in wrong.stderr
    assert b"pasted" not in wrong.stdout + wrong.stderr


@as_root
def test_keys_that_the_daemons_user_cannot_read_are_a_fault_of_the_configuration(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_file, "SERVICE", "no-such-group")
    configured(folder)
    key_file.add(folder / "keys", key_of("web", made()))
    told = as_nobody(folder / "keys", "check")
    assert told.startswith(f"78 {folder / 'autolaunch.toml'}: gateway.keys_file: {folder / 'keys'}: Permission denied")
    assert f"chmod 640 {folder / 'keys'}" in told


def test_the_command_needs_nothing_of_the_gateway_to_be_loaded() -> None:
    code = (
        "import sys; from autolaunch.cli.app import run; run(['keys', 'list', '--file', '/nowhere']); "
        "print([name for name in ('aiohttp', 'uvloop', 'prometheus_client') if name in sys.modules])"
    )
    ended = subprocess.run((sys.executable, "-c", code), cwd=ROOT, capture_output=True, timeout=30, check=True)
    assert ended.stdout == b"[]\n"


def test_several_commands_at_a_time_lose_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    code = (
        "import sys; from pathlib import Path; from autolaunch.daemon.gateway import key_file; "
        "from autolaunch.daemon.gateway.keys import key_of, made\n"
        "for n in range(10): key_file.add(Path(sys.argv[1]), key_of(f'{sys.argv[2]}-{n}', made()))"
    )
    several = [subprocess.Popen((sys.executable, "-c", code, str(path), name), cwd=ROOT) for name in ("a", "b", "c")]
    assert [each.wait(30) for each in several] == [0, 0, 0]
    assert sorted(Keys.read(path).names) == sorted(f"{name}-{number}" for name in "abc" for number in range(10))
    assert [each.name for each in tmp_path.iterdir()] == ["keys"]


@as_root
def test_a_new_file_of_root_is_for_nobody_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "SERVICE", "no-such-group")
    key_file.add(folder / "keys", key_of("web", made()))
    assert owner(folder / "keys") == (0, 0, 0o600)
    told = as_nobody(folder / "keys")
    assert told.startswith(f"78 {folder / 'keys'}: Permission denied")
    assert "chgrp autolaunch" in told


@as_root
def test_where_the_service_is_its_group_can_read_a_new_file_and_not_change_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = grp.getgrall()[-1]
    monkeypatch.setattr(key_file, "SERVICE", group.gr_name)
    key_file.add(folder / "keys", key_of("web", made()))
    assert owner(folder / "keys") == (0, group.gr_gid, 0o640)
    assert as_nobody(folder / "keys", group=group.gr_gid) == "('web',)"
    assert "Permission denied" in as_nobody(folder / "keys", "add", group=group.gr_gid)
    assert Keys.read(folder / "keys").names == ("web",)


@as_root
def test_a_file_keeps_its_owner_and_its_permissions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "keys"
    monkeypatch.setattr(key_file, "SERVICE", grp.getgrall()[-1].gr_name)
    path.write_text(key_of("web", made()).line)
    path.chmod(0o440)
    os.chown(path, NOBODY, 1)
    key_file.add(path, key_of("other", made()))
    assert owner(path) == (NOBODY, 1, 0o440)
    key_file.remove(path, "web")
    assert owner(path) == (NOBODY, 1, 0o440)
    assert as_nobody(path) == "('other',)"


@as_root
def test_a_file_whose_owner_cannot_be_kept_is_left_as_it_is(folder: Path) -> None:
    """Somebody who may write in the folder would make it their own by replacing it."""
    path = folder / "keys"
    path.write_text(key_of("web", made()).line)
    path.chmod(0o644)
    folder.chmod(0o777)
    before = (path.read_bytes(), owner(path))
    assert as_nobody(path, "add").startswith(f"78 {path}: Operation not permitted")
    assert (path.read_bytes(), owner(path)) == before
    assert [each.name for each in folder.iterdir()] == ["keys"]
