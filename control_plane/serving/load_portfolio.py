"""The load of the next bins, from several forecasts that count by what they have cost lately.

Rates per finished bin go in; the rates of the next ``horizon`` bins come out, their peak, and an upper bound that the
peak stays below in a share ``quantile`` of all cases. A bound is judged by decision cost: capacity for it is held over
the horizon, so what it holds too much is paid as energy, and load above it as late requests, ``quantile / (1 -
quantile)`` times as dear. That is the pinball loss, which the quantile itself minimises. Rates and peak are judged by
absolute error, the same loss at one half. A member counts by its mean cost to the power of minus eight: little but the
cheapest, the mean of several that are about as good.

Members that need a season are offered once two of its periods were seen: a day's after two days, a week's after two
weeks. Before, there are the last value, with a trend, the recent mean and exponential smoothing.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from control_plane.serving.conformal import OnlineConformal
from control_plane.serving.load_members import (
    LAGS,
    Fit,
    Fitted,
    Floats,
    features_of,
    last_value,
    on_template,
    recent_level,
    recent_mean,
    seasonal_naive,
    template_ratios,
    trended,
)

LAST_VALUE = "last value"
DAY_S, WEEK_S = 86400.0, 7 * 86400.0
_TINY = 1e-9
_FIT_BINS = 288
_FIT_EVERY_BINS = 24
"""Fitting twice as often gains nothing."""
_PEAK, _MIDDLE = 1, 2
_SHARPNESS = 8.0


@dataclass(frozen=True, slots=True, eq=False)
class RateForecast:
    """Rates per second."""

    mean: Floats
    """[horizon]."""
    peak: float
    """Of the horizon, the middle of what is expected."""
    upper: float
    """The peak stays below it in the share of cases asked for."""
    member: str
    """The forecast that counts most in the bound."""


@dataclass(frozen=True, slots=True, eq=False)
class Bounded:
    """One member's forecast with its corrections."""

    mean: Floats
    peak: float
    middle: float
    """The peak, corrected by the median of its past errors."""
    upper: float


