"""From the relaxed frontier to real clocks: one choice per computation, and never later than the deadline.

Plans rounded at many deadlines make a library; between two good ones the iteration is spliced in time order.
"""

from dataclasses import dataclass

import numpy as np

from control_plane.training.dag import Dag, FloatArray, IntArray, finish_times, predecessors, successors
from control_plane.training.frontier import Frontier, FrontierPoint, RelaxedPlan
from control_plane.training.profile import Choice
from control_plane.training.rounding_kernel import choose_within, improve, slowest_by, splice
from control_plane.training.timing import latest_finish


@dataclass(frozen=True, slots=True)
class RoundingSettings:
    """How much work goes into real clocks."""

    library_work: int = 400_000
    """Operations rounded while preparing a library: seconds of work, whatever the size of the DAG."""
    most_plans: int = 320
    fewest_plans: int = 48
    low_end: float = 1.5
    """Exponent of the library's deadlines: above 1 they crowd near T_min, where jobs run."""
    neighbours: int = 3
    """Library plans tried on either side of a deadline."""
    buckets: int = 128
    """Finish times kept apart per computation in the dynamic programme."""
    sweeps: int = 4


@dataclass(frozen=True, slots=True, eq=False)
class RoundingProblem:
    """A DAG as the kernels read it; `paths` covers it with chains of operations that follow one another."""

    dag: Dag
    settings: RoundingSettings
    before_first: IntArray
    before: IntArray
    after_first: IntArray
    after: IntArray
    choice_first: IntArray
    choice_time_s: FloatArray
    choice_effective_j: FloatArray
    path_first: IntArray
    path_ops: IntArray

    def rows(self, chosen: IntArray) -> IntArray:
        return self.choice_first[self.dag.kind] + chosen


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
    def gap_ratio(self) -> float:
        """How far above the lower bound."""
        return self.energy_j / self.point.energy_j - 1

    def choices(self, dag: Dag) -> tuple[Choice, ...]:
        return tuple(dag.computation(op).choices[int(index)] for op, index in enumerate(self.chosen))


@dataclass(frozen=True, slots=True, eq=False)
class LibraryPlan:
    """A rounded plan on the lower hull of all that were prepared; `turn` ranks operations by their start."""

    finish_time_s: float
    effective_j: float
    chosen: IntArray
    turn: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class PlanLibrary:
    """Rounded plans along the frontier, fastest first, from which any deadline's plan is spliced."""

    problem: RoundingProblem
    frontier: Frontier
    plans: tuple[LibraryPlan, ...]

    def within(self, deadline_s: float) -> RoundedPlan:
        """The cheapest plan found that ends by the deadline; raises DeadlineError under T_min."""
        problem, frontier = self.problem, self.frontier
        best = rounded(problem, frontier, deadline_s)
        if deadline_s >= frontier.t_star_s:
            return best
        point = best.point
        ends_s = [plan.finish_time_s for plan in self.plans]
        split = int(np.searchsorted(ends_s, point.deadline_s, side="right"))
        reach = problem.settings.neighbours
        faster = self.plans[max(0, split - reach) : split]
        slower = self.plans[split : split + reach]
        for plan in faster[-1:]:
            best = _cheaper(best, _filled(problem, point, plan.chosen))
        chosen = np.zeros(len(problem.dag), np.int64)
        for fast in faster:
            for slow in slower:
                for slow_first in (False, True):
                    for turn in (fast.turn, slow.turn):
                        if splice(
                            problem.before_first,
                            problem.before,
                            problem.dag.order,
                            problem.dag.kind,
                            problem.choice_first,
                            problem.choice_time_s,
                            turn,
                            slow.chosen,
                            fast.chosen,
                            slow_first,
                            point.deadline_s,
                            chosen,
                        ):
                            best = _cheaper(best, _filled(problem, point, chosen))
        return _cheaper(best, _improved(problem, best))


def rounding_problem(dag: Dag, settings: RoundingSettings | None = None) -> RoundingProblem:
    choice_first = np.zeros(len(dag.computations) + 1, np.int64)
    np.cumsum([len(c.choices) for c in dag.computations], out=choice_first[1:])
    listed = [(choice, computation) for computation in dag.computations for choice in computation.choices]
    before_first, before = predecessors(dag)
    after_first, after = successors(dag)
    paths = _path_cover(dag, before_first, before)
    path_first = np.zeros(len(paths) + 1, np.int64)
    np.cumsum([len(path) for path in paths], out=path_first[1:])
    return RoundingProblem(
        dag=dag,
        settings=settings or RoundingSettings(),
        before_first=before_first,
        before=before,
        after_first=after_first,
        after=after,
        choice_first=choice_first,
        choice_time_s=np.array([choice.time_s for choice, _ in listed]),
        choice_effective_j=np.array([computation.effective_j(choice) for choice, computation in listed]),
        path_first=path_first,
        path_ops=np.array([op for path in paths for op in path], np.int64),
    )


