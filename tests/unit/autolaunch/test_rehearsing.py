"""What runs in a plan's place has the plan's engine, devices and flags. (Running it: integration.)"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from autolaunch import api
from autolaunch.launching import LaunchOptions
from autolaunch.rehearsing import rehearse
from autolaunch.stand_in import Cast, cast, differing
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.errors import NoFeasiblePlan, UsageError
from selector.facts import EngineName
from selector.request import Pins

#: Figures of a command that are of the model's size, and not of the plan's.
OF_THE_SIZE = {
    "--ctx-size",
    "--prompt-cache-bytes",
    "--kv-cache-memory-bytes",
    "--mem-fraction-static",
    "--tensor-split",
    "--n-cpu-moe",
}


def chosen(plan: LaunchPlan) -> Candidate:
    assert plan.chosen is not None
    return plan.chosen


def cast_of(catalog: Catalog, model: str, machine: str, pins: Pins, home: Path) -> tuple[Candidate, Cast]:
    plan = api.plan(model, hardware=machine, pins=pins, known=catalog)
    return chosen(plan), cast(plan, chosen(plan), catalog, mode="miniature", home=home)


@pytest.mark.parametrize(
    ("model", "machine", "pins"),
    [
        ("glm-4.6", "8xh200", Pins(engine="vllm", data_parallel=1)),
        ("glm-4.6", "8xh200", Pins(engine="vllm", data_parallel=1, speculative="mtp")),
        ("glm-4.6", "8xh200", Pins(engine="sglang")),
        ("glm-4.6", "8xa100-80gb", Pins(engine="vllm", format="fp8")),
        ("glm-4.6", "8xh100", Pins(engine="vllm", quantization="Int4", format="awq")),
        ("glm-4.6", "m3-ultra-512gb", Pins(engine="mlx")),
        ("glm-4.6", "2xh100", Pins(engine="llamacpp")),
        ("glm-4.6", "4090+192gb", Pins(engine="llamacpp")),
        ("glm-4.6", "2x3090+256gb", Pins(engine="llamacpp")),
        ("glm-4.6", "cpu-1024gb", Pins(engine="vllm")),
        ("glm-4.5v", "8xh200", Pins(engine="vllm", tensor_parallel=8)),
        ("glm-4.5v", "4xh100", Pins(engine="vllm", kv_cache_dtype="fp8", eager=True)),
        ("glm-4.5v", "m3-ultra-512gb", Pins(engine="mlx")),
    ],
    ids=str,
)
def test_a_miniature_runs_with_the_engine_the_devices_and_the_flags_of_the_plan(
    catalog: Catalog, tmp_path: Path, model: str, machine: str, pins: Pins
) -> None:
    planned, one = cast_of(catalog, model, machine, pins, tmp_path)
    ran = one.candidate
    assert one.model.generated
    assert ran.engine.name == planned.engine.name
    assert (ran.engine.version, ran.engine.package) == (planned.engine.version, planned.engine.package)
    assert ran.parallel.devices == planned.parallel.devices[: planned.parallel.ranks]
    for name in ("tensor", "pipeline", "expert", "nodes"):
        assert getattr(ran.parallel, name) == getattr(planned.parallel, name)
    for name in ("context_tokens", "max_sequences", "kv_cache_dtype", "speculative", "eager", "batched_tokens"):
        assert getattr(ran.limits, name) == getattr(planned.limits, name), name
    assert (ran.checkpoint.format, ran.checkpoint.quantization) == (
        planned.checkpoint.format,
        planned.checkpoint.quantization,
    )
    assert set(differing(planned, ran)) <= OF_THE_SIZE


def test_the_first_replica_of_several_is_rehearsed(catalog: Catalog, tmp_path: Path) -> None:
    planned, one = cast_of(catalog, "glm-4.6", "8xh200", Pins(engine="vllm", data_parallel=2), tmp_path)
    assert planned.parallel.data == 2
    assert one.candidate.parallel.data == 1
    assert one.candidate.parallel.devices == planned.parallel.devices[:4]


def test_a_miniature_stands_for_itself(catalog: Catalog, tmp_path: Path) -> None:
    planned, one = cast_of(catalog, "glm-tiny", "cpu-64gb", Pins(engine="mlx"), tmp_path)
    assert one.candidate is planned
    assert one.model.id == "glm-tiny"


def test_the_real_shapes_run_without_weights_under_the_plan_itself(catalog: Catalog, tmp_path: Path) -> None:
    plan = api.plan("glm-4.5v", hardware="4xh100", pins=Pins(engine="vllm", format="fp8"), known=catalog)
    killed, living = tmp_path / "rehearsals" / "killed", tmp_path / "rehearsals" / "living"
    for each in (killed, living):
        each.mkdir(parents=True)
    os.utime(killed, (0, 0))
    one = cast(plan, chosen(plan), catalog, mode="dummy", home=tmp_path)
    assert one.candidate is plan.chosen
    assert one.folder is not None
    assert (one.folder / "config.json").is_file()
    assert not list(one.folder.glob("*.safetensors"))
    assert not killed.exists(), "a rehearsal that was killed days ago is swept"
    assert living.exists()


@pytest.mark.parametrize("engine", ["mlx", "transformers", "llamacpp"])
def test_an_engine_that_makes_no_weights_up_says_so(catalog: Catalog, tmp_path: Path, engine: EngineName) -> None:
    plan = api.plan("glm-tiny", hardware="cpu-64gb", pins=Pins(engine=engine), known=catalog)
    with pytest.raises(UsageError, match="makes no weights up"):
        cast(plan, chosen(plan), catalog, mode="dummy", home=tmp_path)


def test_a_format_whose_layout_is_not_known_for_certain_is_refused_with_what_else_to_do(
    catalog: Catalog, tmp_path: Path
) -> None:
    plan = api.plan("glm-4.6", hardware="cpu-1024gb", pins=Pins(engine="vllm"), known=catalog)
    unknown = next(each for each in catalog.model("glm-4.6").checkpoints if each.format == "gptq")
    candidate = msgspec.structs.replace(
        chosen(plan),
        checkpoint=msgspec.structs.replace(
            chosen(plan).checkpoint, repo=unknown.repo, format="gptq", quantization=unknown.quantization
        ),
    )
    with pytest.raises(UsageError, match=r"no .*miniature") as caught:
        rehearse(plan, catalog=catalog, options=LaunchOptions(home=tmp_path), candidate=candidate)
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_without_a_plan_there_is_nothing_to_rehearse(catalog: Catalog, tmp_path: Path) -> None:
    plan = api.plan("glm-4.6", hardware="cpu-64gb", known=catalog)
    with pytest.raises(NoFeasiblePlan, match="nothing to rehearse"):
        rehearse(plan, catalog=catalog, options=LaunchOptions(home=tmp_path))
