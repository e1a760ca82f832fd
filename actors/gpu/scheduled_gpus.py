"""A schedule lease at gpud for whoever moves clocks often: the governor of a replica."""

import asyncio
from collections.abc import Mapping

from actors.gpu.gpud_client import GpudClient, GpudError, Granted
from actors.peers import PeerAwayError


class ScheduledGpus:
    """A set takes about a millisecond beyond the driver's call; it is waited for in a thread, so that a gpud that is
    stopped stalls nobody."""

    def __init__(self, client: GpudClient, owner: str) -> None:
        self._client, self._owner = client, owner

    async def hold(self, clocks_mhz: Mapping[str, int], ttl_s: float) -> None:
        """Renew the lease on these GPUs and set them. Raises PeerAwayError where gpud does not do so."""
        try:
            await asyncio.to_thread(self._hold, clocks_mhz, ttl_s)
        except GpudError as error:
            raise PeerAwayError(f"gpud: {error}") from error

    def _hold(self, clocks_mhz: Mapping[str, int], ttl_s: float) -> None:
        _checked(self._client.schedule(self._owner, list(clocks_mhz), ttl_s))
        _checked(self._client.set(self._owner, clocks_mhz))


def _checked(answer: Granted) -> None:
    for refusal in answer.refused.values():
        raise GpudError(refusal.message, refusal.kind)
