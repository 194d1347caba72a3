"""The Python API: probe a machine, plan a model on it. Quiet, typed, without global state."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import engines.registry
import profiles
from autolaunch.home import home as home  # noqa: PLC0414 - it is a name of this API, too
from engines.base import Serving, first_replica, planned_package, visible_devices
from selector import advice
from selector.asked import PlanRequest
from selector.catalog import Catalog
from selector.contract import Advice, Candidate, LaunchPlan, Note
from selector.errors import EngineInstallError, UsageError
from selector.facts import ModelFacts
from selector.hardware import HardwareReport
from selector.plan import launch_plan
from selector.request import WORKLOADS, Objective, Pins, WorkloadName
from selector.wishes import checked_figures, checked_gpus, pins_on_checkpoints, workload_of

if TYPE_CHECKING:
    from engines.environments.installations import Installation
    from selector.case import Shelf
    from selector.measured import Calibration


def catalog() -> Catalog:
    """The shipped profiles, and the user's own from ``<home>/profiles`` where there are any."""
    own = home() / "profiles"
    return Catalog((profiles.DIRECTORY, own) if own.is_dir() else (profiles.DIRECTORY,))


def probe(nodes: str | None = None) -> HardwareReport:
    """Ask this machine what it is, or every node of a Ray cluster what it is.

        report = autolaunch.probe()
        print(report.host.cpu.brand, [device.name for device in report.accelerators])

    Args:
        nodes: the cluster: ``auto`` (``RAY_ADDRESS``, or the one that this host is of), ``HOST:PORT`` of its head,
            ``ray://HOST:PORT`` of its client server. ``None`` asks this machine alone.

    Returns:
        The report; what could not be asked is ``None`` in it and named in ``findings``. Nodes that are down, that do
        not answer or that differ are findings, too.

    Raises:
        UsageError: ``nodes`` is no address.
        ClusterError: the cluster could not be joined or was lost, or none of its nodes could be asked.
    """
    if nodes is not None:
        from autolaunch.cluster import probe_cluster

        return probe_cluster(nodes)
    from selector.probe import probe as ask

    place = home()
    return ask(cache_directory=place / "cache", model_directory=place)


def nodes_to_plan(nodes: str) -> HardwareReport:
    """As :func:`probe` of a cluster's nodes, and GPUs that Ray has given to other work are held in it."""
    from autolaunch.cluster import probe_cluster

    return probe_cluster(nodes, given_out=True)


def hardware_report(spec: str, known: Catalog) -> HardwareReport:
    """A report for ``--hardware``: the name of a machine (``8xh100``) or a file of ``autolaunch probe --json``.

    Raises:
        UnknownHardware: neither a known machine nor a readable report.
    """
    from selector.machines import report_from_file, report_from_spec

    if os.sep in spec or spec.endswith(".json"):
        return report_from_file(Path(spec))
    return report_from_spec(spec, known)


