"""A GPU's energy from a counter that may freeze, restart or be missing: it never falls, and it says what it rests on.

A counter that fell was restarted by its driver: a new epoch begins with what it shows. One that stands still although
the GPU draws power is frozen: until it moves again the energy is the integral of the power samples, and is marked so.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

FROZEN_S = 2.0
"""The counter moves every 100 ms; one that has stood still for this long while power was drawn is frozen."""
FROZEN_J = 20.0
"""Ten watts for two seconds: less than any GPU draws when idle."""
COMPARED_S = 2.0
"""Between looks further apart power may have been anything, so these gaps are not compared with the counter."""


class Source(StrEnum):
    """What the last joules were counted by."""

    COUNTER = "counter"
    POWER = "power"
    """The integral of power samples: coarser, and nothing between two looks is seen."""
    NONE = "none"
    """Neither counter nor power: what was used is not known."""


@dataclass(frozen=True, slots=True)
class EnergyMeter:
    """``total_j`` since the first look. To compare, ``power_j`` is the integral of power between looks close together,
    and ``compared_j`` what was counted in the same gaps."""

    total_j: float = 0.0
    power_j: float = 0.0
    compared_j: float = 0.0
    epoch: int = 0
    """How often the counter was restarted."""
    source: Source = Source.NONE
    at_s: float | None = None
    counter_j: float | None = None
    power_w: float | None = None
    still_s: float = 0.0
    """How long the counter has stood still or was not readable."""
    still_j: float = 0.0
    """What power says was used in that time; not in ``total_j`` as long as the counter is believed."""

    def seen(self, now_s: float, counter_j: float | None, power_w: float | None) -> "EnergyMeter":
        """After a look at the GPU: its counter and its power, None where they cannot be read."""
        if self.at_s is None:
            source = Source.COUNTER if counter_j is not None else Source.POWER if power_w is not None else Source.NONE
            return replace(self, at_s=now_s, counter_j=counter_j, power_w=power_w, source=source)
        elapsed_s = max(0.0, now_s - self.at_s)
        known_w = [watts for watts in (self.power_w, power_w) if watts is not None]
        drawn_j = elapsed_s * sum(known_w) / len(known_w) if known_w else 0.0
        compared = elapsed_s <= COMPARED_S and bool(known_w)
        looked = replace(self, at_s=now_s, power_w=power_w, power_j=self.power_j + (drawn_j if compared else 0.0))
        if self.counter_j is None:
            source = Source.POWER if known_w else Source.NONE
            return replace(looked, counter_j=counter_j, total_j=self.total_j + drawn_j, source=source)
        if counter_j is None or counter_j == self.counter_j:
            return looked._still(elapsed_s, drawn_j)
        # After a freeze, or a restart from zero, no more was used since the last look than power says; the jump may
        # hold what was counted by power meanwhile.
        fell = counter_j < self.counter_j
        moved_j = counter_j if fell else counter_j - self.counter_j
        counted_j = min(moved_j, drawn_j) if fell or self.source is not Source.COUNTER else moved_j
        return replace(
            looked,
            total_j=self.total_j + (self.still_j if fell else 0.0) + counted_j,
            compared_j=self.compared_j + (counted_j if compared else 0.0),
            epoch=self.epoch + fell,
            counter_j=counter_j,
            source=Source.COUNTER,
            still_s=0.0,
            still_j=0.0,
        )

    def _still(self, elapsed_s: float, drawn_j: float) -> "EnergyMeter":
        if self.source is not Source.COUNTER:
            return replace(self, total_j=self.total_j + drawn_j, still_s=self.still_s + elapsed_s)
        still_s, still_j = self.still_s + elapsed_s, self.still_j + drawn_j
        if still_s < FROZEN_S or still_j < FROZEN_J:
            return replace(self, still_s=still_s, still_j=still_j)
        return replace(self, total_j=self.total_j + still_j, source=Source.POWER, still_s=still_s, still_j=0.0)

    @property
    def disagreement_ratio(self) -> float | None:
        """How far the counted energy lies from the integral of power; None where there is nothing to compare."""
        return None if self.power_j <= 0 or self.source is not Source.COUNTER else self.compared_j / self.power_j - 1
