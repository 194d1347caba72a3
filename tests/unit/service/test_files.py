"""Where the files of a service go, what is left alone, and who can get at a program."""

from __future__ import annotations

from pathlib import Path

import pytest

from autolaunch.service.files import ours, remove, state, write
from autolaunch.service.reach import out_of_reach
from autolaunch.service.setup import MARK, File
from selector.errors import UsageError

UNIT = File(path=Path("/etc/systemd/system/autolaunch.service"), text=f"# {MARK}\nnew\n")
DROP_IN = File(path=Path("/etc/systemd/system/autolaunch.service.d/devices.conf"), text=f"# {MARK}\n")
CONFIGURATION = File(path=Path("/etc/autolaunch/autolaunch.toml"), text="schema = 1\n", once=True)
FILES = (UNIT, DROP_IN, CONFIGURATION)
PATHS = (UNIT.path, DROP_IN.path)


def test_files_are_written_once_and_again_only_when_they_change(tmp_path: Path) -> None:
    assert [state(file, tmp_path) for file in FILES] == ["absent"] * 3
    assert len(write(FILES, tmp_path)) == 3
    assert [state(file, tmp_path) for file in FILES] == ["same", "same", "kept"]
    assert write(FILES, tmp_path) == ()
    other = File(path=UNIT.path, text=f"# {MARK}\nnewer\n")
    assert state(other, tmp_path) == "differs"
    assert write((other,), tmp_path) == (tmp_path / "etc/systemd/system/autolaunch.service",)
    written = tmp_path / "etc/systemd/system/autolaunch.service"
    assert written.read_text() == other.text
    assert written.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in written.parent.iterdir()] in (
        ["autolaunch.service", "autolaunch.service.d"],
        ["autolaunch.service.d", "autolaunch.service"],
    )


def test_a_configuration_that_is_there_is_never_written(tmp_path: Path) -> None:
    own = tmp_path / "etc/autolaunch/autolaunch.toml"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    write(FILES, tmp_path)
    assert own.read_text() == "mine"
    own.unlink()
    own.symlink_to("nowhere")
    assert state(CONFIGURATION, tmp_path) == "kept"


def test_a_strangers_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    foreign = tmp_path / "etc/systemd/system/autolaunch.service.d/devices.conf"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("[Service]\n")
    with pytest.raises(UsageError, match="was not written by"):
        write(FILES, tmp_path)
    assert not (tmp_path / "etc/systemd/system/autolaunch.service").exists()
    assert foreign.read_text() == "[Service]\n"


def test_a_masked_unit_is_a_strangers(tmp_path: Path) -> None:
    masked = tmp_path / "etc/systemd/system/autolaunch.service"
    masked.parent.mkdir(parents=True)
    masked.symlink_to("/dev/null")
    with pytest.raises(UsageError):
        write((UNIT,), tmp_path)
    assert ours(PATHS, tmp_path) == ((), (masked,))


def test_only_what_was_written_is_removed(tmp_path: Path) -> None:
    write(FILES, tmp_path)
    gone, left = ours(PATHS, tmp_path)
    assert (len(gone), left) == (2, ())
    remove(gone)
    assert not (tmp_path / "etc/systemd/system/autolaunch.service.d").exists()
    assert (tmp_path / "etc/systemd/system").is_dir()
    assert (tmp_path / "etc/autolaunch/autolaunch.toml").exists()
    assert ours(PATHS, tmp_path) == ((), ())


def test_a_folder_with_a_drop_in_of_the_users_own_stays(tmp_path: Path) -> None:
    write(FILES, tmp_path)
    own = tmp_path / "etc/systemd/system/autolaunch.service.d/override.conf"
    own.write_text("[Service]\nNice=1\n")
    gone, left = ours((*PATHS, Path("/etc/systemd/system/autolaunch.service.d/override.conf")), tmp_path)
    remove(gone)
    assert left == (own,)
    assert own.exists()


def test_a_link_that_leads_out_of_an_image_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    image = tmp_path / "image"
    image.mkdir()
    (image / "etc").symlink_to(outside)
    with pytest.raises(UsageError, match="leads out"):
        write(FILES, image)
    assert list(outside.iterdir()) == []


def test_what_others_may_not_enter_or_run_is_out_of_their_reach(tmp_path: Path) -> None:
    program = tmp_path / "a/b/program"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    tmp_path.chmod(0o755)
    # The folders above are pytest's, and nobody else's.
    above = out_of_reach(tmp_path)
    first = above or tmp_path / "a"
    (tmp_path / "a").chmod(0o750)
    assert out_of_reach(program) == first
    assert out_of_reach(tmp_path / "absent") == (above or tmp_path / "absent")


def test_a_program_for_everybody_is_in_reach_and_its_link_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert out_of_reach(Path("/bin/sh")) is None
    hidden = tmp_path / "hidden"
    hidden.touch(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(hidden)
    assert out_of_reach(link) is not None
