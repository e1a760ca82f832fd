"""The governor of a replica that prefills and decodes: the lowest clock that keeps the limits of everybody who is here
and leaves room for those who may come before a higher one would be in force."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.domain import LONG_FROM_TOKENS, QueueView, Slo
from control_plane.serving.clock_costs import ClockCosts

REMEMBERED_S = 60.0
LATE_TARGET = 0.006
"""Of the first tokens, so many may be late."""
BOLDER = 0.0015
"""A first token in time makes the governor so much bolder; a late one takes back what ``1 / LATE_TARGET`` gave."""


@dataclass(frozen=True, slots=True)
class Caution:
    """What is left free for prompts that may come: of the limits, for standard deviations of what came lately, and for
    one prompt of so many tokens."""

    shorter: float
    long: float
    reserve_z: float
    next_tokens: float

    def towards(self, other: "Caution", boldness: float) -> "Caution":
        def between(mine: float, others: float) -> float:
            return mine + boldness * (others - mine)

        return Caution(
            between(self.shorter, other.shorter),
            between(self.long, other.long),
            between(self.reserve_z, other.reserve_z),
            between(self.next_tokens, other.next_tokens),
        )

    def share(self, input_tokens: int) -> float:
        return self.long if input_tokens >= LONG_FROM_TOKENS else self.shorter


CAUTIOUS = Caution(shorter=0.55, long=0.7, reserve_z=1.5, next_tokens=200.0)
BOLD = Caution(shorter=0.9, long=0.95, reserve_z=0.0, next_tokens=1.0)


class CombinedGovernor:
    """Every queued prompt ends within its share of its TTFT limit, decoders taking part in each of its passes; decoding
    alone takes no longer than ``decode_s`` an iteration; and a short prompt that comes next would still be in time.

    Ahead of all of them are the prompt tokens that come, by the mean of the last minute and ``reserve_z`` standard
    deviations of it, until a higher clock would be in force: a settling time and the pass under way.
    """

    def __init__(
        self,
        costs: Sequence[ClockCosts],
        least_mhz: int,
        slo: Slo,
        settle_s: float,
        boldness: float = 0.0,
        decode_s: float = 0.08,
    ) -> None:
        self._costs = tuple(cost for cost in costs if cost.freq_mhz >= least_mhz) or (costs[-1],)
        self._slo, self._settle_s, self._decode_s = slo, settle_s, decode_s
        self._boldness, self._caution = boldness, CAUTIOUS.towards(BOLD, boldness)
        self._tokens_per_s = self._squares_per_s = 0.0
        self._looked_s, self._newest_s = 0.0, -math.inf

    def look(self, queue: QueueView, now_s: float) -> int:
        self._note(queue, now_s)
        return next((cost.freq_mhz for cost in self._costs[:-1] if self._in_time(cost, queue, now_s)), self._top_mhz)

    def first_token(self, ttft_s: float, ttft_limit_s: float) -> None:
        """Adaptive conformal inference (Gibbs and Candès, NeurIPS 2021): in the long run ``LATE_TARGET`` are late, as
        far as caution decides on it."""
        step = BOLDER if ttft_s <= ttft_limit_s else BOLDER - BOLDER / LATE_TARGET
        self._boldness = min(1.0, max(0.0, self._boldness + step))
        self._caution = CAUTIOUS.towards(BOLD, self._boldness)

    @property
    def _top_mhz(self) -> int:
        return self._costs[-1].freq_mhz

    def _note(self, queue: QueueView, now_s: float) -> None:
        """What came since the last look, in a mean that forgets within a minute."""
        kept = math.exp(-max(0.0, now_s - self._looked_s) / REMEMBERED_S)
        self._tokens_per_s *= kept
        self._squares_per_s *= kept
        newest_s = self._newest_s
        for prompt in queue.queued:
            if prompt.arrival_s > self._newest_s:
                self._tokens_per_s += prompt.input_tokens / REMEMBERED_S
                self._squares_per_s += prompt.input_tokens**2 / REMEMBERED_S
                newest_s = max(newest_s, prompt.arrival_s)
        self._newest_s, self._looked_s = newest_s, now_s

    def _in_time(self, cost: ClockCosts, queue: QueueView, now_s: float) -> bool:
        decoding, contexts_s = queue.decoding, cost.context_s * queue.context_tokens
        if cost.decode_s(decoding + len(queue.queued), queue.context_tokens) > self._decode_s:
            return False
        room = max(1, cost.most_tokens - decoding)
        left = sum(prompt.left_tokens for prompt in queue.queued)
        until_s = self._settle_s + cost.pass_s[min(cost.most_tokens, decoding + min(left, room))] + contexts_s
        caution = self._caution
        ahead = self._tokens_per_s * until_s + caution.reserve_z * math.sqrt(self._squares_per_s * until_s)

        def prefilled_s(tokens: float) -> float:
            full, rest = divmod(int(tokens), room)
            last_s = cost.pass_s[decoding + rest] + contexts_s if rest else 0.0
            return full * (cost.pass_s[cost.most_tokens] + contexts_s) + last_s

        for prompt in queue.queued:
            ahead += prompt.left_tokens
            due_s = (
                prompt.arrival_s + self._caution.share(prompt.input_tokens) * prompt.ttft_limit_s - self._settle_s / 2
            )
            if now_s + prefilled_s(ahead) + cost.own_attention_s(prompt.input_tokens) > due_s:
                return False
        return prefilled_s(ahead + caution.next_tokens) + self._settle_s / 2 <= self._slo.ttft_medium_s
