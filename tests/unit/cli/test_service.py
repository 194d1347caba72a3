"""``autolaunch service``: who may, what is said, and what is run. No command runs here and nothing leaves the image."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autolaunch.cli.app import run
from autolaunch.service import here as here_module
from autolaunch.service import install as install_module
from autolaunch.service.devices import Devices
from autolaunch.service.here import Here
from autolaunch.service.install import make
from autolaunch.service.keeping import Act, Wanted, kept, perform, refuse_unless_it_can_be_done
from selector.errors import ConfigurationError, UsageError

PROGRAM = Path("/bin/sh")  # anybody may run it
ROOT_HERE = Here(keeper="systemd", running=True, uid=0, user="root", home=Path("/root"))


def person(home: Path, **changed: Any) -> Here:
    return msgspec.structs.replace(Here(keeper="systemd", running=True, uid=1000, user="ann", home=home), **changed)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    folder = tmp_path / "image"
    folder.mkdir()
    return folder


def documents(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["service", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    return found


def test_an_image_gets_the_files_and_a_person_the_command(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--root", str(image), "--program", "/opt/autolaunch/bin/autolaunch")
    assert not any(image.iterdir())
    dry = documents(capsys, "install", *options, "--dry-run")
    assert {row["state"] for row in dry["files"]} == {"absent"}
    assert "ExecStart=/opt/autolaunch/bin/autolaunch serve" in dry["files"][0]["text"]
    assert not any(image.iterdir())

    written = documents(capsys, "install", *options)
    assert {row["state"] for row in written["files"]} == {"written"}
    assert {row["path"].removeprefix(str(image)) for row in written["files"]} == {
        "/etc/systemd/system/autolaunch.service",
        "/etc/systemd/system/autolaunch.service.d/devices.conf",
        "/etc/sysusers.d/autolaunch.conf",
        "/etc/tmpfiles.d/autolaunch.conf",
        "/etc/autolaunch/autolaunch.toml",
    }
    assert written["commands"] == []
    assert written["next"] == [["systemctl", f"--root={image}", "enable", "autolaunch.service"]]

    assert {row["state"] for row in documents(capsys, "install", *options)["files"]} == {"same", "kept"}
    moved = ("--root", str(image), "--program", "/usr/bin/autolaunch")
    assert [row["state"] for row in documents(capsys, "show", *moved)["files"]].count("differs") == 1

    gone = documents(capsys, "uninstall", "--root", str(image))
    assert {row["state"] for row in gone["files"]} == {"removed"}
    assert [str(path.relative_to(image)) for path in image.rglob("*") if path.is_file()] == [
        "etc/autolaunch/autolaunch.toml"
    ]


def test_it_says_what_it_did_in_sentences(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--root", str(image), "--program", "/opt/autolaunch"]
    assert run(["service", "install", *options]) == 0
    out = capsys.readouterr().out
    assert f"wrote {image}/etc/systemd/system/autolaunch.service\n" in out
    assert f"next: systemctl --root={image} enable autolaunch.service" in out
    assert run(["service", "install", *options]) == 0
    assert "autolaunch.toml is yours, and stays as it is" in capsys.readouterr().out
    assert run(["service", "show", *options]) == 0
    assert "Type=notify" in capsys.readouterr().out
    assert run(["service"]) == 0
    assert "uninstall" in capsys.readouterr().out


def test_a_model_is_written_into_a_new_configuration_and_into_no_other(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["service", "install", "--root", str(image), "--program", "/opt/autolaunch"]
    assert run([*options, "--model", "glm-9000"]) == 2
    assert not any(image.iterdir())
    assert run([*options, "--model", "glm-4.6"]) == 0
    configuration = image / "etc/autolaunch/autolaunch.toml"
    assert '\nmodel = "glm-4.6"\n' in configuration.read_text()
    before = configuration.read_text()
    capsys.readouterr()
    assert run([*options, "--model", "glm-4.5v"]) == 2
    assert "there is a configuration already" in capsys.readouterr().err
    assert configuration.read_text() == before


def test_a_configuration_without_a_model_is_said_before_it_is_started(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["service", "install", "--root", str(image), "--program", "/opt/autolaunch"]
    configuration = image / "etc/autolaunch/autolaunch.toml"
    for _ in ("a new one", "the same again"):
        assert run(options) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert f"before it is started, name a model in {configuration}" in told
    configuration.write_text('[[deployments]]\nmodel = "glm-4.6"\n')
    assert run(options) == 0
    assert "before it is started" not in capsys.readouterr().out


def test_nothing_is_enabled_as_long_as_no_model_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here_module, "here", lambda _: person(tmp_path))
    monkeypatch.setattr("autolaunch.service.keeping.perform", lambda _: pytest.fail("a command was run"))
    assert run(["service", "install", "--user", "--now"]) == 2
    err = capsys.readouterr().err
    assert "there is nothing to start yet" in err
    assert "--model" in err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["install", "--root", ".", "--user"], "--root is for a service of the host"),
        (["install", "--root", "."], "where autolaunch lies in the image is not known"),
        (["install", "--root", ".", "--program", "relative"], "no absolute path"),
        (["instal"], "no such command"),
    ],
)
def test_what_cannot_be_meant_is_said(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image)
    assert run(["service", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not any(image.iterdir())


def test_without_systemd_the_daemon_is_run_by_hand() -> None:
    with pytest.raises(UsageError, match="systemd does not run") as caught:
        refuse_unless_it_can_be_done(Wanted(), msgspec.structs.replace(ROOT_HERE, running=False))
    assert "autolaunch serve" in str(caught.value.hint)
    refuse_unless_it_can_be_done(Wanted(root=Path("/image")), msgspec.structs.replace(ROOT_HERE, running=False))


def test_without_root_there_is_a_service_of_ones_own() -> None:
    with pytest.raises(UsageError, match="root's") as caught:
        refuse_unless_it_can_be_done(Wanted(), person(Path("/home/ann")))
    assert "--user" in str(caught.value.hint)
    refuse_unless_it_can_be_done(Wanted(of_user=True), person(Path("/home/ann")))
    refuse_unless_it_can_be_done(Wanted(), ROOT_HERE)


def test_a_program_that_the_services_user_cannot_run_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    (folder / "autolaunch").touch(mode=0o755)
    with pytest.raises(UsageError, match=r"cannot (enter|run)") as caught:
        make(Wanted(program=folder / "autolaunch"), ROOT_HERE, {}, devices=Devices)
    assert "/opt" in str(caught.value.hint)
    with pytest.raises(UsageError, match=r"is not there|cannot enter"):
        make(Wanted(program=tmp_path / "absent"), ROOT_HERE, {}, devices=Devices)


def test_the_program_that_runs_now_is_looked_at_with_its_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "python"
    closed.touch(mode=0o700)
    monkeypatch.setattr(install_module, "own_program", lambda _: (str(PROGRAM),))
    monkeypatch.setattr(install_module, "parts_of_it", lambda: (closed,))
    with pytest.raises(UsageError, match="needs"):
        make(Wanted(), ROOT_HERE, {}, devices=Devices)


def test_uv_is_found_now_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here_module, "SEARCH_PATH", ("/usr/bin",))
    made = make(Wanted(program=PROGRAM), ROOT_HERE, {"UV": "/bin/sh"}, devices=Devices)
    assert "Environment=PATH=/bin:/usr/bin\n" in made.files[0].text
    hidden = tmp_path / "uv"
    hidden.touch(mode=0o700)
    made = make(Wanted(program=PROGRAM), ROOT_HERE, {"UV": str(hidden)}, devices=Devices)
    assert str(tmp_path) not in made.files[0].text
    assert any("out of reach" in note for note in made.notes)


def test_a_token_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no file"):
        make(Wanted(program=PROGRAM, hub_token_file=tmp_path / "absent"), ROOT_HERE, {}, devices=Devices)


def test_the_host_is_settled_before_the_service_is_started() -> None:
    found = kept(Wanted(), ROOT_HERE)
    assert [act.argv[0] for act in found.settle] == ["systemd-sysusers", "systemd-tmpfiles", "systemctl"]
    assert [act.argv for act in found.start] == [("systemctl", "enable", "--now", "autolaunch.service")]
    assert [act.argv for act in found.stop] == [("systemctl", "disable", "--now", "autolaunch.service")]
    assert kept(Wanted(root=Path("/image")), ROOT_HERE).settle == ()


def test_a_persons_own_is_told_to_their_manager_and_lingering_is_named(tmp_path: Path) -> None:
    found = kept(Wanted(of_user=True), person(tmp_path))
    assert {act.argv[:2] for act in (*found.settle, *found.start, *found.stop)} == {("systemctl", "--user")}
    made = make(Wanted(of_user=True, program=PROGRAM), person(tmp_path), {})
    assert any("loginctl enable-linger ann" in note for note in made.notes)
    assert [file.path for file in made.files] == [
        tmp_path / ".config/systemd/user/autolaunch.service",
        tmp_path / ".config/autolaunch/autolaunch.toml",
    ]


def test_a_mac_has_the_same_verb(tmp_path: Path) -> None:
    mac = person(tmp_path, keeper="launchd")
    found = kept(Wanted(of_user=True), mac)
    assert found.paths == (tmp_path / "Library/LaunchAgents/autolaunch.plist",)
    assert [act.argv[:3] for act in found.start] == [
        ("launchctl", "bootout", "gui/1000/autolaunch"),
        ("launchctl", "bootstrap", "gui/1000"),
    ]
    made = make(Wanted(of_user=True, program=PROGRAM), mac, {})
    assert made.files[0].path == found.paths[0]
    assert any("tried every 60 s" in note for note in made.notes)


def test_a_macs_daemon_runs_as_who_asked_for_it_and_never_as_root() -> None:
    mac = msgspec.structs.replace(ROOT_HERE, keeper="launchd")
    with pytest.raises(UsageError, match="one of its users"):
        make(Wanted(program=PROGRAM), mac, {})
    made = make(Wanted(program=PROGRAM), msgspec.structs.replace(mac, sudo_user="nobody"), {})
    assert "<string>nobody</string>" in made.files[0].text
    with pytest.raises(UsageError, match="no user"):
        make(Wanted(program=PROGRAM), msgspec.structs.replace(mac, sudo_user="no such user"), {})


def ended(code: int, said: str = "") -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda argv, **_: subprocess.CompletedProcess(argv, code, "", said)


def test_a_command_that_fails_is_said_unless_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    act = Act(argv=("systemctl", "enable"))
    monkeypatch.setattr(subprocess, "run", ended(0))
    assert perform((act,)) == (act.argv,)
    monkeypatch.setattr(subprocess, "run", ended(1, "Job failed.\nSee more."))
    with pytest.raises(ConfigurationError, match=r"systemctl enable failed: Job failed\. See more\."):
        perform((act,))
    assert perform((msgspec.structs.replace(act, only_if_it_can=True),)) == ()


def test_a_command_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be run: No such file"):
        perform((Act(argv=(str(tmp_path / "absent"),)),))
