"""The GPU frequency agent of one node: carries out the lease book on the hardware, reads power and energy.

A lowered clock is always somebody's, and only for as long as they renew: when the owner falls silent the clock is
reset to full. The agent believes the hardware, not its own record: what the hardware does not have in force is set
again at every tick. On start every clock is brought to its default, because whoever lowered it may be gone.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from actors import metrics
from actors.messages import GpuReading, Held
from control_plane.leases import DEFAULT, Hold, LeaseBook
from control_plane.ports import Gpu, GpuError, GpuNode

log = logging.getLogger(__name__)


class GpuAgent:
    """One per node, pinned to it. Where ``control`` is "recommend" clocks are computed and shown elsewhere; here none
    is ever set."""

    tick_s = 1.0

    def __init__(
        self,
        node_id: str,
        open_node: Callable[[], GpuNode],
        control: Literal["act", "recommend"],
        monotonic_s: Callable[[], float],
    ) -> None:
        self.node_id = node_id
        self._node = open_node()
        self._gpus: dict[str, Gpu] = {gpu.uuid: gpu for gpu in self._node.gpus()}
        self._acts = control == "act"
        self._monotonic_s = monotonic_s
        self._book = LeaseBook(self._gpus, in_force=None if self._acts else DEFAULT)
        self._energy_seen_j: dict[str, float] = {}
        self._set_what_is_due()

    def hold(self, owner: str, wanted: Mapping[str, Hold], ttl_s: float, epoch: int = 0) -> Held:
        """These are all the GPUs that ``owner`` wants held, by UUID, for ``ttl_s`` from now: its other leases end.
        Repeating it renews. Returns what is in force now on each of these GPUs, and why the others were refused.

        Raises StaleEpochError and ValueError as ``LeaseBook.hold`` does.
        """
        if not self._acts:
            return Held({uuid: self._allowed_mhz(uuid) for uuid in wanted if uuid in self._gpus}, {})
        answer = self._book.hold(owner, wanted, ttl_s, self._monotonic_s(), epoch)
        refused = {**answer.refused, **self._set_what_is_due()}
        in_force = {uuid: self._allowed_mhz(uuid) for uuid in answer.granted if uuid not in refused}
        return Held(in_force, {uuid: why for uuid, why in refused.items() if uuid in wanted})

    def hold_schedule(self, owner: str, uuids: Sequence[str], ttl_s: float, epoch: int = 0) -> bool:
        """``owner`` drives the clocks of these GPUs itself for ``ttl_s`` from now; then they are reset to full, unless
        it asks again. Returns whether clocks may be set at all ("recommend" sets none; the GPUs are the owner's all the
        same).

        Raises ValueError where it may not have one of them: a schedule needs all of its GPUs.
        """
        answer = self._book.schedule(owner, uuids, ttl_s, self._monotonic_s(), epoch)
        if answer.refused:
            told = "; ".join(f"GPU {uuid}: {why}" for uuid, why in answer.refused.items())
            raise ValueError(f"node {self.node_id}, for {owner}: {told}")
        return self._acts

    def release(self, owner: str, uuids: Sequence[str] | None = None) -> None:
        """The owner's leases on these GPUs, or all of them, go back to full clock."""
        self._book.release(owner, uuids)
        self._set_what_is_due()

    def reset_all(self) -> None:
        """Every clock back to full, whoever holds it."""
        self._book.release_all()
        self._set_what_is_due()

    def readings(self) -> tuple[GpuReading, ...]:
        """Every GPU that answers; one that is lost is left out and the others stay."""
        readings = []
        for uuid, gpu in self._gpus.items():
            lease = self._book.lease(uuid)
            try:
                readings.append(
                    GpuReading(
                        uuid,
                        gpu.freq_mhz(),
                        self._allowed_mhz(uuid),
                        gpu.power_w(),
                        gpu.energy_j(),
                        None if lease is None else lease.owner,
                        tuple(sorted(gpu.clock_events())),
                        None if lease is None else self._monotonic_s() - lease.renewed_s,
                    )
                )
            except GpuError as error:
                log.warning("GPU %s cannot be read: %s", uuid, error)
        return tuple(readings)

    def energy_j(self) -> float:
        """Sum of this node's GPU energy counters."""
        return sum(reading.energy_j for reading in self.readings())

    def leases(self) -> dict[str, tuple[str, int]]:
        """Who holds which GPU, and the highest clock that it may take now."""
        return {uuid: (lease.owner, self._allowed_mhz(uuid)) for uuid, lease in self._book.leases().items()}

    async def tick(self) -> None:
        """End lapsed leases, set what the hardware does not have in force, free the GPUs of dead processes, publish."""
        for uuid, lease in self._book.expire(self._monotonic_s()).items():
            log.warning("lease of %s on %s lapsed: full clock", lease.owner, uuid)
            metrics.lease_lapsed(uuid)
        self._look_for_drift()
        self._set_what_is_due()
        self._node.reap()
        for reading in self.readings():
            before_j = self._energy_seen_j.get(reading.uuid, reading.energy_j)
            self._energy_seen_j[reading.uuid] = reading.energy_j
            # A counter that fell was reset by its driver: a new epoch begins, nothing was given back.
            metrics.gpu(reading, max(0.0, reading.energy_j - before_j))

    def _set_what_is_due(self) -> dict[str, str]:
        """Set the hardware to what the book says; why it failed, by GPU. What failed is due again at the next tick."""
        failed: dict[str, str] = {}
        if not self._acts:
            return failed
        for uuid, hold in self._book.to_set().items():
            try:
                self._set(self._gpus[uuid], hold)
                self._book.was_set(uuid, hold)
            except (GpuError, ValueError) as error:
                self._book.is_unknown(uuid)
                failed[uuid] = str(error)
                log.warning("GPU %s was not set to %s: %s", uuid, hold, error)
        return failed

    @staticmethod
    def _set(gpu: Gpu, hold: Hold) -> None:
        if hold.freq_mhz is None:
            gpu.reset_freq()
        else:
            gpu.lock_freq(hold.freq_mhz)
        if hold.power_w is not None:
            gpu.set_power_limit(hold.power_w)
        elif gpu.power_limit_w() < gpu.power_limits_w()[1]:
            gpu.reset_power_limit()

    def _look_for_drift(self) -> None:
        """Somebody else may have set a GPU that we hold or that should be at its default."""
        if not self._acts:
            return
        for uuid, gpu in self._gpus.items():
            lease = self._book.lease(uuid)
            hold = DEFAULT if lease is None else lease.hold
            if hold is None or uuid in self._book.to_set():
                continue
            try:
                locked_mhz = gpu.locked_mhz()
            except GpuError as error:
                log.warning("GPU %s cannot be read: %s", uuid, error)
                continue
            wanted_mhz = self._nearest_mhz(gpu, hold)
            if locked_mhz is not None and locked_mhz != wanted_mhz:
                log.warning("GPU %s may take %d MHz instead of %d: set again", uuid, locked_mhz, wanted_mhz)
                self._book.is_unknown(uuid)

    def _allowed_mhz(self, uuid: str) -> int:
        """The highest clock the GPU may take now: the hardware's own word where it gives one, else what was set."""
        gpu = self._gpus[uuid]
        locked_mhz = gpu.locked_mhz()
        if locked_mhz is not None:
            return locked_mhz
        lease = self._book.lease(uuid)
        held = uuid not in self._book.to_set() and lease is not None and lease.hold is not None
        return self._nearest_mhz(gpu, lease.hold if held and lease is not None and lease.hold else DEFAULT)

    @staticmethod
    def _nearest_mhz(gpu: Gpu, hold: Hold) -> int:
        """The supported clock that a hold comes to: not above it."""
        supported = gpu.supported_freqs_mhz()
        if hold.freq_mhz is None:
            return supported[-1]
        return max((freq for freq in supported if freq <= hold.freq_mhz), default=supported[0])
