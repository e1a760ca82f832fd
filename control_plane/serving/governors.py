"""Governors: the lowest clock at which a replica's queue and batch still keep their limits.

Queue-following: a governor looks at the deadlines of what is queued here and now, not at a load. It sits inside the
replica, so a look takes microseconds and a burst is answered within a settling time.
"""

import math
from collections.abc import Sequence

from control_plane.domain import QueueView
from control_plane.serving.clock_costs import ClockCosts
from control_plane.serving.rules import DecodeRule, LimitShares, PrefillRule

__all__ = ["DecodeGovernor", "LimitShares", "PrefillGovernor"]


class PrefillGovernor:
    """The lowest clock at which every queued prompt is done within ``share(limit)`` of its TTFT limit: all that is
    ahead of it, its own tokens and its own attention, less half a settling time."""

    def __init__(self, costs: Sequence[ClockCosts], least_mhz: int, shares: LimitShares, settle_s: float) -> None:
        self._costs = tuple(cost for cost in costs if cost.freq_mhz >= least_mhz) or (costs[-1],)
        self._shares, self._settle_s = shares, settle_s

    @property
    def rule(self) -> PrefillRule | None:
        """None where a subclass may answer differently."""
        return PrefillRule(self._costs, self._shares, self._settle_s) if type(self) is PrefillGovernor else None

    def look(self, queue: QueueView, now_s: float) -> int:
        tokens, deadlines = 0, []
        for prompt in queue.queued:
            tokens += prompt.left_tokens
            limit_s = self._shares.of(prompt.input_tokens) * prompt.ttft_limit_s
            deadlines.append((tokens, prompt.input_tokens, prompt.arrival_s + limit_s - now_s - self._settle_s / 2))
        for cost in self._costs[:-1]:
            if all(cost.prefill_s(ahead) + cost.own_attention_s(own) <= left_s for ahead, own, left_s in deadlines):
                return cost.freq_mhz
        return self._costs[-1].freq_mhz


class DecodeGovernor:
    """The lowest clock at which the next iteration takes no longer than ``limit_s``, everybody who waits included.
    As a batch fills up from ``full_at`` requests to ``most``, the clock rises to the highest: it is about to have no
    room for the next."""

    def __init__(self, costs: Sequence[ClockCosts], least_mhz: int, limit_s: float, full_at: int, most: int) -> None:
        self._full_at, self._most = full_at, most
        self._costs = tuple(cost for cost in costs if cost.freq_mhz >= least_mhz) or (costs[-1],)
        self._limit_s = limit_s

    @property
    def rule(self) -> DecodeRule | None:
        """None where a subclass may answer differently."""
        if type(self) is not DecodeGovernor:
            return None
        return DecodeRule(self._costs, self._limit_s, self._full_at, self._most)

    def look(self, queue: QueueView, now_s: float) -> int:
        del now_s
        requests = queue.decoding + len(queue.queued)
        over = max(0, requests - self._full_at) / (self._most - self._full_at)
        least = min(len(self._costs) - 1, math.ceil(over * (len(self._costs) - 1)))
        context_tokens = queue.context_tokens + sum(prompt.input_tokens for prompt in queue.queued)
        for cost in self._costs[least:-1]:
            if cost.decode_s(requests, context_tokens) <= self._limit_s:
                return cost.freq_mhz
        return self._costs[-1].freq_mhz
