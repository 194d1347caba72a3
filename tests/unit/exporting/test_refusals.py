"""What an export refuses, in a sentence that says what would do; and what no artefact ever holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import pytest

import autolaunch
from autolaunch import api
from autolaunch.exporting import ExportOptions, Target, export
from selector.catalog import Catalog
from selector.contract import LaunchPlan
from selector.errors import NoFeasiblePlan, UsageError
from selector.request import Pins
from tests.fakes.clusters import cluster
from tests.fakes.exported import CASES, exported, planned

OPEN = "192.0.2.1"
EVERY: tuple[Target, ...] = get_args(Target)


def tiny(**pins: object) -> LaunchPlan:
    return api.plan("glm-tiny", hardware="cpu-64gb", pins=Pins(**pins), known=Catalog())  # type: ignore[arg-type] # each test gives those of a pin


def refusal(plan: LaunchPlan, to: Target, options: ExportOptions | None = None) -> UsageError:
    with pytest.raises(UsageError) as refused:
        export(plan, to, options=options, catalog=Catalog())
    assert refused.value.hint is None or refused.value.hint[0].islower() or refused.value.hint[0] in "-/1"
    return refused.value


def test_it_is_a_name_of_the_public_api() -> None:
    assert autolaunch.export is export


@pytest.mark.parametrize("to", [each for each in EVERY if each != "shell"])
def test_a_plan_for_a_mac_is_a_script_and_nothing_else(to: Target) -> None:
    refused = refusal(planned("mac"), to)
    assert "Mac" in refused.message and refused.hint is not None and "--to shell" in refused.hint


@pytest.mark.parametrize("to", ["shell", "systemd", "compose"])
def test_a_plan_over_several_machines_is_for_what_has_several(to: Target) -> None:
    refused = refusal(planned("nodes"), to)
    assert "2 machines" in refused.message and refused.hint is not None and "LeaderWorkerSet" in refused.hint


@pytest.mark.parametrize("to", ["kubernetes", "slurm"])
def test_a_replica_that_lies_unequally_on_its_machines_is_no_job_of_equal_ones(to: Target) -> None:
    known = Catalog()
    machines = cluster(known, "8xh100", "4xh100")
    refused = refusal(api.plan("glm-4.6", hardware=machines, pins=Pins(format="bf16"), known=known), to)
    assert "8 on gpu-a, 4 on gpu-b" in refused.message


@pytest.mark.parametrize("to", EVERY)
def test_a_miniature_that_no_hub_has_takes_a_folder(to: Target) -> None:
    refused = refusal(tiny(engine="vllm"), to)
    assert "generated" in refused.message and refused.hint is not None and "--model-path" in refused.hint


@pytest.mark.parametrize("engine", ["mlx", "transformers"])
@pytest.mark.parametrize("to", ["compose", "kubernetes"])
def test_an_engine_without_a_published_image_is_in_no_container(engine: str, to: Target) -> None:
    refused = refusal(tiny(engine=engine), to, ExportOptions(model_path="/m"))
    assert "no container image" in refused.message and refused.hint is not None and "--to shell" in refused.hint


@pytest.mark.parametrize("engine", ["mlx", "transformers"])
def test_an_engine_that_checks_no_key_is_never_open_to_the_network(engine: str) -> None:
    for to, options in (
        ("shell", ExportOptions(model_path="/m", host=OPEN)),
        ("systemd", ExportOptions(model_path="/m", host=OPEN, api_key_file="/k")),
        ("slurm", ExportOptions(model_path="/m")),
        ("shell", ExportOptions(model_path="/m", api_key_file="/k")),
    ):
        assert "checks no key" in refusal(tiny(engine=engine), to, options).message  # type: ignore[arg-type] # targets, all of them


def test_a_unit_that_is_open_to_the_network_takes_a_key() -> None:
    assert "asked for a key" in refusal(planned("gguf"), "systemd", ExportOptions(host=OPEN)).message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (ExportOptions(served_name="a b"), "served name"),
        (ExportOptions(served_name="../x"), "served name"),
        (ExportOptions(port=0), "--port 0"),
        (ExportOptions(port=65_535), "2 replicas"),
        (ExportOptions(model_path="models"), "whole path"),
        (ExportOptions(model_path="/a/../b"), "whole path"),
        (ExportOptions(model_path="/a\nb"), "file of lines"),
        (ExportOptions(model_path="/a\0b"), "file of lines"),
        (ExportOptions(api_key_file="/a\\"), "ends with"),
        (ExportOptions(host="example.com"), "no address"),
        (ExportOptions(extra=("--no-such-option",)), "no option"),
        (ExportOptions(extra=("--port", "1")), "--port"),
    ],
)
def test_what_cannot_stand_in_an_artefact_is_refused(options: ExportOptions, said: str) -> None:
    assert said in refusal(planned("replicas"), "shell", options).message


def test_kubernetes_has_services_and_secrets_of_its_own() -> None:
    assert "secrets" in refusal(planned("replicas"), "kubernetes", ExportOptions(api_key_file="/k")).message
    assert "service" in refusal(planned("replicas"), "kubernetes", ExportOptions(host=OPEN)).message


def test_a_plan_without_a_choice_is_no_artefact() -> None:
    plan = api.plan("glm-4.6", hardware="cpu-64gb", known=Catalog())
    with pytest.raises(NoFeasiblePlan):
        export(plan, "shell", catalog=Catalog())


@dataclass
class Model:
    """What a name has to stay within."""

    name: str
    slug: str


@pytest.mark.parametrize(
    "model",
    [
        Model("zai-org/GLM-4.6", "zai-org-glm-4-6"),
        Model("4.6", "m-4-6"),
        Model("A" * 96, "a" * 40),
        Model("root", "root"),
        Model("x._-", "x"),
    ],
)
@pytest.mark.parametrize("to", EVERY)
def test_a_served_name_gives_names_that_the_target_takes(model: Model, to: Target) -> None:
    files = export(planned("replicas"), to, options=ExportOptions(served_name=model.name), catalog=Catalog()).files
    text = "".join(file.text for file in files)
    assert model.slug in text
    if to == "systemd":  # a user that somebody has already would be that one
        users = {line for file in files for line in file.text.splitlines() if line.startswith("User=")}
        assert users == {f"User=llm-{model.slug}"[:36].rstrip("-")}
        assert all(file.name.startswith(f"llm-{model.slug}") for file in files)


def test_no_token_of_this_process_and_no_key_is_in_any_artefact(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "VLLM_API_KEY", "LLAMA_API_KEY", "AUTOLAUNCH_ENGINE_KEY"):
        monkeypatch.setenv(name, "sentinel-of-a-secret")
    for name, case in CASES.items():
        for to in case.targets:
            assert all("sentinel" not in file.text for file in exported(name, to).files)


@pytest.mark.parametrize("to", EVERY)
def test_a_key_is_in_no_command_line(to: Target) -> None:
    text = "".join(file.text for file in exported("gguf", to).files)
    assert "--api-key " not in text and "LLAMA_API_KEY" in text


@pytest.mark.parametrize("revision", ["x\nrm -rf /\n#", "-x", "x\x1b[2J", " "])
def test_a_revision_that_is_no_name_is_in_no_artefact(revision: str) -> None:
    plan = api.plan("glm-4.6", hardware="8xh200", known=Catalog(), pins=Pins(revision=revision))
    for to in EVERY:
        assert "file of lines" in refusal(plan, to).message


def test_options_for_the_engine_are_its_own_words() -> None:
    options = ExportOptions(extra=("--seed", "7"))
    (file,) = export(planned("nodes"), "slurm", options=options, catalog=Catalog()).files
    assert "    --seed 7" in file.text


def test_a_host_by_its_name_is_the_address() -> None:
    (file,) = export(planned("replicas"), "compose", options=ExportOptions(host="localhost"), catalog=Catalog()).files
    assert '"127.0.0.1:8001:8000"' in file.text


@pytest.mark.parametrize("to", ["systemd", "compose", "shell"])
def test_replicas_of_several_machines_are_not_put_on_one(to: Target) -> None:
    plan = api.plan("glm-4.6", hardware="2x8xh200", pins=Pins(engine="vllm", data_parallel=4))
    assert "2 machines" in refusal(plan, to).message


def test_each_replica_on_amd_has_devices_of_its_own() -> None:
    plan = api.plan("glm-4.6", hardware="8xmi300x", pins=Pins(engine="vllm", tensor_parallel=4, data_parallel=2))
    text = export(plan, "compose").files[0].text
    assert "0,1,2,3" in text
    assert "4,5,6,7" in text


def test_another_revision_is_another_folder_mark_and_job() -> None:
    one, other = (
        export(api.plan("glm-4.6", hardware="8xh200", pins=Pins(revision=revision)), "kubernetes").files[0].text
        for revision in ("a" * 40, "b" * 40)
    )
    for named in (f".whole-{'a' * 40}", "-weights-aaaaaaaaaaaa", f"--{'a' * 40}/"):
        assert named in one
        assert named not in other
