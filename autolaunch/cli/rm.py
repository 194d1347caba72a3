"""``autolaunch rm``: frees the room that checkpoints take, never while they are served."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from autolaunch.cli.options import HOW, Command, Word, option
from autolaunch.cli.reach import shown
from autolaunch.cli.terminal import Terminal, clean, gib, table, wrapped, write
from selector.errors import UsageError
from selector.facts import CheckpointFacts, ModelFacts
from selector.values import Value

if TYPE_CHECKING:
    from autolaunch.freeing import Doomed
    from selector.catalog import Catalog

EXAMPLES = """\
  autolaunch rm glm-4.6                            every checkpoint of it
  autolaunch rm zai-org/GLM-4.6-FP8                this one
  autolaunch rm unsloth/GLM-4.6-GGUF --quantization Q5_K_M
  autolaunch models                                what there is
"""


class FreedRow(Value, frozen=True, kw_only=True):
    """``shared_bytes`` stay because another commit or quantization has them too."""

    model: str
    repo: str
    quantizations: tuple[str, ...]
    folder: str
    freed_bytes: int
    shared_bytes: int
    unfinished_bytes: int


class FreedDocument(Value, frozen=True, kw_only=True):
    """``freed_bytes`` of all together; none is ``freed`` where nothing of it was here."""

    schema: int = 1
    freed: tuple[FreedRow, ...]
    freed_bytes: int


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model", metavar="MODEL|ORG/REPO")
@option(HOW, "--quantization", type=Word(), metavar="NAME", help="Only this one, as Q5_K_M of a GGUF repository.")
@option(HOW, "--revision", type=Word(), metavar="COMMIT", help="Only this commit, or the one of this name.")
@option(HOW, "--yes", is_flag=True, help="Do not ask.")
@shown()
def rm(model: str, quantization: str | None, revision: str | None, yes: bool, as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (the last is read where faults are shown)
    """Free the room that the weights of MODEL take on this machine, or those of one repository.

    Refused while somebody serves, fetches or reads them. What other commits or quantizations have too stays.
    """
    from autolaunch import api
    from autolaunch.freeing import doomed_of, free
    from autolaunch.hub_cache import cache_directory
    from autolaunch.in_use import refuse_in_use

    known, home, cache = api.catalog(), api.home(), cache_directory(os.environ)
    facts, checkpoints = named(model, known, quantization)
    commit = None if revision is None else _commit(revision, checkpoints, cache)
    doomed = doomed_of(facts, checkpoints, cache=cache, home=home, revision=commit)
    for each in doomed:
        refuse_in_use(each, known, home)
    if doomed and not yes:
        _ask(doomed, as_json=as_json)
    freed = []
    for each in doomed:
        refuse_in_use(each, known, home)  # it may have taken a while to answer
        freed.append(_row(each, free(each)))
    _tell(model, FreedDocument(freed=tuple(freed), freed_bytes=sum(row.freed_bytes for row in freed)), as_json=as_json)


def named(name: str, known: Catalog, quantization: str | None) -> tuple[ModelFacts, tuple[CheckpointFacts, ...]]:
    """The checkpoints that are meant: all of a model, or those of a repository.

    Raises:
        UnknownModel: nothing is called so.
        UsageError: none of them has this quantization.
    """
    model = known.find_model(name).model
    wanted = name.lower()
    of_repo = tuple(
        each for each in model.checkpoints if wanted in (each.repo.lower(), (each.modelscope or each.repo).lower())
    )
    found = of_repo or model.checkpoints
    if quantization is None:
        return model, found
    exact = tuple(each for each in found if each.quantization.lower() == quantization.lower())
    if not exact:
        names = ", ".join(dict.fromkeys(each.quantization for each in found))
        raise UsageError(f"{name} has no quantization {quantization!r}", hint=f"it has {names}")
    return model, exact


def _commit(revision: str, checkpoints: tuple[CheckpointFacts, ...], cache: Path) -> str:
    """The commit that a name stands for in the cache; itself, where it is none."""
    from autolaunch.on_disk import repository_folder

    for each in checkpoints:
        path = repository_folder(cache, each.repo) / "refs" / revision
        if ".." not in Path(revision).parts and path.is_file():
            return path.read_text(encoding="ascii", errors="replace").strip()[:64]
    return revision


def _row(doomed: Doomed, freed_bytes: int) -> FreedRow:
    return FreedRow(
        model=doomed.model,
        repo=doomed.repo,
        quantizations=doomed.quantizations,
        folder=str(doomed.root),
        freed_bytes=freed_bytes,
        shared_bytes=doomed.shared_bytes,
        unfinished_bytes=doomed.unfinished_bytes,
    )


def _ask(doomed: tuple[Doomed, ...], *, as_json: bool) -> None:
    """Asks a person.

    Raises:
        UsageError: there is none to ask.
    """
    if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "nobody is there to be asked", hint="--yes frees it without a question; autolaunch models says what is here"
        )
    terminal = Terminal.of(sys.stderr)
    rows: list[tuple[str, ...]] = [(each.repo, " ".join(each.quantizations), gib(each.freed_bytes)) for each in doomed]
    write(
        sys.stderr,
        table(("checkpoint", "quant", "frees"), rows, right=(2,), flex=(0, 1), width=terminal.width_columns),
        terminal,
    )
    together = gib(sum(each.freed_bytes for each in doomed))
    if not click.confirm(f"Free {together}? They would have to be fetched again", default=False, err=True):
        write(sys.stderr, "nothing was freed", terminal)
        raise click.exceptions.Exit(0)


def _tell(name: str, document: FreedDocument, *, as_json: bool) -> None:
    if as_json:
        write(sys.stdout, msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    terminal = Terminal.of(sys.stdout)
    if not document.freed:
        write(sys.stdout, clean(f"nothing of {name} is on this machine"), terminal)
        return
    for row in document.freed:
        kept = ""
        if row.shared_bytes:
            kept += f"; {gib(row.shared_bytes)} stay, which another commit or quantization has too"
        if row.unfinished_bytes:
            kept += f"; {gib(row.unfinished_bytes)} of unfinished files stay: autolaunch rm {row.repo} frees them"
        what = f" ({', '.join(row.quantizations)})" if row.quantizations else ""
        told = clean(f"freed {gib(row.freed_bytes)} of {row.repo}{what}{kept}")
        write(sys.stdout, wrapped(told, terminal, rest="  "), terminal)
    if len(document.freed) > 1:
        write(sys.stdout, f"{gib(document.freed_bytes)} together", terminal)
