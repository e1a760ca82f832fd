"""Accounting and plots of a run, from values."""

from dataclasses import replace

import pytest
from run_log_values import iteration, schedule

from actors.training_messages import FrontierSample, JobFrontier
from train_jobs.job import Job, parse_job
from train_jobs.run_log import RunLog, with_schedule
from train_jobs.training_result import TrainingResult, account
from wattray.report.page import page_of
from wattray.report.training_report import stages_figure, training_cards, training_section

JOB = parse_job({"iterations": 6, "straggler": {"from_iteration": 3, "to_iteration": 5, "degree": 1.5}})
LOG = RunLog(
    starts=1,
    schedules=(schedule(1.0, 1), schedule(1.5, 3)),
    iterations=(
        iteration(0, 1.0, 100.0, 1.0, 0.0),
        iteration(1, 1.0, 82.0, 1.0, 1.0),
        iteration(2, 1.0, 82.0, 1.0, 1.0),
        iteration(3, 1.5, 70.0, 1.5, 1.5),
        iteration(4, 1.5, 70.0, 1.5, 1.5),
        iteration(5, 1.05, 82.0, 1.0, 1.0),
    ),
    unmanaged_losses=tuple(1 / (1 + number) for number in range(6)),
)
FRONTIER = JobFrontier("pipeline", 2, 6, 1.0, 2.0, 1.0, 100.0, 9, 1.0, (FrontierSample(1.0, 80.0, 79.0),))


@pytest.fixture
def result() -> TrainingResult:
    return account(JOB, LOG, FRONTIER)


def test_the_baseline_waits_for_the_same_straggler_at_blocking_power(result: TrainingResult) -> None:
    assert result.baseline_energy_j == pytest.approx(4 * 100 + 2 * (100 + 0.5 * 20))
    assert result.energy_j == pytest.approx(486)
    assert result.slowdown_ratio == pytest.approx(7.05 / 7.0)
    assert result.stragglers_handled == 1


def test_phases_leave_out_iterations_before_the_first_schedule(result: TrainingResult) -> None:
    assert [(phase.name, phase.iterations) for phase in result.phases] == [("before", 2), ("during", 2), ("after", 1)]
    during = result.phases[1]
    assert (during.iteration_time_s, during.all_max_time_s) == (1.5, 1.5)
    assert (during.iteration_energy_j, during.all_max_energy_j) == (70.0, 110.0)


def test_losses_are_compared_to_the_last_bit(result: TrainingResult) -> None:
    assert result.losses_equal_unmanaged is True
    other = LOG.model_copy(update={"unmanaged_losses": (*LOG.unmanaged_losses[:-1], 0.2)})
    assert account(JOB, other, None).losses_equal_unmanaged is False
    assert account(JOB, LOG.model_copy(update={"unmanaged_losses": ()}), None).losses_equal_unmanaged is None


def test_a_straggler_that_no_schedule_served_is_not_counted() -> None:
    log = LOG.model_copy(update={"iterations": tuple(iteration(n, 1.5, 100.0, 1.5, 1.0) for n in range(6))})
    assert account(JOB, log, None).stragglers_handled == 0


def test_under_a_slow_gpu_the_baseline_has_the_same_slow_gpu() -> None:
    job = parse_job({**JOB.model_dump(), "slow_gpu": {"stage": 0, "from_iteration": 2, "to_iteration": 3}})
    records = [*LOG.iterations]
    records[2] = records[2].model_copy(update={"slow_ratio": 1.3, "time_s": 1.3, "energy_j": 95.0})
    log = LOG.model_copy(update={"iterations": tuple(records)})
    assert account(job, log, None).baseline_energy_j == pytest.approx(3 * 100 + 95 + 2 * 110), "its own baseline"
    slow = replace(schedule(1.25, 2), stage_ratios=(1.3, 1.0), all_max_time_s=1.25, all_max_energy_j=120.0)
    found = account(job, log.model_copy(update={"schedules": (*LOG.schedules, slow)}), None)
    assert found.baseline_energy_j == pytest.approx(3 * 100 + 120 + 2 * 110)
    assert [(phase.name, phase.iterations) for phase in found.phases] == [("before", 1), ("during", 3), ("after", 1)]


def test_a_better_plan_for_the_same_takes_the_place_of_the_first() -> None:
    better = replace(schedule(1.0, 4), planned_energy_j=70.0)
    kept = with_schedule(LOG.schedules, better)
    assert [(record.degree, record.first_iteration) for record in kept] == [(1.0, 1), (1.5, 3)]
    assert kept[0].planned_energy_j == 70.0
    assert len(with_schedule(kept, replace(better, stage_ratios=(1.2, 1.0)))) == 3


def test_a_run_without_a_schedule_is_its_own_baseline() -> None:
    log = LOG.model_copy(update={"schedules": ()})
    alone = account(Job(), log, None)
    assert alone.energy_j == alone.baseline_energy_j
    assert alone.slowdown_ratio == 1.0


def test_a_run_comes_back_from_its_json(result: TrainingResult) -> None:
    again = TrainingResult.from_json(result.to_json())
    assert again == result
    assert again.report()["stragglers_handled"] == 1


def test_the_report_has_frontier_energy_and_stages(result: TrainingResult) -> None:
    section = training_section(result)
    assert len(section.figures) == 3
    assert len(stages_figure(result).data) == 2 * 6
    page = page_of("t", "n", training_cards(result), [section])
    assert "Time–energy frontier" in page or "Time\\u2013energy frontier" in page
    assert "straggler 1.5x" in page


def test_a_run_without_a_frontier_still_has_a_report() -> None:
    assert len(training_section(account(JOB, LOG, None)).figures) == 3
