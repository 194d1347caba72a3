"""SGLang's shim: the key goes to the server and to nobody else. The engine is a fake; its names are 0.5.23's."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engines.shims.sglang_server import KEY_VARIABLE, main, without_secrets


class FakeSglang:
    """FAKE: the modules that the shim asks for, and what was done with them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, Any] = {}
        self.settings = SimpleNamespace(api_key=None, port=1)
        modules: dict[str, dict[str, Any]] = {
            "sglang.srt.plugins": {"load_plugins": lambda: self.seen.setdefault("plugins", True)},
            "sglang.srt.server_args": {"prepare_server_args": self.prepare},
            "sglang.srt.entrypoints.engine": {"_server_args_for_logging": vars},
            "sglang.launch_server": {"run_server": self.run},
            "sglang.srt.utils": {"kill_process_tree": lambda *_, **__: self.seen.setdefault("ended", True)},
        }
        for name, values in modules.items():
            module = ModuleType(name)
            vars(module).update(values)
            patch.setitem(sys.modules, name, module)

    def prepare(self, argv: list[str]) -> SimpleNamespace:
        self.seen |= {"argv": argv, "environment": dict(os.environ)}
        return self.settings

    def run(self, settings: SimpleNamespace) -> None:
        engine: Any = sys.modules["sglang.srt.entrypoints.engine"]
        self.seen |= {"key": settings.api_key, "log": f"server_args={engine._server_args_for_logging(settings)}"}


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch) -> FakeSglang:
    monkeypatch.setattr(sys, "argv", ["sglang_server.py", "--port", "1"])
    return FakeSglang(monkeypatch)


def test_the_key_comes_from_the_environment_and_leaves_it(sglang: FakeSglang, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "SENTINEL")
    main()
    assert sglang.seen["key"] == "SENTINEL"
    assert sglang.seen["argv"] == ["--port", "1"]
    assert KEY_VARIABLE not in sglang.seen["environment"]
    assert "SENTINEL" not in sglang.seen["log"]
    assert sglang.seen["ended"]


def test_without_a_key_there_is_none(sglang: FakeSglang, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    main()
    assert sglang.seen["key"] is None


def test_what_is_told_of_other_settings_stays() -> None:
    told = without_secrets(lambda _: {"api_key": "s", "admin_api_key": None, "port": 1})(None)
    assert told == {"api_key": "***", "admin_api_key": None, "port": 1}