def plan(
    model: str,
    *,
    hardware: HardwareReport | str | None = None,
    nodes: str | None = None,
    objective: Objective = "balanced",
    context_tokens: int | None = None,
    concurrency: int | None = None,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    workload: WorkloadName | None = None,
    pins: Pins | None = None,
    known: Catalog | None = None,
    keep_all: bool = False,
    thorough: bool = False,
    local: frozenset[str] | None = None,
    engine_path: Path | None = None,
    here: bool = False,
    learned: bool | None = None,
    calibrations: tuple[Calibration, ...] | None = None,
) -> LaunchPlan:
    """Decide how a model is served best on a machine.

        plan = autolaunch.plan("glm-4.6", hardware="8xh100", objective="throughput")
        if plan.chosen is not None:
            print(plan.chosen.engine.name, plan.chosen.limits.context_tokens)
        print(plan.explain())

    Args:
        model: a name of the catalogue or a hub's id; the id of one checkpoint pins it.
        hardware: a report, a machine's name, a file's path, or ``None`` for this machine.
        nodes: the Ray cluster to plan a launch for, as :func:`probe` takes it: one replica, with vLLM where no engine
            is pinned. What Ray has given to other work is not planned with. A report beside it is that cluster's.
        objective: what counts most.
        context_tokens: tokens one request must be able to use; ``None`` takes what fits.
        concurrency: requests that come at once; those that do not run together wait.
        input_tokens: mean prompt, in tokens; ``output_tokens``: mean answer.
        workload: a name for such figures; given figures win over it.
        pins: what is fixed. A pin narrows the list and is never changed.
        known: the catalogue; ``None`` reads the shipped one and the user's.
        keep_all: keep every candidate and refusal, not only the best and nearest.
        thorough: advise also what would do better than the plan, and which smallest machines serve the model.
        local: the weights that are here, by repository (``repository:file_prefix`` of a GGUF file); ``None`` looks
            into the hub's cache where the plan is for this machine, and leaves it unknown for another.
        engine_path: an installation of an engine to use instead of an environment of our own: the folder of an
            environment, or a program. It pins the engine and the version that are found there.
        here: the report that was given is this machine's: what lies here is looked at as for ``None``.
        learned: leave out what was tried on this machine and failed (:mod:`autolaunch.learned`), and correct the
            estimates by what was measured on it; ``None`` does so where the plan is of this machine.
        calibrations: what was measured on the machine (:mod:`selector.calibration`); ``None`` takes what is kept here,
            where that is to be learned from.

    Returns:
        The plan; ``feasible`` is false when nothing allowed fits, with the reasons in ``rejected``.

    Raises:
        UnknownModel: nobody described this model.
        UnknownHardware: ``hardware`` names no machine.
        UsageError: pins that contradict each other, or what is at ``engine_path``; ``nodes`` and another machine.
        ClusterError: the cluster of ``nodes`` could not be asked.
        EngineError: there is no engine at ``engine_path`` that can serve the model.
        ProfileError: a profile is wrong.
    """
    here = here or (hardware is None and nodes is None)
    if nodes is not None and (isinstance(hardware, str) or here):
        raise UsageError("nodes are those of a cluster that is asked: leave hardware and here out")
    asked = pins = Pins() if pins is None else pins
    if nodes is not None:
        from autolaunch.on_nodes import started_on_nodes, told_of_nodes

        pins = started_on_nodes(pins)
    checked_figures(
        objective=objective,
        workload=workload,
        context_tokens=context_tokens,
        concurrency=concurrency,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        pins=pins,
    )
    known = catalog() if known is None else known
    match = known.find_model(model)
    if match.repo is not None:
        if pins.repo is not None and pins.repo.lower() not in (match.repo.lower(), model.lower()):
            raise UsageError(f"{model} names one checkpoint and --repo another: {pins.repo}")
        pins = msgspec.structs.replace(pins, repo=match.repo)
    pins = pins_on_checkpoints(match.model, pins, model)
    installation = None
    if engine_path is not None:
        installation = installation_at(engine_path, match.model, known, pins)
        pins = msgspec.structs.replace(pins, engine=installation.engine, engine_version=installation.version)
    report = _report(hardware, nodes, known)
    checked_gpus(pins, report)
    # Not by the path's own exists, which raises where the folder may not be looked into.
    learning = (here if learned is None else learned) and os.access(learned_path(), os.F_OK)
    unread = None
    if calibrations is None:
        calibrations, unread = _measured_here(report) if learning else ((), None)
    request = PlanRequest(
        model=match.model.id,
        objective=objective,
        context_tokens=context_tokens,
        concurrency=WORKLOADS[workload or "chat"].concurrency if concurrency is None else concurrency,
        workload=workload_of(workload, input_tokens, output_tokens, context_tokens, match.model),
        pins=pins,
        local=weights_here(match.model.id, known, pins.revision) if local is None and here else local,
        calibrations=calibrations,
        nodes=nodes,
    )
    decided = launch_plan(
        match.model,
        report,
        request,
        known,
        advise=lambda decision: advice.advise(
            match.model,
            report,
            request,
            known,
            decision,
            lambda: _shelf(known),
            hardware if isinstance(hardware, str) else _specified(report),
            thorough=thorough,
        ),
        keep_all=keep_all,
    )
    decided = with_commands(decided, match.model)
    if installation is not None:
        alone = installation.package if installation.python is None else None
        decided = _told_of_engines(decided, lambda each: (True, alone or each.engine.package))
    elif here:
        decided = with_installed(decided, known)

    def again(pins: Pins, context_tokens: int | None, *, every: bool = False) -> LaunchPlan:
        return plan(
            model,
            hardware=report,
            objective=objective,
            context_tokens=context_tokens,
            concurrency=concurrency,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            workload=workload,
            pins=pins,
            known=known,
            keep_all=every,
            local=request.local,
            engine_path=engine_path,
            here=here,
            learned=False,
            calibrations=request.calibrations,
        )

    if nodes is not None:
        decided = told_of_nodes(decided, asked, lambda free: again(free, context_tokens))
    if not learning:
        return decided
    return _less_what_failed(
        decided, again, known, None if keep_all else lambda: again(request.pins, context_tokens, every=True), unread
    )


def _report(hardware: HardwareReport | str | None, nodes: str | None, known: Catalog) -> HardwareReport:
    if isinstance(hardware, HardwareReport):
        from selector.machines import checked_report

        return checked_report(hardware)
    if hardware is not None:
        return hardware_report(hardware, known)
    return probe() if nodes is None else nodes_to_plan(nodes)


def learned_path() -> Path:
    """Where it is kept what was tried on this machine (:mod:`autolaunch.daemon.store`)."""
    return home() / "learned.sqlite3"


def _measured_here(report: HardwareReport) -> tuple[tuple[Calibration, ...], str | None]:
    """What was measured on a machine like this one, and what is to be said of the file that it is kept in."""
    from autolaunch.calibrated import calibrations_of  # as below
    from autolaunch.daemon.store import Store

    store = Store(learned_path())
    return calibrations_of(store.measurements(), report), store.trouble()


