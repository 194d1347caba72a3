"""The plan as other programs read it: JSON schema 1. Field names are a contract.

Every memory figure is of one device, the fullest one, in bytes; ``kv_cache_tokens`` is what the engine
will report for one replica; ``context_tokens`` is what one request may use, prompt and answer together.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from selector.facts import Basis, EngineName, Format, Hub
from selector.hardware import HardwareReport
from selector.request import KvDtype, Objective
from selector.values import Value

SCHEMA = 1

Severity = Literal["crash", "oom", "silent", "performance", "info"]
AdviceKind = Literal["hardware", "context", "kv_cache", "free_gpu", "sysctl", "engine"]
Number = int | float


class Checkpoint(Value, frozen=True, kw_only=True):
    """``download_bytes`` is the size of the files; ``file_prefix`` names one quantization of a GGUF repository.

    ``local`` is whether they are on the machine already; ``None`` where that is not known (another machine's plan).
    """

    repo: str
    hub: Hub
    revision: str | None = None
    format: Format
    quantization: str
    download_bytes: int
    file_prefix: str | None = None
    local: bool | None = None


class EngineChoice(Value, frozen=True, kw_only=True):
    """``package`` is the environment that serves the model (mlx-lm and mlx-vlm are both ``mlx``)."""

    name: EngineName
    version: str
    installed: bool = False
    package: str


class Parallel(Value, frozen=True, kw_only=True):
    """Where the ranks are. ``data`` counts independent replicas, each ``tensor * pipeline`` devices.

    ``devices`` are indices of the report, replica after replica, stage after stage; empty on a CPU.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: bool = False
    nodes: int = 1
    devices: tuple[int, ...] = ()

    @property
    def ranks(self) -> int:
        """Devices of one replica."""
        return self.tensor * self.pipeline


class Limits(Value, frozen=True, kw_only=True):
    """``memory_utilization`` is the share of the device's total that the engine may fill.

    Of engines that can keep weights in main memory beside devices: ``gpu_layers`` are the decoder layers on the
    devices, the last ones of the model (``None``: all of them), ``cpu_expert_layers`` the mixture-of-experts layers,
    the first ones, whose routed experts stay in main memory, and ``device_layers`` the layers of each device of a
    replica (empty: the engine's own even shares).
    """

    context_tokens: int
    max_sequences: int
    kv_cache_dtype: KvDtype
    memory_utilization: float
    batched_tokens: int
    speculative: Literal["mtp", "off"] = "off"
    eager: bool = False
    gpu_layers: int | None = None
    cpu_expert_layers: int = 0
    device_layers: tuple[int, ...] = ()


class PerDevice(Value, frozen=True, kw_only=True):
    """Where a device's memory goes. Weights to reserve add up to ``total_bytes``."""

    total_bytes: int
    usable_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    activations_bytes: int
    graphs_bytes: int
    runtime_bytes: int
    reserve_bytes: int


class Memory(Value, frozen=True, kw_only=True):
    """``low_bytes`` to ``high_bytes`` is what a device is expected to need without the KV cache.

    ``host_bytes`` is main memory needed beside the devices, with the weights and the KV cache that are kept there.
    """

    per_device: PerDevice
    kv_bytes_per_token: int
    kv_cache_tokens: int
    host_bytes: int
    low_bytes: int
    high_bytes: int
    basis: Basis


class Speed(Value, frozen=True, kw_only=True):
    """Tokens a second: decode of one sequence, output of all at the concurrency, prefill of one prompt.

    ``throughput`` is of a benchmark's run with ``concurrency`` requests at a time, its end included; ``sustained`` is
    what a server gives that is kept full (:mod:`selector.throughput`). Unknown is ``None`` (an accelerator whose
    bandwidth nobody published).
    """

    decode_tokens_per_second: float | None
    throughput_tokens_per_second: float | None
    sustained_tokens_per_second: float | None = None
    prefill_tokens_per_second: float | None
    time_to_first_token_seconds: float | None
    load_seconds: float | None
    concurrency: int
    basis: Basis


class Command(Value, frozen=True, kw_only=True):
    """One replica's process, as a person would type it: the hub's id for the model, bare program names."""

    argv: tuple[str, ...]
    env: dict[str, str]


class Note(Value, frozen=True, kw_only=True):
    severity: Severity
    code: str
    message: str
    source: str | None = None


class ScoreTerms(Value, frozen=True, kw_only=True):
    """Each 0 to 1; the score is their weighted mean (:mod:`selector.score`)."""

    quality: float
    speed: float
    context: float
    headroom: float
    download: float = 1.0


class Candidate(Value, frozen=True, kw_only=True):
    rank: int
    score: float
    score_terms: ScoreTerms
    checkpoint: Checkpoint
    engine: EngineChoice
    parallel: Parallel
    limits: Limits
    memory: Memory
    speed: Speed
    command: Command | None = None
    notes: tuple[Note, ...] = ()


class Rejection(Value, frozen=True, kw_only=True):
    """Why a candidate is not in the list. ``numbers`` are bytes, counts or ratios, as their names say."""

    repo: str
    quantization: str
    engine: EngineName
    parallel: Parallel | None
    code: str
    message: str
    numbers: dict[str, Number] = msgspec.field(default_factory=dict)


class Advice(Value, frozen=True, kw_only=True):
    """What would make it fit, or serve more.

    ``numbers`` are of the plan that was made for it; ``command`` can be typed as it stands.
    """

    kind: AdviceKind
    message: str
    numbers: dict[str, Number] = msgspec.field(default_factory=dict)
    command: str | None = None


class Request(Value, frozen=True, kw_only=True):
    """The request as the plan shows it; ``pinned`` holds only what was pinned."""

    objective: Objective
    context_tokens: int | None
    concurrency: int | None
    input_tokens: int
    output_tokens: int
    pinned: dict[str, str | int | float | bool | tuple[int, ...]]


class Advised(Value, frozen=True, kw_only=True):
    """What ``autolaunch advise --json`` says: what fits now (``chosen``), and the advice."""

    schema: Literal[1] = 1
    model: str
    feasible: bool
    request: Request
    chosen: Candidate | None
    advice: tuple[Advice, ...]

    def to_json(self) -> str:
        """Indented JSON, ending without a newline. The same advice gives the same bytes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()


class LaunchPlan(Value, frozen=True, kw_only=True):
    """The answer: one chosen configuration, the ranked others, and every refusal with its numbers."""

    schema: Literal[1] = 1
    model: str
    feasible: bool
    request: Request
    hardware: HardwareReport
    chosen: Candidate | None
    alternatives: tuple[Candidate, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    advice: tuple[Advice, ...] = ()

    def to_json(self) -> str:
        """The plan as indented JSON, ending without a newline. The same plan gives the same bytes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    def advised(self) -> Advised:
        """The advice of the plan, with what it is about."""
        return Advised(
            model=self.model,
            feasible=self.feasible,
            request=self.request,
            chosen=self.chosen,
            advice=self.advice,
        )

    def explain(self) -> str:
        """Why this plan, in plain sentences (:mod:`selector.explain`)."""
        from selector.explain import explain

        return explain(self)
