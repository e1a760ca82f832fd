"""The exact time–energy frontier of an iteration: every breakpoint from least energy (T*) to T_min.

`within(deadline_s)` is a look-up; the three regimes are T' = T_min, T_min < T' <= T* and T' > T*.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from control_plane.training.dag import Dag, FloatArray, IntArray, finish_times
from control_plane.training.event_graph import TIME_RANGE, EventGraph, HalfArcs, event_graph, half_arcs
from control_plane.training.frontier_kernel import UNBOUNDED, walk

KEPT_STATES = 96
KEPT_BYTES = 32 << 20
COARSE_KEPT_BYTES = 88 << 20
"""Of a coarse frontier, whose kept states also give the bounds."""
RELATIVE_SLACK = 1e-12
"""Deadlines this close to T_min are T_min: sums of floats in another order differ by this much."""


SLOPES_PER_LOOK = 64
"""Slopes found between two calls of a walk's watcher: well under a second each at 100,000 operations."""
FLOAT_ERROR_UNITS = 1 << (TIME_RANGE.bit_length() - 54)
"""Integer instants by which one addition of floats can err, at instants up to T*."""


class DeadlineError(ValueError):
    """The deadline is shorter than the pipeline can run."""


class TimeBudgetError(ValueError):
    """The walk was stopped because it took too long."""


@dataclass(frozen=True, slots=True)
class WalkProgress:
    """How far a walk has come: it goes from T* towards T_min."""

    breakpoints: int
    time_s: float
    t_min_s: float
    t_star_s: float

    @property
    def done_ratio(self) -> float:
        span_s = self.t_star_s - self.t_min_s
        return (self.t_star_s - self.time_s) / span_s if span_s > 0 else 1.0


WalkWatcher = Callable[[WalkProgress], None]
"""Called now and then during a walk; what it raises ends the walk."""


def stop_after(budget_s: float, clock: Callable[[], float]) -> WalkWatcher:
    """A watcher that raises TimeBudgetError once the clock, in seconds, has run on by more than the budget."""
    started_s = clock()

    def watch(progress: WalkProgress) -> None:
        taken_s = clock() - started_s
        if taken_s > budget_s:
            raise TimeBudgetError(
                f"the frontier takes longer than {budget_s} s: after {taken_s:.1f} s it is known from T*, "
                f"{progress.t_star_s} s, down to {progress.time_s} s, but T_min is {progress.t_min_s} s; "
                "allow more time, or plan fewer micro-batches"
            )

    return watch


class Regime(Enum):
    """Where a deadline lies (Perseus, sec. 3)."""

    FASTEST = "at T_min: only intrinsic bloat is removed"
    ON_FRONTIER = "between T_min and T*: the frontier point at the deadline"
    PAST_T_STAR = "past T*: the point at T*, never slower"


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
    """Breakpoints by falling time, from T* to T_min; `slope_w[i]` holds between i and i + 1.

    `margin` is how far, in integer instants, a plan that ends in time by sums of floats may end later on the graph.
    """

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
    margin: int

    @property
    def breakpoints(self) -> int:
        return len(self.time_s)

    def within(self, deadline_s: float) -> FrontierPoint:
        """The least energy by the deadline; raises DeadlineError under T_min."""
        if not deadline_s >= self.t_min_s * (1 - RELATIVE_SLACK):
            raise DeadlineError(f"deadline {deadline_s} s is under T_min, {self.t_min_s} s")
        time_s = min(max(deadline_s, self.t_min_s), self.t_star_s)
        shift = graph_time(self.graph) - int(time_s / self.graph.time_unit_s) - self.margin
        shift = min(max(0, shift), int(self.shift[-1]))
        i = max(0, int(np.searchsorted(self.shift, shift)) - 1)
        slope_w = float(self.slope_w[i]) if len(self.slope_w) else 0.0
        effective_j = float(self.effective_j[i]) + slope_w * ((shift - int(self.shift[i])) * self.graph.time_unit_s)
        charged_s = max(deadline_s, time_s)
        if time_s <= self.t_min_s:
            regime = Regime.FASTEST
        else:
            regime = Regime.ON_FRONTIER if deadline_s <= self.t_star_s else Regime.PAST_T_STAR
        return FrontierPoint(
            deadline_s=charged_s,
            iteration_time_s=time_s,
            effective_j=effective_j,
            energy_j=effective_j + self.dag.blocking_power_w * charged_s,
            slope_w=slope_w if regime is not Regime.PAST_T_STAR else 0.0,
            regime=regime,
        )

    def in_steps(self, step_s: float) -> tuple[FrontierPoint, ...]:
        """The frontier as the paper walks it, in fixed steps from T* down to T_min: a reference to compare with."""
        if not step_s > 0:
            raise ValueError(f"step must be positive, got {step_s} s")
        steps = int((self.t_star_s - self.t_min_s) / step_s)
        return tuple(self.within(self.t_star_s - i * step_s) for i in range(steps + 1))

    def relaxed(self, deadline_s: float) -> RelaxedPlan:
        """The plan behind `within(deadline_s)`: walk on from the last state kept before it."""
        point = self.within(deadline_s)
        potential, _, _, _ = self.state_at(point.iteration_time_s)
        spent_s = potential.astype(np.float64) * self.graph.time_unit_s
        ops = len(self.dag)
        return RelaxedPlan(point, spent_s[self.graph.tail[:ops]], spent_s[self.graph.head[:ops]])

    def state_at(self, time_s: float) -> tuple[IntArray, IntArray, int, int]:
        """Potential, flow and total flow of the walk when the iteration takes so long, and its shift."""
        graph = self.graph
        shift = min(max(0, graph_time(graph) - int(time_s / graph.time_unit_s)), int(self.shift[-1]))
        potential, flow, start_shift, total = self._state_before(shift)
        if shift > start_shift:
            *_, total = _walk(graph, self.halves, potential, flow, total, shift - start_shift, 0, None)
        return potential, flow, total, shift

    def _state_before(self, shift: int) -> tuple[IntArray, IntArray, int, int]:
        kept = self.kept
        shifts = self.shift[kept.breakpoint]
        i = int(np.searchsorted(shifts, shift, side="right")) - 1
        if i < 0:
            return self.graph.potential.copy(), np.zeros(len(self.graph.tail), np.int64), 0, 0
        at = int(kept.breakpoint[i])
        return kept.potential[i].copy(), kept.flow[i].copy(), int(self.shift[at]), int(self.flow[at])


