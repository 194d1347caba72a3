"""Laws of the planner, over machines that nobody listed.

Two plans of different machines, or of a machine with and without pins, cannot be compared by their scores: speed is
scored against the fastest candidate of each list. So the candidates of both are scored in one list, and the law is
that the plan which had more to choose from still holds the best (:func:`best_of_both`). That is stronger than to
compare single figures: it holds for every objective, and for everything that an objective looks at.
"""

from __future__ import annotations

from itertools import combinations
from random import Random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from autolaunch import api
from selector import score
from selector.asked import PlanRequest
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.devices import GIB
from selector.hardware import HardwareReport
from selector.plan import launch_plan, shown_pins
from selector.request import OBJECTIVES, Objective, Pins
from selector.search import decide
from tests.fakes.drawn import accelerator, kind_of, links, machines
from tests.pinned import held

CATALOG = Catalog()
MODELS = st.sampled_from(["glm-4.6", "glm-4.5v", "glm-4.5-air"])
OR_MINIATURE = st.sampled_from(["glm-4.6", "glm-4.5v", "glm-4.5-air", "glm-tiny"])
ASKED = st.builds(
    PlanRequest,
    model=MODELS,
    objective=st.sampled_from(OBJECTIVES),
    context_tokens=st.sampled_from([None, None, 32_768]),
    concurrency=st.sampled_from([None, None, 1, 16, 500]),
)
#: What may be lost to whole steps of context and memory, to numbers of stages between those that fill the devices
#: evenly, and to scores of four digits.
ROUNDING = 0.004
#: With more memory an engine takes on more sequences, whose buffers leave less for the cache: what it holds of full
#: contexts, a tenth of the score at most, may become less, and the throughput with it.
MORE_SEQUENCES = 0.05


def planned(
    model: str, machine: HardwareReport, objective: Objective = "balanced", pins: Pins | None = None
) -> LaunchPlan:
    """A plan without advice, which makes many plans of its own."""
    facts = CATALOG.model(model)
    request = PlanRequest(model=model, objective=objective, pins=pins or Pins())
    plan = launch_plan(facts, machine, request, CATALOG, advise=lambda _: (), keep_all=True)
    return api.with_commands(plan, facts)


def candidates(plan: LaunchPlan) -> tuple[Candidate, ...]:
    return () if plan.chosen is None else (plan.chosen, *plan.alternatives)


def decided(request: PlanRequest, machine: HardwareReport, pins: Pins | None = None) -> tuple[Candidate, ...]:
    asked = request if pins is None else msgspec.structs.replace(request, pins=pins)
    return decide(CATALOG.model(asked.model), machine, asked, CATALOG).ranked


def best_of_both(
    request: PlanRequest, more: tuple[Candidate, ...], less: tuple[Candidate, ...]
) -> tuple[Candidate | None, float]:
    """The best of all candidates, and by how much it is better than the best of ``more`` (0 where it is one)."""
    model = CATALOG.model(request.model)
    quality = {(each.repo, each.quantization): each.quality for each in model.checkpoints}
    scored = score.ranked(
        [(each, quality[each.checkpoint.repo, each.checkpoint.quantization]) for each in (*more, *less)],
        request,
        model.context_tokens,
    )
    mine = {_figures(each) for each in more}
    best = max((each.score for each in scored if _figures(each) in mine), default=-1.0)
    return (scored[0], scored[0].score - best) if scored else (None, 0.0)


def _figures(each: Candidate) -> bytes:
    """The candidate without its place in a list."""
    return msgspec.json.encode((each.checkpoint, each.engine, each.parallel, each.limits, each.memory, each.speed))


# --- what a plan is -----------------------------------------------------------------------------------


@settings(max_examples=40, derandomize=True)
@given(machines(), OR_MINIATURE, st.sampled_from(OBJECTIVES))
def test_no_plan_goes_beyond_any_of_its_devices(machine: HardwareReport, model: str, objective: Objective) -> None:
    free = {device.index: device.memory_free_bytes or 0 for device in machine.accelerators}
    for each in candidates(planned(model, machine, objective)):
        items = each.memory.per_device
        taken = items.total_bytes - items.reserve_bytes
        parts = (
            items.weights_bytes
            + items.kv_cache_bytes
            + items.activations_bytes
            + items.graphs_bytes
            + items.runtime_bytes
        )
        assert taken == parts <= items.usable_bytes <= items.total_bytes
        assert all(taken <= free[index] for index in each.parallel.devices)
        assert len(set(each.parallel.devices)) == len(each.parallel.devices) == each.parallel.ranks * each.parallel.data
        assert 0 < each.limits.context_tokens <= each.memory.kv_cache_tokens


