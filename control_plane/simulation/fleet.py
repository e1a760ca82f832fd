"""What the simulated cluster asks of policies; ``serving.hosted_policy`` answers it for every policy that runs live."""

from collections.abc import Hashable, Sequence
from typing import Protocol, runtime_checkable

from control_plane.actions import SetReplicas, Step
from control_plane.domain import PoolName, ReplicaId, ReplicaView, Role
from control_plane.serving.policy import Governor, Needs
from control_plane.serving.routing import Candidate
from control_plane.serving.rules import PhaseRule


class Fleet(Protocol):
    """The policies of a whole cluster."""

    @property
    def needs(self) -> Needs:
        """What its controllers want to see of replicas."""
        ...

    @property
    def splits_phases(self) -> bool:
        """Prefill and decode run on different replicas: ``SetReplicas`` gives each the role of one phase, ``route``
        names prefill replicas and ``route_decode`` the others."""
        ...

    def first_replicas(self) -> Sequence[SetReplicas]: ...
    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        """The governor of one new replica; None: its clock is set by ``SetFrequency`` alone."""
        ...

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        """``candidates`` is the same object until a replica comes or goes."""
        ...

    def route_decode(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        """Where the KV cache goes once the prefill replica is done with the request; None: nowhere yet. Asked only
        where phases are apart."""
        ...

    def first_token(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, ttft_s: float) -> None: ...
    def ended(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None: ...
    def dropped(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        """The replica failed with the request on it; the request will be routed anew."""
        ...

    def step(self, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]]) -> Step: ...


@runtime_checkable
class RuledFleet(Protocol):
    """A fleet with phases apart whose ``route`` and ``route_decode`` may follow from a rule alone: a simulator may
    choose for it, and tells it of arrivals, first tokens and completions in the order in which they came."""

    @property
    def routing_rule(self) -> PhaseRule | None: ...
    def admit(self, now_s: float, input_tokens: int) -> None:
        """A request came and was routed by the rule."""
        ...


@runtime_checkable
class QuickestFleet(Protocol):
    """A fleet whose ``route`` does nothing but take the candidate with the least
    ``RouterLedger.expected_ttft_s`` (of equal ones the least id), and that learns nothing from requests: a simulator
    may choose for it and tell it nothing."""

    @property
    def takes_quickest(self) -> bool: ...
