"""Plans that GPUs can follow whose clocks change slowly: one clock per stage is always a way out."""

import pytest
from training.profiles_for_tests import synthetic_profile

from control_plane.training import pipeline
from control_plane.training.job_spec import JobSpec
from control_plane.training.planner import run_choices, solve
from control_plane.training.stage_clocks import one_clock_per_stage
from control_plane.training.switching import switches_of

SPEC = JobSpec(synthetic_profile(4), pipeline.one_f_one_b(4, 8), 60.0)
SOLVED = solve(SPEC)


@pytest.mark.parametrize("degree", [1.0, 1.02, 1.05, 1.1, 1.2, 1.3])
def test_one_clock_per_stage_ends_in_time_and_saves(degree: float) -> None:
    deadline_s = degree * SOLVED.frontier.t_min_s
    choices = one_clock_per_stage(SOLVED.dag, deadline_s)
    assert choices is not None
    assert switches_of(SOLVED.dag, choices).shortest_hold_s == float("inf")
    end_s, effective_j = run_choices(SOLVED.dag, choices)
    assert end_s <= deadline_s
    fastest = run_choices(SOLVED.dag, [SOLVED.dag.computation(op).fastest for op in range(len(SOLVED.dag))])
    assert SOLVED.frontier.within(deadline_s).effective_j <= effective_j <= fastest[1]
    assert degree == 1.0 or effective_j < 0.95 * fastest[1]


def test_one_clock_per_stage_that_cannot_end_in_time_is_none() -> None:
    assert one_clock_per_stage(SOLVED.dag, 0.9 * SOLVED.frontier.t_min_s) is None
