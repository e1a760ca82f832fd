"""Perseus's planner as values: a job goes in, a frontier comes out, any iteration time is then a look-up."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from control_plane.training.dag import Dag, finish_times
from control_plane.training.frontier import Frontier, Regime, WalkWatcher, walk_frontier
from control_plane.training.job_spec import Circumstances, JobSpec, ScheduledStep
from control_plane.training.pipeline import build_dag
from control_plane.training.profile import Choice
from control_plane.training.rounding import (
    PlanLibrary,
    RoundedPlan,
    RoundingProblem,
    prepare,
    rounded,
    rounding_problem,
    without_short_switches,
)
from control_plane.training.stage_clocks import one_clock_per_stage, shortest_hold_s


@dataclass(frozen=True, slots=True)
class IterationPlan:
    """Clocks for one iteration, per rank in execution order.

    `energy_j` and `lower_bound_j` charge blocking power of all stages up to `deadline_s`.
    """

    deadline_s: float
    finish_time_s: float
    energy_j: float
    lower_bound_j: float
    regime: Regime
    ranks: tuple[tuple[ScheduledStep, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class SolvedJob:
    """A job with its frontier. Plans are good at once and better when a library has been prepared."""

    spec: JobSpec
    frontier: Frontier
    problem: RoundingProblem
    library: PlanLibrary | None = None

    @property
    def dag(self) -> Dag:
        return self.frontier.dag

    def within(self, deadline_s: float) -> IterationPlan:
        """Real clocks that end by the deadline; raises DeadlineError, which says T_min, under it."""
        if self.library is None:
            return iteration_plan(self.spec, self.dag, rounded(self.problem, self.frontier, deadline_s))
        return iteration_plan(self.spec, self.dag, self.library.within(deadline_s))

    def with_straggler(self, degree: float) -> IterationPlan:
        """The plan while some pipeline takes `degree` times the shortest iteration."""
        return self.within(degree * self.frontier.t_min_s)

    def prepared(self) -> "SolvedJob":
        """The same job with its plan library: seconds of work, for the background."""
        return replace(self, library=prepare(self.problem, self.frontier))


def solve(spec: JobSpec, watcher: WalkWatcher | None = None) -> SolvedJob:
    """Trace the whole frontier of a job; the watcher hears how far the walk is and may end it."""
    dag = _dag(spec)
    return SolvedJob(spec, walk_frontier(dag, watcher), rounding_problem(dag))


def deadline_under(spec: JobSpec, healthy_t_min_s: float, now: Circumstances) -> float:
    """When everybody meets: the slowest pipeline's own shortest iteration, announced or detected (Perseus, sec. 3)."""
    slowed = [t_min_s(spec.slowed(ratios)) for ratios in {now.own, *now.others} if ratios]
    return max([now.degree * healthy_t_min_s, *slowed])


class Meeting(NamedTuple):
    """When a pipeline's iteration has to end, and how many healthy iterations at their shortest that is."""

    deadline_s: float
    degree: float


def meeting(spec: JobSpec, solved: SolvedJob, now: Circumstances) -> Meeting:
    """For the pipeline that ``solved`` is of: the job ``spec`` as slow as ``now`` says. Never before its own T_min."""
    healthy_s = t_min_s(spec) if now.own else solved.frontier.t_min_s
    deadline_s = max(deadline_under(spec, healthy_s, now), solved.frontier.t_min_s)
    return Meeting(deadline_s, deadline_s / healthy_s if now.own or now.others else now.degree)


def t_min_s(spec: JobSpec) -> float:
    """The shortest iteration, without tracing the frontier."""
    dag = _dag(spec)
    return float(finish_times(dag, dag.per_operation(c.fastest.time_s for c in dag.computations)).max())


def _dag(spec: JobSpec) -> Dag:
    return build_dag(spec.schedule, spec.profile, spec.blocking_power_w, transfer_time_s=spec.transfer_time_s)


def iteration_plan(spec: JobSpec, dag: Dag, plan: RoundedPlan) -> IterationPlan:
    """The schedule's programs with the plan's clocks; a schedule's operations stand stage by stage."""
    choices = plan.choices(dag)
    finish_time_s, energy_j = plan.finish_time_s, plan.energy_j
    if spec.switch_time_s > 0:
        choices = _held(dag, choices, spec.switch_time_s, plan.point.deadline_s)
        finish_time_s, effective_j = run_choices(dag, choices)
        energy_j = effective_j + dag.blocking_power_w * plan.point.deadline_s
    op = 0
    ranks = []
    for program in spec.schedule.order:
        steps = []
        for instruction in program:
            choice = choices[op]
            steps.append(
                ScheduledStep(
                    instruction.name,
                    instruction.microbatch,
                    choice.freq_mhz,
                    instruction.chunk,
                    choice.power_limit_w,
                )
            )
            op += 1
        ranks.append(tuple(steps))
    return IterationPlan(
        deadline_s=plan.point.deadline_s,
        finish_time_s=finish_time_s,
        energy_j=energy_j,
        lower_bound_j=plan.point.energy_j,
        regime=plan.point.regime,
        ranks=tuple(ranks),
    )


def _held(dag: Dag, choices: tuple[Choice, ...], switch_time_s: float, deadline_s: float) -> tuple[Choice, ...]:
    """Choices that a GPU can follow whose clock takes so long to change: short runs merged, or one clock per stage
    where that is cheaper or merging has left a run too short."""
    merged = without_short_switches(dag, choices, switch_time_s)
    steady = one_clock_per_stage(dag, deadline_s)
    if steady is None:
        return merged
    if shortest_hold_s(dag, merged) < switch_time_s:
        return steady
    return min(merged, steady, key=lambda plan: run_choices(dag, plan)[1])


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
