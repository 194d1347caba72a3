"""Every engine of the registry is an engine, and hands on options without letting ours go."""

from __future__ import annotations

import subprocess
import sys
from typing import cast

import pytest

from engines import registry
from engines.base import Engine, Serving
from engines.options import checked_extra
from selector.catalog import Catalog
from selector.errors import EngineError, UsageError
from selector.facts import EngineName
from tests.fakes.plans import candidate


@pytest.mark.parametrize("name", registry.names())
def test_an_engine_goes_by_its_name(name: EngineName) -> None:
    found = registry.engine(name)
    assert isinstance(found, Engine)
    assert found.name == name
    assert registry.engine(name) is found


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("option", ["--host=0.0.0.0", "--port", "--trust-remote-code"])
def test_an_option_of_ours_is_refused_by_name(name: EngineName, option: str) -> None:
    serving = Serving(model="m", served_name="m", extra=(option, "1"))
    with pytest.raises(UsageError, match=option.partition("=")[0]):
        registry.engine(name).command(candidate(name, "glm-4.6"), Catalog().model("glm-4.6"), serving)


def test_this_release_starts_these() -> None:
    started = {name for name in registry.names() if registry.engine(name).starts}
    assert started >= {"mlx", "sglang", "transformers", "vllm"}


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(EngineError, match="nosuch"):
        registry.engine(cast("EngineName", "nosuch"))


def test_asking_for_one_engine_imports_no_other() -> None:
    code = "import sys; from engines.registry import engine; engine('mlx'); sys.exit('engines.vllm' in sys.modules)"
    assert subprocess.run((sys.executable, "-c", code), check=False).returncode == 0


def test_a_shortened_spelling_of_an_option_of_ours_is_refused() -> None:
    with pytest.raises(UsageError, match="--mod "):
        checked_extra(("--mod", "x"), owned={"--model"}, engine="mlx")


@pytest.mark.parametrize("extra", [("--temp", "0.5"), ("--chat-template", "; rm -rf $HOME"), ("-v", "two words")])
def test_a_value_stays_one_token(extra: tuple[str, ...]) -> None:
    assert checked_extra(extra, owned={"--model"}, engine="mlx") == extra


def test_a_nul_is_refused() -> None:
    with pytest.raises(UsageError, match="NUL"):
        checked_extra(("--temp", "a\0b"), owned=(), engine="mlx")
