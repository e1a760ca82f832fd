"""The planner of training jobs: a registered job becomes a frontier, and any straggler a look-up in it.

Every change is on disk as JSON before it is answered, so a planner that restarts knows its jobs and has their frontiers
traced again when asked. Solving happens elsewhere: calls go on meanwhile.

A job is kept for a day after it was last heard of, and at most so many are kept; its file's modification time says when
that was. A job that was dropped and still runs registers again when it is told that it is unknown.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path

from actors.solver_messages import FrontierQuestion, PrepareQuestion, ScheduleQuestion, Solver, SolvingError
from actors.training_messages import OWN_PIPELINE, ClockSchedule, JobFrontier, JobRegistration
from control_plane.training.job_record import JobRecord
from control_plane.training.job_spec import Circumstances, JobSpec, PipelineId, StageRatios
from control_plane.training.profile import profile_of
from control_plane.training.schedules import user_order
from control_plane.training.straggler import Detector
from control_plane.training.switch_rules import SwitchRules

log = logging.getLogger(__name__)

MOST_SCHEDULES = 32
"""Kept per job; a straggler's degree may be any number."""
JOB_KEPT_S = 24 * 3600.0
"""After its last report; a report still shows a job's frontier the next morning."""
MOST_JOBS = 64
"""A record is up to some megabytes; beyond this the job that was longest not heard of goes first."""
HEARD_EVERY_S = 600.0
"""How exactly a job's file says when it was last heard of."""
MOST_SAMPLES = 1000


class UnknownJobError(ValueError):
    """No job of this name is registered."""


class PerseusPlanner:
    """Many jobs; ``folder`` holds one file per job, ``unix_s`` is the clock that announced stragglers start by."""

    def __init__(self, folder: Path, solver: Solver, unix_s: Callable[[], float]) -> None:
        self._folder, self._solver, self._unix_s = folder, solver, unix_s
        folder.mkdir(parents=True, exist_ok=True)
        self._records = _read_records(folder)
        self._heard_unix_s = {name: min(self._file(name).stat().st_mtime, unix_s()) for name in self._records}
        self._schedules: dict[str, dict[Circumstances, ClockSchedule]] = {}
        self._detectors: dict[tuple[str, PipelineId], Detector] = {}
        self._working: set[asyncio.Task[None]] = set()

    async def register(self, registration: JobRegistration) -> None:
        """Registering again replaces the job and forgets its stragglers. Raises ValueError where profile and
        schedule do not fit each other or a measured time or power cannot be; a job of this name then stays as it is.
        The frontier is traced in the background."""
        schedule = user_order(registration.order, registration.schedule)
        spec = JobSpec(
            profile_of(registration.choices),
            schedule,
            registration.blocking_power_w,
            switch=SwitchRules(registration.switch_time_s),
        )
        record = JobRecord.of(registration.job, spec, registration.policy)
        self._drop(record.name)
        self._keep(record)
        await self._drop_old_jobs()
        self._start(self._refine(record, Circumstances()))

    async def schedule(self, job: str, pipeline: PipelineId = OWN_PIPELINE) -> ClockSchedule:
        """Clocks for every rank under what is known of the job's stragglers; waits for the first solution."""
        record = self._record(job)
        self._hear(job)
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
        self,
        job: str,
        pipeline: PipelineId,
        degree: float,
        start_unix_s: float = 0.0,
        lasts_s: float | None = None,
    ) -> ClockSchedule:
        """One of the job's data-parallel pipelines takes ``degree`` times the healthy iteration time from a moment on
        (1: it has recovered), for so long where ``lasts_s`` says. Returns the schedule that holds now."""
        end_unix_s = None if lasts_s is None else max(start_unix_s, self._unix_s()) + lasts_s
        self._keep(self._record(job).with_straggler(pipeline, degree, start_unix_s, end_unix_s))
        return await self.schedule(job)

    async def report_iteration(
        self, job: str, pipeline: PipelineId, ratios: StageRatios, plan_id: str
    ) -> ClockSchedule | None:
        """What a pipeline measured of itself in one iteration: per stage its computations' times over the profiled
        ones. Returns its schedule where that is not ``plan_id`` any more. Raises ValueError where ``ratios`` is not
        of the job's stages, or holds what cannot be measured."""
        record = self._record(job)
        record.check_ratios(ratios)
        known = record.slow_stages.get(pipeline, ())
        detector, news = self._detectors.get((job, pipeline), Detector()).observe(ratios, known)
        self._detectors[job, pipeline] = detector
        if news is not None:
            growing = f"; stages {detector.drifting} go on becoming slower" if detector.drifting else ""
            log.warning("job %s, %s: stages take %s times their profiled time%s", job, pipeline, news, growing)
            self._keep(record.with_slow_stages(pipeline, news))
        schedule = await self.schedule(job, pipeline)
        return None if schedule.plan_id == plan_id else schedule

    async def frontier(self, job: str, samples: int = 40) -> JobFrontier:
        """The healthy pipeline's, and the straggler that is planned for now. Raises ValueError where ``samples`` is not
        from 2 to MOST_SAMPLES."""
        if not 2 <= samples <= MOST_SAMPLES:
            raise ValueError(f"job {job}: samples must be from 2 to {MOST_SAMPLES}, got {samples}")
        record = self._record(job)
        now = Circumstances(record.circumstances(OWN_PIPELINE, self._unix_s()).degree)
        frontier = await self._solver.answer(FrontierQuestion(job=record, now=now, samples=samples))
        assert isinstance(frontier, JobFrontier)
        return frontier

    async def jobs(self) -> tuple[str, ...]:
        return tuple(sorted(self._records))

    async def forget(self, job: str) -> None:
        """The job is no longer planned for. Forgetting twice is forgetting once."""
        if self._records.pop(job, None) is not None:
            self._heard_unix_s.pop(job, None)
            self._drop(job)
            self._file(job).unlink(missing_ok=True)

    async def _drop_old_jobs(self) -> None:
        now_s = self._unix_s()
        by_age = sorted(self._records, key=lambda name: self._heard_unix_s[name], reverse=True)
        for place, name in enumerate(by_age):
            if place >= MOST_JOBS or now_s - self._heard_unix_s[name] > JOB_KEPT_S:
                log.info("job %s was last heard of %.0f s ago and is dropped", name, now_s - self._heard_unix_s[name])
                await self.forget(name)

    def _hear(self, job: str) -> None:
        """The job is still there."""
        now_s = self._unix_s()
        if abs(now_s - self._heard_unix_s[job]) >= HEARD_EVERY_S:
            self._heard_unix_s[job] = now_s
            os.utime(self._file(job), (now_s, now_s))

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
        now_s = self._unix_s()
        os.utime(draft, (now_s, now_s))
        draft.replace(self._file(record.name))
        self._records[record.name], self._heard_unix_s[record.name] = record, now_s

    def _file(self, job: str) -> Path:
        return self._folder / f"{job}.json"


def _read_records(folder: Path) -> dict[str, JobRecord]:
    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = JobRecord.model_validate_json(path.read_text())
        except (ValueError, OSError) as error:
            log.error("%s is no job and is left aside: %s", path, error)
            continue
        if path.name != f"{record.name}.json":
            log.error("%s holds job %s, whose file has another name, and is left aside", path, record.name)
            continue
        records[record.name] = record
    return records
