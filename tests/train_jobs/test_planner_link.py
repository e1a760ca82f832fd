"""A job's line to the planner: what it says, what it takes back, and that the training step never waits."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from session_fakes import SCHEDULE, profile_of_rank

from actors.peers import PeerAwayError
from actors.perseus_planner import UnknownJobError
from control_plane.training.job_spec import PipelineId
from train_jobs import planner_link
from train_jobs.order import SessionError
from train_jobs.planner_link import PlannerLink, better_of
from train_jobs.session import registration_of

REGISTRATION = registration_of("llm", 2, [profile_of_rank(0), profile_of_rank(1)])
WAIT_S = 5.0


def plan(degree: float, plan_id: str = "a", **figures: float) -> Any:
    return replace(SCHEDULE, degree=degree, plan_id=plan_id, deadline_s=2.0 * degree, **figures)


class Planner:
    """Knows jobs as the real one does; what it is told is remembered, and the test may break or hold it."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.known = False
        self.broken: Exception | None = None
        self.offer: Any = None
        self.held: list[tuple[Future[Any], Callable[[], Any]]] | None = None

    def call(self, method: str, *args: Any) -> "Future[Any]":
        if self.broken is not None:
            raise self.broken
        future: Future[Any] = Future()
        self.told.append((method, *args))
        if self.held is not None:
            self.held.append((future, lambda: self._answer(method, args)))
        else:
            self._settle(future, lambda: self._answer(method, args))
        return future

    def let_go(self) -> None:
        held, self.held = self.held or [], None
        for future, answer in held:
            self._settle(future, answer)

    def methods(self) -> list[str]:
        return [method for method, *_ in self.told]

    def _answer(self, method: str, args: tuple[Any, ...]) -> Any:
        if method == "register":
            self.known = True
            return None
        if not self.known:
            raise UnknownJobError("no job 'llm' is registered; known: none")
        if method == "report_straggler":
            return plan(args[2])
        if method == "schedule":
            return self.offer or plan(1.0)
        if 0.0 in args[2]:
            raise ValueError("measured over profiled time must be above 0")
        return self.offer

    @staticmethod
    def _settle(future: "Future[Any]", answer: Callable[[], Any]) -> None:
        try:
            future.set_result(answer())
        except (ValueError, RuntimeError) as error:
            future.set_exception(error)


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Planner:
    monkeypatch.setattr(planner_link, "FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(planner_link, "LAST_RETRY_S", 0.02)
    return Planner()


@pytest.fixture
def link(planner: Planner) -> Iterator[PlannerLink]:
    one = PlannerLink(REGISTRATION, planner.call)
    yield one
    one.close()


def eventually(claim: Callable[[], Any]) -> Any:
    deadline_s = time.monotonic() + WAIT_S
    while not (found := claim()):
        assert time.monotonic() < deadline_s, "never came true"
        time.sleep(0.005)
    return found


def test_a_job_is_registered_and_gets_its_schedule(planner: Planner, link: PlannerLink) -> None:
    assert link.schedule_for(1.0, WAIT_S) == plan(1.0)
    assert planner.told[0] == ("register", REGISTRATION)
    assert planner.methods() == ["register", "report_straggler"]


def test_a_job_that_the_planner_knows_is_not_registered_again(planner: Planner) -> None:
    planner.known = True
    one = PlannerLink(REGISTRATION, planner.call, known=True)
    assert one.schedule_for(1.2, WAIT_S) == plan(1.2)
    assert "register" not in planner.methods()
    one.close()


def test_no_call_waits_for_a_planner_that_does_not_answer(planner: Planner, link: PlannerLink) -> None:
    running = link.schedule_for(1.0, WAIT_S)
    planner.held = []
    began_s = time.monotonic()
    for number in range(200):
        assert link.schedule_for(1.2 if number % 2 else 1.1) == running
        link.report((1.0, 1.0 + number / 1000))
    assert time.monotonic() - began_s < 0.5
    link.close()
    assert time.monotonic() - began_s < 0.5


def test_a_straggler_is_told_and_its_schedule_taken_and_the_healthy_one_is_back_at_once(
    planner: Planner, link: PlannerLink
) -> None:
    healthy = link.schedule_for(1.0, WAIT_S)
    assert link.schedule_for(1.2, WAIT_S) == plan(1.2)
    planner.held = []
    assert link.schedule_for(1.0) == healthy, "given before: no need to wait"
    planner.let_go()


def test_a_report_that_changes_the_plan_brings_the_new_one(planner: Planner, link: PlannerLink) -> None:
    link.schedule_for(1.0, WAIT_S)
    planner.offer = plan(1.0, "slow", stage_ratios=(1.0, 1.3))
    link.report((1.0, 1.3))
    assert link.schedule_for(1.0, WAIT_S).plan_id == "slow"  # type: ignore[union-attr]
    assert planner.told[-1] == ("report_iteration", "llm", "pipeline-0", (1.0, 1.3), "a")


def test_of_several_reports_left_meanwhile_only_the_newest_is_said(planner: Planner, link: PlannerLink) -> None:
    link.schedule_for(1.0, WAIT_S)
    planner.held = []
    link.report((1.0, 1.0))
    eventually(lambda: planner.held)
    for number in range(10):
        link.report((1.0, 2.0 + number))
    planner.let_go()
    link.schedule_for(1.0, WAIT_S)
    said = [word for word in planner.told if word[0] == "report_iteration"]
    assert [ratios for _, _, _, ratios, _ in said] == [(1.0, 1.0), (1.0, 11.0)]


def test_a_newer_straggler_is_told_though_the_last_answer_has_not_come(planner: Planner, link: PlannerLink) -> None:
    link.schedule_for(1.0, WAIT_S)
    planner.held = []
    link.schedule_for(1.2)
    eventually(lambda: planner.told[-1][-1] == 1.2)
    link.schedule_for(1.4)
    eventually(lambda: planner.told[-1][-1] == 1.4)
    planner.let_go()
    assert link.schedule_for(1.4, WAIT_S) == plan(1.4)


@pytest.mark.parametrize("error", [PeerAwayError("none runs"), RuntimeError("?"), OSError(5, "x")])
def test_a_planner_that_was_away_is_told_later_and_training_has_what_it_had(
    planner: Planner, link: PlannerLink, error: Exception
) -> None:
    healthy = link.schedule_for(1.0, WAIT_S)
    planner.broken = error
    began_s = time.monotonic()
    assert link.schedule_for(1.2, WAIT_S) == healthy
    assert time.monotonic() - began_s < 1.0, "nobody waits for a planner that is away"
    planner.broken = None
    assert eventually(lambda: (s := link.schedule_for(1.2)) is not None and s.degree == 1.2)


def test_a_planner_that_has_forgotten_the_job_is_given_it_again(planner: Planner, link: PlannerLink) -> None:
    link.schedule_for(1.0, WAIT_S)
    planner.known = False
    link.report((1.0, 1.0))
    link.schedule_for(1.0, WAIT_S)
    assert planner.methods()[2:] == ["report_iteration", "register", "report_straggler", "report_iteration"]


def test_a_report_that_is_refused_is_dropped_and_the_job_not_registered_again(
    planner: Planner, link: PlannerLink
) -> None:
    link.schedule_for(1.0, WAIT_S)
    link.report((1.0, 0.0))
    link.schedule_for(1.0, WAIT_S)
    assert planner.methods() == ["register", "report_straggler", "report_iteration"]


def test_a_report_that_may_have_been_heard_is_not_said_twice(planner: Planner, link: PlannerLink) -> None:
    """Two in a row confirm a slow stage."""
    link.schedule_for(1.0, WAIT_S)
    planner.held = []
    link.report((1.0, 1.3))
    eventually(lambda: planner.held)
    planner.held[0][0].set_exception(RuntimeError("the planner died over it"))
    planner.held = None
    eventually(lambda: not link._talking and link._report is None)
    assert planner.methods().count("report_iteration") == 1


def test_a_registration_that_is_refused_is_an_error_of_the_loop(planner: Planner) -> None:
    planner.broken = ValueError("stage 0 forward: time_s must be finite")
    one = PlannerLink(REGISTRATION, planner.call)
    with pytest.raises(SessionError, match="the planner refuses job llm: stage 0 forward: time_s must be finite"):
        one.schedule_for(1.0, WAIT_S)
    one.close()


def test_what_was_given_is_bounded(planner: Planner, link: PlannerLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_link, "MOST_GIVEN", 3)
    for number in range(10):
        link.schedule_for(1.0 + number / 10, WAIT_S)
    assert len(link._given) == 3


def test_a_closed_link_ends_its_thread(planner: Planner) -> None:
    planner.held = []
    one = PlannerLink(REGISTRATION, planner.call)
    eventually(lambda: planner.held)
    one.close()
    eventually(lambda: one._thread not in threading.enumerate())


def test_the_link_of_another_pipeline_asks_and_reports_for_itself_and_announces_nothing(planner: Planner) -> None:
    one = PlannerLink(REGISTRATION, planner.call, pipeline=PipelineId("pipeline-1"))
    assert one.schedule_for(1.0, WAIT_S) is None, "whoever leads has not registered the job yet"
    planner.known = True
    assert eventually(lambda: one.schedule_for(1.0, WAIT_S)) == plan(1.0)
    planner.offer = plan(1.2, "others")
    one.report((1.0, 1.0))
    assert one.ask_again(WAIT_S) == plan(1.2, "others")
    assert set(planner.methods()) == {"schedule", "report_iteration"}
    assert {word[2] for word in planner.told} == {"pipeline-1"}
    one.close()


RUNNING = SCHEDULE


def test_a_dearer_plan_for_the_same_is_not_taken_and_a_cheaper_one_is() -> None:
    dearer, cheaper = replace(RUNNING, planned_energy_j=101.0), replace(RUNNING, planned_energy_j=99.5)
    assert better_of(RUNNING, dearer) is RUNNING
    assert better_of(RUNNING, cheaper) is cheaper


def test_a_plan_for_something_else_is_taken_whatever_it_costs() -> None:
    slow = replace(RUNNING, planned_energy_j=150.0, stage_ratios=(1.0, 1.2))
    later = replace(RUNNING, planned_energy_j=150.0, deadline_s=2.4)
    assert better_of(RUNNING, slow) is slow
    assert better_of(RUNNING, later) is later
    assert better_of(slow, RUNNING) is RUNNING


def test_without_an_offer_the_job_goes_on_and_without_a_plan_it_takes_any() -> None:
    assert better_of(RUNNING, None) is RUNNING
    assert better_of(None, RUNNING) is RUNNING
    assert better_of(None, None) is None
