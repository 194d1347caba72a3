"""What an engine can run: formats, layouts, and the known faults of ``profiles/engines``.

Structural rules are arithmetic on the architecture and live here under a name; which engine they concern,
from which version, and where that is written, is data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from selector.contract import Note, Number, Parallel
from selector.devices import Group
from selector.engine_facts import Choice, EngineFacts, Loads, Package, Rule
from selector.facts import Architecture, CheckpointFacts
from selector.request import Pins
from selector.versions import in_versions, version_key


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
        reason = _unsupported(engine, version, checkpoint, arch)
        return Refusal("engine.format", f"{name} does not load {checkpoint.format} checkpoints{reason}", {})
    rows = [row for row in rows if arch.model_type in row.architectures]
    if not rows:
        reason = _unsupported(engine, version, checkpoint, arch)
        message = f"{name} does not run {arch.model_type} from {checkpoint.format}{reason}"
        return Refusal("engine.architecture", message, {})
    rows = [row for row in rows if group.kind in row.devices]
    if not rows:
        return Refusal(
            "engine.device",
            f"{name} does not run {checkpoint.format} checkpoints of {arch.model_type} on {_kind(group)}",
            {},
        )
    able = _arithmetic(name, rows, checkpoint, group)
    if isinstance(able, Refusal):
        return able
    for row in able:
        if in_versions(version, row.since, row.before):
            return row
    oldest = min(able, key=lambda row: version_key(row.since))
    if version_key(version) < version_key(oldest.since):
        return Refusal("engine.version", f"{name} is too old for {checkpoint.format}: it needs {oldest.since}", {})
    reason = _unsupported(engine, version, checkpoint, arch)
    return Refusal("engine.version", f"{name} no longer loads {checkpoint.format} checkpoints{reason}", {})


def _arithmetic(name: str, rows: list[Loads], checkpoint: CheckpointFacts, group: Group) -> tuple[Loads, ...] | Refusal:
    """The rows whose arithmetic the group's devices have."""
    first = group.devices[0]
    if group.kind == "amd":
        architecture = None if first.facts is None else first.facts.architecture
        able = tuple(row for row in rows if not row.amd_architectures or architecture in row.amd_architectures)
        if not able:
            return Refusal(
                "engine.capability",
                f"{name} runs {checkpoint.format} on AMD's GPUs that have its arithmetic; {group.name} has not",
                {},
            )
        return able
    if group.kind != "nvidia":
        return tuple(rows)
    able = tuple(row for row in rows if _in_capability(first.capability, row.minimum_capability, row.below_capability))
    if able:
        return able
    bounds = [row.minimum_capability for row in rows if row.minimum_capability is not None]
    wanted = min(bounds, default=None)
    has = f"compute capability {_dotted(first.capability)}" if first.capability else "an unknown compute capability"
    if wanted is None or (first.capability is not None and first.capability >= wanted):
        return Refusal("engine.capability", f"{name} does not run {checkpoint.format} on {group.name}: {has}", {})
    return Refusal(
        "engine.capability",
        f"{name} runs {checkpoint.format} from compute capability {_dotted(wanted)}; {group.name} has {has}",
        {"needed_capability": wanted[0] + wanted[1] / 10},
    )


def _unsupported(engine: EngineFacts, version: str, checkpoint: CheckpointFacts, arch: Architecture) -> str:
    """Why, where the engine's profile tells: the end of a sentence."""
    for each in engine.unsupported:
        if (
            checkpoint.format in each.formats
            and (not each.architectures or arch.model_type in each.architectures)
            and in_versions(version, each.since, each.before)
        ):
            return f": {each.message}"
    return ""


def _kind(group: Group) -> str:
    return {"cpu": "a CPU", "apple": "Apple GPUs", "nvidia": "NVIDIA GPUs", "amd": "AMD GPUs"}[group.kind]


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def layout(arch: Architecture, engine: EngineFacts, parallel: Parallel, group: Group) -> Refusal | None:
    """Whether the engine has this layout, the ranks can divide the model, and the devices can take the ranks."""
    return _missing(engine, parallel) or _division(arch, parallel) or _placement(engine, parallel, group)


