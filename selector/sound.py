"""What the types of a profile cannot say: figures that can be divided by, and fields that fit each other.

Each function gives the faults of one value as (key path, what is wrong with it), the first first. Whoever read the
file (:mod:`selector.catalog`) adds its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from selector.engine_facts import (
    BatchDefault,
    EngineFacts,
    HostBuild,
    MemoryRule,
    NetworkRule,
    OffloadRule,
    Rule,
    SpeedRule,
)
from selector.facts import AcceleratorFacts, Architecture, CheckpointFacts, ModelFacts

#: A key path, and what is wrong with the value there.
Fault = tuple[str, str]

#: No size, count or figure of a profile comes near this (the largest are bytes of a checkpoint); beyond it,
#: arithmetic on several of them would leave the range of a float.
LARGEST = 10**15

_MAY_BE_ZERO = frozenset({"first_k_dense_replace", "n_shared_experts", "num_nextn_predict_layers"})


def _positive(key: str, figure: float | None) -> Iterator[Fault]:
    """A figure that something is divided by; NaN is in no range."""
    if figure is not None and not figure > 0:
        yield key, f"must be above 0, is {figure}"
    elif figure is not None and figure > LARGEST:
        yield key, f"cannot be as much as {figure}"


def _not_negative(key: str, figure: float | None) -> Iterator[Fault]:
    if figure is not None and not figure >= 0:
        yield key, f"must be 0 or more, is {figure}"
    elif figure is not None and figure > LARGEST:
        yield key, f"cannot be as much as {figure}"


def _share(key: str, figure: float) -> Iterator[Fault]:
    if not 0 < figure <= 1:
        yield key, f"must be above 0 and at most 1, is {figure}"


def _filled(key: str, values: Iterable[object]) -> Iterator[Fault]:
    if not tuple(values):
        yield key, "there must be one at least"


# --- models -----------------------------------------------------------------------------------------


def model_faults(model: ModelFacts) -> Iterator[Fault]:
    """What is wrong with a model, its id apart."""
    yield from _positive("context_tokens", model.context_tokens)
    yield from architecture_faults(model.architecture)
    yield from _filled("checkpoints", model.checkpoints)
    seen: dict[tuple[str, str | None], int] = {}
    for index, checkpoint in enumerate(model.checkpoints):
        key = f"checkpoints[{index}]"
        yield from _checkpoint(key, checkpoint)
        first = seen.setdefault((checkpoint.repo.lower(), checkpoint.file_prefix), index)
        if first != index:
            yield key, f"the same repository as checkpoints[{first}]: {checkpoint.repo}"


def architecture_faults(shape: Architecture) -> Iterator[Fault]:
    """What is wrong with a model's shape."""
    for prefix, part in (("architecture", shape), ("architecture.vision", shape.vision)):
        for name in () if part is None else part.__struct_fields__:
            figure = getattr(part, name)
            if isinstance(figure, int | float) and not isinstance(figure, bool):
                check = _not_negative if name in _MAY_BE_ZERO else _positive
                yield from check(f"{prefix}.{name}", figure)
    if shape.first_k_dense_replace > shape.num_hidden_layers:
        yield (
            "architecture.first_k_dense_replace",
            f"is {shape.first_k_dense_replace}, more than the {shape.num_hidden_layers} of num_hidden_layers",
        )
    if shape.num_attention_heads % shape.num_key_value_heads:
        yield (
            "architecture.num_key_value_heads",
            f"{shape.num_key_value_heads} does not divide the {shape.num_attention_heads} of num_attention_heads",
        )
    if shape.num_experts_per_tok > shape.n_routed_experts:
        yield (
            "architecture.num_experts_per_tok",
            f"is {shape.num_experts_per_tok}, more than the {shape.n_routed_experts} of n_routed_experts",
        )
    if shape.moe_intermediate_size < shape.num_attention_heads:
        # Tensor parallelism cuts both, and a rank of every group that the heads allow must get a column at least.
        yield (
            "architecture.moe_intermediate_size",
            f"is {shape.moe_intermediate_size}, less than the {shape.num_attention_heads} of num_attention_heads",
        )
    yield from _share("architecture.partial_rotary_factor", shape.partial_rotary_factor)
    if shape.vision is not None and shape.vision.hidden_size % shape.vision.num_heads:
        yield (
            "architecture.vision.num_heads",
            f"{shape.vision.num_heads} does not divide the {shape.vision.hidden_size} of hidden_size",
        )


