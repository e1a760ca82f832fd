"""Load forecast from arrivals: the recent window's rate, its trend, and an upper bound for Poisson noise.

Reads ARRIVALS, never completions: completed requests hide overload.
"""

import math
from collections import deque
from dataclasses import dataclass

from control_plane.domain import ClassLoad, InputClass, Load
from control_plane.settings import ForecastSettings


@dataclass(frozen=True, slots=True)
class Arrival:
    """One arrival as the router saw it; ``expected_output_tokens`` is predicted."""

    at_s: float
    input_tokens: int
    expected_output_tokens: float


class ArrivalWindow:
    """Arrivals of the last seconds, as a load."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._arrivals: deque[Arrival] = deque()
        self._started_s: float | None = None

    def add(self, arrival: Arrival) -> None:
        if self._started_s is None:
            self._started_s = arrival.at_s
        self._arrivals.append(arrival)
        while self._arrivals and self._arrivals[0].at_s < arrival.at_s - self._keep_s:
            self._arrivals.popleft()

    def load(self, now_s: float, window_s: float, z: float = 0.0) -> Load:
        """Mean load over the last ``window_s`` plus ``z`` standard deviations of its Poisson count. Where less
        time has been seen than the window, the time seen counts (at least one second)."""
        window_s = min(window_s, self._keep_s)
        if self._started_s is None:
            return Load()
        seen_s = min(window_s, max(1.0, now_s - self._started_s))
        by_class: dict[InputClass, list[Arrival]] = {}
        for arrival in reversed(self._arrivals):
            if arrival.at_s <= now_s - window_s:
                break
            by_class.setdefault(InputClass.of(arrival.input_tokens), []).append(arrival)
        return Load({name: _class_load(by_class[name], seen_s, z) for name in InputClass if name in by_class})


def _class_load(arrivals: list[Arrival], seen_s: float, z: float) -> ClassLoad:
    count = len(arrivals)
    return ClassLoad(
        rps=(count + z * math.sqrt(count)) / seen_s,
        input_tokens=sum(a.input_tokens for a in arrivals) / count,
        output_tokens=sum(a.expected_output_tokens for a in arrivals) / count,
    )


class WindowForecaster:
    """The upper load for the next period: the recent window, raised by its trend if it rises, by noise, and held
    between what is seen now and ``max_growth_ratio`` times the highest load ever seen."""

    def __init__(self, settings: ForecastSettings) -> None:
        self._settings = settings
        self._window_s = settings.bin_s * settings.window_bins
        self._arrivals = ArrivalWindow(2 * self._window_s)
        self._highest_rps = 0.0

    def observe(self, arrival: Arrival) -> None:
        self._arrivals.add(arrival)

    def reactive(self, now_s: float) -> Load:
        """The load seen: class by class the heavier of the last bin and the whole window, so that a rise is seen at
        once and a lull of a few seconds is not taken for an ebb."""
        return self._arrivals.load(now_s, self._window_s).at_least(self._arrivals.load(now_s, self._settings.bin_s))

    def predict(self, now_s: float) -> Load:
        """Upper load over the next window."""
        settings = self._settings
        recent = self._arrivals.load(now_s, self._window_s, settings.quantile_z)
        last = self._arrivals.load(now_s, settings.bin_s)
        if recent.rps <= 0:
            return recent
        mean_rps = self._arrivals.load(now_s, self._window_s).rps
        longer_rps = self._arrivals.load(now_s, 2 * self._window_s).rps
        self._highest_rps = max(self._highest_rps, mean_rps, last.rps)
        trend = mean_rps / longer_rps if longer_rps > 0 else 1.0
        wanted_rps = max(recent.rps * max(1.0, trend), last.rps)
        wanted_rps = min(wanted_rps, settings.max_growth_ratio * self._highest_rps)
        return recent.scaled(wanted_rps / recent.rps)
