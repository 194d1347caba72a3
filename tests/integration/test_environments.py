"""Environments: made once, never half, never two at once. uv is a fake here; a real one is used in integration."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from engines.environments import Environments, InstallProgress, python_request, without_secrets
from engines.environments.installer import find_uv, uv_environment
from engines.environments.made import made as made_ones
from engines.environments.made import remove
from engines.environments.torch_build import torch_arguments
from selector.catalog import Catalog
from selector.engine_facts import EngineFacts, Package
from selector.errors import EngineInstallError, NoRoomOnDisk
from tests.fakes.uv import Uv

MLX = Catalog().engine("mlx")
PACKAGE = Package(
    name="mlx-lm",
    requirements=("mlx-lm==0.32.2",),
    architectures=("glm4_moe",),
    devices=("cpu",),
    bytes_on_disk=1000,
    source="test",
)


@pytest.fixture
def uv(tmp_path: Path) -> Uv:
    return Uv(tmp_path)


@pytest.fixture
def environments(tmp_path: Path) -> Environments:
    return Environments(tmp_path / "engines")


def test_an_environment_is_made_once(uv: Uv, environments: Environments) -> None:
    assert environments.find("mlx", MLX.version, PACKAGE) is None
    made = environments.ensure(MLX, PACKAGE, environ=uv.environ())
    assert environments.ensure(MLX, PACKAGE, environ=uv.environ()) == made
    assert environments.find("mlx", MLX.version, PACKAGE) == made
    assert [call[0][:2] for call in uv.calls()][1:] == [["pip", "compile"], ["pip", "install"]]
    assert {"--compile-bytecode", "--no-deps", "--require-hashes"} <= set(uv.calls()[2][0])


def test_progress_is_what_uv_says(uv: Uv, environments: Environments) -> None:
    seen: list[InstallProgress] = []
    environments.ensure(MLX, PACKAGE, environ=uv.environ(), on_progress=seen.append)
    stages = [progress.stage for progress in seen]
    assert list(dict.fromkeys(stages)) == ["resolving", "downloading", "installing", "compiling", "done"]
    assert stages == sorted(stages, key=list(dict.fromkeys(stages)).index), "no stage comes back"
    assert "fetching mlx (120.3MiB)" in [progress.message for progress in seen]


def test_other_requirements_are_another_environment(uv: Uv, environments: Environments) -> None:
    one = environments.ensure(MLX, PACKAGE, environ=uv.environ())
    other = msgspec.structs.replace(PACKAGE, requirements=("x==1",))
    assert environments.find("mlx", MLX.version, other) is None
    assert environments.ensure(MLX, other, environ=uv.environ()).directory != one.directory


def test_a_moved_environment_does_not_count(uv: Uv, environments: Environments, tmp_path: Path) -> None:
    environments.ensure(MLX, PACKAGE, environ=uv.environ())
    shutil.move(environments.root, tmp_path / "elsewhere")
    assert Environments(tmp_path / "elsewhere").find("mlx", MLX.version, PACKAGE) is None


def test_one_whose_python_is_gone_does_not_count(uv: Uv, environments: Environments) -> None:
    made = environments.ensure(MLX, PACKAGE, environ=uv.environ())
    (made.bin_directory / "python").unlink()
    assert environments.find("mlx", MLX.version, PACKAGE) is None


def test_what_an_interrupted_build_left_is_made_anew(uv: Uv, environments: Environments) -> None:
    made = environments.ensure(MLX, PACKAGE, environ=uv.environ())
    (made.directory / "environment.json").unlink()
    (made.directory / "half").touch()
    environments.ensure(MLX, PACKAGE, environ=uv.environ())
    assert not (made.directory / "half").exists()


def test_a_cancelled_build_leaves_nothing_and_no_process(uv: Uv, environments: Environments) -> None:
    cancelled = threading.Event()

    def cancel(progress: InstallProgress) -> None:
        if progress.stage == "resolving":
            threading.Timer(0.3, cancelled.set).start()

    with pytest.raises(EngineInstallError, match="cancelled"):
        environments.ensure(MLX, PACKAGE, environ=uv.environ("hang"), on_progress=cancel, cancelled=cancelled)
    assert list(environments.root.iterdir()) == []
    for _, _, pid in uv.calls():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_interrupt_leaves_nothing_half_made(uv: Uv, environments: Environments) -> None:
    def interrupt(progress: InstallProgress) -> None:
        if progress.stage == "installing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        environments.ensure(MLX, PACKAGE, environ=uv.environ(), on_progress=interrupt)
    assert list(environments.root.iterdir()) == []


def test_two_launches_do_not_build_at_once(uv: Uv, environments: Environments) -> None:
    stages: list[str] = []
    building, waiting = threading.Event(), threading.Event()

    def first(progress: InstallProgress) -> None:
        if progress.stage == "downloading":
            building.set()
            assert waiting.wait(10)

    def second(progress: InstallProgress) -> None:
        stages.append(progress.stage)
        waiting.set()

    thread = threading.Thread(target=lambda: environments.ensure(MLX, PACKAGE, environ=uv.environ(), on_progress=first))
    thread.start()
    assert building.wait(10)
    environments.ensure(MLX, PACKAGE, environ=uv.environ(), on_progress=second)
    thread.join()
    assert stages == ["waiting"]
    assert len(uv.calls()) == 3


@pytest.mark.parametrize(
    ("mode", "error", "said"),
    [
        ("network", EngineInstallError, "could not be fetched: Failed to fetch"),
        ("wheels", EngineInstallError, r"mlx 0\.32\.4 has no wheel for Python"),
        ("version", EngineInstallError, r"^there is no mlx-lm 0\.32\.2 to install"),
        ("disk", NoRoomOnDisk, "the disk became full"),
    ],
)
def test_a_failure_says_what_to_do_and_leaves_nothing(
    uv: Uv, environments: Environments, mode: str, error: type[EngineInstallError], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        environments.ensure(MLX, PACKAGE, environ=uv.environ(mode))
    assert caught.value.hint
    assert caught.value.__notes__
    assert environments.find("mlx", MLX.version, PACKAGE) is None
    assert list(environments.root.iterdir()) == []


def test_no_room_is_known_before_anything_is_fetched(uv: Uv, environments: Environments) -> None:
    huge = msgspec.structs.replace(PACKAGE, bytes_on_disk=10**18)
    with pytest.raises(NoRoomOnDisk, match=r"needs 1100000000\.0 GB"):
        environments.ensure(MLX, huge, environ=uv.environ())
    assert uv.calls() == []


def test_credentials_are_not_handed_to_uv(uv: Uv, environments: Environments) -> None:
    secrets = {"HF_TOKEN": "sentinel", "OPENAI_API_KEY": "sentinel", "UV_INDEX_PRIVATE_PASSWORD": "kept"}
    environments.ensure(MLX, PACKAGE, environ=uv.environ(**secrets, TOKENIZERS_PARALLELISM="false"))
    for _, environment, _ in uv.calls():
        assert "sentinel" not in environment.values()
        assert "kept" in environment.values()
        assert environment["TOKENIZERS_PARALLELISM"] == "false"


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, NoRoomOnDisk, "the disk of .*engines.* is full"),
        (errno.EACCES, EngineInstallError, "engines.* cannot be written: Permission denied"),
        (errno.EROFS, EngineInstallError, "engines.* cannot be written: Read-only file system"),
    ],
)
@pytest.mark.parametrize("call", ["lock", "manifest", "folder"])
def test_a_folder_that_cannot_be_written_is_named(
    uv: Uv,
    environments: Environments,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[EngineInstallError],
    said: str,
    call: str,
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    if call == "lock":
        environments.root.mkdir()
        monkeypatch.setattr("engines.environments.folders.os.open", refuse)
    else:
        monkeypatch.setattr(Path, "write_bytes" if call == "manifest" else "mkdir", refuse)
    with pytest.raises(kind, match=said):
        environments.ensure(MLX, PACKAGE, environ=uv.environ())


def test_a_folder_by_another_way_is_the_same_environments(uv: Uv, environments: Environments, tmp_path: Path) -> None:
    made = environments.ensure(MLX, PACKAGE, environ=uv.environ())
    (tmp_path / "link").symlink_to(environments.root)
    assert Environments(tmp_path / "link").find("mlx", MLX.version, PACKAGE) == made
    Environments(tmp_path / "link").ensure(MLX, PACKAGE, environ=uv.environ())
    assert len(uv.calls()) == 3


def test_an_environment_that_is_a_link_is_found_and_what_it_leads_to_is_never_emptied(
    uv: Uv, environments: Environments, tmp_path: Path
) -> None:
    made = environments.ensure(MLX, PACKAGE, environ=uv.environ())
    shutil.move(made.directory, tmp_path / "large")
    made.directory.symlink_to(tmp_path / "large")
    assert environments.find("mlx", MLX.version, PACKAGE) == made
    remove(made_ones(environments)[0])
    assert (tmp_path / "large" / "environment.json").is_file()
    assert not made.directory.is_symlink()


def test_uv_does_not_outlive_its_launcher(uv: Uv, tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from engines.environments import Environments
from selector.catalog import Catalog
engine = Catalog().engine("mlx")
Environments(Path(sys.argv[1])).ensure(engine, engine.packages[0])
"""
    environment = os.environ | uv.environ("hang")
    with subprocess.Popen(
        (sys.executable, "-c", code, str(tmp_path / "engines")), cwd=Path(__file__).parents[2], env=environment
    ) as launcher:
        deadline = time.monotonic() + 30
        while len(uv.calls()) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        installing = psutil.Process(uv.calls()[-1][2])
        launcher.kill()
        launcher.wait(10)
    assert not psutil.wait_procs([installing], timeout=10)[1]


