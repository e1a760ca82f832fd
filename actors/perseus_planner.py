"""The planner of training jobs: a registered job becomes a frontier, and any straggler a look-up in it.

Every change is on disk as JSON before it is answered, so a planner that restarts knows its jobs and has their frontiers
traced again when asked. Solving happens elsewhere: calls go on meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path

from pydantic import ValidationError

from actors.solver_messages import FrontierQuestion, PrepareQuestion, ScheduleQuestion, Solver, SolvingError
from actors.training_messages import OWN_PIPELINE, ClockSchedule, JobFrontier, JobRegistration
from control_plane.training.job_record import JobRecord
from control_plane.training.job_spec import Circumstances, JobSpec, PipelineId, StageRatios
from control_plane.training.profile import profile_of
from control_plane.training.schedules import schedule_named
from control_plane.training.straggler import Detector

log = logging.getLogger(__name__)

MOST_SCHEDULES = 32
"""Kept per job; a straggler's degree may be any number."""


class UnknownJobError(ValueError):
    """No job of this name is registered."""


class PerseusPlanner:
    """Many jobs; ``folder`` holds one file per job, ``unix_s`` is the clock that announced stragglers start by."""

    def __init__(self, folder: Path, solver: Solver, unix_s: Callable[[], float]) -> None:
        self._folder, self._solver, self._unix_s = folder, solver, unix_s
        folder.mkdir(parents=True, exist_ok=True)
        self._records = _read_records(folder)
        self._schedules: dict[str, dict[Circumstances, ClockSchedule]] = {}
        self._detectors: dict[tuple[str, PipelineId], Detector] = {}
        self._working: set[asyncio.Task[None]] = set()

    async def register(self, registration: JobRegistration) -> None:
        """Registering again replaces the job and forgets its stragglers. Raises ValueError where profile and
        schedule do not fit each other; the frontier is traced in the background."""
        schedule = schedule_named(registration.schedule, registration.stages, registration.microbatches)
        spec = JobSpec(
            profile_of(registration.choices),
            schedule,
            registration.blocking_power_w,
            switch_time_s=registration.switch_time_s,
        )
        record = JobRecord.of(registration.job, spec)
        self._drop(record.name)
        self._keep(record)
        self._start(self._refine(record, Circumstances()))

    async def schedule(self, job: str, pipeline: PipelineId = OWN_PIPELINE) -> ClockSchedule:
        """Clocks for every rank under what is known of the job's stragglers; waits for the first solution."""
        record = self._record(job)
        now = record.circumstances(pipeline, self._unix_s())
        known = self._schedules.setdefault(job, {}).get(now)
        if known is not None:
            return known
        schedule = await self._solver.answer(ScheduleQuestion(job=record, now=now))
        assert isinstance(schedule, ClockSchedule)
        if self._is_current(record):
            self._offer(now, schedule)
            self._start(self._refine(record, now))
        return schedule

    async def report_straggler(
        self, job: str, pipeline: PipelineId, degree: float, start_unix_s: float = 0.0
    ) -> ClockSchedule:
        """One of the job's data-parallel pipelines takes ``degree`` times the healthy iteration time from a moment on
        (1: it has recovered). Returns the schedule that holds now."""
        self._keep(self._record(job).with_straggler(pipeline, degree, start_unix_s))
        return await self.schedule(job)

    async def report_iteration(
        self, job: str, pipeline: PipelineId, ratios: StageRatios, plan_id: str
    ) -> ClockSchedule | None:
        """What a pipeline measured of itself in one iteration: per stage its computations' times over the profiled
        ones. Returns its schedule where that is not ``plan_id`` any more. Raises ValueError where ``ratios`` is not
        of the job's stages."""
        record = self._record(job)
        if len(ratios) != record.stages:
            raise ValueError(f"job {job} has {record.stages} stages, got {len(ratios)} ratios")
        known = record.slow_stages.get(pipeline, ())
        detector, news = self._detectors.get((job, pipeline), Detector()).observe(ratios, known)
        self._detectors[job, pipeline] = detector
        if news is not None:
            log.warning("job %s, %s: stages take %s times their profiled time", job, pipeline, news)
            self._keep(record.with_slow_stages(pipeline, news))
        schedule = await self.schedule(job, pipeline)
        return None if schedule.plan_id == plan_id else schedule

    async def frontier(self, job: str, samples: int = 40) -> JobFrontier:
        """The healthy pipeline's, and the straggler that is planned for now."""
        record = self._record(job)
        now = Circumstances(record.circumstances(OWN_PIPELINE, self._unix_s()).degree)
        frontier = await self._solver.answer(FrontierQuestion(job=record, now=now, samples=samples))
        assert isinstance(frontier, JobFrontier)
        return frontier

    async def jobs(self) -> tuple[str, ...]:
        return tuple(sorted(self._records))

    async def forget(self, job: str) -> None:
        """The job is no longer planned for. Forgetting twice is forgetting once."""
        self._records.pop(job, None)
        self._drop(job)
        self._file(job).unlink(missing_ok=True)

    async def _refine(self, record: JobRecord, now: Circumstances) -> None:
        """Have better plans prepared, and keep this one if it is one of them."""
        try:
            await self._solver.answer(PrepareQuestion(job=record, now=now))
            schedule = await self._solver.answer(ScheduleQuestion(job=record, now=now))
        except SolvingError as error:
            log.error("job %s is not prepared: %s", record.name, error)
            return
        assert isinstance(schedule, ClockSchedule)
        if self._is_current(record):
            self._offer(now, schedule)

    def _offer(self, now: Circumstances, schedule: ClockSchedule) -> None:
        """The cheaper plan stays."""
        kept = self._schedules.setdefault(schedule.job, {})
        known = kept.pop(now, schedule)
        kept[now] = min(known, schedule, key=lambda plan: plan.planned_energy_j)
        while len(kept) > MOST_SCHEDULES:
            del kept[next(iter(kept))]

    def _is_current(self, record: JobRecord) -> bool:
        """Whether the job has not been registered anew since; its stragglers may have changed."""
        known = self._records.get(record.name)
        return known is not None and known.is_same_job(record)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    def _drop(self, job: str) -> None:
        """All that was found out about a job since it was registered."""
        self._schedules.pop(job, None)
        self._detectors = {key: kept for key, kept in self._detectors.items() if key[0] != job}

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