def _less_what_failed(
    decided: LaunchPlan,
    replan: Callable[[Pins, int | None], LaunchPlan],
    known: Catalog,
    whole: Callable[[], LaunchPlan] | None,
    unread: str | None,
) -> LaunchPlan:
    """The plan without what failed here, and with a word where that is not known."""
    import shlex

    from autolaunch.daemon.store import Store  # nothing of it is needed where nothing has failed yet
    from autolaunch.learned import with_learned

    store = Store(learned_path())
    decided = with_learned(decided, store.tried, replan, facts=known, whole=whole)
    left_out = sum(each.code == "learned.failed" for each in decided.rejected)
    if left_out:
        forgetting = Advice(
            kind="engine",
            message="what failed on this machine before is left out; to have it tried again, forget it",
            numbers={"left_out": left_out},
            command=shlex.join(("rm", str(store.path))),
        )
        decided = msgspec.structs.replace(decided, advice=(*decided.advice, forgetting))
    unread = store.trouble() or unread
    if unread is None or decided.chosen is None:
        return decided
    note = Note(severity="info", code="learned.unread", message=unread)
    chosen = msgspec.structs.replace(decided.chosen, notes=(*decided.chosen.notes, note))
    return msgspec.structs.replace(decided, chosen=chosen)


def installation_at(path: Path, model: ModelFacts, known: Catalog, pins: Pins) -> Installation:
    """The engine that somebody installed at ``path``, as far as it agrees with the pins and may serve the model.

    Raises:
        EngineError: there is none that could.
        UsageError: it is another than the pins ask for.
    """
    from engines.environments import installations  # only where one is pointed at

    engines_known = tuple(known.engine(name) for name in known.engine_names())
    return installations.chosen(path, engines_known, model, engine=pins.engine, version=pins.engine_version)


@lru_cache(maxsize=8)
def _shelf(known: Catalog) -> Shelf:
    """The machines that a catalogue knows."""
    from selector.case import Shelf
    from selector.machines import hardware_names, report_from_spec

    return Shelf(hardware_names(known), lambda name: report_from_spec(name, known))


def weights_here(model: str, known: Catalog, revision: str | None = None) -> frozenset[str]:
    """The checkpoints of a model that lie whole in the hub's cache of this machine; nothing of them is read.

    Raises:
        UnknownModel: nobody described this model.
    """
    from autolaunch.hub_cache import cache_directory, weights_here

    return weights_here(known.find_model(model).model, cache_directory(os.environ), revision, home=home())


def _specified(report: HardwareReport) -> str | None:
    """The name of a machine that was made from one (:mod:`selector.machines` leaves it in the findings)."""
    return next((each.reason for each in report.findings if each.probe == "specification"), None)


def with_commands(decided: LaunchPlan, model: ModelFacts) -> LaunchPlan:
    """The plan with each candidate's command, as a person would type it."""

    def commanded(each: Iterable[Candidate]) -> tuple[Candidate, ...]:
        return tuple(with_command(one, model, decided.hardware) for one in each)

    chosen = None if decided.chosen is None else with_command(decided.chosen, model, decided.hardware)
    return msgspec.structs.replace(decided, chosen=chosen, alternatives=commanded(decided.alternatives))


def with_command(candidate: Candidate, model: ModelFacts, report: HardwareReport) -> Candidate:
    """The candidate with the command of its first replica."""
    engine = engines.registry.engine(candidate.engine.name)
    devices = first_replica(report, candidate)
    visible = visible_devices(report, devices, launched=False)
    serving = Serving(model=candidate.checkpoint.repo, served_name=model.id, devices=devices, visible=visible)
    return msgspec.structs.replace(candidate, command=engine.command(candidate, model, serving))


def with_installed(decided: LaunchPlan, known: Catalog) -> LaunchPlan:
    """The plan of this machine, telling which candidates' environments are here already."""
    from engines import beside

    names = {each.engine.name for each in (*decided.alternatives, *filter(None, (decided.chosen,)))}
    if beside.nothing(home() / "engines", (one for name in names for one in known.engine(name).packages)):
        return decided
    from engines.environments import Environments

    environments = Environments.of(home())

    def here(each: Candidate) -> tuple[bool, str]:
        try:
            facts, package = planned_package(known.engine(each.engine.name), each.engine)
        except EngineInstallError:  # a pinned version that can only have been installed by somebody else
            return False, each.engine.package
        return environments.find(facts.name, facts.version, package) is not None, package.name

    return _told_of_engines(decided, here)


def _told_of_engines(decided: LaunchPlan, here: Callable[[Candidate], tuple[bool, str]]) -> LaunchPlan:
    """The plan, telling of each candidate whether its engine is here, and which environment or installation that is."""

    def told(each: Candidate) -> Candidate:
        installed, package = here(each)
        engine = msgspec.structs.replace(each.engine, installed=installed, package=package)
        return msgspec.structs.replace(each, engine=engine)

    return msgspec.structs.replace(
        decided,
        chosen=None if decided.chosen is None else told(decided.chosen),
        alternatives=tuple(told(each) for each in decided.alternatives),
    )