def prepare(problem: RoundingProblem, frontier: Frontier) -> PlanLibrary:
    """Round at many deadlines and keep the plans on the lower hull of time and energy."""
    settings = problem.settings
    count = settings.library_work // len(problem.dag)
    count = min(settings.most_plans, max(settings.fewest_plans, count))
    span_s = frontier.t_star_s - frontier.t_min_s
    found: list[tuple[float, float, IntArray]] = []
    for deadline_s in frontier.t_min_s + span_s * np.linspace(0, 1, count) ** settings.low_end:
        relaxed = frontier.relaxed(float(deadline_s))
        for plan in (_by_limits(problem, relaxed), _by_windows(problem, relaxed)):
            if plan is not None:
                effective_j = plan.energy_j - problem.dag.blocking_power_w * plan.point.deadline_s
                found.append((plan.finish_time_s, effective_j, plan.chosen))
    return PlanLibrary(
        problem,
        frontier,
        tuple(
            LibraryPlan(end_s, effective_j, chosen, _turns(problem, chosen))
            for end_s, effective_j, chosen in _lower_hull(found)
        ),
    )


def rounded(problem: RoundingProblem, frontier: Frontier, deadline_s: float) -> RoundedPlan:
    """A plan with real choices that ends by the deadline; raises DeadlineError under T_min."""
    if deadline_s >= frontier.t_star_s:
        last = np.diff(problem.choice_first)[problem.dag.kind] - 1
        return timed(problem, frontier.within(deadline_s), last)
    relaxed = frontier.relaxed(deadline_s)
    fastest = timed(problem, relaxed.point, np.zeros(len(problem.dag), np.int64))
    plans = (_by_limits(problem, relaxed), _by_windows(problem, relaxed))
    return _cheaper(fastest, *plans)


def timed(problem: RoundingProblem, point: FrontierPoint, chosen: IntArray) -> RoundedPlan:
    dag = problem.dag
    rows = problem.rows(chosen)
    return RoundedPlan(
        point=point,
        chosen=chosen.copy(),
        finish_time_s=float(finish_times(dag, problem.choice_time_s[rows]).max()),
        energy_j=float(problem.choice_effective_j[rows].sum()) + dag.blocking_power_w * point.deadline_s,
    )


def without_short_switches(dag: Dag, choices: tuple[Choice, ...], switch_time_s: float) -> tuple[Choice, ...]:
    """Merge runs of one clock that are shorter than switching takes into a faster neighbour, stage by stage.

    A run only ever takes a setting at which its computations are no slower, so no plan ends later.
    """
    merged = list(choices)
    by_stage: dict[int, list[int]] = {}
    for op, task in enumerate(dag.tasks):
        if len(dag.computation(op).measured) > 1:
            by_stage.setdefault(task.stage, []).append(op)
    for ops in by_stage.values():
        while _merge_one(dag, ops, merged, switch_time_s):
            pass
    return tuple(merged)


def _merge_one(dag: Dag, ops: list[int], merged: list[Choice], switch_time_s: float) -> bool:
    runs: list[list[int]] = []
    for op in ops:
        if runs and _setting(merged[runs[-1][-1]]) == _setting(merged[op]):
            runs[-1].append(op)
        else:
            runs.append([op])
    for i, run in enumerate(runs):
        if sum(merged[op].time_s for op in run) >= switch_time_s:
            continue
        around = [runs[j] for j in (i - 1, i + 1) if 0 <= j < len(runs)]
        moves = [(run, merged[other[0]]) for other in around] + [(other, merged[run[0]]) for other in around]
        for movers, target in moves:
            moved = [_at_setting(dag, op, target, merged[op].time_s) for op in movers]
            if all(choice is not None for choice in moved):
                for op, choice in zip(movers, moved, strict=True):
                    if choice is not None:
                        merged[op] = choice
                return True
    return False


def _setting(choice: Choice) -> tuple[int, int]:
    return choice.freq_mhz, choice.power_limit_w


def _at_setting(dag: Dag, op: int, target: Choice, within_s: float) -> Choice | None:
    for choice in dag.computation(op).measured:
        if _setting(choice) == _setting(target) and choice.time_s <= within_s:
            return choice
    return None


