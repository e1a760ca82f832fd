"""A job goes in, clocks come out; slow pipelines change them, and what was slow is found out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training.profiles_for_tests import synthetic_profile

from control_plane.training import pipeline
from control_plane.training.job_spec import Circumstances, JobSpec
from control_plane.training.planner import deadline_under, meeting, run_choices, solve, t_min_s
from control_plane.training.profile import StageProfileError
from control_plane.training.straggler import Detector, MeasuredComputation, stage_ratios

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


def test_data_parallel_pipelines_meet_at_the_slowest_ones_t_min() -> None:
    slower = solve(JobSpec(SPEC.profile.scaled(time_scale=1.07), SPEC.schedule, 60.0))
    deadline_s, degree = meeting(SPEC, SOLVED, Circumstances(others=frozenset({(1.07,) * SPEC.schedule.stages})))
    assert degree == pytest.approx(1.07)
    assert deadline_s == slower.frontier.t_min_s
    assert SOLVED.within(deadline_s).energy_j < SOLVED.within(SOLVED.frontier.t_min_s).energy_j + 4 * 60 * (
        deadline_s - SOLVED.frontier.t_min_s
    )


def test_everybody_meets_at_the_slowest_pipelines_shortest_iteration() -> None:
    healthy_s = SOLVED.frontier.t_min_s
    slow = (1.0, 1.0, 1.0, 1.25)
    slow_s = t_min_s(SPEC.slowed(slow))
    assert healthy_s < slow_s < 1.25 * healthy_s
    assert deadline_under(SPEC, healthy_s, Circumstances()) == healthy_s
    assert deadline_under(SPEC, healthy_s, Circumstances(1.1, others=frozenset({slow}))) == slow_s
    assert deadline_under(SPEC, healthy_s, Circumstances(1.5, own=slow)) == 1.5 * healthy_s


def test_a_slow_stage_is_kept_fast_and_the_others_slow_down_to_it() -> None:
    slow = SPEC.slowed((1.0, 1.0, 1.0, 1.25))
    plan = solve(slow).within(t_min_s(slow))
    mean_mhz = [sum(step.freq_mhz for step in steps) / len(steps) for steps in plan.ranks]
    healthy = [sum(s.freq_mhz for s in steps) / len(steps) for steps in SOLVED.with_straggler(1.0).ranks]
    assert max(mean_mhz) == mean_mhz[3]
    assert all(now < before for now, before in zip(mean_mhz[:3], healthy[:3], strict=True))
    with pytest.raises(StageProfileError, match="4 positive ratios"):
        SPEC.slowed((1.0, 1.2))


@given(st.lists(st.floats(0.985, 1.015), min_size=16, max_size=16), st.sets(st.integers(0, 15), max_size=6))
def test_noise_and_outliers_raise_no_alarm(noise: list[float], outliers: set[int]) -> None:
    profiled = {(c.freq_mhz): c.time_s for c in SPEC.profile.choices[1, "forward"]}
    freq_mhz = max(profiled)
    measured = [
        MeasuredComputation(1, "forward", freq_mhz, profiled[freq_mhz] * (5.0 if i in outliers else ratio))
        for i, ratio in enumerate(noise)
    ]
    ratios = stage_ratios(SPEC.profile.choices, 4, measured)
    detector = Detector()
    for _ in range(5):
        detector, news = detector.observe(ratios, ())
        assert news is None


def test_ratios_compare_with_the_same_clock_and_skip_clocks_never_profiled() -> None:
    choice = SPEC.profile.choices[2, "backward"][3]
    measured = [
        MeasuredComputation(2, "backward", choice.freq_mhz, 1.2 * choice.time_s),
        MeasuredComputation(0, "forward", 1, 99.0),
    ]
    assert stage_ratios(SPEC.profile.choices, 4, measured) == (1.0, 1.0, pytest.approx(1.2), 1.0)


@given(st.floats(1.0, 1.3), st.floats(1.0, 1.3))
def test_a_report_of_less_than_the_truth_never_costs_more_than_the_slow_stage_does(seen: float, true: float) -> None:
    """Clocks chosen for a stage that is really slower (or healthier) end no later than its slowness explains."""
    planned = SPEC.slowed((1.0, 1.0, 1.0, seen))
    job = solve(planned)
    plan = job.within(job.frontier.t_min_s)
    really = SPEC.slowed((1.0, 1.0, 1.0, true)).profile.choices
    steps = [(stage, step) for stage, rank in enumerate(plan.ranks) for step in rank]
    choices = [next(c for c in really[stage, s.instruction] if c.freq_mhz == s.freq_mhz) for stage, s in steps]
    end_s, _ = run_choices(job.dag, choices)
    assert end_s <= max(1.0, true / seen) * plan.deadline_s * (1 + 1e-9)


@given(st.floats(1.0, 1.6))
def test_a_false_alarm_costs_at_most_the_stragglers_pace(degree: float) -> None:
    plan = SOLVED.with_straggler(degree)
    assert plan.finish_time_s <= degree * SOLVED.frontier.t_min_s
