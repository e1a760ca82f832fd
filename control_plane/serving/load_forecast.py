"""Load forecast from arrivals: the recent window's rate, its trend, and an upper bound for Poisson noise.

Reads ARRIVALS, never completions: completed requests hide overload.
"""

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from control_plane.domain import ClassLoad, InputClass, Load
from control_plane.serving.arrival_log import Arrivals
from control_plane.serving.load_members import Fit, Fitted
from control_plane.serving.load_portfolio import LoadPortfolio, Rules
from control_plane.settings import ForecastSettings


class Arrival(NamedTuple):
    """One arrival as the router saw it; ``expected_output_tokens`` is predicted."""

    at_s: float
    input_tokens: int
    expected_output_tokens: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the load forecaster says: the load seen now, and the upper bound for the next period."""

    reactive: Load = field(default_factory=Load)
    upper: Load = field(default_factory=Load)
    recent: Arrivals = field(default_factory=Arrivals.none)
    """The arrivals of the last hour, where a policy needs them."""


class ArrivalWindow:
    """Arrivals of the last seconds, as a load: running sums by class, so that a look back costs the same however
    much arrived."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._classes: dict[InputClass, _RunningSums] = {name: _RunningSums() for name in InputClass}

    def add(self, arrival: Arrival) -> None:
        self._classes[InputClass.of(arrival.input_tokens)].add(arrival, arrival.at_s - self._keep_s)

    def load(self, now_s: float, window_s: float, z: float = 0.0) -> Load:
        """Mean load over the last ``window_s`` plus ``z`` standard deviations of its Poisson count."""
        window_s = min(window_s, self._keep_s)
        parts = {name: sums.load(now_s - window_s, window_s, z) for name, sums in self._classes.items()}
        return Load({name: part for name, part in parts.items() if part.rps > 0})


