"""What an export is asked for, and what it gives."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from msgspec.structs import replace

from autolaunch.given import PORTS, address, is_loopback
from autolaunch.given import served_name as checked_name
from selector.errors import UsageError
from selector.values import Value

Target = Literal["systemd", "compose", "kubernetes", "slurm", "shell"]
#: Targets whose engine has the machine's own addresses; in a container it listens on all of the container's.
ON_HOST: tuple[Target, ...] = ("systemd", "slurm", "shell")


class ExportOptions(Value, frozen=True, kw_only=True):
    """How the artefact serves.

    ``host`` is where clients reach it: ``None`` is the loopback, but for a batch job (every address of its node) and
    Kubernetes (its service). ``port`` is the first replica's; every other one has the next. ``api_key_file`` is the
    file, on the machine where the artefact runs, that holds the key of the clients; ``None`` leaves it to the target.
    ``model_path`` is a folder there that holds the checkpoint: nothing is fetched then. ``extra`` goes to the engine.
    """

    served_name: str | None = None
    host: str | None = None
    port: int = 8000
    api_key_file: str | None = None
    model_path: str | None = None
    extra: tuple[str, ...] = ()


class File(Value, frozen=True, kw_only=True):
    """One file of an artefact; ``mode`` are its permissions."""

    name: str
    text: str
    mode: int = 0o644


class Artefact(Value, frozen=True, kw_only=True):
    """What was exported. The same plan and options give the same bytes."""

    to: Target
    files: tuple[File, ...]


def checked(options: ExportOptions, to: Target) -> ExportOptions:
    """``options``, when they can stand in the artefact, with a short address.

    Raises:
        UsageError: what cannot.
    """
    if options.served_name is not None:
        checked_name(options.served_name)
    if options.port not in PORTS:
        raise UsageError(f"--port {options.port} is none that clients could be told", hint="1 to 65535")
    for name, path in (("--model-path", options.model_path), ("--api-key-file", options.api_key_file)):
        if path is None:
            continue
        if not path.isprintable() or len(path) > 1_000:
            raise UsageError(f"{name} {path[:60]!a} can stand in no file of lines")
        if not PurePath(path).is_absolute() or ".." in PurePath(path).parts:
            raise UsageError(f"{name} {path} is looked for where the artefact runs: give the whole path")
        if path.endswith(("\\", " ")):
            raise UsageError(f"{name} {path!a} ends with what a unit's line would go on after")
    if options.api_key_file is not None and to == "kubernetes":
        raise UsageError(
            "--api-key-file is a file of a machine, and Kubernetes has secrets",
            hint="leave it out: the manifest names the secret that it takes the key from",
        )
    if options.host is None:
        return options
    if to == "kubernetes":
        raise UsageError("--host is an address of a machine: in Kubernetes its service has one", hint="leave it out")
    host = "127.0.0.1" if is_loopback(options.host) and address(options.host) is None else address(options.host)
    if host is None:
        raise UsageError(f"--host {options.host} is no address", hint="127.0.0.1, or 0.0.0.0 for all that it has")
    return replace(options, host=host)
