"""Whether a plan does what it was chosen for: predicted against measured, while it runs.

A plan that makes iterations longer than they may be is given up; times and energies that differ from the profile by
more than the noise correct it, and the frontier is solved anew.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from control_plane.training.profile import Choice, ComputationKey

SLOWDOWN_RATIO = 1.005
"""What a plan may cost in iteration time."""
FIRST_COUNTED = 1
"""The iteration in which clocks change is not the plan's."""
ENOUGH = 6
CORRECTED_ABOVE = 0.01
MOST_CORRECTION = 1.5
"""What differs by more is a straggler or a fault, not a profile that is a little off."""


@dataclass(frozen=True, slots=True)
class PlanGuard:
    """Watches one plan. ``allowed_s`` is what an iteration may take at most: at full clock, or with the straggler."""

    plan_id: str
    allowed_s: float
    times_s: tuple[float, ...] = ()
    seen: int = 0

    def observe(self, time_s: float) -> "PlanGuard":
        """One iteration under the plan, in seconds."""
        kept = self.times_s if self.seen < FIRST_COUNTED else (*self.times_s, time_s)[-32:]
        return PlanGuard(self.plan_id, self.allowed_s, kept, self.seen + 1)

    @property
    def too_slow(self) -> bool:
        """Whether the median is above what is allowed by more than 0.5 % and by more than chance (two standard errors
        of a median of normal noise)."""
        count = len(self.times_s)
        if count < ENOUGH:
            return False
        middle = median(self.times_s)
        sigma = 1.4826 * median(abs(time_s - middle) for time_s in self.times_s)
        return middle - self.allowed_s * SLOWDOWN_RATIO > 2 * 1.2533 * sigma / math.sqrt(count)


@dataclass(frozen=True, slots=True)
class KindRatios:
    """Of one kind of computation: measured over profiled time and energy at the clocks that ran."""

    time: float
    energy: float


def corrected(
    choices: Mapping[ComputationKey, tuple[Choice, ...]], ratios: Mapping[ComputationKey, KindRatios], noise: float
) -> dict[ComputationKey, tuple[Choice, ...]] | None:
    """The profile with what was measured under a plan: a kind's choices are scaled where they are off by more than
    twice the noise (a share of the time) and by more than 1 %. None where nothing is."""
    threshold = max(CORRECTED_ABOVE, 2 * noise)
    changed = {}
    for key, off in ratios.items():
        worst = max(abs(math.log(off.time)), abs(math.log(off.energy)))
        if key in choices and threshold < worst <= math.log(MOST_CORRECTION):
            changed[key] = tuple(
                Choice(c.freq_mhz, c.time_s * off.time, c.energy_j * off.energy, c.power_limit_w) for c in choices[key]
            )
    return {**choices, **changed} if changed else None
