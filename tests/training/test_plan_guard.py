"""Predicted against measured: when a plan is given up, and when a profile is corrected."""

import random

import pytest
from tests_support import pipeline_choices

from control_plane.training.plan_guard import ENOUGH, KindRatios, PlanGuard, corrected


def watched(times_s: list[float], allowed_s: float = 1.0) -> PlanGuard:
    guard = PlanGuard("a", allowed_s)
    for time_s in times_s:
        guard = guard.observe(time_s)
    return guard


def test_a_plan_that_slows_iterations_by_more_than_half_a_percent_is_given_up() -> None:
    assert watched([9.0] + [1.006] * ENOUGH).too_slow
    assert not watched([9.0] + [1.006] * (ENOUGH - 1)).too_slow, "too few to tell"
    assert not watched([9.0] + [1.004] * 20).too_slow
    assert not watched([9.0] + [1.0] * 20).too_slow, "the iteration in which clocks change is not the plan's"


@pytest.mark.parametrize(("slower", "given_up"), [(1.0, False), (1.03, True)])
def test_noise_alone_gives_no_plan_up(slower: float, given_up: bool) -> None:
    draw = random.Random(5)
    verdicts = [watched([slower * draw.gauss(1.0, 0.02) for _ in range(33)]).too_slow for _ in range(200)]
    share = sum(verdicts) / len(verdicts)
    assert share > 0.9 if given_up else share < 0.05


def test_a_profile_is_corrected_where_it_is_off_by_more_than_its_noise() -> None:
    choices = pipeline_choices(2)
    off = {(0, "forward"): KindRatios(1.04, 0.95), (1, "forward"): KindRatios(1.004, 1.0)}
    better = corrected(choices, off, noise=0.005)
    assert better is not None
    for before, after in zip(choices[0, "forward"], better[0, "forward"], strict=True):
        assert after.time_s == pytest.approx(1.04 * before.time_s)
        assert after.energy_j == pytest.approx(0.95 * before.energy_j)
    assert better[1, "forward"] == choices[1, "forward"]
    assert corrected(choices, off, noise=0.03) is None
    assert corrected(choices, {(0, "forward"): KindRatios(2.0, 2.0)}, 0.0) is None, "a straggler is no profile"
