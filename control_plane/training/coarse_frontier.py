"""A frontier from few slopes, for DAGs whose exact walk takes too long: near the optimum, with certified bounds.

A flow of the coarse network is a flow of the exact one, and any flow gives a lower bound there (weak duality): each
operation at its cheapest for energy + flow · time, less the whole flow · deadline. Flows around a deadline are mixed
for the best bound.
"""

from dataclasses import dataclass, field

import numpy as np

from control_plane.compiled import compiled
from control_plane.training.dag import Dag, FloatArray, IntArray
from control_plane.training.extrapolation import FrontierCurve
from control_plane.training.frontier import (
    RELATIVE_SLACK,
    DeadlineError,
    Frontier,
    FrontierPoint,
    Regime,
    WalkWatcher,
    walk_frontier,
)

LEVELS = 16
"""Slopes from none to the steepest: plans within some 1e-4 of the optimum, at a tenth of the time of the exact walk."""
MOST_EXACT_OPERATIONS = 20_000
"""A DAG of so many operations is walked exactly in some ten seconds."""
NEIGHBOURS = 3
"""Kept states on either side of a deadline whose flows are mixed."""
SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)
MIXING_ROUNDS = 2
MOST_POINTS = 64
FLOAT_SLACK = 1e-12
"""By which the certified bound is lowered for each operation on the longest path: more than its sums of floats err."""

CURVE_SLACK = 1e-11
"""By which an extrapolated bound is lowered, as a share: ten times what extrapolated and walked frontiers differ by."""


@dataclass(frozen=True, slots=True, eq=False)
class Hulls:
    """Lower hulls of all kinds of computations, one after the other."""

    first: IntArray
    time_s: FloatArray
    effective_j: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class CoarseFrontier(Frontier):
    """Its breakpoints are those of the coarse network; `within` is certified for the exact problem."""

    hulls: Hulls
    curve: FrontierCurve | None = None
    """The exact frontier, where it is known otherwise."""
    found: dict[float, FrontierPoint] = field(default_factory=dict)

    def within(self, deadline_s: float) -> FrontierPoint:
        """A certified lower bound on the energy by the deadline; raises DeadlineError under T_min."""
        if not deadline_s >= self.t_min_s * (1 - RELATIVE_SLACK):
            raise DeadlineError(f"deadline {deadline_s} s is under T_min, {self.t_min_s} s")
        known = self.found.get(deadline_s)
        if known is not None:
            return known
        time_s = min(max(deadline_s, self.t_min_s), self.t_star_s)
        effective_j, slope_w = self._bound(time_s)
        charged_s = max(deadline_s, time_s)
        if time_s <= self.t_min_s:
            regime = Regime.FASTEST
        else:
            regime = Regime.ON_FRONTIER if deadline_s <= self.t_star_s else Regime.PAST_T_STAR
        point = FrontierPoint(
            deadline_s=charged_s,
            iteration_time_s=time_s,
            effective_j=effective_j,
            energy_j=effective_j + self.dag.blocking_power_w * charged_s,
            slope_w=slope_w if regime is not Regime.PAST_T_STAR else 0.0,
            regime=regime,
        )
        if len(self.found) >= MOST_POINTS:
            self.found.clear()
        self.found[deadline_s] = point
        return point

    def _bound(self, time_s: float) -> tuple[float, float]:
        """The best bound of mixed flows on effective energy by an instant, and the slope that belongs to it."""
        dag, hulls = self.dag, self.hulls
        if self.curve is not None:
            effective_j, slope_w = self.curve.within(time_s)
            return effective_j - CURVE_SLACK * (abs(effective_j) + slope_w * time_s), slope_w
        flows = self._flows_around(time_s)

        def bound(flow_w: FloatArray, total_w: float) -> float:
            return cheapest_at(dag.kind, hulls.first, hulls.time_s, hulls.effective_j, flow_w) - total_w * time_s

        bounds = [bound(*flow) for flow in flows]
        best_j = max(bounds)
        flow_w, total_w = flows[bounds.index(best_j)]
        for _ in range(MIXING_ROUNDS):
            for other_w, other_total_w in flows:
                mixes = [(flow_w + s * (other_w - flow_w), total_w + s * (other_total_w - total_w)) for s in SHARES]
                mixed = [bound(*mix) for mix in mixes]
                if max(mixed) > best_j:
                    best_j = max(mixed)
                    flow_w, total_w = mixes[mixed.index(best_j)]
        scale_j = total_w * time_s + float(np.abs(hulls.effective_j).max()) * len(dag)
        return best_j - FLOAT_SLACK * scale_j, total_w

    def _flows_around(self, time_s: float) -> list[tuple[FloatArray, float]]:
        """Flow of every operation and of all together, in W, at an instant and at states kept around it."""
        ops, unit_w = len(self.dag), float(self.graph.slope_unit_w)

        def in_watts(flow: IntArray, total: int) -> tuple[FloatArray, float]:
            return flow[:ops].astype(np.float64) * unit_w, total * unit_w

        _, flow, total, shift = self.state_at(time_s)
        at = int(np.searchsorted(self.shift[self.kept.breakpoint], shift))
        found = [in_watts(flow, total), (np.zeros(ops), 0.0)]
        for i in range(max(0, at - NEIGHBOURS), min(len(self.kept.breakpoint), at + NEIGHBOURS)):
            total = int(self.flow[self.kept.breakpoint[i]])
            found.append(in_watts(self.kept.flow[i], total))
        return found


def walk_coarsely(
    dag: Dag,
    watcher: WalkWatcher | None = None,
    levels: int = LEVELS,
    until_s: float = 0.0,
    curve: FrontierCurve | None = None,
) -> CoarseFrontier:
    """Trace the frontier with slopes in so many steps, from T* down to an instant; the watcher hears how far it is, as
    of `walk_frontier`. Where the exact `curve` is known it gives the bounds."""
    exact = walk_frontier(dag, watcher, levels, until_s)
    sizes = [len(c.hull) for c in dag.computations]
    points = [(c, c.choices[i]) for c in dag.computations for i in c.hull]
    hulls = Hulls(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.array([choice.time_s for _, choice in points]),
        np.array([c.effective_j(choice) for c, choice in points]),
    )
    return CoarseFrontier(**{name: getattr(exact, name) for name in Frontier.__slots__}, hulls=hulls, curve=curve)


@compiled
def cheapest_at(
    kind: IntArray, hull_first: IntArray, hull_time_s: FloatArray, hull_effective_j: FloatArray, flow_w: FloatArray
) -> float:
    """Sum over operations of the least effective energy + flow · time on their hulls, in J."""
    total_j = 0.0
    for op in range(len(kind)):
        least_j = np.inf
        for i in range(hull_first[kind[op]], hull_first[kind[op] + 1]):
            least_j = min(least_j, hull_effective_j[i] + flow_w[op] * hull_time_s[i])
        total_j += least_j
    return total_j
