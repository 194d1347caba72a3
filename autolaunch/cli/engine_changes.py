"""``autolaunch engines install`` and ``remove``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from autolaunch.cli.engine_names import Named, lock_text, named, serving, with_beside
from autolaunch.cli.engines import show, shown
from autolaunch.cli.options import HOW, Command, choice, option
from autolaunch.cli.terminal import Terminal, clean, duration, gib, plural, wrapped, write
from selector.engine_facts import EngineFacts, Package
from selector.errors import EngineInstallError, UsageError
from selector.hardware import Vendor
from selector.values import Value

if TYPE_CHECKING:
    from engines.environments import Environment, Environments, InstallProgress
    from engines.environments.made import Gone, Made

_DEVICES = (*get_args(Vendor), "cpu")


class InstalledRow(Value, frozen=True, kw_only=True):
    """``made`` is false where it was there already; ``lock_path`` is what ``--lock`` takes on another host."""

    engine: str
    version: str
    package: str
    directory: str
    shared: bool
    made: bool
    packages: int | None
    bytes_on_disk: int | None
    lock_path: str | None
    lock_sha256: str | None
    python_version: str | None
    torch_backend: str | None
    seconds: float


class InstalledDocument(Value, frozen=True, kw_only=True):
    schema: int = 1
    installed: tuple[InstalledRow, ...]


class RemovedRow(Value, frozen=True, kw_only=True):
    """``still_cached_bytes`` of ``bytes_on_disk`` are uv's cache's too, and stay until that is cleaned."""

    engine: str
    version: str
    package: str
    directory: str
    bytes_on_disk: int
    still_cached_bytes: int


class RemovedDocument(Value, frozen=True, kw_only=True):
    schema: int = 1
    removed: tuple[RemovedRow, ...]


# --- install ----------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples="  autolaunch engines install mlx\n  autolaunch engines install mlx-vlm==0.7.10\n"
    "  autolaunch engines install mlx-lm --lock ./requirements.lock\n",
)
@click.argument("name", metavar="NAME[==VERSION]")
@option(
    HOW,
    "--device",
    type=choice(_DEVICES),
    metavar="KIND",
    help="For nvidia, amd, apple or cpu, whatever this machine has.",
)
@option(
    HOW,
    "--lock",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="A requirements.lock of such an environment: exactly that. - reads it.",
)
@option(
    HOW,
    "--with",
    "beside",
    multiple=True,
    metavar="NAME==VERSION",
    help="Another package in it, as ray[client]==2.60.0. May be repeated.",
)
@option(
    HOW,
    "--at",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="With --lock: the folder that it has to be, or it is refused.",
)
@shown
@click.pass_obj
def install(
    outer: dict[str, bool],
    /,
    name: str,
    device: str | None,
    lock: Path | None,
    beside: tuple[str, ...],
    at: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Make the environment of an engine: all its packages that this machine takes, or the one that is named.

    What root installs is for all users of the host, unless AUTOLAUNCH_HOME names a place.
    """
    from autolaunch import api
    from engines.environments import Environments

    wanted = named(name, api.catalog(), one_package=at is not None)
    chosen = serving(wanted, _devices(device, wanted), name)
    if lock is not None and len(chosen) > 1:
        raise UsageError("a lock is of one package", hint=f"name {' or '.join(each.name for _, each in chosen)}")
    if at is not None and (lock is None or not at.is_absolute()):
        raise UsageError("--at takes an absolute path, and --lock beside it")
    chosen = tuple((facts, with_beside(package, beside)) for facts, package in chosen)
    text = None if lock is None else lock_text(lock)
    environments = Environments.of(api.home())
    share = _for_all_users(environments)
    rows = []
    for facts, package in chosen:
        row = _install(environments, facts, package, lock=text, at=at, share=share, verbose=verbose or outer["verbose"])
        rows.append(row)
    document = InstalledDocument(installed=tuple(rows))
    show(document, as_json or outer["as_json"], lambda _: "\n".join(_line(row) for row in rows))


def _devices(device: str | None, wanted: Named) -> tuple[str, ...]:
    if device is not None:
        return (device,)
    if not wanted.is_engine:
        return ()  # a package was named: it is taken as it is
    from autolaunch import api

    return tuple(dict.fromkeys(each.vendor for each in api.probe().accelerators)) or ("cpu",)


def _for_all_users(environments: Environments) -> bool:
    """Whether to install for all users: as root, where a Python is there that all of them may run."""
    if environments.shared not in _ours(environments):
        return False
    from engines.environments.builds import interpreter

    try:
        interpreter(for_all=True)
    except EngineInstallError as error:
        terminal = Terminal.of(sys.stderr)
        told = f"for root alone: {error.message} ({error.hint})"
        write(sys.stderr, click.style(wrapped(told, terminal), fg="yellow"), terminal)
        return False
    return True


def _ours(environments: Environments) -> tuple[Path, ...]:
    """Where this user's commands make and remove environments.

    What is for all users is root's, and only where no home was named.
    """
    if os.geteuid() != 0 or os.environ.get("AUTOLAUNCH_HOME"):
        return (environments.root,)
    return environments.places


