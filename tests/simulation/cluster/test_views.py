"""What controllers see of replicas: only what the policy needs, and as it is."""

import pytest

from control_plane.actions import Step
from control_plane.baselines.single_pool import SinglePool
from control_plane.domain import ReplicaView, Request
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.serving.policy import Needs
from control_plane.simulation.serving_cluster import Engine, SimulatedCluster

PROFILE = RooflineProfile()
BOTH = pytest.mark.parametrize("engine", ["compiled", "stepped"])
ALL = Needs(kv_use=True, queued_tokens=True, power=True, latencies=True)


class Watching(SinglePool):
    """One replica; keeps every view that it is shown, each second."""

    takes_quickest = False

    def __init__(self, needs: Needs) -> None:
        super().__init__(1)
        self._wants, self.seen = needs, list[tuple[float, ReplicaView]]()

    @property
    def needs(self) -> Needs:
        return self._wants

    def step(self, now_s, replicas):  # type: ignore[no-untyped-def]
        self.seen += [(now_s, view) for _, view in replicas]
        return Step((), now_s + 1.0)


def watched(engine: Engine, needs: Needs, *requests: Request) -> list[tuple[float, ReplicaView]]:
    fleet = Watching(needs)
    SimulatedCluster(PROFILE, 8, fleet, engine=engine).run(requests, until_s=3.5)
    return fleet.seen


@BOTH
def test_what_a_policy_does_not_need_stays_none(engine: Engine) -> None:
    _, view = watched(engine, Needs(), Request("a", 0.5, 4000, 50))[2]
    assert (view.kv_used_ratio, view.queued_tokens, view.power_w, view.ttft_p99_s) == (None, None, None, None)


@BOTH
def test_queue_cache_power_and_latencies_are_those_of_the_replica(engine: Engine) -> None:
    seen = dict(watched(engine, ALL, Request("a", 0.5, 1000, 11), Request("b", 1.999, 4000, 40)))
    idle, after_a, in_b = seen[0.0], seen[1.0], seen[2.0]
    assert (idle.kv_used_ratio, idle.queued_tokens, idle.ttft_p99_s, idle.power_w) == (0.0, 0, None, None)
    assert after_a.power_w is not None
    assert after_a.power_w > 8 * PROFILE.gpu.idle_w
    assert after_a.ttft_p99_s is not None
    assert 0.02 < after_a.ttft_p99_s < 0.2
    assert after_a.tbt_p99_s is not None
    assert 0.005 < after_a.tbt_p99_s < 0.1
    assert in_b.queued_tokens is not None
    assert 0 < in_b.queued_tokens <= 4000
    assert in_b.tightest_slack_s == pytest.approx(2.0 - 0.001)
    assert in_b.kv_used_ratio is not None
    assert in_b.kv_used_ratio > 0


@BOTH
def test_the_clock_that_is_seen_is_the_one_that_runs(engine: Engine) -> None:
    _, view = watched(engine, ALL, Request("a", 0.5, 100, 3))[0]
    assert view.freq_mhz == PROFILE.max_freq_mhz
