"""A fleet whose policies' own time is measured, so that the simulator's speed can be told apart from theirs."""

from collections.abc import Callable, Hashable, Sequence

from control_plane.actions import SetReplicas, Step
from control_plane.domain import PoolName, ReplicaId, ReplicaView
from control_plane.serving.routing import Candidate
from control_plane.simulation.fleet import Fleet

_EVERY = 16


class MeteredFleet:
    """Times every control step, and of the many small calls one in sixteen, which then counts as sixteen."""

    def __init__(self, fleet: Fleet, clock_s: Callable[[], float]) -> None:
        self._fleet, self._clock_s = fleet, clock_s
        self.policy_s = 0.0
        self._calls = 0

    def first_replicas(self) -> Sequence[SetReplicas]:
        return self._fleet.first_replicas()

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        self._calls += 1
        if self._calls % _EVERY:
            return self._fleet.route(now_s, request_id, input_tokens, candidates)
        start_s = self._clock_s()
        chosen = self._fleet.route(now_s, request_id, input_tokens, candidates)
        self._note(start_s)
        return chosen

    def first_token(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        self._calls += 1
        if self._calls % _EVERY:
            self._fleet.first_token(request_id, replica_id)
            return
        start_s = self._clock_s()
        self._fleet.first_token(request_id, replica_id)
        self._note(start_s)

    def ended(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        self._calls += 1
        if self._calls % _EVERY:
            self._fleet.ended(request_id, replica_id, input_tokens, output_tokens)
            return
        start_s = self._clock_s()
        self._fleet.ended(request_id, replica_id, input_tokens, output_tokens)
        self._note(start_s)

    def dropped(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        self._fleet.dropped(request_id, replica_id)

    def step(self, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]]) -> Step:
        start_s = self._clock_s()
        step = self._fleet.step(now_s, replicas)
        self.policy_s += self._clock_s() - start_s
        return step

    def _note(self, start_s: float) -> None:
        """Less what reading the clock costs, read once more right now: on a busy machine that varies."""
        end_s = self._clock_s()
        self.policy_s += (end_s - start_s - (self._clock_s() - end_s)) * _EVERY
