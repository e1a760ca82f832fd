"""The load forecaster: hears every arrival from the router, predicts the next period's load, knows the last hour."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace

from control_plane.domain import Load
from control_plane.serving.arrival_log import Answers
from control_plane.serving.hosting import LoadHost
from control_plane.serving.load_forecast import Arrival, Forecast
from control_plane.serving.load_members import Fitted
from control_plane.serving.policy import Needs
from control_plane.settings import ForecastSettings

log = logging.getLogger(__name__)


class LoadForecaster:
    """A thin shell around LoadHost. After a restart it starts from ``first_load`` again."""

    def __init__(
        self,
        needs: Needs,
        settings: ForecastSettings,
        first_load: Load,
        monotonic_s: Callable[[], float],
        solver: Executor | None = None,
    ) -> None:
        """``solver`` runs fits; by default one thread of its own."""
        self._load = LoadHost(needs, settings, first_load, monotonic_s())
        self._monotonic_s = monotonic_s
        self._solver = solver or ThreadPoolExecutor(1, "forecast-fit")
        self._solving: Future[Fitted] | None = None

    def observe(self, arrivals: Sequence[tuple[float, int, float]]) -> None:
        """(age in seconds, input tokens, expected output tokens) of each arrival since the last report."""
        now_s = self._monotonic_s()
        self._load.arrived(Arrival(now_s - age_s, tokens, expected) for age_s, tokens, expected in arrivals)
        self._refit()

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

    def _refit(self) -> None:
        """What takes long is fitted beside the loop; forecasts go on with the last fit meanwhile."""
        if self._solving is not None:
            if not self._solving.done():
                return
            failed = self._solving.exception()
            if failed is None:
                self._load.adopt(self._solving.result())
            else:
                log.error("a forecast could not be fitted; the last one holds", exc_info=failed)
            self._solving = None
        fit = self._load.fit_due()
        if fit is not None:
            self._solving = self._solver.submit(fit.solve)
