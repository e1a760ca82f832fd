"""Sizing, scores, phases on different replicas, failures."""

from collections.abc import Hashable

import pytest

from control_plane.actions import SetReplicas
from control_plane.baselines.single_pool import POOL, SinglePool
from control_plane.domain import ReplicaId, Request, Slo
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.scoring import OVER_8192, score
from control_plane.simulation.serving_cluster import ClusterTimes, NodeFailure, SimulatedCluster
from control_plane.simulation.sizing import SloUnreachableError, Watch, fewest_replicas
from control_plane.simulation.trace import Trace
from control_plane.simulation.traces import synthetic_trace

PROFILE = RooflineProfile()
TABLES = ShapeTables.of(PROFILE, 8)
SLO = Slo()


def simulate(trace: Trace, replicas: int, watch: Watch | None = None) -> Simulated:
    return SimulatedCluster(PROFILE, None, SinglePool(replicas)).run(trace, watch=watch)


@pytest.mark.parametrize("kind", ["conv", "code"])
def test_the_fewest_replicas_hold_the_slo_and_one_fewer_does_not(kind: str) -> None:
    trace = synthetic_trace(kind, 0.1, 4.0, seed=2)
    found = fewest_replicas(trace, TABLES, SLO, simulate)
    assert found.outcome.slo_attainment(SLO) >= 0.99
    assert found.replicas > 1
    assert simulate(trace, found.replicas - 1).slo_attainment(SLO) < 0.99


def test_an_slo_that_no_replica_holds_is_refused() -> None:
    trace = Trace.of([Request("r0", 0.0, 60_000, 5)])
    with pytest.raises(SloUnreachableError, match=r"100.0% of the requests break their SLO even alone on a TP8"):
        fewest_replicas(trace, TABLES, SLO, simulate)


def test_energy_of_requests_sums_to_the_meter_and_long_inputs_are_counted_apart() -> None:
    trace = Trace.of([Request("r0", 0.0, 100, 20), Request("r1", 0.1, 9000, 400), Request("r2", 0.2, 500, 1)])
    outcome = simulate(trace, 1)
    result = score(outcome, SLO)
    kinds = {name: line.requests for name, line in result.by_class.items()}
    assert kinds == {"SS": 1, "MS": 1, "LL": 1, OVER_8192: 1}
    assert outcome.request_energy_j.sum() == pytest.approx(outcome.energy_j, rel=1e-11)
    spent_j = sum(line.energy_j for name, line in result.by_class.items() if name != OVER_8192)
    assert spent_j == pytest.approx(outcome.energy_j, rel=1e-11)


def test_queue_time_is_counted_from_arrival_to_the_first_chunk() -> None:
    trace = Trace.of([Request("r0", 0.0, 2048, 2), Request("r1", 0.001, 100, 2)])
    outcome = simulate(trace, 1)
    times = PROFILE.times(8)
    first_ps = times.alpha_ps(1980)[2048] + times.attention_ps(1980) * (2048 * 2049 // 2)
    assert outcome.queue_s[0] == 0
    assert outcome.queue_s[1] == pytest.approx(first_ps / 1e12 - 0.001)


def test_a_failed_node_takes_its_replicas_and_their_requests_start_over() -> None:
    class Rising(SinglePool):
        def dropped(self, request_id: Hashable, replica_id: ReplicaId) -> None:
            dropped.append(request_id)
            super().dropped(request_id, replica_id)

    dropped: list[Hashable] = []
    trace = Trace.of([Request(f"r{i}", 0.1 * i, 500, 300) for i in range(20)])
    cluster = SimulatedCluster(PROFILE, 16, Rising(2), failures=[NodeFailure(1.0, 0, 5.0)])
    outcome = cluster.run(trace)
    assert dropped
    assert outcome.lost == 0
    assert outcome.done.all()
    assert {outcome.replicas[number][1] for number in outcome.columns.replica} == {"single-pool-tp8-2"} | (
        {"single-pool-tp8-1"} if min(outcome.columns.finished_ps) < 10**12 else set()
    )


def test_a_start_on_a_node_that_holds_the_weights_is_quick() -> None:
    times = ClusterTimes.for_startup(420.0)
    assert (times.cold_start_s, times.weights_here_start_s) == (420.0, 33.0)
    assert ClusterTimes.for_startup(5.0).weights_here_start_s == 5.0


def test_starting_and_draining_are_billed() -> None:
    class Once(SinglePool):
        def step(self, now_s, replicas):  # type: ignore[no-untyped-def]
            step = super().step(now_s, replicas)
            wanted = 2 if now_s < 10 else 1
            return type(step)((SetReplicas(POOL, 8, wanted, ""),), now_s + 5.0)

    outcome = SimulatedCluster(PROFILE, None, Once(1), times=ClusterTimes(100.0, 100.0)).run((), until_s=20.0)
    assert outcome.energy_j == pytest.approx(8 * 127 * (20 + 10))
    assert outcome.reconfigurations == 2
