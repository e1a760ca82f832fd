"""Laws of the online conformal correction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.serving.conformal import OnlineConformal


def coverage(scores: np.ndarray, nominal: float, after: int) -> float:
    conformal, held = OnlineConformal(nominal), []
    for score in scores.tolist():
        bound = conformal.quantile(0.0)
        held.append(score <= bound)
        conformal.observe(score, bound)
    return float(np.mean(held[after:]))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from((0.5, 0.8, 0.9, 0.95)), st.sampled_from(("normal", "gamma", "coarse"))
)
def test_coverage_is_nominal_on_exchangeable_scores(seed: int, nominal: float, law: str) -> None:
    random = np.random.default_rng(seed)
    scores = {
        "normal": random.normal(size=4000),
        "gamma": random.gamma(0.3, size=4000),
        "coarse": random.random(4000).round(2),
    }[law]
    assert coverage(scores, nominal, 100) == pytest.approx(nominal, abs=0.03)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-5, 5))
def test_coverage_comes_back_after_a_shift(seed: int, shift: float) -> None:
    scores = np.random.default_rng(seed).normal(size=6000)
    scores[3000:] += shift
    assert coverage(scores, 0.9, 3000) == pytest.approx(0.9, abs=0.03)
    assert coverage(scores, 0.9, 4000) == pytest.approx(0.9, abs=0.03)


@given(st.lists(st.floats(-1e6, 1e6), min_size=10, max_size=400))
def test_bounds_are_scores_and_rise_with_the_level(scores: list[float]) -> None:
    levels = [OnlineConformal(nominal, rate=0.0) for nominal in (0.1, 0.5, 0.9, 0.99)]
    for score in scores:
        for conformal in levels:
            conformal.observe(score, conformal.quantile(0.0))
    bounds = [conformal.quantile(0.0) for conformal in levels]
    assert bounds == sorted(bounds)
    assert set(bounds) <= set(scores[-300:])
    assert bounds[1] == levels[0].median(0.0)


def test_nothing_is_known_of_few_scores() -> None:
    conformal = OnlineConformal(0.9)
    for score in range(9):
        conformal.observe(score, 0.0)
        assert conformal.quantile(-1.0) == conformal.median(-1.0) == -1.0
    conformal.observe(9.0, 0.0)
    assert conformal.quantile(-1.0) == 9.0


@pytest.mark.parametrize("nominal", [0.0, 1.0, float("nan")])
def test_a_nominal_coverage_is_a_share(nominal: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        OnlineConformal(nominal)
