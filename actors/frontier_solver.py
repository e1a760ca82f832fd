"""Traces frontiers in a process of its own (solver_main), so that the planner answers meanwhile.

Frontiers, libraries and look-ups have a thread each: the kernels hold no GIL, so that a look-up waits for none of them.
"""

import asyncio
import hashlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, assert_never

from actors.solver_messages import (
    Answer,
    Answered,
    Asked,
    FrontierQuestion,
    PrepareQuestion,
    Question,
    ScheduleQuestion,
    SolvingError,
    UnreadableMessageError,
    receive,
    send,
)
from actors.training_messages import ClockSchedule, FrontierSample, JobFrontier
from control_plane.baselines.training import baseline
from control_plane.training.job_record import PERSEUS, JobRecord
from control_plane.training.job_spec import Circumstances, StageRatios
from control_plane.training.planner import SolvedJob, all_max, meeting, solve

log = logging.getLogger(__name__)

LONG_WORK_NICE = 10
"""Serving on the same node goes first."""
MOST_KEPT = 8
"""Solved jobs in memory, tens of megabytes each at 4,000 computations; one that was dropped is solved again."""

Result = TypeVar("Result")


class FrontierSolver:
    """Answers from the frontiers it keeps, tracing those it lacks."""

    def __init__(self) -> None:
        self._look_up = ThreadPoolExecutor(1, "look-up")
        self._trace = ThreadPoolExecutor(1, "trace", initializer=_give_way)
        self._prepare = ThreadPoolExecutor(1, "prepare", initializer=_give_way)
        self._kept: dict[tuple[str, StageRatios], asyncio.Future[SolvedJob]] = {}
        self._preparing: dict[tuple[str, StageRatios], asyncio.Future[SolvedJob]] = {}

    async def answer(self, question: Question) -> Answer:
        """Raises SolvingError where the job cannot be solved."""
        job, now = question.job, question.now
        try:
            solved = await self._solved(job, now.own)
            match question:
                case ScheduleQuestion():
                    return await _on(self._look_up, lambda: _clock_schedule(job, solved, now))
                case FrontierQuestion():
                    samples = question.samples
                    return await _on(self._prepare, lambda: _job_frontier(job, solved, now, samples))
                case PrepareQuestion():
                    ours = job.policy == PERSEUS and solved.library is None
                    if ours and not await _on(self._look_up, lambda: _is_good(job, solved, now)):
                        await self._prepared(job, now.own, solved)
                    return None
                case _:
                    assert_never(question)
        except (ValueError, ArithmeticError, LookupError, TypeError) as error:
            raise SolvingError(f"job {job.name}: {type(error).__name__}: {error}") from error

    async def _solved(self, job: JobRecord, slowed: StageRatios) -> SolvedJob:
        solving = self._kept.get((_digest(job), slowed))
        if solving is None or (solving.done() and solving.exception() is not None):
            solving = _on(self._trace, lambda: solve(job.spec().slowed(slowed)))
        self._keep(job, slowed, solving)
        return await asyncio.shield(solving)

    async def _prepared(self, job: JobRecord, slowed: StageRatios, solved: SolvedJob) -> None:
        key = (_digest(job), slowed)
        preparing = self._preparing.get(key)
        if preparing is None:
            preparing = self._preparing[key] = _on(self._prepare, solved.prepared)
            preparing.add_done_callback(lambda _: self._preparing.pop(key))
        await asyncio.shield(preparing)
        self._keep(job, slowed, preparing)

    def _keep(self, job: JobRecord, slowed: StageRatios, solving: "asyncio.Future[SolvedJob]") -> None:
        key = (_digest(job), slowed)
        self._kept.pop(key, None)
        self._kept[key] = solving
        while len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]


def _digest(job: JobRecord) -> str:
    """The same for the same job, whatever it is called and whoever lags in it."""
    job_alone = job.model_dump_json(exclude={"name", "stragglers", "slow_stages"})
    return hashlib.sha256(job_alone.encode()).hexdigest()


