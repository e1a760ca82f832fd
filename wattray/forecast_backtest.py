"""What `wattray forecast` computes: the portfolio, its members and Dynamo's predictors over one series of rates."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from control_plane.serving.load_members import Floats
from control_plane.serving.load_portfolio import LAST_VALUE, LoadPortfolio, RateForecast, Rules
from control_plane.simulation.forecast_backtest import (
    BoundScore,
    PortfolioPredictor,
    Score,
    score,
    score_bound,
    walk,
)
from wattray.forecast_peers import dynamo_predictors

PORTFOLIO = "wattray"


@dataclass(frozen=True, slots=True, eq=False)
class Backtest:
    """Rates in requests per second; ``said`` after each bin."""

    rates: Floats
    bin_s: float
    horizon: int
    quantile: float
    scores: dict[str, Score]
    bound: BoundScore
    last_bound: BoundScore
    said: list[RateForecast]
    fit_s: float
    missing: list[str]
    portfolio: str = PORTFOLIO


def forecast_at_end(
    rates: Floats, bin_s: float, horizon: int, quantile: float, progress: Callable[[float], None]
) -> RateForecast:
    predictor = PortfolioPredictor(LoadPortfolio(bin_s, horizon, Rules(quantile)))
    walk(predictor, rates, lambda: 0.0, progress)
    return predictor.said[-1]


def run_backtest(
    rates: Floats,
    bin_s: float,
    horizon: int,
    quantile: float,
    peers: bool,
    clock_s: Callable[[], float],
    told: Callable[[str, float], None],
) -> Backtest:
    """``told`` hears the predictor at work and the share that is done."""
    predictor = PortfolioPredictor(LoadPortfolio(bin_s, horizon, Rules(quantile)), clock_s=clock_s)
    said, took = walk(predictor, rates, clock_s, partial(told, PORTFOLIO))
    alone = np.zeros(len(rates))
    results = {PORTFOLIO: score(rates, said, took, horizon)}
    for name in dict.fromkeys(name for members in predictor.members for name in members):
        results[name] = score(rates, predictor.of_member(name), alone, horizon)
    others, missing = dynamo_predictors(bin_s, horizon) if peers else ({}, [])
    for name, peer in others.items():
        results[name] = score(rates, *walk(peer, rates, clock_s, partial(told, name)), horizon)
    upper = np.array([one.upper for one in predictor.said])
    last_upper = np.array([members[LAST_VALUE].upper for members in predictor.members])
    return Backtest(
        rates,
        bin_s,
        horizon,
        quantile,
        {name: found for name, found in results.items() if found is not None},
        score_bound(rates, upper, quantile, horizon),
        score_bound(rates, last_upper, quantile, horizon),
        predictor.said,
        predictor.most_fit_s,
        missing,
    )


def backtest_json(found: Backtest) -> dict[str, Any]:
    """Rates in requests per second, seconds, shares."""
    return {
        "bin_s": found.bin_s,
        "horizon_bins": found.horizon,
        "quantile": found.quantile,
        "predictors": {
            name: {**asdict(one), "wape_gain": one.wape_gain, "peak_gain": one.peak_gain}
            for name, one in found.scores.items()
        },
        "bound": asdict(found.bound),
        "last_value_bound": asdict(found.last_bound),
        "fit_s": found.fit_s,
        "missing": found.missing,
        "series": {
            "rate_rps": found.rates.tolist(),
            "peak_rps": [one.peak for one in found.said],
            "upper_rps": [one.upper for one in found.said],
            "member": [one.member for one in found.said],
        },
    }
