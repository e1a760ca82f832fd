"""Perseus's planner as values: a job goes in, a frontier comes out, any iteration time is then a look-up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from control_plane.training.coarse_frontier import LEVELS, MOST_EXACT_OPERATIONS, CoarseFrontier, walk_coarsely
from control_plane.training.dag import Dag, finish_times
from control_plane.training.extrapolation import REPEATING, FrontierCurve, extrapolated
from control_plane.training.frontier import Frontier, FrontierPoint, Regime, WalkWatcher, walk_frontier
from control_plane.training.held_plans import HeldLibrary, held_within, prepare_held, shortest_steady_s
from control_plane.training.held_problem import HeldPlan, HeldProblem, choices_of, held_problem
from control_plane.training.job_spec import Circumstances, JobSpec, ScheduledStep
from control_plane.training.pipeline import build_dag, schedule_named
from control_plane.training.profile import Choice
from control_plane.training.rounding import (
    PlanLibrary,
    RoundedPlan,
    RoundingProblem,
    prepare,
    rounded,
    rounding_problem,
)
from control_plane.training.switching import Switches, switches_of

NEAR_BOUND_RATIO = 1e-3
"""A plan this near to its lower bound is good enough without a library, which takes seconds to minutes to prepare."""


@dataclass(frozen=True, slots=True)
class IterationPlan:
    """Clocks for one iteration, per rank in execution order.

    `energy_j` and `lower_bound_j` charge blocking power of all stages up to `deadline_s`. Where clocks take time to
    change, time and energy are those with settling.
    """

    deadline_s: float
    finish_time_s: float
    energy_j: float
    lower_bound_j: float
    regime: Regime
    switches: Switches
    choices: tuple[Choice, ...]
    """Of every operation of the DAG."""
    ranks: tuple[tuple[ScheduledStep, ...], ...]

    @property
    def is_near_bound(self) -> bool:
        """Whether no library could make the plan noticeably better."""
        return self.energy_j <= self.lower_bound_j * (1 + NEAR_BOUND_RATIO)


@dataclass(frozen=True, slots=True, eq=False)
class SolvedJob:
    """A job with its frontier. Plans are good at once and better when a library has been prepared.

    `held` is the problem of a GPU that cannot run any clock anywhere, where the job has such.
    """

    spec: JobSpec
    frontier: Frontier
    problem: RoundingProblem
    held: HeldProblem | None
    shortest_s: float
    """The shortest iteration that plans are promised for: T_min, or longer where held clocks do not reach it."""
    library: PlanLibrary | HeldLibrary | None = None

    @property
    def dag(self) -> Dag:
        return self.frontier.dag

    def within(self, deadline_s: float, refine: bool = True) -> IterationPlan:
        """Real clocks that end by the deadline; raises DeadlineError, which says the shortest time known, under it.
        With `refine` a coarse frontier is refined for the deadline, which takes seconds."""
        frontier = self.frontier
        if refine and isinstance(frontier, CoarseFrontier):
            frontier = frontier.refined(deadline_s)
        point = frontier.within(deadline_s)
        plan = self._plan(frontier, deadline_s)
        if isinstance(plan, RoundedPlan):
            choices, energy_j = plan.choices(self.dag), plan.energy_j
        else:
            assert self.held is not None
            choices = choices_of(self.held, plan)
            energy_j = plan.effective_j + self.dag.blocking_power_w * point.deadline_s
        return self._told(point, plan.finish_time_s, energy_j, choices)

    def by(self, choices: Sequence[Choice]) -> IterationPlan:
        """The plan that somebody else chose, one choice per operation, on its own as deadline."""
        finish_s, effective_j = run_choices(self.dag, choices)
        energy_j = effective_j + self.dag.blocking_power_w * finish_s
        return self._told(self.frontier.within(max(finish_s, self.frontier.t_min_s)), finish_s, energy_j, choices)

    def with_straggler(self, degree: float) -> IterationPlan:
        """The plan while some pipeline takes `degree` times the shortest iteration."""
        return self.within(max(degree * self.frontier.t_min_s, self.shortest_s))

    def prepared(self) -> "SolvedJob":
        """The same job with its plan library: seconds of work, for the background."""
        if self.held is not None:
            return replace(self, library=prepare_held(self.held, self.frontier))
        return replace(self, library=prepare(self.problem, self.frontier))

    def _told(self, point: FrontierPoint, finish_s: float, energy_j: float, choices: Sequence[Choice]) -> IterationPlan:
        return IterationPlan(
            deadline_s=point.deadline_s,
            finish_time_s=finish_s,
            energy_j=energy_j,
            lower_bound_j=point.energy_j,
            regime=point.regime,
            switches=switches_of(self.dag, choices),
            choices=tuple(choices),
            ranks=_ranks(self.spec, choices),
        )

    def _plan(self, frontier: Frontier, deadline_s: float) -> RoundedPlan | HeldPlan:
        if self.library is not None:
            return self.library.within(deadline_s)
        if self.held is not None:
            return held_within(self.held, frontier, deadline_s)
        return rounded(self.problem, frontier, deadline_s)


def solve(spec: JobSpec, watcher: WalkWatcher | None = None, levels: int | None = None) -> SolvedJob:
    """Trace the frontier of a job; the watcher hears how far the walk is and may end it.

    `levels` is how many slopes are told apart, 0 for all; unless it is given, big DAGs are traced with few.
    """
    dag = _dag(spec)
    if levels is None:
        levels = LEVELS if len(dag) > MOST_EXACT_OPERATIONS else 0
    if levels:
        frontier: Frontier = walk_coarsely(dag, watcher, levels, curve=exact_curve(spec))
    else:
        frontier = walk_frontier(dag, watcher)
    problem = rounding_problem(dag)
    if spec.switch.any_clock_anywhere:
        return SolvedJob(spec, frontier, problem, None, frontier.t_min_s)
    held = held_problem(problem, spec.switch)
    return SolvedJob(spec, frontier, problem, held, max(frontier.t_min_s, shortest_steady_s(held)))


def exact_curve(spec: JobSpec) -> FrontierCurve | None:
    """The job's frontier by extrapolation, where its schedule repeats itself."""
    name, stages, microbatches = spec.schedule.name, spec.schedule.stages, spec.schedule.microbatches
    if name not in REPEATING or spec.schedule.order != schedule_named(name, stages, microbatches).order:
        return None
    return extrapolated(
        name, stages, microbatches, lambda count: _dag(replace(spec, schedule=schedule_named(name, stages, count)))
    )


