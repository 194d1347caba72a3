"""The real uv, with tiny wheels of a local folder: nothing is fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from engines.environments import Environment, Environments, read_manifest
from engines.environments.made import damage, made, remove
from engines.environments.requirements import entries
from selector.catalog import Catalog
from selector.engine_facts import Package
from selector.errors import EngineInstallError
from tests.fakes.uv import Uv

ROOT = Path(__file__).parents[2]
MLX = Catalog().engine("mlx")
PACKAGE = Package(
    name="tiny",
    requirements=("tiny-engine[serving]==1.0",),
    excludes=("tiny-heavy",),
    architectures=("glm4_moe",),
    devices=("cpu",),
    bytes_on_disk=1000,
    source="test",
)


def wheel(folder: Path, name: str, version: str, *requires: str, tag: str = "py3-none-any", body: str = "") -> Path:
    """A wheel of one module."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": body or f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        "Provides-Extra: serving\n" + "".join(f"Requires-Dist: {each}\n" for each in requires),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{path},sha256={_hash(text)},{len(text)}\n" for path, text in files.items())
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    path = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
    return path


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "tiny-engine", "1.0", "tiny-core>=1", "tiny-heavy", "tiny-server ; extra == 'serving'")
    wheel(folder, "tiny-core", "1.0")
    wheel(folder, "tiny-core", "1.5")
    wheel(folder, "tiny-server", "2.0")
    return folder


@pytest.fixture
def environ(wheels: Path, tmp_path: Path) -> dict[str, str]:
    """A uv of its own: no index, no settings, an empty cache."""
    taken = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    mine = {"UV_FIND_LINKS": str(wheels), "UV_NO_INDEX": "1", "UV_CACHE_DIR": str(tmp_path / "cache")}
    return taken | mine | {"UV_NO_CONFIG": "1"}


def ensured(root: Path, environ: Mapping[str, str], package: Package = PACKAGE, lock: str | None = None) -> Environment:
    return Environments(root).ensure(MLX, package, lock=lock, environ=environ)


def says(environment: Environment, code: str) -> str:
    python = environment.bin_directory / "python"
    done = subprocess.run((python, "-I", "-c", code), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_what_is_resolved_is_installed_compiled_and_can_be_made_again_elsewhere(
    tmp_path: Path, wheels: Path, environ: dict[str, str]
) -> None:
    one = ensured(tmp_path / "one", environ)
    lock = (one.directory / "requirements.lock").read_text()
    assert [(each.name, each.version) for each in entries(lock)] == [
        ("tiny-core", "1.5"),
        ("tiny-engine", "1.0"),
        ("tiny-server", "2.0"),
    ]
    assert str(wheels) not in lock
    assert "://" not in lock
    assert says(one, "import tiny_core; print(tiny_core.VERSION)") == "1.5"
    assert list(one.directory.rglob("tiny_core*.pyc")), "compiled"
    assert damage(one.directory) is None
    # Another host has newer wheels, in another folder.
    other = tmp_path / "other"
    shutil.copytree(wheels, other)
    wheel(other, "tiny-core", "1.9")
    again = ensured(tmp_path / "two", environ | {"UV_FIND_LINKS": str(other)}, lock=lock)
    assert says(again, "import tiny_core; print(tiny_core.VERSION)") == "1.5"
    first, second = read_manifest(one.directory), read_manifest(again.directory)
    assert first is not None
    assert second is not None
    assert first.lock_sha256 == second.lock_sha256


def test_another_file_of_the_same_name_is_not_installed(tmp_path: Path, wheels: Path, environ: dict[str, str]) -> None:
    one = ensured(tmp_path / "one", environ)
    lock = (one.directory / "requirements.lock").read_text()
    wheel(wheels, "tiny-core", "1.5", body="raise SystemExit('changed')\n")
    with pytest.raises(EngineInstallError) as caught:
        ensured(tmp_path / "two", environ | {"UV_CACHE_DIR": str(tmp_path / "cache2")}, lock=lock)
    assert "tiny-core 1.5" in caught.value.message
    assert list((tmp_path / "two").iterdir()) == []


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("tiny-engine==9.0", "there is no tiny-engine 9.0 to install"),
        ("tiny-nothing==1.0", "tiny-nothing"),
        ("tiny-mac==1.0", "tiny-mac 1.0 has no wheel for Python"),
    ],
)
def test_what_cannot_be_had_is_named_in_one_sentence(
    tmp_path: Path, wheels: Path, environ: dict[str, str], requirement: str, said: str
) -> None:
    wheel(wheels, "tiny-mac", "1.0", tag="cp311-cp311-macosx_14_0_arm64")
    package = msgspec.structs.replace(PACKAGE, requirements=(requirement,))
    with pytest.raises(EngineInstallError) as caught:
        ensured(tmp_path / "one", environ, package)
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert list((tmp_path / "one").iterdir()) == []