@settings(max_examples=25, derandomize=True)
@given(machines(), OR_MINIATURE)
def test_every_value_stays_one_argument(machine: HardwareReport, model: str) -> None:
    for each in candidates(planned(model, machine)):
        assert each.command is not None
        assert all(token and not any(sign in token for sign in " \n\0;|&$`") for token in each.command.argv)


@settings(max_examples=25, derandomize=True)
@given(machines(), OR_MINIATURE, st.randoms(use_true_random=False))
def test_the_same_machine_gives_the_same_bytes_in_whatever_order_it_is_told(
    machine: HardwareReport, model: str, chance: Random
) -> None:
    shuffled = list(machine.accelerators)
    ways = list(machine.links)
    chance.shuffle(shuffled)
    chance.shuffle(ways)
    other = msgspec.structs.replace(machine, accelerators=tuple(shuffled), links=tuple(ways))
    first, again, second = planned(model, machine), planned(model, machine), planned(model, other)
    assert first.to_json() == again.to_json()
    assert msgspec.structs.replace(second, hardware=machine).to_json() == first.to_json()


@settings(max_examples=25, derandomize=True)
@given(machines(), OR_MINIATURE)
def test_a_refusal_always_says_why(machine: HardwareReport, model: str) -> None:
    for each in planned(model, machine).rejected:
        assert each.code
        assert each.message
        if each.code.startswith("memory."):
            assert each.numbers["needed_bytes"] > each.numbers["usable_bytes"]


# --- pins ---------------------------------------------------------------------------------------------

PINNED = st.builds(
    Pins,
    engine=st.sampled_from(["vllm", "sglang"]),
    tensor_parallel=st.sampled_from([None, 1, 2, 4, 8]),
    pipeline_parallel=st.sampled_from([None, 1, 2, 3]),
    data_parallel=st.sampled_from([None, 1, 2]),
    expert_parallel=st.sampled_from([None, False, True]),
    kv_cache_dtype=st.sampled_from([None, "bf16", "fp8"]),
    memory_utilization=st.sampled_from([None, None, 0.8, 0.9]),
    max_sequences=st.sampled_from([None, 3, 64]),
    speculative=st.sampled_from([None, "off", "mtp"]),
    eager=st.sampled_from([None, True]),
)
#: The option that carries a pin: by engine, the flag for a value or the flags that stand for True.
CARRIED = {
    "vllm": {
        "tensor_parallel": "--tensor-parallel-size {}",
        "pipeline_parallel": "--pipeline-parallel-size {}",
        "memory_utilization": "--gpu-memory-utilization {:g}",
        "max_sequences": "--max-num-seqs {}",
    },
    "sglang": {
        "tensor_parallel": "--tp-size {}",
        "pipeline_parallel": "--pp-size {}",
        "memory_utilization": "--mem-fraction-static {:g}",
        "max_sequences": "--max-running-requests {}",
    },
}
SWITCHES = {
    ("vllm", "expert_parallel"): "--enable-expert-parallel",
    ("vllm", "eager"): "--enforce-eager",
    ("vllm", "kv_cache_dtype"): "--kv-cache-dtype fp8",
    ("vllm", "speculative"): "--speculative-config.method mtp",
    ("sglang", "expert_parallel"): "--ep-size",
    ("sglang", "eager"): "--disable-cuda-graph",
    ("sglang", "kv_cache_dtype"): "--kv-cache-dtype fp8_e4m3",
    ("sglang", "speculative"): "--speculative-algorithm",
}


