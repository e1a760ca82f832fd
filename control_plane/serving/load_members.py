"""Forecasts of a rate some bins ahead: the members that ``load_portfolio`` chooses from.

Every member answers ``horizon`` rates and, last, their peak, a quantity of its own: the peak of mean rates is lower
than the mean of peaks. What takes long (regressions, maximum likelihood) is a ``Fit``, which a host may compute
elsewhere and hand back.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TINY = 1e-9
LAGS = 12
FOURIER_TERMS = 3
_LEVEL_BINS, _TEMPLATE_LEVEL_BINS = 3, 6
_MOST_PERIODS = 4
"""A template is the mean of so many days or weeks."""
RIDGE_PENALTY = 300.0
"""On standardised features. Chosen, with the numbers above, on the 2024 conversation week; docs/forecast.md."""
_ETS_BINS = 288
_FEWEST_FOR_ETS = 24
_MEAN_HORIZONS = 4
_TREND_BINS, _TREND_DAMPING = 6, 0.8


@dataclass(frozen=True, slots=True)
class Ridge:
    """Weights of the regression on standardised features; ``weights`` is [features, horizon + 1]."""

    mean: Floats
    scale: Floats
    weights: Floats

    def predict(self, features: Floats, level: float) -> Floats:
        ahead: Floats = ((features - self.mean) / self.scale @ self.weights + 1.0) * level
        return ahead


@dataclass(frozen=True, slots=True)
class Smoothing:
    """Holt's damped linear trend: the parameters of an exponential smoothing (ETS, additive error)."""

    level: float
    trend: float
    damping: float

    def predict(self, rates: Floats, horizon: int) -> Floats:
        """The recursion is run over the last bins again: what is older has no weight left."""
        at, slope = float(rates[0]), 0.0
        for rate in rates[1:].tolist():
            expected = at + self.damping * slope
            before = at
            at = expected + self.level * (rate - expected)
            slope = self.damping * slope + self.trend * (at - before - self.damping * slope)
        steps = np.cumsum(self.damping ** np.arange(1, horizon + 1))
        return with_peak(at + slope * steps)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit found; None where there was too little to fit."""

    ridge: Ridge | None
    smoothing: Smoothing | None


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A question that may be answered elsewhere. Rows are bins; ``targets`` is [rows, horizon + 1], relative to
    ``levels``, rates per second."""

    features: Floats
    levels: Floats
    targets: Floats
    recent: Floats

    def solve(self) -> Fitted:
        return Fitted(self._ridge() if len(self.features) else None, _smoothing(self.recent))

    def _ridge(self) -> Ridge:
        """Least squares of absolute errors: rows count by their level."""
        weight = (self.levels / max(float(self.levels.mean()), _TINY))[:, None]
        mean, scale = self.features.mean(axis=0), self.features.std(axis=0) + _TINY
        mean[-1], scale[-1] = 0.0, 1.0
        rows = (self.features - mean) / scale * weight
        penalty = np.full(rows.shape[1], RIDGE_PENALTY)
        penalty[-1] = 1e-6
        weights = np.linalg.solve(rows.T @ rows + np.diag(penalty), rows.T @ (self.targets * weight))
        return Ridge(mean, scale, weights)


def _smoothing(rates: Floats) -> Smoothing | None:
    """By maximum likelihood, with statsmodels; tenths of a second."""
    if len(rates) < _FEWEST_FOR_ETS or float(np.ptp(rates)) <= _TINY:
        return None
    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaled = rates / float(rates.mean())
        found = ExponentialSmoothing(scaled, trend="add", damped_trend=True, initialization_method="heuristic").fit()
    parts = [found.params[name] for name in ("smoothing_level", "smoothing_trend", "damping_trend")]
    if not np.all(np.isfinite(parts)):
        return None
    alpha, beta, damping = (float(part) for part in parts)
    return Smoothing(alpha, beta / alpha if alpha > _TINY else 0.0, damping)


def with_peak(ahead: Floats) -> Floats:
    return np.append(ahead, ahead.max())


def last_value(rates: Floats, horizon: int) -> Floats:
    return np.full(horizon + 1, rates[-1])


def recent_mean(rates: Floats, horizon: int) -> Floats:
    """For bursts that come and go."""
    return np.full(horizon + 1, rates[-_MEAN_HORIZONS * horizon :].mean())


def trended(rates: Floats, horizon: int) -> Floats:
    """The last value, and the slope of the last bins, dying away."""
    half = _TREND_BINS // 2
    if len(rates) < _TREND_BINS:
        return last_value(rates, horizon)
    slope = (float(rates[-half:].mean()) - float(rates[-_TREND_BINS:-half].mean())) / half
    return with_peak(rates[-1] + slope * np.cumsum(_TREND_DAMPING ** np.arange(1, horizon + 1)))


def seasonal_naive(rates: Floats, period: int, horizon: int) -> Floats:
    """What came a period ago. Needs ``period`` rates."""
    start = len(rates) - period
    return with_peak(rates[start : start + horizon])


def template_ratios(rates: Floats, period: int, horizon: int) -> Floats | None:
    """The mean course of earlier periods over the next bins, relative to their level just before: [horizon]. None
    before a period is known."""
    first = len(rates) - _TEMPLATE_LEVEL_BINS
    count = min(_MOST_PERIODS, first // period)
    if count < 1:
        return None
    total = np.zeros(_TEMPLATE_LEVEL_BINS + horizon)
    for back in range(1, count + 1):
        start = first - back * period
        total += rates[start : start + len(total)]
    level = float(total[:_TEMPLATE_LEVEL_BINS].mean())
    return total[_TEMPLATE_LEVEL_BINS:] / level if level > _TINY else None


def on_template(rates: Floats, ratios: Floats) -> Floats:
    """The template's course, begun at the recent level."""
    return with_peak(ratios * float(rates[-_TEMPLATE_LEVEL_BINS:].mean()))


def recent_level(rates: Floats) -> float:
    return max(float(rates[-_LEVEL_BINS:].mean()), _TINY)


def features_of(
    rates: Floats, index: int, periods: Sequence[int], templates: Sequence[Floats | None], horizon: int
) -> Floats:
    """The regression's view of now, relative to the recent level: lags, each period's template and its peak, the time
    of day by Fourier terms, a constant. ``index`` counts bins since the beginning; templates that are not known are
    level."""
    level = recent_level(rates)
    parts = [rates[-LAGS:][::-1] / level - 1.0]
    for ratios in templates:
        parts.append(np.zeros(horizon + 1) if ratios is None else with_peak(ratios) - 1.0)
    if periods:
        angles = 2.0 * np.pi * index / periods[0] * np.arange(1, FOURIER_TERMS + 1)
        parts += [np.sin(angles), np.cos(angles)]
    return np.concatenate([*parts, [1.0]])
