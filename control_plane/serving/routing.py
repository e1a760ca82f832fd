"""Which pool and which replica a request goes to: the shortest expected time to its first token.

The ledger is the router's own account of what it sent where, so it is current to the request.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from control_plane.domain import InputClass, PoolName, ReplicaId, Slo
from control_plane.settings import Settings


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that may take requests now, and how fast it prefills at its highest clock."""

    replica_id: ReplicaId
    pool: PoolName
    token_s: float
    base_s: float


@dataclass(slots=True)
class _Account:
    prefill_tokens: int = 0
    decoding: int = 0
    in_prefill: dict[Hashable, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes, and whether it left its own pool for it."""

    pool: PoolName
    replica_id: ReplicaId
    spilled: bool
    expected_ttft_s: float


class RouterLedger:
    """What each replica still has to prefill and how many requests it decodes."""

    def __init__(self) -> None:
        self._accounts: dict[ReplicaId, _Account] = {}

    def assigned(self, key: Hashable, replica_id: ReplicaId, input_tokens: int) -> None:
        account = self._accounts.setdefault(replica_id, _Account())
        account.in_prefill[key] = input_tokens
        account.prefill_tokens += input_tokens

    def first_token(self, key: Hashable, replica_id: ReplicaId) -> None:
        account = self._accounts[replica_id]
        account.prefill_tokens -= account.in_prefill.pop(key)
        account.decoding += 1

    def ended(self, key: Hashable, replica_id: ReplicaId) -> None:
        """The request completed, failed or was cancelled, before or after its first token."""
        account = self._accounts[replica_id]
        if key in account.in_prefill:
            account.prefill_tokens -= account.in_prefill.pop(key)
        else:
            account.decoding -= 1

    def forget(self, alive: Iterable[ReplicaId]) -> None:
        """Drop the accounts of replicas that are gone and owe nothing."""
        keep = set(alive)
        idle = [r for r, a in self._accounts.items() if r not in keep and not a.in_prefill and not a.decoding]
        for replica_id in idle:
            del self._accounts[replica_id]

    def expected_ttft_s(self, candidate: Candidate, input_tokens: int) -> float:
        """Prefill backlog and own prompt at this replica's speed; every decoder takes its token first."""
        account = self._accounts.get(candidate.replica_id)
        ahead = 0 if account is None else account.prefill_tokens + account.decoding
        return candidate.base_s + (ahead + input_tokens) * candidate.token_s


def route(
    settings: Settings,
    slo: Slo,
    ledger: RouterLedger,
    candidates: Mapping[PoolName, Iterable[Candidate]],
    input_tokens: int,
) -> Route | None:
    """The own pool's quickest replica; another pool's only where the own one has none or would break the TTFT
    limit and the other would be quicker. None where no replica runs anywhere."""
    input_class = InputClass.of(input_tokens)
    home = settings.pool_of(input_class)
    best = quickest(ledger, candidates.get(home, ()), input_tokens)
    if best is not None and best[0] <= slo.ttft_s(input_class):
        return Route(home, best[1].replica_id, False, best[0])
    spill = settings.pool_settings(home).spill_to
    others = [PoolName(spill)] if spill is not None else []
    if best is None:
        others += [pool for pool in candidates if pool not in (home, spill)]
    for pool in others:
        other = quickest(ledger, candidates.get(pool, ()), input_tokens)
        if other is not None and (best is None or other[0] < best[0]):
            return Route(pool, other[1].replica_id, True, other[0])
    return None if best is None else Route(home, best[1].replica_id, False, best[0])


def quickest(
    ledger: RouterLedger, candidates: Iterable[Candidate], input_tokens: int
) -> tuple[float, Candidate] | None:
    """The least expected time to a first token, in s, and whose it is; of equal ones the least id."""
    best: tuple[float, Candidate] | None = None
    expected_ttft_s = ledger.expected_ttft_s
    for candidate in candidates:
        ttft_s = expected_ttft_s(candidate, input_tokens)
        if best is None or ttft_s < best[0] or (ttft_s == best[0] and candidate.replica_id < best[1].replica_id):
            best = ttft_s, candidate
    return best
