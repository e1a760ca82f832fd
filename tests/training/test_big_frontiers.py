"""Frontiers at any scale: extrapolated over micro-batches, and from few slopes with certified bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from training.profiles_for_tests import synthetic_profile
from training.random_dags import random_dags

from control_plane.training import pipeline
from control_plane.training.coarse_frontier import walk_coarsely
from control_plane.training.dag import Dag
from control_plane.training.extrapolation import curve_of, extrapolated
from control_plane.training.frontier import DeadlineError, walk_frontier
from control_plane.training.job_spec import JobSpec
from control_plane.training.planner import exact_curve, solve
from control_plane.training.rounding import rounded, rounding_problem


def dag_with(schedule: str, stages: int, microbatches: int) -> Dag:
    order = pipeline.schedule_named(schedule, stages, microbatches)
    return pipeline.build_dag(order, synthetic_profile(stages), 60.0)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize(("stages", "microbatches"), [(2, 30), (4, 40)])
def test_an_extrapolated_frontier_is_the_walked_one(schedule: str, stages: int, microbatches: int) -> None:
    curve = extrapolated(schedule, stages, microbatches, lambda count: dag_with(schedule, stages, count))
    assert curve is not None
    walked = curve_of(walk_frontier(dag_with(schedule, stages, microbatches)))
    assert curve.t_min_s == pytest.approx(walked.t_min_s, rel=1e-12)
    assert curve.t_star_s == pytest.approx(walked.t_star_s, rel=1e-12)
    for part in np.linspace(0, 1, 41):
        time_s = walked.t_min_s + part * (walked.t_star_s - walked.t_min_s)
        assert curve.within(time_s)[0] == pytest.approx(walked.within(time_s)[0], rel=1e-9)


@pytest.mark.parametrize(
    ("schedule", "microbatches"), [("1f1b", 16), ("zero-bubble", 60), ("early-recompute-1f1b", 60)]
)
def test_what_does_not_repeat_is_not_extrapolated(schedule: str, microbatches: int) -> None:
    assert extrapolated(schedule, 4, microbatches, lambda count: dag_with(schedule, 4, count)) is None


def test_an_own_order_that_calls_itself_1f1b_is_not_extrapolated() -> None:
    order = pipeline.user_order(pipeline.gpipe(2, 20).order, "1f1b")
    assert exact_curve(JobSpec(synthetic_profile(2), order, 60.0)) is None
    assert exact_curve(JobSpec(synthetic_profile(2), pipeline.one_f_one_b(2, 20), 60.0)) is not None


@settings(max_examples=60, deadline=None)
@given(random_dags())
def test_a_coarse_bound_is_never_above_the_exact_one(dag: Dag) -> None:
    exact = walk_frontier(dag)
    for levels in (1, 5, 40):
        coarse = walk_coarsely(dag, levels=levels)
        assert (coarse.t_min_s, coarse.t_star_s) == (exact.t_min_s, exact.t_star_s)
        for part in (0.0, 0.3, 0.9, 1.5):
            deadline_s = exact.t_min_s + part * (exact.t_star_s - exact.t_min_s)
            bound_j, exact_j = coarse.within(deadline_s).energy_j, exact.within(deadline_s).energy_j
            assert bound_j <= exact_j + 1e-9 * (1 + abs(exact_j))
        with pytest.raises(DeadlineError):
            coarse.within(0.9 * exact.t_min_s)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "zero-bubble"])
def test_plans_from_few_slopes_end_in_time_and_near_the_exact_bound(schedule: str) -> None:
    dag = dag_with(schedule, 4, 24)
    exact, coarse, problem = walk_frontier(dag), walk_coarsely(dag, levels=32), rounding_problem(dag)
    for degree in (1.0, 1.02, 1.1, 1.3):
        deadline_s = degree * exact.t_min_s
        plan = rounded(problem, coarse, deadline_s)
        assert plan.finish_time_s <= deadline_s
        assert plan.point.energy_j <= exact.within(deadline_s).energy_j <= plan.energy_j
        assert plan.energy_j <= rounded(problem, exact, deadline_s).energy_j * 1.005
        assert plan.point.energy_j >= exact.within(deadline_s).energy_j * 0.99


def test_a_job_is_solved_with_as_many_slopes_as_asked() -> None:
    spec = JobSpec(synthetic_profile(3), pipeline.one_f_one_b(3, 20), 60.0)
    few, all_of_them = solve(spec, levels=4), solve(spec)
    assert few.frontier.breakpoints < all_of_them.frontier.breakpoints
    deadline_s = 1.1 * few.frontier.t_min_s
    assert few.within(deadline_s).lower_bound_j == pytest.approx(all_of_them.within(deadline_s).lower_bound_j, rel=1e-9)
