"""The file for launchd, which keeps the daemon on macOS."""

from __future__ import annotations

import plistlib
from pathlib import Path

from autolaunch.service.setup import MARK, NAME, STOP_SECONDS, File, Setup, serve_command

#: launchd's own name for the job.
LABEL = NAME
#: launchd has no exit code that ends its efforts: a configuration that is wrong (78) is tried again, so seldom that it
#: is neither noise nor load, and the log says each time what is wrong with it.
THROTTLE_SECONDS = 60
HOST_FOLDER = Path("/Library/LaunchDaemons")


def agent_path(home: Path) -> Path:
    """The job of a user, which runs from login to logout."""
    return home / "Library/LaunchAgents" / f"{LABEL}.plist"


def daemon_path() -> Path:
    """The job of the host, which runs from boot on."""
    return HOST_FOLDER / f"{LABEL}.plist"


def launchd_files(setup: Setup) -> tuple[File, ...]:
    """The job: the host's, run as ``setup.run_as``, or without that the user's. ``setup.home`` is theirs in both."""
    home = setup.home or Path("/var/root")
    path = agent_path(home) if setup.run_as is None else daemon_path()
    log = home / "Library/Logs" / f"{NAME}.log"
    environment = {"PATH": ":".join(setup.search_path)}
    if setup.hub_token_file is not None:
        # As the hub's own client has it: the file, never what is in it.
        environment["HF_TOKEN_PATH"] = str(setup.hub_token_file)
    job: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": list(serve_command(setup)),
        "EnvironmentVariables": environment,
        "RunAtLoad": True,
        # Started again unless it ended by itself and well.
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": THROTTLE_SECONDS,
        "ExitTimeOut": STOP_SECONDS,
        # Others are slowed down in favour of what a person looks at.
        "ProcessType": "Interactive",
        "SoftResourceLimits": {"NumberOfFiles": 65536},
        "StandardOutPath": str(log),
        "StandardErrorPath": str(log),
        "Umask": 0o027,
    }
    if setup.run_as is not None:
        job["UserName"] = setup.run_as
    head, doctype, body = plistlib.dumps(job, sort_keys=False).decode().split("\n", 2)
    return (File(path=path, text="\n".join((head, doctype, f"<!-- {MARK}, which writes it anew. -->", body))),)
