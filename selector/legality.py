"""What an engine can run: formats, layouts, and the known faults of ``profiles/engines``.

Structural rules are arithmetic on the architecture and live here under a name; which engine they concern,
from which version, and where that is written, is data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from selector.contract import Note, Number, Parallel
from selector.devices import Group
from selector.facts import Architecture, CheckpointFacts, Choice, EngineFacts, Loads, Package, Rule
from selector.request import Pins


class Refusal(NamedTuple):
    """A code, one sentence, and the numbers in it."""

    code: str
    message: str
    numbers: dict[str, Number]


class Verdict(NamedTuple):
    """A candidate that may be tried: notes to show, and what known faults leave of its speed."""

    notes: tuple[Note, ...]
    speed_factor: float


def too_old(engine: EngineFacts, package: Package, version: str) -> Refusal | None:
    """Whether a version is below the oldest one that is known to be safe."""
    minimum = package.minimum_version or engine.minimum_version
    if version_key(version) >= version_key(minimum):
        return None
    reason = "" if package.minimum_version is not None else f": {engine.minimum_version_reason}"
    return Refusal("engine.version", f"{package.name} {version} is older than {minimum}{reason}", {})


def unkept_pin(engine: EngineFacts, pins: Pins) -> Refusal | None:
    """A pin that this engine's command cannot carry out: it is refused rather than dropped."""
    given: dict[Choice, object] = {
        "kv_cache_dtype": pins.kv_cache_dtype,
        "memory_utilization": pins.memory_utilization,
        "max_sequences": pins.max_sequences,
        "eager": pins.eager,
    }
    for name, value in given.items():
        if value is not None and value is not False and name not in engine.choices:
            words = name.replace("_", " ")
            return Refusal("pin.engine", f"{engine.title} cannot be told a {words}, and one was pinned", {})
    if pins.speculative == "mtp" and "mtp" not in engine.speculative:
        return Refusal("pin.engine", f"{engine.title} has no MTP speculative decoding, and it was pinned", {})
    return None


@lru_cache(maxsize=256)
def version_key(version: str) -> tuple[int, ...]:
    """``"0.11.0" < "0.33.0"``, ``"b6092" < "b7400"``; letters are ignored."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _in_versions(version: str, since: str | None, before: str | None) -> bool:
    key = version_key(version)
    return (since is None or key >= version_key(since)) and (before is None or key < version_key(before))


def _in_capability(
    capability: tuple[int, int] | None, minimum: tuple[int, int] | None, below: tuple[int, int] | None
) -> bool:
    if capability is None:
        return minimum is None and below is None
    return (minimum is None or capability >= minimum) and (below is None or capability < below)


def loader(
    engine: EngineFacts, version: str, checkpoint: CheckpointFacts, arch: Architecture, group: Group
) -> Loads | Refusal:
    """The row of the engine's ``loads`` that takes this checkpoint on these devices, or why none does."""
    rows = [row for row in engine.loads if checkpoint.format in row.formats]
    name = f"{engine.title} {version}"
    if not rows:
        return Refusal("engine.format", f"{name} does not load {checkpoint.format} checkpoints", {})
    rows = [row for row in rows if arch.model_type in row.architectures]
    if not rows:
        return Refusal("engine.architecture", f"{name} does not run {arch.model_type} from {checkpoint.format}", {})
    rows = [row for row in rows if group.kind in row.devices]
    if not rows:
        return Refusal(
            "engine.device",
            f"{name} does not run {checkpoint.format} checkpoints of {arch.model_type} on {_kind(group)}",
            {},
        )
    capability = group.devices[0].capability
    if group.kind == "amd":
        facts = group.devices[0].facts
        architecture = None if facts is None else facts.architecture
        rows = [row for row in rows if not row.amd_architectures or architecture in row.amd_architectures]
        if not rows:
            return Refusal(
                "engine.capability",
                f"{name} runs {checkpoint.format} on AMD's GPUs that have its arithmetic; {group.name} has not",
                {},
            )
    able = [
        row
        for row in rows
        if group.kind != "nvidia" or _in_capability(capability, row.minimum_capability, row.below_capability)
    ]
    if not able:
        wanted = min(row.minimum_capability for row in rows if row.minimum_capability is not None)
        has = "an unknown compute capability" if capability is None else f"compute capability {_dotted(capability)}"
        return Refusal(
            "engine.capability",
            f"{name} runs {checkpoint.format} from compute capability {_dotted(wanted)}; {group.name} has {has}",
            {"needed_capability": wanted[0] + wanted[1] / 10},
        )
    for row in able:
        if _in_versions(version, row.since, row.before):
            return row
    return Refusal("engine.version", f"{name} is too old for {checkpoint.format}: it needs {able[0].since}", {})


