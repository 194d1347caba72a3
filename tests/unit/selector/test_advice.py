"""Advice is a plan that was made: applied, it holds. Tests type the commands again and look at what comes of them."""

from __future__ import annotations

import re
import shlex
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from autolaunch import api
from autolaunch.cli.app import autolaunch
from selector.advice import advise
from selector.asked import PlanRequest
from selector.case import Case, Shelf
from selector.catalog import Catalog
from selector.contract import Advice, LaunchPlan
from selector.devices import GIB, MIB
from selector.fitting import with_wired_limit
from selector.hardware import DeviceProcess, HardwareReport
from selector.machines import hardware_names, report_from_spec
from selector.request import Pins
from selector.search import decide
from selector.smallest import COUNTS, SEVERAL

CASES = [
    ("glm-4.6", "2xh100", {}),
    ("glm-4.6", "8xh200", {}),
    ("glm-4.6", "m3-ultra-256gb", {}),
    ("glm-4.6", "m2-ultra-192gb", {"context_tokens": 32_768}),
    ("glm-4.6", "4xh100", {"pins": Pins(quantization="FP8")}),
    ("glm-4.6", "4xh100", {"pins": Pins(format="gptq"), "objective": "context"}),
    ("glm-4.6", "8xrtx4090", {"context_tokens": 131_072}),
    ("glm-4.6", "8xh200", {"pins": Pins(tensor_parallel=3)}),
    ("glm-4.5v", "1xh100", {"concurrency": 200}),
    ("glm-4.5v", "1xrtx4090", {"workload": "long-context"}),
]


def thorough(catalog: Catalog, model: str, machine: HardwareReport | str, **asked: Any) -> LaunchPlan:
    return api.plan(model, hardware=machine, known=catalog, thorough=True, **asked)


def typed_again(advice: Advice) -> LaunchPlan:
    """The plan of an advice's command, through the command line."""
    assert advice.command is not None
    words = shlex.split(advice.command)
    assert words[:2] == ["autolaunch", "plan"]
    result = CliRunner().invoke(autolaunch, [*words[1:], "--json"])
    assert result.exit_code == 0, f"{advice.command}: {result.output[-300:]}"
    return msgspec.json.decode(result.stdout, type=LaunchPlan)


@pytest.mark.parametrize(("model", "machine", "asked"), CASES, ids=str)
def test_every_advice_holds_when_its_command_is_typed(
    catalog: Catalog, model: str, machine: str, asked: dict[str, Any]
) -> None:
    plan = thorough(catalog, model, machine, **asked)
    commands = [each for each in plan.advice if each.command and each.command.startswith("autolaunch")]
    assert commands
    assert len({(each.kind, each.message) for each in plan.advice}) == len(plan.advice), "nothing is said twice"
    for advice in commands:
        chosen = typed_again(advice).chosen
        assert chosen is not None
        if "context_tokens" in advice.numbers:
            assert chosen.limits.context_tokens == advice.numbers["context_tokens"], advice
        if "requests" in advice.numbers:
            held = Case(catalog.model(model), plan.hardware, request_of(plan), catalog).held(chosen)
            assert held == advice.numbers["requests"], advice
        if advice.kind == "hardware" and "memory_bytes" in advice.numbers:
            assert chosen.checkpoint.quantization.lower() in advice.message.lower()
            assert chosen.engine.name in advice.message


def request_of(plan: LaunchPlan) -> PlanRequest:
    request = PlanRequest(model=plan.model)
    lengths = {"input_tokens": plan.request.input_tokens, "output_tokens": plan.request.output_tokens}
    return msgspec.structs.replace(request, workload=msgspec.structs.replace(request.workload, **lengths))


def test_what_a_plan_shows_by_itself_is_part_of_the_whole_advice(catalog: Catalog) -> None:
    for machine in ("1xh100", "m3-ultra-256gb"):
        short = api.plan("glm-4.6", hardware=machine, known=catalog).advice
        whole = thorough(catalog, "glm-4.6", machine).advice
        assert {each.command for each in short if each.kind != "hardware"} <= {each.command for each in whole}


# --- the smallest machines --------------------------------------------------------------------------


def machines_of(plan: LaunchPlan) -> list[Advice]:
    return [each for each in plan.advice if each.kind == "hardware" and "memory_bytes" in each.numbers]