def _checkpoint(key: str, checkpoint: CheckpointFacts) -> Iterator[Fault]:
    yield from _positive(f"{key}.download_bytes", checkpoint.download_bytes)
    yield from _share(f"{key}.quality", checkpoint.quality)
    storage = checkpoint.storage
    if storage is None:
        return
    if not (storage.bits > 0 and (storage.group_size is None or storage.group_size > 0)):
        yield f"{key}.storage", "bits and group_size must be above 0"
    yield from _positive(f"{key}.storage.bits", storage.bits)
    yield from _positive(f"{key}.storage.plain_bits", storage.plain_bits)
    yield from _not_negative(f"{key}.storage.scale_bits", storage.scale_bits)
    yield from _not_negative(f"{key}.storage.zero_bits", storage.zero_bits)


# --- engines ----------------------------------------------------------------------------------------


def engine_faults(engine: EngineFacts) -> Iterator[Fault]:
    """What is wrong with an engine, its name apart."""
    yield from _filled("kv_cache_dtypes", engine.kv_cache_dtypes)
    for index, rule in enumerate(engine.rules):
        yield from _rule(f"rules[{index}]", rule)
    yield from _memory(engine.memory)
    if engine.offload is not None:
        yield from _offload(engine, engine.offload)
    yield from _filled("batch_defaults", engine.batch_defaults)
    for index, default in enumerate(engine.batch_defaults):
        yield from _batch(f"batch_defaults[{index}]", default)
    yield from _speed(engine.speed)
    if engine.host is not None:
        for key, reason in _host(engine.host):
            yield f"host.{key}", reason
    yield from _filled("packages", engine.packages)
    for index, package in enumerate(engine.packages):
        yield from _not_negative(f"packages[{index}].bytes_on_disk", package.bytes_on_disk)


def _host(host: HostBuild) -> Iterator[Fault]:
    yield from _filled("kv_cache_dtypes", host.kv_cache_dtypes)
    yield from _memory(host.memory)
    yield from _filled("batch_defaults", host.batch_defaults)
    for index, default in enumerate(host.batch_defaults):
        yield from _batch(f"batch_defaults[{index}]", default)
    yield from _speed(host.speed)


def _rule(key: str, rule: Rule) -> Iterator[Fault]:
    if rule.check is not None:
        from selector.legality import CHECKS  # only where a rule names one; a plan has it loaded by then

        if rule.check not in CHECKS:
            yield f"{key}.check", f"there is no check {rule.check[:80]!a}, only {', '.join(sorted(CHECKS))}"
    yield from _share(f"{key}.speed_factor", rule.speed_factor)


def _memory(rule: MemoryRule) -> Iterator[Fault]:
    yield from _filled("memory.utilizations", rule.utilizations)
    for index, share in enumerate(rule.utilizations):
        yield from _share(f"memory.utilizations[{index}]", share)
    for name in (
        *("runtime_bytes", "collective_bytes", "graphs_bytes_per_layer", "activation_copies", "logits_copies"),
        "relative_uncertainty",
    ):
        yield from _not_negative(f"memory.{name}", getattr(rule, name))


