"""Which layers and experts stay in main memory beside devices, and what is left of the devices' memory then.

llama.cpp keeps the routed experts of the first ``N`` layers in main memory (``--n-cpu-moe``) and deals whole layers
out over devices as it is told (``--tensor-split``). Nine tenths of these models are routed experts, of which a token
reads one in sixteen to twenty: they cost the least there. So the fewest experts are moved that leave room for the
cache; where all of them do not, the first layers follow whole, with their part of the cache (``--n-gpu-layers``).

Devices are filled from the front, each with as many layers as fit: light ones, whose experts are in main memory,
come first, so that the first devices hold many and the last ones few. No other cut of the row needs fewer devices.

Numbers of tokens are tried in fixed steps, whatever the machine: with more memory each of them needs fewer experts in
main memory, so that a larger machine is never planned worse than a smaller one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from selector import memory
from selector.architecture import StoredWeights, kv_bytes_per_token
from selector.asked import PlanRequest
from selector.budgets import Budget, batch_default, budgets, default_sequences
from selector.contract import Limits, Parallel
from selector.devices import Device
from selector.engine_facts import EngineFacts, OffloadRule
from selector.facts import Architecture
from selector.legality import Refusal
from selector.memory import CONTEXT_STEP_TOKENS, ELEMENT_BYTES, MINIMUM_CONTEXT_TOKENS, Fit
from selector.needs import Needs, activation_bytes
from selector.weights import LayerSizes, layer_sizes, rank_kv_bytes_per_token

#: An octave of context is worth this many octaves of speed, at least: its weight is a twentieth for throughput, over
#: the 5.6 octaves from 4,096 tokens to the longest context, and speed's is 0.64 over five (:mod:`selector.score`).
CONTEXT_WORTH = 0.069


#: The least number of tokens that is tried for its own sake, beside the least that serves at all.
FIRST_STEP_TOKENS = 16_384


class Split(NamedTuple):
    """``dealt`` layers of each device, after the first ``host_layers``, which lie in main memory whole.

    ``host_experts`` counts the sparse layers, those among them included, whose routed experts lie there.
    """

    dealt: tuple[int, ...]
    host_layers: int
    host_experts: int


class Room(NamedTuple):
    """What is to be dealt out: ``capacity`` bytes of each of ``devices`` for weights and KV cache."""

    sizes: LayerSizes
    dense_layers: int
    sparse_layers: int
    devices: int
    capacity: int

    def deal(self, cache_bytes: int, host_layers: int, host_experts: int) -> tuple[int, ...] | None:
        """Layers of each device with ``cache_bytes`` of KV cache a layer; ``None`` where they do not fit."""
        sizes = self.sizes
        runs = [
            (max(0, self.dense_layers - host_layers), sizes.dense + cache_bytes),
            (host_experts - max(0, host_layers - self.dense_layers), sizes.light + cache_bytes),
            (self.sparse_layers - host_experts, sizes.light + sizes.experts + cache_bytes),
        ]
        dealt = [0] * self.devices
        last, device = self.devices - 1, 0
        left: float = self.capacity if last else self.last_capacity
        for count, size in runs:
            while count:
                fitting = int(left // size)
                if fitting >= count:
                    dealt[device] += count
                    left -= count * size
                    break
                if device == last:
                    return None
                if fitting > 0:
                    dealt[device] += fitting
                    count -= fitting  # noqa: PLW2901  # what is left of the run goes to the next device
                device += 1
                left = self.capacity if device < last else self.last_capacity
        return tuple(dealt) if self.last_capacity >= 0 else None

    @property
    def last_capacity(self) -> float:
        """Bytes for layers on the last device, which holds the head."""
        return self.capacity - self.sizes.head

    def split(self, cache_bytes: int, least_experts: int = 1) -> Split | None:
        """The split that moves the least: experts of ``least_experts`` layers or more, then whole layers."""
        every = self.sparse_layers
        # No fewer than what is too much for all devices together; more only where layers leave gaps on them.
        low = max(least_experts, min(every, self.too_many(cache_bytes))) - 1
        high, step = low + 1, 1
        found = self.deal(cache_bytes, 0, high)
        while found is None and high < every:
            low, high, step = high, min(every, high + step), 2 * step
            found = self.deal(cache_bytes, 0, high)
        if found is None:
            return self._whole_layers(cache_bytes)
        while high - low > 1:
            middle = (low + high) // 2
            tried = self.deal(cache_bytes, 0, middle)
            low, high, found = (middle, high, found) if tried is None else (low, middle, tried)
        return Split(found, 0, high)

    def too_many(self, cache_bytes: int) -> int:
        """Layers whose experts cannot lie on the devices, gaps apart."""
        sizes, sparse = self.sizes, self.sparse_layers
        whole = self.dense_layers * sizes.dense + sparse * (sizes.light + sizes.experts) + sizes.head
        short = whole + (self.dense_layers + sparse) * cache_bytes - self.devices * self.capacity
        return 0 if short <= 0 else int(short // sizes.experts)

    def _whole_layers(self, cache_bytes: int) -> Split | None:
        """The fewest layers that lie in main memory whole, all experts with them."""
        low, high = 0, self.dense_layers + self.sparse_layers - 1
        found = self.deal(cache_bytes, high, self.sparse_layers)
        if found is None:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            tried = self.deal(cache_bytes, middle, self.sparse_layers)
            low, high, found = (middle, high, found) if tried is None else (low, middle, tried)
        return Split(found, high, self.sparse_layers)

    def fullest(self, split: Split, cache_bytes: int) -> tuple[int, int]:
        """Bytes of weights on the fullest device, and its layers."""
        most, layer = (0, 0), split.host_layers
        heavy_from = self.dense_layers + split.host_experts
        for position, count in enumerate(split.dealt):
            dense = max(0, min(self.dense_layers - layer, count))
            heavy = max(0, layer + count - max(layer, heavy_from))
            size = dense * self.sizes.dense + (count - dense) * self.sizes.light + heavy * self.sizes.experts
            size += self.sizes.head if position == len(split.dealt) - 1 else 0.0
            if int(size) + count * cache_bytes >= most[0] + most[1] * cache_bytes:
                most = (int(size), count)
            layer += count
        return most

    def on_host(self, split: Split) -> int:
        """Bytes of weights in main memory; the input embedding is among them."""
        dense = min(self.dense_layers, split.host_layers)
        light = split.host_layers - dense
        size = dense * self.sizes.dense + light * self.sizes.light + split.host_experts * self.sizes.experts
        return int(size + self.sizes.table)


def most_tokens(target_tokens: int, sequences: int, request: PlanRequest) -> int:
    """The largest cache that is planned: the context asked for, and a mean request for each sequence."""
    workload = request.workload.input_tokens + request.workload.output_tokens
    return max(target_tokens, sequences * min(workload, target_tokens))


def token_steps(least_tokens: int, target_tokens: int, most_tokens: int) -> list[int]:
    """Sizes of the KV cache to try: the least, then ever twice as much, the context asked for, the most of use."""
    steps = {least_tokens, target_tokens, most_tokens}
    step = FIRST_STEP_TOKENS
    while step < most_tokens:
        steps.add(step)
        step *= 2
    return sorted(step for step in steps if least_tokens <= step <= most_tokens)


class _Spot(NamedTuple):
    """A place with its number, what the engine takes of a device there, and the room that this gives."""

    number: int
    device: Device
    budget: Budget
    room: Room


class _Terms(NamedTuple):
    """What all places and numbers of tokens that are tried have in common; ``limits`` lack what differs."""

    arch: Architecture
    weights: StoredWeights
    engine: EngineFacts
    rule: OffloadRule
    sizes: LayerSizes
    activations: int
    layer_bytes: int
    limits: Limits

    def spot(self, number: int, place: Place, version: str, pinned: float | None) -> _Spot | None:
        """A place as it can be filled; ``None`` where the engine takes nothing there."""
        device, parallel = place
        found = budgets(self.engine, device, parallel, eager=False, version=version, pinned=pinned)
        if isinstance(found, Refusal):
            return None
        dense = self.arch.first_k_dense_replace
        capacity = found[0].pool - self.activations - self.runtime(parallel.ranks)
        layers = self.arch.num_hidden_layers
        return _Spot(number, device, found[0], Room(self.sizes, dense, layers - dense, parallel.ranks, capacity))

    def runtime(self, ranks: int) -> int:
        rule = self.engine.memory
        return rule.runtime_bytes + (rule.collective_bytes if ranks > 1 else 0)

    def host_bytes(self, spot: _Spot, split: Split, tokens: int) -> int:
        """Main memory that a split takes, the engine's own there with it."""
        return spot.room.on_host(split) + split.host_layers * tokens * self.layer_bytes + self.rule.host_bytes

    def fit(self, spot: _Spot, split: Split, tokens: int, context_tokens: int) -> Fit:
        """The limits and the memory of a split: of the fullest device, and of the host."""
        cache, runtime = tokens * self.layer_bytes, self.runtime(spot.room.devices)
        weights, layers = spot.room.fullest(split, cache)
        whole = split.host_layers
        limits = msgspec.structs.replace(
            self.limits,
            context_tokens=context_tokens,
            memory_utilization=spot.budget.utilization,
            gpu_layers=self.arch.num_hidden_layers - whole if whole else None,
            cpu_expert_layers=split.host_experts,
            device_layers=split.dealt,
        )
        itemised = memory.itemised(
            spot.device,
            spot.budget,
            Needs(weights, self.activations, 0, runtime, layers * self.layer_bytes, self.activations + runtime),
            kv=layers * cache,
            before=0,
            whole_kv=kv_bytes_per_token(self.arch, element_bytes=ELEMENT_BYTES[limits.kv_cache_dtype]),
            tokens=tokens,
            host=self.host_bytes(spot, split, tokens),
            uncertainty=self.engine.memory.relative_uncertainty,
            exact=self.weights.exact,
        )
        return Fit(limits, itemised)


