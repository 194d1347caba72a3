"""Locks, sharing and trust of environments, over a fake uv."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engines.environments import Environment, Environments, folder_name, python_request, read_manifest, trust
from engines.environments.folders import used_bytes
from engines.environments.made import damage, made, remove, users
from engines.environments.requirements import digest, entries
from engines.environments.torch_build import locked_torch_arguments
from selector.catalog import Catalog
from selector.engine_facts import Package
from selector.errors import EngineError, EngineInstallError
from tests.fakes.uv import Uv

MLX = Catalog().engine("mlx")
PACKAGE = Package(
    name="mlx-lm",
    requirements=("mlx-lm==0.32.2", "mlx==0.32.4"),
    architectures=("glm4_moe",),
    devices=("cpu",),
    bytes_on_disk=1000,
    source="test",
)
LOCK = "mlx-lm==0.32.2 \\\n    --hash=sha256:aa\nmlx==0.32.4 \\\n    --hash=sha256:bb\n"


@pytest.fixture
def uv(tmp_path: Path) -> Uv:
    return Uv(tmp_path)


@pytest.fixture
def environments(tmp_path: Path) -> Environments:
    return Environments(tmp_path / "engines")


# --- the lock ---------------------------------------------------------------------------------------


def test_what_was_resolved_is_kept_without_addresses_and_is_what_is_installed(
    uv: Uv, environments: Environments
) -> None:
    place = environments.ensure(MLX, PACKAGE, environ=uv.environ()).directory
    lock = place / "requirements.lock"
    assert "index" not in lock.read_text()
    assert [(each.name, each.version) for each in entries(lock.read_text())] == [
        ("mlx-lm", "0.32.2"),
        ("mlx", "0.32.4"),
    ]
    assert uv.calls()[-1][0][-2:] == ["--requirements", str(lock)]
    manifest = read_manifest(place)
    assert manifest is not None
    assert manifest.lock_sha256 == digest(lock.read_text())
    assert (manifest.packages, manifest.requirements) == (2, PACKAGE.requirements)


def test_a_lock_is_installed_as_it_says_without_resolving(uv: Uv, environments: Environments) -> None:
    one = environments.ensure(MLX, PACKAGE, lock=LOCK, environ=uv.environ())
    assert [call[0][:2] for call in uv.calls()][1:] == [["pip", "install"]]
    assert (one.directory / "requirements.lock").read_text() == LOCK
    assert environments.find("mlx", MLX.version, PACKAGE) == one, "a launch takes it"
    assert environments.ensure(MLX, PACKAGE, lock=LOCK, environ=uv.environ()) == one
    assert len(uv.calls()) == 2


def test_an_environment_of_another_lock_stays_beside_it(uv: Uv, environments: Environments) -> None:
    one = environments.ensure(MLX, PACKAGE, environ=uv.environ())
    other = environments.ensure(MLX, PACKAGE, lock=LOCK, environ=uv.environ())
    assert other.directory != one.directory
    assert environments.ensure(MLX, PACKAGE, lock=LOCK, environ=uv.environ()) == other
    assert environments.find("mlx", MLX.version, PACKAGE) == one


def test_where_another_host_has_it_there_it_is_made_or_not_at_all(uv: Uv, environments: Environments) -> None:
    name = folder_name("mlx", MLX.version, PACKAGE, python_request())
    apart = folder_name("mlx", MLX.version, PACKAGE, python_request(), lock_sha256=digest(LOCK))
    for at, said in (
        (environments.root / "mlx-of-python-3.9", f"with Python {python_request()} it would be {name}"),
        (environments.root.parent / "else" / name, f"here they lie in {environments.root}"),
    ):
        with pytest.raises(EngineInstallError, match=said):
            environments.ensure(MLX, PACKAGE, lock=LOCK, at=at, environ=uv.environ())
    assert uv.calls() == []
    there = environments.root / apart  # beside another lock's on that host, and here alone
    one = environments.ensure(MLX, PACKAGE, lock=LOCK, at=there, environ=uv.environ())
    assert one.directory == there
    assert environments.ensure(MLX, PACKAGE, lock=LOCK, at=there, environ=uv.environ()) == one
    environments.ensure(MLX, PACKAGE, environ=uv.environ())
    with pytest.raises(EngineInstallError, match="holds the packages of another lock") as caught:
        environments.ensure(MLX, PACKAGE, lock=LOCK, at=environments.root / name, environ=uv.environ())
    assert caught.value.hint == f"autolaunch engines remove mlx-lm=={MLX.version} makes room for it"


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        ("", "the lock is empty"),
        (
            "--default-index https://elsewhere\n" + LOCK,
            "'--default-index https://elsewhere' is no package",
        ),
        ("mlx-lm==0.32.2\nmlx==0.32.4 --hash=sha256:bb\n", "'mlx-lm==0.32.2' is no package with a version and hashes"),
        ("mlx-lm @ https://elsewhere/mlx.whl --hash=sha256:aa\n", "is no package with a version"),
        ("mlx==0.32.4 --hash=sha256:bb\n", "holds no mlx-lm, and mlx-lm 0.32.2 was asked for"),
        ("mlx-lm==0.31.0 --hash=sha256:aa\n", "holds mlx-lm 0.31.0, and mlx-lm 0.32.2 was asked for"),
        (LOCK + "TorchVision==1 --hash=sha256:cc\n", "holds torchvision, which mlx-lm must not have"),
    ],
)
def test_a_lock_that_is_none_is_refused_before_anything_runs(
    uv: Uv, environments: Environments, lock: str, said: str
) -> None:
    package = msgspec.structs.replace(PACKAGE, excludes=("torchvision",))
    with pytest.raises(EngineInstallError) as caught:
        environments.ensure(MLX, package, lock=lock, environ=uv.environ())
    assert said in caught.value.message
    assert uv.calls() == []


def test_what_must_not_be_installed_is_taken_out_whoever_asks_for_it(uv: Uv, environments: Environments) -> None:
    package = msgspec.structs.replace(PACKAGE, excludes=("torchvision", "triton"))
    place = environments.ensure(MLX, package, environ=uv.environ()).directory
    call = uv.calls()[1][0]
    overrides = Path(call[call.index("--overrides") + 1])
    assert overrides == place / "excludes.txt"
    assert overrides.read_text().splitlines() == [
        "torchvision ; python_version < '0'",
        "triton ; python_version < '0'",
    ]
    assert environments.find("mlx", MLX.version, PACKAGE) is None, "without them it is another environment"


@pytest.mark.parametrize(
    ("version", "environment", "arguments"),
    [
        ("2.14.0+cu130", {}, ("--torch-backend", "cu130")),
        ("2.13.0+cpu", {}, ("--torch-backend", "cpu")),
        ("2.13.0", {}, ()),
        ("2.13.0+cpu", {"UV_TORCH_BACKEND": "cpu"}, ()),
    ],
)
def test_a_lock_leads_to_the_build_of_pytorch_that_it_names(
    version: str, environment: dict[str, str], arguments: tuple[str, ...]
) -> None:
    package = msgspec.structs.replace(PACKAGE, torch_backend=True)
    lock = f"torch=={version} --hash=sha256:aa\n"
    assert locked_torch_arguments(lock, package, environment) == arguments


def test_a_wheel_at_hand_needs_no_index_of_pytorch(tmp_path: Path) -> None:
    package = msgspec.structs.replace(PACKAGE, torch_backend=True)
    lock = "torch==2.13.0+cpu --hash=sha256:aa\n"
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    assert locked_torch_arguments(lock, package, {"UV_FIND_LINKS": str(tmp_path)}) == ()
    other = "torch==2.13.0+cu130 --hash=sha256:aa\n"
    assert locked_torch_arguments(other, package, {"UV_FIND_LINKS": str(tmp_path)}) == ("--torch-backend", "cu130")


def test_an_environment_whose_packages_are_not_known_is_made_anew(uv: Uv, environments: Environments) -> None:
    place = environments.ensure(MLX, PACKAGE, environ=uv.environ()).directory
    manifest = json.loads((place / "environment.json").read_text())
    known = {name: value for name, value in manifest.items() if name != "lock_sha256"}
    (place / "environment.json").write_text(json.dumps(known))
    (place / "requirements.lock").unlink()
    assert environments.find("mlx", MLX.version, PACKAGE) is None
    assert damage(place) == "it is not finished"
    assert environments.ensure(MLX, PACKAGE, environ=uv.environ()).directory == place
    assert json.loads((place / "environment.json").read_text()) == manifest
    assert environments.find("mlx", MLX.version, PACKAGE) is not None


def test_where_no_index_answers_what_is_cached_is_enough(uv: Uv, environments: Environments) -> None:
    environments.ensure(MLX, PACKAGE, environ=uv.environ("cached"))
    assert ["--offline" in call[0] for call in uv.calls()] == [False, False, True, False, True]


def test_offline_every_package_that_is_missing_is_named(uv: Uv, environments: Environments) -> None:
    lock = LOCK + "".join(
        f"{name}=={number} --hash=sha256:cc\n" for number, name in enumerate(("zero", "one", "two", "three"))
    )
    with pytest.raises(EngineInstallError) as caught:
        environments.ensure(MLX, PACKAGE, lock=lock, environ=uv.environ("missing"))
    assert caught.value.message == (
        "mlx-lm cannot be installed without a network: one 1, three 3 are not in uv's cache"
    )
    assert caught.value.hint
    assert list(environments.root.iterdir()) == []


# --- whom to trust ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".", "bin", "lib", "environment.json"])
def test_what_everybody_can_write_is_not_run(uv: Uv, environments: Environments, name: str) -> None:
    place = environments.ensure(MLX, PACKAGE, environ=uv.environ()).directory
    (place / "lib").mkdir()
    assert environments.find("mlx", MLX.version, PACKAGE) is not None
    (place / name).chmod(0o777)
    assert environments.find("mlx", MLX.version, PACKAGE) is None
    (one,) = made(environments)
    assert one.problem is not None
    assert "can be written by everybody" in one.problem


def test_a_folder_that_others_can_write_gets_no_environment(uv: Uv, environments: Environments) -> None:
    environments.root.mkdir()
    environments.root.chmod(0o777)
    with pytest.raises(EngineInstallError, match="can be written by everybody"):
        environments.ensure(MLX, PACKAGE, environ=uv.environ())
    assert uv.calls() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="files of another user are root's to make")
def test_what_belongs_to_another_user_is_not_run(uv: Uv, environments: Environments) -> None:
    place = environments.ensure(MLX, PACKAGE, environ=uv.environ()).directory
    os.chown(place / "bin", 65534, 0)
    assert environments.find("mlx", MLX.version, PACKAGE) is None
    assert trust.complaint((place / "bin",), uid=65534) is None
    assert "belongs to another user" in str(trust.complaint((place / "bin",), uid=65533))


@pytest.mark.skipif(os.geteuid() != 0, reason="groups of others are root's to give")
def test_what_a_group_can_write_is_not_run_unless_the_group_is_one_user(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o775)
    assert trust.complaint((shared,)) is None, "root's own group"
    os.chown(shared, 0, 54321)
    assert "can be written by its whole group" in str(trust.complaint((shared,)))


def test_a_sticky_folder_on_the_way_is_no_danger_and_within_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    assert trust.complaint((tmp_path,), above=True) is None
    assert trust.complaint((tmp_path,)) is not None


# --- for all users ----------------------------------------------------------------------------------


def test_a_shared_environment_is_found_by_those_who_have_none(uv: Uv, tmp_path: Path) -> None:
    root = Environments(tmp_path / "root", shared=tmp_path / "shared")
    shared = root.ensure(MLX, PACKAGE, share=True, environ=uv.environ())
    assert shared.shared
    assert shared.directory.parent == tmp_path / "shared"
    somebody = Environments(tmp_path / "home", shared=tmp_path / "shared")
    assert somebody.find("mlx", MLX.version, PACKAGE) == shared
    assert somebody.ensure(MLX, PACKAGE, environ=uv.environ()) == shared
    assert not (tmp_path / "home").exists()


def test_the_hosts_environments_come_first_unless_a_home_was_named(uv: Uv, tmp_path: Path) -> None:
    own = Environments(tmp_path / "home" / "engines").ensure(MLX, PACKAGE, environ=uv.environ())
    host = tmp_path / "shared"
    shared = Environments(tmp_path / "x", shared=host).ensure(MLX, PACKAGE, share=True, environ=uv.environ())
    environ = {"AUTOLAUNCH_SHARED": str(host)}
    assert Environments.of(tmp_path / "home", environ).find("mlx", MLX.version, PACKAGE) == shared
    named = environ | {"AUTOLAUNCH_HOME": str(tmp_path / "home")}
    assert Environments.of(tmp_path / "home", named).find("mlx", MLX.version, PACKAGE) == own


def test_a_shared_environment_of_another_python_serves_too(uv: Uv, tmp_path: Path) -> None:
    environments = Environments(tmp_path / "home", shared=tmp_path / "shared")
    one = environments.ensure(MLX, PACKAGE, share=True, environ=uv.environ())
    other = one.directory.with_name(folder_name("mlx", MLX.version, PACKAGE, _another_python()))
    one.directory.rename(other)
    manifest = json.loads((other / "environment.json").read_text())
    (other / "environment.json").write_text(
        json.dumps(manifest | {"directory": str(other), "python": _another_python()})
    )
    found = environments.find("mlx", MLX.version, PACKAGE)
    assert found is not None
    assert found.directory == other


def _another_python() -> str:
    return "3.12" if python_request() != "3.12" else "3.13"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes environments for others")
def test_what_root_installs_under_a_narrow_umask_others_may_read(uv: Uv, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        place = Environments(tmp_path / "x", shared=tmp_path / "a" / "shared").ensure(
            MLX, PACKAGE, share=True, environ=uv.environ()
        )
    finally:
        os.umask(before)
    for path in (tmp_path / "a", tmp_path / "a" / "shared", place.directory, *place.directory.rglob("*")):
        if not path.is_symlink():
            assert path.stat().st_mode & (0o005 if path.is_dir() else 0o004), path
            assert not path.stat().st_mode & 0o022, path


# --- what is there, and its end ---------------------------------------------------------------------


def test_what_was_half_made_is_listed_and_removed(uv: Uv, environments: Environments) -> None:
    place = environments.ensure(MLX, PACKAGE, environ=uv.environ()).directory
    (place / "environment.json").unlink()
    (one,) = made(environments)
    assert one.problem == "it is not finished"
    remove(one)
    assert list(environments.root.iterdir()) == []


def test_what_is_removed_is_told_in_bytes_with_what_the_cache_keeps(
    uv: Uv, environments: Environments, tmp_path: Path
) -> None:
    place = environments.ensure(MLX, PACKAGE, environ=uv.environ()).directory
    before = used_bytes(place)[0]
    (place / "alone").write_bytes(b"x" * 8192)
    (tmp_path / "cached").write_bytes(b"x" * 4096)
    os.link(tmp_path / "cached", place / "linked")
    gone = remove(made(environments)[0])
    assert gone.bytes_on_disk == before + 8192 + 4096
    assert gone.still_cached_bytes == 4096
    assert not place.exists()


def test_an_environment_that_something_runs_from_stays(uv: Uv, environments: Environments) -> None:
    place = environments.ensure(MLX, PACKAGE, environ=uv.environ()).directory
    program = place / "bin" / "python"
    with subprocess.Popen(
        (program, "-c", "import time; print(flush=True); time.sleep(60)"), stdout=subprocess.PIPE
    ) as engine:
        assert engine.stdout is not None
        engine.stdout.readline()
        try:
            assert users(place) == (engine.pid,)
            with pytest.raises(EngineError, match=f"is in use by process {engine.pid}"):
                remove(made(environments)[0])
        finally:
            engine.kill()
    assert environments.find("mlx", MLX.version, PACKAGE) is not None


def _installed(place: Path, *names: str) -> None:
    folder = trust.site_packages(place, python_request())
    for name in names:
        (folder / f"{name}.dist-info").mkdir(parents=True)
        title, _, version = name.partition("-")
        (folder / f"{name}.dist-info" / "METADATA").write_text(f"Name: {title}\nVersion: {version}\n")


@pytest.fixture
def finished(uv: Uv, environments: Environments) -> Environment:
    """An environment that is a virtual one for its Python too, with what its lock names."""
    one = environments.ensure(MLX, PACKAGE, environ=uv.environ())
    (one.directory / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    _installed(one.directory, "mlx_lm-0.32.2", "mlx-0.32.4")
    return one


def test_a_sound_environment_has_no_damage(finished: Environment) -> None:
    assert damage(finished.directory) is None


def test_a_package_that_is_gone_is_named(finished: Environment) -> None:
    gone = trust.site_packages(finished.directory, python_request()) / "mlx-0.32.4.dist-info"
    (gone / "METADATA").unlink()
    gone.rmdir()
    assert damage(finished.directory) == "mlx 0.32.4 is missing in it"


def test_a_manifest_that_lies_about_its_lock_is_found_out(finished: Environment) -> None:
    lock = finished.directory / "requirements.lock"
    lock.write_text(lock.read_text().replace("mlx==0.32.4", "mlx==0.32.5"))
    assert damage(finished.directory) == "its lock is not the one that it was made from"


def test_a_python_that_does_not_run_is_damage(finished: Environment) -> None:
    python = finished.bin_directory / "python"
    python.unlink()
    python.write_text("#!/bin/sh\necho 'cannot open shared object' >&2\nexit 3\n")
    python.chmod(0o755)
    assert damage(finished.directory) == "its Python does not run: cannot open shared object"
