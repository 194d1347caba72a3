"""A plan for many hosts and many models, from a file or from values. Nothing is started, and no host is asked."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from autolaunch.daemon.wrong_key import WrongKey, at
from autolaunch.given import TOKENS_BELOW, is_word, served_name, tokens
from selector.asked import PlanRequest
from selector.catalog import Catalog, shown
from selector.errors import ConfigurationError, UsageError
from selector.fleet.asked import FleetDeployment, FleetMethod, FleetRequest, HostGroup
from selector.fleet.contract import FleetPlan
from selector.fleet.options import Wanted
from selector.hardware import HardwareReport
from selector.request import WORKLOADS
from selector.values import readable
from selector.wishes import checked_figures, pins_on_checkpoints, workload_of

#: The largest file that is read: hosts are told in groups, so it only grows with reports that stand in it.
MAXIMUM_BYTES = 16 << 20
MAXIMUM_HOSTS = 100_000
MAXIMUM_GROUPS = 10_000
MAXIMUM_DEPLOYMENTS = 200
MAXIMUM_REPLICAS = 1_000_000
#: A weight is a share of attention: beyond this range others would not count at all.
WEIGHTS = (0.001, 1_000.0)

_TOKENS = ("context_tokens", "input_tokens", "output_tokens")
_FIRST = "the guide on many hosts (docs/guides/fleet.md) shows a first one"


def plan_fleet(
    fleet: FleetRequest | Path | str, *, known: Catalog | None = None, method: FleetMethod | None = None
) -> FleetPlan:
    """Decide which deployments go on which hosts.

        plan = autolaunch.plan_fleet("fleet.toml")
        for each in plan.deployments:
            print(each.name, each.replicas, each.throughput_tokens_per_second)

    Args:
        fleet: the hosts and what they are to serve, or the path of a TOML or JSON file of them.
        known: the catalogue; ``None`` reads the shipped one and the user's.
        method: ``"exact"`` for the best plan there is, however long it takes (needs the extra ``fleet``);
            ``"heuristic"`` for one that is near it; ``None`` is exact where the extra is there and is done soon.

    Returns:
        The plan; ``feasible`` is false where a deployment has fewer replicas than its minimum.

    Raises:
        ConfigurationError: the file cannot be read or something in it is wrong; the message holds the key's path.
        UsageError: something in ``fleet`` is wrong, or ``method`` is ``"exact"`` and cannot be.
        ProfileError: a profile is wrong.
    """
    from autolaunch.api import catalog
    from selector.fleet.exact import NoSolver, Unsolved
    from selector.fleet.plan import fleet_plan

    if method not in (None, "exact", "heuristic"):
        raise UsageError(f"no method is called {shown(str(method))}", hint="exact, heuristic, or None")
    known = catalog() if known is None else known
    place = "the fleet" if isinstance(fleet, FleetRequest) else shown(str(fleet))[1:-1]
    try:
        if isinstance(fleet, FleetRequest):
            request, folder = _converted(msgspec.to_builtins(fleet)), Path()
        else:
            request, folder = _converted(_document(Path(fleet))), Path(fleet).parent
        hosts, wanted = _hosts(request, folder, known), _wanted(request, known)
    except WrongKey as wrong:
        told = f"{place}: {wrong.key}: {wrong.reason}" if wrong.key else f"{place}: {wrong.reason}"
        kind = UsageError if isinstance(fleet, FleetRequest) else ConfigurationError
        raise kind(told, hint=wrong.hint) from wrong
    try:
        return fleet_plan(request.objective, hosts, wanted, known, method=method)
    except NoSolver as error:
        raise UsageError(
            "an exact plan needs HiGHS, which is not installed", hint="pip install 'glm-autolaunch[fleet]'"
        ) from error
    except Unsolved as error:
        raise UsageError(
            f"there is no exact plan: {error}", hint="take the heuristic, or leave the method out"
        ) from error


# --- the file ---------------------------------------------------------------------------------------


def _document(path: Path) -> dict[str, object]:
    from autolaunch.daemon import small_file

    try:
        content = small_file.read(path, MAXIMUM_BYTES).content
    except small_file.Unreadable as error:
        raise WrongKey("", error.reason, _FIRST if error.missing else None) from error
    form = "JSON" if path.suffix.lower() == ".json" else "TOML"
    try:
        text = content.decode()
        found = msgspec.json.decode(text) if form == "JSON" else _toml(text)
    except UnicodeDecodeError as error:
        raise WrongKey("", f"not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise WrongKey("", "nested too deeply") from error
    except (msgspec.DecodeError, ValueError) as error:  # also a number of more digits than Python reads
        raise WrongKey("", f"not {form}: {shown(str(error))[1:-1]}") from error
    if not isinstance(found, dict):
        raise WrongKey("", "is no table of hosts and deployments", _FIRST)
    return found


def _toml(text: str) -> object:
    import tomli

    return tomli.loads(text)


def _converted(document: dict[str, object]) -> FleetRequest:
    """The request that a document says, its numbers of tokens perhaps written as ``"128k"``."""
    if document.get("schema", 1) != 1:
        raise WrongKey("schema", f"is {shown(str(document['schema']))}, and this release reads 1")
    for name, begins in (("hosts", "[[hosts]]"), ("deployments", "[[deployments]]")):
        entries = document.get(name, [])
        if not isinstance(entries, list | tuple):
            raise WrongKey(name, "is no list of tables", f"each begins with a line {begins}")
        if not entries:
            raise WrongKey(name, "there are none", f"a line {begins}, and its keys below; {_FIRST}")
    for index, entry in enumerate(_entries(document, "deployments")):
        if not isinstance(entry, dict):
            continue
        if isinstance(entry.get("model"), str):
            entry.setdefault("name", entry["model"])
        for name in _TOKENS:
            if isinstance(text := entry.get(name), str):
                entry[name] = tokens(text)
                if entry[name] is None:
                    raise WrongKey(
                        f"deployments[{index}].{name}", f"{shown(text)} is not a number of tokens such as 32768 or 32k"
                    )
    try:
        return msgspec.convert(document, readable(FleetRequest))
    except msgspec.ValidationError as error:
        from selector.mismatch import explain

        raise WrongKey("", explain(error, FleetRequest)) from error


def _entries(document: dict[str, object], name: str) -> Iterable[object]:
    entries = document.get(name)
    return entries if isinstance(entries, list | tuple) else ()


# --- hosts ------------------------------------------------------------------------------------------


def _hosts(request: FleetRequest, folder: Path, known: Catalog) -> tuple[tuple[HostGroup, HardwareReport], ...]:
    """Every group with the report of its hosts."""
    if len(request.hosts) > MAXIMUM_GROUPS:
        raise WrongKey("hosts", f"are {len(request.hosts):,} groups, more than {MAXIMUM_GROUPS:,}")
    _check_unique("hosts", [each.name for each in request.hosts])
    reports: dict[str, HardwareReport] = {}
    seen: dict[str, int] = {}
    found = []
    for index, group in enumerate(request.hosts):
        key = f"hosts[{index}]"
        with at(f"{key}.name"):
            served_name(group.name)
        if group.count is not None and group.names:
            raise WrongKey(f"{key}.count", "and names both say how many hosts there are", "leave one of them out")
        if group.count is not None and not 1 <= group.count <= MAXIMUM_HOSTS:
            raise WrongKey(f"{key}.count", f"is {group.count:,}; a group has 1 to {MAXIMUM_HOSTS:,} hosts")
        if len(seen) + group.size > MAXIMUM_HOSTS:
            raise WrongKey(f"{key}.count", f"makes more than {MAXIMUM_HOSTS:,} hosts in all")
        for host in group.hosts():
            if not is_word(host):
                raise WrongKey(f"{key}.names", f"{shown(host)} is no name")
            if host in seen:
                raise WrongKey(f"{key}.names", f"{shown(host)} is a host of hosts[{seen[host]}] already")
            seen[host] = index
        found.append((group, _report(f"{key}.hardware", group.hardware, folder, known, reports)))
    return tuple(found)


def _report(
    key: str, hardware: str | HardwareReport, folder: Path, known: Catalog, reports: dict[str, HardwareReport]
) -> HardwareReport:
    """One host; what was read once is not read again."""
    from autolaunch.api import hardware_report
    from selector.machines import checked_report

    with at(key):
        if isinstance(hardware, HardwareReport):
            report = checked_report(hardware)
        elif hardware in reports:
            return reports[hardware]
        else:
            file = os.sep in hardware or hardware.endswith(".json")
            spec = str(folder / Path(hardware).expanduser()) if file else hardware
            report = reports[hardware] = hardware_report(spec, known)
    if report.nodes != 1:
        raise WrongKey(
            key, f"is {report.nodes} hosts, and a group tells one of its own", "count = 2 says that there are two of it"
        )
    return report


# --- deployments ------------------------------------------------------------------------------------


def _wanted(request: FleetRequest, known: Catalog) -> tuple[Wanted, ...]:
    """Every deployment with its model and what is asked of the planner for a replica."""
    if len(request.deployments) > MAXIMUM_DEPLOYMENTS:
        raise WrongKey("deployments", f"are {len(request.deployments):,}, more than {MAXIMUM_DEPLOYMENTS}")
    _check_unique("deployments", [each.name for each in request.deployments])
    return tuple(_asked(f"deployments[{index}]", each, known) for index, each in enumerate(request.deployments))


def _asked(key: str, each: FleetDeployment, known: Catalog) -> Wanted:
    with at(f"{key}.name"):
        served_name(each.name)
    _check_replicas(key, each)
    for name in (*_TOKENS, "concurrency"):
        if (getattr(each, name) or 0) >= TOKENS_BELOW:
            raise WrongKey(f"{key}.{name}", f"is {getattr(each, name)}, more than anything takes")
    pins = each.pinned
    if pins.gpus is not None:
        raise WrongKey(
            f"{key}.pinned.gpus", "names devices of one host, and the plan decides which", "gpu_count is a number"
        )
    if pins.data_parallel is not None:
        raise WrongKey(
            f"{key}.pinned.data_parallel", "counts replicas", "minimum_replicas and maximum_replicas say how many"
        )
    with at(key):
        checked_figures(
            objective=each.objective,
            workload=each.workload,
            context_tokens=each.context_tokens,
            concurrency=each.concurrency,
            input_tokens=each.input_tokens,
            output_tokens=each.output_tokens,
            pins=pins,
        )
    with at(f"{key}.model"):
        match = known.find_model(each.model)
    if match.repo is not None:
        if pins.repo is not None and pins.repo.lower() not in (match.repo.lower(), each.model.lower()):
            raise WrongKey(f"{key}.pinned.repo", f"is {pins.repo}, and model names another checkpoint")
        pins = msgspec.structs.replace(pins, repo=match.repo)
    with at(f"{key}.pinned"):
        pins = pins_on_checkpoints(match.model, pins, each.model)
    with at(key):
        workload = workload_of(each.workload, each.input_tokens, each.output_tokens, each.context_tokens, match.model)
    request = PlanRequest(
        model=match.model.id,
        objective=each.objective,
        context_tokens=each.context_tokens,
        concurrency=WORKLOADS[each.workload or "chat"].concurrency if each.concurrency is None else each.concurrency,
        workload=workload,
        pins=pins,
    )
    return Wanted(each, match.model, request)


def _check_replicas(key: str, each: FleetDeployment) -> None:
    least, most = each.minimum_replicas, each.maximum_replicas
    if not 0 <= least <= MAXIMUM_REPLICAS:
        raise WrongKey(f"{key}.minimum_replicas", f"is {least}; it has to be 0 to {MAXIMUM_REPLICAS:,}")
    if most is not None and not 1 <= most <= MAXIMUM_REPLICAS:
        raise WrongKey(
            f"{key}.maximum_replicas", f"is {most}; it has to be 1 to {MAXIMUM_REPLICAS:,}", "no bound: leave it out"
        )
    if most is not None and most < least:
        raise WrongKey(f"{key}.maximum_replicas", f"is {most}, less than minimum_replicas, {least}")
    lowest, highest = WEIGHTS
    if not (math.isfinite(each.weight) and lowest <= each.weight <= highest):
        raise WrongKey(f"{key}.weight", f"is {each.weight:g}; it has to be {lowest:g} to {highest:,.0f}")


def _check_unique(key: str, names: list[str]) -> None:
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if (first := seen.setdefault(name.lower(), index)) != index:
            raise WrongKey(f"{key}[{index}].name", f"{shown(name)} is taken by {key}[{first}]")
