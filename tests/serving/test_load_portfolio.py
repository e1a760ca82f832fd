"""Laws of the load portfolio: what it may never say, and what it must find."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.serving.load_portfolio import LAST_VALUE, LoadPortfolio, RateForecast, Rules
from control_plane.simulation.forecast_backtest import PortfolioPredictor, Score, score, walk

DAY = 48
"""Bins of half an hour."""
BIN_S = 1800.0


def run(rates: np.ndarray, bin_s: float = BIN_S, horizon: int = 6) -> tuple[LoadPortfolio, list[RateForecast], Score]:
    predictor = PortfolioPredictor(LoadPortfolio(bin_s, horizon))
    said, took = walk(predictor, rates, lambda: 0.0)
    scored = score(rates, said, took, horizon)
    assert scored is not None
    return predictor.portfolio, predictor.said, scored


def days(count: int, seed: int = 0, noise: float = 0.05) -> np.ndarray:
    random = np.random.default_rng(seed)
    at = np.arange(count * DAY)
    return np.maximum(0.0, (20 + 15 * np.sin(2 * np.pi * at / DAY)) * (1 + noise * random.normal(size=len(at))))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.just(0.0), st.floats(0, 1e6), st.floats(0, 1e-6)), min_size=1, max_size=80))
def test_no_forecast_is_negative_infinite_or_above_the_ceiling(rates: list[float]) -> None:
    portfolio = LoadPortfolio(60.0, 4, Rules(growth_ratio=2.0))
    highest = 0.0
    for rate in rates:
        portfolio.add(rate)
        highest = max(highest, rate)
        fit = portfolio.fit_due()
        if fit is not None:
            portfolio.adopt(fit.solve())
        said = portfolio.forecast()
        told = [*said.mean.tolist(), said.peak, said.upper]
        assert all(0.0 <= one <= 2.0 * highest * (1 + 1e-9) for one in told)
        assert said.peak <= said.upper


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        LoadPortfolio(60.0).add(rate)


def test_before_anything_came_nothing_is_expected() -> None:
    said = LoadPortfolio(60.0, 3).forecast()
    assert said.mean.tolist() == [0.0, 0.0, 0.0]
    assert (said.peak, said.upper, said.member) == (0.0, 0.0, LAST_VALUE)


def test_a_steady_load_is_forecast_as_it_is() -> None:
    _, said, _ = run(np.full(300, 7.0))
    assert said[-1].mean == pytest.approx(np.full(6, 7.0))
    assert said[-1].upper == pytest.approx(7.0)


@pytest.mark.parametrize("factor", [1e-3, 37.0])
def test_a_larger_load_is_forecast_larger(factor: float) -> None:
    rates = days(3)
    portfolio, _, _ = run(rates)
    scaled, _, _ = run(rates * factor)
    assert scaled.forecast().upper == pytest.approx(portfolio.forecast().upper * factor, rel=1e-3)


def test_a_season_is_claimed_only_after_two_of_its_periods() -> None:
    portfolio = LoadPortfolio(BIN_S, 6)
    for at, rate in enumerate(days(15).tolist(), start=1):
        portfolio.add(rate)
        fit = portfolio.fit_due()
        if fit is not None:
            portfolio.adopt(fit.solve())
        named = " ".join(portfolio.members)
        assert ("day" in named) == (at >= 2 * DAY)
        assert ("week" in named) == (at >= 14 * DAY)
        assert at >= 2 * DAY or "ridge" not in named
    assert "ridge" in named


def test_a_daily_course_is_found() -> None:
    _, _, scored = run(days(8))
    assert scored.wape_gain > 0.4
    assert scored.peak_gain > 0.4


@pytest.mark.parametrize(
    ("kind", "worst"), [("random walk", 0.02), ("noise", -0.1), ("step", 1e-3), ("memoryless bursts", 0.1)]
)
def test_without_a_course_it_is_hardly_worse_than_the_last_value(kind: str, worst: float) -> None:
    """By 10 % at most on bursts that nothing announces, where whoever was lucky lately is followed; noise is averaged
    away."""
    random = np.random.default_rng(3)
    rates = {
        "random walk": np.abs(50 + np.cumsum(random.normal(size=500))),
        "noise": random.gamma(9.0, 1.0, 500),
        "step": np.where(np.arange(500) < 250, 5.0, 40.0),
        "memoryless bursts": np.where(random.random(500) < 0.05, 50.0, 1.0),
    }[kind]
    _, _, scored = run(rates, bin_s=60.0)
    assert scored.wape_gain >= -worst


def test_the_upper_bound_holds_as_often_as_it_says() -> None:
    rates = days(14, seed=5, noise=0.1)
    _, said, _ = run(rates)
    held = [said[t].upper >= rates[t + 1 : t + 7].max() for t in range(3 * DAY, len(rates) - 6)]
    assert np.mean(held) == pytest.approx(0.9, abs=0.04)


def test_a_fit_may_be_solved_elsewhere_and_later() -> None:
    """Its question holds copies: bins that come meanwhile change nothing in it."""
    portfolio, twin = LoadPortfolio(BIN_S, 6), LoadPortfolio(BIN_S, 6)
    rates = days(6).tolist()
    for rate in rates:
        portfolio.add(rate)
        twin.add(rate)
    late, prompt = portfolio.fit_due(), twin.fit_due()
    assert late is not None
    assert prompt is not None
    twin.adopt(prompt.solve())
    for rate in rates[:10]:
        portfolio.add(rate)
        twin.add(rate)
    portfolio.adopt(late.solve())
    portfolio.add(rates[10])
    twin.add(rates[10])
    assert portfolio.members["ridge"].mean == pytest.approx(twin.members["ridge"].mean)


def test_old_bins_are_forgotten_and_forecasts_go_on() -> None:
    portfolio = LoadPortfolio(BIN_S, 6, most_bins=10 * DAY)
    for rate in days(25, noise=0.0).tolist():
        portfolio.add(rate)
    fit = portfolio.fit_due()
    assert fit is not None
    assert len(fit.features) == len(fit.targets) < 10 * DAY
    portfolio.adopt(fit.solve())
    portfolio.add(20.0)
    assert portfolio.members["ridge"].peak == pytest.approx(31.0, abs=3.0)
