"""A stand-in for GPUs: it has vLLM's CPU build run as the ranks of a Ray cluster, in the places of GPUs.

Written as ``sitecustomize.py`` into an environment that only tests use, so that every process of it has it, Ray's
workers too. What it changes of vLLM 0.32: the platform asks Ray for the GPUs that the nodes declare; a worker of one
pipeline stage warms up before its first request, as one on a GPU does (eager on a CPU it otherwise ends there, without
the tensors of the stage before); and the KV cache has a size that is not a share of this machine's memory.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def platform(module: Any) -> None:
    module.CpuPlatform.ray_device_key = "GPU"


def worker(module: Any) -> None:
    module.CPUWorker._should_warm_up_model = lambda _: True


def runner(module: Any) -> None:
    module.CPUModelRunner.warming_up_model = lambda self: self.profile_run()


PATCHES = {
    "vllm.platforms.cpu": platform,
    "vllm.v1.worker.cpu_worker": worker,
    "vllm.v1.worker.cpu_model_runner": runner,
}


class Finder:
    def find_spec(self, name: str, path: Any, _target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in PATCHES:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        run = loader.exec_module

        def patched(module: ModuleType) -> None:
            run(module)
            PATCHES[name](module)

        loader.exec_module = patched
        return spec


sys.meta_path.insert(0, Finder())
