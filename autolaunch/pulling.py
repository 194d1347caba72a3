"""The weights of a model, fetched and verified without starting anything: :func:`pull`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from autolaunch.hubs.listing import HubFile
from autolaunch.hubs.obtaining import obtain
from autolaunch.hubs.speed import Transfer
from autolaunch.server import LaunchEvent
from autolaunch.weights import checked, wanted_of
from selector.contract import Checkpoint, LaunchPlan
from selector.errors import NoFeasiblePlan
from selector.facts import Hub, ModelFacts
from selector.ready import repository, unwanted
from selector.request import Pins
from selector.values import Value
from selector.wishes import pins_on_checkpoints

if TYPE_CHECKING:
    from selector.catalog import Catalog
    from selector.hardware import HardwareReport


class Pulled(Value, frozen=True, kw_only=True):
    """A checkpoint that is whole in ``folder``.

    Attributes:
        hub: where it came from, and ``revision`` the commit; both ``None`` of a miniature, which is made here.
        files: what was needed of the repository, each with its length in bytes and its hash.
        fetched_bytes: what came over the network now; ``here_bytes`` was here before.
        seconds: what it took, the asking and the hashing too.
    """

    model: str
    repo: str
    hub: Hub | None
    revision: str | None
    quantization: str
    folder: Path
    files: tuple[HubFile, ...]
    size_bytes: int
    fetched_bytes: int
    here_bytes: int
    seconds: float


def pull(
    model: str | LaunchPlan,
    *,
    pins: Pins | None = None,
    hardware: HardwareReport | str | None = None,
    offline: bool = False,
    on_event: Callable[[LaunchEvent], None] = lambda _: None,
    cancelled: threading.Event | None = None,
    catalog: Catalog | None = None,
    home: Path | None = None,
) -> Pulled:
    """Have the weights of a model here: the exact files of one checkpoint, at one commit, each held against its hash.

    Which checkpoint: the plan's, or the one that ``model`` and the pins leave over (no machine is looked at then), or
    the one that the plan for this machine chooses. What is here already is not fetched again; what was interrupted goes
    on where it was, after a SIGKILL too. May be called from several threads and processes at once.

        pulled = autolaunch.pull("zai-org/GLM-4.6-FP8")
        print(pulled.folder, pulled.revision)

    Args:
        model: a name of the catalogue, a hub's id of a checkpoint, or a plan.
        pins: ``repo``, ``quantization``, ``format``, ``hub``, ``revision``; the others take part in a plan.
        hardware: the machine to plan for, as :func:`autolaunch.plan` takes it; this one by default.
        offline: only look whether it is here, and verify it.
        on_event: hears what happens (stage ``weights``), in the thread that called; ``transfer`` has the figures.
        cancelled: set it from another thread, and it ends within a second.
        catalog: the models that are known; ``None`` reads the shipped ones and the user's.
        home: where it is kept what was verified; ``None`` is autolaunch's home.

    Returns:
        Where the files are, and which; lengths in bytes.

    Raises:
        UnknownModel, UsageError: no checkpoint is meant.
        NoFeasiblePlan: nothing fits the machine, and no checkpoint was named.
        DownloadError: ``code`` says which: gated, token, missing, busy, disk, damaged, offline and others.
    """
    from autolaunch import api  # most of it is for plans

    began = time.monotonic()
    known = api.catalog() if catalog is None else catalog
    place = api.home() if home is None else home
    if isinstance(model, LaunchPlan):
        facts, pins = known.model(model.model), Pins(hub=_pinned_hub(model))
        checkpoint = None if model.chosen is None else model.chosen.checkpoint
    else:
        match = known.find_model(model)
        facts, pins = match.model, Pins() if pins is None else pins
        if match.repo is not None:
            pins = msgspec.structs.replace(pins, repo=pins.repo or match.repo)
        pins = pins_on_checkpoints(facts, pins, model)
        checkpoint = the_only_one(facts, pins)
        if checkpoint is None:
            planned = api.plan(model, hardware=hardware, pins=pins, known=known)
            checkpoint = None if planned.chosen is None else planned.chosen.checkpoint
    if checkpoint is None:
        raise NoFeasiblePlan(
            f"no checkpoint of {facts.id} fits this machine, and none was named",
            hint="name the one to fetch with --repo and --quantization (autolaunch models --verbose lists them), or "
            "the machine that it is for with --hardware",
        )

    def say(message: str, fraction: float | None, transfer: Transfer | None) -> None:
        seconds = time.monotonic() - began
        on_event(LaunchEvent(stage="weights", message=message, fraction=fraction, seconds=seconds, transfer=transfer))

    if facts.generated:
        return _made(facts, checkpoint, place, began)
    wanted = wanted_of(checkpoint, facts, hub_pinned=pins.hub is not None)
    got = obtain(wanted, home=place, offline=offline, on_progress=say, cancelled=cancelled)
    checked(got.folder, checkpoint)
    say(f"{got.listing.repo} is in {got.folder}", 1.0, None)
    return Pulled(
        model=facts.id,
        repo=got.listing.repo,
        hub=got.listing.hub,
        revision=got.listing.revision,
        quantization=checkpoint.quantization,
        folder=got.folder,
        files=got.listing.files,
        size_bytes=got.listing.size_bytes,
        fetched_bytes=got.fetched_bytes,
        here_bytes=max(0, got.listing.size_bytes - got.fetched_bytes),
        seconds=time.monotonic() - began,
    )


def the_only_one(model: ModelFacts, pins: Pins) -> Checkpoint | None:
    """The checkpoint that the pins leave over; ``None`` where they leave several, and a plan has to choose."""
    left = [each for each in model.checkpoints if unwanted(each, pins) is None]
    if len(left) != 1:
        return None
    (facts,) = left
    repo, hub = repository(facts, pins)
    return Checkpoint(
        repo=repo,
        hub=hub,
        revision=pins.revision,
        format=facts.format,
        quantization=facts.quantization,
        download_bytes=facts.download_bytes,
        file_prefix=facts.file_prefix,
    )


def _pinned_hub(plan: LaunchPlan) -> Hub | None:
    if "hub" not in plan.request.pinned or plan.chosen is None:
        return None
    return plan.chosen.checkpoint.hub


def _made(model: ModelFacts, checkpoint: Checkpoint, home: Path, began: float) -> Pulled:
    """A miniature comes from no hub: it is made here, the same on every machine."""
    from autolaunch.hubs.arriving import hashed
    from engines import miniature

    made = miniature.checkpoint_of(model, checkpoint.repo)
    folder = miniature.generate(model, home / "models" / made.repo.rpartition("/")[2], made)
    files = []
    for path in sorted(folder.iterdir()):
        one = HubFile(path=path.name, size_bytes=path.stat().st_size)
        sha256 = hashed(path, one, threading.Event(), lambda _: None).sha256
        files.append(msgspec.structs.replace(one, sha256=sha256))
    size_bytes = sum(each.size_bytes for each in files)
    return Pulled(
        model=model.id,
        repo=checkpoint.repo,
        hub=None,
        revision=None,
        quantization=checkpoint.quantization,
        folder=folder,
        files=tuple(files),
        size_bytes=size_bytes,
        fetched_bytes=0,
        here_bytes=size_bytes,
        seconds=time.monotonic() - began,
    )
