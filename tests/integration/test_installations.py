"""Engines of others: found, asked without being imported, used where pointed at. Pythons are real, engines are not."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from engines.environments import installations
from engines.environments.installations import Installation
from selector.catalog import Catalog
from selector.contract import Command
from selector.engine_facts import EngineFacts
from selector.errors import EngineError, UsageError
from selector.facts import EngineName, ModelFacts

CATALOG = Catalog()
ENGINES: tuple[EngineFacts, ...] = tuple(CATALOG.engine(name) for name in CATALOG.engine_names())
TEXT, VISION = CATALOG.model("glm-tiny"), CATALOG.model("glm-tiny-v")
MLX = ("mlx_lm-0.32.2", "mlx-0.32.4")


def environment(folder: Path, *distributions: str, programs: tuple[str, ...] = ()) -> Path:
    """A virtual environment of this Python that says it holds ``distributions``."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True)
    for name in distributions:
        (site / f"{name}.dist-info").mkdir()
        (site / f"{name}.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\n")
    for name in programs:
        program(folder / "bin" / name, f"#!{folder}/bin/python\n")
    return folder


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def chosen(path: Path, model: ModelFacts = TEXT, **given: str) -> Installation:
    engine: EngineName | None = given.get("engine")  # type: ignore[assignment]
    return installations.chosen(path, ENGINES, model, engine=engine, version=given.get("version"))


@pytest.mark.parametrize("way", [".", "bin", "bin/python", "bin/mlx_lm.server", "link"])
def test_an_environment_is_found_by_its_folder_and_by_its_programs(tmp_path: Path, way: str) -> None:
    place = environment(tmp_path / "venv", *MLX, programs=("mlx_lm.server",))
    (place / "link").symlink_to(place / "bin" / "mlx_lm.server")
    found = chosen(place / way)
    assert (found.engine, found.package, found.version) == ("mlx", "mlx-lm", "0.32.2")
    assert found.program("mlx_lm.server").resolve() == (place / "bin" / "mlx_lm.server").resolve()
    assert found.program("python").parent.resolve() == place / "bin"