def _missing(engine: EngineFacts, parallel: Parallel) -> Refusal | None:
    has, name = engine.parallel, engine.title
    if parallel.tensor > 1 and "tensor" not in has:
        return Refusal("layout.tensor", f"{name} has no tensor parallelism", {"tensor_parallel": parallel.tensor})
    if parallel.pipeline > 1 and "pipeline" not in has and "layers" not in has:
        stages: dict[str, Number] = {"pipeline_parallel": parallel.pipeline}
        return Refusal("layout.pipeline", f"{name} has no pipeline parallelism", stages)
    if parallel.data > 1 and "data" not in has:
        return Refusal("layout.data", f"{name} is planned as one replica", {"data_parallel": parallel.data})
    if parallel.expert and ("expert" not in has or parallel.tensor == 1):
        reason = "needs tensor parallelism" if "expert" in has else f"is not in {name}"
        return Refusal("layout.expert", f"expert parallelism {reason}", {"tensor_parallel": parallel.tensor})
    return None


def _division(arch: Architecture, parallel: Parallel) -> Refusal | None:
    tensor = parallel.tensor
    numbers: dict[str, Number] = {"tensor_parallel": tensor}
    if arch.num_attention_heads % tensor:
        numbers["attention_heads"] = arch.num_attention_heads
        return Refusal("layout.heads", f"{arch.num_attention_heads} attention heads do not divide by {tensor}", numbers)
    kv_heads = arch.num_key_value_heads
    if kv_heads % tensor and tensor % kv_heads:
        numbers["kv_heads"] = kv_heads
        return Refusal("layout.kv_heads", f"{kv_heads} KV heads neither divide by {tensor} nor into it", numbers)
    if (uneven := _uneven_width(arch, parallel)) is not None:
        numbers["width"] = uneven
        return Refusal("layout.width", f"{uneven} columns of an MLP do not divide by {tensor}", numbers)
    if parallel.expert and arch.n_routed_experts % tensor:
        numbers["experts"] = arch.n_routed_experts
        return Refusal("layout.expert", f"{arch.n_routed_experts} experts do not divide by {tensor}", numbers)
    if parallel.pipeline > arch.num_hidden_layers:
        return Refusal(
            "layout.pipeline",
            f"{arch.num_hidden_layers} layers do not fill {parallel.pipeline} stages",
            {"pipeline_parallel": parallel.pipeline},
        )
    return None


def _uneven_width(arch: Architecture, parallel: Parallel) -> int | None:
    """The width of an MLP that the ranks cannot share out evenly: dense layers, shared experts, cut experts."""
    widths = [arch.intermediate_size, arch.moe_intermediate_size * arch.n_shared_experts]
    if not parallel.expert:
        widths.append(arch.moe_intermediate_size)
    return next((width for width in widths if width % parallel.tensor), None)


def _placement(engine: EngineFacts, parallel: Parallel, group: Group) -> Refusal | None:
    tensor = parallel.tensor
    numbers: dict[str, Number] = {"tensor_parallel": tensor}
    if parallel.ranks > group.per_node and len(group.nodes) > 1 and "nodes" not in engine.parallel:
        return Refusal("layout.node", f"{engine.title} is not planned over several nodes", numbers)
    if tensor > group.per_node and ("nodes" not in engine.parallel or len(group.nodes) == 1 or tensor % group.per_node):
        numbers["devices_per_node"] = group.per_node
        return Refusal("layout.node", f"tensor parallel {tensor} would leave the node of {group.per_node}", numbers)
    if parallel.ranks > 1 and any(device.sliced for device in group.devices):
        return Refusal("layout.mig", "MIG slices cannot be joined: each is planned alone", numbers)
    return None


# --- structural checks by name ----------------------------------------------------------------------

#: Marlin's tile: vLLM's check_moe_marlin_supports_layer, and the families that its PR 45295 pads to.
_MARLIN_TILE = 64
#: Groups of a 4-bit checkpoint whose layout is not published (those that are have it).
_INT4_GROUP = 128
#: vLLM's MoeWNA16 halves a group that does not divide the slice, down to this.
_INT4_SMALLEST_GROUP = 32
#: CUTLASS takes FP8 matrices whose sides divide by this; vLLM hands others to Triton.
_CUTLASS_SIDE = 16


class Cut(NamedTuple):
    """What a structural check looks at: the shapes, how ranks cut them, and the checkpoint's 4-bit group."""

    arch: Architecture
    parallel: Parallel
    group: int = _INT4_GROUP

    @property
    def experts(self) -> int:
        """Columns of one expert on a rank."""
        return self.arch.moe_intermediate_size // (1 if self.parallel.expert else self.parallel.tensor)

    @property
    def shared(self) -> int:
        """Columns of the shared experts on a rank."""
        return self.arch.moe_intermediate_size * self.arch.n_shared_experts // self.parallel.tensor

    @property
    def dense(self) -> int:
        """Columns of a dense layer's MLP on a rank."""
        return self.arch.intermediate_size // self.parallel.tensor


