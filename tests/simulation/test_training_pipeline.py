"""A simulated iteration accounts for every joule, and tells intrinsic from extrinsic savings."""

import pytest
from training.profiles_for_tests import synthetic_profile

from control_plane.simulation.training_pipeline import savings_with_straggler, simulate_iteration, simulate_job
from control_plane.training import pipeline
from control_plane.training.job_spec import JobSpec
from control_plane.training.planner import all_max, solve

SOLVED = solve(JobSpec(synthetic_profile(4), pipeline.one_f_one_b(4, 8), 60.0)).prepared()
DAG = SOLVED.dag


def choices_within(deadline_s: float):  # type: ignore[no-untyped-def]
    assert SOLVED.library is not None
    return SOLVED.library.within(deadline_s).choices(DAG)


def test_energy_is_computing_plus_waiting_and_equals_the_plans() -> None:
    deadline_s = 1.1 * SOLVED.frontier.t_min_s
    plan = SOLVED.within(deadline_s)
    timeline = simulate_iteration(DAG, choices_within(deadline_s), deadline_s)
    assert timeline.finish_time_s == plan.finish_time_s
    assert timeline.energy_j == pytest.approx(plan.energy_j, rel=1e-12)
    assert timeline.blocking_j == pytest.approx(sum(stage.blocking_j for stage in timeline.stages))


def test_a_stage_computes_one_thing_at_a_time() -> None:
    timeline = simulate_iteration(DAG, choices_within(SOLVED.frontier.t_min_s))
    for stage in timeline.stages:
        for before, after in zip(stage.spans, stage.spans[1:], strict=False):
            assert before.end_s <= after.start_s + 1e-12


def test_all_max_timeline_equals_the_planners_account() -> None:
    timeline = simulate_iteration(DAG, [DAG.computation(op).all_max for op in range(len(DAG))])
    assert timeline.energy_j == pytest.approx(all_max(DAG).energy_j, rel=1e-12)


def test_intrinsic_savings_need_no_straggler_and_extrinsic_ones_do() -> None:
    t_min_s = SOLVED.frontier.t_min_s
    fastest = choices_within(t_min_s)
    alone = savings_with_straggler(DAG, SOLVED.frontier, fastest, fastest, t_min_s)
    assert alone.intrinsic_ratio > 0
    assert alone.extrinsic_ratio == 0
    late = savings_with_straggler(DAG, SOLVED.frontier, fastest, choices_within(1.2 * t_min_s), 1.2 * t_min_s)
    assert late.extrinsic_ratio > 0


def test_a_job_saves_less_per_pipeline_than_those_that_wait() -> None:
    t_min_s = SOLVED.frontier.t_min_s
    fastest, waiting = choices_within(t_min_s), choices_within(1.2 * t_min_s)
    shares = [simulate_job(DAG, fastest, waiting, pipelines, 1.2).saved_ratio for pipelines in (1, 4, 16)]
    assert shares == sorted(shares)
