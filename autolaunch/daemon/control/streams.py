"""What is answered piece by piece: what engines print, and what happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import msgspec

from autolaunch.daemon.control import views
from autolaunch.daemon.control.contract import EventsQuery, LogsQuery
from autolaunch.daemon.control.happened import BATCH, Happened
from autolaunch.daemon.control.log_lines import Lines, Source

if TYPE_CHECKING:
    from autolaunch.daemon.control.steered import Steered
    from autolaunch.daemon.supervisor import Supervisor

#: How often a log that is followed is looked at.
LOOK_SECONDS = 0.2


async def logs(
    steered: Steered, name: str, query: LogsQuery, *, readers: Executor, closing: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    """The last lines of each replica, and with ``follow`` what comes until the deployment is gone, or ``closing``.

    Of several replicas each line has its unit in front.
    """
    loop = asyncio.get_running_loop()
    following: dict[str, Lines] = {}
    count = len(views.units(steered, name))
    try:
        while units := views.units(steered, name):
            came = False
            for unit, one in units.items():
                front = "" if max(count, len(units)) == 1 else f"[{unit}] "
                lines, source = following.get(unit), source_of(one)
                if lines is None:
                    lines = following[unit] = Lines(views.shown)
                    found = _left(one, query.lines) if source is None else ()
                    if source is not None:
                        found = tuple(await loop.run_in_executor(readers, lines.tail, source, query.lines))
                elif source is not None:
                    found = tuple(await loop.run_in_executor(readers, lines.more, source))
                else:
                    found = ()
                if found:
                    came = True
                    yield "".join(f"{front}{line}\n" for line in found).encode()
            if not query.follow or closing.is_set():
                return
            if not came:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(closing.wait(), LOOK_SECONDS)
    finally:
        for each in following.values():
            each.close()


async def events(happened: Happened, query: EventsQuery, *, closing: asyncio.Event) -> AsyncGenerator[bytes, None]:
    """Events after ``since``, a document a line. Who reads slowly misses some, and is told how many."""
    came, loop, since = asyncio.Event(), asyncio.get_running_loop(), query.since

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and this with it
            loop.call_soon_threadsafe(came.set)

    happened.follow(tell)
    closes = asyncio.ensure_future(closing.wait())
    closes.add_done_callback(lambda _: came.set())
    try:
        while True:
            came.clear()
            found = happened.after(since)
            if found:
                since = found[-1].serial
                yield b"".join(msgspec.json.encode(each) + b"\n" for each in found)
            if len(found) >= BATCH:
                continue
            if not query.follow or closing.is_set():
                return
            await came.wait()
    finally:
        happened.leave(tell)
        closes.cancel()


def source_of(one: Supervisor) -> Source | None:
    """The log of the engine that runs, or of the last."""
    for run in (one.run, one.ran):
        if run.server is not None:
            return Source(run.server.log_path, views.keys_of(one.run, one.ran))
    return None


def _left(one: Supervisor, count: int) -> tuple[str, ...]:
    """The last lines of an engine that an earlier daemon had."""
    fault = one.state.fault
    return () if fault is None or not count else tuple(views.shown(line) for line in fault.lines)[-count:]