def _by_limits(problem: RoundingProblem, relaxed: RelaxedPlan) -> RoundedPlan | None:
    """Each operation the slowest choice that ends by its relaxed finish; then fill what float is left."""
    chosen = slowest_by(
        problem.before_first,
        problem.before,
        problem.dag.order,
        problem.dag.kind,
        problem.choice_first,
        problem.choice_time_s,
        relaxed.finish_s,
    )
    return _filled(problem, relaxed.point, chosen)


def _by_windows(problem: RoundingProblem, relaxed: RelaxedPlan) -> RoundedPlan | None:
    """Each chain chosen at its best between the relaxed times of its neighbours; then fill."""
    chosen = np.zeros(len(problem.dag), np.int64)
    choose_within(
        problem.before_first,
        problem.before,
        problem.after_first,
        problem.after,
        problem.dag.kind,
        problem.choice_first,
        problem.choice_time_s,
        problem.choice_effective_j,
        problem.path_first,
        problem.path_ops,
        relaxed.start_s,
        relaxed.finish_s,
        0.5,
        relaxed.point.deadline_s,
        problem.settings.buckets,
        chosen,
    )
    return _filled(problem, relaxed.point, chosen)


def _filled(problem: RoundingProblem, point: FrontierPoint, chosen: IntArray) -> RoundedPlan | None:
    """Slow every operation down as far as the float behind it allows; None if the plan ends late."""
    dag = problem.dag
    by_s = latest_finish(
        problem.after_first,
        problem.after,
        dag.order,
        problem.choice_time_s[problem.rows(chosen)],
        point.deadline_s,
    )
    slower = slowest_by(
        problem.before_first,
        problem.before,
        dag.order,
        dag.kind,
        problem.choice_first,
        problem.choice_time_s,
        by_s,
    )
    for candidate in (slower, chosen):
        plan = timed(problem, point, candidate)
        if plan.finish_time_s <= point.deadline_s:
            return plan
    return None


def _improved(problem: RoundingProblem, plan: RoundedPlan) -> RoundedPlan | None:
    dag, sweeps = problem.dag, problem.settings.sweeps
    paths = len(problem.path_first) - 1
    rng = np.random.default_rng(len(dag))
    chosen = plan.chosen.copy()
    improve(
        problem.before_first,
        problem.before,
        problem.after_first,
        problem.after,
        dag.order,
        dag.kind,
        problem.choice_first,
        problem.choice_time_s,
        problem.choice_effective_j,
        problem.path_first,
        problem.path_ops,
        np.concatenate([rng.permutation(paths) for _ in range(sweeps)]),
        np.repeat(rng.random(sweeps), paths),
        plan.point.deadline_s,
        problem.settings.buckets,
        chosen,
    )
    return _filled(problem, plan.point, chosen)


def _cheaper(plan: RoundedPlan, *others: RoundedPlan | None) -> RoundedPlan:
    return min((plan, *(other for other in others if other is not None)), key=lambda p: p.energy_j)


def _turns(problem: RoundingProblem, chosen: IntArray) -> IntArray:
    duration_s = problem.choice_time_s[problem.rows(chosen)]
    start_s = finish_times(problem.dag, duration_s) - duration_s
    turn = np.empty(len(chosen), np.int64)
    turn[np.argsort(start_s, kind="stable")] = np.arange(len(chosen))
    return turn


def _lower_hull(found: list[tuple[float, float, IntArray]]) -> list[tuple[float, float, IntArray]]:
    hull: list[tuple[float, float, IntArray]] = []
    for plan in sorted(found, key=lambda p: (p[0], p[1])):
        if hull and plan[1] >= hull[-1][1]:
            continue
        while len(hull) >= 2 and (hull[-1][1] - hull[-2][1]) * (plan[0] - hull[-2][0]) >= (plan[1] - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append(plan)
    return hull


def _path_cover(dag: Dag, before_first: IntArray, before: IntArray) -> list[list[int]]:
    """Every operation on one path, along a stage where there is one."""
    path_ending_at: dict[int, list[int]] = {}
    paths: list[list[int]] = []
    for op in dag.order.tolist():
        ends = [b for b in before[before_first[op] : before_first[op + 1]].tolist() if b in path_ending_at]
        ends.sort(key=lambda b: dag.tasks[b].stage != dag.tasks[op].stage)
        path = path_ending_at.pop(ends[0]) if ends else []
        if not path:
            paths.append(path)
        path.append(op)
        path_ending_at[op] = path
    return paths
