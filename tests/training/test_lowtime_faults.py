"""What lowtime 0.3.0 gets wrong, done right here: one test per fault."""

import copy

import numpy as np
import pytest
from training.highs_oracle import HighsOracle
from training.profiles_for_tests import synthetic_profile

from control_plane.training import pipeline
from control_plane.training.computation import Choice, Profile, profile_of
from control_plane.training.dag import Dag, finish_times
from control_plane.training.frontier import walk_frontier
from control_plane.training.rounding import prepare, rounding_problem


def one_f_one_b_of(profile: Profile) -> Dag:
    return pipeline.build_dag(pipeline.one_f_one_b(profile.stages, 6), profile, 40.0)


def profile_with(stages: int, points: list[tuple[float, float]]) -> Profile:
    return profile_of(
        {
            (stage, name): [Choice(1000 - i, size * t * (1 + stage / 10), size * e) for i, (t, e) in enumerate(points)]
            for stage in range(stages)
            for name, size in (("forward", 1.0), ("backward", 2.0))
        }
    )


def assert_exact_and_in_time(dag: Dag) -> None:
    frontier = walk_frontier(dag)
    oracle = HighsOracle(dag)
    library = prepare(rounding_problem(dag), frontier)
    for deadline_s in np.linspace(frontier.t_min_s, frontier.t_star_s, 9):
        point = frontier.within(deadline_s)
        assert point.effective_j == pytest.approx(oracle.effective_j(deadline_s), rel=1e-6)
        plan = library.within(deadline_s)
        times_s = np.array([c.time_s for c in plan.choices(dag)])
        assert finish_times(dag, times_s).max() <= deadline_s


@pytest.mark.parametrize("points", [[(1.0, 300.0)], [(1.0, 300.0), (1.3, 220.0)]])
def test_operations_with_one_or_two_clocks_have_a_frontier(points: list[tuple[float, float]]) -> None:
    assert_exact_and_in_time(one_f_one_b_of(profile_with(3, points)))


def test_linear_costs_have_a_frontier() -> None:
    assert_exact_and_in_time(one_f_one_b_of(profile_with(3, [(1 + i / 8, 300 - 10.0 * i) for i in range(6)])))


def test_non_convex_costs_have_a_frontier() -> None:
    points = [(1.0, 300.0), (1.1, 295.0), (1.2, 230.0), (1.3, 228.0), (1.4, 150.0)]
    assert_exact_and_in_time(one_f_one_b_of(profile_with(3, points)))


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_scaled_costs_scale_the_frontier_and_nothing_else(factor: float) -> None:
    profile = synthetic_profile(3)
    schedule = pipeline.one_f_one_b(3, 6)
    plain = walk_frontier(pipeline.build_dag(schedule, profile, 40.0))
    scaled = walk_frontier(pipeline.build_dag(schedule, profile.scaled(energy_scale=factor), 40.0 * factor))
    assert scaled.breakpoints == plain.breakpoints
    np.testing.assert_allclose(scaled.time_s, plain.time_s, rtol=1e-9)
    np.testing.assert_allclose(scaled.effective_j, plain.effective_j * factor, rtol=1e-9)


def test_an_all_constant_dag_has_its_one_point() -> None:
    dag = one_f_one_b_of(profile_with(3, [(1.0, 300.0)]))
    frontier = walk_frontier(dag)
    assert frontier.breakpoints == 1
    assert frontier.t_min_s == frontier.t_star_s
    assert prepare(rounding_problem(dag), frontier).within(frontier.t_min_s).finish_time_s == frontier.t_min_s


def test_no_plan_claims_less_time_than_it_takes() -> None:
    dag = pipeline.build_dag(pipeline.one_f_one_b(3, 8), synthetic_profile(3, clocks=30), 60.0)
    frontier = walk_frontier(dag)
    library = prepare(rounding_problem(dag), frontier)
    for deadline_s in np.linspace(frontier.t_min_s, frontier.t_star_s, 60):
        plan = library.within(deadline_s)
        times_s = np.array([c.time_s for c in plan.choices(dag)])
        assert plan.finish_time_s == finish_times(dag, times_s).max() <= deadline_s


def test_inputs_are_not_mutated() -> None:
    profile = synthetic_profile(3)
    dag = one_f_one_b_of(profile)
    before = copy.deepcopy((dict(profile.choices), dag.computations, dag.kind, dag.edges, dag.order))
    frontier = walk_frontier(dag)
    prepare(rounding_problem(dag), frontier).within(1.1 * frontier.t_min_s)
    first = frontier.relaxed(1.2 * frontier.t_min_s).duration_s
    frontier.relaxed(frontier.t_min_s)
    np.testing.assert_array_equal(first, frontier.relaxed(1.2 * frontier.t_min_s).duration_s)
    after = (dict(profile.choices), dag.computations, dag.kind, dag.edges, dag.order)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new) if isinstance(old, np.ndarray) else None
        assert isinstance(old, np.ndarray) or old == new


@pytest.mark.parametrize("name", ["gpipe", "zero-bubble", "early-recompute-1f1b", "1f1b", "interleaved-1f1b"])
def test_more_schedules_than_1f1b(name: str) -> None:
    chunks = 2 if name.startswith("inter") else 1
    schedule = pipeline.schedule_named(name, 3, 6, chunks)
    assert_exact_and_in_time(pipeline.build_dag(schedule, synthetic_profile(3), 40.0))
