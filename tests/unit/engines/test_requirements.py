from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engines import beside
from engines.environments.requirements import entries, exact_version, holds_on, name_of, torch_backend, without_options
from selector.catalog import Catalog
from selector.engine_facts import Package
from selector.errors import EngineInstallError

PACKAGE = Package(
    name="mlx-lm",
    requirements=(
        "mlx-lm==0.32.2",
        "mlx[cpu]==0.32.4; sys_platform == 'linux'",
        "mlx-metal==1; sys_platform == 'nowhere'",
    ),
    architectures=("glm4_moe",),
    devices=("cpu",),
    bytes_on_disk=1000,
    source="test",
)


@pytest.mark.parametrize(
    ("requirement", "name", "version"),
    [
        ("transformers[serving]==5.23.0", "transformers", "5.23.0"),
        ("MLX_lm==0.32.2", "mlx-lm", "0.32.2"),
        ("mlx[cpu]==0.32.4; sys_platform == 'linux'", "mlx", "0.32.4"),
        ("torch>=2.13,<2.15", "torch", None),
        ("torchvision", "torchvision", None),
    ],
)
def test_a_requirement_has_a_name_and_maybe_one_version(requirement: str, name: str, version: str | None) -> None:
    assert (name_of(requirement), exact_version(requirement)) == (name, version)


def test_every_engine_comes_first_in_its_package_and_in_one_version(catalog: Catalog) -> None:
    for name in catalog.engine_names():
        for package in catalog.engine(name).packages:
            assert exact_version(package.requirements[0]) is not None, package.name


def test_a_requirement_may_be_for_another_platform() -> None:
    assert holds_on("mlx==1; sys_platform == 'darwin'", "darwin")
    assert not holds_on("mlx==1; sys_platform == 'darwin'", "linux")
    assert holds_on("torch", "linux")


def test_a_lock_is_read_with_its_folded_lines_and_its_markers() -> None:
    text = (
        "# a comment\nTorch==2.14.0+cu130 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "uvloop==0.23.0 ; sys_platform != 'win32' \\\n    --hash=sha256:cc\nhf[xet]==1.0 --hash=sha256:dd\n"
    )
    found = entries(text)
    assert [(each.name, each.version) for each in found] == [
        ("torch", "2.14.0+cu130"),
        ("uvloop", "0.23.0"),
        ("hf", "1.0"),
    ]
    assert torch_backend(found) == "cu130"


@pytest.mark.parametrize(
    "line", ["-e .", "torch", "torch>=2 --hash=sha256:aa", "torch==2", "a @ file:///x --hash=sha256:a"]
)
def test_a_line_that_is_no_locked_package_is_refused(line: str) -> None:
    with pytest.raises(EngineInstallError, match="is no package with a version and hashes"):
        entries(f"one==1 --hash=sha256:aa\n{line}\n")


def test_settings_of_the_user_do_not_go_into_a_lock() -> None:
    assert without_options("--no-build\n-c other\none==1 \\\n    --hash=sha256:aa\n") == (
        "one==1 \\\n    --hash=sha256:aa\n"
    )


# --- beside autolaunch ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "holds"),
    [
        (("mlx_lm-0.32.2", "mlx-0.32.4"), True),
        (("mlx_lm-0.32.2", "mlx-0.32.5"), False),
        (("mlx_lm-0.31.0", "mlx-0.32.4"), False),
        (("mlx_lm-0.32.2",), False),
        (("mlx-0.32.4",), False),
        ((), False),
    ],
)
def test_an_engine_beside_the_tool_counts_in_the_very_versions(
    tmp_path: Path, installed: tuple[str, ...], holds: bool
) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for name in installed:
        (tmp_path / "lib" / version / "site-packages" / f"{name}.dist-info").mkdir(parents=True)
    assert beside.holds(PACKAGE, str(tmp_path)) is holds
