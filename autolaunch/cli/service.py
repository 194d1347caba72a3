"""``autolaunch service``: has systemd or launchd keep the daemon up."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from autolaunch.cli.engines import show as show_document
from autolaunch.cli.engines import shown
from autolaunch.cli.options import HOW, WANTED, Command, Word, option
from autolaunch.cli.terminal import Terminal, clean, heading, wrapped
from selector.errors import UsageError
from selector.values import Value

if TYPE_CHECKING:
    from autolaunch.service.keeping import Wanted

_Function = TypeVar("_Function", bound=Callable[..., Any])


class FileRow(Value, frozen=True, kw_only=True):
    """``state`` is ``written``, ``removed``, ``left`` (not ours), or what was found: see ``service.files.State``."""

    path: str
    state: str
    text: str | None = None


class ServiceDocument(Value, frozen=True, kw_only=True):
    """What was done, or with ``dry_run`` would be: ``commands`` were run, ``next`` are left to a person."""

    schema: int = 1
    keeper: str
    scope: str
    dry_run: bool
    files: tuple[FileRow, ...]
    commands: tuple[tuple[str, ...], ...] = ()
    next: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


def _where(function: _Function) -> _Function:
    """Whose service, and of which host."""
    root = option(
        HOW,
        "--root",
        type=click.Path(path_type=Path, file_okay=False, exists=True),
        metavar="DIR",
        help="The root of an image: its files are written, and no command is run.",
    )
    user = option(WANTED, "--user", "of_user", is_flag=True, help="A service of your own, without root.")
    return user(root(function))


def _what(function: _Function) -> _Function:
    """What stands in the files."""
    settings: dict[str, Any] = {"type": click.Path(path_type=Path), "metavar": "FILE"}
    for each in (
        option(
            HOW,
            "--hub-token-file",
            **settings,
            help="A file with the hub's token. systemd hands it to the daemon; what is in it is written nowhere.",
        ),
        option(HOW, "--program", **settings, help="The autolaunch that is run; without it, the one that you run now."),
        option(WANTED, "--model", type=Word(), metavar="MODEL", help="What a new configuration has; else an example."),
        option(
            WANTED,
            "--config",
            "configuration",
            **settings,
            help="The configuration; one is written where there is none. Without it, /etc/autolaunch/autolaunch.toml.",
        ),
    ):
        function = each(function)
    return function


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def service(ctx: click.Context) -> None:
    """Have systemd, or launchd on a Mac, keep the daemon up.

    The daemon is `autolaunch serve`: it keeps the models of one configuration served.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@service.command(
    cls=Command,
    examples="""\
  autolaunch service install --dry-run        what would be written, and run
  autolaunch service install --model glm-4.6 --now
  autolaunch service install --user           without root
  autolaunch service install --root ./image --program /opt/autolaunch/bin/autolaunch
""",
)
@_where
@_what
@option(HOW, "--now", is_flag=True, help="Enable and start it, too.")
@option(HOW, "--dry-run", is_flag=True, help="Say what would be written and run; change nothing.")
@shown
def install(now: bool, dry_run: bool, as_json: bool, verbose: bool, **settings: Any) -> None:  # noqa: ARG001 (read by main)
    """Write the files of the service, and say how it is started.

    Run again it changes what has changed: after GPUs were added, or autolaunch moved. Your own changes go into drop-ins
    (systemctl edit autolaunch), which are left alone, as is a configuration that is there.
    """
    from autolaunch.service import files
    from autolaunch.service.here import here
    from autolaunch.service.install import make
    from autolaunch.service.keeping import kept, perform, refuse_unless_it_can_be_done

    wanted, host = _wanted(**settings), here(os.environ)
    if not dry_run:
        refuse_unless_it_can_be_done(wanted, host)
    keeping, made = kept(wanted, host), make(wanted, host, os.environ)
    found = {file.path: files.state(file, wanted.root) for file in made.files}
    if wanted.model is not None:
        _refuse_unknown_or_unused(wanted.model, unused="kept" in found.values())
    notes, empty = made.notes, files.without_a_model(made.files, wanted.root)
    if empty is not None:
        if now and not dry_run and wanted.live:
            raise UsageError(
                f"there is nothing to start yet: no model is named in {empty}",
                hint="--model names one in a new configuration; or leave --now out, and edit the file before the start",
            )
        notes = (f"before it is started, name a model in {empty}: without one it ends at once", *notes)
    follow = (*keeping.settle, *(keeping.start if now and wanted.live else ()))
    left = (*(() if now and wanted.live else keeping.start), *(keeping.restart if "differs" in found.values() else ()))
    if dry_run:
        rows = [_row(file.path, found[file.path], wanted.root, file.text) for file in made.files]
        done = tuple(act.argv for act in follow)
    else:
        changed = files.write(made.files, wanted.root)
        states = {path: "written" if files.place(path, wanted.root) in changed else found[path] for path in found}
        rows = [_row(path, state, wanted.root) for path, state in states.items()]
        done = perform(follow)
    document = ServiceDocument(
        keeper=keeping.keeper,
        scope=keeping.scope,
        dry_run=dry_run,
        files=tuple(rows),
        commands=done,
        next=tuple(dict.fromkeys(act.argv for act in left)),
        notes=notes,
    )
    show_document(document, as_json, lambda terminal: _render(document, terminal))


