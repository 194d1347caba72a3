"""The shape of ``profiles/engines``: what an engine loads, its known faults, how it takes memory, how fast it is.

Read as strictly as the rest of ``profiles/`` (:mod:`selector.facts`), a source on every table that holds a figure.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from selector.facts import EngineName, Format
from selector.hardware import NetworkKind
from selector.values import Value


class Loads(Value, frozen=True, kw_only=True, cache_hash=True):
    """What an engine can load: formats, for architectures, on what, from which of its versions.

    ``kernel`` names the way the weights are run (it decides the arithmetic rate): for instance ``"marlin"``
    is weight-only. ``minimum_capability`` and ``below_capability`` bound NVIDIA's compute capability,
    ``[minimum, below)``; ``amd_architectures`` lists AMD's that have the arithmetic (empty: all of them).
    """

    formats: tuple[Format, ...]
    architectures: tuple[Literal["glm4_moe", "glm4v_moe"], ...]
    devices: tuple[Literal["nvidia", "amd", "apple", "cpu"], ...]
    since: str
    before: str | None = None
    minimum_capability: tuple[int, int] | None = None
    below_capability: tuple[int, int] | None = None
    amd_architectures: tuple[str, ...] = ()
    kernel: str
    source: str


class Unsupported(Value, frozen=True, kw_only=True):
    """Why an engine loads a format not at all, or no longer: the sentence of a refusal that no ``loads`` row spares.

    It concerns the versions ``[since, before)`` and, where they are named, the architectures.
    """

    formats: tuple[Format, ...]
    architectures: tuple[Literal["glm4_moe", "glm4v_moe"], ...] = ()
    since: str | None = None
    before: str | None = None
    message: str
    source: str


class Rule(Value, frozen=True, kw_only=True):
    """A known fault or limit of an engine. It applies when every condition that is set holds.

    ``since`` and ``before`` bound the engine's version, ``[since, before)``, ``minimum_capability`` and
    ``below_capability`` NVIDIA's compute capability in the same way. ``accelerators`` are ids of
    ``profiles/accelerators``, ``repos`` a checkpoint's ids on either hub. ``below_driver`` holds for a host whose
    driver is known to be older. ``check`` names a structural predicate of :mod:`selector.legality` (such as a tile
    that must divide).

    ``severity`` ``crash``, ``oom`` and ``silent`` (answers that are wrong and say nothing) refuse the candidate; the
    others become notes. ``speed_factor`` is what a fault leaves of the speed.
    """

    code: str
    severity: Literal["crash", "oom", "silent", "performance", "info"]
    message: str
    source: str
    since: str | None = None
    before: str | None = None
    formats: tuple[Format, ...] = ()
    architectures: tuple[Literal["glm4_moe", "glm4v_moe"], ...] = ()
    models: tuple[str, ...] = ()
    repos: tuple[str, ...] = ()
    devices: tuple[Literal["nvidia", "amd", "apple", "cpu"], ...] = ()
    accelerators: tuple[str, ...] = ()
    below_driver: str | None = None
    minimum_capability: tuple[int, int] | None = None
    below_capability: tuple[int, int] | None = None
    minimum_tensor: int | None = None
    tensor: tuple[int, ...] = ()
    minimum_pipeline: int | None = None
    speculative: bool | None = None
    expert: bool | None = None
    eager: bool | None = None
    check: str | None = None
    workaround: str | None = None
    speed_factor: float = 1.0


class MemoryRule(Value, frozen=True, kw_only=True, cache_hash=True):
    """How an engine divides a device (:mod:`selector.memory` tells what it does with each figure).

    ``kind`` is the engine's own rule: ``utilization`` (a share of what CUDA can allocate, vLLM),
    ``static_fraction`` (a reserve computed from the batch, SGLang), ``demand`` (nothing is set aside: MLX
    within its wired limit, llama.cpp within its margin, Transformers). ``utilizations`` are tried in turn; below
    version ``earlier_before`` they are ``earlier_utilizations``, and CUDA graphs lie outside of them.
    ``stages`` is how layers are dealt out over devices: ``pipeline`` (vLLM's get_pp_indices), ``even``
    (llama.cpp), ``balanced`` (accelerate's device map). ``router_bits`` is the width the engine holds the
    router in, where it is not the checkpoint's. ``mtp_shares_embedding`` says that the MTP layer's own embedding
    and head, where it has them, give way to the main model's; ``vision_on_every_stage`` that each pipeline stage
    holds the vision tower; ``host_embedding`` that the input embedding stays in main memory. ``block_tokens`` is
    what the KV cache is counted in; ``vision_tokens`` the largest image or video that the engine's profile encodes.
    """

    kind: Literal["utilization", "static_fraction", "demand"]
    utilizations: tuple[float, ...]
    earlier_utilizations: tuple[float, ...] = ()
    earlier_before: str | None = None
    stages: Literal["pipeline", "even", "balanced"] = "pipeline"
    router_bits: int | None = None
    mtp_shares_embedding: bool = False
    vision_on_every_stage: bool = False
    host_embedding: bool = False
    block_tokens: int = 1
    vision_tokens: int = 0
    runtime_bytes: int
    collective_bytes: int
    graphs_bytes_per_layer: int
    activation_copies: float
    logits_copies: float
    relative_uncertainty: float
    loads_mtp: bool
    source: str


class BatchDefault(Value, frozen=True, kw_only=True):
    """An engine's default batch on devices of at least ``minimum_device_bytes``.

    ``narrow_sequences`` stands for ``sequences`` below tensor parallel 4, where that makes a difference.
    """

    minimum_device_bytes: int
    not_on: tuple[str, ...] = ()
    batched_tokens: int
    sequences: int
    narrow_sequences: int | None = None
    source: str


class OffloadRule(Value, frozen=True, kw_only=True):
    """How an engine keeps routed experts, and whole layers, in main memory (:mod:`selector.offload`).

    ``host_bytes`` of main memory are taken beside the weights and the cache there. ``copied_share`` of a layer's
    routed experts lie on a device while a prompt runs through them: what is copied there at a time.
    ``crossing_seconds`` is what a step loses at each such layer on the way to main memory and back. Prompts copy
    experts over PCIe at ``copy_efficiency`` of its rate; ``unknown_gb_per_second`` stands for a rate that no profile
    tells. How fast main memory is read stands among the ``cpu_*`` figures of ``speed``.
    """

    host_bytes: int
    copied_share: float
    crossing_seconds: float
    copy_efficiency: float
    unknown_gb_per_second: float
    source: str


class NetworkRule(Value, frozen=True, kw_only=True, cache_hash=True):
    """What one kind of network between nodes costs ranks.

    ``handover_seconds`` is what the next pipeline stage waits for, ``all_reduce_seconds`` what a small all-reduce
    takes, both without the bytes; ``efficiency`` is the share of a port's rate that large ones reach.
    ``unknown_gb_per_second`` stands for the rate of a port that tells none.
    """

    kind: NetworkKind
    handover_seconds: float
    all_reduce_seconds: float
    efficiency: float
    unknown_gb_per_second: float
    source: str


class CollectiveRule(Value, frozen=True, kw_only=True):
    """What ranks cost each other: seconds of a small all-reduce and the share of a link's rate that large ones reach.

    ``unknown_gb_per_second`` stands for a PCIe rate that no profile tells. ``handover_seconds`` is what the next
    pipeline stage waits for on the same node, ``network_seconds`` on another over a network that nobody told of (its
    rate is then taken to limit nothing), ``networks`` over one that is known. ``pipeline_efficiency`` is the share of
    the time that all stages of a full pipeline are busy.
    """

    link_seconds: float
    link_efficiency: float
    pcie_seconds: float
    pcie_efficiency: float
    unknown_gb_per_second: float
    handover_seconds: float
    network_seconds: float
    pipeline_efficiency: float
    networks: tuple[NetworkRule, ...] = ()
    source: str


class MtpRule(Value, frozen=True, kw_only=True):
    """Speculative decoding: tokens proposed a step, how many of them are right on average, and what proposing costs."""

    proposed_tokens: int
    accepted_tokens: float
    step_seconds: float
    source: str


class SpeedRule(Value, frozen=True, kw_only=True):
    """Constants of the speed model of :mod:`selector.steps` and :mod:`selector.throughput`, one engine.

    ``bandwidth_efficiency`` is the share of a device's memory bandwidth that decoding reaches, ``cpu_*`` the
    same for a host without an accelerator, whose bandwidth is assumed. ``layer_seconds`` is the latency of a
    layer launched from graphs, ``eager_layer_seconds`` of one launched by the host. ``sequence_seconds`` is what each
    sequence adds to a step, ``request_seconds`` what each request costs the server. ``prefill_efficiency`` and
    ``decode_efficiency`` are shares of the kernel's dense rate, ``attention_efficiency`` of the 16-bit one.
    ``first_step_seconds`` passes before the first token of an idle server beside the prompt's own time.
    ``start_seconds`` is a start without the weights, which are read at ``read_gb_per_second``.
    """

    bandwidth_efficiency: float
    cpu_bandwidth_gb_per_second: float | None = None
    cpu_tflops: float | None = None
    layer_seconds: float
    eager_layer_seconds: float
    sequence_seconds: float
    request_seconds: float
    prefill_efficiency: float
    decode_efficiency: float
    attention_efficiency: float
    first_step_seconds: float
    eager_first_step_seconds: float
    start_seconds: float
    read_gb_per_second: float
    collectives: CollectiveRule | None = None
    mtp: MtpRule | None = None
    source: str


class Package(Value, frozen=True, kw_only=True):
    """One environment: what is installed, and which architectures it serves on what.

    The engine itself is the first of ``requirements``. ``version`` and ``minimum_version`` are given where they are not
    the engine's own (mlx-vlm beside mlx-lm), and its ``loads`` rows count in them. ``excludes`` names distributions
    that must not be installed, whoever asks for them. ``torch_backend`` lets uv choose PyTorch's build by the driver.
    ``bytes_on_disk`` is what was seen.
    """

    name: str
    version: str | None = None
    minimum_version: str | None = None
    requirements: tuple[str, ...]
    excludes: tuple[str, ...] = ()
    architectures: tuple[Literal["glm4_moe", "glm4v_moe"], ...]
    devices: tuple[Literal["nvidia", "amd", "apple", "cpu"], ...]
    torch_backend: bool = False
    bytes_on_disk: int
    source: str


class Image(Value, frozen=True, kw_only=True, cache_hash=True):
    """A container image that the engine's makers publish, for the exported artefacts (:mod:`autolaunch.exporting`).

    ``reference`` names it, with ``{version}`` for the engine's. ``program`` stands for the first word of the engine's
    command in it. ``python`` says that Python and the hub's ``hf`` are in it. ``user`` is a user and group that it was
    prepared for beside root, as ``2000:0``.
    """

    devices: tuple[Literal["nvidia", "amd", "cpu"], ...]
    reference: str
    program: str
    python: bool = False
    user: str | None = None
    source: str


#: Pins that only some engines can carry out.
Choice = Literal["kv_cache_dtype", "memory_utilization", "max_sequences", "eager"]


class HostBuild(Value, frozen=True, kw_only=True, cache_hash=True):
    """An engine's build for processors, where it takes memory and runs otherwise than the one for devices.

    Its fields stand for those of the same names in :class:`EngineFacts`.
    """

    parallel: tuple[Literal["tensor", "pipeline", "layers", "data", "expert", "nodes"], ...] = ()
    speculative: tuple[Literal["mtp"], ...] = ()
    choices: tuple[Choice, ...] = ()
    kv_cache_dtypes: tuple[Literal["bf16", "fp8", "fp32"], ...]
    memory: MemoryRule
    batch_defaults: tuple[BatchDefault, ...]
    speed: SpeedRule
    source: str


class EngineFacts(Value, frozen=True, kw_only=True, cache_hash=True):
    """A file of ``profiles/engines``.

    ``parallel`` says which layouts it has: ``layers`` is one process that spreads whole layers over devices
    and runs them one after the other, ``data`` that replicas of it can stand side by side. ``choices`` are the
    pins that its command can carry out; a pin that it cannot keep refuses it. ``host`` is its build for processors;
    ``offload`` is there for an engine that plans layers and experts in main memory beside devices. ``images`` are what
    is published of it for containers.
    """

    schema: Literal[1]
    name: EngineName
    title: str
    version: str
    minimum_version: str
    minimum_version_reason: str
    parallel: tuple[Literal["tensor", "pipeline", "layers", "data", "expert", "nodes"], ...] = ()
    speculative: tuple[Literal["mtp"], ...] = ()
    choices: tuple[Choice, ...] = ()
    kv_cache_dtypes: tuple[Literal["bf16", "fp8", "fp32"], ...]
    loads: tuple[Loads, ...]
    unsupported: tuple[Unsupported, ...] = ()
    rules: tuple[Rule, ...] = ()
    memory: MemoryRule
    offload: OffloadRule | None = None
    batch_defaults: tuple[BatchDefault, ...] = ()
    speed: SpeedRule
    packages: tuple[Package, ...]
    images: tuple[Image, ...] = ()
    host: HostBuild | None = None
    source: str

    def on(self, kind: str) -> EngineFacts:
        """What holds on devices of a kind: on a host's own processor, where there is a build for it, that build's."""
        if self.host is None or kind != "cpu":
            return self
        own = {name: getattr(self.host, name) for name in self.host.__struct_fields__ if name != "source"}
        return msgspec.structs.replace(self, **own)
