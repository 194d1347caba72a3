"""Which of PyTorch's builds an environment gets: the driver's, a CPU's, or the one that a lock names."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from engines.environments.requirements import entries, torch_backend
from engines.environments.store import python_request
from selector.engine_facts import Package


def torch_arguments(package: Package, environment: Mapping[str, str], *, nvidia: bool) -> tuple[str, ...]:
    """What chooses PyTorch's build.

    The user's own choice (``UV_TORCH_BACKEND``) holds. With wheels at hand (find-links) uv's index for
    PyTorch is left alone, it may be out of reach; without an NVIDIA GPU a CPU wheel among them is named,
    or a newer CUDA build of several gigabytes on PyPI could win. Otherwise uv looks at the driver.
    """
    if not package.torch_backend or "UV_TORCH_BACKEND" in environment:
        return ()
    for_cpu = package.devices == ("cpu",)
    links = environment.get("UV_FIND_LINKS")
    if not links:
        return ("--torch-backend", "cpu" if for_cpu else "auto")
    if nvidia and not for_cpu:
        return ()
    wheels = _cpu_wheels(links)
    return (f"torch=={wheels[-1]}",) if wheels else ()


def locked_torch_arguments(lock: str, package: Package, environment: Mapping[str, str]) -> tuple[str, ...]:
    """What leads to the build of PyTorch that a lock names: its own index, unless the wheel is at hand."""
    found = entries(lock)
    backend = torch_backend(found)
    if not package.torch_backend or backend is None or "UV_TORCH_BACKEND" in environment:
        return ()
    version = next(each.version for each in found if each.name == "torch")
    if any(any(folder.glob(f"torch-{version}-*.whl")) for folder in _folders(environment.get("UV_FIND_LINKS", ""))):
        return ()
    return ("--torch-backend", backend)


def _cpu_wheels(links: str) -> list[str]:
    """Versions of PyTorch's CPU wheels for this machine in local find-links folders, oldest first."""
    tag = "cp" + python_request().replace(".", "")
    name = re.compile(rf"torch-(?P<version>\d+(?:\.\d+)*\+cpu)-{tag}-.*{re.escape(platform.machine())}\.whl")
    versions = []
    for folder in _folders(links):
        matches = (name.fullmatch(wheel.name) for wheel in folder.glob("torch-*.whl"))
        versions += [match["version"] for match in matches if match]
    return sorted(versions, key=lambda version: [int(part) for part in version.removesuffix("+cpu").split(".")])


def _folders(links: str) -> Iterator[Path]:
    """The local folders among find-links."""
    for link in links.split(","):
        folder = Path(link.removeprefix("file://"))
        if link and folder.is_dir():
            yield folder


def nvidia_driver_is_there() -> bool:
    """Whether this machine has an NVIDIA driver loaded. Only decides which build of PyTorch to take."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/dxg").exists()
