"""A job goes in, clocks come out; stragglers change them and go again; a restart forgets nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training.profiles_for_tests import synthetic_profile

from control_plane.training import pipeline
from control_plane.training.planner import (
    JobId,
    JobSpec,
    PipelineId,
    PlannerState,
    Straggler,
    common_deadline_s,
    solve,
)
from control_plane.training.straggler import ComputeReport, Detector, pipeline_degree

JOB, OTHER = JobId("llm"), JobId("other")
P0, P1 = PipelineId("p0"), PipelineId("p1")
SPEC = JobSpec(synthetic_profile(4), pipeline.one_f_one_b(4, 8), 60.0)
SOLVED = solve(SPEC)


def test_a_plan_lists_every_rank_in_execution_order() -> None:
    plan = SOLVED.within(SOLVED.frontier.t_min_s)
    for program, steps in zip(SPEC.schedule.order, plan.ranks, strict=True):
        assert [(s.name, s.microbatch) for s in program] == [(s.instruction, s.microbatch) for s in steps]
    assert plan.finish_time_s <= plan.deadline_s
    assert plan.energy_j >= plan.lower_bound_j


def test_a_prepared_job_plans_at_least_as_well() -> None:
    prepared = SOLVED.prepared()
    for degree in (1.0, 1.03, 1.1, 1.4):
        assert prepared.with_straggler(degree).energy_j <= SOLVED.with_straggler(degree).energy_j


def test_past_t_star_no_plan_gets_slower() -> None:
    t_star_s = SOLVED.frontier.t_star_s
    assert SOLVED.within(t_star_s).ranks == SOLVED.within(2 * t_star_s).ranks


def test_the_slowest_of_several_stragglers_sets_the_pace() -> None:
    state = PlannerState().with_job(JOB, SPEC)
    assert state.degree(JOB, 0.0) == 1.0
    state = state.with_straggler(JOB, P0, Straggler(1.1)).with_straggler(JOB, P1, Straggler(1.3, start_s=50.0))
    assert [state.degree(JOB, now_s) for now_s in (0.0, 49.9, 50.0)] == [1.1, 1.1, 1.3]
    assert state.next_start_s(JOB, 0.0) == 50.0
    assert state.with_straggler(JOB, P1, Straggler(1.0)).degree(JOB, 60.0) == 1.1
    with pytest.raises(KeyError, match="other"):
        state.with_straggler(OTHER, P0, Straggler(1.1))


def test_a_restarted_planner_knows_all_it_knew() -> None:
    state = PlannerState().with_job(JOB, SPEC).with_job(OTHER, JobSpec(SPEC.profile, SPEC.schedule, 50.0, 0.01))
    state = state.with_straggler(JOB, P0, Straggler(1.2, 7.0))
    again = PlannerState.from_json(state.to_json())
    assert again.to_json() == state.to_json()
    assert solve(again.jobs[JOB]).within(60.0) == SOLVED.within(60.0)
    assert again.degree(JOB, 8.0) == 1.2
    assert JOB not in again.without_job(JOB).jobs


def test_data_parallel_pipelines_meet_at_the_slowest_ones_t_min() -> None:
    slower = solve(JobSpec(SPEC.profile.scaled(time_scale=1.07), SPEC.schedule, 60.0))
    deadline_s = common_deadline_s([SOLVED.frontier, slower.frontier])
    assert deadline_s == slower.frontier.t_min_s
    assert SOLVED.within(deadline_s).energy_j < SOLVED.within(SOLVED.frontier.t_min_s).energy_j + 4 * 60 * (
        deadline_s - SOLVED.frontier.t_min_s
    )


def report(ratio: float, now_s: float, noise: tuple[float, ...] = ()) -> ComputeReport:
    steps = tuple(ratio * (noise[i % len(noise)] if noise else 1.0) for i in range(16))
    return ComputeReport(P0, now_s, (tuple(1.0 for _ in steps), steps, steps, tuple(1.0 for _ in steps)))


def test_a_lag_counts_after_two_reports_and_ends_after_one() -> None:
    detector = Detector()
    detector, news = detector.observe(SOLVED.dag, report(1.25, 1.0))
    assert news is None
    detector, news = detector.observe(SOLVED.dag, report(1.25, 2.0))
    expected = pipeline_degree(SOLVED.dag, (1.0, 1.25, 1.25, 1.0))
    assert news == Straggler(expected, 2.0)
    detector, news = detector.observe(SOLVED.dag, report(1.25, 3.0))
    assert news is None
    detector, news = detector.observe(SOLVED.dag, report(1.0, 4.0))
    assert news == Straggler(1.0, 4.0)


@given(st.lists(st.floats(0.985, 1.015), min_size=16, max_size=16), st.lists(st.integers(0, 15), max_size=6))
def test_noise_and_outliers_raise_no_alarm(noise: list[float], outliers: list[int]) -> None:
    noisy = tuple(5.0 if i in outliers else ratio for i, ratio in enumerate(noise))
    detector = Detector()
    for now_s in range(5):
        detector, news = detector.observe(SOLVED.dag, report(1.0, float(now_s), noisy))
        assert news is None


@given(st.floats(1.0, 1.6))
def test_a_false_alarm_costs_at_most_the_stragglers_pace(degree: float) -> None:
    plan = SOLVED.with_straggler(degree)
    assert plan.finish_time_s <= degree * SOLVED.frontier.t_min_s
