"""A model kept up inside a program: ``autolaunch.launch``.

    with autolaunch.launch("glm-4.6") as server:
        server.wait_ready()
        print(server.base_url, server.api_key)

Everything that may take long happens in threads of the launch: the caller's own is free, no signal handler is set, and
nothing is printed or logged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from autolaunch import api
from autolaunch.daemon.deployment import Deployment
from autolaunch.events import Event, Events
from autolaunch.given import served_name as checked_name
from autolaunch.handles import Launch, Told
from autolaunch.home import home as default_home
from autolaunch.keeping import kept_up
from autolaunch.locking import lock_of_launch, refuse_unwritable
from autolaunch.reach import way
from selector.catalog import Catalog
from selector.contract import Candidate, LaunchPlan
from selector.errors import NoFeasiblePlan, UsageError
from selector.request import Pins


def launch(
    plan: LaunchPlan | str,
    *,
    nodes: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str | None = None,
    keys_file: Path | str | None = None,
    keyless: bool = False,
    served_name: str | None = None,
    model_path: Path | str | None = None,
    engine_path: Path | str | None = None,
    engine_options: tuple[str, ...] = (),
    offline: bool = False,
    lock: Path | str | None = None,
    home: Path | str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Launch:
    """Gets a plan of this machine up and keeps it up until it is stopped.

    It returns at once; weights, environment and engine are seen to in the background (:meth:`Launch.wait_ready`). The
    result is a context manager, in ``with`` and in ``async with``: when it is left, nothing of the launch runs any
    more. A program that ends without leaving it, in whatever way, takes the engine with it.

        plan = autolaunch.plan("glm-tiny")
        with autolaunch.launch(plan) as server:
            server.wait_ready(timeout=900)
            print(server.base_url, server.api_key)

    An engine that fails is started again, with less context or fewer sequences where its memory did not do; what was
    pinned in the plan is never changed. Several launches may be there at once; they share no device.

    Args:
        plan: a plan of this machine (:func:`autolaunch.plan`), or the name of a model, which is planned first: that
            takes a second, and asyncio code better does it by itself (``await asyncio.to_thread(autolaunch.plan, …)``).
        nodes: the Ray cluster on whose nodes it is started, as :func:`autolaunch.plan` takes it, which made the plan;
            this host has to be one of them. ``None``: on this host alone.
        host: the address that clients reach; beyond loopback others on the network reach it with a key.
        port: its port; 0 takes a free one (:attr:`Launch.base_url`).
        api_key: the key that clients need, 20 to 512 characters; ``None`` makes one (:attr:`Launch.api_key`): on
            loopback, too, since other users of this machine reach that.
        keys_file: a file of keys (``autolaunch keys add``) instead of one key.
        keyless: serve whoever reaches the address, without a key. Of loopback alone.
        served_name: the model's name in requests; the plan's by default.
        model_path: the checkpoint's folder, where its files are here already.
        engine_path: an installation of the planned engine, to be used instead of an environment of ours.
        engine_options: options for the engine itself, a token each.
        offline: fetch no weights.
        lock: a file that keeps this launch. Where it is there, exactly what it has is launched, or nothing is; what
            was asked for in the plan may say the same again, and nothing else. Where it is not, it is written once the
            first token came, before :meth:`Launch.wait_ready` returns; what is in the way of that is an event
            (``lock.failed``), and it serves all the same. The file is that of ``autolaunch MODEL --lock FILE``.
        home: holds engines, logs, and what was learned; by default ``$AUTOLAUNCH_HOME``, or the user's own.
        on_event: is called with each event, in a thread of its own; see :meth:`Launch.events`.

    Returns:
        The launch, under way.

    Raises:
        NoFeasiblePlan: the plan has no candidate, or what ``lock`` has does not fit now.
        OtherHardware: ``lock`` is of another machine.
        LockError: ``lock`` is none, was changed, or cannot be written there.
        UsageError: arguments that cannot be, or a plan of another machine.
        ClusterError: the cluster of ``nodes`` could not be asked.
        PortTaken: somebody listens at the address.
        ConfigurationError: ``keys_file``.
        UnknownModel, EngineError, ProfileError: of a name, as :func:`autolaunch.plan`.
    """
    known = api.catalog()
    model = known.find_model(plan).model.id if isinstance(plan, str) else plan.model
    deployment = Deployment(
        name=checked_name(served_name or model),
        model=plan if isinstance(plan, str) else model,
        model_path=_path(model_path),
        engine_path=_path(engine_path),
        engine_options=tuple(engine_options),
        offline=offline,
        wait_for_devices=False,
        nodes=nodes,
    )
    if nodes is not None and lock is not None:
        raise UsageError("a lock keeps a launch on one machine: leave it or nodes out")
    place, kept_in = _path(home) or default_home(), _path(lock)
    reached = way(host, port, api_key, _path(keys_file), keyless=keyless, home=place)
    deployment, decided, kept_in = _decided(plan, deployment, kept_in, known)
    events, told = Events(), Told()
    found = kept_up(
        decided,
        deployment,
        known=known,
        home=place,
        reach=reached.reach,
        on_event=told.heard,
        on_tell=told.tell,
    )
    told.begin(found, events, reached.key)
    one = Launch(found, decided, deployment.name, events, reached.key)
    if on_event is not None:
        one.hand_on(on_event)
    if kept_in is not None:
        one.keep_in(kept_in, lambda: lock_of_launch(found, decided, known, place), told.tell)
    found.start()
    return one


def _decided(
    plan: LaunchPlan | str, deployment: Deployment, lock: Path | None, known: Catalog
) -> tuple[Deployment, LaunchPlan, Path | None]:
    """What is launched, its plan, and where it is to be kept (not where it was kept already)."""
    asked_for = deployment if isinstance(plan, str) else _as_planned(deployment, plan)
    if lock is not None and os.path.lexists(lock):
        from autolaunch.replaying import replayed_here

        return *replayed_here(asked_for, lock, known), None
    if lock is not None:
        refuse_unwritable(lock)
    decided = plan
    if isinstance(decided, str):
        decided = api.plan(decided, known=known, engine_path=deployment.engine_path, nodes=deployment.nodes)
    if decided.chosen is None:
        raise NoFeasiblePlan(
            f"no plan for {decided.model} fits this machine", hint=f"autolaunch plan {decided.model} says what would"
        )
    if deployment.nodes is None:
        _refuse_another_machine(decided, decided.chosen)
    elif decided.chosen.parallel.data > 1:
        raise UsageError("on the nodes of a cluster one engine is started", hint="Pins(data_parallel=1) plans for one")
    return _as_planned(deployment, decided), decided, lock


def _as_planned(deployment: Deployment, plan: LaunchPlan) -> Deployment:
    """With what the plan was asked for."""
    asked = plan.request
    return msgspec.structs.replace(
        deployment,
        model=plan.model,
        objective=asked.objective,
        context_tokens=asked.context_tokens,
        concurrency=asked.concurrency,
        input_tokens=asked.input_tokens,
        output_tokens=asked.output_tokens,
        pinned=msgspec.convert(asked.pinned, Pins),
    )


def _path(given: Path | str | None) -> Path | None:
    return None if given is None else Path(given).expanduser().absolute()


def _refuse_another_machine(plan: LaunchPlan, chosen: Candidate) -> None:
    """A plan of devices that are not here would fetch its weights before anything fails.

    Raises:
        UsageError: it is of another machine.
    """
    if any(each.probe == "specification" for each in plan.hardware.findings):
        raise UsageError("the plan is of a machine that was named, not of this one", hint="autolaunch.plan(model)")
    wanted = [device.name for device in plan.hardware.accelerators if device.index in chosen.parallel.devices]
    if not wanted:
        return
    here = [device.name for device in api.probe().accelerators]
    if any(here.count(name) < wanted.count(name) for name in wanted):
        raise UsageError(
            f"the plan has {len(wanted)} devices ({wanted[0]}), and this machine has "
            + (", ".join(here) if here else "none"),
            hint="launch it on the machine that it was made for",
        )
