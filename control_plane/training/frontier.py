"""The exact time–energy frontier of an iteration: every breakpoint from least energy (T*) to T_min.

`within(deadline_s)` is a look-up; the three regimes are T' = T_min, T_min < T' <= T* and T' > T*.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from control_plane.training.dag import Dag, FloatArray, IntArray, finish_times
from control_plane.training.event_graph import EventGraph, HalfArcs, event_graph, half_arcs
from control_plane.training.frontier_kernel import walk

KEPT_STATES = 96
KEPT_BYTES = 32 << 20
RELATIVE_SLACK = 1e-12
"""Deadlines this close to T_min are T_min: sums of floats in another order differ by this much."""


class DeadlineError(ValueError):
    """The deadline is shorter than the pipeline can run."""


class Regime(Enum):
    """Where a deadline lies (Perseus, sec. 3)."""

    FASTEST = "at T_min: only intrinsic bloat is removed"
    ON_FRONTIER = "between T_min and T*: the frontier point at the deadline"
    THRIFTIEST = "past T*: the point at T*, never slower"


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """What the relaxed problem (clocks mixed at will) reaches by a deadline; `energy_j` is a lower bound.

    It charges blocking power of all stages up to `deadline_s`; `slope_w` is what one more second would save.
    """

    deadline_s: float
    iteration_time_s: float
    effective_j: float
    energy_j: float
    slope_w: float
    regime: Regime


@dataclass(frozen=True, slots=True, eq=False)
class RelaxedPlan:
    """A point of the frontier with the time it gives to every operation."""

    point: FrontierPoint
    start_s: FloatArray
    finish_s: FloatArray

    @property
    def duration_s(self) -> FloatArray:
        return self.finish_s - self.start_s


@dataclass(frozen=True, slots=True, eq=False)
class KeptStates:
    """States of the walk, kept along the way so that any plan is a few steps from one of them."""

    breakpoint: IntArray
    potential: IntArray
    flow: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """Breakpoints by falling time, from T* to T_min; `slope_w[i]` holds between i and i + 1."""

    dag: Dag
    graph: EventGraph
    halves: HalfArcs
    shift: IntArray
    flow: IntArray
    kept: KeptStates
    time_s: FloatArray
    effective_j: FloatArray
    slope_w: FloatArray
    t_min_s: float
    t_star_s: float

    @property
    def breakpoints(self) -> int:
        return len(self.time_s)

    def within(self, deadline_s: float) -> FrontierPoint:
        """The least energy by the deadline; raises DeadlineError under T_min."""
        if not deadline_s >= self.t_min_s * (1 - RELATIVE_SLACK):
            raise DeadlineError(f"deadline {deadline_s} s is under T_min, {self.t_min_s} s")
        time_s = min(max(deadline_s, self.t_min_s), self.t_star_s)
        i = max(1, int(np.searchsorted(-self.time_s, -time_s))) if self.breakpoints > 1 else 0
        if self.breakpoints == 1:
            effective_j, slope_w = float(self.effective_j[0]), 0.0
        else:
            i = min(i, self.breakpoints - 1)
            slope_w = float(self.slope_w[i - 1])
            effective_j = float(self.effective_j[i - 1]) + slope_w * max(0.0, float(self.time_s[i - 1]) - time_s)
        charged_s = max(deadline_s, time_s)
        if time_s <= self.t_min_s:
            regime = Regime.FASTEST
        else:
            regime = Regime.ON_FRONTIER if deadline_s <= self.t_star_s else Regime.THRIFTIEST
        return FrontierPoint(
            deadline_s=charged_s,
            iteration_time_s=time_s,
            effective_j=effective_j,
            energy_j=effective_j + self.dag.blocking_power_w * charged_s,
            slope_w=slope_w if regime is not Regime.THRIFTIEST else 0.0,
            regime=regime,
        )

    def relaxed(self, deadline_s: float) -> RelaxedPlan:
        """The plan behind `within(deadline_s)`: walk on from the last state kept before it."""
        point = self.within(deadline_s)
        graph = self.graph
        shift = min(
            max(0, graph_time(graph) - int(point.iteration_time_s / graph.time_unit_s)),
            int(self.shift[-1]),
        )
        potential, flow, start_shift, total = self._state_before(shift)
        if shift > start_shift:
            _walk(graph, self.halves, potential, flow, total, shift - start_shift, 0)
        spent_s = potential.astype(np.float64) * graph.time_unit_s
        ops = len(self.dag)
        return RelaxedPlan(point, spent_s[graph.tail[:ops]], spent_s[graph.head[:ops]])

    def _state_before(self, shift: int) -> tuple[IntArray, IntArray, int, int]:
        kept = self.kept
        shifts = self.shift[kept.breakpoint]
        i = int(np.searchsorted(shifts, shift, side="right")) - 1
        if i < 0:
            return self.graph.potential.copy(), np.zeros(len(self.graph.tail), np.int64), 0, 0
        at = int(kept.breakpoint[i])
        return kept.potential[i].copy(), kept.flow[i].copy(), int(self.shift[at]), int(self.flow[at])


def walk_frontier(dag: Dag) -> Frontier:
    """Trace the whole frontier, exactly: integers from the first breakpoint to the last."""
    graph = event_graph(dag)
    halves = half_arcs(graph)
    potential = graph.potential.copy()
    flow = np.zeros(len(graph.tail), np.int64)
    state_bytes = 8 * (len(potential) + len(flow))
    slots = min(KEPT_STATES, max(4, KEPT_BYTES // state_bytes))
    shifts, slopes, last_shift, kept = _walk(graph, halves, potential, flow, 0, graph_time(graph), slots)

    shift = np.append(shifts, last_shift)
    fastest_s = dag.per_operation(c.fastest.time_s for c in dag.computations)
    thriftiest_s = dag.per_operation(c.thriftiest.time_s for c in dag.computations)
    t_min_s = float(finish_times(dag, fastest_s).max())
    t_star_s = float(finish_times(dag, thriftiest_s).max())
    time_s = t_star_s - shift * graph.time_unit_s
    time_s[-1] = t_min_s
    slope_w = slopes.astype(np.float64) * graph.slope_unit_w
    least_j = float(np.sum(dag.per_operation(c.effective_j(c.thriftiest) for c in dag.computations)))
    spent_j = np.concatenate([[0.0], np.cumsum(slope_w * (np.diff(shift) * graph.time_unit_s))])
    return Frontier(
        dag=dag,
        graph=graph,
        halves=halves,
        shift=shift,
        flow=slopes,
        kept=kept,
        time_s=time_s,
        effective_j=least_j + spent_j,
        slope_w=slope_w,
        t_min_s=t_min_s,
        t_star_s=t_star_s,
    )


def graph_time(graph: EventGraph) -> int:
    """T* on the graph's integers."""
    return int(graph.potential[graph.sink])


def _walk(
    graph: EventGraph,
    halves: HalfArcs,
    potential: IntArray,
    flow: IntArray,
    total_flow: int,
    shift_limit: int,
    slots: int,
) -> tuple[IntArray, IntArray, int, KeptStates]:
    kept_potential = np.zeros((slots, len(potential)), np.int64)
    kept_flow = np.zeros((slots, len(flow)), np.int64)
    kept_at = np.zeros(slots, np.int64)
    shifts, slopes, last_shift, kept = walk(
        halves.first,
        halves.head,
        halves.mate,
        halves.arc,
        halves.is_ahead,
        graph.piece_first,
        graph.piece_length,
        graph.piece_until,
        halves.forward,
        halves.backward,
        potential,
        flow,
        total_flow,
        graph.source,
        graph.sink,
        shift_limit,
        kept_potential,
        kept_flow,
        kept_at,
    )
    states = KeptStates(kept_at[:kept].copy(), kept_potential[:kept], kept_flow[:kept])
    return shifts, slopes, int(last_shift), states
