"""What the simulated cluster asks of policies; the live ones answer it too."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from control_plane.actions import SetReplicas, Step
from control_plane.domain import PoolName, ReplicaId, ReplicaView, Role
from control_plane.serving.routing import Candidate


class Fleet(Protocol):
    """The policies of a whole cluster."""

    def first_replicas(self) -> Sequence[SetReplicas]: ...
    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        """``candidates`` is the same object until a replica comes or goes."""
        ...

    def first_token(self, request_id: Hashable, replica_id: ReplicaId) -> None: ...
    def ended(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None: ...
    def dropped(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        """The replica failed with the request on it; the request will be routed anew."""
        ...

    def step(self, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]]) -> Step: ...


@runtime_checkable
class QuickestFleet(Protocol):
    """A fleet whose ``route`` does nothing but take the candidate with the least
    ``RouterLedger.expected_ttft_s`` (of equal ones the least id), and that learns nothing from requests: a simulator
    may choose for it and tell it nothing."""

    @property
    def takes_quickest(self) -> bool: ...


@runtime_checkable
class PhaseSplitFleet(Protocol):
    """A fleet that prefills and decodes on different replicas; ``route`` then names the prefill replica."""

    @property
    def roles(self) -> Mapping[PoolName, Role]: ...
    def route_decode(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        """Where the KV cache goes once the prefill replica is done with the request; None: nowhere yet."""
        ...