def _install(
    environments: Environments,
    facts: EngineFacts,
    package: Package,
    *,
    lock: str | None,
    at: Path | None,
    share: bool,
    verbose: bool,
) -> InstalledRow:
    from autolaunch.cli.progress import Progress

    terminal = Terminal.of(sys.stderr)
    began = time.monotonic()
    _clear_if_broken(environments, facts, package, terminal)
    made = False
    with Progress(sys.stderr, terminal) as progress:

        def happened(event: InstallProgress) -> None:
            nonlocal made
            if not made:
                made = True
                write(sys.stderr, click.style(f"{package.name} {facts.version}", bold=True), terminal)
            progress.event(event)

        try:
            environment = environments.ensure(facts, package, lock=lock, at=at, share=share, on_progress=happened)
        except EngineInstallError as error:
            progress.close(finished=False)
            if verbose:
                write(sys.stderr, clean("\n".join(getattr(error, "__notes__", ()))), terminal)
            raise
    return _row(environment, made=made, seconds=round(time.monotonic() - began, 3))


def _clear_if_broken(environments: Environments, facts: EngineFacts, package: Package, terminal: Terminal) -> None:
    """A finished environment whose files are damaged goes: whoever installs wants one that works."""
    from engines.environments.made import damage, made, remove

    found = environments.find(facts.name, facts.version, package)
    if found is None:
        return
    for one in made(environments):
        if one.directory == found.directory and (why := damage(one.directory)) is not None:
            if one.directory.parent not in _ours(environments):
                raise EngineInstallError(
                    f"{one.directory} is damaged: {why}",
                    hint=f"it is for all users, and root mends it: autolaunch engines install {package.name}",
                )
            write(sys.stderr, clean(f"{package.name} {facts.version} is made anew: {why}"), terminal)
            remove(one)


def _row(environment: Environment, *, made: bool, seconds: float) -> InstalledRow:
    from engines.environments import LOCK, read_manifest

    manifest, lock = read_manifest(environment.directory), environment.directory / LOCK
    return InstalledRow(
        engine=environment.engine,
        version=environment.version,
        package=environment.package,
        directory=str(environment.directory),
        shared=environment.shared,
        made=made,
        packages=None if manifest is None else manifest.packages,
        bytes_on_disk=None if manifest is None else manifest.bytes_on_disk,
        lock_path=str(lock) if lock.is_file() else None,
        lock_sha256=None if manifest is None else manifest.lock_sha256,
        python_version=None if manifest is None else manifest.python_version,
        torch_backend=None if manifest is None else manifest.torch_backend,
        seconds=seconds,
    )


def _line(row: InstalledRow) -> str:
    name = click.style(f"{row.package} {row.version}", bold=True)
    for_whom = " for all users" if row.shared else ""
    if not row.made:
        return f"{name} is installed already{for_whom}:\n  {row.directory}"
    told = [] if row.packages is None else [plural(row.packages, "package")]
    told += [] if row.bytes_on_disk is None else [gib(row.bytes_on_disk)]
    told += [] if row.torch_backend is None else [f"PyTorch for {row.torch_backend}"]
    told.append(f"in {duration(row.seconds)}")
    return f"{name} is installed{for_whom} ({', '.join(told)}):\n  {row.directory}"


# --- remove -----------------------------------------------------------------------------------------


@click.command(cls=Command, examples="  autolaunch engines remove mlx-lm\n  autolaunch engines remove vllm==0.32.0\n")
@click.argument("name", metavar="NAME[==VERSION]")
@shown
@click.pass_obj
def remove(outer: dict[str, bool], /, name: str, as_json: bool, verbose: bool) -> None:
    """Remove the environments of an engine or of one package: of every version, unless one is named.

    What a stopped installation left is removed too. An environment that an engine runs from stays, and so does what
    is for all users of the host: root removes that, without AUTOLAUNCH_HOME.
    """
    del verbose
    from autolaunch import api
    from autolaunch.cli import signals
    from engines.environments import Environments
    from engines.environments.made import made
    from engines.environments.made import remove as removed

    wanted = named(name, api.catalog())
    names = {(facts.name, package.name) for facts, package in wanted.packages}
    environments = Environments.of(api.home())
    found = [
        one
        for one in made(environments)
        if (one.engine, one.package) in names and wanted.version in (None, one.version)
    ]
    ours = _ours(environments)
    rows = []
    for one in (each for each in found if each.directory.parent in ours):
        with signals.deferred():  # a folder that is half gone helps nobody
            rows.append(_removed_row(one, removed(one)))
    staying = [one for one in found if one.directory.parent not in ours]
    document = RemovedDocument(removed=tuple(rows))
    show(document, as_json or outer["as_json"], lambda terminal: _removed_lines(rows, staying, name, terminal))


def _removed_row(one: Made, gone: Gone) -> RemovedRow:
    return RemovedRow(
        engine=one.engine,
        version=one.version,
        package=one.package,
        directory=str(one.directory),
        bytes_on_disk=gone.bytes_on_disk,
        still_cached_bytes=gone.still_cached_bytes,
    )


def _removed_lines(rows: list[RemovedRow], staying: list[Made], name: str, terminal: Terminal) -> str:
    if not rows and not staying:
        return f"nothing to remove: {clean(name)} is not installed"
    lines = []
    for row in rows:
        title = click.style(f"{row.package} {row.version}", bold=True)
        lines.append(f"{title} is removed ({gib(row.bytes_on_disk)}):\n  {row.directory}")
    cached = sum(row.still_cached_bytes for row in rows)
    if cached > 0:
        told = f"{gib(cached)} of it are still in uv's cache: a new installation is quick; uv cache clean frees them"
        lines.append(wrapped(told, terminal))
    for one in staying:
        why = "it is for all users: root removes it, without AUTOLAUNCH_HOME"
        lines.append(f"{click.style(f'{one.package} {one.version}', bold=True)} stays ({why}):\n  {one.directory}")
    return "\n".join(lines)
