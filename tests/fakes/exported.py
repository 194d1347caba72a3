"""The exports that the tests know: plans of named machines, and what is asked of each. Nothing is faked here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple, get_args

from autolaunch import api
from autolaunch.exporting import Artefact, ExportOptions, Target, export
from selector.catalog import Catalog
from selector.contract import LaunchPlan
from selector.request import Pins

GOLDEN = Path(__file__).parents[1] / "golden" / "exports"
FOLDER = ExportOptions(model_path="/srv/models/glm tiny")
EVERY: tuple[Target, ...] = get_args(Target)


class Case(NamedTuple):
    """One plan, and the targets that it is exported to."""

    model: str
    machine: str
    targets: tuple[Target, ...]
    pins: Pins = Pins()
    options: ExportOptions = ExportOptions()


CASES: dict[str, Case] = {
    "replicas": Case(
        "glm-4.6", "8xh200", EVERY, Pins(engine="vllm", revision="0123456789abcdef0123456789abcdef01234567")
    ),
    "nodes": Case("glm-4.6", "2x8xh100", ("kubernetes", "slurm"), Pins(format="bf16")),
    "sglang": Case("glm-4.5v", "4xa100-80gb", EVERY, Pins(engine="sglang")),
    "gguf": Case("glm-4.6", "4090+192gb", EVERY, options=ExportOptions(host="192.0.2.7", api_key_file="/etc/glm/key")),
    "mac": Case("glm-4.6", "m3-ultra-512gb", ("shell",)),
    "cpu": Case("glm-tiny", "cpu-64gb", EVERY, Pins(engine="vllm"), FOLDER),
}


@cache
def planned(name: str) -> LaunchPlan:
    case = CASES[name]
    return api.plan(case.model, hardware=case.machine, pins=case.pins, known=Catalog())


def exported(name: str, to: Target) -> Artefact:
    case = CASES[name]
    options = ExportOptions() if name == "gguf" and to == "kubernetes" else case.options
    return export(planned(name), to, options=options, catalog=Catalog())
