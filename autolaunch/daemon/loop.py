"""The event loop of whatever serves: uvloop, which takes half of what a request costs on asyncio's own."""

from __future__ import annotations

import asyncio
import gc


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