def walk_frontier(dag: Dag, watcher: WalkWatcher | None = None, levels: int = 0, until_s: float = 0.0) -> Frontier:
    """Trace the whole frontier, exactly: integers from the first breakpoint to the last.

    The watcher hears how far the walk has come and may end it by raising, as `stop_after` does. With `levels`, slopes
    are rounded to so many steps and the frontier is that of the coarse network (coarse_frontier).
    """
    graph = event_graph(dag, levels)
    halves = half_arcs(graph)
    fastest_s = dag.per_operation(c.fastest.time_s for c in dag.computations)
    least_energy_s = dag.per_operation(c.least_energy.time_s for c in dag.computations)
    t_min_s = float(finish_times(dag, fastest_s).max())
    t_star_s = float(finish_times(dag, least_energy_s).max())

    def heard(breakpoints: int, shift: int) -> None:
        if watcher is not None:
            reached_s = max(t_min_s, t_star_s - shift * graph.time_unit_s)
            watcher(WalkProgress(breakpoints, reached_s, t_min_s, t_star_s))

    potential = graph.potential.copy()
    flow = np.zeros(len(graph.tail), np.int64)
    state_bytes = 8 * (len(potential) + len(flow))
    kept_bytes = COARSE_KEPT_BYTES if levels else KEPT_BYTES
    slots = min(KEPT_STATES, max(4, kept_bytes // state_bytes))
    most = graph_time(graph) - max(0, int(until_s / graph.time_unit_s))
    shifts, slopes, last_shift, kept, _ = _walk(graph, halves, potential, flow, 0, most, slots, heard)

    shift = np.append(shifts, last_shift)
    time_s = np.clip((graph_time(graph) - shift) * graph.time_unit_s, t_min_s, t_star_s)
    time_s[-1] = max(t_min_s, min(until_s, t_star_s))
    slope_w = slopes.astype(np.float64) * graph.slope_unit_w
    least_j = float(np.sum(dag.per_operation(c.effective_j(c.least_energy) for c in dag.computations)))
    spent_j = np.concatenate([[0.0], np.cumsum(slope_w * (np.diff(shift) * graph.time_unit_s))])
    depth = int(finish_times(dag, np.ones(len(dag))).max())
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
        margin=depth * (1 + FLOAT_ERROR_UNITS),
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
    heard: Callable[[int, int], None] | None,
) -> tuple[IntArray, IntArray, int, KeptStates, int]:
    kept_potential = np.zeros((slots, len(potential)), np.int64)
    kept_flow = np.zeros((slots, len(flow)), np.int64)
    kept_at = np.zeros(slots, np.int64)
    count = np.array([0, 0, 1], np.int64)
    shifts = [np.zeros(0, np.int64)]
    slopes = [np.zeros(0, np.int64)]
    shift = 0
    most = SLOPES_PER_LOOK if heard is not None else UNBOUNDED
    while True:
        found, slope, moved, total_flow = walk(
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
            shift_limit - shift,
            kept_potential,
            kept_flow,
            kept_at,
            count,
            most,
        )
        shifts.append(found + shift)
        slopes.append(slope)
        shift += int(moved)
        if heard is not None:
            heard(int(count[0]), shift)
        if len(found) < most or shift >= shift_limit:
            break
    kept = int(count[1])
    states = KeptStates(kept_at[:kept].copy(), kept_potential[:kept], kept_flow[:kept])
    return np.concatenate(shifts), np.concatenate(slopes), shift, states, int(total_flow)