def _kind(group: Group) -> str:
    return {"cpu": "a CPU", "apple": "Apple GPUs", "nvidia": "NVIDIA GPUs", "amd": "AMD GPUs"}[group.kind]


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def layout(arch: Architecture, engine: EngineFacts, parallel: Parallel, group: Group) -> Refusal | None:
    """Whether the ranks can divide the model and the devices."""
    tensor = parallel.tensor
    numbers: dict[str, Number] = {"tensor_parallel": tensor}
    if tensor > 1 and "tensor" not in engine.parallel:
        return Refusal("layout.tensor", f"{engine.title} has no tensor parallelism", numbers)
    if arch.num_attention_heads % tensor:
        numbers["attention_heads"] = arch.num_attention_heads
        return Refusal("layout.heads", f"{arch.num_attention_heads} attention heads do not divide by {tensor}", numbers)
    kv_heads = arch.num_key_value_heads
    if kv_heads % tensor and tensor % kv_heads:
        numbers["kv_heads"] = kv_heads
        return Refusal("layout.kv_heads", f"{kv_heads} KV heads neither divide by {tensor} nor into it", numbers)
    if parallel.ranks > group.per_node and len(group.nodes) > 1 and "nodes" not in engine.parallel:
        return Refusal("layout.node", f"{engine.title} is not planned over several nodes", numbers)
    if tensor > group.per_node:
        numbers["devices_per_node"] = group.per_node
        return Refusal("layout.node", f"tensor parallel {tensor} would leave the node of {group.per_node}", numbers)
    if parallel.ranks > 1 and any(device.sliced for device in group.devices):
        return Refusal("layout.mig", "MIG slices cannot be joined: each is planned alone", numbers)
    if parallel.pipeline > arch.num_hidden_layers:
        return Refusal(
            "layout.pipeline",
            f"{arch.num_hidden_layers} layers do not fill {parallel.pipeline} stages",
            {"pipeline_parallel": parallel.pipeline},
        )
    if parallel.expert and ("expert" not in engine.parallel or tensor == 1):
        reason = "needs tensor parallelism" if "expert" in engine.parallel else f"is not in {engine.title}"
        return Refusal("layout.expert", f"expert parallelism {reason}", numbers)
    if parallel.expert and arch.n_routed_experts % tensor:
        return Refusal("layout.expert", f"{arch.n_routed_experts} experts do not divide by {tensor}", numbers)
    return None


# --- structural checks by name ----------------------------------------------------------------------

_MARLIN_TILE = 64
_INT4_GROUP = 128
_INT4_SMALLEST_GROUP = 32


def _expert_slice(arch: Architecture, parallel: Parallel) -> int:
    return arch.moe_intermediate_size // (1 if parallel.expert else parallel.tensor)


def _fp8_marlin_tile(arch: Architecture, parallel: Parallel) -> bool:
    widths = (
        arch.intermediate_size // parallel.tensor,
        arch.moe_intermediate_size * arch.n_shared_experts // parallel.tensor,
        _expert_slice(arch, parallel),
    )
    return parallel.tensor > 1 and any(width % _MARLIN_TILE for width in widths)


def _int4_slice_indivisible(arch: Architecture, parallel: Parallel) -> bool:
    return _expert_slice(arch, parallel) % _INT4_SMALLEST_GROUP != 0


def _int4_slice_off_group(arch: Architecture, parallel: Parallel) -> bool:
    return not _int4_slice_indivisible(arch, parallel) and _expert_slice(arch, parallel) % _INT4_GROUP != 0


def vision_heads_indivisible(arch: Architecture, parallel: Parallel) -> bool:
    """Whether the vision tower must run whole on every rank."""
    return arch.vision is not None and arch.vision.num_heads % parallel.tensor != 0


#: What ``check`` of a rule may name: predicates over the shapes and the layout.
CHECKS: dict[str, Callable[[Architecture, Parallel], bool]] = {
    "fp8_marlin_tile": _fp8_marlin_tile,
    "int4_slice_indivisible": _int4_slice_indivisible,
    "int4_slice_off_group": _int4_slice_off_group,
    "vision_heads_indivisible": vision_heads_indivisible,
}

REFUSING = frozenset({"crash", "oom"})


def _applies(
    rule: Rule,
    *,
    version: str,
    model_id: str,
    checkpoint: CheckpointFacts,
    arch: Architecture,
    group: Group,
    parallel: Parallel,
    speculative: bool,
) -> bool:
    return (
        _in_versions(version, rule.since, rule.before)
        and (not rule.formats or checkpoint.format in rule.formats)
        and (not rule.architectures or arch.model_type in rule.architectures)
        and (not rule.models or model_id in rule.models)
        and (not rule.repos or checkpoint.repo in rule.repos)
        and _in_capability(group.devices[0].capability, rule.minimum_capability, rule.below_capability)
        and (rule.minimum_tensor is None or parallel.tensor >= rule.minimum_tensor)
        and (not rule.tensor or parallel.tensor in rule.tensor)
        and (rule.minimum_pipeline is None or parallel.pipeline >= rule.minimum_pipeline)
        and (rule.speculative is None or rule.speculative == speculative)
        and (rule.expert is None or rule.expert == parallel.expert)
        and (rule.check is None or CHECKS[rule.check](arch, parallel))
    )


def rules(
    engine: EngineFacts,
    *,
    version: str,
    model_id: str,
    checkpoint: CheckpointFacts,
    arch: Architecture,
    group: Group,
    parallel: Parallel,
    speculative: bool,
) -> Refusal | Verdict:
    """The engine's known faults that concern this candidate: a refusal, or what to show and what it costs."""
    notes: list[Note] = []
    speed_factor = 1.0
    for rule in engine.rules:
        if not _applies(
            rule,
            version=version,
            model_id=model_id,
            checkpoint=checkpoint,
            arch=arch,
            group=group,
            parallel=parallel,
            speculative=speculative,
        ):
            continue
        message = rule.message if rule.workaround is None else f"{rule.message}; {rule.workaround}"
        if rule.severity in REFUSING:
            return Refusal(f"rule.{rule.code}", message, {"tensor_parallel": parallel.tensor})
        notes.append(Note(severity=rule.severity, code=rule.code, message=message, source=rule.source))
        speed_factor *= rule.speed_factor
    return Verdict(tuple(notes), speed_factor)
