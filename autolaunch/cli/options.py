"""The options that commands share, grouped as the help shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from autolaunch.given import is_word, tokens
from selector.facts import EngineName, Format, Hub
from selector.request import OBJECTIVES, KvDtype, WorkloadName

_Function = TypeVar("_Function", bound=Callable[..., Any])

if TYPE_CHECKING:  # generic for the type checker; at run time only since click 8.5
    _Int = click.ParamType[int]
    _Float = click.ParamType[float]
    _Text = click.ParamType[str]
else:
    _Int = _Float = _Text = click.ParamType

WANTED = "What is wanted"
PINNED = "What is pinned (a pin narrows the list and is never overridden)"
HOW = "How"
SHOWN = "What is shown"


# --- values -----------------------------------------------------------------------------------------


class Tokens(_Int):
    """A number of tokens: ``131072``, or ``128k`` in units of 1024."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = tokens(str(value))
        if found is None:
            self.fail(f"{value!r} is not a number of tokens such as 32768 or 32k.", param, ctx)
        return found


class Gpus(_Text):
    """``2`` (any two), ``0,1`` (these), or UUIDs; what is wrong with the form is said here."""

    name = "gpus"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).replace(" ", "")
        if re.fullmatch(r"[0-9]{1,4}", text):
            if int(text) == 0:
                self.fail("0 GPUs would be none; leave it out to let the plan decide.", param, ctx)
            return text
        if re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*,?", text):
            names = [str(int(index)) for index in text.split(",") if index]
            text = ",".join(names) if len(names) > 1 else f"{names[0]},"
        elif re.fullmatch(r"(?i:(?:GPU|MIG)-[0-9a-f/-]{1,80})(,(?i:(?:GPU|MIG)-[0-9a-f/-]{1,80}))*", text):
            names = text.lower().split(",")
        else:
            self.fail(f"{value!r} is no count (2), list of numbers (0,1) or list of UUIDs (GPU-…).", param, ctx)
        if len(set(names)) != len(names):
            self.fail("a GPU is named twice.", param, ctx)
        return text


class Word(_Text):
    """A name that goes on into a command or a path: one line, not empty, not an option."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not is_word(text):
            self.fail(f"{text[:60]!r} is no name.", param, ctx)
        return text


class Whole(_Int):
    """A whole number from 1 up. Not ``click.IntRange``, whose help ends with mathematics."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if re.fullmatch(r"[0-9]{1,7}", text) is None or int(text) == 0:
            self.fail(f"{value!r} is not a whole number from 1 to 9,999,999.", param, ctx)
        return int(text)


class Port(_Int):
    """0 to 65535."""

    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if re.fullmatch(r"[0-9]{1,5}", text) is None or int(text) > 65_535:
            self.fail(f"{value!r} is no port from 0 to 65535.", param, ctx)
        return int(text)


