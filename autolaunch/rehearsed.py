"""A plan proven from a program without its weights: ``autolaunch.rehearse``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autolaunch import api, rehearsing
from autolaunch.home import home as default_home
from autolaunch.launching import LaunchOptions
from autolaunch.rehearsing import Rehearsal
from autolaunch.server import LaunchEvent
from autolaunch.stand_in import Mode
from selector.contract import LaunchPlan


def rehearse(
    plan: LaunchPlan,
    *,
    mode: Mode = "miniature",
    engine_path: Path | str | None = None,
    engine_options: tuple[str, ...] = (),
    home: Path | str | None = None,
    on_event: Callable[[LaunchEvent], None] = lambda _: None,
) -> Rehearsal:
    """Proves a plan on this machine without its weights, and stops what it has started. It takes a minute or so.

        plan = autolaunch.plan("glm-tiny")
        result = autolaunch.rehearse(plan)
        for step in result.steps:
            print(step.name, step.ok, f"{step.seconds:.1f} s", step.message)

    Args:
        plan: its chosen candidate is proven: the engine with the flags and on the devices of the plan.
        mode: ``miniature``: a checkpoint of the same architecture and quantization with fewer layers and experts, made
            here. ``dummy``: the real shapes with weights that the engine makes up (vLLM and SGLang): real memory and
            real speed.
        engine_path: an installation of the planned engine, to be used instead of an environment of ours.
        engine_options: options for the engine itself, a token each.
        home: holds engines and logs; by default ``$AUTOLAUNCH_HOME``, or the user's own.
        on_event: is called with what it is at, from this thread and the engine's.

    Returns:
        What was tried (``steps``), the figures predicted beside those measured (``figures``; memory in bytes of the
        fullest device), and where it failed why (``ok`` is false, ``failure``).

    Raises:
        NoFeasiblePlan: there is nothing to rehearse.
        UsageError: this engine cannot make weights up, there is no miniature of this format, or the plan's devices are
            not here.
        EngineInstallError, DownloadError, PortTaken: what failed before the engine was started.
    """
    options = LaunchOptions(
        home=default_home() if home is None else Path(home).expanduser().absolute(),
        port=0,
        engine_path=None if engine_path is None else Path(engine_path).expanduser().absolute(),
        extra=tuple(engine_options),
    )
    return rehearsing.rehearse(plan, catalog=api.catalog(), options=options, mode=mode, on_event=on_event)
