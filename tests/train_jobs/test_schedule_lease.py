"""A lease against an agent that answers, refuses, fails or hangs, in milliseconds."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from train_jobs.schedule_lease import LeaseRefusedError, ScheduleLease

TTL_S = 0.3


class Agent:
    """Answers what the test says."""

    def __init__(self) -> None:
        self.answer: Callable[[], bool] = lambda: True
        self.asked = 0

    def renew(self, timeout_s: float) -> bool:
        self.asked += 1
        assert timeout_s <= TTL_S / 3
        return self.answer()


def fails(error: Exception) -> Callable[[], bool]:
    def answer() -> bool:
        raise error

    return answer


def eventually(claim: Callable[[], bool], patience_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + patience_s
    while not claim():
        assert time.monotonic() < deadline_s, "never came true"
        time.sleep(0.005)


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
def lease(agent: Agent) -> Iterator[ScheduleLease]:
    held = ScheduleLease(agent.renew, TTL_S)
    yield held
    held.end()


def test_a_lease_is_renewed_for_as_long_as_it_is_held(agent: Agent, lease: ScheduleLease) -> None:
    eventually(lambda: agent.asked >= 5)
    assert lease.may_lower()


@pytest.mark.parametrize("error", [ValueError("no actor"), RuntimeError("no Ray"), TypeError("?"), OSError(5, "x")])
def test_whatever_a_renewal_raises_the_next_one_is_tried(agent: Agent, lease: ScheduleLease, error: Exception) -> None:
    agent.answer = fails(error)
    eventually(lambda: not lease.may_lower())
    agent.answer = lambda: True
    eventually(lease.may_lower)


def test_a_lease_that_cannot_be_renewed_is_told_within_its_time(agent: Agent, lease: ScheduleLease) -> None:
    told = threading.Event()
    lease.when_lost(told.set)
    eventually(lambda: agent.asked >= 2)
    agent.answer = fails(RuntimeError("the agent is away"))
    renewed_s = time.monotonic()
    assert told.wait(5)
    assert time.monotonic() - renewed_s <= TTL_S + 0.1
    assert not lease.may_lower()


def test_a_lease_that_is_lost_twice_is_told_twice_and_a_failing_reset_ends_nothing(
    agent: Agent, lease: ScheduleLease
) -> None:
    times: list[float] = []

    def act() -> None:
        times.append(time.monotonic())
        raise RuntimeError("the GPU does not answer")

    lease.when_lost(act)
    for round_ in (1, 2):
        agent.answer = fails(RuntimeError("away"))
        eventually(lambda: len(times) == round_)  # noqa: B023
        agent.answer = lambda: True
        eventually(lease.may_lower)
        seen = agent.asked
        eventually(lambda: agent.asked > seen + 1)  # noqa: B023


@pytest.mark.parametrize("answer", [fails(LeaseRefusedError("leased to other")), lambda: False])
def test_a_refusal_ends_it_at_once(agent: Agent, answer: Callable[[], bool]) -> None:
    held = ScheduleLease(agent.renew, TTL_S)
    told = threading.Event()
    held.when_lost(told.set)
    agent.answer = answer
    asked = agent.asked
    eventually(lambda: agent.asked > asked)
    assert told.wait(TTL_S / 3)
    assert not held.may_lower()
    held.end()


def test_a_gpu_that_is_anothers_is_told_at_the_start(agent: Agent) -> None:
    agent.answer = fails(LeaseRefusedError("leased to training:other"))
    with pytest.raises(LeaseRefusedError, match="training:other"):
        ScheduleLease(agent.renew, TTL_S)


def test_where_clocks_are_only_recommended_nothing_was_lost(agent: Agent) -> None:
    agent.answer = lambda: False
    held = ScheduleLease(agent.renew, TTL_S)
    told: list[str] = []
    held.when_lost(lambda: told.append("lost"))
    eventually(lambda: agent.asked >= 3)
    assert not held.may_lower()
    assert told == []
    held.end()


def test_an_answer_that_comes_late_counts_from_its_question() -> None:
    now = [100.0]

    def slow(timeout_s: float) -> bool:
        now[0] += 14.0
        return True

    held = ScheduleLease(slow, 15.0, lambda: now[0])
    assert held.may_lower()
    now[0] += 1.5
    assert not held.may_lower()
    held.end()


def test_after_its_end_it_is_not_renewed_and_no_clock_may_be_lowered(agent: Agent) -> None:
    held = ScheduleLease(agent.renew, TTL_S)
    held.end()
    asked = agent.asked
    time.sleep(TTL_S)
    assert agent.asked == asked
    assert not held.may_lower()
