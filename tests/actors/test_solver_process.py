"""The solver in a process of its own: it is killed, its starter is killed, it is left alone."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from tests_support import ROOT, pipeline_choices

from actors.perseus_planner import PerseusPlanner
from actors.solver_messages import PrepareQuestion, SolvingError
from actors.solver_process import MOST_ATTEMPTS, SolverProcess
from actors.training_messages import JobFrontier, JobRegistration
from control_plane.training.job_record import JobRecord
from control_plane.training.job_spec import Circumstances, JobSpec, PipelineId
from control_plane.training.profile import profile_of
from control_plane.training.schedules import one_f_one_b

P1 = PipelineId("p1")
SMALL = JobRegistration("small", pipeline_choices(2), one_f_one_b(2, 6).order, 130.0)
HUGE = JobRegistration("huge", pipeline_choices(32), one_f_one_b(32, 256).order, 130.0)
BIG = JobRegistration("big", pipeline_choices(16), one_f_one_b(16, 128).order, 130.0)


def scenario(folder: Path, play: Callable[[PerseusPlanner, SolverProcess], Awaitable[None]], **how: float) -> None:
    async def whole() -> None:
        solver = SolverProcess(**how)  # type: ignore[arg-type]
        try:
            await play(PerseusPlanner(folder, solver, time.time), solver)
        finally:
            await solver.close()

    asyncio.run(whole())


def gone(pid: int, patience_s: float = 20.0) -> bool:
    """Whether the process ends by then."""
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_other_jobs_are_answered_while_a_big_one_is_solved_and_prepared(tmp_path: Path) -> None:
    async def play(planner: PerseusPlanner, solver: SolverProcess) -> None:
        assert solver.pid is None
        await planner.register(SMALL)
        await planner.schedule("small")
        await planner.register(HUGE)
        solving = asyncio.create_task(planner.schedule("huge"))
        await asyncio.sleep(0)
        degrees = (1.05, 1.1, 1.15, 1.2)
        answers = [await planner.report_straggler("small", P1, degree) for degree in degrees]
        assert [answer.degree for answer in answers] == list(degrees)
        assert await planner.jobs() == ("huge", "small")
        assert not solving.done()
        prepared = JobRecord.of("huge", JobSpec(profile_of(HUGE.choices), one_f_one_b(32, 256), 130.0))
        preparing = asyncio.create_task(solver.answer(PrepareQuestion(job=prepared, now=Circumstances())))
        assert (await solving).planned_time_s <= (await solving).all_max_time_s
        assert (await planner.report_straggler("small", P1, 1.3)).degree == 1.3
        await planner.register(JobRegistration("late", pipeline_choices(3), one_f_one_b(3, 9).order, 130.0))
        assert (await planner.schedule("late")).job == "late"
        assert not preparing.done()
        preparing.cancel()

    scenario(tmp_path, play)


def test_a_killed_solver_is_replaced_and_the_job_still_solved(tmp_path: Path) -> None:
    async def play(planner: PerseusPlanner, solver: SolverProcess) -> None:
        await planner.register(BIG)
        solving = asyncio.create_task(planner.schedule("big"))
        while solver.pid is None:
            await asyncio.sleep(0.01)
        first = solver.pid
        await asyncio.sleep(0.2)
        os.kill(first, signal.SIGKILL)
        assert (await solving).job == "big"
        assert solver.pid not in (None, first)
        assert gone(first)

    scenario(tmp_path, play)


def test_a_solver_that_keeps_dying_is_an_error_on_the_job(tmp_path: Path) -> None:
    async def whole() -> None:
        solver = SolverProcess((sys.executable, "-c", "raise SystemExit(7)"))
        planner = PerseusPlanner(tmp_path, solver, time.time)
        await planner.register(SMALL)
        with pytest.raises(SolvingError, match=f"job small: the solver died {MOST_ATTEMPTS} times over it, code 7"):
            await planner.schedule("small")
        assert await planner.jobs() == ("small",)
        await solver.close()

    asyncio.run(whole())


def test_a_job_that_cannot_be_solved_is_told_and_does_not_end_the_solver(tmp_path: Path) -> None:
    async def play(planner: PerseusPlanner, solver: SolverProcess) -> None:
        only_forward = {key: choices for key, choices in SMALL.choices.items() if key[1] == "forward"}
        await planner.register(JobRegistration("lame", only_forward, one_f_one_b(2, 6).order, 130.0))
        with pytest.raises(SolvingError, match=r"job lame: ValueError: .*has no 'backward'"):
            await planner.schedule("lame")
        first = solver.pid
        await planner.register(SMALL)
        assert isinstance(await planner.frontier("small", 3), JobFrontier)
        assert solver.pid == first

    scenario(tmp_path, play)


def test_an_idle_solver_ends_and_the_next_question_starts_another(tmp_path: Path) -> None:
    async def play(planner: PerseusPlanner, solver: SolverProcess) -> None:
        await planner.register(SMALL)
        slow = await planner.report_straggler("small", P1, 1.2)
        first = solver.pid
        assert first is not None
        while solver.pid is not None:
            await asyncio.sleep(0.05)
        assert await asyncio.to_thread(gone, first)
        assert (await planner.schedule("small")).deadline_s == slow.deadline_s
        assert solver.pid is None, "what was answered once needs no solver"
        assert (await planner.report_straggler("small", P1, 1.25)).degree == 1.25
        assert solver.pid not in (None, first)

    scenario(tmp_path, play, idle_s=0.3)


STARTER = """
import asyncio, sys
from actors.solver_messages import PrepareQuestion
from actors.solver_process import SolverProcess
from control_plane.training.job_record import JobRecord
from control_plane.training.job_spec import Circumstances
async def main():
    solver = SolverProcess()
    asked = PrepareQuestion(job=JobRecord.model_validate_json(sys.stdin.read()), now=Circumstances())
    answer = asyncio.create_task(solver.answer(asked))
    while solver.pid is None:
        await asyncio.sleep(0.01)
    print(solver.pid, flush=True)
    await answer
