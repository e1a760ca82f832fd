"""Plans with real clocks end by their deadline, and near the lower bound."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training.profiles_for_tests import measured_profile, synthetic_profile
from training.random_dags import random_dags

from control_plane.training import pipeline
from control_plane.training.computation import Choice, profile_of
from control_plane.training.dag import Dag, finish_times
from control_plane.training.frontier import DeadlineError, walk_frontier
from control_plane.training.job_spec import JobSpec
from control_plane.training.planner import solve
from control_plane.training.rounding import (
    PeriodMenu,
    PlanLibrary,
    RoundingSettings,
    prepare,
    rounding_problem,
)


def library_of(dag: Dag) -> PlanLibrary:
    return prepare(rounding_problem(dag), walk_frontier(dag))


def real_end_s(dag: Dag, choices: tuple[Choice, ...]) -> float:
    return float(finish_times(dag, np.array([c.time_s for c in choices])).max())


@given(random_dags(), st.lists(st.floats(0, 1.1), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_plan_ever_overruns_and_none_beats_the_bound(dag: Dag, parts: list[float]) -> None:
    frontier = walk_frontier(dag)
    library = prepare(rounding_problem(dag, RoundingSettings(most_plans=24, fewest_plans=8)), frontier)
    for part in (0.0, *parts):
        deadline_s = frontier.t_min_s + part * (frontier.t_star_s - frontier.t_min_s)
        plan = library.within(deadline_s)
        assert real_end_s(dag, plan.choices(dag)) <= max(deadline_s, frontier.t_min_s)
        scale_j = 1 + abs(plan.point.energy_j) + float(np.ptp(frontier.effective_j))
        assert plan.energy_j >= plan.point.energy_j - 1e-9 * scale_j


@pytest.mark.parametrize(
    ("name", "blocking_power_w", "mean", "most"),
    [
        ("gpt3-175b+a100_sxm_bf16", 83.64, 0.001, 0.003),
        ("bloom+a100_sxm_bf16", 83.64, 0.001, 0.003),
        ("gpt3-175b+a40_bf16", 70.38, 0.004, 0.008),
    ],
)
def test_gap_to_the_bound_on_measured_profiles(name: str, blocking_power_w: float, mean: float, most: float) -> None:
    dag = pipeline.build_dag(pipeline.one_f_one_b(8, 96), measured_profile(name), 8 * blocking_power_w)
    library = library_of(dag)
    frontier = library.frontier
    gaps = []
    parts = np.random.default_rng(2024).random(24)
    for part in (0.0, *parts):
        deadline_s = frontier.t_min_s + 0.4 * part * (frontier.t_star_s - frontier.t_min_s)
        plan = library.within(deadline_s)
        assert real_end_s(dag, plan.choices(dag)) <= deadline_s
        gaps.append(plan.gap_ratio)
    assert np.mean(gaps) <= mean
    assert max(gaps) <= most


def test_paths_cover_every_operation_once_along_stages_and_once_along_microbatches() -> None:
    dag = pipeline.build_dag(pipeline.one_f_one_b(3, 5), synthetic_profile(3), 60.0)
    problem = rounding_problem(dag)
    assert sorted(problem.chains.ops) == list(range(len(dag)))
    assert sorted(problem.paths.ops) == sorted([*range(len(dag))] * 2)
    edges = {(int(before), int(then)) for before, then in dag.edges}
    for path in range(len(problem.paths)):
        ops = problem.paths[path].tolist()
        assert set(pairwise(ops)) <= edges


def test_two_rounds_in_turn_keep_a_pace_that_neither_keeps() -> None:
    menu = PeriodMenu((0,), np.array([1.0, 1.9, 3.0]), np.array([10.0, 9.5, 2.0]), np.array([[0], [1], [2]]))
    assert menu.cheapest_mix(2.0, spread_s=1.0) == (0, 2, 0.5)
    assert menu.cheapest_mix(2.0, spread_s=0.0) == (1, 1, 0.0)
    assert menu.cheapest_mix(0.5, spread_s=0.0) == (0, 0, 0.0)


def test_a_plan_at_t_min_exactly_is_found_on_every_schedule() -> None:
    for schedule in (pipeline.one_f_one_b(3, 5), pipeline.gpipe(3, 5), pipeline.zero_bubble(3, 5)):
        library = library_of(pipeline.build_dag(schedule, synthetic_profile(3), 60.0))
        assert library.within(library.frontier.t_min_s).finish_time_s <= library.frontier.t_min_s
        with pytest.raises(DeadlineError):
            library.within(library.frontier.t_min_s * 0.99)


def test_power_limits_plan_like_clocks() -> None:
    choices = {
        (stage, name): [Choice(0, t * (1 + k / 10), t * (300 - 25 * k), 300 - 25 * k) for k in range(5)]
        for stage in range(3)
        for name, t in (("forward", 1.0 + stage / 5), ("backward", 2.0 + stage / 5))
    }
    solved = solve(JobSpec(profile_of(choices), pipeline.one_f_one_b(3, 6), 50.0)).prepared()
    plan = solved.within(solved.frontier.t_min_s)
    assert {step.power_limit_w for steps in plan.ranks for step in steps} > {300}
    assert {step.freq_mhz for steps in plan.ranks for step in steps} == {0}
