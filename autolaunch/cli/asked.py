"""What the options that commands share say, as one value."""

from __future__ import annotations

from typing import Literal

from selector.errors import UsageError
from selector.facts import EngineName, Format, Hub
from selector.hardware import HardwareReport
from selector.request import KvDtype, Objective, Pins, WorkloadName
from selector.values import Value


class Asked(Value, frozen=True, kw_only=True):
    """What the shared options say, by the names of the planner. ``gpus`` is still as it was typed.

    ``locked`` are all the pins, where they are those of a lock.
    """

    model: str = ""
    objective: Objective = "balanced"
    context_tokens: int | None = None
    concurrency: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    workload: WorkloadName | None = None
    engine: EngineName | None = None
    engine_version: str | None = None
    engine_path: str | None = None
    repo: str | None = None
    format: Format | None = None
    quantization: str | None = None
    gpus: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    data_parallel: int | None = None
    expert_parallel: bool | None = None
    kv_cache_dtype: KvDtype | None = None
    memory_utilization: float | None = None
    max_sequences: int | None = None
    speculative: Literal["mtp", "off"] | None = None
    eager: bool | None = None
    hub: Hub | None = None
    revision: str | None = None
    hardware: str | None = None
    nodes: str | None = None
    locked: Pins | None = None
    show_all: bool = False
    as_json: bool = False
    verbose: bool = False

    def pins(self, report: HardwareReport | None = None) -> Pins:
        """The pins. ``report`` is needed where GPUs are named by UUID (:func:`names_devices_by_uuid`).

        Raises:
            UsageError: a UUID that is no device's, or the beginning of several.
        """
        if self.locked is not None:
            return self.locked
        count, indices = _count_or_indices(self.gpus)
        if self.gpus is not None and names_devices_by_uuid(self.gpus):
            indices = _by_uuid(self.gpus, report)
        return Pins(
            engine=self.engine,
            engine_version=self.engine_version,
            repo=self.repo,
            format=self.format,
            quantization=self.quantization,
            hub=self.hub,
            revision=self.revision,
            gpus=indices,
            gpu_count=count,
            tensor_parallel=self.tensor_parallel,
            pipeline_parallel=self.pipeline_parallel,
            data_parallel=self.data_parallel,
            expert_parallel=self.expert_parallel,
            kv_cache_dtype=self.kv_cache_dtype,
            memory_utilization=self.memory_utilization,
            max_sequences=self.max_sequences,
            speculative=self.speculative,
            eager=self.eager,
        )


def names_devices_by_uuid(gpus: str) -> bool:
    return gpus.upper().startswith(("GPU-", "MIG-"))


def _count_or_indices(gpus: str | None) -> tuple[int | None, tuple[int, ...] | None]:
    if gpus is None or names_devices_by_uuid(gpus):
        return None, None
    if "," not in gpus:
        return int(gpus), None
    return None, tuple(int(index) for index in gpus.split(",") if index)


def _by_uuid(gpus: str, report: HardwareReport | None) -> tuple[int, ...]:
    """Indices of the devices whose UUID begins with each name, as CUDA_VISIBLE_DEVICES takes them."""
    devices = report.accelerators if report is not None else ()
    indices: list[int] = []
    for name in gpus.split(","):
        found = [each.index for each in devices if each.uuid and each.uuid.lower().startswith(name.lower())]
        if len(found) != 1:
            told = "no device has" if not found else f"{len(found)} devices have"
            hint = "autolaunch probe lists the devices of this machine; --gpus 0,1 takes their numbers"
            raise UsageError(f"{told} a UUID that begins with {name!r}", hint=hint)
        if found[0] in indices:
            raise UsageError(f"--gpus names GPU {found[0]} twice: {name!r} is the beginning of its UUID too")
        indices += found
    return tuple(indices)
