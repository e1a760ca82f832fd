"""DynamoLLM's nine pools: what is handed up, what each baseline may change, and the whole system in virtual time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.actions import SetFrequency, SetGpuBudget, SetReplicas
from control_plane.domain import REQUEST_TYPES, ClassLoad, InputClass, Load, RequestType, Shape
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.serving.policies.registry import POLICIES
from control_plane.serving.type_pools import WeeklyTemplate, larger_first, of_type, pool_name, shares
from control_plane.settings import Settings
from control_plane.simulation.serving_cluster import ClusterTimes, Simulated, SimulatedCluster
from control_plane.simulation.traces import synthetic_trace
from control_plane.simulation.what_if import hosted_policy

PROFILE = RooflineProfile()
FULL = Shape(8, PROFILE.freqs_mhz[-1])
TRACE = synthetic_trace("conv", 0.2, 3.0, seed=5)

lengths = {InputClass.SHORT: (20, 250), InputClass.MEDIUM: (260, 1000), InputClass.LONG: (1100, 6000)}
loads = st.fixed_dictionaries(
    {
        name: st.builds(ClassLoad, st.floats(0.0, 60.0), st.floats(*span), st.floats(5.0, 600.0))
        for name, span in lengths.items()
    }
).map(Load)


@settings(max_examples=40, deadline=None)
@given(loads)
def test_every_request_has_a_pool_and_no_pool_more_than_it_carries(load: Load) -> None:
    found = shares(PROFILE, load)
    assert sum(share.load.rps for share in found.values()) == pytest.approx(load.rps)
    for name in InputClass:
        given_rps = sum(share.load.only([name]).rps for share in found.values())
        assert given_rps == pytest.approx(load.only([name]).rps)
    for share in found.values():
        if share.load.rps > 1e-6:
            assert share.servers * PROFILE.max_load(FULL, share.load) >= 1 - 1e-6
    largest = found[pool_name(REQUEST_TYPES[-1])]
    assert largest.kept == 1.0 or largest.load.rps < 1e-6


def test_a_pool_that_is_not_full_hands_its_rest_up() -> None:
    load = Load({InputClass.SHORT: ClassLoad(1.0, 100.0, 50.0)})
    found = shares(PROFILE, load)
    assert found[pool_name(RequestType.parse("SS"))].servers == 0
    assert sum(share.servers for share in found.values()) == 1
    assert of_type(load, RequestType.parse("SL")) == Load()


def test_requests_go_on_to_larger_pools_and_to_smaller_ones_last() -> None:
    order = larger_first(RequestType.parse("ML"))
    assert order[0] == "ml"
    assert order[-1] == "ss"
    assert sorted(order) == sorted(pool_name(kind) for kind in REQUEST_TYPES)
    assert order.index(pool_name(RequestType.parse("LL"))) < order.index(pool_name(RequestType.parse("MM")))


def test_a_week_later_the_same_half_hour_is_expected_again() -> None:
    template = WeeklyTemplate()
    much = Load({InputClass.SHORT: ClassLoad(50.0, 100.0, 50.0)})
    little = Load({InputClass.SHORT: ClassLoad(1.0, 100.0, 50.0)})
    assert template.predict(0.0, little) == little
    assert template.predict(1800.0, much) == much
    assert template.predict(3600.0, little) == little
    assert template.predict(7 * 86400.0, little) == much, "the half-hour after this one was busy last week"


def run(name: str) -> Simulated:
    fleet = hosted_policy(name, TRACE, Settings(), PROFILE, 256, 0.0)
    return SimulatedCluster(PROFILE, 256, fleet, times=ClusterTimes.for_startup(60.0), idle_gpus=0).run(TRACE)


@pytest.mark.parametrize(
    ("name", "clocks", "smaller"),
    [
        ("dynamollm", True, True),
        ("multi-pool", False, False),
        ("scale-inst", False, False),
        ("scale-shard", False, True),
        ("scale-freq", True, False),
    ],
)
def test_each_baseline_changes_what_it_is_named_after(name: str, clocks: bool, smaller: bool) -> None:
    outcome = run(name)
    assert outcome.lost == 0
    assert outcome.slo_attainment(Settings().slo.slo()) > 0.95
    actions = [action for _, action in outcome.decisions]
    assert any(isinstance(action, SetFrequency) for action in actions) == clocks
    tps = {int(name.rpartition("-tp")[2].partition("-")[0]) for _, name in outcome.replicas}
    assert (tps != {8}) == smaller
    assert not [a for a in actions if isinstance(a, SetReplicas | SetGpuBudget) and a.pool not in ALL]


ALL = {pool_name(kind) for kind in REQUEST_TYPES}


def test_the_published_system_is_in_the_registry_with_its_baselines() -> None:
    assert {"dynamollm", "multi-pool", "scale-inst", "scale-shard", "scale-freq"} <= set(POLICIES)
