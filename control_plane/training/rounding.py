"""From the relaxed frontier to real clocks: one choice per computation, and never later than the deadline.

Plans rounded at many deadlines make a library; between two good ones the iteration is spliced in time order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from control_plane.training.dag import Dag, FloatArray, IntArray, finish_times, predecessors, successors
from control_plane.training.frontier import Frontier, FrontierPoint, RelaxedPlan
from control_plane.training.profile import Choice
from control_plane.training.rounding_kernel import choose_within, cover_with_paths, improve, repair, slowest_by, splice
from control_plane.training.timing import latest_finish

MOST_KINDS_IN_A_ROUND = 3


@dataclass(frozen=True, slots=True)
class RoundingSettings:
    """How much work goes into real clocks."""

    library_work: int = 400_000
    """Operations rounded while preparing a library: seconds of work, whatever the size of the DAG."""
    most_plans: int = 320
    fewest_plans: int = 48
    low_end: float = 1.5
    """Exponent of the library's deadlines: above 1 they crowd near T_min, where jobs run."""
    periodic_every: int = 4
    """Every which deadline of the library also tries plans that repeat themselves: worth most near T_min."""
    spreads: tuple[float, ...] = (0.0, 0.05)
    """How far from the pace, as a share of it, the two rounds may be that a repeating plan alternates."""
    neighbours: int = 3
    """Library plans tried on either side of a deadline."""
    buckets: int = 128
    """Finish times kept apart per computation in the dynamic programme."""
    sweeps: int = 12
    """Visits of every path in one search; a sweep of 1,500 computations takes three milliseconds."""
    fewest_sweeps: int = 3
    sweep_work: int = 8_000_000
    """Operations timed in one search (each visit times all): large DAGs get fewer sweeps."""


@dataclass(frozen=True, slots=True, eq=False)
class PeriodMenu:
    """What one round of a chain may cost: Pareto combinations of one choice per kind, by rising time."""

    kinds: tuple[int, ...]
    time_s: FloatArray
    effective_j: FloatArray
    choices: IntArray

    def cheapest_mix(self, pace_s: float, spread_s: float) -> tuple[int, int, float]:
        """The round within the pace, the one past it and the latter's share that keep the pace at least cost."""
        within = max(1, int(np.searchsorted(self.time_s, pace_s * (1 + 1e-12), side="right")))
        first = min(within - 1, int(np.searchsorted(self.time_s, pace_s - spread_s)))
        last = max(within, int(np.searchsorted(self.time_s, pace_s + spread_s, side="right")))
        best = (float(self.effective_j[within - 1]), within - 1, within - 1, 0.0)
        for fast in range(first, within):
            for slow in range(within, last):
                share = max(0.0, pace_s - self.time_s[fast]) / (self.time_s[slow] - self.time_s[fast])
                mean_j = (1 - share) * self.effective_j[fast] + share * self.effective_j[slow]
                best = min(best, (float(mean_j), fast, slow, float(share)))
        return best[1:]


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """Chains of operations that follow one another: path i is `ops[first[i]:first[i + 1]]`."""

    first: IntArray
    ops: IntArray

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, path: int) -> IntArray:
        return self.ops[self.first[path] : self.first[path + 1]]


@dataclass(frozen=True, slots=True, eq=False)
class RoundingProblem:
    """A DAG as the kernels read it.

    `chains` covers it along the stages; `paths` covers it a second time, along the micro-batches.
    """

    dag: Dag
    settings: RoundingSettings
    before_first: IntArray
    before: IntArray
    after_first: IntArray
    after: IntArray
    choice_first: IntArray
    choice_time_s: FloatArray
    choice_effective_j: FloatArray
    chains: Paths
    paths: Paths

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
        return _cheaper(best, *_improved(problem, best))


def rounding_problem(dag: Dag, settings: RoundingSettings | None = None) -> RoundingProblem:
    choice_first = np.zeros(len(dag.computations) + 1, np.int64)
    np.cumsum([len(c.choices) for c in dag.computations], out=choice_first[1:])
    listed = [(choice, computation) for computation in dag.computations for choice in computation.choices]
    before_first, before = predecessors(dag)
    after_first, after = successors(dag)
    chains = _path_cover(dag, before_first, before, along_stages=True)
    across = _path_cover(dag, before_first, before, along_stages=False)
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
        chains=chains,
        paths=Paths(
            np.concatenate([chains.first, across.first[1:] + chains.first[-1]]),
            np.concatenate([chains.ops, across.ops]),
        ),
    )


