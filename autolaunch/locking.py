"""A launch kept in a lock while it serves: what ``--lock FILE`` and ``autolaunch.launch(…, lock=FILE)`` share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from autolaunch.locked import Lock, lock_of, requirements_in
from selector.errors import LockError

if TYPE_CHECKING:
    from autolaunch.foreground import Foreground
    from selector.catalog import Catalog
    from selector.contract import LaunchPlan


def refuse_unwritable(path: Path) -> None:
    """Before hours of download rather than after.

    Raises:
        LockError: no file can be written there.
    """
    if path.is_dir():
        raise LockError(f"{path} is a folder, and a lock is a file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        there = "may not be written to" if path.parent.is_dir() else "is no folder"
        raise LockError(f"{path} cannot be written: {path.parent} {there}")


def lock_of_launch(kept_up: Foreground, decided: LaunchPlan, known: Catalog, home: Path) -> Lock:
    """The lock of a launch that serves. It reads the checkpoint's small files: seconds.

    Args:
        decided: the plan that it began with.
        home: where it is kept what was fetched, and with which hashes.

    Raises:
        LockError: nothing serves, or it is not what was planned for all replicas together.
    """
    run, deployment = kept_up.run, kept_up.state.deployment
    if run.decided is None or run.prepared is None or decided.chosen is None:
        raise LockError("nothing serves")
    candidate = run.decided.candidate
    if decided.chosen.parallel.data > 1:
        if candidate.limits != decided.chosen.limits:
            raise LockError("one of its replicas was changed because it failed")
        candidate = decided.chosen
    return lock_of(
        replace(run.decided.plan, request=decided.request),
        candidate,
        known.model(decided.model),
        folder=run.prepared.folder,
        requirements=None if deployment.engine_path is not None else requirements_in(run.prepared.bin_directory.parent),
        home=home,
        engine_options=deployment.engine_options,
        own_weights=deployment.model_path is not None,
        own_engine=deployment.engine_path is not None,
    )
