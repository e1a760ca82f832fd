"""The profile of one real H100: fitted to its points, and a power limit that holds the clock."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from control_plane.domain import Shape
from control_plane.hardware.gpu_model import Activity
from control_plane.hardware.h100_profile import NAME, h100_fit, share_gpu
from control_plane.hardware.profiles import load_profile
from control_plane.hardware.share_fit import AllReduceFit, EngineCosts

GPU = share_gpu()
FULL = Activity(sm=2.4, mem=0.3)


def test_the_embedded_fit_is_that_of_the_measured_points(fit_h100: ModuleType, measurements: Path) -> None:
    points = fit_h100.read_points(measurements)
    everything = np.arange(len(points.tp))
    assert len(everything) == 117
    assert fit_h100.fit_points(points, everything) == h100_fit().share
    errors = fit_h100.errors_of(h100_fit().share, points, everything)
    assert errors["time"] == pytest.approx(h100_fit().errors["time_in_sample"], abs=1e-3)
    assert errors["capped_clock_mhz"] <= 60


def test_points_left_out_of_the_fit_are_within_the_stated_errors() -> None:
    errors = h100_fit().errors
    assert errors["time_held_out"] <= 0.05
    assert errors["power_held_out"] <= 0.06
    assert errors["capped_clock_mhz_held_out"] <= 60


def test_the_power_limit_holds_the_clock_of_heavy_work_and_not_of_light_work() -> None:
    held_mhz = GPU.held_mhz(FULL)
    assert 1200 < held_mhz < 1700
    below = max(freq for freq in GPU.freqs_mhz if freq <= held_mhz)
    assert GPU.power_w(below, 1, FULL) < GPU.power_limit_w
    assert GPU.power_w(below + 15, 1, FULL) == GPU.power_limit_w
    assert GPU.held_mhz(Activity(sm=0.5, mem=1.2)) == GPU.max_freq_mhz
    assert GPU.held_mhz(FULL, limit_w=500.0) < held_mhz
    assert GPU.held_mhz(FULL, limit_w=100.0) == GPU.freqs_mhz[0]


def test_a_lock_above_the_held_clock_changes_neither_time_nor_power() -> None:
    profile = load_profile(NAME)
    for tp in (2, 4):  # At TP 8 a third of a prefill waits for peers, which leaves it just below the limit.
        top, lower, low = (profile.machine(Shape(tp, freq)) for freq in (1980, 1860, 1200))
        assert top.iteration_s[2048] == lower.iteration_s[2048] < low.iteration_s[2048]
        assert top.power_w[2048] == lower.power_w[2048] == tp * 700 > low.power_w[2048]
        assert top.power_w[1] > lower.power_w[1] > low.power_w[1]


def test_small_shares_of_a_model_wait_more_and_draw_less() -> None:
    profile = load_profile(NAME)
    one_w = [profile.machine(Shape(tp, 1980)).power_w[1] / tp for tp in (2, 4, 8)]
    assert one_w == sorted(one_w, reverse=True)
    assert 300 < one_w[-1] < one_w[0] < 500


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_iterations_rise_with_tokens_and_never_with_the_clock(tp: int) -> None:
    profile = load_profile(NAME)
    tables = np.array([profile.times(tp).alpha_ps(freq) for freq in profile.freqs_mhz])
    assert np.all(np.diff(tables, axis=1) >= 0)
    assert np.all(np.diff(tables, axis=0) <= 0)
    power_w = np.array([profile.machine(Shape(tp, freq)).power_w for freq in profile.freqs_mhz])
    assert np.all(np.diff(power_w, axis=0) >= 0)


def test_peers_and_the_host_are_waited_for() -> None:
    costs = EngineCosts(0.002, 80, {2: AllReduceFit(latency_us=10, token_us=0.1, exponent=1)})
    assert costs.waiting_s(1, np.array([1.0])).tolist() == [0.002]
    assert costs.waiting_s(2, np.array([100.0])).tolist() == pytest.approx([0.002 + 160 * 20e-6])