@settings(max_examples=60, derandomize=True)
@given(machines(idle=True), MODELS, PINNED)
def test_every_pinned_value_is_in_the_candidate_and_in_the_command(
    machine: HardwareReport, model: str, pins: Pins
) -> None:
    for each in candidates(planned(model, machine, pins=pins)):
        assert each.command is not None
        argv = " ".join(each.command.argv)
        for name, value in shown_pins(pins).items():
            assert held(each)[name] == value
            option = CARRIED[each.engine.name].get(name)
            if option is not None and not (name == "pipeline_parallel" and value == 1):
                assert f"{option.format(value)} " in f"{argv} "
            switch = SWITCHES.get((each.engine.name, name))
            if switch is not None:
                assert (switch in argv) == (value in (True, "fp8", "mtp"))


# --- more to choose from is never worse -----------------------------------------------------------------


@settings(max_examples=40, derandomize=True)
@given(machines(), ASKED, st.integers(0, 7), st.sampled_from([1, 4, 30, 200]))
def test_a_gpu_that_others_leave_never_makes_a_worse_plan(
    machine: HardwareReport, request: PlanRequest, which: int, more_gib: int
) -> None:
    devices = list(machine.accelerators)
    one = devices[which % len(devices)]
    freed = min(one.memory_total_bytes or 0, (one.memory_free_bytes or 0) + more_gib * GIB)
    devices[which % len(devices)] = msgspec.structs.replace(one, memory_free_bytes=freed)
    before = decided(request, machine)
    after = decided(request, msgspec.structs.replace(machine, accelerators=tuple(devices)))
    best, missed = best_of_both(request, after, before)
    assert missed <= MORE_SEQUENCES, best


@settings(max_examples=40, derandomize=True)
@given(machines(most=7), ASKED, st.booleans())
def test_one_more_gpu_never_makes_a_worse_plan(machine: HardwareReport, request: PlanRequest, idle: bool) -> None:
    devices, last = machine.accelerators, machine.accelerators[-1]
    free = (last.memory_total_bytes or 0) if idle else 9 * GIB
    added = accelerator(len(devices), kind_of(last), free_bytes=free, numa=last.numa_node or 0)
    larger = msgspec.structs.replace(
        machine, accelerators=(*devices, added), links=links(len(devices) + 1, island_of(machine))
    )
    best, missed = best_of_both(request, decided(request, larger), decided(request, machine))
    assert missed <= ROUNDING, best


def island_of(machine: HardwareReport) -> int:
    """The size of the machine's islands, from the links of its first device."""
    return 1 + sum(each.from_ == 0 and each.kind != "pcie" for each in machine.links)


@settings(max_examples=40, derandomize=True)
@given(machines(most=4), ASKED)
def test_the_search_finds_what_trying_every_layout_finds(machine: HardwareReport, request: PlanRequest) -> None:
    """Every rule that leaves something out, held against a search that leaves out nothing."""
    count = len(machine.accelerators)
    everything: list[Candidate] = []
    for tensor in range(1, count + 1):
        for stages in range(1, count // tensor + 1):
            most = count // (tensor * stages)
            # A replica that no request is left for is of no use, and none is planned.
            for replicas in range(1, min(most, request.concurrency or most) + 1):
                for expert in (False, True) if tensor > 1 else (False,):
                    # MTP is only tried where one request's speed is all that counts.
                    for speculative in ("off", "mtp") if request.objective == "latency" else ("off",):
                        pins = msgspec.convert(
                            {
                                "tensor_parallel": tensor,
                                "pipeline_parallel": stages,
                                "data_parallel": replicas,
                                "expert_parallel": expert,
                                "speculative": speculative,
                            },
                            Pins,
                        )
                        everything += decided(request, machine, pins)
    best, missed = best_of_both(request, decided(request, machine), tuple(everything))
    assert missed <= ROUNDING, best


@settings(max_examples=30, derandomize=True)
@given(machines(most=4), ASKED)
def test_nobody_chooses_the_devices_better(machine: HardwareReport, request: PlanRequest) -> None:
    indices = [each.index for each in machine.accelerators]
    everything: list[Candidate] = []
    for count in range(1, len(indices) + 1):
        for chosen in combinations(indices, count):
            everything += decided(request, machine, Pins(gpus=chosen))
        everything += decided(request, machine, Pins(gpu_count=count))
    best, missed = best_of_both(request, decided(request, machine), tuple(everything))
    assert missed <= ROUNDING, best
