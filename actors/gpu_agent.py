"""The GPU frequency agent of one node: holds clocks under leases, reads power and energy.

A lowered clock is always somebody's, and only for as long as they renew: when the owner falls silent the clock is
reset to full. On start every clock found lowered is reset, because whoever lowered it may be gone.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from actors import metrics
from actors.messages import GpuReading
from control_plane.ports import Gpu

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Lease:
    """The agent holds the clock for its owner."""

    owner: str
    freq_mhz: int
    expires_s: float


@dataclass(slots=True)
class _ScheduleLease:
    """The owner moves the clock itself, as its schedule says; the agent only sees to its end."""

    owner: str
    expires_s: float


class GpuAgent:
    """One per node, pinned to it. ``control`` is "act" or "recommend" (clocks are computed and shown, never set)."""

    tick_s = 1.0

    def __init__(
        self,
        node_id: str,
        open_gpus: Callable[[], Sequence[Gpu]],
        control: str,
        monotonic_s: Callable[[], float],
        reap: Callable[[], int] | None = None,
    ) -> None:
        self.node_id = node_id
        self._gpus: dict[str, Gpu] = {gpu.uuid: gpu for gpu in open_gpus()}
        self._control = control
        self._monotonic_s = monotonic_s
        self._reap = reap
        self._leases: dict[str, _Lease | _ScheduleLease] = {}
        self._energy_seen_j: dict[str, float] = {}
        if control == "act":
            for gpu in self._gpus.values():
                gpu.reset_freq()

    def hold(self, owner: str, wanted: Mapping[str, int], ttl_s: float) -> dict[str, int]:
        """These are all the clocks ``owner`` wants, by GPU UUID in MHz, for ``ttl_s`` from now: its other leases
        end. Repeating it renews. Returns the highest clock each of these GPUs may take now.

        Raises ValueError for a GPU this node does not have, and for one leased to somebody else.
        """
        self._check_may_take(owner, wanted)
        expires_s = self._monotonic_s() + ttl_s
        for uuid in [u for u, lease in self._leases.items() if lease.owner == owner and u not in wanted]:
            self._end(uuid)
        for uuid, freq_mhz in wanted.items():
            current = self._leases.get(uuid)
            held = isinstance(current, _Lease) and current.freq_mhz == freq_mhz
            if self._control == "act" and not held:
                self._gpus[uuid].lock_freq(freq_mhz)
            self._leases[uuid] = _Lease(owner, freq_mhz, expires_s)
        return {uuid: self._locked_mhz(uuid) for uuid in wanted}

    def hold_schedule(self, owner: str, uuids: Sequence[str], ttl_s: float) -> bool:
        """``owner`` drives the clocks of these GPUs itself for ``ttl_s`` from now; then they are reset to full, unless
        it asks again. Returns whether clocks may be set at all ("recommend" sets none).

        Raises ValueError as ``hold`` does.
        """
        self._check_may_take(owner, uuids)
        expires_s = self._monotonic_s() + ttl_s
        self._leases.update({uuid: _ScheduleLease(owner, expires_s) for uuid in uuids})
        return self._control == "act"

    def release(self, owner: str) -> None:
        """All clocks of ``owner`` go back to full."""
        for uuid in [u for u, lease in self._leases.items() if lease.owner == owner]:
            self._end(uuid)

    def reset_all(self) -> None:
        """Every clock back to full, whoever holds it."""
        for uuid in list(self._leases):
            self._end(uuid)

    def readings(self) -> tuple[GpuReading, ...]:
        readings = []
        for uuid, gpu in self._gpus.items():
            lease = self._leases.get(uuid)
            owner = None if lease is None else lease.owner
            readings.append(
                GpuReading(uuid, gpu.freq_mhz(), self._locked_mhz(uuid), gpu.power_w(), gpu.energy_j(), owner)
            )
        return tuple(readings)

    def energy_j(self) -> float:
        """Sum of this node's GPU energy counters."""
        return sum(gpu.energy_j() for gpu in self._gpus.values())

    def leases(self) -> dict[str, tuple[str, int]]:
        """Who holds which GPU at which clock; under a schedule, the clock it has now."""
        return {
            uuid: (lease.owner, lease.freq_mhz if isinstance(lease, _Lease) else self._gpus[uuid].freq_mhz())
            for uuid, lease in self._leases.items()
        }

    async def tick(self) -> None:
        """Reset lapsed leases, free the GPUs of dead processes, publish metrics."""
        now_s = self._monotonic_s()
        for uuid, lease in list(self._leases.items()):
            if lease.expires_s <= now_s:
                log.warning("lease of %s on %s lapsed: full clock", lease.owner, uuid)
                self._end(uuid)
        if self._reap is not None:
            self._reap()
        for reading in self.readings():
            before_j = self._energy_seen_j.get(reading.uuid, reading.energy_j)
            self._energy_seen_j[reading.uuid] = reading.energy_j
            metrics.gpu(reading, reading.energy_j - before_j)

    def _check_may_take(self, owner: str, uuids: Iterable[str]) -> None:
        for uuid in uuids:
            if uuid not in self._gpus:
                raise ValueError(f"node {self.node_id} has no GPU {uuid}")
            lease = self._leases.get(uuid)
            if lease is not None and lease.owner != owner:
                raise ValueError(f"GPU {uuid} is leased to {lease.owner}, not to {owner}")

    def _end(self, uuid: str) -> None:
        del self._leases[uuid]
        if self._control == "act":
            self._gpus[uuid].reset_freq()

    def _locked_mhz(self, uuid: str) -> int:
        lease = self._leases.get(uuid)
        if not isinstance(lease, _Lease) or self._control != "act":
            return self._gpus[uuid].supported_freqs_mhz()[-1]
        return lease.freq_mhz
