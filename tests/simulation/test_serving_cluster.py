from itertools import pairwise

import pytest

from control_plane.baselines.single_pool import SinglePool
from control_plane.domain import Request, Slo
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.settings import parse_settings
from control_plane.simulation.serving_cluster import SimulatedCluster
from control_plane.simulation.traces import demo_shape, synthetic_conversation
from control_plane.simulation.what_if import simulate_single_pool, simulate_wattray

PROFILE = RooflineProfile()
SLO = Slo()
QUICK = parse_settings(
    {
        "cadence": {"cluster_s": 20, "pool_s": 10, "frequency_s": 2},
        "sharding": {"scale_down_hold_s": 20, "startup_s": 5},
        "forecast": {"bin_s": 5, "window_bins": 4},
    }
)


def test_an_idle_cluster_is_charged_for_every_gpu() -> None:
    outcome = SimulatedCluster(PROFILE, 16, SinglePool(1)).run((), until_s=100.0)
    assert outcome.energy_j == pytest.approx(100 * (8 * 84 + 8 * 127))


def test_one_request_alone_takes_what_the_tables_say() -> None:
    request = Request("r0", 1.0, 300, 5)
    outcome = SimulatedCluster(PROFILE, 8, SinglePool(1)).run((request,))
    times = PROFILE.times(8)
    prefill_ps = times.alpha_ps(1980)[300] + times.attention_ps(1980) * (300 * 301 // 2)
    decode_ps = sum(times.alpha_ps(1980)[1] + times.context_ps * (301 + n) for n in range(4))
    [record] = outcome.records
    assert record.ttft_s == pytest.approx(prefill_ps / 1e12, rel=1e-9)
    assert record.finished_s - 1.0 == pytest.approx((prefill_ps + decode_ps) / 1e12, rel=1e-9)


def test_the_same_trace_gives_the_same_run() -> None:
    trace = synthetic_conversation(40, seed=2)
    assert simulate_wattray(trace, QUICK, PROFILE) == simulate_wattray(trace, QUICK, PROFILE)


def test_nothing_is_lost_and_power_adds_up_to_energy() -> None:
    trace = synthetic_conversation(100, seed=4, shape=demo_shape)
    outcome = simulate_wattray(trace, QUICK, PROFILE)
    assert len(outcome.records) == len(trace)
    assert outcome.lost == 0
    samples = outcome.samples
    assert samples[-1].at_s == outcome.ends_s
    assert samples[-1].energy_j == outcome.energy_j
    integral_j = sum(after.power_w * (after.at_s - before.at_s) for before, after in pairwise(samples))
    assert integral_j == pytest.approx(outcome.energy_j, rel=1e-12)


@pytest.mark.parametrize("until_s", [0.0, 0.4, 9.0, 9.4])
def test_the_samples_hold_the_energy_up_to_the_last_moment(until_s: float) -> None:
    for sample_s in (1.0, 0.7, 100.0):
        outcome = SimulatedCluster(PROFILE, 16, SinglePool(1), sample_s=sample_s).run((), until_s=until_s)
        assert [sample.at_s for sample in outcome.samples] == sorted({sample.at_s for sample in outcome.samples})
        assert outcome.samples[-1].energy_j == outcome.energy_j == pytest.approx(until_s * (8 * 84 + 8 * 127))
        watts = [(sample.at_s, sample.power_w) for sample in outcome.samples[1:]]
        assert all(power_w == pytest.approx(8 * 84 + 8 * 127) for _, power_w in watts)


def test_the_baseline_is_the_fewest_replicas_that_hold_the_slo() -> None:
    trace = synthetic_conversation(120, seed=1, scale=1.6)
    replicas, outcome = simulate_single_pool(trace, PROFILE, 64, SLO)
    assert outcome.slo_attainment(SLO) >= 0.99
    fewer = SimulatedCluster(PROFILE, 64, SinglePool(replicas - 1)).run(trace)
    assert fewer.slo_attainment(SLO) < 0.99


def test_a_baseline_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 8 GPUs; there are 4"):
        simulate_single_pool(synthetic_conversation(10), PROFILE, 4, SLO)


@pytest.mark.parametrize("seed", [1, 2])
def test_wattray_uses_less_than_the_static_pool_at_the_same_slo(seed: int) -> None:
    trace = synthetic_conversation(600, seed=seed, shape=demo_shape)
    ours = simulate_wattray(trace, QUICK, PROFILE)
    _, static = simulate_single_pool(trace, PROFILE, 32, SLO, until_s=ours.ends_s)
    assert ours.slo_attainment(SLO) >= 0.985
    assert ours.energy_j < 0.9 * static.energy_j