def test_without_uv_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)
    with pytest.raises(EngineInstallError) as caught:
        find_uv({"PATH": str(tmp_path)})
    assert caught.value.hint == "pip install uv"


# --- which PyTorch ----------------------------------------------------------------------------------

TORCH = msgspec.structs.replace(PACKAGE, torch_backend=True, devices=("nvidia", "cpu"))


def wheel(folder: Path, version: str) -> None:
    tag = "cp" + python_request().replace(".", "")
    (folder / f"torch-{version}-{tag}-{tag}-manylinux_2_28_{platform.machine()}.whl").touch()


def test_uv_looks_at_the_driver_where_nothing_else_is_said() -> None:
    assert torch_arguments(TORCH, {}, nvidia=True) == ("--torch-backend", "auto")
    assert torch_arguments(TORCH, {}, nvidia=False) == ("--torch-backend", "auto")


def test_the_users_backend_holds() -> None:
    assert torch_arguments(TORCH, {"UV_TORCH_BACKEND": "cu128"}, nvidia=True) == ()


def test_a_cpu_wheel_at_hand_wins_where_there_is_no_gpu(tmp_path: Path) -> None:
    for version in ("2.9.0+cpu", "2.13.0+cpu", "2.13.0+cu128"):
        wheel(tmp_path, version)
    environment = uv_environment({"PIP_FIND_LINKS": f"https://elsewhere/ {tmp_path}"})
    assert torch_arguments(TORCH, environment, nvidia=False) == ("torch==2.13.0+cpu",)
    assert torch_arguments(TORCH, environment, nvidia=True) == ()