def _offload(engine: EngineFacts, rule: OffloadRule) -> Iterator[Fault]:
    if engine.memory.kind != "demand" or "layers" not in engine.parallel:
        yield "offload", "needs an engine that takes memory on demand and puts whole layers on the devices"
    for name in ("host_bytes", "crossing_seconds"):
        yield from _not_negative(f"offload.{name}", getattr(rule, name))
    for name in ("copied_share", "copy_efficiency"):
        yield from _share(f"offload.{name}", getattr(rule, name))
    yield from _positive("offload.unknown_gb_per_second", rule.unknown_gb_per_second)
    for name in ("cpu_bandwidth_gb_per_second", "cpu_tflops"):
        if getattr(engine.speed, name) is None:
            yield f"speed.{name}", "missing: what lies in main memory is read and computed at it"


def _batch(key: str, default: BatchDefault) -> Iterator[Fault]:
    yield from _not_negative(f"{key}.minimum_device_bytes", default.minimum_device_bytes)
    yield from _positive(f"{key}.batched_tokens", default.batched_tokens)
    yield from _positive(f"{key}.sequences", default.sequences)


def _speed(rule: SpeedRule) -> Iterator[Fault]:
    for name in ("bandwidth_efficiency", "prefill_efficiency", "decode_efficiency", "attention_efficiency"):
        yield from _share(f"speed.{name}", getattr(rule, name))
    for name in (
        *("cpu_bandwidth_gb_per_second", "cpu_tflops", "layer_seconds", "eager_layer_seconds", "read_gb_per_second"),
    ):
        yield from _positive(f"speed.{name}", getattr(rule, name))
    for name in (
        *("sequence_seconds", "request_seconds", "first_step_seconds", "eager_first_step_seconds", "start_seconds"),
    ):
        yield from _not_negative(f"speed.{name}", getattr(rule, name))
    if rule.collectives is not None:
        for name in ("link_efficiency", "pcie_efficiency", "pipeline_efficiency"):
            yield from _share(f"speed.collectives.{name}", getattr(rule.collectives, name))
        yield from _positive("speed.collectives.unknown_gb_per_second", rule.collectives.unknown_gb_per_second)
        for name in ("link_seconds", "pcie_seconds", "handover_seconds", "network_seconds"):
            yield from _not_negative(f"speed.collectives.{name}", getattr(rule.collectives, name))
        yield from _networks(rule.collectives.networks)
    if rule.mtp is not None:
        yield from _positive("speed.mtp.proposed_tokens", rule.mtp.proposed_tokens)
        yield from _not_negative("speed.mtp.accepted_tokens", rule.mtp.accepted_tokens)
        yield from _not_negative("speed.mtp.step_seconds", rule.mtp.step_seconds)


def _networks(networks: tuple[NetworkRule, ...]) -> Iterator[Fault]:
    kinds = [each.kind for each in networks]
    for index, rule in enumerate(networks):
        key = f"speed.collectives.networks[{index}]"
        if rule.kind in kinds[:index]:
            yield f"{key}.kind", f"{rule.kind} is there already"
        yield from _share(f"{key}.efficiency", rule.efficiency)
        yield from _positive(f"{key}.unknown_gb_per_second", rule.unknown_gb_per_second)
        for name in ("handover_seconds", "all_reduce_seconds"):
            yield from _not_negative(f"{key}.{name}", getattr(rule, name))


# --- accelerators -----------------------------------------------------------------------------------


def accelerator_faults(key: str, facts: AcceleratorFacts) -> Iterator[Fault]:
    """What is wrong with an accelerator that stands at ``key``."""
    if not 0 < facts.bandwidth_gb_per_second < math.inf:
        yield f"{key}.bandwidth_gb_per_second", "must be above 0"
    for name in (
        *("memory_total_mib", "cuda_total_mib", "bf16_tflops", "fp16_tflops", "fp8_tflops", "int8_tops", "fp4_tflops"),
        *("link_gb_per_second", "link_group", "pcie_gb_per_second"),
    ):
        yield from _positive(f"{key}.{name}", getattr(facts, name))
    for place, size in enumerate(facts.memory_options_gib):
        yield from _positive(f"{key}.memory_options_gib[{place}]", size)