@service.command(cls=Command)
@_where
@option(HOW, "--dry-run", is_flag=True, help="Say what would be removed and run; change nothing.")
@shown
def uninstall(of_user: bool, root: Path | None, dry_run: bool, as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (read by main)
    """Stop the service and remove its files.

    The configuration, what the daemon keeps, and the user that it ran as stay.
    """
    from autolaunch.service import files
    from autolaunch.service.here import here
    from autolaunch.service.keeping import kept, perform, refuse_unless_it_can_be_done

    wanted, host = _wanted(of_user=of_user, root=root), here(os.environ)
    if not dry_run:
        refuse_unless_it_can_be_done(wanted, host)
    keeping = kept(wanted, host)
    gone, left = files.ours(keeping.paths, wanted.root)
    done: tuple[tuple[str, ...], ...] = ()
    if gone and dry_run:
        done = tuple(act.argv for act in (*keeping.stop, *keeping.forget))
    elif gone:
        done = perform(keeping.stop)
        files.remove(gone)
        done += perform(keeping.forget)
    document = ServiceDocument(
        keeper=keeping.keeper,
        scope=keeping.scope,
        dry_run=dry_run,
        files=(
            *(FileRow(path=str(path), state="ours" if dry_run else "removed") for path in gone),
            *(FileRow(path=str(path), state="left") for path in left),
        ),
        commands=done,
        notes=() if gone else ("there is no service of autolaunch here",),
    )
    show_document(document, as_json, lambda terminal: _render(document, terminal))


@service.command(cls=Command)
@_where
@_what
@shown
def show(as_json: bool, verbose: bool, **settings: Any) -> None:  # noqa: ARG001 (read by main)
    """Print what `install` would write, and how it differs.

    The files as they would be now, and whether those that are there are the same.
    """
    from autolaunch.service import files
    from autolaunch.service.here import here
    from autolaunch.service.install import make
    from autolaunch.service.keeping import kept

    wanted, host = _wanted(**settings), here(os.environ)
    keeping, made = kept(wanted, host), make(wanted, host, os.environ)
    document = ServiceDocument(
        keeper=keeping.keeper,
        scope=keeping.scope,
        dry_run=True,
        files=tuple(_row(file.path, files.state(file, wanted.root), wanted.root, file.text) for file in made.files),
        notes=made.notes,
    )
    show_document(document, as_json, lambda terminal: _render(document, terminal))


def _wanted(
    *,
    of_user: bool,
    root: Path | None,
    configuration: Path | None = None,
    program: Path | None = None,
    hub_token_file: Path | None = None,
    model: str | None = None,
) -> Wanted:
    from autolaunch.service.keeping import LIVE, Wanted

    if root is not None and of_user:
        raise UsageError("--root is for a service of the host, and --user for one of your own")
    in_image = root is not None
    # In an image paths are the image's, and nothing is relative to where one stands.
    names = (configuration, program, hub_token_file)
    configuration, program, hub_token_file = (path if path is None or in_image else path.absolute() for path in names)
    return Wanted(
        of_user=of_user,
        configuration=configuration,
        root=LIVE if root is None else root.absolute(),
        program=program,
        hub_token_file=hub_token_file,
        model=model,
    )


def _refuse_unknown_or_unused(model: str, *, unused: bool) -> None:
    from autolaunch import api

    api.catalog().model(model)
    if unused:
        raise UsageError(
            "there is a configuration already, and it is yours", hint=f"add {model} to it, not with --model"
        )


def _row(path: Path, state: str, root: Path, text: str | None = None) -> FileRow:
    from autolaunch.service import files

    return FileRow(path=str(files.place(path, root)), state=state, text=text)


_TOLD = {
    "ours": "{} would be removed",
    "written": "wrote {}",
    "removed": "removed {}",
    "same": "{} is as it should be",
    "kept": "{} is yours, and stays as it is",
    "left": "{} was not written by autolaunch, and stays",
    "absent": "{} would be written",
    "differs": "{} would be changed",
    "foreign": "{} is there, and was not written by autolaunch",
}


def _render(document: ServiceDocument, terminal: Terminal) -> str:
    parts = [_TOLD[row.state].format(clean(row.path)) for row in document.files if row.text is None]
    for row in document.files:
        if row.text is not None:
            parts += [heading(_TOLD[row.state].format(clean(row.path))), *([row.text] if row.state != "kept" else [])]
    ran = "would run: " if document.dry_run else "ran "
    parts += [f"{ran}{clean(shlex.join(argv))}" for argv in document.commands]
    parts += [f"next: {clean(shlex.join(argv))}" for argv in document.next]
    parts += [wrapped(clean(note), terminal, first="note: ", rest="      ") for note in document.notes]
    return "\n".join(parts)