def test_wheels_for_another_python_are_not_named(tmp_path: Path) -> None:
    (tmp_path / f"torch-2.13.0+cpu-cp27-cp27-manylinux_2_28_{platform.machine()}.whl").touch()
    assert torch_arguments(TORCH, {"UV_FIND_LINKS": str(tmp_path)}, nvidia=False) == ()


def test_a_package_without_torch_gets_no_such_option() -> None:
    assert torch_arguments(PACKAGE, {}, nvidia=True) == ()


def test_uvs_own_find_links_are_left_alone() -> None:
    assert uv_environment({"PIP_FIND_LINKS": "/a", "UV_FIND_LINKS": "/b"})["UV_FIND_LINKS"] == "/b"


def test_behind_a_mirror_without_pytorchs_index_the_default_index_is_taken(uv: Uv, environments: Environments) -> None:
    environments.ensure(MLX, TORCH, environ=uv.environ("pytorch"))
    assert ["--torch-backend" in call[0] for call in uv.calls()] == [False, True, True, False, False]


def test_credentials_are_known_by_their_names() -> None:
    assert without_secrets({"HF_TOKEN": "x", "AWS_SECRET_ACCESS_KEY": "x", "HOME": "/h"}) == {"HOME": "/h"}


def test_facts_are_found_by_both_packages() -> None:
    assert isinstance(MLX, EngineFacts)
    assert {package.name for package in MLX.packages} >= {"mlx-lm"}
