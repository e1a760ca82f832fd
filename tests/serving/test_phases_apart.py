"""The policy with phases apart as a whole: what it is built for, and what it saves on a synthetic hour."""

import pytest

from control_plane.domain import Load, Role
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.hardware.profiles import load_profile
from control_plane.serving.hosted_policy import HostedPolicy
from control_plane.serving.policies.combined import CombinedPolicy
from control_plane.serving.policies.phases_apart import DECODE, LONG, SHORT, PhasesApart
from control_plane.serving.policies.registry import make_policy
from control_plane.serving.policies.sized_pool import SizedPoolPolicy
from control_plane.serving.policy import GpuBudgetError, HandOver, NoHandOverError, Site
from control_plane.settings import ForecastSettings, Settings
from control_plane.simulation.serving_cluster import ClusterTimes, SimulatedCluster
from control_plane.simulation.trace import Trace
from control_plane.simulation.traces import synthetic_conversation
from control_plane.simulation.what_if import hosted_policy, simulate_single_pool

PROFILE = RooflineProfile()
HAND_OVER = HandOver(327_680, 50e9)


def site(gpus: int = 64, hand_over: HandOver | None = HAND_OVER) -> Site:
    return Site(Settings(), PROFILE, gpus, 0.0, Load(), hand_over=hand_over)


def test_wattray_serves_phases_apart_where_engines_can_and_there_is_more_than_a_node() -> None:
    assert isinstance(make_policy("wattray", site()), PhasesApart)
    assert isinstance(make_policy("wattray", site(gpus=8)), SizedPoolPolicy)
    assert isinstance(make_policy("wattray", site(gpus=11)), SizedPoolPolicy)
    assert isinstance(make_policy("wattray", site(gpus=12)), PhasesApart)
    with pytest.raises(GpuBudgetError, match="at least 12 work"):
        make_policy("phases-apart", site(gpus=11))
    assert isinstance(make_policy("wattray", site(hand_over=None)), CombinedPolicy)
    with pytest.raises(NoHandOverError, match="policy wattray"):
        make_policy("phases-apart", site(hand_over=None))


@pytest.mark.parametrize("name", ["llama2-70b-h100", "llama2-70b-h100-current", "llama2-70b-h100-2023", "llama8b-h200"])
def test_every_profile_has_replicas_for_every_pool(name: str) -> None:
    profile = load_profile(name)
    policy = PhasesApart(Site(Settings(), profile, 64, 0.0, Load(), hand_over=HAND_OVER), HAND_OVER)
    started = {action.pool: action for action in HostedPolicy(policy, ForecastSettings(), 64).first_replicas()}
    assert set(started) == {SHORT, LONG, DECODE}
    for action in started.values():
        assert action.tp in profile.tps
        assert policy.governor(action.pool, action.tp, action.role) is not None
    assert started[DECODE].role is Role.DECODE


def test_a_busy_synthetic_quarter_of_an_hour_is_served_in_time_with_much_less_energy() -> None:
    requests = synthetic_conversation(900.0, seed=3, scale=2.0)
    trace, settings = Trace.of(requests), Settings()
    replicas, baseline = simulate_single_pool(trace, PROFILE, 512, settings.slo.slo())
    fleet = hosted_policy("wattray", trace, settings, PROFILE, 128, 0.0)
    cluster = SimulatedCluster(
        PROFILE, 128, fleet, idle_gpus=0, times=ClusterTimes.for_startup(420.0), slo=settings.slo.slo()
    )
    ours = cluster.run(trace)
    assert ours.lost == 0
    assert ours.slo_attainment(settings.slo.slo()) >= 0.99
    held_j = baseline.energy_j - baseline.idle_gpu_energy_j
    assert ours.energy_j < 0.8 * held_j, (replicas, ours.energy_j, held_j)
