"""llama-server's options, as the start of the wheel's server takes them. (The engine itself: integration.)"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engines.shims.llamacpp_server import OPTIONS, apply


def parameters() -> Any:
    return SimpleNamespace(
        model=SimpleNamespace(path=""), cpuparams=SimpleNamespace(n_threads=0), tensor_split=[0.0] * 4, api_keys=[]
    )


def test_options_become_parameters() -> None:
    found = parameters()
    argv = ["--model", "m.gguf", "--alias", "tiny", "--host", "127.0.0.1", "--port", "9", "--ctx-size", "4096"]
    apply(found, [*argv, "--parallel", "2", "--kv-unified", "--tensor-split", "3,1", "--fit", "off"], None)
    assert found.model.path == "m.gguf"
    assert (found.model_alias, found.hostnames, found.port) == ({"tiny"}, ["127.0.0.1"], 9)
    assert (found.n_ctx, found.n_parallel, found.kv_unified, found.fit_params) == (4096, 2, True, False)
    assert found.tensor_split == [3.0, 1.0, 0.0, 0.0]
    assert found.api_keys == []


def test_what_was_not_given_stays_as_the_engine_has_it() -> None:
    found = parameters()
    apply(found, ["--model", "m.gguf"], None)
    assert not hasattr(found, "kv_unified")
    assert not hasattr(found, "n_ctx")


def test_a_key_comes_from_the_environment_and_from_no_option() -> None:
    found = parameters()
    apply(found, ["--model", "m.gguf"], "sentinel")
    assert found.api_keys == ["sentinel"]
    assert "--api-key" not in OPTIONS


@pytest.mark.parametrize("wrong", [["--no-such-option", "1"], ["--por", "1"], ["--port", "x"], ["--fit", "perhaps"]])
def test_a_wrong_option_ends_the_start_with_the_code_of_a_wrong_option(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        apply(parameters(), ["--model", "m.gguf", *wrong], None)
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err