class _RunningSums:
    """Arrival times of one class in order, and the sums of tokens up to each."""

    def __init__(self) -> None:
        self._at_s: list[float] = []
        self._inputs: list[int] = [0]
        self._outputs: list[float] = [0.0]

    def add(self, arrival: Arrival, forget_before_s: float) -> None:
        self._at_s.append(arrival.at_s)
        self._inputs.append(self._inputs[-1] + arrival.input_tokens)
        self._outputs.append(self._outputs[-1] + arrival.expected_output_tokens)
        if len(self._at_s) > 1024 and self._at_s[len(self._at_s) // 2] < forget_before_s:
            self._forget(bisect_left(self._at_s, forget_before_s))

    def load(self, after_s: float, window_s: float, z: float) -> ClassLoad:
        first = bisect_right(self._at_s, after_s)
        count = len(self._at_s) - first
        if count == 0:
            return ClassLoad()
        return ClassLoad(
            rps=(count + z * math.sqrt(count)) / window_s,
            input_tokens=(self._inputs[-1] - self._inputs[first]) / count,
            output_tokens=(self._outputs[-1] - self._outputs[first]) / count,
        )

    def _forget(self, count: int) -> None:
        spent = self._outputs[count]
        self._outputs = [total - spent for total in self._outputs[count:]]
        del self._at_s[:count], self._inputs[:count]


class WindowForecaster:
    """The upper load for the next period: the recent window, raised by its trend if it rises, by noise, and held
    between what is seen now and ``max_growth_ratio`` times the highest load ever seen. Until it has watched for two
    windows ``first_load``, what the operator said to be ready for, is the least it predicts."""

    def __init__(self, settings: ForecastSettings, first_load: Load, now_s: float) -> None:
        self._settings = settings
        self._window_s = settings.bin_s * settings.window_bins
        self._arrivals = ArrivalWindow(2 * self._window_s)
        self._first_load = first_load
        self._started_s = now_s
        self._highest_rps = first_load.rps
        self._peaks: deque[tuple[float, Load]] = deque()
        self._bin_ends_s = now_s + settings.bin_s

    def observe(self, arrival: Arrival) -> None:
        self._arrivals.add(arrival)

    def reactive(self, now_s: float) -> Load:
        """The load seen: class by class the heavier of the last bin and the whole window, so that a rise is seen at
        once and a quiet moment of a few seconds is not taken for a falling load."""
        return self._arrivals.load(now_s, self._window_s).at_least(self._arrivals.load(now_s, self._settings.bin_s))

    def forecast(self, now_s: float) -> Forecast:
        return Forecast(self.reactive(now_s), self.predict(now_s))

    def predict(self, now_s: float) -> Load:
        """Upper load over the next window."""
        upper = self._upper(now_s)
        if now_s - self._started_s < 2 * self._window_s:
            return upper.at_least(self._first_load)
        return upper

    def _upper(self, now_s: float) -> Load:
        return self._from_arrivals(now_s).at_least(self._held_peak(now_s))

    def _held_peak(self, now_s: float) -> Load:
        """Class by class the busiest bin of the last ``peak_hold_s``. Looked at often enough, every bin is seen."""
        if now_s >= self._bin_ends_s:
            self._peaks.append((now_s, self._arrivals.load(now_s, self._settings.bin_s)))
            self._bin_ends_s = now_s + self._settings.bin_s
        while self._peaks and self._peaks[0][0] < now_s - self._settings.peak_hold_s:
            self._peaks.popleft()
        peak = Load()
        for _, load in self._peaks:
            peak = peak.at_least(load)
        return peak

    def _from_arrivals(self, now_s: float) -> Load:
        settings = self._settings
        recent = self._arrivals.load(now_s, self._window_s, settings.quantile_z)
        if recent.rps <= 0:
            return recent
        last_rps = self._arrivals.load(now_s, settings.bin_s).rps
        mean_rps = self._arrivals.load(now_s, self._window_s).rps
        longer_rps = self._arrivals.load(now_s, 2 * self._window_s).rps
        self._highest_rps = max(self._highest_rps, mean_rps, last_rps)
        watched_long_enough = now_s - self._started_s >= 2 * self._window_s
        trend = mean_rps / longer_rps if watched_long_enough and longer_rps > 0 else 1.0
        wanted_rps = max(recent.rps * max(1.0, trend), last_rps)
        wanted_rps = min(wanted_rps, settings.max_growth_ratio * self._highest_rps)
        return recent.scaled(wanted_rps / recent.rps)


class PortfolioForecaster(WindowForecaster):
    """The upper load by a ``LoadPortfolio`` over longer bins, of the classes that came lately; while that has not seen
    two horizons, the window's."""

    def __init__(self, settings: ForecastSettings, first_load: Load, now_s: float) -> None:
        super().__init__(settings, first_load, now_s)
        rules = Rules(settings.portfolio_quantile, settings.max_growth_ratio)
        self._portfolio = LoadPortfolio(settings.portfolio_bin_s, settings.portfolio_bins, rules)
        self._wide_ends_s, self._count, self._finished = now_s + settings.portfolio_bin_s, 0, 0

    def observe(self, arrival: Arrival) -> None:
        """An arrival that is told after its bin was closed counts in the next one."""
        super().observe(arrival)
        self._close_bins(arrival.at_s)
        self._count += 1

    def fit_due(self) -> Fit | None:
        return self._portfolio.fit_due()

    def adopt(self, fitted: Fitted) -> None:
        self._portfolio.adopt(fitted)

    def _upper(self, now_s: float) -> Load:
        self._close_bins(now_s)
        recent = self._arrivals.load(now_s, self._window_s, self._settings.quantile_z)
        if self._finished < 2 * self._settings.portfolio_bins or recent.rps <= 0:
            return super()._upper(now_s)
        return recent.scaled(max(1.0, self._portfolio.forecast().upper / recent.rps))

    def _close_bins(self, now_s: float) -> None:
        width_s = self._settings.portfolio_bin_s
        while now_s >= self._wide_ends_s:
            self._portfolio.add(self._count / width_s)
            self._count, self._wide_ends_s = 0, self._wide_ends_s + width_s
            self._finished += 1


def load_of(requests: Sequence[tuple[int, int]], duration_s: float) -> Load:
    """The load of (input tokens, output tokens) pairs spread over ``duration_s``."""
    parts: dict[InputClass, ClassLoad] = {}
    for input_tokens, output_tokens in requests:
        one = ClassLoad(1 / duration_s, input_tokens, output_tokens)
        name = InputClass.of(input_tokens)
        parts[name] = parts[name] + one if name in parts else one
    return Load(parts)
