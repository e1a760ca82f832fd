"""The planner of training jobs: a registered job becomes a frontier, and any straggler a look-up in it.

Every change is on disk as JSON before it is answered, so a planner that restarts knows its jobs and traces their
frontiers again when asked. Solving happens elsewhere: calls about other jobs go on meanwhile.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from actors.training_messages import ClockSchedule, ClockStep, FrontierSample, JobFrontier, JobRegistration
from control_plane.training.job_record import JobRecord
from control_plane.training.pipeline import schedule_named
from control_plane.training.planner import JobSpec, SolvedJob, all_max, solve
from control_plane.training.profile import profile_of

log = logging.getLogger(__name__)

InBackground = Callable[..., Awaitable[Any]]
"""(function, arguments) → its result, computed off the event loop."""


class UnknownJobError(ValueError):
    """No job of this name is registered."""


class PerseusPlanner:
    """Many jobs; ``folder`` holds one file per job."""

    def __init__(self, folder: Path, in_background: InBackground) -> None:
        self._folder, self._in_background = folder, in_background
        folder.mkdir(parents=True, exist_ok=True)
        self._records = _read_records(folder)
        self._solving: dict[str, asyncio.Future[SolvedJob]] = {}

    async def register(self, registration: JobRegistration) -> None:
        """Registering again replaces the job and forgets its stragglers. Raises ValueError where profile and
        schedule do not fit each other; the frontier is traced in the background."""
        schedule = schedule_named(registration.schedule, registration.stages, registration.microbatches)
        spec = JobSpec(profile_of(registration.choices), schedule, registration.blocking_power_w)
        if spec.profile.stages != schedule.stages:
            raise ValueError(f"the schedule has {schedule.stages} stages, the profile {spec.profile.stages}")
        self._keep(JobRecord.of(registration.job, spec))
        self._solving.pop(registration.job, None)
        self._start_solving(registration.job)

    async def schedule(self, job: str) -> ClockSchedule:
        """Clocks for every rank under what is known of the job's stragglers; waits for the first solution."""
        solved = await self._solved(job)
        schedule: ClockSchedule = await self._in_background(_clock_schedule, self._record(job), solved)
        return schedule

    async def report_straggler(self, job: str, pipeline: str, degree: float) -> ClockSchedule:
        """One of the job's data-parallel pipelines now takes ``degree`` times the healthy iteration time (1: it has
        recovered). Returns the new schedule."""
        self._keep(self._record(job).with_straggler(pipeline, degree))
        return await self.schedule(job)

    async def frontier(self, job: str, samples: int = 40) -> JobFrontier:
        solved = await self._solved(job)
        frontier: JobFrontier = await self._in_background(_job_frontier, self._record(job), solved, samples)
        return frontier

    async def jobs(self) -> tuple[str, ...]:
        return tuple(sorted(self._records))

    async def forget(self, job: str) -> None:
        """The job is no longer planned for. Forgetting twice is forgetting once."""
        self._records.pop(job, None)
        self._solving.pop(job, None)
        self._file(job).unlink(missing_ok=True)

    async def _solved(self, job: str) -> SolvedJob:
        self._record(job)
        solving = self._solving.get(job) or self._start_solving(job)
        return await asyncio.shield(solving)

    def _start_solving(self, job: str) -> asyncio.Future[SolvedJob]:
        solving = asyncio.ensure_future(self._in_background(solve, self._record(job).spec()))
        solving.add_done_callback(lambda done: self._solving_ended(job, done))
        self._solving[job] = solving
        return solving

    def _solving_ended(self, job: str, solving: asyncio.Future[SolvedJob]) -> None:
        if not solving.cancelled() and solving.exception() is not None:
            log.error("job %s has no frontier: %r", job, solving.exception())
            if self._solving.get(job) is solving:
                del self._solving[job]

    def _record(self, job: str) -> JobRecord:
        record = self._records.get(job)
        if record is None:
            known = ", ".join(sorted(self._records)) or "none"
            raise UnknownJobError(f"no job {job!r} is registered; known: {known}")
        return record

    def _keep(self, record: JobRecord) -> None:
        draft = self._file(record.name).with_suffix(".draft")
        draft.write_text(record.model_dump_json())
        draft.replace(self._file(record.name))
        self._records[record.name] = record

    def _file(self, job: str) -> Path:
        return self._folder / f"{job}.json"


def _read_records(folder: Path) -> dict[str, JobRecord]:
    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = JobRecord.model_validate_json(path.read_text())
        except ValidationError as error:
            log.error("%s is no job and is left aside: %s", path, error)
            continue
        records[record.name] = record
    return records


def _clock_schedule(record: JobRecord, solved: SolvedJob) -> ClockSchedule:
    plan = solved.with_straggler(record.degree)
    highest = all_max(solved.dag)
    return ClockSchedule(
        job=record.name,
        degree=record.degree,
        deadline_s=plan.deadline_s,
        planned_time_s=plan.finish_time_s,
        planned_energy_j=plan.energy_j,
        lower_bound_j=plan.lower_bound_j,
        regime=plan.regime.value,
        ranks=tuple(
            tuple(ClockStep(step.instruction, step.microbatch, step.freq_mhz) for step in steps) for steps in plan.ranks
        ),
        t_min_s=solved.frontier.t_min_s,
        t_star_s=solved.frontier.t_star_s,
        all_max_time_s=highest.time_s,
        all_max_energy_j=highest.energy_j,
        blocking_power_w=highest.blocking_power_w,
    )


def _job_frontier(record: JobRecord, solved: SolvedJob, samples: int) -> JobFrontier:
    frontier, schedule = solved.frontier, solved.spec.schedule
    span_s = frontier.t_star_s - frontier.t_min_s
    taken = []
    for number in range(samples):
        plan = solved.within(frontier.t_min_s + span_s * number / max(1, samples - 1))
        taken.append(FrontierSample(plan.deadline_s, plan.energy_j, plan.lower_bound_j))
    highest = all_max(solved.dag)
    return JobFrontier(
        job=record.name,
        stages=schedule.stages,
        microbatches=schedule.microbatches,
        t_min_s=frontier.t_min_s,
        t_star_s=frontier.t_star_s,
        all_max_time_s=highest.time_s,
        all_max_energy_j=highest.energy_j,
        breakpoints=frontier.breakpoints,
        degree=record.degree,
        samples=tuple(taken),
    )
