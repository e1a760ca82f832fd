"""A finished run against all-max clocks: what it saved, what it lost, before, during and after the straggler."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter

from actors.training_messages import JobFrontier
from train_jobs.job import Job
from train_jobs.run_log import IterationRecord, RunLog, ScheduleRecord

BEFORE, DURING, AFTER = "before", "during", "after"


@dataclass(frozen=True, slots=True)
class Phase:
    """Iterations before, during or after the straggler or slow GPU, under a schedule, against all-max clocks."""

    name: str
    iterations: int
    iteration_time_s: float
    iteration_energy_j: float
    all_max_time_s: float
    all_max_energy_j: float


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished run. The baseline is every clock at its highest: same iterations, same straggler; really run where
    ``all_max`` is its log, else from the job's own profile at the highest clock."""

    job: Job
    log: RunLog
    frontier: JobFrontier | None
    all_max: RunLog | None
    energy_j: float
    baseline_energy_j: float
    slowdown_ratio: float
    stragglers_handled: int
    phases: tuple[Phase, ...]

    @property
    def losses(self) -> tuple[float, ...]:
        return tuple(record.loss for record in self.log.iterations)

    @property
    def losses_equal_unmanaged(self) -> bool | None:
        """None where the job did not ask for the comparison."""
        return self.losses == self.log.unmanaged_losses if self.log.unmanaged_losses else None

    @property
    def straggler_events(self) -> int:
        """How often the clocks changed over to a straggler's pace."""
        paces = [record.planned_degree for record in self.log.iterations]
        return sum(1 for before, now in pairwise([0.0, *paces]) if before <= 1 < now)

    def summary(self) -> dict[str, Any]:
        """What `wattray train --json` writes: the whole run, its iterations at full clock before the first plan
        included. Times are GPU time; energy is what the GPUs' counters said, waiting included."""
        count = max(1, len(self.log.iterations))
        time_s = sum(record.time_s for record in self.log.iterations)
        losses_equal = None if self.all_max is None else self.losses == tuple(r.loss for r in self.all_max.iterations)
        return {
            "job": self.job.name,
            "policy": self.job.policy,
            "pipelines": self.job.data_parallel,
            "stages": self.job.schedule.stages,
            "iterations": len(self.log.iterations),
            "iteration_time_s": time_s / count,
            "all_max_iteration_time_s": time_s / count / self.slowdown_ratio,
            "energy_j": self.energy_j,
            "all_max_energy_j": self.baseline_energy_j,
            "energy_saved_ratio": 1 - self.energy_j / self.baseline_energy_j,
            "slowdown_ratio": self.slowdown_ratio,
            "straggler_events": self.straggler_events,
            "final_loss": self.losses[-1],
            "losses_equal_all_max": losses_equal,
            "profile_energy_j": self.log.profile_energy_j,
            "worker_starts": self.log.starts,
            "phases": [asdict(phase) for phase in self.phases],
            "simulated_gpus": True,
        }

    def report(self) -> dict[str, Any]:
        """The values of report.json's `training`."""
        return {
            "job": self.job.name,
            "iterations": len(self.log.iterations),
            "energy_j": self.energy_j,
            "baseline_energy_j": self.baseline_energy_j,
            "energy_saved_ratio": 1 - self.energy_j / self.baseline_energy_j,
            "slowdown_ratio": self.slowdown_ratio,
            "stragglers_handled": self.stragglers_handled,
            "phases": [asdict(phase) for phase in self.phases],
            "schedules": [asdict(schedule) for schedule in self.log.schedules],
            "profile_energy_j": self.log.profile_energy_j,
            "worker_starts": self.log.starts,
            "losses_equal_unmanaged": self.losses_equal_unmanaged,
            "losses": self.losses,
        }

    def to_json(self) -> str:
        written = _Written(self.job, self.log, self.frontier, self.all_max)
        return TypeAdapter(_Written).dump_json(written).decode()

    @staticmethod
    def from_json(text: str) -> "TrainingResult":
        written = TypeAdapter(_Written).validate_json(text)
        return account(written.job, written.log, written.frontier, written.all_max)


@dataclass(frozen=True, slots=True)
class _Written:
    """A run as it is written; the rest follows from it."""

    job: Job
    log: RunLog
    frontier: JobFrontier | None
    all_max: RunLog | None = None


def account(job: Job, log: RunLog, frontier: JobFrontier | None, all_max: RunLog | None = None) -> TrainingResult:
    """The run against all-max clocks. A run without a schedule is its own baseline."""
    records = log.iterations
    if all_max is None:
        baseline = [all_max_of(record, log.schedules, job.data_parallel) for record in records]
    else:
        baseline = [(record.time_s, record.energy_j) for record in all_max.iterations]
    ideal_s = sum(time_s for time_s, _ in baseline)
    handled = {s.degree for s in log.schedules if s.degree > 1}
    served = {r.degree for r in records if r.degree > 1 and r.planned_degree == r.degree} & handled
    return TrainingResult(
        job=job,
        log=log,
        frontier=frontier,
        all_max=all_max,
        energy_j=sum(record.energy_j for record in records),
        baseline_energy_j=sum(energy_j for _, energy_j in baseline),
        slowdown_ratio=sum(record.time_s for record in records) / ideal_s,
        stragglers_handled=len(served),
        phases=_phases(job, records, baseline),
    )


def all_max_of(record: IterationRecord, schedules: Sequence[ScheduleRecord], pipelines: int = 1) -> tuple[float, float]:
    """Time and energy of this iteration with every clock at its highest, under the same straggler, on the same GPUs,
    computed. Without a schedule for GPUs as slow as they were, and where one of several pipelines is slow, the
    iteration is its own baseline."""
    if pipelines > 1 and (record.degree > 1 or record.slow_ratio > 1):
        return record.time_s, record.energy_j
    alike = [schedule for schedule in schedules if bool(schedule.stage_ratios) == (record.slow_ratio > 1)]
    if not alike:
        return record.time_s, record.energy_j
    known = alike[0]
    time_s = max(known.all_max_time_s, record.straggler_time_s)
    return time_s, known.all_max_energy_until_j(time_s) * pipelines


def _phases(job: Job, records: Sequence[IterationRecord], baseline: Sequence[tuple[float, float]]) -> tuple[Phase, ...]:
    phases = []
    for name in (BEFORE, DURING, AFTER):
        mine = [(r, b) for r, b in zip(records, baseline, strict=True) if phase_of(job, r) == name]
        if mine:
            count = len(mine)
            phases.append(
                Phase(
                    name,
                    count,
                    sum(r.time_s for r, _ in mine) / count,
                    sum(r.energy_j for r, _ in mine) / count,
                    sum(time_s for _, (time_s, _) in mine) / count,
                    sum(energy_j for _, (_, energy_j) in mine) / count,
                )
            )
    return tuple(phases)


def phase_of(job: Job, record: IterationRecord) -> str:
    """Iterations at full clock, before the first schedule came, are of no phase ("")."""
    if record.planned_degree == 0:
        return ""
    troubles = [trouble for trouble in (job.straggler, job.slow_gpu) if trouble is not None]
    if all(record.iteration < trouble.from_iteration for trouble in troubles):
        return BEFORE
    return DURING if any(record.iteration < trouble.to_iteration for trouble in troubles) else AFTER
