"""The event loop of whatever serves: uvloop, which takes half of what a request costs on asyncio's own."""

from __future__ import annotations

import asyncio
import gc
import resource

#: More files than a gateway has clients for, engines and logs beside them.
MOST_FILES = 65_536


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop that nobody runs yet; asyncio's own where uvloop has no build."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def settle() -> None:
    """Whatever was read in stays: the garbage collector need not look through it again, which holds up every stream."""
    gc.collect()
    gc.freeze()
    # A command line of some milliseconds does without (autolaunch.cli.main); what serves for weeks does not.
    gc.set_threshold(700, 10, 10)


def take_files() -> None:
    """As many open files as this process may have: each client is one, and 1024 are a common bound."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
