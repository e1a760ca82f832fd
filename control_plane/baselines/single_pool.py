"""The strong static baseline: one pool of TP8 replicas at the highest clock, sized by search (DynamoLLM's
SinglePool, sized as well as an expert who knew the trace would)."""

from collections.abc import Hashable, Sequence

from control_plane.actions import SetReplicas, Step
from control_plane.domain import PoolName, ReplicaId, ReplicaView
from control_plane.serving.routing import Candidate, RouterLedger, quickest

POOL = PoolName("single-pool")


class SinglePool:
    """``replicas`` equal replicas, never changed; each request goes to the one with the quickest first token."""

    takes_quickest = True
    """See ``simulation.fleet.QuickestFleet``; a subclass that routes otherwise says False."""

    def __init__(self, replicas: int, tp: int = 8) -> None:
        self._replicas, self._tp = replicas, tp
        self.ledger = RouterLedger()

    def first_replicas(self) -> Sequence[SetReplicas]:
        return (SetReplicas(POOL, self._tp, self._replicas, "static"),)

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        del now_s
        best = quickest(self.ledger, candidates, input_tokens)
        if best is None:
            return None
        chosen = best[1]
        self.ledger.assigned(request_id, chosen.replica_id, input_tokens)
        return chosen.pool, chosen.replica_id

    def first_token(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        self.ledger.first_token(request_id, replica_id)

    def ended(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        del input_tokens, output_tokens
        self.ledger.ended(request_id, replica_id)

    def dropped(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        self.ledger.ended(request_id, replica_id)

    def step(self, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]]) -> Step:
        del replicas
        return Step((), now_s + 3600.0)