@pytest.mark.parametrize("model", ["glm-4.6", "glm-4.5v", "glm-4.5-air"])
def test_the_smallest_machines_come_with_the_fewest_devices_and_then_the_least_memory_first(
    catalog: Catalog, model: str
) -> None:
    sizes = [
        (each.numbers["devices"], each.numbers["memory_bytes"])
        for each in machines_of(thorough(catalog, model, "cpu-64gb"))
    ]
    assert sizes == sorted(sizes)
    assert len(sizes) >= 5


@pytest.mark.parametrize("model", ["glm-4.6", "glm-4.5v"])
def test_nothing_smaller_of_the_family_would_do(catalog: Catalog, model: str) -> None:
    """Every machine of the first named one's family that is smaller is planned, and none of them serves the model."""
    found = machines_of(thorough(catalog, model, "cpu-64gb"))
    request = PlanRequest(model=model)
    for advice in found:
        machine = advice.message.partition(":")[0]
        own = catalog.accelerator_for(report_from_spec(machine, catalog).accelerators[0])
        assert own is not None
        for name in hardware_names(catalog):
            devices = report_from_spec(name, catalog).accelerators
            facts = catalog.accelerator_for(devices[0]) if devices else None
            if facts is None or (facts.vendor, facts.architecture.split()[0]) != (
                own.vendor,
                own.architecture.split()[0],
            ):
                continue
            for count in (1,) if devices[0].memory_kind == "unified" else COUNTS:
                size = (count, count * (devices[0].memory_total_bytes or 0))
                if size >= (advice.numbers["devices"], advice.numbers["memory_bytes"]):
                    continue
                smaller = report_from_spec(name if count == 1 else f"{count}x{name}", catalog)
                assert not decide(catalog.model(model), smaller, request, catalog).ranked, (machine, count, name)


def test_the_machines_are_of_several_vendors_and_not_ten_of_the_same(catalog: Catalog) -> None:
    vendors = []
    for advice in machines_of(thorough(catalog, "glm-4.6", "cpu-64gb")):
        report = report_from_spec(advice.message.partition(":")[0], catalog)
        vendors.append(report.accelerators[0].vendor)
    assert set(vendors) == {"nvidia", "amd", "apple"}
    assert all(vendors.count(vendor) <= SEVERAL[vendor] for vendor in SEVERAL)


def test_machines_for_weights_that_were_asked_for_hold_those_weights(catalog: Catalog) -> None:
    found = machines_of(thorough(catalog, "glm-4.6", "2xh100", pins=Pins(quantization="FP8")))
    assert found
    assert all("FP8" in each.message and "--quantization FP8" in (each.command or "") for each in found)


def test_a_wish_is_part_of_the_command_of_a_machine(catalog: Catalog) -> None:
    found = machines_of(thorough(catalog, "glm-4.6", "2xh100", context_tokens=131_072, objective="latency"))
    assert found
    for advice in found:
        assert advice.numbers["context_tokens"] == 131_072
        assert "--context 131072" in (advice.command or "")
        assert "--objective latency" in (advice.command or "")


def test_more_of_the_devices_that_are_here_come_before_other_machines(catalog: Catalog) -> None:
    plan = api.plan("glm-4.6", hardware="1xh100", known=catalog)
    machines = [each for each in plan.advice if each.kind == "hardware"]
    more = ("2xh100", "4xh100", "8xh100")
    fewest = next(name for name in more if api.plan("glm-4.6", hardware=name, known=catalog).feasible)
    assert machines[0].message.startswith(f"{fewest}: ")


def test_the_smallest_machines_are_named_also_when_it_fits(catalog: Catalog) -> None:
    assert machines_of(thorough(catalog, "glm-4.6", "8xh200"))
    assert not machines_of(api.plan("glm-4.6", hardware="8xh200", known=catalog))


def test_an_empty_shelf_names_no_machine(catalog: Catalog) -> None:
    report, request = report_from_spec("1xrtx4090", catalog), PlanRequest(model="glm-4.6")
    model = catalog.model("glm-4.6")
    decision = decide(model, report, request, catalog)
    cpu = report_from_spec("cpu-64gb", catalog)
    given = advise(model, report, request, catalog, decision, lambda: Shelf((), lambda _: cpu), thorough=True)
    assert [each for each in given if each.kind == "hardware"] == []


