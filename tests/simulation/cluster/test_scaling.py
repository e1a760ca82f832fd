from control_plane.actions import SetReplicas, Step
from control_plane.baselines.single_pool import POOL, SinglePool
from control_plane.domain import ReplicaId, ReplicaState, Request
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.simulation.cluster.gpu_slots import GpuSlots
from control_plane.simulation.cluster.times import ClusterTimes
from control_plane.simulation.serving_cluster import SimulatedCluster


class Shrinking(SinglePool):
    """Three replicas, then one; the middle one and one that never was are to stop first."""

    takes_quickest = False

    def step(self, now_s, replicas):  # type: ignore[no-untyped-def]
        first = (ReplicaId("single-pool-tp8-2"), ReplicaId("gone"))
        action = SetReplicas(POOL, 8, 2 if now_s >= 5 else 3, "", stop_first=first)
        self.seen = [view.replica_id for _, view in replicas]
        return Step((action,), now_s + 5.0)


def test_the_replica_that_is_named_stops_first_though_it_is_the_busiest() -> None:
    fleet = Shrinking(3)
    fleet.route = lambda now_s, request_id, input_tokens, candidates: (  # type: ignore[method-assign]
        POOL,
        ReplicaId("single-pool-tp8-2"),
    )
    fleet.first_token = fleet.ended = lambda *_: None  # type: ignore[method-assign, assignment]
    outcome = SimulatedCluster(RooflineProfile(), None, fleet).run([Request("a", 4.9, 100, 100)], 21.0)
    assert outcome.done.all()
    assert fleet.seen == ["single-pool-tp8-1", "single-pool-tp8-3"]


class Growing(SinglePool):
    """No replica at first, then two of four GPUs each, then three: all on one node."""

    takes_quickest = False

    def __init__(self) -> None:
        super().__init__(1)
        self.ready_s: dict[ReplicaId, float] = {}

    def first_replicas(self):  # type: ignore[no-untyped-def]
        return []

    def step(self, now_s, replicas):  # type: ignore[no-untyped-def]
        for _, view in replicas:
            if view.state is ReplicaState.READY:
                self.ready_s.setdefault(view.replica_id, now_s)
        return Step((SetReplicas(POOL, 2, 2 if now_s < 150 else 3, ""),), now_s + 10.0)


def test_only_a_replica_that_has_loaded_the_weights_makes_the_next_start_quick() -> None:
    fleet = Growing()
    SimulatedCluster(RooflineProfile(), 8, fleet, times=ClusterTimes(100.0, 20.0)).run([], 300.0)
    assert list(fleet.ready_s.values()) == [100.0, 100.0, 170.0]


def test_weights_leave_a_node_with_the_last_replica_that_loaded_them() -> None:
    slots = GpuSlots(8)
    first, second = slots.take(4), slots.take(4)
    assert first is not None
    assert second is not None
    slots.loaded(first)
    assert slots.hold_weights(second)
    slots.give_back(first, was_loaded=True)
    assert not slots.hold_weights(second)
    slots.give_back(second, was_loaded=False)
    assert slots.held == 0
