"""Hosts a policy's governor inside the replica whose clock it moves: asked every second and at every arrival, kept
within the bounds that the pool's controller ordered, carried out by the node's agent under a lease."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from actors.messages import Orders
from actors.peers import PeerAwayError
from control_plane.domain import QueueView
from control_plane.serving.policy import Governor, HearingGovernor

log = logging.getLogger(__name__)

LOOK_S = 1.0

Hold = Callable[[Mapping[str, int], float], Awaitable[None]]
"""(highest clock in MHz by GPU UUID, lease in seconds). Raises PeerAwayError."""


@dataclass(frozen=True, slots=True)
class ClockRange:
    """The clocks a governor may choose from, ascending, and how long a lease lasts."""

    freqs_mhz: Sequence[int]
    lease_ttl_s: float


class GovernorHost:
    """A governor's answer is rounded up to a clock there is: a replica is never slower than the governor wants."""

    def __init__(
        self,
        governor: Governor,
        queue: Callable[[], QueueView],
        hold: Hold,
        uuids: Sequence[str],
        clocks: ClockRange,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._governor, self._queue, self._hold, self._uuids = governor, queue, hold, uuids
        self._clocks, self._monotonic_s = clocks, monotonic_s
        self._floor_mhz, self._ceiling_mhz = clocks.freqs_mhz[0], clocks.freqs_mhz[-1]
        self._arrived = asyncio.Event()
        self._held_mhz: int | None = None
        self._renew_at_s = float("-inf")

    def order(self, orders: Orders) -> None:
        """The pool manager's bounds; None leaves that side as it is."""
        lowest, highest = self._clocks.freqs_mhz[0], self._clocks.freqs_mhz[-1]
        floor_mhz = self._floor_mhz if orders.governor_floor_mhz is None else orders.governor_floor_mhz
        ceiling_mhz = self._ceiling_mhz if orders.governor_ceiling_mhz is None else orders.governor_ceiling_mhz
        bounds = max(lowest, min(floor_mhz, highest)), max(lowest, min(ceiling_mhz, highest))
        if bounds != (self._floor_mhz, self._ceiling_mhz):
            self._floor_mhz, self._ceiling_mhz = bounds
            self._arrived.set()

    def arrived(self) -> None:
        """A request has joined the queue: look at once."""
        self._arrived.set()

    def first_token(self, ttft_s: float, ttft_limit_s: float) -> None:
        if isinstance(self._governor, HearingGovernor):
            self._governor.first_token(ttft_s, ttft_limit_s)

    async def run(self) -> None:
        """For ever. A governor that fails leaves its lease to lapse: then the clock is full again."""
        while True:
            self._arrived.clear()
            try:
                await self.look()
            except PeerAwayError as error:
                log.warning("the clock is not held: %s", error)
            except Exception:
                log.exception("the governor failed; the clock goes back to full when its lease ends")
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._arrived.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """Ask the governor; tell the agent where the clock changes or the lease needs renewing."""
        now_s = self._monotonic_s()
        wanted_mhz = self._clamped(self._governor.look(self._queue(), now_s))
        if wanted_mhz == self._held_mhz and now_s < self._renew_at_s:
            return
        self._held_mhz = None
        await self._hold(dict.fromkeys(self._uuids, wanted_mhz), self._clocks.lease_ttl_s)
        self._held_mhz, self._renew_at_s = wanted_mhz, now_s + self._clocks.lease_ttl_s / 3

    def _clamped(self, freq_mhz: int) -> int:
        """Within the bounds; where they contradict each other the floor holds, the quicker of the two."""
        bounded_mhz = max(self._floor_mhz, min(self._ceiling_mhz, freq_mhz))
        return next(mhz for mhz in self._clocks.freqs_mhz if mhz >= bounded_mhz)
