"""Which device files of a host an engine needs, and the groups that may use them."""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Callable
from pathlib import Path

from selector.values import Value

#: Below /dev, in the order in which they are written. MIG and its like have their rights in ``nvidia-caps``; in WSL
#: there is ``dxg`` and nothing else; ``kfd`` and the render nodes are what AMD's runtime opens.
PATTERNS = (
    "nvidia[0-9]*",
    "nvidiactl",
    "nvidia-uvm",
    "nvidia-uvm-tools",
    "nvidia-caps/nvidia-cap[0-9]*",
    "nvidia-caps-imex-channels/channel[0-9]*",
    "dxg",
    "kfd",
    "dri/renderD[0-9]*",
)


class Devices(Value, frozen=True, kw_only=True):
    """Paths of device files, and the groups of those that not everybody may open."""

    nodes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False


def _group_that_is_needed(path: Path) -> str | None:
    """The group through which a device is opened, ``None`` where everybody may, or only root."""
    try:
        status = path.stat()
        if status.st_mode & 0o006 == 0o006 or status.st_mode & 0o060 != 0o060 or status.st_gid == 0:
            return None
        return grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):  # gone meanwhile; a group without a name
        return None


def find_devices(
    folder: Path = Path("/dev"),
    *,
    is_device: Callable[[Path], bool] = _is_device,
    group_of: Callable[[Path], str | None] = _group_that_is_needed,
) -> Devices:
    """The devices of this host, by name and number."""
    found: list[Path] = []
    for pattern in PATTERNS:
        nodes = [path for path in folder.glob(pattern) if is_device(path)]
        found += sorted(nodes, key=lambda path: (len(path.name), path.name))  # nvidia10 after nvidia9
    groups = {name for path in found if (name := group_of(path)) is not None}
    return Devices(
        nodes=tuple(os.path.join("/dev", path.relative_to(folder)) for path in found),  # noqa: PTH118 - wherever folder is
        groups=tuple(sorted(groups)),
    )
