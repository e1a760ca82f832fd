"""Perseus's planner as values: a job goes in, a frontier comes out, any iteration time is then a look-up."""

from dataclasses import dataclass
from typing import NamedTuple

from control_plane.training.dag import Dag, finish_times
from control_plane.training.frontier import Frontier, Regime, walk_frontier
from control_plane.training.pipeline import Schedule, build_dag
from control_plane.training.profile import Profile
from control_plane.training.rounding import ChoiceTable, RoundedPlan, choice_table, rounded


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One pipeline of a training job. Times and energies are of a whole stage; blocking power too."""

    profile: Profile
    schedule: Schedule
    blocking_power_w: float
    transfer_time_s: float = 0.0


class ScheduledStep(NamedTuple):
    """One entry of a rank's clock schedule; a rank is a pipeline stage."""

    instruction: str
    microbatch: int
    freq_mhz: int
    chunk: int = 0
    power_limit_w: int = 0


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
    """A job with its frontier; `within` turns any deadline into clocks."""

    spec: JobSpec
    frontier: Frontier
    table: ChoiceTable

    @property
    def dag(self) -> Dag:
        return self.frontier.dag

    def within(self, deadline_s: float) -> IterationPlan:
        """Real clocks that end by the deadline; raises DeadlineError, which says T_min, under it."""
        return iteration_plan(self.spec.schedule, self.dag, rounded(self.frontier, deadline_s, self.table))

    def with_straggler(self, degree: float) -> IterationPlan:
        """The plan while some pipeline takes `degree` times the shortest iteration."""
        return self.within(degree * self.frontier.t_min_s)


def solve(spec: JobSpec) -> SolvedJob:
    """Trace the whole frontier of a job."""
    dag = build_dag(spec.schedule, spec.profile, spec.blocking_power_w, transfer_time_s=spec.transfer_time_s)
    return SolvedJob(spec, walk_frontier(dag), choice_table(dag))


def iteration_plan(schedule: Schedule, dag: Dag, plan: RoundedPlan) -> IterationPlan:
    """The schedule's programs with the plan's clocks; a schedule's operations stand stage by stage."""
    choices = plan.choices(dag)
    ranks = []
    op = 0
    for program in schedule.order:
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
        finish_time_s=plan.finish_time_s,
        energy_j=plan.energy_j,
        lower_bound_j=plan.point.energy_j,
        regime=plan.point.regime,
        ranks=tuple(ranks),
    )


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
    time_s = float(finish_times(dag, dag.per_operation(c.all_max.time_s for c in dag.computations)).max())
    effective_j = float(dag.per_operation(c.effective_j(c.all_max) for c in dag.computations).sum())
    return AllMax(time_s, effective_j + dag.blocking_power_w * time_s, dag.blocking_power_w)
