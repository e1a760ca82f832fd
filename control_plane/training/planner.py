"""Perseus's planner as values: a job goes in, a frontier comes out, any iteration time is then a look-up.

`PlannerState` is all a restarted planner needs; frontiers are traced again from it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple, NewType, TypeVar

import numpy as np

from control_plane.training.dag import Dag, finish_times
from control_plane.training.frontier import Frontier, Regime, walk_frontier
from control_plane.training.pipeline import Instruction, Schedule, build_dag
from control_plane.training.profile import Choice, Profile, profile_of
from control_plane.training.rounding import (
    PlanLibrary,
    RoundedPlan,
    RoundingProblem,
    prepare,
    rounded,
    rounding_problem,
    without_short_switches,
)

Key = TypeVar("Key")
Value = TypeVar("Value")
JobId = NewType("JobId", str)
PipelineId = NewType("PipelineId", str)


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One pipeline of a training job. Times and energies are of a whole stage; blocking power too."""

    profile: Profile
    schedule: Schedule
    blocking_power_w: float
    transfer_time_s: float = 0.0
    switch_time_s: float = 0.0
    """What one clock change takes on the hardware; runs of one clock shorter than this are merged."""


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


@dataclass(frozen=True, slots=True)
class Straggler:
    """A pipeline that takes `degree` times the shortest iteration from `start_s` on."""

    degree: float
    start_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PlannerState:
    """Registered jobs and who lags in them."""

    jobs: Mapping[JobId, JobSpec] = field(default_factory=lambda: MappingProxyType({}))
    stragglers: Mapping[JobId, Mapping[PipelineId, Straggler]] = field(default_factory=lambda: MappingProxyType({}))

    def with_job(self, job: JobId, spec: JobSpec) -> "PlannerState":
        """Registering again replaces the job and forgets its stragglers."""
        jobs = {**self.jobs, job: spec}
        return PlannerState(MappingProxyType(jobs), _without(self.stragglers, job))

    def without_job(self, job: JobId) -> "PlannerState":
        return PlannerState(_without(self.jobs, job), _without(self.stragglers, job))

    def with_straggler(self, job: JobId, pipeline: PipelineId, straggler: Straggler) -> "PlannerState":
        """A report about one pipeline; degree 1 or less says that it has recovered."""
        if job not in self.jobs:
            raise KeyError(f"no job {job!r} is registered")
        if not straggler.degree > 0:
            raise ValueError(f"a straggler's degree must be positive, got {straggler.degree}")
        slow = dict(self.stragglers.get(job, {}))
        slow.pop(pipeline, None)
        if straggler.degree > 1:
            slow[pipeline] = straggler
        stragglers = {**self.stragglers, job: MappingProxyType(slow)}
        return PlannerState(self.jobs, MappingProxyType(stragglers))

    def degree(self, job: JobId, now_s: float) -> float:
        """The slowest pipeline sets the pace; 1 when none lags."""
        slow = self.stragglers.get(job, {}).values()
        return max((s.degree for s in slow if s.start_s <= now_s), default=1.0)

    def next_start_s(self, job: JobId, now_s: float) -> float | None:
        """When an announced straggler begins, if one is still to come: the time to ask for `degree` again."""
        return min((s.start_s for s in self.stragglers.get(job, {}).values() if s.start_s > now_s), default=None)

    def to_json(self) -> str:
        return json.dumps(
            {
                "jobs": {job: _spec_to_json(spec) for job, spec in self.jobs.items()},
                "stragglers": {
                    job: {pipeline: [s.degree, s.start_s] for pipeline, s in slow.items()}
                    for job, slow in self.stragglers.items()
                },
            }
        )

    @staticmethod
    def from_json(text: str) -> "PlannerState":
        written = json.loads(text)
        return PlannerState(
            MappingProxyType({JobId(j): _spec_from_json(s) for j, s in written["jobs"].items()}),
            MappingProxyType(
                {
                    JobId(job): MappingProxyType({PipelineId(p): Straggler(*s) for p, s in slow.items()})
                    for job, slow in written["stragglers"].items()
                }
            ),
        )


def solve(spec: JobSpec) -> SolvedJob:
    """Trace the whole frontier of a job."""
    dag = build_dag(spec.schedule, spec.profile, spec.blocking_power_w, transfer_time_s=spec.transfer_time_s)
    return SolvedJob(spec, walk_frontier(dag), rounding_problem(dag))


def common_deadline_s(frontiers: Iterable[Frontier], degree: float = 1.0) -> float:
    """Data-parallel pipelines synchronise: the slowest one's T_min is everyone's deadline, straggler or
    not."""
    return degree * max(frontier.t_min_s for frontier in frontiers)


def iteration_plan(spec: JobSpec, dag: Dag, plan: RoundedPlan) -> IterationPlan:
    """The schedule's programs with the plan's clocks; a schedule's operations stand stage by stage."""
    choices = plan.choices(dag)
    finish_time_s, energy_j = plan.finish_time_s, plan.energy_j
    if spec.switch_time_s > 0:
        choices = without_short_switches(dag, choices, spec.switch_time_s)
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


def _spec_to_json(spec: JobSpec) -> dict[str, object]:
    return {
        "profile": [
            [stage, instruction, c.freq_mhz, c.time_s, c.energy_j, c.power_limit_w]
            for (stage, instruction), choices in spec.profile.choices.items()
            for c in choices
        ],
        "schedule": {
            "name": spec.schedule.name,
            "microbatches": spec.schedule.microbatches,
            "chunks": spec.schedule.chunks,
            "order": [[[s.name, s.microbatch, s.chunk] for s in program] for program in spec.schedule.order],
        },
        "blocking_power_w": spec.blocking_power_w,
        "transfer_time_s": spec.transfer_time_s,
        "switch_time_s": spec.switch_time_s,
    }


def _spec_from_json(written: Mapping[str, Any]) -> JobSpec:
    fields = dict(written)
    choices: dict[tuple[int, str], list[Choice]] = {}
    for stage, instruction, freq_mhz, time_s, energy_j, power_limit_w in fields.pop("profile"):
        choices.setdefault((stage, instruction), []).append(Choice(freq_mhz, time_s, energy_j, power_limit_w))
    schedule = fields.pop("schedule")
    order = tuple(tuple(Instruction(*step) for step in program) for program in schedule["order"])
    return JobSpec(
        profile=profile_of(choices),
        schedule=Schedule(schedule["name"], schedule["microbatches"], schedule["chunks"], order),
        **fields,
    )


def _without(mapping: Mapping[Key, Value], key: Key) -> Mapping[Key, Value]:
    return MappingProxyType({k: v for k, v in mapping.items() if k != key})
