"""What could be tried: every checkpoint with every engine on every group of devices, in every sensible layout.

Layouts are not enumerated blindly. Tensor parallelism takes powers of two up to a node (and the whole node, so
that a host of six GPUs reads why six do not divide); pipeline stages are tried where tensor parallelism
alone has not fitted, or spans the nodes; replicas fill what is left. What a user pinned is tried as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from selector.contract import Parallel
from selector.devices import Device, Group
from selector.facts import CheckpointFacts, EngineFacts
from selector.request import Pins

_EXPERT_FORMATS = frozenset({"awq", "gptq", "int4"})


class Layout(NamedTuple):
    """Ranks of one replica. Engines without stages of their own put whole layers on ``pipeline`` devices."""

    tensor: int
    pipeline: int
    expert: bool


def _powers(limit: int) -> tuple[int, ...]:
    powers = []
    power = 1
    while power <= limit:
        powers.append(power)
        power *= 2
    return tuple(powers)


def tensor_sizes(engine: EngineFacts, group: Group, pins: Pins) -> tuple[int, ...]:
    if pins.tensor_parallel is not None:
        return (pins.tensor_parallel,)
    if "tensor" not in engine.parallel:
        return (1,)
    sizes = _powers(group.per_node)
    return sizes if group.per_node in sizes else (*sizes, group.per_node)


def pipeline_sizes(engine: EngineFacts, group: Group, tensor: int, pins: Pins) -> tuple[int, ...]:
    """Stages to try for a tensor size, the smallest first."""
    if pins.pipeline_parallel is not None:
        return (pins.pipeline_parallel,)
    if "pipeline" not in engine.parallel and "layers" not in engine.parallel:
        return (1,)
    most = max(1, len(group.devices) // tensor)
    if "layers" in engine.parallel:
        return tuple(dict.fromkeys((*_powers(min(most, group.per_node)), min(most, group.per_node))))
    return tuple(dict.fromkeys((*_powers(most), most)))


def expert_choices(engine: EngineFacts, checkpoint: CheckpointFacts, tensor: int, pins: Pins) -> tuple[bool, ...]:
    """Whole experts on a rank pay where slices of 4-bit experts are too thin; elsewhere they decide a few percent."""
    if pins.expert_parallel is not None:
        return (pins.expert_parallel,)
    able = "expert" in engine.parallel and tensor > 1 and checkpoint.format in _EXPERT_FORMATS
    return (False, True) if able else (False,)


def replica_counts(engine: EngineFacts, group: Group, ranks: int, pins: Pins) -> tuple[int, ...]:
    """One replica, and as many as the group holds."""
    if pins.data_parallel is not None:
        return (pins.data_parallel,)
    if group.kind == "cpu" or "data" not in engine.parallel:
        return (1,)
    most = len(group.devices) // ranks
    return tuple(dict.fromkeys((1, max(1, most))))


def place(group: Group, parallel: Parallel) -> tuple[Device, ...] | None:
    """Devices for every rank, replica after replica, tensor ranks of a stage inside one node.

    The emptiest devices of a node come first. ``None`` when the group is too small.
    """
    if group.kind == "cpu":
        return group.devices if parallel.ranks * parallel.data == 1 else None
    stages = parallel.data * parallel.pipeline
    placed: list[Device] = []
    position = 0
    while len(placed) < stages * parallel.tensor and position < len(group.devices):
        stage = group.devices[position : position + parallel.tensor]
        if len(stage) == parallel.tensor and stage[0].node == stage[-1].node:
            placed += stage
            position += parallel.tensor
        else:
            position += 1  # a stage would begin in one node and end in the next
    return tuple(placed) if len(placed) == stages * parallel.tensor else None


def nodes_of_a_replica(placed: tuple[Device, ...], parallel: Parallel) -> int:
    return max(1, len({device.node for device in placed[: parallel.ranks]}))


def layouts(engine: EngineFacts, checkpoint: CheckpointFacts, group: Group, pins: Pins) -> Iterator[Layout]:
    """Layouts to try, the widest tensor parallelism first and the fewest stages first."""
    for tensor in sorted(tensor_sizes(engine, group, pins), reverse=True):
        for pipeline in pipeline_sizes(engine, group, tensor, pins):
            for expert in expert_choices(engine, checkpoint, tensor, pins):
                yield Layout(tensor, pipeline, expert)


def select_group(group: Group, pins: Pins) -> Group:
    """Cut a group to ``--gpus COUNT``: the emptiest devices, node by node."""
    if pins.gpu_count is None or group.kind == "cpu":
        return group
    return group.first(pins.gpu_count)