def prepare(problem: RoundingProblem, frontier: Frontier) -> PlanLibrary:
    """Round at many deadlines and keep the plans on the lower hull of time and energy."""
    settings = problem.settings
    count = settings.library_work // len(problem.dag)
    count = min(settings.most_plans, max(settings.fewest_plans, count))
    span_s = frontier.t_star_s - frontier.t_min_s
    found: list[RoundedPlan] = []
    menus = [_period_menu(problem.dag, problem.chains[i]) for i in range(len(problem.chains))]
    deadlines_s = frontier.t_min_s + span_s * np.linspace(0, 1, count) ** settings.low_end
    for i, deadline_s in enumerate(deadlines_s.tolist()):
        found += _first_plans(problem, frontier, deadline_s)
        if i % settings.periodic_every == 0 and deadline_s < frontier.t_star_s:
            point = frontier.within(deadline_s)
            periodic = [_by_period(problem, menus, frontier, point, spread) for spread in settings.spreads]
            found += [plan for plan in periodic if plan is not None]
    polished: list[RoundedPlan] = []
    for plan in _lower_hull(problem.dag, found):
        own = timed(problem, frontier.within(max(plan.finish_time_s, frontier.t_min_s)), plan.chosen)
        polished += [own, *_improved(problem, own)]
    return PlanLibrary(
        problem,
        frontier,
        tuple(
            LibraryPlan(plan.finish_time_s, _effective_j(problem.dag, plan), plan.chosen, _turns(problem, plan.chosen))
            for plan in _lower_hull(problem.dag, polished)
        ),
    )


def rounded(problem: RoundingProblem, frontier: Frontier, deadline_s: float) -> RoundedPlan:
    """A plan with real choices that ends by the deadline; raises DeadlineError under T_min."""
    return min(_first_plans(problem, frontier, deadline_s), key=lambda plan: plan.energy_j)


def _first_plans(problem: RoundingProblem, frontier: Frontier, deadline_s: float) -> list[RoundedPlan]:
    """Every quick way to real clocks by this deadline; never empty."""
    if deadline_s >= frontier.t_star_s:
        last = np.diff(problem.choice_first)[problem.dag.kind] - 1
        return [timed(problem, frontier.within(deadline_s), last)]
    relaxed = frontier.relaxed(deadline_s)
    plans = [
        timed(problem, relaxed.point, np.zeros(len(problem.dag), np.int64)),
        _by_limits(problem, relaxed),
        _by_windows(problem, relaxed),
    ]
    return [plan for plan in plans if plan is not None]


def timed(problem: RoundingProblem, point: FrontierPoint, chosen: IntArray) -> RoundedPlan:
    dag = problem.dag
    rows = problem.rows(chosen)
    return RoundedPlan(
        point=point,
        chosen=chosen.copy(),
        finish_time_s=float(finish_times(dag, problem.choice_time_s[rows]).max()),
        energy_j=float(problem.choice_effective_j[rows].sum()) + dag.blocking_power_w * point.deadline_s,
    )


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
        problem.chains.first,
        problem.chains.ops,
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


def _by_period(
    problem: RoundingProblem, menus: Sequence[PeriodMenu], frontier: Frontier, point: FrontierPoint, spread: float
) -> RoundedPlan | None:
    """Every chain repeats its cheapest rounds at the pace of the slowest; then ends are sped up to fit.

    A chain's slow rounds come one micro-batch after the slow rounds of the chain before, so that a backward
    that comes late finds the next chain's float still unspent.
    """
    dag = problem.dag
    if frontier.t_min_s == 0:
        return None  # Without a shortest iteration there is no pace to keep.
    pace_s = max(float(menu.time_s[0]) for menu in menus) * point.deadline_s / frontier.t_min_s
    chosen = np.zeros(len(dag), np.int64)
    for i, menu in enumerate(menus):
        fast, slow, share = menu.cheapest_mix(pace_s, spread * pace_s)
        ops = problem.chains[i]
        for place, kind in enumerate(menu.kinds):
            own = ops[dag.kind[ops] == kind]
            turn = np.arange(len(own)) - i
            is_slow = np.floor((turn + 1) * share) > np.floor(turn * share)
            chosen[own] = np.where(is_slow, menu.choices[slow, place], menu.choices[fast, place])
    if not repair(
        problem.before_first,
        problem.before,
        dag.order,
        dag.kind,
        problem.choice_first,
        problem.choice_time_s,
        problem.choice_effective_j,
        point.deadline_s,
        chosen,
    ):
        return None
    return _filled(problem, point, chosen)


