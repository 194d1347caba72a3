"""``autolaunch models`` and ``hardware``: what this release knows, and what of it lies here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from autolaunch.cli.options import SHOWN, Command, option
from autolaunch.cli.terminal import Terminal, clean, compact, count, gib, heading, table, wrapped, write
from selector.errors import UsageError
from selector.facts import AcceleratorFacts, CheckpointFacts, ModelFacts
from selector.hardware import Vendor
from selector.values import Value

if TYPE_CHECKING:
    from autolaunch.on_disk import OnDisk

_Function = TypeVar("_Function", bound=Callable[..., Any])
_VENDORS: tuple[tuple[Vendor, str], ...] = (("nvidia", "NVIDIA"), ("amd", "AMD"), ("apple", "Apple"))


class LocalRow(Value, frozen=True, kw_only=True):
    """Files of a checkpoint that are on this machine; ``revision`` is the commit of those in a hub's cache."""

    place: str
    folder: str
    revision: str | None
    whole: bool
    bytes_on_disk: int


class CheckpointRow(Value, frozen=True, kw_only=True):
    repo: str
    modelscope: str | None
    format: str
    quantization: str
    download_bytes: int
    local: tuple[LocalRow, ...] = ()


class ModelRow(Value, frozen=True, kw_only=True):
    id: str
    title: str
    aliases: tuple[str, ...]
    parameters: str
    modalities: tuple[str, ...]
    context_tokens: int
    generated: bool
    checkpoints: tuple[CheckpointRow, ...]


class ModelsDocument(Value, frozen=True, kw_only=True):
    """``local_bytes`` is what all that is local takes together, each file once."""

    schema: int = 1
    models: tuple[ModelRow, ...]
    local_bytes: int = 0


class HardwareRow(Value, frozen=True, kw_only=True):
    """``memory_bytes`` lists the sizes of a machine that comes in several; the driver's figure otherwise."""

    id: str
    name: str
    aliases: tuple[str, ...]
    vendor: str
    memory_kind: str
    memory_bytes: tuple[int, ...]
    bandwidth_bytes_per_second: int


class HardwareDocument(Value, frozen=True, kw_only=True):
    schema: int = 1
    names: tuple[str, ...]
    accelerators: tuple[HardwareRow, ...]


def _shown(function: _Function) -> _Function:
    function = option(SHOWN, "--verbose", is_flag=True, help="Say more; on a fault of ours, where it happened.")(
        function
    )
    return option(SHOWN, "--json", "as_json", is_flag=True, help="JSON on standard output (schema 1).")(function)


