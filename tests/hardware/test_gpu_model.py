import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.hardware.gpu_model import H100_SXM, IDLE, Activity, GpuSpec, GpuState

BUSY = Activity(sm=1.0, mem=0.25)
S = 10**9


def fresh(contexts: int = 1) -> GpuState:
    return GpuState.at_default(H100_SXM, 0).with_contexts(H100_SXM, 0, contexts)


def test_idle_power_with_and_without_a_context() -> None:
    assert fresh(0).power_w(H100_SXM) == 84.0
    assert fresh(1).power_w(H100_SXM) == 127.0


def test_energy_is_power_times_time() -> None:
    assert fresh(0).advance(H100_SXM, 10 * S).energy_j == pytest.approx(840.0)
    busy = fresh().with_activity(H100_SXM, 0, BUSY).advance(H100_SXM, 2 * S)
    assert busy.energy_j == pytest.approx(2 * H100_SXM.power_w(1980, 1, BUSY))


def test_a_clock_takes_its_settling_time() -> None:
    locked = fresh().locked(H100_SXM, 0, 1200)
    assert locked.advance(H100_SXM, H100_SXM.settle_ns - 1).freq_mhz == 1980
    assert locked.advance(H100_SXM, H100_SXM.settle_ns).freq_mhz == 1200


def test_energy_over_a_settling_clock_is_the_sum_of_both_parts() -> None:
    state = fresh().with_activity(H100_SXM, 0, BUSY).locked(H100_SXM, 0, 990)
    settle_s = H100_SXM.settle_ns / S
    expected = H100_SXM.power_w(1980, 1, BUSY) * settle_s + H100_SXM.power_w(990, 1, BUSY) * (1 - settle_s)
    assert state.advance(H100_SXM, S).energy_j == pytest.approx(expected)


def test_a_lock_rounds_down_to_a_supported_clock() -> None:
    assert fresh().locked(H100_SXM, 0, 1203).target_mhz == 1200
    assert fresh().locked(H100_SXM, 0, 1).target_mhz == H100_SXM.freqs_mhz[0]


def test_power_never_exceeds_the_limit() -> None:
    small = GpuSpec("small", (500, 1000), 10, 20, 100, 500, 600, 0.7, 300.0, 0)
    assert small.power_w(1000, 1, Activity(1, 1)) == 300.0


def test_clocks_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        GpuSpec("odd", (1000, 500), 10, 20, 100, 500, 600, 0.7, 300.0, 0)


@given(st.lists(st.integers(0, 3 * S), min_size=1, max_size=20))
def test_energy_does_not_depend_on_how_often_it_is_looked_at(times: list[int]) -> None:
    start = fresh().with_activity(H100_SXM, 0, BUSY).locked(H100_SXM, S // 7, 1200)
    stepped = start
    for now_ns in sorted(times):
        stepped = stepped.advance(H100_SXM, now_ns)
    end = 4 * S
    assert stepped.advance(H100_SXM, end).energy_j == pytest.approx(start.advance(H100_SXM, end).energy_j)


@given(st.integers(-5 * S, 5 * S))
def test_energy_never_runs_backwards(now_ns: int) -> None:
    state = fresh().advance(H100_SXM, S)
    assert state.advance(H100_SXM, now_ns).energy_j >= state.energy_j


def test_power_rises_with_the_clock_when_busy_and_not_when_idle() -> None:
    powers = [H100_SXM.power_w(freq, 1, BUSY) for freq in H100_SXM.freqs_mhz]
    assert powers == sorted(powers)
    assert powers[-1] > 1.5 * H100_SXM.power_w(1200, 1, BUSY)
    assert len({H100_SXM.power_w(freq, 1, IDLE) for freq in H100_SXM.freqs_mhz}) == 1


def test_the_public_anchor_at_full_clock() -> None:
    """426 W at batch 1 and 629 W near saturation of decoding (Llama-3-70B, TP4, H100), within 4 %."""
    from control_plane.hardware.energy_profile import activity_of

    for batch in (1, 16, 64, 117):
        published = 426 + 203 * (1 - 2.718281828 ** (-batch / 117))
        assert H100_SXM.power_w(1980, 1, activity_of(batch)) == pytest.approx(published, rel=0.04)