class _Account:
    """How one member did: discounted sums of its costs, and its errors of the peak in requests per second."""

    def __init__(self, quantile: float) -> None:
        self._errors = OnlineConformal(quantile)
        self._quantile = quantile
        self._sums = np.zeros(5)

    @property
    def corrects(self) -> bool:
        return bool(self._sums[_MIDDLE] < self._sums[_PEAK])

    @property
    def costs(self) -> Floats:
        """Mean cost of the rates, of the peak as it is told and of its upper bound: [3], requests per second."""
        mean, peak, middle, upper, count = self._sums
        return np.array([mean, min(peak, middle), upper]) / count

    def bounded(self, ahead: Floats, ceiling: float) -> Bounded:
        peak = float(ahead[-1])
        middle = min(max(0.0, peak + self._errors.median(0.0)), ceiling)
        return Bounded(ahead[:-1], peak, middle, min(max(middle, peak + self._errors.quantile(0.0)), ceiling))

    def settle(self, told: Bounded, came: Floats, keep: float) -> None:
        peak = float(came.max())
        short = peak - told.upper
        costs = (
            float(np.abs(came - told.mean).mean()),
            abs(peak - told.peak),
            abs(peak - told.middle),
            max(self._quantile * short, (self._quantile - 1.0) * short),
            1.0,
        )
        self._sums = self._sums * keep + costs
        self._errors.observe(peak - told.peak, told.upper - told.peak)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a portfolio chooses."""

    quantile: float = 0.9
    growth_ratio: float = 3.0
    """No forecast is above this many times the highest rate seen."""
    advantage_ratio: float = 0.02
    """A member counts only where it was cheaper than the last value by this share."""
    memory_bins: float = 144.0
    """A cost counts e times less after so many bins."""


class LoadPortfolio:
    """Rates of bins that follow each other without gaps."""

    def __init__(self, bin_s: float, horizon: int = 12, rules: Rules | None = None, most_bins: int = 12_000) -> None:
        """``horizon`` in bins; ``most_bins`` are remembered, five weeks of five minutes and more. Raises ValueError
        where bins or horizon are not positive."""
        if bin_s <= 0 or horizon < 1:
            raise ValueError(f"bins must be longer than 0 s and the horizon at least one, got {bin_s} and {horizon}")
        self._bin_s, self._horizon, self._rules = bin_s, horizon, rules or Rules()
        self._day, self._week = (round(period_s / bin_s) for period_s in (DAY_S, WEEK_S))
        self._periods = [period for period in (self._day, self._week) if horizon < period <= most_bins // 2]
        self._most_bins = most_bins
        self._rates = np.empty(2 * most_bins)
        self._count = self._index = 0
        self._highest = 0.0
        self._features: deque[Floats] = deque(maxlen=most_bins)
        self._levels: deque[float] = deque(maxlen=most_bins)
        self._fitted = Fitted(None, None)
        self._fit_due = _FIT_EVERY_BINS
        self._accounts: dict[str, _Account] = {}
        self._now: dict[str, Bounded] = {}
        self._pending: deque[dict[str, Bounded]] = deque()

    @property
    def costs(self) -> dict[str, float]:
        """Mean decision cost of each member's bound lately, in requests per second."""
        return {name: float(account.costs[-1]) for name, account in self._accounts.items()}

    @property
    def members(self) -> Mapping[str, Bounded]:
        """What each member says now."""
        return self._now

    def add(self, rate: float) -> None:
        """The rate of the bin that has just ended. Raises ValueError where it is negative or not finite."""
        if not 0.0 <= rate < float("inf"):
            raise ValueError(f"a rate must be finite and not negative, got {rate}")
        if self._count == len(self._rates):
            self._rates[: self._most_bins] = self._rates[self._most_bins :]
            self._count = self._most_bins
        self._rates[self._count] = rate
        self._count += 1
        self._index += 1
        self._highest = max(self._highest, rate)
        if len(self._pending) == self._horizon:
            self._settle(self._pending.popleft(), self._known[-self._horizon :])
        fresh = _Account(self._rules.quantile)
        self._now = {
            name: self._accounts.get(name, fresh).bounded(ahead, self._ceiling)
            for name, ahead in self._members().items()
        }
        self._pending.append(self._now)

    def forecast(self) -> RateForecast:
        """From the bins so far; all zero before the first one."""
        if not self._now:
            return RateForecast(np.zeros(self._horizon), 0.0, 0.0, LAST_VALUE)
        known = [name for name in self._now if name in self._accounts]
        if not known:
            last = self._now[LAST_VALUE]
            return RateForecast(last.mean, last.peak, last.upper, LAST_VALUE)
        costs = np.maximum([self._accounts[name].costs for name in known], _TINY)
        weights = (costs.min(axis=0) / costs) ** _SHARPNESS
        at_last = known.index(LAST_VALUE)
        weights[costs > (1.0 - self._rules.advantage_ratio) * costs[at_last]] = 0.0
        weights[at_last] = (costs.min(axis=0) / costs[at_last]) ** _SHARPNESS
        weights /= weights.sum(axis=0)
        told = [self._now[name] for name in known]
        mean = weights[:, 0] @ np.array([one.mean for one in told])
        peaks = [one.middle if self._accounts[n].corrects else one.peak for n, one in zip(known, told, strict=True)]
        peak = float(weights[:, 1] @ np.array(peaks))
        upper = float(weights[:, 2] @ np.array([one.upper for one in told]))
        return RateForecast(mean, peak, max(peak, upper), known[int(weights[:, 2].argmax())])

    def fit_due(self) -> Fit | None:
        """A fit that is due, to be solved anywhere and handed to ``adopt``; asked for, it is due again
        some bins later."""
        if self._index < self._fit_due:
            return None
        self._fit_due = self._index + _FIT_EVERY_BINS
        return self._fit()

    def adopt(self, fitted: Fitted) -> None:
        """Forecasts from the next bin on use it."""
        self._fitted = fitted

    @property
    def _known(self) -> Floats:
        return self._rates[max(0, self._count - self._most_bins) : self._count]

    @property
    def _ceiling(self) -> float:
        return self._rules.growth_ratio * self._highest

    def _settle(self, told: dict[str, Bounded], came: Floats) -> None:
        """The horizon of an old forecast is over: every member pays."""
        keep = math.exp(-1.0 / self._rules.memory_bins)
        for name, one in told.items():
            self._accounts.setdefault(name, _Account(self._rules.quantile)).settle(one, came, keep)

    def _members(self) -> dict[str, Floats]:
        rates, horizon = self._known, self._horizon
        found = {
            LAST_VALUE: last_value(rates, horizon),
            "last value and trend": trended(rates, horizon),
            "recent mean": recent_mean(rates, horizon),
        }
        if self._fitted.smoothing is not None:
            found["exponential smoothing"] = self._fitted.smoothing.predict(rates[-_FIT_BINS:], horizon)
        templates = [template_ratios(rates, period, horizon) for period in self._periods]
        seasons = ("day", "week")[: len(self._periods)]
        for name, period, ratios in zip(seasons, self._periods, templates, strict=True):
            if len(rates) >= 2 * period:
                found[f"the same time a {name} ago"] = seasonal_naive(rates, period, horizon)
                if ratios is not None:
                    found[f"template of the {name}"] = on_template(rates, ratios)
        if self._periods and templates[0] is not None:
            # A week's template is shown to the regression once two weeks are known, as everywhere.
            shown = [r if len(rates) >= 2 * p else None for r, p in zip(templates, self._periods, strict=True)]
            shown[0] = templates[0]
            features = features_of(rates, self._index, self._periods, shown, horizon)
            self._features.append(features)
            self._levels.append(recent_level(rates))
            if self._fitted.ridge is not None and len(rates) >= 2 * self._day:
                found["ridge"] = self._fitted.ridge.predict(features, self._levels[-1])
        return {name: np.clip(ahead, 0.0, self._ceiling) for name, ahead in found.items()}

    def _fit(self) -> Fit:
        """Rows whose horizon is over."""
        horizon, rates = self._horizon, self._known
        rows = len(self._features) - horizon
        if rows < 4 * LAGS:
            empty = np.empty((0, 0))
            return Fit(empty, np.empty(0), empty, rates[-_FIT_BINS:].copy())
        features = np.array(self._features)[:rows]
        levels = np.array(self._levels)[:rows]
        # Row i ends at the bin before the last `len(self._features) - 1 - i`.
        first = len(rates) - len(self._features) + 1
        ahead = np.lib.stride_tricks.sliding_window_view(rates[first:], horizon)[:rows]
        targets = np.column_stack([ahead, ahead.max(axis=1)]) / levels[:, None] - 1.0
        return Fit(features, levels, targets, rates[-_FIT_BINS:].copy())
