"""``autolaunch models add``: a profile of a repository that no profile knows."""

from __future__ import annotations

import shlex

import click

from autolaunch.cli.known import show_document
from autolaunch.cli.options import HOW, Command, Word, choice, option
from autolaunch.cli.reach import shown
from autolaunch.cli.terminal import Terminal, clean, gib, wrapped
from selector.facts import Hub, ModelFacts
from selector.values import Value

EXAMPLES = """\
  autolaunch models add someone/GLM-4.6-AWQ
  autolaunch models add someone/GLM-4.5-Air-mine --revision v2 --name air-mine
  autolaunch models add ./GLM-4.6-mine              a folder of this machine
"""


class AddedCheckpoint(Value, frozen=True, kw_only=True):
    """``exact``: the layout of its weights is known, and the files bear it out."""

    repo: str
    format: str
    quantization: str
    file_prefix: str | None
    download_bytes: int
    quality: float
    quality_source: str
    exact: bool


class AddedDocument(Value, frozen=True, kw_only=True):
    schema: int = 1
    model: str
    profile: str
    architecture: str
    parameters: str
    context_tokens: int
    checkpoints: tuple[AddedCheckpoint, ...]


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("place", metavar="ORG/REPO|FOLDER")
@option(HOW, "--hub", type=choice(("huggingface", "modelscope")), default="huggingface", metavar="NAME",
        help="Where it is: huggingface (the default) or modelscope.")  # fmt: skip
@option(HOW, "--revision", type=Word(), metavar="NAME", help="A commit, a branch or a tag; the newest otherwise.")
@option(
    HOW, "--name", type=Word(), metavar="ID", help="What the model is to be called; its repository's name otherwise."
)
@shown()
def add(place: str, hub: Hub, revision: str | None, name: str | None, as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (the last is read where faults are shown)
    """Write a profile of ORG/REPO, so that it is planned and launched like any other.

    Its config.json, its index and the headers of its weights are read, and no weights. It has to be of a supported
    architecture: glm4_moe or glm4v_moe.
    """
    from autolaunch import api
    from autolaunch.adding.profile import profile_of, refuse_known, source_of, write_profile

    known, home = api.catalog(), api.home()
    refuse_known(place, known)
    source = source_of(place, hub=hub, revision=revision)
    refuse_known(source.repo, known)
    model = profile_of(source, known, name=name)
    path = write_profile(model, home)
    document = AddedDocument(
        model=model.id,
        profile=str(path),
        architecture=model.architecture.model_type,
        parameters=model.parameters,
        context_tokens=model.context_tokens,
        checkpoints=tuple(
            AddedCheckpoint(
                repo=each.repo,
                format=each.format,
                quantization=each.quantization,
                file_prefix=each.file_prefix,
                download_bytes=each.download_bytes,
                quality=each.quality,
                quality_source=each.quality_source,
                exact=each.storage is not None,
            )
            for each in model.checkpoints
        ),
    )
    show_document(document, as_json, lambda terminal: _rendered(document, model, terminal))


def _rendered(document: AddedDocument, model: ModelFacts, terminal: Terminal) -> str:
    lines = [clean(f"{model.title} is known from now on as {model.id} ({document.profile})")]
    lines.append(f"  {document.architecture}, {document.parameters}, context {document.context_tokens:,}")
    for each in document.checkpoints:
        exact = "" if each.exact else ", layout not known in full"
        lines.append(clean(f"  {each.quantization} ({each.format}): {gib(each.download_bytes)}{exact}"))
    sources = {each.quality_source: each.quality for each in document.checkpoints}
    for told, quality in list(sources.items())[:3]:
        lines.append(wrapped(clean(f"quality {quality:g}: {told}"), terminal, first="  ", rest="    "))
    lines.append(f"\n  autolaunch plan {shlex.quote(model.id)}")
    return "\n".join(lines)
