"""A fleet's file: what is right is planned, and what is wrong is told by its key."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import msgspec
import pytest

import autolaunch
from autolaunch import api
from selector.catalog import Catalog
from selector.errors import AutolaunchError, ConfigurationError, UsageError
from selector.machines import report_from_spec
from selector.request import Pins

HOST = '[[hosts]]\nname = "a"\nhardware = "4xh100"\n'
DEPLOYMENT = '[[deployments]]\nmodel = "glm-4.5v"\n'


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOLAUNCH_HOME", str(tmp_path / "home"))


def fleet(folder: Path, text: str, name: str = "fleet.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_what_may_be_left_out_is_filled_in(tmp_path: Path, catalog: Catalog) -> None:
    plan = autolaunch.plan_fleet(str(fleet(tmp_path, HOST + DEPLOYMENT)), known=catalog)
    assert (plan.schema, plan.objective, plan.feasible, plan.hosts, plan.devices) == (1, "throughput", True, 1, 4)
    (served,) = plan.deployments
    assert (served.name, served.minimum_replicas, served.maximum_replicas, served.weight) == ("glm-4.5v", 1, None, 1.0)
    assert [on for each in plan.placements for on in each.on] == [("a/1",)] * served.replicas


def test_a_json_file_and_values_say_the_same_as_a_toml_file(tmp_path: Path, catalog: Catalog) -> None:
    toml = HOST + 'names = ["x", "y"]\n' + DEPLOYMENT + 'context_tokens = "32k"\npinned = { engine = "vllm" }\n'
    asked = autolaunch.FleetRequest(
        hosts=(autolaunch.HostGroup(name="a", hardware="4xh100", names=("x", "y")),),
        deployments=(
            autolaunch.FleetDeployment(
                name="glm-4.5v", model="glm-4.5v", context_tokens=32_768, pinned=Pins(engine="vllm")
            ),
        ),
    )
    as_json = msgspec.json.encode(asked).decode()
    told = {
        autolaunch.plan_fleet(each, known=catalog).to_json()
        for each in (fleet(tmp_path, toml), fleet(tmp_path, as_json, "fleet.json"), asked)
    }
    assert len(told) == 1
    assert json.loads(told.pop())["placements"][0]["on"][0] == ["x"]


def test_a_recorded_host_lies_beside_the_file(tmp_path: Path, catalog: Catalog) -> None:
    report = msgspec.structs.replace(report_from_spec("4xh100", catalog), findings=())
    (tmp_path / "host.json").write_text(report.to_json())
    text = HOST.replace("4xh100", "host.json") + DEPLOYMENT
    recorded = autolaunch.plan_fleet(fleet(tmp_path, text), known=catalog)
    assert [each.hardware for each in recorded.hardware] == ["4 × NVIDIA H100 80GB HBM3"]
    named = autolaunch.plan_fleet(fleet(tmp_path, HOST + DEPLOYMENT), known=catalog)
    assert recorded.value == named.value


WRONG = {
    "": ("hosts: there are none", "[[hosts]]"),
    HOST: ("deployments: there are none", "[[deployments]]"),
    "hosts = 3": ("hosts: is no list of tables", "[[hosts]]"),
    "a = [": ("not TOML", None),
    "schema = 2\n" + HOST + DEPLOYMENT: ("schema: is '2', and this release reads 1", None),
    "objective = 'thruput'\n" + HOST + DEPLOYMENT: ("did you mean 'throughput'?", None),
    HOST.replace("hardware", "hardwear") + DEPLOYMENT: (
        "hosts[0].hardwear: unknown key, did you mean 'hardware'?",
        None,
    ),
    HOST.replace("4xh100", "4xh1000") + DEPLOYMENT: ("hosts[0].hardware: no accelerator", "did you mean 4xh100"),
    HOST.replace("4xh100", "2x4xh100") + DEPLOYMENT: ("hosts[0].hardware: is 2 hosts", "count = 2"),
    HOST.replace("4xh100", "none.json") + DEPLOYMENT: ("there is no such file", "autolaunch probe --json"),
    HOST + "count = 0\n" + DEPLOYMENT: ("hosts[0].count: is 0", None),
    HOST + "count = 2\nnames = ['x']\n" + DEPLOYMENT: ("hosts[0].count: and names both", None),
    HOST + "names = ['x', 'x']\n" + DEPLOYMENT: ("hosts[0].names: 'x' is a host of hosts[0] already", None),
    HOST + "count = 99999999\n" + DEPLOYMENT: ("hosts[0].count: is 99,999,999", None),
    HOST + HOST + DEPLOYMENT: ("hosts[1].name: 'a' is taken by hosts[0]", None),
    HOST + DEPLOYMENT + DEPLOYMENT: ("deployments[1].name: 'glm-4.5v' is taken by deployments[0]", None),
    HOST + DEPLOYMENT.replace("glm-4.5v", "glm-4.5w"): ("deployments[0].model: no model", "did you mean glm-4.5v?"),
    HOST + DEPLOYMENT + "contxt_tokens = 4\n": ("did you mean 'context_tokens'?", None),
    HOST + DEPLOYMENT + "context_tokens = 'many'\n": ("deployments[0].context_tokens: 'many' is not a number", None),
    HOST + DEPLOYMENT + "concurrency = 0\n": ("deployments[0]: concurrency is 0", None),
    HOST + DEPLOYMENT + "minimum_replicas = -1\n": ("deployments[0].minimum_replicas: is -1", None),
    HOST + DEPLOYMENT + "minimum_replicas = 3\nmaximum_replicas = 2\n": ("less than minimum_replicas, 3", None),
    HOST + DEPLOYMENT + "maximum_replicas = 0\n": ("deployments[0].maximum_replicas: is 0", None),
    HOST + DEPLOYMENT + "weight = 0\n": ("deployments[0].weight: is 0", None),
    HOST + DEPLOYMENT + "weight = nan\n": ("deployments[0].weight: is nan", None),
    HOST + DEPLOYMENT + "pinned = { gpus = [0] }\n": ("deployments[0].pinned.gpus", "gpu_count"),
    HOST + DEPLOYMENT + "pinned = { data_parallel = 2 }\n": ("deployments[0].pinned.data_parallel", "minimum_replicas"),
    HOST + DEPLOYMENT + "pinned = { repo = 'zai-org/GLM-4.6' }\n": ("deployments[0].pinned: no checkpoint", None),
    HOST + DEPLOYMENT + "pinned = { engine = 'vlm' }\n": ("did you mean 'vllm'?", None),
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: WRONG[text][0][:40])
def test_what_is_wrong_is_told_by_its_key(text: str, tmp_path: Path, catalog: Catalog) -> None:
    message, hint = WRONG[text]
    path = fleet(tmp_path, text)
    with pytest.raises(ConfigurationError) as told:
        autolaunch.plan_fleet(path, known=catalog)
    assert told.value.message.startswith(f"{path}: ")
    assert message in told.value.message
    assert hint is None or (told.value.hint is not None and hint in told.value.hint)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "fleet.toml", "no such file"),
        (b"\xff", "fleet.toml", "not UTF-8"),
        (b"[1]", "fleet.json", "is no table"),
        (b"{", "fleet.json", "not JSON"),
        (b"[" * 100_000, "fleet.json", "nested too deeply"),
        (b"a = " + b"9" * 5000, "fleet.toml", "not TOML"),
    ],
)
def test_a_file_that_is_none_is_told(
    content: bytes | None, name: str, message: str, tmp_path: Path, catalog: Catalog
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        autolaunch.plan_fleet(tmp_path / name, known=catalog)


def test_values_that_are_wrong_are_the_callers_fault(catalog: Catalog) -> None:
    asked = autolaunch.FleetRequest(
        hosts=(autolaunch.HostGroup(name="a", hardware="4xh100", count=-2),),
        deployments=(autolaunch.FleetDeployment(name="b", model="glm-4.6"),),
    )
    with pytest.raises(UsageError, match=r"the fleet: hosts\[0\].count: is -2"):
        autolaunch.plan_fleet(asked, known=catalog)


def test_a_report_that_no_machine_has_is_refused(catalog: Catalog) -> None:
    report = msgspec.structs.replace(report_from_spec("4xh100", catalog), nodes=0)
    asked = autolaunch.FleetRequest(
        hosts=(autolaunch.HostGroup(name="a", hardware=report),),
        deployments=(autolaunch.FleetDeployment(name="b", model="glm-4.6"),),
    )
    with pytest.raises(AutolaunchError, match=r"hosts\[0\].hardware: .*nodes"):
        autolaunch.plan_fleet(asked, known=catalog)


def test_the_time_for_names_of_hosts_grows_with_their_number(catalog: Catalog) -> None:
    """Each held against all others, these took a minute."""
    fleet = autolaunch.FleetRequest(
        hosts=(autolaunch.HostGroup(name="a", hardware="8xh100", names=tuple(f"h{each}" for each in range(60_000))),),
        deployments=(autolaunch.FleetDeployment(name="b", model="glm-4.6"),),
    )
    began = time.process_time()
    assert autolaunch.plan_fleet(fleet, known=catalog).hosts == 60_000
    assert time.process_time() - began < 5


def test_an_exact_plan_without_the_solver_says_what_to_install(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    path = fleet(tmp_path, HOST + DEPLOYMENT)
    with pytest.raises(UsageError) as told:
        autolaunch.plan_fleet(path, known=catalog, method="exact")
    assert told.value.hint == "pip install 'glm-autolaunch[fleet]'"
    with pytest.raises(UsageError, match="no method is called 'fast'"):
        autolaunch.plan_fleet(path, known=catalog, method="fast")  # type: ignore[arg-type]  # what is tried


def test_without_the_solver_a_fleet_has_the_heuristics_plan(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fleet(tmp_path, HOST + DEPLOYMENT)
    assert autolaunch.plan_fleet(path, known=catalog).method == "exact"
    monkeypatch.setattr("selector.fleet.exact.installed", lambda: False)
    assert autolaunch.plan_fleet(path, known=catalog).method == "heuristic"


def test_the_users_own_catalogue_is_read_where_none_is_given(tmp_path: Path) -> None:
    path = fleet(tmp_path, HOST + DEPLOYMENT)
    assert autolaunch.plan_fleet(path).to_json() == autolaunch.plan_fleet(path, known=api.catalog()).to_json()
