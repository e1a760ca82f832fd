from control_plane.actions import SetReplicas, Step
from control_plane.baselines.single_pool import POOL, SinglePool
from control_plane.domain import ReplicaId, Request
from control_plane.hardware.energy_profile import RooflineProfile
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
