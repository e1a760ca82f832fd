"""Fits of the length predictor, in a thread beside the router's event loop."""

import asyncio
import logging

from control_plane.serving.hosting import RouterHost

log = logging.getLogger(__name__)

LOOK_S = 5.0


async def fit_lengths(host: RouterHost, look_s: float = LOOK_S) -> None:
    """For ever. Where a fit fails the last one holds."""
    while True:
        fit = host.length_fit_due()
        if fit is not None:
            try:
                host.adopt_lengths(await asyncio.to_thread(fit.solve))
            except Exception:
                log.exception("output lengths could not be fitted; the last fit holds")
        await asyncio.sleep(look_s)
