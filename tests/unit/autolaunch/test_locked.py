"""A lock holds a launch, is read like a stranger's file, and never changes what is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autolaunch import api
from autolaunch.daemon.deployment import Deployment
from autolaunch.locked import Lock, differences, lock_of, plan_of, read_lock, write_lock
from autolaunch.replaying import (
    Beside,
    check_weights,
    checked,
    deployment_of,
    pins_in,
    plan_again,
    refuse_contradictions,
    refuse_other_hardware,
    replanned,
    replayed,
)
from selector.catalog import Catalog
from selector.errors import DownloadError, LockError, NoFeasiblePlan, OtherHardware, UsageError
from selector.hardware import Driver, HardwareReport
from selector.machines import report_from_spec
from selector.request import Pins

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SENTINEL = "hf_SENTINEL0123456789"


def machine(spec: str, catalog: Catalog) -> HardwareReport:
    return msgspec.structs.replace(report_from_spec(spec, catalog), findings=())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "hub" / "snapshots" / COMMIT
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / "model.safetensors").write_bytes(b"weights")
    return place


@pytest.fixture
def made(folder: Path, catalog: Catalog) -> Callable[..., Lock]:
    def make(model: str = "glm-4.6", spec: str = "8xh100", pins: Pins | None = None, **more: Any) -> Lock:
        plan = api.plan(model, hardware=machine(spec, catalog), pins=pins, known=catalog)
        assert plan.chosen is not None
        given = {"requirements": "vllm==1 --hash=sha256:00\n", **more}
        return lock_of(plan, plan.chosen, catalog.model(model), folder=folder, **given)

    return make


@pytest.fixture
def lock(made: Callable[..., Lock]) -> Lock:
    return made()


def on(lock: Lock, report: HardwareReport, catalog: Catalog) -> Any:
    return plan_again(lock, pins_in(lock, catalog), catalog, report)


@pytest.mark.parametrize(
    ("model", "spec"),
    [("glm-4.6", "8xh100"), ("glm-4.6", "8xh200"), ("glm-4.5v", "4xa100-80gb"), ("glm-4.6", "4090+192gb"),
     ("glm-4.6", "m3-ultra-512gb"), ("glm-tiny", "cpu-64gb"), ("glm-4.5-air", "8x4090")],
)  # fmt: skip
def test_what_was_written_is_read_again_and_is_launched_the_same(
    made: Callable[..., Lock], catalog: Catalog, tmp_path: Path, model: str, spec: str
) -> None:
    lock = made(model, spec)
    path = tmp_path / "a.lock"
    write_lock(path, lock)
    again = checked(read_lock(path), catalog, path)
    assert again == lock
    report = machine(spec, catalog)
    assert differences(again, report) == ()
    found = replayed(again, on(again, report, catalog), catalog, path)
    assert found.command == plan_of(lock).command
    assert (found.limits, found.parallel) == (lock.plan.limits, lock.plan.parallel)
    assert found.checkpoint.revision == COMMIT


def test_no_secret_is_in_a_lock(made: Callable[..., Lock], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environ = {
        "HF_TOKEN": SENTINEL,
        "VLLM_API_KEY": SENTINEL,
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "NCCL_DEBUG": f"a {SENTINEL}",
        "CUDA_URL": f"https://me:{SENTINEL}@example.org/x",
        "OPENAI_API_KEY": SENTINEL,
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    lock = made()
    write_lock(tmp_path / "a.lock", lock)
    assert lock.environment == {"NCCL_DEBUG": "a <HF_TOKEN>", "VLLM_LOGGING_LEVEL": "DEBUG"}
    assert SENTINEL not in (tmp_path / "a.lock").read_text()
    with pytest.raises(LockError, match="hold a token"):
        made(engine_options=("--x", SENTINEL))


def test_other_hardware_is_told_line_by_line_and_nothing_is_planned(lock: Lock, catalog: Catalog) -> None:
    with pytest.raises(OtherHardware) as caught:
        refuse_other_hardware(lock, machine("4xa100-40gb", catalog), Path("a.lock"))
    assert caught.value.exit_code == 3
    assert caught.value.hint is not None
    lines = caught.value.hint.splitlines()
    assert any(line.startswith("device 0: NVIDIA H100") and "NVIDIA A100" in line for line in lines)
    assert any(line.startswith("device 0, memory: 79.6 GiB in the lock") for line in lines)
    assert any("device 4: NVIDIA H100" in line and "none here" in line for line in lines)
    assert "--replan" in lines[-1]


def changed_devices(report: HardwareReport, **changes: object) -> HardwareReport:
    devices = tuple(msgspec.structs.replace(each, **changes) for each in report.accelerators)
    return msgspec.structs.replace(report, accelerators=devices)


def test_what_is_free_and_what_devices_are_called_is_no_other_hardware(lock: Lock, catalog: Catalog) -> None:
    report = changed_devices(machine("8xh100", catalog), memory_free_bytes=1, uuid="GPU-other")
    host = msgspec.structs.replace(report.host, memory_available_bytes=1, disk_free_bytes=1)
    mentioned = refuse_other_hardware(lock, msgspec.structs.replace(report, host=host), Path("a.lock"))
    assert {each.what.partition(", ")[2] for each in mentioned} == {"UUID"}
    assert not any(each.matters for each in mentioned)


def test_another_driver_or_a_missing_feature_of_the_processor_matters(
    made: Callable[..., Lock], catalog: Catalog
) -> None:
    lock = made("glm-tiny", "cpu-64gb")
    cpu = msgspec.structs.replace(lock.probe.host.cpu, features=("amx", "avx512f"))
    probe = msgspec.structs.replace(lock.probe, host=msgspec.structs.replace(lock.probe.host, cpu=cpu))
    (found,) = differences(msgspec.structs.replace(lock, probe=probe), machine("cpu-64gb", catalog))
    assert (found.what, found.locked, found.matters) == ("processor features", "amx avx512f", True)
    gpus = made()
    old = machine("8xh100", catalog)
    new = msgspec.structs.replace(old, drivers=(Driver(vendor="nvidia", version="999.1", runtime="13.9"),))
    told = [str(each) for each in differences(gpus, new) if each.matters]
    assert len(told) == 1
    assert "999.1" in told[0]


def test_devices_that_the_launch_did_not_use_are_no_matter(made: Callable[..., Lock], catalog: Catalog) -> None:
    lock = made("glm-4.5-air", "8xh200", Pins(gpus=(0, 1)))
    fewer = machine("2xh200", catalog)
    host = msgspec.structs.replace(fewer.host, memory_total_bytes=lock.probe.host.memory_total_bytes)
    assert [each for each in differences(lock, msgspec.structs.replace(fewer, host=host)) if each.matters] == []


def test_too_little_memory_now_is_no_plan_and_no_smaller_one(lock: Lock, catalog: Catalog) -> None:
    full = changed_devices(machine("8xh100", catalog), memory_free_bytes=20 << 30)
    decided = on(lock, full, catalog)
    with pytest.raises(NoFeasiblePlan) as caught:
        replayed(lock, decided, catalog, Path("a.lock"))
    assert not isinstance(caught.value, OtherHardware)


def test_variables_that_engines_read_are_mentioned(lock: Lock, catalog: Catalog) -> None:
    (found,) = differences(lock, machine("8xh100", catalog), environ={"VLLM_USE_X": "1", "HF_TOKEN": SENTINEL})
    assert str(found) == "VLLM_USE_X: unset in the lock, 1 here"
    assert not found.matters


# --- beside a lock ------------------------------------------------------------------------------------


def test_the_same_again_may_be_asked_for_beside_a_lock(lock: Lock, catalog: Catalog) -> None:
    plan = lock.plan
    same = Beside(
        model="GLM-4.6",
        pins=Pins(engine=plan.engine.name, repo=plan.checkpoint.repo.lower(), gpu_count=len(plan.parallel.devices)),
        context_tokens=plan.limits.context_tokens,
    )
    refuse_contradictions(lock, Path("a.lock"), same, catalog)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        (Beside(model="glm-4.5v"), "is a lock of glm-4.6"),
        (Beside(model="zai-org/GLM-4.6-FP8", pins=Pins(engine="sglang", tensor_parallel=2)), "was asked for, and"),
        (Beside(pins=Pins(gpu_count=3)), "--gpu-count 3"),
        (Beside(context_tokens=4096), "--context 4096"),
        (Beside(engine_options=("--x",)), "other options for its engine: none"),
        (Beside(engine_path=Path("/x")), "--engine-path is another one"),
    ],
)
def test_what_contradicts_a_lock_is_a_usage_error(lock: Lock, catalog: Catalog, beside: Beside, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        refuse_contradictions(lock, Path("a.lock"), beside, catalog)


def test_options_for_the_engine_are_never_taken_from_the_file(made: Callable[..., Lock], catalog: Catalog) -> None:
    lock = made(engine_options=("--seed", "1"))
    with pytest.raises(UsageError, match="--seed 1"):
        refuse_contradictions(lock, Path("a.lock"), Beside(), catalog)
    refuse_contradictions(lock, Path("a.lock"), Beside(engine_options=("--seed", "1")), catalog)


def test_what_lay_where_the_user_said_has_to_be_said_again(made: Callable[..., Lock], catalog: Catalog) -> None:
    with pytest.raises(UsageError, match="--model-path"):
        refuse_contradictions(made(own_weights=True), Path("a.lock"), Beside(), catalog)


def test_a_deployment_of_a_lock_is_pinned_whole(lock: Lock, catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    write_lock(path, lock)
    found = deployment_of(Deployment(name="a", model="glm-4.6", lock=path), path, catalog)
    assert found.pinned == pins_in(lock, catalog)
    assert found.context_tokens == lock.plan.limits.context_tokens
    with pytest.raises(UsageError):
        deployment_of(Deployment(name="a", model="glm-4.6", pinned=Pins(max_sequences=1)), path, catalog)


# --- a file of a stranger --------------------------------------------------------------------------------


def edited(lock: Lock, path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    document = json.loads(msgspec.json.encode(lock))
    edit(document)
    path.write_text(json.dumps(document))
    return path


EDITS: tuple[Callable[[dict[str, Any]], object], ...] = (
    lambda lock: lock["command"]["argv"].append("--trust-remote-code"),
    lambda lock: lock["command"]["argv"].__setitem__(0, "sh"),
    lambda lock: lock["command"]["env"].update(LD_PRELOAD="/tmp/x.so"),  # noqa: S108 - a hostile name, not a file
    lambda lock: lock["plan"]["limits"].update(
        max_sequences=lock["plan"]["limits"]["max_sequences"] + 1, batched_tokens=7
    ),
    lambda lock: lock["plan"]["parallel"].update(devices=[0, 1, 2, 3, 4, 5, 6, 9]),
    lambda lock: lock["plan"]["checkpoint"].update(repo="evil/GLM-4.6"),
    lambda lock: lock["plan"]["checkpoint"].update(download_bytes=1),
    lambda lock: lock["plan"]["checkpoint"].update(revision="--upload-pack=x"),
    lambda lock: lock["engine"].update(version="0.0.1"),
    lambda lock: lock["engine"].update(requirements="evil==1 --hash=sha256:00\n"),
    lambda lock: lock["files"].append({"path": "../../x", "size_bytes": 1}),
    lambda lock: lock["files"].append({"path": "x", "size_bytes": -1}),
    lambda lock: lock.update(more=1),
    lambda lock: lock.update(schema=2),
    lambda lock: lock.update(model="../../etc/passwd"),
    lambda lock: lock.pop("plan"),
    lambda lock: lock["probe"]["accelerators"][0].update(memory_total_bytes=-5),
    lambda lock: lock["plan"].update(command=lock["command"]),
)


@pytest.mark.parametrize("edit", EDITS, ids=range(len(EDITS)))
def test_a_lock_that_was_edited_is_refused(
    lock: Lock, catalog: Catalog, tmp_path: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    path = edited(lock, tmp_path / "a.lock", edit)
    with pytest.raises(LockError) as caught:
        checked(read_lock(path), catalog, path)
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1}', b"null", b" " * (9 << 20)]
)
def test_what_is_no_lock_is_told_and_bounded(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.lock"
    path.write_bytes(content)
    with pytest.raises(LockError):
        read_lock(path)
    with pytest.raises(LockError):
        read_lock(tmp_path)


def test_weights_that_are_not_the_locks_are_refused(lock: Lock, folder: Path) -> None:
    check_weights(lock, folder)
    (folder / "more.txt").write_text("of no matter")
    check_weights(lock, folder)
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(DownloadError, match=r"model\.safetensors has another content"):
        check_weights(lock, folder)
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(DownloadError, match="has 5 bytes, and the lock 7"):
        check_weights(lock, folder)
    (folder / "config.json").unlink()
    with pytest.raises(DownloadError, match=r"config\.json is missing"):
        check_weights(lock, folder)


# --- planned again -----------------------------------------------------------------------------------------


def test_planned_again_it_keeps_what_the_machine_allows(lock: Lock, catalog: Catalog) -> None:
    def plan(spec: str) -> tuple[Any, tuple[str, ...]]:
        report = machine(spec, catalog)

        def one(pins: Pins, context_tokens: int | None) -> Any:
            return api.plan("glm-4.6", hardware=report, pins=pins, context_tokens=context_tokens, known=catalog)

        return replanned(lock, catalog, one)

    same, gone = plan("8xh100")
    assert same.chosen is not None
    assert (same.chosen.limits, gone) == (lock.plan.limits, ())
    other, gone = plan("8xh200")
    assert other.chosen is not None
    assert other.chosen.checkpoint.repo == lock.plan.checkpoint.repo
    small, gone = plan("m3-ultra-512gb")
    assert small.chosen is not None
    assert small.chosen.engine.name != lock.plan.engine.name
    assert "engine" in gone