def deadline_under(spec: JobSpec, healthy_t_min_s: float, now: Circumstances) -> float:
    """When everybody meets: the slowest pipeline's own shortest iteration, announced or detected (Perseus, sec. 3)."""
    slowed = [t_min_s(spec.slowed(ratios)) for ratios in {now.own, *now.others} if ratios]
    return max([now.degree * healthy_t_min_s, *slowed])


class Meeting(NamedTuple):
    """When a pipeline's iteration has to end, and how many healthy iterations at their shortest that is."""

    deadline_s: float
    degree: float


def meeting(spec: JobSpec, solved: SolvedJob, now: Circumstances) -> Meeting:
    """For the pipeline that ``solved`` is of: the job ``spec`` as slow as ``now`` says. Never before
    its own shortest iteration."""
    healthy_s = t_min_s(spec) if now.own else solved.frontier.t_min_s
    deadline_s = max(deadline_under(spec, healthy_s, now), solved.shortest_s)
    return Meeting(deadline_s, deadline_s / healthy_s if now.own or now.others else now.degree)


def t_min_s(spec: JobSpec) -> float:
    """The shortest iteration, without tracing the frontier."""
    dag = _dag(spec)
    return float(finish_times(dag, dag.per_operation(c.fastest.time_s for c in dag.computations)).max())


def _dag(spec: JobSpec) -> Dag:
    return build_dag(spec.schedule, spec.profile, spec.blocking_power_w, transfer_time_s=spec.transfer_time_s)


def _ranks(spec: JobSpec, choices: Sequence[Choice]) -> tuple[tuple[ScheduledStep, ...], ...]:
    """The schedule's programs with a plan's clocks; a schedule's operations stand stage by stage."""
    chosen = iter(choices)
    return tuple(
        tuple(
            ScheduledStep(step.name, step.microbatch, choice.freq_mhz, step.chunk, choice.power_limit_w)
            for step, choice in zip(program, islice(chosen, len(program)), strict=True)
        )
        for program in spec.schedule.order
    )


def run_choices(dag: Dag, choices: Iterable[Choice]) -> tuple[float, float]:
    """When an iteration with these choices ends, and its effective energy."""
    listed = tuple(choices)
    times_s = np.array([c.time_s for c in listed])
    effective_j = sum(dag.computation(op).effective_j(choice) for op, choice in enumerate(listed))
    return float(finish_times(dag, times_s).max()), effective_j


@dataclass(frozen=True, slots=True)
class AllMax:
    """Every clock at its highest setting: what a job pays without a plan."""

    time_s: float
    energy_j: float
    blocking_power_w: float

    def energy_until_j(self, deadline_s: float) -> float:
        """Energy if the pipeline then waits for a straggler until the deadline."""
        return self.energy_j + self.blocking_power_w * max(0.0, deadline_s - self.time_s)


def all_max(dag: Dag) -> AllMax:
    time_s, effective_j = run_choices(dag, (dag.computation(op).all_max for op in range(len(dag))))
    return AllMax(time_s, effective_j + dag.blocking_power_w * time_s, dag.blocking_power_w)