asyncio.run(main())
"""


def test_no_solver_outlives_a_planner_that_is_killed_while_it_solves() -> None:
    big = JobRecord.of("big", JobSpec(profile_of(BIG.choices), one_f_one_b(16, 128), 130.0))
    command = [sys.executable, "-c", STARTER]
    starter = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert starter.stdin is not None
    assert starter.stdout is not None
    with starter, starter.stdin, starter.stdout:
        starter.stdin.write(big.model_dump_json())
        starter.stdin.close()
        solver = int(starter.stdout.readline())
        deadline_s = time.monotonic() + 60
        while psutil.Process(solver).num_threads() < 4 and time.monotonic() < deadline_s:
            time.sleep(0.05)  # until it prepares
        starter.kill()
        assert gone(solver)


def test_neither_ray_nor_torch_is_in_the_solver_and_no_solver_in_the_planner() -> None:
    for module, absent in (("actors.frontier_solver", {"ray", "torch"}), ("actors.planner_actor", {"numba", "numpy"})):
        code = f"import sys, {module}; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert absent.isdisjoint(loaded.stdout.split()), module


GARBLER = """
import json, os, socket, sys
link = socket.socket(fileno=0)
def exactly(count):
    got = b""
    while len(got) < count:
        got += link.recv(count - len(got)) or sys.exit(0)
    return got
def tell(body):
    link.sendall(len(body).to_bytes(4, "big") + body)
os.write(os.open(sys.argv[1], os.O_CREAT | os.O_APPEND | os.O_WRONLY), b"started ")
while True:
    asked = json.loads(exactly(int.from_bytes(exactly(4), "big")))
    kind, number = asked["question"]["kind"], asked["number"]
    if asked["question"]["job"]["name"] == "bad":
        tell(sys.argv[2].replace("NUMBER", str(number)).encode())
    elif kind == "prepare":
        tell(json.dumps({"number": number}).encode())
"""


@pytest.mark.parametrize(
    ("garbage", "told"),
    [
        ('{"number": NUMBER, "schedule": {"job": null}}', "job bad: the solver's answer cannot be read"),
        ("nonsense", "job bad: the solver died 3 times over it"),
    ],
)
def test_an_answer_that_cannot_be_read_fails_its_question_and_no_other(tmp_path: Path, garbage: str, told: str) -> None:
    def asked(name: str) -> PrepareQuestion:
        job = JobRecord.of(name, JobSpec(profile_of(SMALL.choices), one_f_one_b(2, 6), 130.0))
        return PrepareQuestion(job=job, now=Circumstances())

    async def whole() -> None:
        starts = tmp_path / "starts"
        solver = SolverProcess((sys.executable, "-c", GARBLER, str(starts), garbage))
        with pytest.raises(SolvingError, match=told):
            await asyncio.wait_for(solver.answer(asked("bad")), 20)
        assert await asyncio.wait_for(solver.answer(asked("good")), 20) is None
        assert starts.read_text().split() == ["started"] * (2 if "NUMBER" in garbage else 4)
        await solver.close()

    asyncio.run(whole())


def test_a_solver_that_cannot_be_started_is_an_error_on_the_job() -> None:
    async def whole() -> None:
        job = JobRecord.of("small", JobSpec(profile_of(SMALL.choices), one_f_one_b(2, 6), 130.0))
        solver = SolverProcess(("/nowhere/solver",))
        with pytest.raises(SolvingError, match=r"job small: no solver can be started: .*/nowhere/solver"):
            await solver.answer(PrepareQuestion(job=job, now=Circumstances()))

    asyncio.run(whole())
