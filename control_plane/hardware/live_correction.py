"""The planner's own slow correction in use: what replicas measure beside what the profile says of their load, and the
profile that plans are made with adopting the factors.

The profile's object stays the same, so that whoever plans with it plans with the corrected one.
"""

from collections.abc import Collection
from dataclasses import dataclass

from control_plane.domain import Load, ReplicaId, Shape
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profile_correction import CorrectionRules, Factors, Phase, SlowCorrection, corrected

LOOK_EVERY_S = 10.0
LEAST_RPS = 0.05
"""Of a replica: below it a minute's mean says nothing."""


@dataclass(frozen=True, slots=True)
class ReplicaReading:
    """What a replica measured over the last minute; None where nothing ended or nothing is known."""

    replica_id: ReplicaId
    shape: Shape
    """With the clock that its GPUs run at."""
    tbt_s: float | None
    power_w: float | None = None


class LiveCorrection:
    """Of one pool. ``profile`` is the object that the pool's policy plans with."""

    def __init__(self, profile: MachineProfile, rules: CorrectionRules | None = None) -> None:
        self._profile = profile
        self._base = profile.copy()
        errors = profile.evidence.errors
        time_error = errors.get("time", errors.get("time_held_out", 0.10))
        power_error = errors.get("power", errors.get("power_held_out", 0.10))
        stated = {Phase.DECODE: time_error, Phase.PREFILL: time_error, Phase.POWER: power_error}
        self._rules = rules or CorrectionRules()
        self._correction = SlowCorrection(self._rules, stated)
        self._ready_since_s: dict[ReplicaId, float] = {}
        self._looked_at_s = float("-inf")
        self._adopted = Factors()

    @property
    def factors(self) -> Factors:
        return self._correction.factors()

    def disagreements(self) -> dict[Phase, float]:
        return self._correction.disagreements()

    def look(self, now_s: float, load: Load, ready: Collection[ReplicaReading]) -> bool:
        """Compare, at most every ten seconds; whether the profile changed. ``load`` is the whole pool's, shared evenly
        by the replicas that are ready."""
        self._forget_others({reading.replica_id for reading in ready})
        for reading in ready:
            self._ready_since_s.setdefault(reading.replica_id, now_s)
        if now_s - self._looked_at_s < LOOK_EVERY_S or not ready or load.rps / len(ready) < LEAST_RPS:
            return False
        self._looked_at_s = now_s
        share = load.scaled(1 / len(ready))
        for reading in ready:
            self._compare(now_s, reading, share)
        return self._adopt()

    def _compare(self, now_s: float, reading: ReplicaReading, share: Load) -> None:
        shape = Shape(reading.shape.tp, self._nearest_mhz(reading.shape.freq_mhz))
        point = self._base.operating_point(shape, share)
        if point.saturated:
            return
        ready_for_s = now_s - self._ready_since_s[reading.replica_id]
        if reading.tbt_s is not None:
            self._correction.see(Phase.DECODE, now_s, point.tbt_s, reading.tbt_s, ready_for_s)
        if reading.power_w is not None:
            idle_w = self._base.idle_power_w(shape.tp)
            modelled_w, measured_w = point.power_w - idle_w, reading.power_w - idle_w
            self._correction.see(Phase.POWER, now_s, modelled_w, measured_w, ready_for_s)

    def _adopt(self) -> bool:
        """Times carry the headroom too: a machine taken to be slower is given less."""
        factors, headroom = self._correction.factors(), self._correction.headroom_factor()
        # Nobody reports a prefill's own time: it is taken to be off as decoding is.
        wanted = Factors(factors.decode * headroom, factors.decode * headroom, factors.power)
        if wanted.apart(self._adopted) < self._rules.step:
            return False
        self._adopted = wanted
        self._profile.adopt(corrected(self._base, wanted))
        return True

    def _nearest_mhz(self, freq_mhz: int) -> int:
        return self._base.gpu.supported_at_most(freq_mhz)

    def _forget_others(self, there: Collection[ReplicaId]) -> None:
        for replica_id in [one for one in self._ready_since_s if one not in there]:
            del self._ready_since_s[replica_id]