def show_document(document: Value, as_json: bool, render: Callable[[Terminal], str]) -> None:
    if as_json:
        write(sys.stdout, msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    terminal = Terminal.of(sys.stdout)
    write(sys.stdout, render(terminal), terminal)


# --- models -----------------------------------------------------------------------------------------


MODELS_EXAMPLES = """\
  autolaunch models                 what is known, and what of it lies here
  autolaunch models --verbose       every checkpoint
  autolaunch models add someone/GLM-4.6-AWQ
  autolaunch rm glm-4.6             free the room that it takes
"""


class Models(click.Group):
    """Lists, unless ``add`` follows."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        word = next((each for each in args if not each.startswith("-")), None)
        if word is not None and word != "add":
            hint = (
                f"autolaunch models add {word} writes a profile of a repository; autolaunch plan {word} plans with it"
            )
            raise UsageError(f"autolaunch models has no {word[:60]!r}", hint=clean(hint))
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click passes it)
        return ["add"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click passes it)
        if cmd_name != "add":
            return None
        from autolaunch.cli.models_add import add

        return add

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click passes it)
        with formatter.section("Commands"):
            formatter.write_dl([("add", "Write a profile of a repository that is not known yet.")])

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click passes it)
        formatter.write("Usage: autolaunch models [OPTIONS]\n")
        formatter.write("       autolaunch models add [OPTIONS] ORG/REPO|FOLDER\n")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click passes it)
        formatter.write(f"\nExamples:\n{MODELS_EXAMPLES}")


@click.group(cls=Models, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@_shown
@click.pass_context
def models(ctx: click.Context, as_json: bool, verbose: bool) -> None:
    """List the models that are known, and which of their checkpoints are on this machine."""
    if ctx.invoked_subcommand is not None:
        return
    from autolaunch import api
    from autolaunch.hub_cache import cache_directory
    from autolaunch.on_disk import on_disk, total_bytes

    known, home, cache = api.catalog(), api.home(), cache_directory(os.environ)
    found = [known.model(name) for name in known.model_ids()]
    here = [each for model in found for each in on_disk(model, cache=cache, home=home)]
    document = ModelsDocument(
        models=tuple(_model_row(model, here) for model in found), local_bytes=total_bytes(here, cache)
    )
    show_document(document, as_json, lambda terminal: _render_models(document, terminal, verbose=verbose))


def _model_row(model: ModelFacts, here: list[OnDisk]) -> ModelRow:
    return ModelRow(
        id=model.id,
        title=model.title,
        aliases=model.aliases,
        parameters=model.parameters,
        modalities=model.modalities,
        context_tokens=model.context_tokens,
        generated=model.generated,
        checkpoints=tuple(
            _checkpoint_row(
                each,
                tuple(
                    LocalRow(
                        place=found.place,
                        folder=str(found.folder),
                        revision=found.revision,
                        whole=found.whole,
                        bytes_on_disk=found.bytes_on_disk,
                    )
                    for found in here
                    if (found.model, found.repo, found.file_prefix) == (model.id, each.repo, each.file_prefix)
                ),
            )
            for each in model.checkpoints
        ),
    )


def _checkpoint_row(checkpoint: CheckpointFacts, local: tuple[LocalRow, ...]) -> CheckpointRow:
    return CheckpointRow(
        repo=checkpoint.repo,
        modelscope=checkpoint.modelscope,
        format=checkpoint.format,
        quantization=checkpoint.quantization,
        download_bytes=checkpoint.download_bytes,
        local=local,
    )


def _render_models(document: ModelsDocument, terminal: Terminal, *, verbose: bool) -> str:
    rows: list[tuple[str, ...]] = []
    for model in document.models:
        sizes = [each.download_bytes for each in model.checkpoints if each.download_bytes]
        formats = list(dict.fromkeys(each.format for each in model.checkpoints))
        rows.append(
            (
                model.id,
                model.parameters,
                compact(model.context_tokens),
                "text, vision" if "image" in model.modalities else "text",
                " ".join(formats),
                "made here" if model.generated or not sizes else _span(min(sizes), max(sizes)),
            )
        )
    head = ("model", "parameters", "context", "takes", "formats", "download")
    parts = [table(head, rows, right=(2, 5), flex=4, width=terminal.width_columns)]
    if verbose:
        parts += [_render_checkpoints(model, terminal) for model in document.models]
    parts.append(_render_local(document, terminal))
    return "\n\n".join(parts)


def _render_local(document: ModelsDocument, terminal: Terminal) -> str:
    rows: list[tuple[str, ...]] = [
        (
            each.repo,
            each.quantization,
            (found.revision or "")[:8] or ("made here" if found.place == "made here" else "-"),
            "whole" if found.whole else "in part",
            gib(found.bytes_on_disk),
        )
        for model in document.models
        for each in model.checkpoints
        for found in each.local
    ]
    if not rows:
        return f"{heading('On this machine')}\n  none of their weights"
    head = ("checkpoint", "quant", "commit", "state", "size")
    body = table(head, rows, right=(4,), flex=(0, 1), width=terminal.width_columns)
    told = f"  {gib(document.local_bytes)} together; autolaunch rm MODEL frees what a model takes."
    return f"{heading('On this machine')}\n{body}\n\n{told}"


def _span(low_bytes: int, high_bytes: int) -> str:
    return gib(low_bytes) if low_bytes == high_bytes else f"{low_bytes / 1024**3:,.0f}–{high_bytes / 1024**3:,.0f} GiB"


def _render_checkpoints(model: ModelRow, terminal: Terminal) -> str:
    rows: list[tuple[str, ...]] = [
        (each.repo, each.format, each.quantization, gib(each.download_bytes) if each.download_bytes else "made here")
        for each in model.checkpoints
    ]
    body = table(("checkpoint", "format", "quant", "download"), rows, right=(3,), flex=0, width=terminal.width_columns)
    return f"{heading(model.id)}\n{body}"


# --- hardware ---------------------------------------------------------------------------------------


@click.command(cls=Command, examples="  autolaunch hardware\n  autolaunch plan glm-4.6 --hardware 2x8xh100\n")
@_shown
def hardware(as_json: bool, verbose: bool) -> None:
    """List the names that --hardware takes, by vendor, with their memory."""
    from autolaunch import api
    from selector.machines import hardware_names

    known = api.catalog()
    document = HardwareDocument(
        names=hardware_names(known),
        accelerators=tuple(_hardware_row(each) for vendor, _ in _VENDORS for each in known.accelerators(vendor)),
    )
    show_document(document, as_json, lambda terminal: _render_hardware(document, terminal, verbose=verbose))


def _hardware_row(facts: AcceleratorFacts) -> HardwareRow:
    sizes = tuple(size * 1024**3 for size in facts.memory_options_gib)
    if not sizes and facts.memory_total_mib is not None:
        sizes = (facts.memory_total_mib * 1024**2,)
    return HardwareRow(
        id=facts.id,
        name=facts.name,
        aliases=facts.aliases,
        vendor=facts.vendor,
        memory_kind=facts.memory_kind,
        memory_bytes=sizes,
        bandwidth_bytes_per_second=round(facts.bandwidth_gb_per_second * 1e9),
    )


def _render_hardware(document: HardwareDocument, terminal: Terminal, *, verbose: bool) -> str:
    parts = []
    for vendor, title in _VENDORS:
        rows: list[tuple[str, ...]] = [
            (each.id, clean(each.name), _sizes(each.memory_bytes), f"{each.bandwidth_bytes_per_second / 1e9:,.0f} GB/s")
            + ((" ".join(each.aliases),) if verbose else ())
            for each in document.accelerators
            if each.vendor == vendor
        ]
        head = ("name", "device", "memory", "bandwidth") + (("also called",) if verbose else ())
        if rows:
            body = table(head, rows, right=(3,), flex=(1, 4) if verbose else 1, width=terminal.width_columns)
            parts.append(f"{heading(title)}\n{body}")
    parts.append(
        wrapped(
            "A count goes in front (8xh100), nodes before it (2x8xh200). A machine that comes in several sizes takes "
            "one behind (m3-ultra-512gb). Main memory beside GPUs: 4090+192gb. No GPU at all: cpu-64gb.",
            terminal,
            first="  ",
        )
    )
    return "\n\n".join(parts)


def _sizes(sizes: tuple[int, ...]) -> str:
    if not sizes:
        return "unknown"
    if len(sizes) == 1:
        return gib(sizes[0])
    return f"{', '.join(count(size / 1024**3) for size in sizes)} GiB"
