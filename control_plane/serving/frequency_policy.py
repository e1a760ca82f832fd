"""Which clock a replica runs at: the least power that holds the SLO at its load, full clock in an emergency."""

from dataclasses import dataclass

from control_plane.domain import InputClass, Load, PoolName, ReplicaId, ReplicaView, Shape, Slo
from control_plane.ports import EnergyProfile
from control_plane.settings import FrequencySettings


@dataclass(frozen=True, slots=True)
class ClockChoice:
    """A clock and why."""

    freq_mhz: int
    why: str


def least_power_freq(profile: EnergyProfile, tp: int, load: Load) -> int | None:
    """The clock of least power at which one replica of this TP carries ``load`` within the SLO."""
    shapes = [Shape(tp, freq) for freq in profile.freqs_mhz]
    fitting = [(profile.power_w(shape, load), shape.freq_mhz) for shape in shapes if profile.meets_slo(shape, load)]
    return min(fitting)[1] if fitting else None


class FrequencyPolicy:
    """Chooses clocks for the replicas of one pool. Raises at once; lowers only after a dwell at the higher clock,
    so that a noisy load does not make the clock flap."""

    def __init__(
        self,
        pool: PoolName,
        input_classes: tuple[InputClass, ...],
        profile: EnergyProfile,
        slo: Slo,
        settings: FrequencySettings,
    ) -> None:
        self._pool = pool
        self._profile = profile
        self._settings = settings
        self._urgent_wait_s = settings.urgent_wait_ratio * min(slo.ttft_s(name) for name in input_classes)
        self._raised_at_s: dict[ReplicaId, float] = {}

    def choose(self, now_s: float, replica: ReplicaView, load: Load) -> ClockChoice:
        """``load`` is this replica's share of what arrives."""
        top = self._profile.freqs_mhz[-1]
        if replica.oldest_wait_s > self._urgent_wait_s:
            self._raised_at_s[replica.replica_id] = now_s
            waited_ms = replica.oldest_wait_s * 1000
            return ClockChoice(top, f"a first token waits for {waited_ms:.0f} ms: full clock")
        wanted = least_power_freq(self._profile, replica.tp, load.scaled(1 + self._settings.headroom_ratio))
        if wanted is None:
            self._raised_at_s[replica.replica_id] = now_s
            return ClockChoice(top, f"{load.rps:.2f} rps is more than any clock carries: full clock")
        why = f"least power that holds the SLO at {load.rps:.2f} rps"
        if wanted > replica.freq_mhz:
            self._raised_at_s[replica.replica_id] = now_s
        elif wanted < replica.freq_mhz:
            raised_s = self._raised_at_s.setdefault(replica.replica_id, now_s)
            if now_s - raised_s < self._settings.dwell_s:
                return ClockChoice(replica.freq_mhz, "dwell before lowering")
        return ClockChoice(wanted, why)

    def forget(self, alive: frozenset[ReplicaId]) -> None:
        self._raised_at_s = {r: at for r, at in self._raised_at_s.items() if r in alive}
