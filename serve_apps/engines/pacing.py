"""How often a stream sends its new tokens."""

import asyncio
import time
from collections.abc import Callable, Sized


async def next_delivery(changed: asyncio.Event, interval_s: float) -> None:
    """Until the interval is over or the stream's state has changed; at interval 0 every iteration is such a change."""
    if interval_s == 0:
        await changed.wait()
        return
    try:
        await asyncio.wait_for(changed.wait(), interval_s)
    except TimeoutError:
        return


async def drained(streams: Sized, alive: Callable[[], bool], deadline_s: float) -> bool:
    """Whether no stream is left when the deadline is over, all have ended, or the engine has."""
    until_s = time.monotonic() + deadline_s
    while streams and alive() and time.monotonic() < until_s:
        await asyncio.sleep(min(0.05, deadline_s))
    return not streams
