"""Frontiers of more micro-batches than need to be walked: 1F1B and GPipe repeat their middle.

From some four micro-batches per stage on, one more changes no slope and moves every breakpoint by the same time and
energy. Whether a profile is there yet is checked on two walks; where it is not, nothing is extrapolated.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from control_plane.training.dag import Dag, FloatArray
from control_plane.training.frontier import Frontier, walk_frontier

PER_STAGE = (4, 8)
"""Micro-batches per stage of the shorter of both walks; more where slopes still change."""
SAME_SLOPE = 1e-9
MOST_STAGES = 24
"""Two walks with four micro-batches per stage take three seconds here, and a minute at 64 stages."""
REPEATING = ("1f1b", "gpipe")


@dataclass(frozen=True, slots=True, eq=False)
class FrontierCurve:
    """Breakpoints by falling time, from T* to T_min, with effective energy; `slope_w[i]` holds between i and i + 1."""

    time_s: FloatArray
    effective_j: FloatArray
    slope_w: FloatArray

    @property
    def t_min_s(self) -> float:
        return float(self.time_s[-1])

    @property
    def t_star_s(self) -> float:
        return float(self.time_s[0])

    def within(self, time_s: float) -> tuple[float, float]:
        """Least effective energy by an instant from T_min to T*, and the slope there."""
        energy_j = np.interp(time_s, self.time_s[::-1], self.effective_j[::-1])
        at = int(np.searchsorted(-self.time_s, -time_s, side="left")) - 1
        return float(energy_j), float(self.slope_w[max(0, at)]) if len(self.slope_w) else 0.0


def curve_of(frontier: Frontier) -> FrontierCurve:
    return FrontierCurve(frontier.time_s, frontier.effective_j, frontier.slope_w)


def extrapolated(schedule: str, stages: int, microbatches: int, dag_with: Callable[[int], Dag]) -> FrontierCurve | None:
    """The frontier with so many micro-batches from two walks with fewer; None where the schedule does not repeat, there
    are too few micro-batches, or the two walks differ in a slope. `dag_with` builds the DAG of a number of them."""
    if schedule not in REPEATING or stages > MOST_STAGES:
        return None
    for fewer in (per_stage * stages for per_stage in PER_STAGE):
        if microbatches <= fewer + 1:
            return None
        one, two = (walk_frontier(dag_with(count)) for count in (fewer, fewer + 1))
        if len(one.slope_w) != len(two.slope_w) or not np.allclose(one.slope_w, two.slope_w, rtol=SAME_SLOPE, atol=0):
            continue
        more = microbatches - fewer
        time_s = one.time_s + more * (two.time_s - one.time_s)
        if (np.diff(time_s) <= 0).all():
            return FrontierCurve(time_s, one.effective_j + more * (two.effective_j - one.effective_j), one.slope_w)
    return None
