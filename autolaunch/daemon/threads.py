"""An executor whose threads keep no program from ending.

Those of ``concurrent.futures`` are waited for when the interpreter ends: one that waits for a model to load would hold
up a script that has long come to its end. What these do then ends with the process, and the engines by their guards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class DaemonThreads(Executor):
    """Runs each call in a thread of its own, at once: there are a few calls a minute, and each may block for hours."""

    def __init__(self, name: str) -> None:
        """``name`` is the threads'."""
        self._name = name
        self._threads: set[threading.Thread] = set()
        self._changing = threading.Lock()

    def submit(self, call: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> Future[T]:
        found: Future[T] = Future()

        def run() -> None:
            try:
                if found.set_running_or_notify_cancel():
                    try:
                        result = call(*arguments, **named)
                    except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
                        found.set_exception(error)
                    else:
                        found.set_result(result)
            finally:
                with self._changing:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=self._name, daemon=True)
        with self._changing:
            self._threads.add(thread)
        thread.start()
        return found

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - the base's
        """Waits until what runs has ended; nothing is ever queued here."""
        with self._changing:
            threads = tuple(self._threads)
        for thread in threads if wait else ():
            thread.join()