def _period_menu(dag: Dag, path: IntArray) -> PeriodMenu:
    kinds = tuple(dict.fromkeys(dag.kind[path].tolist()))[:MOST_KINDS_IN_A_ROUND]
    rounds: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    for kind in kinds:
        computation = dag.computations[kind]
        longer = [
            (time_s + choice.time_s, cost_j + computation.effective_j(choice), (*picked, index))
            for time_s, cost_j, picked in rounds
            for index, choice in enumerate(computation.choices)
        ]
        rounds = []
        for candidate in sorted(longer):
            if not rounds or candidate[1] < rounds[-1][1]:
                rounds.append(candidate)
    return PeriodMenu(
        kinds,
        np.array([time_s for time_s, _, _ in rounds]),
        np.array([cost_j for _, cost_j, _ in rounds]),
        np.array([picked for _, _, picked in rounds], np.int64),
    )


def _improved(problem: RoundingProblem, plan: RoundedPlan) -> list[RoundedPlan]:
    """Searches from one plan that differ in where the slack is left: late, early, or by turns."""
    dag, settings = problem.dag, problem.settings
    affordable = settings.sweep_work // (len(dag) * len(problem.paths))
    sweeps = min(settings.sweeps, max(settings.fewest_sweeps, affordable))
    backwards = np.arange(len(problem.paths) - 1, -1, -1)
    found = []
    for leanings in ((0.0,), (1.0,), (1.0, 0.5, 0.0)):
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
            problem.paths.first,
            problem.paths.ops,
            np.tile(backwards, sweeps),
            np.repeat(np.resize(leanings, sweeps), len(backwards)),
            plan.point.deadline_s,
            problem.settings.buckets,
            chosen,
        )
        found.append(_filled(problem, plan.point, chosen))
    return [better for better in found if better is not None]


def _cheaper(plan: RoundedPlan, *others: RoundedPlan | None) -> RoundedPlan:
    return min((plan, *(other for other in others if other is not None)), key=lambda p: p.energy_j)


def _effective_j(dag: Dag, plan: RoundedPlan) -> float:
    return plan.energy_j - dag.blocking_power_w * plan.point.deadline_s


def _turns(problem: RoundingProblem, chosen: IntArray) -> IntArray:
    duration_s = problem.choice_time_s[problem.rows(chosen)]
    start_s = finish_times(problem.dag, duration_s) - duration_s
    turn = np.empty(len(chosen), np.int64)
    turn[np.argsort(start_s, kind="stable")] = np.arange(len(chosen))
    return turn


def _lower_hull(dag: Dag, plans: list[RoundedPlan]) -> list[RoundedPlan]:
    """Plans that no mixture of two others beats, by rising time."""
    points = sorted(((p.finish_time_s, _effective_j(dag, p), i) for i, p in enumerate(plans)))
    hull: list[tuple[float, float, int]] = []
    for point in points:
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) >= 2 and (hull[-1][1] - hull[-2][1]) * (point[0] - hull[-2][0]) >= (point[1] - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append(point)
    return [plans[i] for _, _, i in hull]


def _path_cover(dag: Dag, before_first: IntArray, before: IntArray, *, along_stages: bool) -> Paths:
    """Every operation on one path, along a stage, or across stages, where there is one."""
    stage = np.fromiter((task.stage for task in dag.tasks), np.int64, len(dag))
    path_of = cover_with_paths(before_first, before, dag.order, stage, along_stages)
    by_path = np.argsort(path_of[dag.order], kind="stable")
    first = np.zeros(int(path_of.max()) + 2, np.int64)
    np.cumsum(np.bincount(path_of), out=first[1:])
    return Paths(first, dag.order[by_path])
