"""Plans that GPUs can follow whose clocks change slowly: one clock per stage is always a way out."""

from dataclasses import replace

import pytest
from training.profiles_for_tests import synthetic_profile

from control_plane.training import pipeline
from control_plane.training.job_spec import JobSpec
from control_plane.training.planner import IterationPlan, run_choices, solve
from control_plane.training.profile import Choice
from control_plane.training.stage_clocks import one_clock_per_stage, shortest_hold_s

SPEC = JobSpec(synthetic_profile(4), pipeline.one_f_one_b(4, 8), 60.0)
SOLVED = solve(SPEC)


def choices_of(plan: IterationPlan) -> tuple[Choice, ...]:
    steps = [(stage, step) for stage, rank in enumerate(plan.ranks) for step in rank]
    profile = SPEC.profile.choices
    return tuple(next(c for c in profile[s, step.instruction] if c.freq_mhz == step.freq_mhz) for s, step in steps)


@pytest.mark.parametrize("degree", [1.0, 1.02, 1.05, 1.1, 1.2, 1.3])
def test_one_clock_per_stage_ends_in_time_and_saves(degree: float) -> None:
    deadline_s = degree * SOLVED.frontier.t_min_s
    choices = one_clock_per_stage(SOLVED.dag, deadline_s)
    assert choices is not None
    assert shortest_hold_s(SOLVED.dag, choices) == float("inf")
    end_s, effective_j = run_choices(SOLVED.dag, choices)
    assert end_s <= deadline_s
    fastest = run_choices(SOLVED.dag, [SOLVED.dag.computation(op).fastest for op in range(len(SOLVED.dag))])
    assert SOLVED.frontier.within(deadline_s).effective_j <= effective_j <= fastest[1]
    assert degree == 1.0 or effective_j < 0.95 * fastest[1]


def test_one_clock_per_stage_that_cannot_end_in_time_is_none() -> None:
    assert one_clock_per_stage(SOLVED.dag, 0.9 * SOLVED.frontier.t_min_s) is None


@pytest.mark.parametrize("switch_time_s", [0.1, 0.5, 2.5, 8.0, 1000.0])
@pytest.mark.parametrize("degree", [1.0, 1.05, 1.1, 1.3])
def test_every_clock_is_held_and_one_clock_per_stage_is_never_cheaper(switch_time_s: float, degree: float) -> None:
    deadline_s = degree * SOLVED.frontier.t_min_s
    plan = replace(SOLVED, spec=replace(SPEC, switch_time_s=switch_time_s)).within(deadline_s)
    assert plan.finish_time_s <= plan.deadline_s
    assert shortest_hold_s(SOLVED.dag, choices_of(plan)) >= switch_time_s
    steady = one_clock_per_stage(SOLVED.dag, deadline_s)
    assert steady is not None
    steady_j = run_choices(SOLVED.dag, steady)[1] + SOLVED.dag.blocking_power_w * plan.deadline_s
    assert plan.lower_bound_j <= plan.energy_j <= steady_j