def test_offline_what_is_missing_is_named(tmp_path: Path, wheels: Path, environ: dict[str, str]) -> None:
    lock = (ensured(tmp_path / "one", environ).directory / "requirements.lock").read_text()
    (tmp_path / "few").mkdir()
    shutil.copy(next(wheels.glob("tiny_engine*")), tmp_path / "few")
    offline = {name: value for name, value in environ.items() if name != "UV_NO_INDEX"} | {
        "UV_FIND_LINKS": str(tmp_path / "few"),
        "UV_OFFLINE": "1",
        "UV_CACHE_DIR": str(tmp_path / "empty"),
    }
    with pytest.raises(EngineInstallError) as caught:
        ensured(tmp_path / "two", offline, lock=lock)
    assert caught.value.message == (
        "tiny cannot be installed without a network: tiny-core 1.5, tiny-server 2.0 are not in uv's cache"
    )
    with pytest.raises(EngineInstallError, match="without a network: tiny-core is not in uv's cache"):
        ensured(tmp_path / "two", offline)
    assert list((tmp_path / "two").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes environments for others, and can be another user")
def test_another_user_runs_what_root_installed(tmp_path: Path, environ: dict[str, str]) -> None:
    from engines.environments.builds import interpreter

    try:
        interpreter(for_all=True)
    except EngineInstallError as error:
        pytest.skip(error.message)
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are root's alone
        Path(folder).chmod(0o755)
        before = os.umask(0o077)
        try:
            environments = Environments(tmp_path / "home", shared=Path(folder) / "shared")
            one = environments.ensure(MLX, PACKAGE, share=True, environ=environ)
        finally:
            os.umask(before)
        assert _said_by_nobody(one, "import os, tiny_core; print(os.getuid(), tiny_core.VERSION)") == "65534 1.5"


def _said_by_nobody(environment: Environment, code: str) -> str:
    done = subprocess.run(
        (environment.bin_directory / "python", "-I", "-c", code),
        capture_output=True,
        text=True,
        check=True,
        user=65534,
        group=65534,
        extra_groups=(),
        cwd="/",
    )
    return done.stdout.strip()


def test_a_damaged_environment_is_found_out_and_removed(tmp_path: Path, environ: dict[str, str]) -> None:
    one = ensured(tmp_path / "one", environ)
    shutil.rmtree(next(one.directory.glob("lib/python*/site-packages/tiny_core-1.5.dist-info")))
    assert damage(one.directory) == "tiny-core 1.5 is missing in it"
    (listed,) = made(Environments(tmp_path / "one"))
    assert remove(listed).bytes_on_disk > 0
    assert list((tmp_path / "one").iterdir()) == []


# --- the command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_in_the_midst_leaves_nothing(tmp_path: Path, number: int, code: int) -> None:
    uv = Uv(tmp_path)
    home = tmp_path / "home"
    main = (sys.executable, "-c", "from autolaunch.__main__ import main; main()", "engines", "install", "mlx-lm")
    environment = {**os.environ, **uv.environ("hang"), "AUTOLAUNCH_HOME": str(home)}
    with subprocess.Popen(main, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as command:
        deadline = time.monotonic() + 30
        while len(uv.calls()) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        command.send_signal(number)
        _, told = command.communicate(timeout=20)
    assert command.returncode == code
    assert "Traceback" not in told
    assert list((home / "engines").iterdir()) == []
    for _, _, pid in uv.calls():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_after_a_kill_it_is_made_anew(tmp_path: Path) -> None:
    uv = Uv(tmp_path)
    home = tmp_path / "home"
    main = (sys.executable, "-c", "from autolaunch.__main__ import main; main()", "engines", "install", "mlx-lm")
    environment = {**os.environ, **uv.environ("hang"), "AUTOLAUNCH_HOME": str(home)}
    with subprocess.Popen(main, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as command:
        deadline = time.monotonic() + 30
        while len(uv.calls()) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        command.kill()
    (half,) = made(Environments(home / "engines"))
    assert half.problem == "it is not finished"
    done = subprocess.run(
        main, cwd=ROOT, env=environment | {"FAKE_UV": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (whole,) = made(Environments(home / "engines"))
    assert whole.problem is None
    assert [path.name for path in (home / "engines").iterdir()] == [whole.directory.name]
