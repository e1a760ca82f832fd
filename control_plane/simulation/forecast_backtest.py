"""Load forecasts set beside each other on a trace: each sees the bins so far and is scored by the bins that follow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from control_plane.hardware.replica_model import PS_PER_S
from control_plane.serving.load_members import Floats, last_value, with_peak
from control_plane.serving.load_portfolio import Bounded, LoadPortfolio, RateForecast
from control_plane.simulation.trace import Trace

BINS_S = (300.0, 60.0, 15.0, 5.0, 1.0)
_ENOUGH_BINS = 200


class Predictor(Protocol):
    """One bin at a time."""

    @property
    def every(self) -> int:
        """It is asked at every so-many-th bin: some take too long."""
        ...

    def add(self, rate: float) -> None:
        """Requests per second of the bin that has just ended."""
        ...

    def predict(self) -> Floats | None:
        """[horizon + 1]: the rates of the next bins and their peak; None where it has no answer yet."""
        ...


NO_ERROR = 1e-6
"""Errors below this share of the load are none: on a steady load the last value has no error to be compared with."""


def gain(error: float, last_error: float) -> float:
    """Share of the last value's error or cost that is spared; below 0: worse."""
    return 1.0 - max(error, NO_ERROR) / max(last_error, NO_ERROR)


@dataclass(frozen=True, slots=True)
class Score:
    """Errors over all origins where the predictor had an answer; the last value's are those at the same origins."""

    origins: int
    wape: float
    """Sum of |forecast - actual| over all bins ahead, by the sum of the actual rates."""
    peak_error: float
    """The same for the peak of the horizon."""
    last_wape: float
    last_peak_error: float
    mean_s: float
    """Seconds per bin, what is fitted outside the loop left out."""
    most_s: float

    @property
    def wape_gain(self) -> float:
        """Below 0: worse than the last value."""
        return gain(self.wape, self.last_wape)

    @property
    def peak_gain(self) -> float:
        return gain(self.peak_error, self.last_peak_error)


@dataclass(frozen=True, slots=True)
class BoundScore:
    """The upper bound on the horizon's peak, and one that is the last value corrected in the same way."""

    coverage: float
    """Share of origins whose peak stayed at or below the bound."""
    over_ratio: float
    """The mean bound by the mean peak."""
    decision_cost: float
    """Mean pinball loss by the mean peak; see ``load_portfolio``."""


@dataclass(slots=True)
class PortfolioPredictor:
    """The portfolio as a predictor. Fits are solved between bins, as a host does outside its loop."""

    portfolio: LoadPortfolio
    clock_s: Callable[[], float] = lambda: 0.0
    every: int = 1
    said: list[RateForecast] = field(default_factory=list)
    members: list[Mapping[str, Bounded]] = field(default_factory=list)
    """What each member said after each bin."""
    most_fit_s: float = 0.0

    def add(self, rate: float) -> None:
        self.portfolio.add(rate)

    def predict(self) -> Floats:
        found = self.portfolio.forecast()
        self.said.append(found)
        return np.append(found.mean, found.peak)

    def fit(self) -> None:
        self.members.append(self.portfolio.members)
        fit = self.portfolio.fit_due()
        if fit is not None:
            before_s = self.clock_s()
            self.portfolio.adopt(fit.solve())
            self.most_fit_s = max(self.most_fit_s, self.clock_s() - before_s)

    def of_member(self, name: str) -> list[Floats | None]:
        """Its forecasts as it made them, uncorrected."""
        told = [members.get(name) for members in self.members]
        return [None if one is None else np.append(one.mean, one.peak) for one in told]


def bin_for(duration_s: float) -> float:
    """The longest of the usual bins of which the trace has enough."""
    return next((bin_s for bin_s in BINS_S if duration_s / bin_s >= _ENOUGH_BINS), BINS_S[-1])


def rates_of(trace: Trace, bin_s: float) -> Floats:
    """Requests per second of each whole bin from the trace's start."""
    edges = np.arange(0, int(trace.arrival_ps[-1]) + 1, round(bin_s * PS_PER_S))
    rates: Floats = np.diff(np.searchsorted(trace.arrival_ps, edges)) / bin_s
    return rates


def walk(
    predictor: Predictor, rates: Floats, clock_s: Callable[[], float], progress: Callable[[float], None] | None = None
) -> tuple[list[Floats | None], Floats]:
    """What the predictor says after each bin, and the seconds each took."""
    said: list[Floats | None] = []
    took = np.zeros(len(rates))
    for at, rate in enumerate(rates.tolist()):
        before_s = clock_s()
        predictor.add(rate)
        said.append(predictor.predict() if at % predictor.every == 0 else None)
        took[at] = clock_s() - before_s
        if isinstance(predictor, PortfolioPredictor):
            predictor.fit()
        if progress is not None:
            progress((at + 1) / len(rates))
    return said, took


def score(rates: Floats, said: Sequence[Floats | None], took: Floats, horizon: int) -> Score | None:
    """None where the predictor never had an answer whose horizon the trace covers. The first ``horizon`` bins only
    teach."""
    at = [t for t in range(horizon, len(rates) - horizon) if said[t] is not None]
    if not at:
        return None
    came = np.array([with_peak(rates[t + 1 : t + 1 + horizon]) for t in at])
    told = np.array([said[t] for t in at])
    last = np.array([last_value(rates[: t + 1], horizon) for t in at])
    return Score(
        len(at),
        _error(told[:, :-1], came[:, :-1]),
        _error(told[:, -1], came[:, -1]),
        _error(last[:, :-1], came[:, :-1]),
        _error(last[:, -1], came[:, -1]),
        float(took[at].mean()),
        float(took[at].max()),
    )


def score_bound(rates: Floats, upper: Floats, quantile: float, horizon: int) -> BoundScore:
    """``upper`` is what was promised after each bin."""
    at = range(horizon, len(rates) - horizon)
    peaks = np.array([rates[t + 1 : t + 1 + horizon].max() for t in at])
    short = peaks - upper[horizon : len(rates) - horizon]
    cost = np.maximum(quantile * short, (quantile - 1.0) * short)
    scale = max(float(peaks.mean()), 1e-9)
    return BoundScore(float((short <= 0).mean()), float((peaks - short).mean()) / scale, float(cost.mean()) / scale)


def _error(told: Floats, came: Floats) -> float:
    return float(np.abs(told - came).sum() / max(float(came.sum()), 1e-9))
