"""Ray as its users have it, in an environment of its own that is made once a machine."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import clients
from tests.fakes import ray_vllm
from tests.fakes.nvml import stub
from tests.fakes.ray_nodes import RayNodes


@pytest.fixture(scope="session")
def ray_programs() -> Path:
    """The folder of ``ray`` and of its Python."""
    return clients.programs("ray")


@pytest.fixture(scope="module")
def ray_nodes(ray_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A cluster without nodes yet."""
    if sys.platform != "linux" or (shutil.which("gcc") is None and shutil.which("cc") is None):
        pytest.skip("several nodes on one machine, and the stub of NVML, need Linux and a C compiler")
    made = RayNodes(ray_programs, stub.build(tmp_path_factory.mktemp("nvml")))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def vllm(engines_home: Path) -> Path:
    """The folder of an environment of vLLM's CPU build and Ray."""
    return ray_vllm.environment(engines_home)


@pytest.fixture
def nodes(vllm: Path, tmp_path: Path) -> Iterator[RayNodes]:
    """A cluster of three nodes with a GPU each, of the Ray that is in vLLM's environment."""
    if sys.platform != "linux" or (shutil.which("gcc") is None and shutil.which("cc") is None):
        pytest.skip("several nodes on one machine, and the stub of NVML, need Linux and a C compiler")
    made = RayNodes(vllm / "bin", stub.build(tmp_path))
    try:
        made.begin_alike(3)
        yield made
    finally:
        made.close()
