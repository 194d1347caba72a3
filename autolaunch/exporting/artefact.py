"""The public function: a plan and a target in, files out. Nothing is read but the profiles, nothing is started."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from autolaunch.exporting.compose import compose
from autolaunch.exporting.kubernetes import kubernetes
from autolaunch.exporting.shell import shell
from autolaunch.exporting.slurm import slurm
from autolaunch.exporting.units import systemd
from autolaunch.exporting.values import Artefact, ExportOptions, File, Target, checked
from autolaunch.exporting.work import Work, kind_of, refuse_unfit, slug
from autolaunch.given import is_word
from selector.errors import NoFeasiblePlan, UsageError

if TYPE_CHECKING:
    from selector.catalog import Catalog
    from selector.contract import Candidate, LaunchPlan

_TARGETS: dict[Target, Callable[[Work], tuple[File, ...]]] = {
    "systemd": systemd,
    "compose": compose,
    "kubernetes": kubernetes,
    "slurm": slurm,
    "shell": shell,
}


def export(
    plan: LaunchPlan, to: Target, *, options: ExportOptions | None = None, catalog: Catalog | None = None
) -> Artefact:
    """The chosen configuration of ``plan`` as files that run without autolaunch.

        artefact = autolaunch.export(autolaunch.plan("glm-4.6", hardware="8xh200"), "kubernetes")
        for file in artefact.files:
            print(file.name, len(file.text))

    Args:
        plan: from :func:`autolaunch.plan`.
        to: ``systemd``, ``compose``, ``kubernetes``, ``slurm`` or ``shell``.
        options: names, addresses and places; the plan's own without.
        catalog: what is known of models and engines; the profiles' without.

    Returns:
        The files. The same plan and options give the same bytes. No key and no token is in them.

    Raises:
        NoFeasiblePlan: nothing was chosen.
        UsageError: this target cannot be for this plan, or an option cannot stand in it; the hint says what can.
    """
    candidate = plan.chosen
    if candidate is None:
        raise NoFeasiblePlan(
            f"no plan for {plan.model} fits this machine", hint=f"autolaunch advise {plan.model} says what would"
        )
    if catalog is None:
        from autolaunch import api

        catalog = api.catalog()
    options = checked(options or ExportOptions(), to)
    _refuse_unprintable(candidate)
    facts, model = catalog.engine(candidate.engine.name), catalog.model(plan.model)
    if options.extra:
        from engines.flags import refuse_unknown  # most exports pass nothing on

        refuse_unknown(options.extra, candidate.engine.package, candidate.engine.version)
    kind = kind_of(candidate, plan)
    name = options.served_name or plan.model
    work = Work(
        to=to,
        plan=plan,
        candidate=candidate,
        model=model,
        facts=facts,
        options=options,
        name=name,
        slug=slug(name),
        kind=kind,
        image=next((each for each in facts.images if kind in each.devices), None),
    )
    refuse_unfit(work)
    return Artefact(to=to, files=_TARGETS[to](work))


def _refuse_unprintable(candidate: Candidate) -> None:
    """A script's own pins have passed no command line."""
    checkpoint = candidate.checkpoint
    for text in (checkpoint.repo, checkpoint.revision, checkpoint.file_prefix, candidate.engine.version):
        if text is not None and not is_word(text):
            raise UsageError(f"{text[:60]!a} can stand in no file of lines")