def _on(pool: ThreadPoolExecutor, work: Callable[[], Result]) -> "asyncio.Future[Result]":
    return asyncio.get_running_loop().run_in_executor(pool, work)


def _give_way() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LONG_WORK_NICE)


def _is_good(job: JobRecord, solved: SolvedJob, now: Circumstances) -> bool:
    """Whether the plan that is to be had at once needs no library."""
    return solved.within(meeting(job.spec(), solved, now).deadline_s).is_near_bound


def _clock_schedule(job: JobRecord, solved: SolvedJob, now: Circumstances) -> ClockSchedule:
    highest = all_max(solved.dag)
    if job.policy == PERSEUS:
        deadline_s, degree = meeting(job.spec(), solved, now)
        plan = solved.within(deadline_s)
    else:
        degree, plan = 1.0, solved.by(baseline(job.policy).choices(solved.dag, highest.time_s))
    return ClockSchedule(
        job=job.name,
        plan_id=hashlib.sha256(repr((plan.deadline_s, plan.ranks)).encode()).hexdigest()[:16],
        degree=degree,
        deadline_s=plan.deadline_s,
        planned_time_s=plan.finish_time_s,
        planned_energy_j=plan.energy_j,
        lower_bound_j=plan.lower_bound_j,
        regime=plan.regime.value,
        ranks=plan.ranks,
        t_min_s=solved.frontier.t_min_s,
        t_star_s=solved.frontier.t_star_s,
        all_max_time_s=highest.time_s,
        all_max_energy_j=highest.energy_j,
        blocking_power_w=highest.blocking_power_w,
        stage_ratios=now.own,
    )


def _job_frontier(job: JobRecord, solved: SolvedJob, now: Circumstances, samples: int) -> JobFrontier:
    frontier, schedule = solved.frontier, solved.spec.schedule
    span_s = max(0.0, frontier.t_star_s - solved.shortest_s)
    taken = []
    for number in range(samples):
        plan = solved.within(solved.shortest_s + span_s * number / max(1, samples - 1), refine=False)
        taken.append(FrontierSample(plan.deadline_s, plan.energy_j, plan.lower_bound_j))
    highest = all_max(solved.dag)
    return JobFrontier(
        job=job.name,
        stages=schedule.stages,
        microbatches=schedule.microbatches,
        t_min_s=frontier.t_min_s,
        t_star_s=frontier.t_star_s,
        all_max_time_s=highest.time_s,
        all_max_energy_j=highest.energy_j,
        breakpoints=frontier.breakpoints,
        degree=now.degree,
        samples=tuple(taken),
    )


async def _answered(solver: FrontierSolver, asked: Asked) -> Answered:
    try:
        answer = await solver.answer(asked.question)
    except SolvingError as error:
        log.exception("question %d has no answer", asked.number)
        return Answered(number=asked.number, error=str(error))
    match answer:
        case ClockSchedule():
            return Answered(number=asked.number, schedule=answer)
        case JobFrontier():
            return Answered(number=asked.number, frontier=answer)
        case None:
            return Answered(number=asked.number)
        case _:
            assert_never(answer)


async def serve(link: socket.socket) -> None:
    """Answer what is asked until the other side closes: whoever started this process has ended then, however. An error
    that no answer tells ends the process; the other side asks another."""
    reader, writer = await asyncio.open_connection(sock=link)
    solver = FrontierSolver()
    answering: set[asyncio.Task[None]] = set()

    async def reply(asked: Asked) -> None:
        await send(writer, await _answered(solver, asked))

    def answered(task: asyncio.Task[None]) -> None:
        answering.discard(task)
        if (error := task.exception()) is not None:
            log.critical("the solver ends", exc_info=error)
            os._exit(1)

    try:
        while (asked := await receive(reader, Asked)) is not None:
            task = asyncio.get_running_loop().create_task(reply(asked))
            answering.add(task)
            task.add_done_callback(answered)
    except UnreadableMessageError as error:
        log.critical("the solver ends, a question cannot be read: %s", error)
        os._exit(1)
    os._exit(0)  # Threads may be deep in a solver: nobody waits for them any more.
