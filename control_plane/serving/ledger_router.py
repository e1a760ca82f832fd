"""What routers have in common that account for every request in a ledger and learn output lengths."""

from collections.abc import Hashable, Iterable, Sequence

from control_plane.domain import ReplicaId
from control_plane.serving.length_predictor import LengthTable
from control_plane.serving.routing import Candidate, RouterLedger


class LedgerRouter:
    """All of ``policy.Router`` for combined replicas but ``route``, which subclasses add."""

    def __init__(self) -> None:
        self._ledger = RouterLedger()
        self._lengths = LengthTable()

    def expected_tokens(self, input_tokens: int, max_tokens: int) -> float:
        return self._lengths.expected_tokens(input_tokens, max_tokens)

    def route_decode(
        self, now_s: float, key: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        raise NotImplementedError("this router serves combined replicas only: it hands nothing over")

    def first_token(self, key: Hashable, replica_id: ReplicaId) -> None:
        self._ledger.first_token(key, replica_id)

    def ended(self, key: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        self._ledger.ended(key, replica_id)
        self._lengths.learn(input_tokens, output_tokens)

    def dropped(self, key: Hashable, replica_id: ReplicaId) -> None:
        self._ledger.ended(key, replica_id)

    def forget(self, alive: Iterable[ReplicaId]) -> None:
        self._ledger.forget(alive)
