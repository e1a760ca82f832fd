"""Which of two schedules a job runs."""

from dataclasses import replace

from actors.training_messages import ClockSchedule
from train_jobs.planner_link import better_of

RUNNING = ClockSchedule("llm", "a", 1.0, 2.0, 1.9, 100.0, 99.0, "", (), 2.0, 4.0, 2.0, 120.0, 130.0)


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
