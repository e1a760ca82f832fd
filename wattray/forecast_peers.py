"""The four load predictors that NVIDIA Dynamo's planner offers, over a horizon of bins.

Dynamo predicts the next interval only; here each model tells its own forecast of as many intervals as are asked for,
and their peak is the highest of them. Its defaults are kept: windows of 50 intervals, the Kalman filter's fixed
variances (components/src/dynamo/planner/utils/load_predictor.py, 2026). ARIMA's order is chosen by AIC (Dynamo:
pmdarima's auto_arima) and it is refitted once a horizon.
"""

import importlib.util
import logging
import warnings
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import numpy as np

from control_plane.serving.load_members import Floats, last_value, with_peak
from control_plane.simulation.forecast_backtest import Predictor

WINDOW = 50
_FEWEST = 5
_KALMAN_R, _KALMAN_Q_LEVEL, _KALMAN_Q_TREND = 10.0, 1.0, 0.1
"""Of requests per interval."""
_ORDERS = tuple(product((0, 1, 2), (0, 1), (0, 1)))
_REFITS_PER_ORDER = 24


@dataclass(slots=True)
class _Windowed:
    """Remembers the last requests per interval."""

    bin_s: float
    horizon: int
    every: int = 1
    seen: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    count: int = 0

    def add(self, rate: float) -> None:
        self.seen.append(rate * self.bin_s)
        self.count += 1

    def predict(self) -> Floats:
        """As Dynamo does, the last value while there is nothing to go by."""
        counts = np.array(self.seen)
        if len(counts) < _FEWEST or float(np.ptp(counts)) == 0.0:
            return last_value(counts, self.horizon) / self.bin_s
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ahead = self._ahead(counts)
        return with_peak(np.maximum(ahead, 0.0)) / self.bin_s

    def _ahead(self, counts: Floats) -> Floats:
        raise NotImplementedError


class Constant(_Windowed):
    def _ahead(self, counts: Floats) -> Floats:
        return np.full(self.horizon, counts[-1])


class Kalman(_Windowed):
    """A local linear trend whose variances are given."""

    def _ahead(self, counts: Floats) -> Floats:
        from statsmodels.tsa.statespace.structural import UnobservedComponents

        model = UnobservedComponents(counts, "lltrend")
        found = model.filter([_KALMAN_R, _KALMAN_Q_LEVEL, _KALMAN_Q_TREND])
        return np.asarray(found.forecast(self.horizon), dtype=float)


@dataclass(slots=True)
class Arima(_Windowed):
    order: tuple[int, int, int] = (1, 0, 0)
    fitted: Any = None
    fits: int = 0

    def _ahead(self, counts: Floats) -> Floats:
        if self.fitted is None or self.count % self.horizon == 0:
            self._fit(counts)
        else:
            self.fitted = self.fitted.apply(counts)
        ahead = np.asarray(self.fitted.forecast(self.horizon), dtype=float)
        return ahead if np.isfinite(ahead).all() else np.full(self.horizon, counts[-1])

    def _fit(self, counts: Floats) -> None:
        from statsmodels.tsa.arima.model import ARIMA

        def fitted(order: tuple[int, int, int]) -> Any:
            return ARIMA(counts, order=order, enforce_stationarity=True).fit(method_kwargs={"maxiter": 50})

        if self.fits % _REFITS_PER_ORDER == 0 and len(counts) == WINDOW:
            tried = {order: fitted(order) for order in _ORDERS}
            self.order = min(tried, key=lambda order: tried[order].aic)
            self.fitted = tried[self.order]
        else:
            self.fitted = fitted(self.order)
        self.fits += len(counts) == WINDOW


class Prophet(_Windowed):
    """Refitted for every forecast, as Dynamo does: it is asked once a horizon only."""

    def _ahead(self, counts: Floats) -> Floats:
        import pandas as pd
        import prophet

        for name in ("prophet", "cmdstanpy"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        times = [datetime(2024, 1, 1) + timedelta(seconds=self.bin_s * i) for i in range(len(counts) + self.horizon)]  # noqa: DTZ001
        model = prophet.Prophet()
        model.fit(pd.DataFrame({"ds": times[: len(counts)], "y": counts}))
        found = model.predict(pd.DataFrame({"ds": times[len(counts) :]}))
        return np.asarray(found["yhat"], dtype=float)


def dynamo_predictors(bin_s: float, horizon: int) -> tuple[dict[str, Predictor], list[str]]:
    """Those that can run here by name, and a line for each that cannot."""
    found: dict[str, Predictor] = {
        "Dynamo constant": Constant(bin_s, horizon),
        "Dynamo ARIMA": Arima(bin_s, horizon),
        "Dynamo Kalman": Kalman(bin_s, horizon),
    }
    if importlib.util.find_spec("prophet") is None:
        return found, ["Dynamo's Prophet is left out: `pip install prophet` brings it"]
    return {**found, "Dynamo Prophet": Prophet(bin_s, horizon, every=horizon)}, []