class Place(NamedTuple):
    """Devices that one replica may have, all of them as full as ``device``."""

    device: Device
    parallel: Parallel


def fits(
    *,
    arch: Architecture,
    model_context_tokens: int,
    weights: StoredWeights,
    checkpoint_format: str,
    engine: EngineFacts,
    places: tuple[Place, ...],
    request: PlanRequest,
    beyond_tokens: int,
    host_bytes: int,
) -> Iterator[tuple[int, Fit]]:
    """Fits with experts in main memory whose cache holds more than ``beyond_tokens``, which fit without; few first.

    Each is told with the number of its place, the one of ``places`` that moves the least. The last one may need more
    than the ``host_bytes`` that are free in main memory; those after it would too.
    """
    rule = engine.offload
    if rule is None or arch.vision is not None or not places:
        return
    terms = _terms(arch, weights, checkpoint_format, engine, rule, places[0], request)
    version, pinned = request.pins.engine_version or engine.version, request.pins.memory_utilization
    tried = [terms.spot(number, place, version, pinned) for number, place in enumerate(places)]
    spots = [each for each in tried if each is not None]
    spots.sort(key=lambda each: -each.room.capacity * each.room.devices)
    # As without: at least this much for requests that are not known to be short, and the whole context at best.
    workload = request.workload.input_tokens + request.workload.output_tokens
    target = request.context_tokens or model_context_tokens
    least = request.context_tokens or min(target, max(MINIMUM_CONTEXT_TOKENS, workload))
    most = most_tokens(target, terms.limits.max_sequences, request)
    block = engine.memory.block_tokens
    before: tuple[_Spot, Split, int, int] | None = None
    for wanted in token_steps(least, target, most):
        tokens = -(-wanted // block) * block
        if tokens <= beyond_tokens:
            continue
        found = _lightest(spots, tokens * terms.layer_bytes, 1 if before is None else before[1].host_experts)
        # Whole layers are moved for the least that was asked for alone: attention is slow in main memory.
        if found is None or (found[1].host_layers and wanted > least):
            break
        if before is not None:
            if terms.host_bytes(*before[:3]) > host_bytes:
                break
            if not _worth(before[1], found[1], tokens / before[2]):
                yield before[0].number, terms.fit(*before)
        context = min(target, max(least, tokens // CONTEXT_STEP_TOKENS * CONTEXT_STEP_TOKENS))
        before = *found, tokens, context
    if before is not None:
        yield before[0].number, terms.fit(*before)


def _lightest(spots: list[_Spot], cache_bytes: int, least_experts: int) -> tuple[_Spot, Split] | None:
    """The place that leaves the least in main memory. ``spots`` are those with the most room in all first."""
    best: tuple[_Spot, Split] | None = None
    for spot in spots:
        if best is not None and _no_less(spot.room, cache_bytes, best[1]):
            break  # nor has any of the others
        split = spot.room.split(cache_bytes, least_experts)
        if split is not None and (best is None or split[1:] < best[1][1:]):
            best = spot, split
    return best


def _no_less(room: Room, cache_bytes: int, best: Split) -> bool:
    """Whether a place leaves as much in main memory as the best one does, gaps apart."""
    return not best.host_layers and room.too_many(cache_bytes) >= best.host_experts


def _worth(fewer: Split, more: Split, times_tokens: float) -> bool:
    """Whether so many times the tokens are worth what ``more`` moves beyond ``fewer``, whatever the objective.

    A step takes at most as many times as long as there are times the experts in main memory.
    """
    return (
        more.host_layers == fewer.host_layers and more.host_experts <= fewer.host_experts * times_tokens**CONTEXT_WORTH
    )


def _terms(
    arch: Architecture,
    weights: StoredWeights,
    checkpoint_format: str,
    engine: EngineFacts,
    rule: OffloadRule,
    place: Place,
    request: PlanRequest,
) -> _Terms:
    device, parallel = place
    batch = batch_default(engine, device)
    sequences = memory.sequence_choices(request, default_sequences(batch, parallel), parallel.data)[0]
    dtype = memory.kv_dtype(engine, checkpoint_format, request.pins.kv_cache_dtype)
    limits = Limits(
        context_tokens=0,
        max_sequences=sequences,
        kv_cache_dtype=dtype,
        memory_utilization=1.0,
        batched_tokens=max(batch.batched_tokens, sequences),
    )
    sizes = layer_sizes(arch, weights.storage, 1.0 if weights.exact else weights.scale, engine.memory.router_bits)
    activations = activation_bytes(arch, engine, parallel, limits.batched_tokens, sequences)
    activations += int(rule.copied_share * sizes.experts)
    layer_bytes = rank_kv_bytes_per_token(arch, parallel, 1, ELEMENT_BYTES[dtype])
    return _Terms(arch, weights, engine, rule, sizes, activations, layer_bytes, limits)
