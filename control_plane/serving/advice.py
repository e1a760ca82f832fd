"""What control would have saved while it only recommended: measured watts, and by the profile how many of them the
wished fleet at the wished clocks would have drawn under the same load.

Scale errors of the profile cancel in the ratio of two of its powers. What is left is the profile's stated error, of
both powers, and how far its power for what really ran is from what was measured; the band is their root of squares.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from control_plane.domain import Load, Shape
from control_plane.hardware.machine_profile import MachineProfile

LONGEST_GAP_S = 30.0
"""Between two looks: a longer one is not counted."""
UNKNOWN_ERROR = 0.10
"""Of a profile that states no error of its powers."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Since control began to recommend (or this manager last started), in joules and seconds; adds up over pools."""

    watched_s: float = 0.0
    measured_s: float = 0.0
    """Replica-seconds whose power was measured; ``replica_s`` is all of them."""
    replica_s: float = 0.0
    used_j: float = 0.0
    """Measured, and the profile's where nothing was measured."""
    saved_by_clocks_j: float = 0.0
    """By the wished clocks on the replicas that ran."""
    saved_j: float = 0.0
    """By wished clocks and replica counts together; below zero where more was wished than ran."""
    error_j: float = 0.0
    """What ``saved_j`` may be off by, one standard deviation."""
    overloaded_s: float = 0.0
    """Of ``watched_s``, in which the wished fleet could not have carried the load by the profile: no saving counts."""

    def __add__(self, other: "Advice") -> "Advice":
        return Advice(
            max(self.watched_s, other.watched_s),
            self.measured_s + other.measured_s,
            self.replica_s + other.replica_s,
            self.used_j + other.used_j,
            self.saved_by_clocks_j + other.saved_by_clocks_j,
            self.saved_j + other.saved_j,
            # The pools share one profile: its error is the same error.
            self.error_j + other.error_j,
            max(self.overloaded_s, other.overloaded_s),
        )


@dataclass(frozen=True, slots=True)
class Running:
    """A replica that runs: its shape with the observed clock, its measured power, and the clock wished for it."""

    shape: Shape
    power_w: float | None
    wished_mhz: int


class AdviceLog:
    """Of one pool whose replicas do both phases."""

    def __init__(self, profile: MachineProfile) -> None:
        self._profile = profile.copy()
        errors = profile.evidence.errors
        self._stated = errors.get("power", errors.get("power_held_out", UNKNOWN_ERROR))
        self._looked_s: float | None = None
        self._sum = Advice()
        self._modelled_j = self._would_j = self._metered_j = 0.0

    def look(self, now_s: float, load: Load, running: Sequence[Running], wished: Mapping[int, int]) -> None:
        """``load`` is the pool's, shared evenly; ``wished`` replicas by tensor parallelism, empty where the policy
        wishes what runs."""
        before, self._looked_s = self._looked_s, now_s
        if before is None or not 0 < now_s - before <= LONGEST_GAP_S or not running:
            return
        lasts_s = now_s - before
        share = load.scaled(1 / len(running))
        modelled_w = [self._power_w(replica.shape, share) for replica in running]
        measured = [replica.power_w for replica in running if replica.power_w is not None]
        used_w = sum(
            model if replica.power_w is None else replica.power_w
            for replica, model in zip(running, modelled_w, strict=True)
        )
        slower = [Shape(replica.shape.tp, replica.wished_mhz) for replica in running]
        fleet = self._fleet(slower, wished) or slower
        part = load.scaled(1 / len(fleet))
        ratio = sum(modelled_w) and used_w / sum(modelled_w)
        by_clocks_w = used_w - ratio * sum(self._power_w(shape, share) for shape in slower)
        would_w = ratio * sum(self._power_w(shape, part) for shape in fleet)
        overloaded = any(self._saturated(shape, part) for shape in fleet)
        if overloaded:
            by_clocks_w, would_w = 0.0, used_w
        self._would_j += would_w * lasts_s
        self._metered_j += sum(measured) * lasts_s
        self._modelled_j += lasts_s * sum(
            model for replica, model in zip(running, modelled_w, strict=True) if replica.power_w is not None
        )
        self._sum = Advice(
            self._sum.watched_s + lasts_s,
            self._sum.measured_s + lasts_s * len(measured),
            self._sum.replica_s + lasts_s * len(running),
            self._sum.used_j + used_w * lasts_s,
            self._sum.saved_by_clocks_j + by_clocks_w * lasts_s,
            self._sum.saved_j + (used_w - would_w) * lasts_s,
            self._would_j * math.hypot(math.sqrt(2) * self._stated, self._apart()),
            self._sum.overloaded_s + lasts_s * overloaded,
        )

    def advice(self) -> Advice:
        return self._sum

    def _apart(self) -> float:
        """How far the profile's energy of what ran is from what was measured; nothing measured: its stated error."""
        if self._metered_j <= 0:
            return self._stated
        return abs(self._modelled_j / self._metered_j - 1)

    def _fleet(self, slower: Sequence[Shape], wished: Mapping[int, int]) -> list[Shape]:
        """The wished replicas, at the middle clock wished for their tensor parallelism, else at full clock."""
        fleet = []
        for tp, count in wished.items():
            clocks = sorted(shape.freq_mhz for shape in slower if shape.tp == tp)
            mhz = clocks[len(clocks) // 2] if clocks else self._profile.max_freq_mhz
            fleet += [Shape(tp, mhz)] * count
        return fleet

    def _power_w(self, shape: Shape, load: Load) -> float:
        return self._profile.power_w(self._known(shape), load)

    def _saturated(self, shape: Shape, load: Load) -> bool:
        return self._profile.operating_point(self._known(shape), load).saturated

    def _known(self, shape: Shape) -> Shape:
        """With the nearest clock that the profile has."""
        return Shape(shape.tp, min(self._profile.freqs_mhz, key=lambda mhz: abs(mhz - shape.freq_mhz)))
