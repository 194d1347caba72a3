"""Programs that run inside an engine's own environment, by their path. Nothing here imports them but tests."""

from __future__ import annotations

from pathlib import Path

PYTHON_SERVER = Path(__file__).with_name("python_server.py")
LLAMACPP_SERVER = Path(__file__).with_name("llamacpp_server.py")
SGLANG_SERVER = Path(__file__).with_name("sglang_server.py")
