"""``autolaunch keys``: a key is shown once, its hash is kept, and nothing else of it is ever said."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from autolaunch.cli.app import run
from autolaunch.daemon import configuration
from autolaunch.daemon.gateway import key_file
from autolaunch.daemon.gateway.keys import MAXIMUM_KEYS, Keys, key_of, made

SENTINEL = "hunter2-hunter2-hunter2"
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def nobody_in_particular(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without a configuration, on a host without the service."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(configuration, "SYSTEM_PATH", tmp_path / "etc" / "autolaunch.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def added(path: Path, name: str, capsys: Output) -> str:
    assert run(["keys", "add", name, "--file", str(path)]) == 0
    return capsys.readouterr().out.removesuffix("\n")


def test_a_new_key_is_alone_on_stdout_and_opens_the_gateway(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "new" / "keys"
    assert run(["keys", "add", "web", "--file", str(path)]) == 0
    out, err = capsys.readouterr()
    secret = out.removesuffix("\n")
    assert Keys.read(path).name_of(secret) == "web"
    assert secret not in path.read_text() + err
    assert "not shown again" in err
    assert "systemctl reload autolaunch" in " ".join(err.split())
    assert mode(path) == 0o600


def test_a_key_that_one_has_is_hashed_and_not_shown(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    for name, end in (("a", b""), ("b", b"\n"), ("c", b"\r\n")):
        give(monkeypatch, f"{SENTINEL}-{name}".encode() + end)
        assert run(["keys", "add", name, "--file", str(path), "--stdin"]) == 0
        out, err = capsys.readouterr()
        assert out == ""
        assert SENTINEL not in err + path.read_text()
        assert Keys.read(path).name_of(f"{SENTINEL}-{name}") == name


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"short-hunter2", f"{SENTINEL} {SENTINEL}".encode(), f"{SENTINEL}\n{SENTINEL}\n".encode()),
        *(f"{SENTINEL}\xe9".encode(), b"hunter2" * 100_000),
    ],
)
def test_what_can_be_no_key_is_refused_and_not_repeated(
    content: bytes, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, content)
    assert run(["keys", "add", "web", "--file", str(tmp_path / "keys"), "--stdin"]) == 2
    out, err = capsys.readouterr()
    assert "hunter2" not in out + err
    assert not (tmp_path / "keys").exists()


def test_a_name_has_one_key(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "keys"
    added(path, "web", capsys)
    before = path.read_bytes()
    assert run(["keys", "add", "web", "--file", str(path)]) == 2
    out, err = capsys.readouterr()
    assert "web has a key already" in err
    assert out == ""
    assert path.read_bytes() == before


def test_a_key_has_one_name(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    for name, code in (("web", 0), ("other", 2)):
        give(monkeypatch, SENTINEL.encode())
        assert run(["keys", "add", name, "--file", str(path), "--stdin"]) == code
    assert "this is the key of web already" in capsys.readouterr().err


def test_a_key_in_the_place_of_a_name_is_not_repeated(tmp_path: Path, capsys: Output) -> None:
    assert run(["keys", "add", f"{SENTINEL}/{SENTINEL}", "--file", str(tmp_path / "keys")]) == 2
    assert SENTINEL not in "".join(capsys.readouterr())


def test_what_a_person_wrote_in_the_file_stays(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of the web page\r\n\n  {key_of('web', SENTINEL).line}")
    path.chmod(0o440)
    secret = added(path, "batch", capsys)
    assert path.read_bytes().startswith(b"# of the web page\r\n\n  web:sha256:")
    assert Keys.read(path).name_of(secret) == "batch"
    assert mode(path) == 0o440
    assert run(["keys", "remove", "web", "--file", str(path)]) == 0
    assert Keys.read(path).names == ("batch",)
    assert path.read_bytes().startswith(b"# of the web page\r\n\nbatch:sha256:")
    assert mode(path) == 0o440


def test_a_link_to_the_file_stays_one(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "keys")
    added(tmp_path / "link", "a", capsys)
    added(tmp_path / "link", "b", capsys)
    assert (tmp_path / "link").is_symlink()
    assert Keys.read(tmp_path / "keys").names == ("a", "b")


def test_names_are_listed_and_nothing_else(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "keys"
    secrets = [added(path, name, capsys) for name in ("web", "batch")]
    assert run(["keys", "list", "--file", str(path)]) == 0
    assert capsys.readouterr().out == "web\nbatch\n"
    assert run(["keys", "list", "--file", str(path), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == {"schema": 1, "file": str(path), "keys": ["web", "batch"]}
    assert not [each for each in secrets if each in out]


def test_a_key_is_taken_away_by_its_whole_name(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "keys"
    for name in ("web", "web2", "w"):
        added(path, name, capsys)
    assert run(["keys", "remove", "web", "--file", str(path)]) == 0
    assert Keys.read(path).names == ("web2", "w")
    assert run(["keys", "remove", "web", "--file", str(path)]) == 2
    assert "no key has that name" in capsys.readouterr().err


def test_that_the_last_key_is_gone_is_said(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "keys"
    added(path, "web", capsys)
    assert run(["keys", "remove", "web", "--file", str(path)]) == 0
    assert "it was the last" in capsys.readouterr().err
    assert run(["keys", "list", "--file", str(path)]) == 78
    assert "there is no key in it" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["add", "b"], ["remove", "a"], ["list"]])
def test_a_file_that_is_wrong_is_left_as_it_is(command: list[str], tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "keys"
    text = f"{key_of('a', made()).line}\n{SENTINEL}\n"
    path.write_text(text)
    path.chmod(0o600)
    assert run(["keys", *command, "--file", str(path)]) == 78
    out, err = capsys.readouterr()
    assert "line 2" in err
    assert SENTINEL not in out + err
    assert path.read_text() == text
    assert [each.name for each in tmp_path.iterdir()] == ["keys"]


def test_no_more_keys_are_taken_than_are_read(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "keys"
    path.write_text("".join(f"c{number}:sha256:{number:064x}\n" for number in range(MAXIMUM_KEYS)))
    path.chmod(0o600)
    assert run(["keys", "add", "one-more", "--file", str(path)]) == 78
    assert "more than 1000 keys" in capsys.readouterr().err
    assert len(Keys.read(path).names) == MAXIMUM_KEYS


@pytest.mark.parametrize("command", [["remove", "a"], ["list"]])
def test_a_file_that_is_not_there_is_made_by_adding_alone(command: list[str], tmp_path: Path, capsys: Output) -> None:
    assert run(["keys", *command, "--file", str(tmp_path / "none" / "keys")]) == 78
    assert "there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_file_is_the_one_that_the_configuration_names_whatever_else_is_wrong_in_it(
    tmp_path: Path, capsys: Output
) -> None:
    settings = tmp_path / "settings" / "autolaunch"
    settings.mkdir(parents=True)
    (settings / "autolaunch.toml").write_text(f'prot = 1\n[gateway]\nkeys_file = "{tmp_path / "clients"}"\n')
    assert run(["keys", "add", "web"]) == 0
    assert "does not name" not in " ".join(capsys.readouterr().err.split())
    assert Keys.read(tmp_path / "clients").names == ("web",)


def test_without_a_configuration_the_file_is_among_the_users_settings_and_that_is_said(
    tmp_path: Path, capsys: Output
) -> None:
    assert run(["keys", "add", "web"]) == 0
    path = tmp_path / "settings" / "autolaunch" / "keys"
    assert Keys.read(path).names == ("web",)
    said = "".join(capsys.readouterr().err.split())
    assert f'[gateway]keys_file="{path}"' in said


def test_for_root_the_file_is_beside_the_hosts_configuration(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(key_file, "SERVICE", "no-such-group")
    assert run(["keys", "add", "web"]) == 0
    assert Keys.read(tmp_path / "etc" / "keys").names == ("web",)
    assert mode(tmp_path / "etc" / "keys") == 0o600


@pytest.mark.parametrize("text", ["[gateway", '[gateway]\nkeys_file = "keys"', "[gateway]\nkeys_file = 3"])
def test_no_other_file_is_taken_for_one_that_cannot_be_told(text: str, tmp_path: Path, capsys: Output) -> None:
    settings = tmp_path / "settings" / "autolaunch"
    settings.mkdir(parents=True)
    (settings / "autolaunch.toml").write_text(text)
    assert run(["keys", "add", "web"]) == 78
    out, err = capsys.readouterr()
    assert str(settings / "autolaunch.toml") in "".join(err.split())
    assert out == ""


def test_a_disk_that_takes_no_more_leaves_the_old_file(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    added(path, "web", capsys)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run(["keys", "add", "other", "--file", str(path)]) == 78
    out, err = capsys.readouterr()
    assert "No space left on device" in err
    assert out == ""
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["keys"]
