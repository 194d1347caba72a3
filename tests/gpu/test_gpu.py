"""On a real NVIDIA GPU: what the driver tells, and whether weights take the memory that plans say.

Skipped where there is none. `pytest tests/gpu --record-machine FILE` keeps the probe's report, to be read and put into
tests/data/machines. The engine is the Transformers of a Python that has it with PyTorch for CUDA:
AUTOLAUNCH_GPU_PYTHON, or python3 on PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autolaunch import api
from autolaunch.launching import LaunchOptions
from autolaunch.rehearsing import rehearse
from engines import miniature
from engines.environments import without_engine_secrets
from selector.architecture import stored_weights
from selector.catalog import Catalog
from selector.contract import Parallel
from selector.facts import CheckpointFacts, ModelFacts
from selector.hardware import Accelerator, HardwareReport
from selector.machines import report_from_file
from selector.request import Pins
from selector.weights import rank_stages

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

#: Real widths: two layers of sixteen experts each behind a dense one make about 4 GB in 16 bits.
LAYERS, DENSE, EXPERTS = 3, 1, 16

LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM
free, total = torch.cuda.mem_get_info(0)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto", device_map={"": 0})
torch.cuda.synchronize()
loaded = torch.cuda.memory_allocated(0)
tokens = model.generate(torch.tensor([[1, 2, 3]], device="cuda:0"), max_new_tokens=8, do_sample=False)
torch.cuda.synchronize()
print(json.dumps({
    "weights_bytes": loaded,
    "peak_bytes": torch.cuda.max_memory_allocated(0),
    "taken_bytes": free - torch.cuda.mem_get_info(0)[0],
    "total_bytes": total,
    "tokens": tokens.shape[1],
}))
"""


@pytest.fixture(scope="module")
def report() -> HardwareReport:
    found = api.probe()
    if not any(device.vendor == "nvidia" for device in found.accelerators):
        pytest.skip("no NVIDIA GPU is here")
    return found


@pytest.fixture(scope="module")
def gpus(report: HardwareReport) -> tuple[Accelerator, ...]:
    return tuple(device for device in report.accelerators if device.vendor == "nvidia")


def smi(*fields: str) -> list[list[str]]:
    query = ("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60)
    return [[word.strip() for word in line.split(",")] for line in told.stdout.splitlines()]


def test_the_probe_tells_what_nvidia_smi_tells(gpus: tuple[Accelerator, ...]) -> None:
    rows = smi("name", "uuid", "memory.total", "compute_cap")
    assert [device.name for device in gpus] == [row[0] for row in rows]
    assert [device.uuid for device in gpus] == [row[1] for row in rows]
    for device, row in zip(gpus, rows, strict=True):
        assert device.memory_total_bytes is not None
        assert abs(device.memory_total_bytes / 2**20 - float(row[2])) <= 1
        assert device.compute_capability == tuple(int(part) for part in row[3].split("."))


def test_the_accelerator_is_one_that_the_catalogue_knows(gpus: tuple[Accelerator, ...]) -> None:
    assert all(Catalog().accelerator_for(device) is not None for device in gpus)


def test_a_recorded_report_plans_as_the_machine_does(
    report: HardwareReport, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    kept = pytestconfig.getoption("--record-machine")
    place = Path(kept) if kept else tmp_path / "machine.json"
    place.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    again = report_from_file(place)
    assert api.plan("glm-4.5v", hardware=again, local=frozenset()) == api.plan(
        "glm-4.5v", hardware=report, local=frozenset()
    )


@pytest.fixture(scope="module")
def python() -> str:
    named = os.environ.get("AUTOLAUNCH_GPU_PYTHON") or shutil.which("python3") or "python3"
    asked = "import accelerate, torch, transformers; assert torch.cuda.is_available()"
    done = subprocess.run((named, "-c", asked), capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        pytest.skip(f"{named} has no Transformers with PyTorch for CUDA: {done.stderr.strip().splitlines()[-1:]}")
    return named


def cut(form: str) -> tuple[ModelFacts, CheckpointFacts]:
    """GLM-4.6 in its real widths with few layers and experts, in one format."""
    real = Catalog().model("glm-4.6")
    checkpoint = next(each for each in real.checkpoints if each.format == form)
    name = f"glm-4.6-real-widths-{form}"
    made = msgspec.structs.replace(checkpoint, repo=f"autolaunch/{name}", modelscope=None, download_basis="derived")
    shape = msgspec.structs.replace(
        real.architecture,
        num_hidden_layers=LAYERS,
        first_k_dense_replace=DENSE,
        n_routed_experts=EXPERTS,
        vocab_size=1024,
        num_nextn_predict_layers=0,
    )
    model = msgspec.structs.replace(real, id=name, aliases=(), generated=True, architecture=shape, checkpoints=(made,))
    made = msgspec.structs.replace(made, download_bytes=miniature.size_bytes(model, made))
    return msgspec.structs.replace(model, checkpoints=(made,)), made


@pytest.mark.parametrize("form", ["bf16", "fp8"])
def test_weights_take_the_memory_that_is_planned(
    form: str, python: str, gpus: tuple[Accelerator, ...], tmp_path: Path, record_property: Any
) -> None:
    if form == "fp8":
        if (gpus[0].compute_capability or (0, 0)) < (8, 9):
            pytest.skip("FP8 needs compute capability 8.9")
        asked = subprocess.run((python, "-c", "import compressed_tensors"), capture_output=True, check=False)
        if asked.returncode != 0:
            pytest.skip("compressed-tensors, which Transformers reads these files with, is not here")
    model, checkpoint = cut(form)
    folder = miniature.generate(model, tmp_path / "model", checkpoint)
    done = subprocess.run(
        (python, "-c", LOAD, str(folder)),
        env=without_engine_secrets(os.environ) | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    weights = stored_weights(model.architecture, checkpoint)
    rule = Catalog().engine("transformers").memory
    (stage,) = rank_stages(model.architecture, weights, Parallel(), rule, mtp=False, whole_vision=False)
    record_property("measured", seen)
    record_property("predicted_weights_bytes", stage.weight_bytes)
    assert seen["tokens"] == 11
    assert abs(seen["weights_bytes"] - stage.weight_bytes) <= 0.02 * stage.weight_bytes, seen
    # What the driver counts beside PyTorch's own: its context.
    assert seen["taken_bytes"] - seen["peak_bytes"] <= rule.runtime_bytes * 2, seen


def test_a_plan_on_a_gpu_is_proven_with_the_engine_that_is_here(
    python: str, report: HardwareReport, tmp_path: Path, record_property: Any
) -> None:
    """Probe, plan, launcher, shim, stream and call, on the real device."""
    asked = subprocess.run((python, "-c", "import fastapi, uvicorn, typer"), capture_output=True, check=False)
    if asked.returncode != 0:
        pytest.skip(f"{python} has no transformers[serving]")
    place = Path(shutil.which(python) or python).parent.parent
    pins = Pins(engine="transformers", gpu_count=1)
    plan = api.plan("glm-tiny", hardware=report, pins=pins, engine_path=place)
    options = LaunchOptions(home=tmp_path, port=0, engine_path=place)
    result = rehearse(plan, catalog=Catalog(), options=options)
    record_property("rehearsal", result.to_json())
    assert result.ok, result.to_json()
    assert {step.name: step.ok for step in result.steps} == {
        "started": True,
        "streamed": True,
        "tool call": True,
        "image": None,
    }
