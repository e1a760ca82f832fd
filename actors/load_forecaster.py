"""The load forecaster: hears every arrival from the router, predicts the next period's load, knows the last hour."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from control_plane.domain import Load
from control_plane.serving.arrival_log import Answers
from control_plane.serving.hosting import LoadHost
from control_plane.serving.load_forecast import Arrival, Forecast
from control_plane.serving.policy import Needs
from control_plane.settings import ForecastSettings


class LoadForecaster:
    """A thin shell around LoadHost. After a restart it starts from ``first_load`` again."""

    def __init__(
        self, needs: Needs, settings: ForecastSettings, first_load: Load, monotonic_s: Callable[[], float]
    ) -> None:
        self._load = LoadHost(needs, settings, first_load, monotonic_s())
        self._monotonic_s = monotonic_s

    def observe(self, arrivals: Sequence[tuple[float, int, float]]) -> None:
        """(age in seconds, input tokens, expected output tokens) of each arrival since the last report."""
        now_s = self._monotonic_s()
        self._load.arrived(Arrival(now_s - age_s, tokens, expected) for age_s, tokens, expected in arrivals)

    def answered(self, answers: Answers) -> None:
        """What became of requests since the last report."""
        self._load.answered(answers)

    def forecast(self) -> Forecast:
        return self._load.forecast(self._monotonic_s(), with_past=False)

    def forecast_with_past(self) -> Forecast:
        """For the cluster's manager, whose clock may be another node's: the past in seconds before now, so negative."""
        now_s = self._monotonic_s()
        forecast = self._load.forecast(now_s, with_past=True)
        return replace(forecast, recent=forecast.recent.later(-now_s))
