"""How often a stream sends its new tokens."""

import asyncio


async def next_delivery(changed: asyncio.Event, interval_s: float) -> None:
    """Until the interval is over or the stream's state has changed; at interval 0 every iteration is such a change."""
    if interval_s == 0:
        await changed.wait()
        return
    try:
        await asyncio.wait_for(changed.wait(), interval_s)
    except TimeoutError:
        return
