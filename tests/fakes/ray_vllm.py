"""An environment of vLLM's CPU build and Ray whose ranks take the places of GPUs, and a model planned for those.

Both are of tests alone: ``vllm_on_nodes.py`` says what is changed, and the model is glm-tiny as if its weights had 16
bits, since nothing of 32 is planned for a GPU.
"""

from __future__ import annotations

from pathlib import Path

import profiles
from autolaunch.cluster.placing import Place, with_ray
from engines.base import planned_package
from engines.environments import Environments
from engines.vllm import CPU_PACKAGE, CPU_SITE
from selector.catalog import Catalog
from selector.contract import EngineChoice

#: Of ``requirements/clients/ray.txt``.
RAY_VERSION = "2.60.0"
MODEL = "glm-tiny-nodes"
_STAND_IN = Path(__file__).with_name("vllm_on_nodes.py")


def environment(home: Path) -> Path:
    """The folder of the environment below ``home``, made if there is none."""
    facts = Catalog().engine("vllm")
    place = Place(address="", ray_version=RAY_VERSION, python_version="", here="", node="", ranks=())
    cpu = next(each for each in facts.packages if each.name == CPU_PACKAGE)
    choice = EngineChoice(name="vllm", version=cpu.version or facts.version, package=CPU_PACKAGE)
    facts, package = planned_package(with_ray(facts, place), choice)
    made = Environments(home / "cluster-engines").ensure(facts, package).directory
    (site,) = made.glob("lib/python3*/site-packages")
    first = f"import runpy\n\nrunpy.run_path({str(CPU_SITE / 'sitecustomize.py')!r})\n"
    (site / "sitecustomize.py").write_text(first + _STAND_IN.read_text())
    return made


def profile(home: Path) -> None:
    """Has ``home`` know :data:`MODEL`."""
    text = (profiles.DIRECTORY / "models" / "glm-tiny.toml").read_text()
    changes = (
        ('id = "glm-tiny"', f'id = "{MODEL}"'),
        ("autolaunch/glm-tiny", f"example/{MODEL}"),
        ("generated = true", "generated = false"),
        ('format = "fp32"', 'format = "bf16"'),
        ('quantization = "FP32"', 'quantization = "BF16"'),
        ("bits = 32, plain_bits = 32", "bits = 16, plain_bits = 16"),
    )
    text = text[: text.index('[[checkpoints]]\nrepo = "autolaunch/glm-tiny-GGUF"')]
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    folder = home / "profiles" / "models"
    folder.mkdir(parents=True)
    (folder / f"{MODEL}.toml").write_text(text)
