"""The frontier against HiGHS, and its laws."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training.highs_oracle import HighsOracle
from training.profiles_for_tests import measured_profile, synthetic_profile
from training.random_dags import random_dags

from control_plane.training import pipeline
from control_plane.training.computation import Choice, Computation
from control_plane.training.dag import Dag, dag_of_nodes, finish_times
from control_plane.training.frontier import DeadlineError, Regime, walk_frontier

SCHEDULES = {
    "1f1b": pipeline.one_f_one_b(4, 8),
    "gpipe": pipeline.gpipe(4, 6),
    "interleaved": pipeline.interleaved_1f1b(4, 8, 2),
    "early-recompute": pipeline.early_recompute_1f1b(4, 8),
    "zero-bubble": pipeline.zero_bubble(4, 8),
    "user": pipeline.user_order(
        [
            [pipeline.Instruction(n, m) for n in ("forward", "backward") for m in order]
            for order in ((0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1, 2))
        ]
    ),
}


def assert_equals_highs(dag: Dag, deadlines: int) -> None:
    frontier = walk_frontier(dag)
    oracle = HighsOracle(dag)
    for deadline_s in np.linspace(frontier.t_min_s, frontier.t_star_s * 1.02, deadlines):
        point = frontier.within(deadline_s)
        least_j = oracle.effective_j(deadline_s)
        scale_j = max(abs(point.energy_j), abs(least_j), float(np.ptp(frontier.effective_j)))
        assert abs(point.effective_j - least_j) <= 1e-6 * scale_j
        relaxed = frontier.relaxed(deadline_s)
        spent_j = sum(hull_cost_j(dag.computation(op), t) for op, t in enumerate(relaxed.duration_s))
        assert abs(spent_j - point.effective_j) <= 1e-6 * scale_j
        assert finish_times(dag, relaxed.duration_s).max() <= deadline_s * (1 + 1e-9)


def hull_cost_j(computation: Computation, time_s: float) -> float:
    points = [computation.choices[i] for i in computation.hull]
    return float(np.interp(time_s, [c.time_s for c in points], [computation.effective_j(c) for c in points]))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("transfer_time_s", [0.0, 0.013])
def test_frontier_equals_highs_on_every_schedule(name: str, transfer_time_s: float) -> None:
    dag = pipeline.build_dag(SCHEDULES[name], synthetic_profile(4), 60.0, transfer_time_s=transfer_time_s)
    assert_equals_highs(dag, deadlines=40)


@given(random_dags())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_frontier_equals_highs_on_random_dags(dag: Dag) -> None:
    assert_equals_highs(dag, deadlines=40)


@given(random_dags(), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_more_time_never_costs_effective_energy_and_the_frontier_is_convex(dag: Dag, a: float, b: float) -> None:
    frontier = walk_frontier(dag)
    span_s = frontier.t_star_s - frontier.t_min_s
    early, late = sorted((frontier.t_min_s + a * span_s, frontier.t_min_s + b * span_s))
    first, second, middle = (frontier.within(t) for t in (early, late, (early + late) / 2))
    slack_j = 1e-9 * (1 + abs(frontier.effective_j).max())
    assert second.effective_j <= first.effective_j + slack_j
    assert middle.effective_j <= (first.effective_j + second.effective_j) / 2 + slack_j


def test_the_three_regimes() -> None:
    dag = pipeline.build_dag(SCHEDULES["1f1b"], synthetic_profile(4), 60.0)
    frontier = walk_frontier(dag)
    fastest = frontier.within(frontier.t_min_s)
    between = frontier.within((frontier.t_min_s + frontier.t_star_s) / 2)
    late = frontier.within(frontier.t_star_s + 3)
    assert fastest.regime is Regime.FASTEST
    assert between.regime is Regime.ON_FRONTIER
    assert late.regime is Regime.PAST_T_STAR
    assert late.iteration_time_s == frontier.t_star_s
    least_energy_j = frontier.within(frontier.t_star_s).energy_j
    assert late.energy_j == pytest.approx(least_energy_j + 4 * 60.0 * 3)


def test_deadline_under_t_min_says_t_min() -> None:
    frontier = walk_frontier(pipeline.build_dag(SCHEDULES["gpipe"], synthetic_profile(4), 60.0))
    for deadline_s in (0.0, frontier.t_min_s * 0.999, float("nan")):
        with pytest.raises(DeadlineError, match=str(frontier.t_min_s)):
            frontier.within(deadline_s)


def test_the_all_constant_dag_has_one_point() -> None:
    frontier = walk_frontier(dag_of_nodes({"a": [Choice(1, 2.0, 5.0)], "b": [Choice(1, 3.0, 7.0)]}, [("a", "b")], 10.0))
    assert (frontier.t_min_s, frontier.t_star_s, frontier.breakpoints) == (5.0, 5.0, 1)
    assert frontier.within(5.0).energy_j == 12.0 + 50.0
    assert list(frontier.relaxed(9.0).duration_s) == [2.0, 3.0]


def test_one_operation_a_million_times_longer_than_the_rest_keeps_its_frontier_exact() -> None:
    nodes = {i: [Choice(2, 1.0 + i / 7, 9.0), Choice(1, 2.0 + i / 7, 3.0 - i / 5)] for i in range(5)}
    nodes[9] = [Choice(2, 1e6, 5e6), Choice(1, 2e6, 1e6)]
    assert_equals_highs(dag_of_nodes(nodes, [(0, 1), (1, 2), (0, 3), (3, 4), (2, 9), (4, 9)]), deadlines=40)


def test_fixed_steps_are_points_of_the_frontier() -> None:
    frontier = walk_frontier(pipeline.build_dag(SCHEDULES["1f1b"], synthetic_profile(4), 60.0))
    points = frontier.in_steps(0.5)
    assert points[0].iteration_time_s == frontier.t_star_s
    assert points[-1].iteration_time_s - frontier.t_min_s < 0.5
    assert [p.effective_j for p in points] == sorted(p.effective_j for p in points)
    with pytest.raises(ValueError, match="positive"):
        frontier.in_steps(0.0)


@pytest.mark.soak
def test_frontier_equals_highs_on_measured_profiles_at_full_size() -> None:
    for schedule in (
        pipeline.one_f_one_b(8, 96),
        pipeline.gpipe(8, 32),
        pipeline.interleaved_1f1b(8, 32, 2),
        pipeline.early_recompute_1f1b(8, 32),
        pipeline.zero_bubble(8, 32),
    ):
        for name, blocking_power_w in (("gpt3-175b+a100_sxm_bf16", 83.64), ("gpt3-175b+a40_bf16", 70.38)):
            dag = pipeline.build_dag(schedule, measured_profile(name), 8 * blocking_power_w)
            assert_equals_highs(dag, deadlines=40)
