"""FAKE: ``autolaunch`` with the fake engine in the place of every other. Everything else of it is real.

    python -m tests.fakes.daemon serve --config FILE …

FAKE_MODES names the modes of the first, the second, … start, with commas (:mod:`tests.fakes.engine`), FAKE_OPTIONS
more of its options. FAKE_STUCK is a process that an earlier daemon left and that would not end. After so many
probes as FAKE_PROBE_HANGS_AFTER says they hang; the daemon's bound is two seconds then. With FAKE_KEYED the engine
takes a key of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from autolaunch.cli import main

if TYPE_CHECKING:
    from autolaunch.daemon.serve import Daemon


def patch() -> None:
    """Everything heavy is read in here, when the command line has taken the signals as it does."""
    import itertools
    import shlex
    import time
    from functools import partial

    from msgspec.structs import replace

    from autolaunch import api
    from autolaunch.daemon import serve, survivors
    from autolaunch.daemon.deployment import KeptRun
    from autolaunch.daemon.hands import Patience
    from engines import registry
    from engines.environments import Environment, Environments
    from tests.fakes.supervised import FakeEngine

    engine = FakeEngine(*os.environ.get("FAKE_MODES", "ready").split(","))
    engine.more = tuple(shlex.split(os.environ.get("FAKE_OPTIONS", "")))
    if os.environ.get("FAKE_KEYED"):
        engine.behaviour = replace(engine.behaviour, key_variable="FAKE_ENGINE_KEY")  # type: ignore[misc]  # a fake
    registry.engine = lambda _: engine  # type: ignore[assignment]  # a fake
    folder = Path(os.environ["AUTOLAUNCH_HOME"]) / "environment"
    made = Environment(engine="vllm", version="1", package="vllm", directory=folder)
    Environments.ensure = lambda *_, **__: made  # type: ignore[method-assign]  # a fake
    patience = Patience(grace_seconds=1.0, stall_seconds=20.0, quiet_seconds=0.5)
    serve.Daemon = partial(serve.Daemon, patience=patience)  # type: ignore[assignment,misc]  # a fake
    hang_after = os.environ.get("FAKE_PROBE_HANGS_AFTER")
    if hang_after is not None:
        probe, asked = api.probe, itertools.count()
        api.probe = lambda: probe() if next(asked) < int(hang_after) else time.sleep(3600)  # type: ignore[misc,assignment]  # a fake
        serve.END_SECONDS = 2.0
    if stuck := os.environ.get("FAKE_STUCK"):
        left = (int(stuck),)

        def found(run: KeptRun) -> tuple[int, ...]:
            return left

        def not_ended(run: KeptRun, **_more: object) -> tuple[int, ...]:
            return left

        survivors.survivors, survivors.end_survivors = found, not_ended


def run(arguments: list[str]) -> int:
    from autolaunch.cli import serve

    made = serve._daemon

    def faked(config: Path | None, *, as_json: bool) -> Daemon:
        patch()
        return made(config, as_json=as_json)

    serve._daemon = faked
    return command_line(arguments)


if __name__ == "__main__":
    sys.argv[0] = "autolaunch"
    command_line = main._run
    main._run = run
    main.main()
