"""torchvision beside a PyTorch without CUDA, for every process of vLLM's CPU build.

Python imports this file at its start when its folder is on ``PYTHONPATH``. PyPI's torchvision for Linux is built for
CUDA: beside a CPU build of PyTorch its compiled operators do not load, and registering what they would compute ends
the import (``operator torchvision::nms does not exist``, torchvision 0.28). vLLM 0.32 wants torchvision for the images
of GLM-4.5V, of which it uses no compiled operator. Here the two operators are declared, without code, where they are
missing; where they loaded nothing is done. vLLM starts processes of its own, which is why this is no script.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MODULE = "torchvision._meta_registrations"
DECLARED = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class BeforeRegistering:
    """Finds the one module that registers operators, and has them declared before it runs."""

    def __init__(self) -> None:
        self.kept: Any = None  # PyTorch forgets what is declared when this is let go

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            run = loader.exec_module

            def declare_and_run(module: ModuleType) -> None:
                self.declare()
                run(module)

            loader.exec_module = declare_and_run
        return spec

    def declare(self) -> None:
        # By name: type checkers and import rules of the tool's own environment do not have them.
        if importlib.import_module("torchvision.extension")._has_ops():  # noqa: SLF001 (what torchvision asks itself)
            return
        self.kept = importlib.import_module("torch").library.Library("torchvision", "DEF")
        for operator in DECLARED:
            self.kept.define(operator + _SIGNATURE)


sys.meta_path.insert(0, BeforeRegistering())
