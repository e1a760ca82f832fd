"""What ranks tell each other and the planner: two ranks of one pipeline in one process, a store in memory."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import pytest
from gpud_process import eventually
from session_fakes import PROGRAM, SCHEDULE, profile_of_rank

from actors.training_messages import ClockSchedule, JobRegistration
from train_jobs import correspondence, lead
from train_jobs.board import Board
from train_jobs.correspondence import Correspondence, kind_ratios
from train_jobs.lead import JobShape
from train_jobs.meter import MeasuredStep

FULL_S = 2.0


class Memory:
    """A store of one process."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def check(self, keys: list[str]) -> bool:
        return all(key in self.kept for key in keys)

    def get(self, key: str) -> bytes:
        return self.kept[key]

    def set(self, key: str, value: Any) -> None:
        self.kept[key] = value


class Planner:
    """Answers at once; remembers what it was told."""

    def __init__(self) -> None:
        self.registered: list[JobRegistration] = []
        self.reports: list[tuple[Any, ...]] = []
        self.plan: ClockSchedule = SCHEDULE
        self.closed = False

    def call(self, method: str, *args: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        if method == "register":
            self.registered.append(args[0])
        if method == "report_iteration":
            self.reports.append(args)
            future.set_result(self.plan if self.plan.plan_id != args[3] else None)
        else:
            future.set_result(None if method == "register" else self.plan)
        return future

    def close(self) -> None:
        self.closed = True


@dataclass
class Job:
    planner: Planner
    ranks: list[Correspondence]
    iteration: int = 0

    def iterate(self, time_s: float, slower: float = 1.0) -> None:
        """Everybody ran one iteration; computations took ``slower`` times what was profiled."""
        self.iteration += 1
        for rank in self.ranks:
            steps = [MeasuredStep(step, 0, round(0.15 * slower * 1e9), 50.0 * slower, 1200, True) for step in PROGRAM]
            rank.hand_measured(self.iteration, steps, time_s)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setattr(correspondence, "LOOK_EVERY_S", 0.005)
    monkeypatch.setattr(correspondence, "AT_MOST_EVERY_S", 0.001)
    monkeypatch.setattr(correspondence, "PATIENCE_S", 0.3)
    planner, store = Planner(), Memory()
    ranks = [
        Correspondence(
            JobShape("llm", rank, ((0, 1),), 0.0), Board(store, "llm"), lambda: (planner.call, planner.close)
        )
        for rank in range(2)
    ]
    yield Job(planner, ranks)
    for rank in ranks:
        rank.close()
    assert planner.closed or not planner.registered


def handed(job: Job) -> None:
    for number, rank in enumerate(job.ranks):
        rank.hand_profile(profile_of_rank(number), 0.0, FULL_S)
    eventually(lambda: all(rank.offered.schedule is not None for rank in job.ranks))


def test_the_job_is_registered_from_all_ranks_and_all_get_its_schedule(job: Job) -> None:
    handed(job)
    (one,) = job.planner.registered
    assert one.order == (PROGRAM, PROGRAM)
    assert {key for key, _ in one.choices.items()} == {(s, n) for s in (0, 1) for n in ("forward", "backward")}
    assert [rank.offered.schedule for rank in job.ranks] == [SCHEDULE, SCHEDULE]


def test_a_rank_that_never_tells_its_profile_is_named_and_all_run_at_full_clock(job: Job) -> None:
    job.ranks[0].hand_profile(profile_of_rank(0), 0.0, FULL_S)
    eventually(lambda: job.ranks[0].problem)
    assert "rank 1 of 2 is missing" in str(job.ranks[0].problem)
    assert not job.planner.registered


def test_what_all_ranks_measured_is_reported_once_an_iteration(job: Job) -> None:
    handed(job)
    job.iterate(FULL_S, slower=1.3)
    eventually(lambda: job.planner.reports)
    (report,) = job.planner.reports
    assert report[1:3] == ("pipeline-0", pytest.approx((1.3, 1.3)))


def test_a_new_plan_comes_with_the_answer_to_a_report(job: Job) -> None:
    handed(job)
    job.planner.plan = replace(SCHEDULE, plan_id="b", deadline_s=2.4, degree=1.2)
    job.iterate(FULL_S)
    eventually(lambda: all(rank.offered.schedule and rank.offered.schedule.plan_id == "b" for rank in job.ranks))


def until(job: Job, claim: Callable[[], object], time_s: float, slower: float = 1.0) -> None:
    """Iterations of that kind until it is true."""

    def once_more() -> object:
        job.iterate(time_s, slower)
        return claim()

    eventually(once_more, 20)


def test_a_plan_that_slows_iterations_is_rolled_back_on_every_rank_until_there_is_another(job: Job) -> None:
    handed(job)
    until(job, lambda: all(rank.offered.schedule is None for rank in job.ranks), 1.02 * FULL_S)
    job.planner.plan = replace(SCHEDULE, plan_id="b", planned_energy_j=99.0)
    until(job, lambda: all(rank.offered.schedule == job.planner.plan for rank in job.ranks), FULL_S)


def test_a_plan_for_a_straggler_may_take_as_long_as_the_straggler(job: Job) -> None:
    job.planner.plan = replace(SCHEDULE, plan_id="s", deadline_s=2.5, degree=1.25)
    handed(job)
    until(job, lambda: len(job.planner.reports) > 12, 1.25 * FULL_S)
    assert all(rank.offered.schedule is not None for rank in job.ranks)


def test_a_profile_that_is_a_little_off_is_corrected_and_solved_anew(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lead, "REFINED_EVERY", 8)
    handed(job)
    until(job, lambda: len(job.planner.registered) == 2, FULL_S, slower=1.02)
    first, second = job.planner.registered
    for key, choices in first.choices.items():
        assert [c.time_s * 1.02 for c in choices] == pytest.approx([c.time_s for c in second.choices[key]])
    eventually(lambda: all(rank.offered.schedule is not None for rank in job.ranks))


def test_settling_and_unknown_clocks_say_nothing() -> None:
    reference = {"forward": profile_of_rank(0).choices["forward"]}
    forward, backward = PROGRAM[0], PROGRAM[2]
    steps = [
        MeasuredStep(forward, 0, 300_000_000, 50.0, 1200, False),
        MeasuredStep(forward, 0, 300_000_000, 50.0, 1215, True),
        MeasuredStep(backward, 0, 300_000_000, 50.0, 1200, True),
    ]
    assert kind_ratios(reference, steps) == {}
