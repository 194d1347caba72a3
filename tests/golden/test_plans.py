"""Golden plans: what is chosen on each kind of machine, and in a line why that is right.

``ARGUED`` is written by hand and holds for reasons; the files beside it hold the whole choice with its memory and
command, and change only with ``--update-golden``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from autolaunch import api
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.explain import layout
from selector.hardware import HardwareReport
from selector.request import Pins
from tests.fakes.clusters import cluster, port

PLANS = Path(__file__).parent / "plans"


class Argued(NamedTuple):
    """What must be chosen (``None`` quantization: nothing fits), and why."""

    quantization: str | None
    engines: tuple[str, ...]
    tensor: int
    pipeline: int
    data: int
    why: str


FAST = ("vllm", "sglang")

ARGUED: dict[tuple[str, str], Argued] = {
    ("glm-4.6", "8xh200"): Argued(
        "FP8", FAST, 4, 1, 2, "two replicas of TP 4 beat one of TP 8 by 80 % in throughput (gpustack, measured)"
    ),
    ("glm-4.6", "8xh100"): Argued("FP8", FAST, 8, 1, 1, "the documented layout: 337 GiB of FP8 over eight of 80 GB"),
    ("glm-4.6", "4xh100"): Argued(
        "Int4-Int8Mix",
        ("vllm",),
        4,
        1,
        1,
        "FP8 needs 84 GiB a GPU; of what fits, 4 and 8 bits mixed are nearest to the original, experts whole as its "
        "card has them",
    ),
    ("glm-4.6", "2xh100"): Argued(
        "UD-Q3_K_XL", ("llamacpp",), 1, 2, 1, "AWQ is 88 GiB a GPU; the 3-bit file 75 of 79, tight, and said to be"
    ),
    ("glm-4.6", "1xh100"): Argued(None, (), 0, 0, 0, "no file of three bits or more is below 147 GiB"),
    ("glm-4.6", "8xa100-80gb"): Argued(
        "FP8", ("vllm",), 8, 1, 1, "vLLM runs FP8 weight-only through Marlin (measured); SGLang cannot on sm_80"
    ),
    ("glm-4.6", "8x4090"): Argued(
        "UD-Q3_K_XL", ("llamacpp",), 1, 8, 1, "AWQ fills 22 of 23.4 GiB before any cache; the 3-bit GGUF leaves room"
    ),
    ("glm-4.6", "4x4090"): Argued(None, (), 0, 0, 0, "96 GB in all, 147 GiB at least"),
    ("glm-4.6", "1xrtx-pro-6000"): Argued(None, (), 0, 0, 0, "95 GiB, 147 GiB at least"),
    ("glm-4.6", "1xb200"): Argued(
        "UD-Q3_K_XL", ("llamacpp",), 1, 1, 1, "AWQ loads 176 of 178 GiB; only the 3-bit GGUF leaves room for a cache"
    ),
    ("glm-4.6", "2x8xh100"): Argued(
        "BF16", ("vllm",), 8, 2, 1, "bf16 is 83 GiB a GPU of eight: two hosts, each a stage of all its GPUs"
    ),
    ("glm-4.6", "8xh100-4xh100"): Argued(
        "BF16",
        ("vllm",),
        4,
        3,
        1,
        "eight do not hold bf16; fours do not leave a node, two on the one and one on the other",
    ),
    ("glm-4.6", "gb10"): Argued(None, (), 0, 0, 0, "121.7 GiB shared with the system, 147 GiB at least"),
    ("glm-4.6", "m4-max-128gb"): Argued(None, (), 0, 0, 0, "the GPU may wire 96 GiB; no sysctl makes 147 of 128"),
    ("glm-4.6", "m3-ultra-512gb"): Argued(
        "6bit", ("mlx",), 1, 1, 1, "267 GiB of 384: near the original, the full context, and a third quicker than 8 bit"
    ),
    ("glm-4.6", "m3-ultra-256gb"): Argued("4bit", ("mlx",), 1, 1, 1, "185 of 192 GiB: just fits, with a short context"),
    ("glm-4.6", "m2-ultra-192gb"): Argued(None, (), 0, 0, 0, "144 GiB may be wired; with the limit raised 3 bit fits"),
    ("glm-4.6", "4090+64gb"): Argued(None, (), 0, 0, 0, "the experts of three bits are 137 GiB in main memory"),
    ("glm-4.6", "4090+192gb"): Argued(
        "UD-Q3_K_XL", ("llamacpp",), 1, 1, 1, "attention and the cache on the card, nearly all experts in main memory"
    ),
    ("glm-4.6", "4090+256gb"): Argued(
        "UD-Q4_K_XL",
        ("llamacpp",),
        1,
        1,
        1,
        "room for four bits in main memory, and a fifth slower",
    ),
    ("glm-4.6", "2x3090+256gb"): Argued(
        "Q5_K_M",
        ("llamacpp",),
        1,
        2,
        1,
        "two cards let five bits in; most layers lie on the first, without experts",
    ),
    ("glm-4.6", "rtx-pro-6000+128gb"): Argued(
        "UD-Q3_K_XL",
        ("llamacpp",),
        1,
        1,
        1,
        "neither holds 147 GiB alone; both do, with experts on the card too",
    ),
    ("glm-4.6", "4xh100+1024gb"): Argued(
        "Int4-Int8Mix",
        ("vllm",),
        4,
        1,
        1,
        "what lies on the devices whole is an order quicker",
    ),
    ("glm-4.6", "cpu-64gb"): Argued(None, (), 0, 0, 0, "a tenth of what is needed"),
    ("glm-4.5v", "8xh200"): Argued(
        "FP8", FAST, 2, 1, 4, "one pair holds it; four replicas answer more than one of eight"
    ),
    ("glm-4.5v", "8xh100"): Argued(
        "FP8", FAST, 4, 1, 2, "the recipe's TP 4, twice; vision heads divide by 4, not by 8"
    ),
    ("glm-4.5v", "4xh100"): Argued("FP8", FAST, 4, 1, 1, "the documented layout for four H100"),
    ("glm-4.5v", "2xh100"): Argued("FP8", FAST, 2, 1, 1, "51 GiB a GPU; SGLang's own CI runs FP8 at TP 2"),
    ("glm-4.5v", "1xh100"): Argued("Int4", FAST, 1, 1, 1, "FP8 is 102 GiB; AWQ 56, and TP 1 is Marlin's best case"),
    ("glm-4.5v", "8xa100-80gb"): Argued(
        "BF16", FAST, 8, 1, 1, "no FP8 arithmetic before sm_89: the original weights, read over all eight"
    ),
    ("glm-4.5v", "8x4090"): Argued(
        "FP8", FAST, 4, 2, 1, "13 GiB a GPU; stages over PCIe cost less than an 8-way all-reduce"
    ),
    ("glm-4.5v", "4x4090"): Argued(
        "Int4", FAST, 4, 1, 1, "14 GiB a GPU, with expert parallelism because 352-wide slices leave Marlin"
    ),
    ("glm-4.5v", "1xrtx-pro-6000"): Argued("Int4", FAST, 1, 1, 1, "FP8 is 102 GiB of 95; AWQ fits with room"),
    ("glm-4.5v", "1xb200"): Argued("FP8", FAST, 1, 1, 1, "102 of 178 GiB on one device: nothing to divide"),
    ("glm-4.5v", "gb10"): Argued(
        "Int4", FAST, 1, 1, 1, "273 GB/s: half the bytes are twice the speed, and FP8 leaves 3 GiB of cache"
    ),
    ("glm-4.5v", "m4-max-128gb"): Argued(
        "5bit", ("mlx",), 1, 1, 1, "70 of 96 GiB: 6 bit fits too, with half the cache"
    ),
    ("glm-4.5v", "m3-ultra-512gb"): Argued(
        "6bit", ("mlx",), 1, 1, 1, "bandwidth decides on a Mac; 6 bit is near lossless"
    ),
    ("glm-4.5v", "m3-ultra-256gb"): Argued("6bit", ("mlx",), 1, 1, 1, "as on 512: memory is not what is short"),
    ("glm-4.5v", "m2-ultra-192gb"): Argued("6bit", ("mlx",), 1, 1, 1, "82 of 144 GiB, the full context"),
    ("glm-4.5v", "cpu-64gb"): Argued(None, (), 0, 0, 0, "the smallest file for a CPU engine is the original, 201 GiB"),
}

CASES = sorted(ARGUED)

#: What is pinned of a case, where anything is.
PINNED: dict[tuple[str, str], Pins] = {
    ("glm-4.6", "2x8xh100"): Pins(format="bf16"),
    ("glm-4.6", "8xh100-4xh100"): Pins(format="bf16"),
}
#: Machines that no name describes.
MACHINES: dict[str, Callable[[Catalog], HardwareReport]] = {
    "8xh100-4xh100": lambda known: cluster(
        known,
        "8xh100",
        "4xh100",
        ports=((port("infiniband", 400), port("ethernet", 25)), (port("ethernet", 10),)),
        memory_gib=1024,
    ),
}


def planned(known: Catalog, model: str, machine: str) -> LaunchPlan:
    report = MACHINES[machine](known) if machine in MACHINES else machine
    return api.plan(model, hardware=report, pins=PINNED.get((model, machine)), known=known)


@pytest.mark.parametrize(("model", "machine"), CASES)
def test_the_choice_is_the_one_that_is_argued_for(catalog: Catalog, model: str, machine: str) -> None:
    argued = ARGUED[model, machine]
    plan = planned(catalog, model, machine)
    if argued.quantization is None:
        assert not plan.feasible, f"{argued.why}; chosen: {plan.explain()}"
        assert any(each.kind == "hardware" for each in plan.advice)
        return
    assert plan.chosen is not None, argued.why
    parallel = plan.chosen.parallel
    assert plan.chosen.checkpoint.quantization == argued.quantization, argued.why
    assert plan.chosen.engine.name in argued.engines, argued.why
    assert (parallel.tensor, parallel.pipeline, parallel.data) == (argued.tensor, argued.pipeline, argued.data), (
        argued.why
    )


def one_line(candidate: Candidate) -> str:
    return (
        f"{candidate.rank} {candidate.score:.4f} {candidate.checkpoint.repo} {candidate.checkpoint.quantization} "
        f"{candidate.engine.name} {layout(candidate)} context {candidate.limits.context_tokens}"
    )


def golden_text(plan: LaunchPlan, why: str) -> str:
    """The choice whole; what came after it and what was refused a line each."""
    shown = {
        "why": why,
        "feasible": plan.feasible,
        "chosen": plan.chosen,
        "alternatives": [one_line(each) for each in plan.alternatives],
        "rejected": [f"{each.repo} {each.quantization} {each.engine}: {each.message}" for each in plan.rejected],
        "advice": plan.advice,
    }
    return msgspec.json.format(msgspec.json.encode(shown), indent=2).decode() + "\n"


@pytest.mark.parametrize(("model", "machine"), CASES)
def test_a_plan_changes_only_on_purpose(catalog: Catalog, update_golden: bool, model: str, machine: str) -> None:
    path = PLANS / f"{model}__{machine}.json"
    text = golden_text(planned(catalog, model, machine), ARGUED[model, machine].why)
    if update_golden:
        path.write_text(text)
    assert path.read_text() == text, f"{path.name} differs: run pytest --update-golden and read the diff"


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in PLANS.glob("*.json")} == {f"{model}__{machine}" for model, machine in CASES}


@pytest.mark.parametrize(("model", "machine"), CASES)
def test_the_contract_names_are_kept(catalog: Catalog, model: str, machine: str) -> None:
    """The JSON of DESIGN: every field by name, for both models on every machine."""
    plan = msgspec.json.decode(planned(catalog, model, machine).to_json())
    assert {
        "schema",
        "model",
        "feasible",
        "request",
        "hardware",
        "chosen",
        "alternatives",
        "rejected",
        "advice",
    } <= set(plan)
    assert plan["schema"] == 1 and plan["model"] == model
    assert {"objective", "context_tokens", "concurrency", "pinned"} <= set(plan["request"])
    for candidate in [each for each in (plan["chosen"], *plan["alternatives"]) if each is not None]:
        assert {"rank", "score", "score_terms", "checkpoint", "engine", "parallel", "limits", "memory"} <= set(
            candidate
        )
        assert set(candidate["score_terms"]) == {"quality", "speed", "context", "headroom", "download"}
        assert {"repo", "hub", "revision", "format", "quantization", "download_bytes"} <= set(candidate["checkpoint"])
        assert {"name", "version", "installed"} <= set(candidate["engine"])
        assert {"tensor", "pipeline", "data", "expert", "nodes", "devices"} <= set(candidate["parallel"])
        assert {"context_tokens", "max_sequences", "kv_cache_dtype", "memory_utilization"} <= set(candidate["limits"])
        assert {"kv_bytes_per_token", "kv_cache_tokens", "host_bytes", "low_bytes", "high_bytes", "basis"} <= set(
            candidate["memory"]
        )
        items = candidate["memory"]["per_device"]
        parts = ("weights", "kv_cache", "activations", "graphs", "runtime", "reserve")
        assert sum(items[f"{name}_bytes"] for name in parts) == items["total_bytes"]
        assert items["total_bytes"] - items["reserve_bytes"] <= items["usable_bytes"] <= items["total_bytes"]
        assert {
            "decode_tokens_per_second",
            "throughput_tokens_per_second",
            "prefill_tokens_per_second",
            "time_to_first_token_seconds",
            "load_seconds",
            "basis",
        } <= set(candidate["speed"])
        assert set(candidate["command"]) == {"argv", "env"}
        assert all({"severity", "code", "message", "source"} == set(note) for note in candidate["notes"])
    for rejection in plan["rejected"]:
        assert {"repo", "engine", "parallel", "code", "message", "numbers"} <= set(rejection)
