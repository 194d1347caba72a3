"""What could be tried: the dimensions of a layout, and which of their values can win.

Nothing is enumerated blindly. Each function states which values it leaves out and why none of them can be the best;
``tests/property/test_search_laws.py`` compares with a search that leaves out nothing. What a user pinned is tried as
it is.

Tensor parallelism   every size up to a node that the heads divide by, and the whole node, so that a host of six GPUs
                     reads why six do not divide. Other sizes are refused by the heads anyway.
Stages               one after the other, the fewest first. Fewer than the weights alone fill cannot fit. Once the
                     cache holds what could be asked for (``roomy``), one more stage only costs latency; where stages
                     work side by side, those counts are left that fill the devices with 1, 2, 3 ... replicas:
                     any other has as many replicas as the next larger of these, and fewer devices at work. None are
                     tried where a wider size fits over fast links at full speed, with as many ranks on devices no
                     fuller; nor where replicas of fewer stages have room enough and keep as many devices at work.
Replicas             they are independent, so that more of them are never slower together; the counts tried are one,
                     the most, and each after which the next replica would have less free memory or slower links.
                     More than requests at once are never of use.
Experts              whole experts on a rank are tried where a fault of the engine refuses or slows slices of them.
MTP                  for latency off, and on where the engine and the checkpoint have it and the layout fits without: it
                     only takes memory. For the other objectives off, as engines have it by themselves: what it gains
                     hangs on the text, and shrinks with the batch. :mod:`selector.better` tells what it would give.
"""

from __future__ import annotations

from typing import NamedTuple

from selector.devices import Group
from selector.engine_facts import EngineFacts
from selector.facts import Architecture
from selector.placement import Floor
from selector.request import Objective, Pins

# ``parallel`` are an engine's abilities (``EngineFacts.parallel``).

#: Up to so many stages (and replicas beside each other) are looked at one by one; beyond, powers of two and what
#: fills the devices evenly.
_EVERY_STAGE_COUNT_TO = 8


class Stages(NamedTuple):
    """Numbers of pipeline stages for a size of tensor parallelism, the fewest first.

    ``filling`` are those that may still win once fewer fit, ``side_by_side`` whether they may even when there is room
    enough. Engines without stages of their own put whole layers on the devices. ``sound`` are all devices, and those
    without the fuller ones.
    """

    tensor: int
    counts: tuple[int, ...]
    filling: frozenset[int]
    side_by_side: bool
    sound: tuple[int, ...]


def _powers(limit: int) -> tuple[int, ...]:
    return tuple(1 << bit for bit in range(max(1, limit).bit_length()))


def modest(found: tuple[Group, ...], pins: Pins) -> tuple[Group, ...]:
    """A miniature proves that things work: one device, and the host's own processor where a Mac's GPU is not."""
    if pins.engine is None and pins.gpus is None and pins.gpu_count is None:
        found = tuple(group for group in found if group.kind in ("cpu", "apple")) or found
    return tuple(group.first(1) if pins.gpu_count is None else group for group in found)


def room(group: Group, pins: Pins) -> int:
    """Devices of a group that a plan may use: all, or ``--gpus COUNT``."""
    here = len(group.devices)
    return here if pins.gpu_count is None or group.kind == "cpu" else min(here, pins.gpu_count)


def tensor_sizes(arch: Architecture, parallel: frozenset[str], group: Group, pins: Pins) -> tuple[int, ...]:
    """Sizes of tensor parallelism, the widest first."""
    if pins.tensor_parallel is not None:
        return (pins.tensor_parallel,)
    if "tensor" not in parallel:
        return (1,)
    widest = min(group.per_node, room(group, pins))
    heads, kv_heads = arch.num_attention_heads, arch.num_key_value_heads
    dividing = {size for size in range(1, widest + 1) if not heads % size and not (kv_heads % size and size % kv_heads)}
    return tuple(sorted(dividing | {widest}, reverse=True))


def shapes(arch: Architecture, parallel: frozenset[str], floor: Floor, pins: Pins) -> tuple[Stages, ...]:
    """Every size of tensor parallelism with its numbers of stages, the widest first."""
    return tuple([stages(parallel, floor, tensor, pins) for tensor in tensor_sizes(arch, parallel, floor.group, pins)])


def stages(parallel: frozenset[str], floor: Floor, tensor: int, pins: Pins) -> Stages:
    """Numbers of stages for a size of tensor parallelism."""
    if pins.pipeline_parallel is not None:
        return _only(tensor, pins.pipeline_parallel)
    if "pipeline" not in parallel and "layers" not in parallel:
        return _only(tensor, 1)
    group = floor.group
    most = max(1, room(group, pins) // tensor)
    if "layers" in parallel:
        most = min(most, group.per_node)
    # As many as the devices are, and as many as there are without the fuller ones.
    sound = {most, *(count for count in floor.stage_counts(tensor) if count < most)}
    filling = {count // share for count in sound for share in range(1, min(count, _EVERY_STAGE_COUNT_TO) + 1)}
    filling |= {*_powers(most), most} if most > _EVERY_STAGE_COUNT_TO else set()
    counts = sorted({*range(1, min(most, _EVERY_STAGE_COUNT_TO) + 1), *filling})
    return _stages(tensor, counts, filling, side_by_side="pipeline" in parallel, sound=tuple(sorted(sound)))


def _only(tensor: int, count: int) -> Stages:
    return _stages(tensor, [count], {count}, side_by_side=False, sound=(count,))


def _stages(tensor: int, counts: list[int], filling: set[int], *, side_by_side: bool, sound: tuple[int, ...]) -> Stages:
    return Stages(tensor, tuple(counts), frozenset(filling), side_by_side, sound)


def speculative_choices(engine: EngineFacts, *, has_mtp: bool, pins: Pins, objective: Objective) -> tuple[bool, ...]:
    """Speculative decoding off and on, off first."""
    if pins.speculative is not None:
        return (pins.speculative == "mtp",)
    able = has_mtp and "mtp" in engine.speculative and objective == "latency"
    return (False, True) if able else (False,)


def most_replicas(parallel: frozenset[str], group: Group, ranks: int, pins: Pins, concurrency: int | None) -> int:
    """The largest number of replicas that can be of use: one for each request at once, as far as devices reach."""
    if group.kind == "cpu" or "data" not in parallel:
        return 1
    most = max(1, room(group, pins) // ranks)
    return most if concurrency is None else min(most, concurrency)
