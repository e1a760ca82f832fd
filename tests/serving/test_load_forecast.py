from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.load_forecaster import LoadForecaster
from control_plane.domain import ClassLoad, InputClass, Load
from control_plane.serving.hosting import LoadHost
from control_plane.serving.load_forecast import Arrival, WindowForecaster, load_of
from control_plane.serving.policy import Needs
from control_plane.settings import ForecastSettings

SETTINGS = ForecastSettings(bin_s=10, window_bins=3)


def steady(rps: float, from_s: float, until_s: float, forecaster: WindowForecaster) -> None:
    for number in range(int((until_s - from_s) * rps)):
        forecaster.observe(Arrival(from_s + number / rps, 500, 200.0))


def test_a_steady_load_is_predicted_with_a_margin_for_noise() -> None:
    forecaster = WindowForecaster(SETTINGS, Load(), 0.0)
    steady(4.0, 0, 120, forecaster)
    assert forecaster.reactive(120).rps == pytest.approx(4.0, rel=0.05)
    upper = forecaster.predict(120)
    assert 4.0 < upper.rps < 5.5
    assert upper.total.input_tokens == pytest.approx(500)


def test_a_rise_is_seen_at_once() -> None:
    forecaster = WindowForecaster(SETTINGS, Load(), 0.0)
    steady(1.0, 0, 100, forecaster)
    steady(10.0, 100, 110, forecaster)
    assert forecaster.reactive(110).rps == pytest.approx(10.0, rel=0.05)
    assert forecaster.predict(110).rps >= 9.5


def test_the_operators_first_load_is_the_least_at_the_start_only() -> None:
    first = Load({InputClass.MEDIUM: ClassLoad(7.0, 500, 200)})
    forecaster = WindowForecaster(SETTINGS, first, 0.0)
    steady(1.0, 0, 200, forecaster)
    assert forecaster.predict(5).rps >= 7.0
    assert forecaster.predict(200).rps < 3.0


def test_silence_predicts_nothing() -> None:
    forecaster = WindowForecaster(SETTINGS, Load(), 0.0)
    steady(5.0, 0, 10, forecaster)
    assert forecaster.predict(1000).rps == 0


arrivals = st.lists(st.tuples(st.floats(0, 300), st.integers(1, 8000)), max_size=200)


@given(arrivals, st.floats(0, 400))
def test_a_forecast_is_never_negative_nor_wildly_above_what_was_seen(
    seen: list[tuple[float, int]], now_s: float
) -> None:
    forecaster = WindowForecaster(SETTINGS, Load(), 0.0)
    for at_s, tokens in sorted(seen):
        if at_s <= now_s:
            forecaster.observe(Arrival(at_s, tokens, 100.0))
    upper = forecaster.predict(now_s)
    highest = max(forecaster.reactive(now_s).rps, 1 / SETTINGS.bin_s)
    assert 0 <= upper.rps <= SETTINGS.max_growth_ratio * max(highest, len(seen) / SETTINGS.bin_s)


PORTFOLIO = ForecastSettings(bin_s=10, window_bins=3, method="portfolio", portfolio_bin_s=60, portfolio_bins=5)


def test_a_portfolio_follows_the_window_until_it_has_seen_two_horizons() -> None:
    first = load_of([(3000, 200)] * 40, 10.0)
    needs = Needs()
    hosts = [LoadHost(needs, settings, first, 0.0) for settings in (SETTINGS, PORTFOLIO)]
    for at in range(1, 600):
        for host in hosts:
            host.arrived([Arrival(float(at), 3000, 200.0)])
        window, portfolio = (host.forecast(float(at), with_past=False) for host in hosts)
        assert window.upper == portfolio.upper


def test_a_portfolio_plans_for_the_next_bins_instead_of_the_last_peak() -> None:
    """After a burst that is over the window holds its peak for a while; the portfolio sees that it is rare."""
    hosts = [LoadHost(Needs(), settings, Load(), 0.0) for settings in (SETTINGS, PORTFOLIO)]
    for at in range(1, 7200):
        count = 20 if 5400 <= at < 5410 else 1
        for host in hosts:
            host.arrived([Arrival(float(at), 3000, 200.0)] * count)
            if at % 60 == 0:
                host.forecast(float(at), with_past=False)
                fit = host.fit_due()
                if fit is not None:
                    host.adopt(fit.solve())
    window, portfolio = (host.forecast(6000.0, with_past=False).upper for host in hosts)
    assert portfolio.rps < window.rps
    assert portfolio.rps >= 1.0
    assert set(portfolio.by_class) == set(window.by_class)


def test_a_load_forecaster_fits_beside_its_loop_what_a_host_fits_in_it() -> None:
    now_s = 0.0
    random = np.random.default_rng(1)
    with ThreadPoolExecutor(1) as solver:
        forecaster = LoadForecaster(Needs(), PORTFOLIO, Load(), lambda: now_s, solver)
        host = LoadHost(Needs(), PORTFOLIO, Load(), now_s)
        fit, fits = None, 0
        for minute in range(80):
            ages = np.sort(random.uniform(0, 60, 40))[::-1].tolist()
            now_s = 60.0 * (minute + 1)
            forecaster.observe([(age, 3000, 200.0) for age in ages])
            host.arrived(Arrival(now_s - age, 3000, 200.0) for age in ages)
            if fit is not None:
                host.adopt(fit.solve())
            fit = host.fit_due()
            fits += fit is not None
            # The solver has one thread: what was submitted before this is done after it.
            solver.submit(int).result()
            assert forecaster.forecast().upper == host.forecast(now_s, with_past=False).upper
    assert fits >= 2
