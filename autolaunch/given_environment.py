"""The environment of an engine's process: the caller's, less what is not for it, and what is its own alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engines.environments import without_engine_secrets
from engines.over_nodes import CLUSTER_TOKEN, KEPT_BACK_FILE, kept_back

if TYPE_CHECKING:
    from engines.base import Behaviour
    from selector.contract import Command

#: The longest path of a UNIX socket (macOS has less than Linux), and what engines call one: a UUID.
_SOCKET_PATH_BYTES, _SOCKET_NAME_BYTES = 104, 36

#: What tells a process that systemd watches it; an engine is not that process.
_NOT_FOR_ENGINES = ("NOTIFY_", "WATCHDOG_", "LISTEN_", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH")


def engine_environment(
    environ: Mapping[str, str], command: Command, bin_directory: Path, run_directory: Path
) -> dict[str, str]:
    """All that the engine gets: the caller's environment less credentials and what is not for it.

    Its hub cache is an empty folder of the run: it serves a local folder, offline, and must neither find
    other models nor the user's token.
    """
    environment = {
        name: value for name, value in without_engine_secrets(environ).items() if not name.startswith(_NOT_FOR_ENGINES)
    }
    environment |= {
        "PATH": os.pathsep.join((str(bin_directory), environ.get("PATH", os.defpath))),
        "PYTHONUNBUFFERED": "1",
        "HF_HOME": str(run_directory / ".cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return {**environment, **command.env}


def private_sockets(behaviour: Behaviour, run_directory: Path) -> dict[str, str]:
    """What has the sockets between an engine's processes lie in the run's own folder, where their names have room."""
    room = len(os.fsencode(run_directory)) + 1 + _SOCKET_NAME_BYTES < _SOCKET_PATH_BYTES
    return {behaviour.sockets_variable: str(run_directory)} if behaviour.sockets_variable and room else {}


def way_into_cluster(environ: Mapping[str, str]) -> dict[str, str]:
    """The token that a cluster asks of whoever joins it, which the server on it does (Ray's security guide,
    https://docs.ray.io/en/latest/ray-security/token-auth.html). Its ranks are Ray's own processes and have it.
    """
    return {name: environ[name] for name in (CLUSTER_TOKEN,) if name in environ}


def kept_from_ranks(environment: Mapping[str, str], command: Command, run_directory: Path) -> dict[str, str]:
    """What has a server on a cluster keep its own environment from the ranks on other nodes: a file of the run's.

    Raises:
        OSError: it cannot be written.
    """
    names = kept_back(environment, command.env)
    (run_directory / KEPT_BACK_FILE).write_bytes(msgspec.json.encode(names))
    return {"VLLM_CONFIG_ROOT": str(run_directory)}
