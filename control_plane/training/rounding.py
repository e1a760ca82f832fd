"""From the relaxed frontier to real clocks: one choice per computation, and never later than the deadline."""

from dataclasses import dataclass

import numpy as np

from control_plane.training.dag import Dag, FloatArray, IntArray, finish_times, predecessors, successors
from control_plane.training.frontier import Frontier, FrontierPoint
from control_plane.training.profile import Choice
from control_plane.training.rounding_kernel import slowest_by
from control_plane.training.timing import latest_finish


@dataclass(frozen=True, slots=True, eq=False)
class ChoiceTable:
    """The choices of all kinds side by side, fastest first within a kind."""

    first: IntArray
    time_s: FloatArray
    effective_j: FloatArray

    def rows(self, kind: IntArray, chosen: IntArray) -> IntArray:
        return self.first[kind] + chosen


@dataclass(frozen=True, slots=True, eq=False)
class RoundedPlan:
    """One real choice per operation, timed again with the real times.

    `energy_j` charges blocking power up to the point's deadline, as the bound `point.energy_j` does.
    """

    point: FrontierPoint
    chosen: IntArray
    finish_time_s: float
    energy_j: float

    @property
    def gap(self) -> float:
        """How far above the lower bound, as a ratio of it."""
        return self.energy_j / self.point.energy_j - 1

    def choices(self, dag: Dag) -> tuple[Choice, ...]:
        return tuple(dag.computation(op).choices[int(index)] for op, index in enumerate(self.chosen))


def choice_table(dag: Dag) -> ChoiceTable:
    first = np.zeros(len(dag.computations) + 1, np.int64)
    np.cumsum([len(c.choices) for c in dag.computations], out=first[1:])
    listed = [(choice, computation) for computation in dag.computations for choice in computation.choices]
    return ChoiceTable(
        first=first,
        time_s=np.array([choice.time_s for choice, _ in listed]),
        effective_j=np.array([computation.effective_j(choice) for choice, computation in listed]),
    )


def rounded(frontier: Frontier, deadline_s: float, table: ChoiceTable | None = None) -> RoundedPlan:
    """The best plan found with real choices that ends by the deadline; raises DeadlineError under T_min."""
    dag = frontier.dag
    table = table or choice_table(dag)
    relaxed = frontier.relaxed(deadline_s)
    before_first, before = predecessors(dag)
    limit_s = relaxed.finish_s
    for _ in range(4):
        chosen = slowest_by(before_first, before, dag.order, dag.kind, table.first, table.time_s, limit_s)
        after_first, after = successors(dag)
        by_s = latest_finish(
            after_first,
            after,
            dag.order,
            table.time_s[table.rows(dag.kind, chosen)],
            min(relaxed.point.deadline_s, max(frontier.t_min_s, relaxed.point.iteration_time_s)),
        )
        chosen = slowest_by(before_first, before, dag.order, dag.kind, table.first, table.time_s, by_s)
        plan = timed(dag, table, relaxed.point, chosen)
        if plan.finish_time_s <= relaxed.point.deadline_s:
            return plan
        limit_s = limit_s * (1 - 1e-12)
    return timed(dag, table, relaxed.point, np.zeros(len(dag), np.int64))


def timed(dag: Dag, table: ChoiceTable, point: FrontierPoint, chosen: IntArray) -> RoundedPlan:
    rows = table.rows(dag.kind, chosen)
    return RoundedPlan(
        point=point,
        chosen=chosen,
        finish_time_s=float(finish_times(dag, table.time_s[rows]).max()),
        energy_j=float(table.effective_j[rows].sum()) + dag.blocking_power_w * point.deadline_s,
    )