class Share(_Float):
    """A share of a device's memory: above 0, at most 1."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not 0 < share <= 1:  # NaN is in no range
            self.fail(f"{value!r} is not above 0 and at most 1.", param, ctx)
        return share


# --- help -------------------------------------------------------------------------------------------


class Listed(click.Option):
    """An option that the help lists under ``section``."""

    def __init__(self, *arguments: Any, section: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.section = section


class Command(click.Command):
    """A command whose help groups its options and ends with ``examples``, printed as they stand."""

    def __init__(self, *arguments: Any, examples: str = "", **settings: Any) -> None:
        settings.setdefault("context_settings", {})
        settings["context_settings"] = {"help_option_names": ["-h", "--help"], **settings["context_settings"]}
        super().__init__(*arguments, **settings)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                name = parameter.section if isinstance(parameter, Listed) else SHOWN
                sections.setdefault(name, []).append(record)
        for name in (WANTED, PINNED, HOW, SHOWN):
            if name in sections:
                with formatter.section(name):
                    formatter.write_dl(sections[name], col_max=26)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click passes it)
        if self.examples:
            formatter.write(f"\nExamples:\n{self.examples}")


def _options(*options: Callable[[_Function], _Function]) -> Callable[[_Function], _Function]:
    def apply(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


def option(section: str, *names: str, **settings: Any) -> Callable[[_Function], _Function]:
    return click.option(*names, cls=Listed, section=section, **settings)


#: No hub is pinned.
ANY_HUB = "auto"


def choice(values: tuple[str, ...]) -> click.Choice[str]:
    return click.Choice(values, case_sensitive=False)


def wanted_options(function: _Function) -> _Function:
    """What is wanted of the model: never a reason to change a pin."""
    return _options(
        option(
            WANTED,
            "--objective",
            type=choice(OBJECTIVES),
            default="balanced",
            metavar="NAME",
            help="What the list is ranked by: balanced (the default), latency, throughput, context or quality.",
        ),
        option(
            WANTED,
            "--context",
            "context_tokens",
            type=Tokens(),
            metavar="TOKENS",
            help="What one request may use, prompt and answer together: 131072 or 128k. Kept, or the plan is refused.",
        ),
        option(
            WANTED,
            "--concurrency",
            type=Whole(),
            metavar="N",
            help="How many requests come at once; those that do not run together wait.",
        ),
        option(WANTED, "--input-tokens", type=Tokens(), metavar="TOKENS", help="The mean length of a prompt."),
        option(WANTED, "--output-tokens", type=Tokens(), metavar="TOKENS", help="The mean length of an answer."),
        option(
            WANTED,
            "--workload",
            type=choice(get_args(WorkloadName)),
            metavar="NAME",
            help="A name for such figures: chat, agent, long-context or batch.",
        ),
    )(function)


def _any_hub(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    return None if value == ANY_HUB else value


def hub_options(function: _Function) -> _Function:
    """Where the weights come from."""
    return _options(
        option(
            PINNED,
            "--hub",
            type=choice((*get_args(Hub), ANY_HUB)),
            metavar="NAME",
            callback=_any_hub,
            help="huggingface or modelscope; auto (the default) takes the one that answers.",
        ),
        option(PINNED, "--revision", type=Word(), metavar="NAME", help="A commit or a tag of the checkpoint."),
    )(function)


def pin_options(function: _Function) -> _Function:
    """What the user fixed."""
    return _options(
        option(
            PINNED,
            "--engine",
            type=choice(get_args(EngineName)),
            metavar="NAME",
            help="vllm, sglang, transformers, mlx or llamacpp.",
        ),
        option(PINNED, "--engine-version", type=Word(), metavar="VERSION", help="The engine's version, as 0.33.0."),
        option(PINNED, "--engine-path", type=Word(), metavar="PATH", help="An engine that is here: folder or program."),
        option(PINNED, "--repo", type=Word(), metavar="ORG/NAME", help="The checkpoint, by its name on the hub."),
        option(
            PINNED,
            "--format",
            type=choice(get_args(Format)),
            metavar="NAME",
            help="The checkpoint's format: bf16, fp8, awq, gptq, nvfp4, mlx, gguf …",
        ),
        option(PINNED, "--quantization", type=Word(), metavar="NAME", help="The quantization, as FP8, Int4 or 4bit."),
        option(
            PINNED,
            "--gpus",
            type=Gpus(),
            metavar="COUNT|LIST",
            help="Any 2, or just these: 0,1 (a comma after a single one: 0,), or UUIDs.",
        ),
        option(PINNED, "--tensor-parallel", type=Whole(), metavar="N", help="GPUs that share every layer."),
        option(PINNED, "--pipeline-parallel", type=Whole(), metavar="N", help="Stages that the layers are cut into."),
        option(PINNED, "--data-parallel", type=Whole(), metavar="N", help="Replicas side by side."),
        option(
            PINNED,
            "--expert-parallel/--no-expert-parallel",
            default=None,
            help="Whole experts on each GPU, or a slice of every expert.",
        ),
        option(
            PINNED,
            "--kv-cache-dtype",
            type=choice(get_args(KvDtype)),
            metavar="NAME",
            help="bf16, fp8 (half the memory, a little less accurate) or fp32.",
        ),
        option(
            PINNED,
            "--memory-utilization",
            type=Share(),
            metavar="SHARE",
            help="The share of each GPU's memory that the engine may fill, as 0.9.",
        ),
        option(PINNED, "--max-sequences", type=Whole(), metavar="N", help="Requests that the engine batches at most."),
        option(
            PINNED,
            "--speculative",
            type=choice(("mtp", "off")),
            metavar="mtp|off",
            help="Multi-token prediction with the model's own extra layer, or none.",
        ),
        option(
            PINNED, "--eager", is_flag=True, default=None, help="No graph capture: slower, less memory, a faster start."
        ),
        hub_options,
    )(function)


def shown_options(function: _Function) -> _Function:
    """What is printed."""
    return _options(
        option(SHOWN, "--all", "show_all", is_flag=True, help="Every candidate and every refusal, not the first few."),
        option(SHOWN, "--json", "as_json", is_flag=True, help="JSON on standard output (schema 1), and nothing else."),
        option(SHOWN, "--verbose", is_flag=True, help="Say more; on a fault of ours, where it happened."),
    )(function)


hardware_option = option(
    HOW,
    "--hardware",
    type=Word(),
    metavar="MACHINE",
    help="Another machine: 8xh100, 2x8xh200, 4090+192gb (with main memory), m3-ultra-512gb, cpu-64gb, or a file of "
    "`autolaunch probe --json`.",
)

nodes_option = option(
    HOW,
    "--nodes",
    type=Word(),
    metavar="ADDRESS",
    help="All nodes of a Ray cluster: auto (the one that this host is of), HOST:PORT of its head, or ray://HOST:PORT.",
)
