"""The load forecaster: hears every arrival from the router, predicts the next period's load."""

from collections.abc import Callable, Sequence

from control_plane.domain import Load
from control_plane.serving.load_forecast import Arrival, Forecast, WindowForecaster
from control_plane.settings import ForecastSettings


class LoadForecaster:
    """A thin shell around WindowForecaster. After a restart it starts from ``first_load`` again."""

    def __init__(self, settings: ForecastSettings, first_load: Load, monotonic_s: Callable[[], float]) -> None:
        self._forecaster = WindowForecaster(settings, first_load, monotonic_s())
        self._monotonic_s = monotonic_s

    def observe(self, arrivals: Sequence[tuple[float, int, float]]) -> None:
        """(age in seconds, input tokens, expected output tokens) of each arrival since the last report."""
        now_s = self._monotonic_s()
        for age_s, input_tokens, expected_output_tokens in arrivals:
            self._forecaster.observe(Arrival(now_s - age_s, input_tokens, expected_output_tokens))

    def forecast(self) -> Forecast:
        return self._forecaster.forecast(self._monotonic_s())
