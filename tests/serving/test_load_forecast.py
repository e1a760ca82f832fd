import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain import ClassLoad, InputClass, Load
from control_plane.serving.load_forecast import Arrival, WindowForecaster
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
