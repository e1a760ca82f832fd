"""The router where prefill and decode run on different replicas.

A prompt goes to the prefill replica with the fewest queued prompt tokens, those of the other pool behind a handicap. A
prefilled request goes to the first decode replica by number that has room for it, in its batch, its KV cache and on its
link: packed like this few replicas decode and the others can be stopped.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from control_plane.domain import InputClass, PoolName, ReplicaId, Slo
from control_plane.serving.length_predictor import LengthTable
from control_plane.serving.policy import HandOver, RoutedRequest
from control_plane.serving.routing import Candidate, Route
from control_plane.serving.rules import PhaseRule, PhaseRules

__all__ = ["PhaseRouter", "PhaseRules", "in_order_of_start"]


@dataclass(slots=True)
class _Decoding:
    requests: int = 0
    tokens: float = 0.0
    """Of their prompts, plus what each may grow."""
    link_free_s: float = 0.0


class PhaseRouter:
    """Implements ``policy.Router`` for phases apart."""

    def __init__(self, rules: PhaseRules, hand_over: HandOver, slo: Slo, kv_tokens: Mapping[PoolName, int]) -> None:
        """``kv_tokens``: of a replica, by pool."""
        self._rules, self._slo, self._kv_tokens = rules, slo, kv_tokens
        self._token_s = hand_over.bytes_per_token / hand_over.link_bytes_per_s
        self._lengths = LengthTable()
        self._queued: dict[ReplicaId, int] = {}
        self._decoding: dict[ReplicaId, _Decoding] = {}
        self._prefilling: dict[Hashable, tuple[ReplicaId, int, float]] = {}
        self._decodes: dict[Hashable, tuple[ReplicaId, float]] = {}
        self._grouped: Sequence[Candidate] = ()
        self._by_class: dict[InputClass, list[tuple[int, Candidate]]] = {name: [] for name in InputClass}
        self._decoders: Sequence[Candidate] = ()
        self._in_order: list[tuple[ReplicaId, float]] = []

    @property
    def rule(self) -> PhaseRule | None:
        """None where a subclass may answer differently."""
        if type(self) is not PhaseRouter:
            return None
        limits_s = self._slo.ttft_short_s, self._slo.ttft_medium_s, self._slo.ttft_long_s
        return PhaseRule(self._rules, limits_s, self._token_s, self._kv_tokens)

    def expected_tokens(self, input_tokens: int, max_tokens: int) -> float:
        return self._lengths.expected_tokens(input_tokens, max_tokens)

    def route(self, now_s: float, request: RoutedRequest, candidates: Sequence[Candidate]) -> Route | None:
        if candidates is not self._grouped:
            self._group(candidates)
        best: Candidate | None = None
        least = 1 << 62
        queued = self._queued
        for handicap, candidate in self._by_class[InputClass.of(request.input_tokens)]:
            ahead = queued.get(candidate.replica_id, 0) + handicap
            if ahead < least:
                best, least = candidate, ahead
        if best is None:
            return None
        tokens = request.input_tokens
        limit_s = self._slo.ttft_s(InputClass.of(tokens))
        if best.base_s + (least + tokens) * best.token_s > self._rules.hopeless_ratio * limit_s:
            best = self._overflow(tokens, best)
        replica_id = best.replica_id
        ahead = queued[replica_id] = queued.get(replica_id, 0) + tokens
        self._prefilling[request.key] = replica_id, tokens, now_s + limit_s
        return Route(best.pool, replica_id, False, best.base_s + ahead * best.token_s)

    def route_decode(
        self, now_s: float, key: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        limit_s = self._prefilled(key)
        if candidates is not self._decoders:
            self._decoders = candidates
            most = self._rules.most_kv_ratio
            self._in_order = [(c.replica_id, most * self._kv_tokens[c.pool]) for c in in_order_of_start(candidates)]
        chosen = self._decoder(now_s, input_tokens, limit_s)
        if chosen is None:
            return None
        account = self._decoding[chosen]
        tokens = input_tokens + self._rules.grown_tokens
        account.requests += 1
        account.tokens += tokens
        account.link_free_s = max(now_s, account.link_free_s) + input_tokens * self._token_s
        self._decodes[key] = chosen, tokens
        return chosen

    def _overflow(self, tokens: int, otherwise: Candidate) -> Candidate:
        """For a request that will be late wherever it goes: the replica of its pool that has most to do, so that the
        others can keep the limits of those that come next. Shared by turns, every request of an overload is late."""
        queued, fullest, most = self._queued, otherwise, -1
        for handicap, candidate in self._by_class[InputClass.of(tokens)]:
            ahead = queued.get(candidate.replica_id, 0)
            if handicap == 0 and most < ahead and ahead * candidate.token_s < self._rules.most_overflow_s:
                fullest, most = candidate, ahead
        return fullest

    def first_token(self, key: Hashable, replica_id: ReplicaId) -> None:
        pass

    def ended(self, key: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        self.dropped(key, replica_id)
        self._lengths.learn(input_tokens, output_tokens)

    def dropped(self, key: Hashable, replica_id: ReplicaId) -> None:
        self._prefilled(key)
        decoded = self._decodes.pop(key, None)
        if decoded is not None:
            account = self._decoding.get(decoded[0])
            if account is not None:
                account.requests -= 1
                account.tokens -= decoded[1]

    def forget(self, alive: Iterable[ReplicaId]) -> None:
        keep = set(alive)
        self._queued = {r: tokens for r, tokens in self._queued.items() if r in keep or tokens}
        self._decoding = {r: account for r, account in self._decoding.items() if r in keep or account.requests}

    def _prefilled(self, key: Hashable) -> float:
        """Until when the first token is due; 0 where that is not known."""
        prefilling = self._prefilling.pop(key, None)
        if prefilling is None:
            return 0.0
        self._queued[prefilling[0]] -= prefilling[1]
        return prefilling[2]

    def _decoder(self, now_s: float, input_tokens: int, limit_s: float) -> ReplicaId | None:
        """The first with room; where none has any, the least loaded of those whose link is free in time, else the one
        whose link is free first."""
        rules, accounts = self._rules, self._decoding
        needed = input_tokens + rules.grown_tokens
        latest_s = now_s + min(rules.most_link_wait_s, max(0.0, rules.link_share * (limit_s - now_s)))
        least: ReplicaId | None = None
        least_rank = (True, math.inf)
        for replica_id, room in self._in_order:
            account = accounts.get(replica_id)
            if account is None:
                account = accounts[replica_id] = _Decoding()
            free_s = account.link_free_s
            in_time = free_s <= latest_s
            if in_time and account.requests < rules.most_decoding and account.tokens + needed <= room:
                return replica_id
            rank = (False, account.tokens / room) if in_time else (True, free_s)
            if rank < least_rank:
                least, least_rank = replica_id, rank
        return least

    def _group(self, candidates: Sequence[Candidate]) -> None:
        self._grouped = candidates
        handicaps = self._rules.handicap_tokens
        self._by_class = {
            name: [(handicaps.get((candidate.pool, name), 0), candidate) for candidate in candidates]
            for name in InputClass
        }


def in_order_of_start(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Decode replicas as they are filled."""
    return sorted(candidates, key=lambda candidate: _number(candidate.replica_id))


def _number(replica_id: ReplicaId) -> tuple[int, str]:
    """Replicas are filled in the order in which they were started, where their ids end in a number."""
    tail = replica_id.rpartition("-")[2]
    return (int(tail), replica_id) if tail.isdigit() else (0, replica_id)
