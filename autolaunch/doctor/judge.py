"""Every check over what was read, in the order of what has to work first; and what a launch would exit with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from autolaunch.doctor import checks_gpu, checks_host, checks_place
from autolaunch.doctor.facts import Facts, Finding
from autolaunch.doctor.floors import Floors
from selector.errors import ConfigurationError, EngineError, NoFeasiblePlan, NoRoomOnDisk, ProbeError

Check = Callable[[Facts, Floors], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    checks_gpu.driver,
    checks_gpu.device_nodes,
    checks_gpu.health,
    checks_gpu.links,
    checks_place.configuration,
    checks_place.plan,
    checks_host.apple,
    checks_place.folders,
    checks_place.room,
    checks_host.tools,
    checks_place.ports,
    checks_host.shared_memory,
    checks_host.limits,
    checks_host.memory,
    checks_host.clock,
    checks_place.hubs,
    checks_gpu.holders,
    checks_place.left,
    checks_gpu.clocks,
    checks_place.disk,
    checks_place.secrets,
    checks_host.container,
)
_ORDER = {"stops": 0, "slows": 1, "info": 2}
#: What a launch would exit with, by the beginning of a finding's code; every other stops the engine.
_EXITS = {
    "driver.": ProbeError.exit_code,
    "configuration": ConfigurationError.exit_code,
    "plan.": NoFeasiblePlan.exit_code,
    "apple.": NoFeasiblePlan.exit_code,
    "disk.room": NoRoomOnDisk.exit_code,
    "hub.": NoRoomOnDisk.exit_code,
}


def judged(facts: Facts, floors: Floors) -> tuple[Finding, ...]:
    """What is wrong: what stops a launch first, then what slows it, then what is good to know."""
    found = [each for check in CHECKS for each in check(facts, floors)]
    return tuple(sorted(found, key=lambda each: _ORDER[each.severity]))


def exit_code(findings: tuple[Finding, ...]) -> int:
    """0 where nothing would stop a launch; else what the launch would exit with, by the first that stops it."""
    first = next((each for each in findings if each.severity == "stops"), None)
    if first is None:
        return 0
    return next((code for begins, code in _EXITS.items() if first.code.startswith(begins)), EngineError.exit_code)