def test_the_engine_is_asked_without_being_imported(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", "vllm-0.33.0")
    site = next((place / "lib").glob("python*/site-packages"))
    (site / "vllm.py").write_text("raise SystemExit('imported')")
    assert chosen(place).version == "0.33.0"


def test_the_variables_and_the_folder_of_the_caller_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = environment(tmp_path / "venv", "vllm-0.33.0")
    stray = environment(tmp_path / "stray", "sglang-0.5.23")
    site = next((stray / "lib").glob("python*/site-packages"))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.chdir(site)
    assert [each.engine for each in installations.at(place, ENGINES)] == ["vllm"]


def test_of_several_engines_the_first_is_taken_and_another_when_asked_for(tmp_path: Path) -> None:
    place = environment(
        tmp_path / "venv", "vllm-0.33.0", "transformers-5.20.0", "torch-2.14.0", "accelerate-1.15.0", *MLX
    )
    found = [each.engine for each in installations.at(place, ENGINES)]
    assert found == [name for name in CATALOG.engine_names() if name in ("mlx", "transformers", "vllm")]
    assert chosen(place, engine="vllm").version == "0.33.0"
    assert chosen(place, engine="transformers").version == "5.20.0"


def test_transformers_without_pytorch_is_no_engine(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", "transformers-5.23.0")
    with pytest.raises(EngineError, match="holds no engine"):
        chosen(place)


def test_what_is_there_and_what_was_asked_for_have_to_agree(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", "vllm-0.33.0+cpu")
    with pytest.raises(UsageError, match=r"--engine sglang was asked for, and .* holds vllm 0\.33\.0"):
        chosen(place, engine="sglang")
    with pytest.raises(UsageError, match=r"--engine-version 0\.32\.0 was asked for"):
        chosen(place, version="0.32.0")
    assert chosen(place, version="0.33.0").version == "0.33.0+cpu"


def test_an_engine_that_does_not_serve_the_model_is_refused_with_what_would(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", *MLX)
    with pytest.raises(EngineError, match=r"holds mlx-lm 0\.32\.2, which does not serve glm-tiny-v") as caught:
        chosen(place, VISION)
    assert "mlx-vlm" in str(caught.value.hint)


def test_an_engine_that_is_too_old_is_refused_with_its_place(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", "vllm-0.8.0")
    with pytest.raises(EngineError) as caught:
        chosen(place)
    assert caught.value.message.startswith(f"{place}: vllm 0.8.0 is older than 0.10.1")
    assert caught.value.exit_code == 5


def test_llama_cpps_wheel_is_its_build(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", "xllamacpp-2026.10.11549")
    assert chosen(place).version == "b11549"


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("version: 7400 (8b3c2f1a)\\nbuilt with cc for x86_64-linux-gnu", "b7400"),
        ("version: 0.3.0-dev (build 10621, commit c1d0e7a00)\\nbuilt with GNU 13 for Linux x86_64", "b10621"),
    ],
)
@pytest.mark.parametrize("way", ["llama-server", ".", "bin"])
def test_a_llama_server_is_asked_for_its_build(tmp_path: Path, said: str, version: str, way: str) -> None:
    (tmp_path / "build" / "bin").mkdir(parents=True)
    program(tmp_path / "build" / "bin" / "llama-server", f"#!/bin/sh\nprintf '{said}\\n' >&2\n")
    (tmp_path / "bin").symlink_to(tmp_path / "build" / "bin")
    (tmp_path / "llama-server").symlink_to(tmp_path / "build" / "bin" / "llama-server")
    found = chosen(tmp_path / way)
    assert (found.engine, found.version) == ("llamacpp", version)
    assert found.program("llama-server") == tmp_path / "build" / "bin" / "llama-server"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#!/bin/sh\necho 'version: 0.2.0-dev (build 1, commit abc)' >&2\n", "built without its version"),
        ("#!/bin/sh\necho 'libcuda.so.1: cannot open' >&2\nexit 127\n", "exit code 127: libcuda.so.1: cannot open"),
        ("#!/bin/sh\nexit 0\n", "it does not tell its version"),
        ("#!/nowhere/sh\n", "does not run: No such file or directory"),
    ],
)
def test_a_program_that_does_not_run_is_said_with_its_path(tmp_path: Path, text: str, said: str) -> None:
    broken = program(tmp_path / "llama-server", text)
    with pytest.raises(EngineError) as caught:
        chosen(broken)
    assert said in caught.value.message
    assert str(broken) in caught.value.message


def test_a_program_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installations, "_ASK_SECONDS", 0.2)
    broken = program(tmp_path / "llama-server", "#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(EngineError, match="does not answer"):
        chosen(broken)


def test_a_python_that_is_gone_is_said(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", *MLX, programs=("mlx_lm.server",))
    (place / "bin" / "python").unlink()
    (place / "bin" / "python").symlink_to("/nowhere/python3.11")
    with pytest.raises(EngineError, match=r"venv is broken: its Python, /nowhere/python3\.11, is gone"):
        chosen(place)
    with pytest.raises(EngineError, match=r"mlx_lm\.server is broken: its Python, .*, is gone"):
        chosen(place / "bin" / "mlx_lm.server")


def test_a_python_that_fails_is_said_with_its_last_words(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", *MLX)
    (place / "bin" / "python").unlink()
    program(place / "bin" / "python", "#!/bin/sh\necho 'No module named encodings' >&2\nexit 1\n")
    with pytest.raises(EngineError, match="exit code 1: No module named encodings"):
        chosen(place)


def test_metadata_that_is_gone_is_said(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", "vllm-0.33.0")
    next((place / "lib").glob("python*/site-packages/*.dist-info/METADATA")).unlink()
    with pytest.raises(EngineError, match="is broken: the metadata of vllm is gone"):
        chosen(place)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "does not exist"),
        (".", "is no environment and holds no llama-server"),
        ("text", "is neither a Python program nor a llama-server"),
    ],
)
def test_a_place_that_holds_none_is_named(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(EngineError, match=said) as caught:
        chosen(tmp_path / name)
    assert str(tmp_path) in caught.value.message


def test_a_script_with_a_long_path_is_understood(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", *MLX)
    python = place / "bin" / "python"
    script = program(tmp_path / "mlx_lm.server", f"#!/bin/sh\n'''exec' '{python}' \"$0\" \"$@\"\n' '''\n")
    assert chosen(script).version == "0.32.2"


def test_a_command_runs_the_program_where_it_lies(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", *MLX, programs=("mlx_lm.server",))
    found = chosen(place / "bin" / "python")
    command = Command(argv=(f"{found.bin_directory}/mlx_lm.server", "--port", "1"), env={"A": "b"})
    assert found.runs(command).argv == (str(place / "bin" / "mlx_lm.server"), "--port", "1")
    with pytest.raises(EngineError, match=r"no program .*/vllm"):
        found.runs(Command(argv=(f"{found.bin_directory}/vllm",), env={}))


# --- what is on this machine ------------------------------------------------------------------------


def test_active_environments_and_path_are_searched_once_each(tmp_path: Path) -> None:
    active = environment(tmp_path / "venv", "vllm-0.33.0", programs=("vllm",))
    conda = environment(tmp_path / "conda", "sglang-0.5.23")
    (tmp_path / "tools").mkdir()
    program(tmp_path / "tools" / "llama-server", "#!/bin/sh\necho 'version: 7400 (abc)' >&2\n")
    environ = {
        "VIRTUAL_ENV": str(active),
        "CONDA_PREFIX": str(conda),
        "PATH": f"{active / 'bin'}:{tmp_path / 'tools'}",
    }
    found, troubles = installations.search(ENGINES, environ)
    assert [(each.engine, each.version, each.place, each.how) for each in found] == [
        ("vllm", "0.33.0", active, "VIRTUAL_ENV"),
        ("sglang", "0.5.23", conda, "CONDA_PREFIX"),
        ("llamacpp", "b7400", tmp_path / "tools" / "llama-server", "PATH"),
    ]
    assert troubles == ()


def test_what_cannot_be_asked_is_told_and_the_rest_is_found(tmp_path: Path) -> None:
    place = environment(tmp_path / "venv", "vllm-0.33.0", programs=("vllm",))
    environ = {"VIRTUAL_ENV": str(tmp_path / "gone"), "PATH": str(place / "bin")}
    found, (trouble,) = installations.search(ENGINES, environ)
    assert [each.engine for each in found] == ["vllm"]
    assert (trouble.how, trouble.message) == ("VIRTUAL_ENV", f"{tmp_path / 'gone'} does not exist")


def test_our_own_environments_are_not_found_as_those_of_others(tmp_path: Path) -> None:
    place = environment(tmp_path / "engines" / "one", "vllm-0.33.0")
    found, _ = installations.search(ENGINES, {"VIRTUAL_ENV": str(place), "PATH": ""}, ours=(tmp_path / "engines",))
    assert found == ()
