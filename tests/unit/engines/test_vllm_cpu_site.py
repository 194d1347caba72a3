"""torchvision beside a PyTorch for CPUs: declared where its operators are missing, untouched where they loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.vllm import CPU_SITE

#: FAKE packages, as far as the file looks at them.
FAKES = {
    "torch/__init__.py": "from torch import library",
    "torch/library.py": """
declared = []
class Library:
    def __init__(self, name, kind):
        self.name = name
    def define(self, signature):
        declared.append(f"{self.name}::{signature.partition('(')[0]}")
""",
    "torchvision/__init__.py": "from torchvision import extension, _meta_registrations",
    "torchvision/extension.py": "import os\ndef _has_ops(): return os.environ['FAKE_OPS'] == 'yes'",
    "torchvision/_meta_registrations.py": "import torch\nprint(sorted(torch.library.declared))",
}


@pytest.mark.parametrize(
    ("loaded", "declared"), [("no", "['torchvision::nms', 'torchvision::qnms']"), ("yes", "[]")], ids=["cpu", "cuda"]
)
def test_operators_are_declared_only_where_they_are_missing(tmp_path: Path, loaded: str, declared: str) -> None:
    for name, text in FAKES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    environment = {"PYTHONPATH": os.pathsep.join((str(CPU_SITE), str(tmp_path))), "FAKE_OPS": loaded}
    code = (sys.executable, "-P", "-c", "import torchvision")
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == declared, done.stderr
