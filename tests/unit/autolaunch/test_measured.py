"""The plan's figures beside the measured ones: only what both tell, in the units that a person reads."""

from __future__ import annotations

import msgspec

from autolaunch.comparison import Comparison
from autolaunch.measured import Measured, comparisons, of_start
from engines.logs import Figures
from tests.fakes.plans import candidate

_MADE = candidate("llamacpp", "glm-tiny")
ON_CPU = msgspec.structs.replace(
    _MADE, speed=msgspec.structs.replace(_MADE.speed, load_seconds=4.0, throughput_tokens_per_second=90.0)
)
ON_GPUS = candidate("vllm", "glm-tiny", devices=(0, 1))


def names(found: tuple[Comparison, ...]) -> list[str]:
    return [each.name for each in found]


def test_what_is_not_known_of_either_is_left_out() -> None:
    assert comparisons(ON_CPU, Measured(source="start", at=1.0)) == ()
    unknown = msgspec.structs.replace(ON_CPU.speed, decode_tokens_per_second=None)
    without = msgspec.structs.replace(ON_CPU, speed=unknown)
    assert comparisons(without, Measured(source="served", at=1.0, decode_tokens_per_second=5.0)) == ()


def test_an_engine_that_tells_its_cache_has_taken_it_and_the_others_take_it_as_they_need() -> None:
    device = ON_GPUS.memory.per_device
    fixed = device.weights_bytes + device.activations_bytes + device.graphs_bytes + device.runtime_bytes
    silent = comparisons(ON_GPUS, of_start(Figures(), resident_bytes=7, at=1.0))
    assert silent == (Comparison(name="in use on a device", unit="bytes", predicted=fixed, measured=7),)
    telling = comparisons(ON_GPUS, of_start(Figures(kv_cache_tokens=9), resident_bytes=7, at=1.0))
    assert names(telling) == ["KV cache", "in use on a device"]
    assert telling[1].predicted == fixed + device.kv_cache_bytes
    assert names(comparisons(ON_CPU, of_start(Figures(), resident_bytes=7, at=1.0))) == ["main memory in use"]


def test_the_engines_own_seconds_of_reading_are_not_the_load() -> None:
    """A plan's load is from the start of the process to the first token."""
    assert of_start(Figures(load_seconds=3.0), at=1.0).load_seconds is None
    found = comparisons(ON_CPU, of_start(Figures(load_seconds=3.0), load_seconds=8.0, at=1.0))
    assert [(each.name, each.unit, each.measured) for each in found] == [("load", "seconds", 8.0)]


def test_a_throughput_is_compared_at_the_plans_own_concurrency_alone() -> None:
    planned = ON_CPU.speed.concurrency
    told = Measured(source="bench", at=1.0, throughput_tokens_per_second=80.0, concurrency=planned)
    (found,) = comparisons(ON_CPU, told)
    assert (found.name, found.predicted) == (f"{planned} requests", ON_CPU.speed.throughput_tokens_per_second)
    assert comparisons(ON_CPU, msgspec.structs.replace(told, concurrency=planned + 1)) == ()
    assert comparisons(ON_CPU, msgspec.structs.replace(told, concurrency=None)) == ()