def _cut(arch: Architecture, parallel: Parallel, checkpoint: CheckpointFacts) -> Cut:
    known = None if checkpoint.storage is None else checkpoint.storage.group_size
    return Cut(arch, parallel) if known is None else Cut(arch, parallel, known)


def _fp8_marlin_tile(cut: Cut) -> bool:
    return cut.parallel.tensor > 1 and any(width % _MARLIN_TILE for width in (cut.dense, cut.shared, cut.experts))


def _fp8_cutlass_side(cut: Cut) -> bool:
    return cut.dense % _CUTLASS_SIDE != 0


def _int4_slice_indivisible(cut: Cut) -> bool:
    return cut.experts % min(_INT4_SMALLEST_GROUP, cut.group) != 0


def _int4_slice_off_group(cut: Cut) -> bool:
    return cut.experts % cut.group != 0 and not _int4_slice_indivisible(cut)


def _int4_slice_off_tile(cut: Cut) -> bool:
    """Whole groups, but no whole tiles: only groups below the tile come to this."""
    return cut.experts % cut.group == 0 and cut.experts % _MARLIN_TILE != 0


def _kv_heads_repeated(cut: Cut) -> bool:
    return cut.parallel.tensor > cut.arch.num_key_value_heads


def _mtp_borrows_embedding(cut: Cut) -> bool:
    return cut.arch.num_nextn_predict_layers > 0 and not cut.arch.mtp_has_own_embedding_and_head


def vision_heads_indivisible(arch: Architecture, parallel: Parallel) -> bool:
    """Whether the vision tower must run whole on every rank."""
    return arch.vision is not None and arch.vision.num_heads % parallel.tensor != 0


#: What ``check`` of a rule may name.
CHECKS: dict[str, Callable[[Cut], bool]] = {
    "fp8_cutlass_side": _fp8_cutlass_side,
    "fp8_marlin_tile": _fp8_marlin_tile,
    "int4_slice_indivisible": _int4_slice_indivisible,
    "int4_slice_off_group": _int4_slice_off_group,
    "int4_slice_off_tile": _int4_slice_off_tile,
    "kv_heads_repeated": _kv_heads_repeated,
    "mtp_borrows_embedding": _mtp_borrows_embedding,
    "vision_heads_indivisible": lambda cut: vision_heads_indivisible(cut.arch, cut.parallel),
}

#: ``silent`` is an engine that runs and answers wrongly: accuracy is never lowered without a word.
REFUSING = frozenset({"crash", "oom", "silent"})


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
    eager: bool,
    driver: str | None,
) -> bool:
    first = group.devices[0]
    return (
        in_versions(version, rule.since, rule.before)
        and (not rule.formats or checkpoint.format in rule.formats)
        and (not rule.architectures or arch.model_type in rule.architectures)
        and (not rule.models or model_id in rule.models)
        and (not rule.repos or checkpoint.repo in rule.repos or checkpoint.modelscope in rule.repos)
        and (not rule.devices or group.kind in rule.devices)
        and (not rule.accelerators or (first.facts is not None and first.facts.id in rule.accelerators))
        and (rule.below_driver is None or (driver is not None and in_versions(driver, None, rule.below_driver)))
        and _in_capability(first.capability, rule.minimum_capability, rule.below_capability)
        and (rule.minimum_tensor is None or parallel.tensor >= rule.minimum_tensor)
        and (not rule.tensor or parallel.tensor in rule.tensor)
        and (rule.minimum_pipeline is None or parallel.pipeline >= rule.minimum_pipeline)
        and (rule.speculative is None or rule.speculative == speculative)
        and (rule.expert is None or rule.expert == parallel.expert)
        and (rule.eager is None or rule.eager == eager)
        and (rule.check is None or CHECKS[rule.check](_cut(arch, parallel, checkpoint)))
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
    eager: bool = False,
    driver: str | None = None,
) -> Refusal | Verdict:
    """The engine's known faults that concern this candidate: a refusal, or what to show and what it costs.

    ``driver`` is the version of the devices' driver, ``None`` where it is not known.
    """
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
            eager=eager,
            driver=driver,
        ):
            continue
        message = rule.message if rule.workaround is None else f"{rule.message}; {rule.workaround}"
        if rule.severity in REFUSING:
            return Refusal(f"rule.{rule.code}", message, {"tensor_parallel": parallel.tensor})
        notes.append(Note(severity=rule.severity, code=rule.code, message=message, source=rule.source))
        speed_factor *= rule.speed_factor
    return Verdict(tuple(notes), speed_factor)