def test_machines_that_cannot_hold_the_smallest_file_are_not_planned(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count, not a timing: of some 170 machines a plan is made for few."""
    tried: list[dict[str, Any]] = []
    plain = Case.decided

    def counted(self: Case, **given: Any) -> Any:
        tried.append(given)
        return plain(self, **given)

    monkeypatch.setattr(Case, "decided", counted)
    thorough(catalog, "glm-4.6", "cpu-64gb")
    assert len(tried) < 60
    least = min(each.download_bytes for each in catalog.model("glm-4.6").checkpoints if each.quality >= 0.9)
    for given in tried:
        if given.get("report") is not None:
            assert sum(each.memory_total_bytes or 0 for each in given["report"].accelerators) >= 0.9 * least


# --- what would make it fit -------------------------------------------------------------------------


def busy(report: HardwareReport, free: dict[int, int]) -> HardwareReport:
    """The report with some devices filled by other processes, so many GiB of each left."""
    holder = (DeviceProcess(pid=4711, name="trainer", used_bytes=GIB),)
    devices = tuple(
        msgspec.structs.replace(each, memory_free_bytes=free[each.index] * GIB, processes=holder)
        if each.index in free
        else each
        for each in report.accelerators
    )
    return msgspec.structs.replace(report, accelerators=devices)


def test_only_the_devices_that_have_to_be_freed_are_named(catalog: Catalog) -> None:
    pins = Pins(quantization="FP8", tensor_parallel=8)  # all eight are needed, and 78 GiB of one are enough
    report = busy(report_from_spec("8xh100", catalog), {2: 10, 5: 78})
    plan = thorough(catalog, "glm-4.6", report, pins=pins)
    assert not plan.feasible
    (advice,) = [each for each in plan.advice if each.kind == "free_gpu"]
    assert advice.numbers["devices"] == 1
    assert "device 2: " in advice.message
    assert "trainer (4711)" in advice.message
    assert "device 5" not in advice.message
    freed = api.plan("glm-4.6", hardware=busy(report_from_spec("8xh100", catalog), {5: 78}), known=catalog, pins=pins)
    assert freed.chosen is not None
    assert freed.chosen.limits.context_tokens == advice.numbers["context_tokens"]


@pytest.mark.parametrize(("machine", "feasible"), [("m2-ultra-192gb", False), ("m3-ultra-256gb", True)])
def test_the_sysctl_gives_what_it_promises(catalog: Catalog, machine: str, feasible: bool) -> None:
    plan = thorough(catalog, "glm-4.6", machine)
    assert plan.feasible is feasible
    (advice,) = [each for each in plan.advice if each.kind == "sysctl"]
    megabytes = int((advice.command or "").rpartition("=")[2])
    assert advice.command == f"sudo sysctl iogpu.wired_limit_mb={megabytes}"
    raised = with_wired_limit(report_from_spec(machine, catalog), megabytes * MIB)
    after = api.plan("glm-4.6", hardware=raised, known=catalog).chosen
    assert after is not None
    assert after.limits.context_tokens == advice.numbers["context_tokens"]
    if plan.chosen is not None:
        assert after.limits.context_tokens > plan.chosen.limits.context_tokens


def test_weights_that_do_not_fit_are_answered_with_those_that_do(catalog: Catalog) -> None:
    plan = thorough(catalog, "glm-4.6", "4xh100", pins=Pins(quantization="FP8"))
    assert not plan.feasible
    (advice,) = [each for each in plan.advice if each.kind == "engine"]
    assert "of the original's quality" in advice.message
    other = typed_again(advice).chosen
    assert other is not None
    assert other.checkpoint.quantization in advice.message


def test_a_context_that_does_not_fit_is_answered_with_the_longest_that_does(catalog: Catalog) -> None:
    plan = thorough(catalog, "glm-4.6", "8xrtx4090", context_tokens=131_072)
    assert not plan.feasible
    (advice,) = [each for each in plan.advice if each.kind == "context"]
    longest = int(advice.numbers["context_tokens"])
    assert api.plan("glm-4.6", hardware="8xrtx4090", known=catalog, context_tokens=longest).feasible
    assert not api.plan("glm-4.6", hardware="8xrtx4090", known=catalog, context_tokens=longest + 1024).feasible


# --- what would do more -----------------------------------------------------------------------------


def test_nearer_weights_are_advised_with_what_they_cost(catalog: Catalog) -> None:
    plan = thorough(catalog, "glm-4.6", "8xh200")
    (advice,) = [each for each in plan.advice if each.kind == "engine" and "MTP" not in each.message]
    assert re.search(r"keeps 100% .* instead of 99\.5%, with a context of 202,752, at \d+ tokens/s", advice.message)
    nearer = typed_again(advice).chosen
    assert nearer is not None
    assert nearer.checkpoint.quantization == "BF16"


def test_the_original_weights_have_none_above_them(catalog: Catalog) -> None:
    plan = thorough(catalog, "glm-4.6", "8xh200", pins=Pins(quantization="BF16"))
    assert [each for each in plan.advice if each.kind == "engine" and "MTP" not in each.message] == []


def test_speculation_that_was_not_searched_is_advised_with_what_it_gives(catalog: Catalog) -> None:
    plan = thorough(catalog, "glm-4.6", "8xh200")
    (advice,) = [each for each in plan.advice if "MTP" in each.message]
    quicker = typed_again(advice).chosen
    assert plan.chosen is not None
    assert quicker is not None
    assert (plan.chosen.limits.speculative, quicker.limits.speculative) == ("off", "mtp")
    assert (quicker.speed.decode_tokens_per_second or 0) > 1.2 * (plan.chosen.speed.decode_tokens_per_second or 0)
    latency = thorough(catalog, "glm-4.6", "8xh200", objective="latency")
    assert latency.chosen is not None
    assert latency.chosen.limits.speculative == "mtp"
    assert not any("MTP" in each.message for each in latency.advice)


def test_a_model_without_an_mtp_layer_is_advised_none(catalog: Catalog) -> None:
    assert not any("MTP" in each.message for each in thorough(catalog, "glm-4.5v", "8xh200").advice)


def test_a_longer_context_than_the_best_plan_has_is_advised(catalog: Catalog) -> None:
    plan = thorough(catalog, "glm-4.6", "m3-ultra-256gb")
    assert plan.chosen is not None
    (advice,) = [each for each in plan.advice if each.kind == "context"]
    assert advice.numbers["context_tokens"] > plan.chosen.limits.context_tokens


def test_requests_that_would_wait_are_told_what_would_hold_them(catalog: Catalog) -> None:
    """Fewer than were asked for run at once on one H100; the advice says how many, and what holds all of them."""
    plan = thorough(catalog, "glm-4.5v", "1xh100", concurrency=200)
    loads = [int(found[1]) for each in plan.advice if (found := re.search(r"--concurrency (\d+)", each.command or ""))]
    fewer = [load for load in loads if load != 200]
    assert len(fewer) == 1
    assert 1 < fewer[0] < 200
    more = [each for each in plan.advice if each.kind == "hardware" and "2xh100" in each.message]
    assert more
    assert "--concurrency 200" in (more[0].command or "")


def test_what_holds_all_requests_is_advised_beside_a_plan_that_holds_fewer(catalog: Catalog) -> None:
    """A plan that lets requests wait: the pinned batch is smaller than the load, and leaving it free holds all."""
    report = report_from_spec("1xh100", catalog)
    model = catalog.model("glm-4.5v")
    small = PlanRequest(model="glm-4.5v", pins=Pins(engine="vllm"))
    decision = decide(model, report, small, catalog)
    held = Case(model, report, small, catalog).held(decision.ranked[0])
    asked = msgspec.structs.replace(small, concurrency=held + 1)
    shelf = Shelf(hardware_names(catalog), lambda name: report_from_spec(name, catalog))
    given = advise(model, report, asked, catalog, decision, lambda: shelf, "1xh100")
    machines = [each for each in given if each.kind == "hardware"]
    assert [each.command for each in machines] == [
        f"autolaunch plan glm-4.5v --hardware 2xh100 --concurrency {held + 1} --engine vllm"
    ]
    assert machines[0].numbers["requests"] >= held + 1
    assert all(
        f"{held:,} of {held + 1:,} requests run at once, the others wait" in each.message
        for each in given
        if each.kind in ("hardware", "kv_cache")
    )
    after = typed_again(machines[0]).chosen
    assert after is not None
    assert Case(model, report, asked, catalog).held(after) == machines[0].numbers["requests"]


def test_an_engine_is_not_left_free_without_its_version(catalog: Catalog) -> None:
    """A version alone would be a usage error, and the advice could not be typed."""
    pins = Pins(engine="sglang", engine_version="0.5.23")
    plan = api.plan("glm-tiny", hardware="cpu-64gb", pins=pins, known=catalog)
    told = next(each for each in plan.advice if each.kind == "engine")
    assert "engine and engine version are left free" in told.message
    assert told.command is not None
    assert "--engine" not in told.command
