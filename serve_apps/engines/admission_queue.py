"""Which waiting request a batching library gets next: the one whose first token is due first, while there is room.

A library that serves first come, first served is handed a request only when it can begin it. A request is handed over
with room in the KV cache for its whole answer, so nothing is ever thrown out and computed again.
"""

import heapq
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """``kv_tokens``: what the cache holds, in pages of ``page_tokens``. ``batch_tokens``: most tokens in an iteration.
    ``batch_requests``: most requests in a batch."""

    kv_tokens: int
    page_tokens: int
    batch_tokens: int
    batch_requests: int

    def reserved(self, tokens: int) -> int:
        """Tokens of the pages that so many tokens take."""
        return -(-tokens // self.page_tokens) * self.page_tokens

    def fits(self, tokens: int) -> bool:
        """Whether an empty replica could hold a request with its whole answer."""
        return self.reserved(tokens) <= self.kv_tokens


@dataclass(slots=True)
class _Admitted:
    reserved_tokens: int
    left_prompt_tokens: int


class AdmissionQueue:
    """Pure: times are given by whoever asks. Requests are known by unique keys."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._waiting: dict[str, tuple[int, int]] = {}
        """(prompt tokens, reserved tokens) by key."""
        self._order: list[tuple[float, int, str]] = []
        self._pushed = 0
        self._admitted: dict[str, _Admitted] = {}
        self._reserved_tokens = self._prefill_tokens = 0

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens of admitted requests without a first token."""
        return self._prefill_tokens

    def push(self, key: str, due_s: float, prompt_tokens: int, answer_tokens: int) -> None:
        """``due_s``: when the first token is due. The request must fit."""
        self._waiting[key] = (prompt_tokens, self._limits.reserved(prompt_tokens + answer_tokens))
        self._pushed += 1
        heapq.heappush(self._order, (due_s, self._pushed, key))

    def admit(self) -> list[str]:
        """The requests to hand over now, in order: so many prompts that the next two iterations are full."""
        admitted = []
        while self._order:
            _, _, key = self._order[0]
            if key not in self._waiting:
                heapq.heappop(self._order)
                continue
            prompt_tokens, reserved_tokens = self._waiting[key]
            full = self._reserved_tokens + reserved_tokens > self._limits.kv_tokens
            busy = self._prefill_tokens >= 2 * self._limits.batch_tokens
            if full or busy or len(self._admitted) >= self._limits.batch_requests:
                break
            heapq.heappop(self._order)
            del self._waiting[key]
            self._admitted[key] = _Admitted(reserved_tokens, prompt_tokens)
            self._reserved_tokens += reserved_tokens
            self._prefill_tokens += prompt_tokens
            admitted.append(key)
        return admitted

    def first_token(self, key: str) -> None:
        """The prompt is computed."""
        admitted = self._admitted[key]
        self._prefill_tokens -= admitted.left_prompt_tokens
        admitted.left_prompt_tokens = 0

    def remove(self, key: str) -> bool:
        """The request has ended, wherever it was; whether it was with the library."""
        self._waiting.pop(key, None)
        admitted = self._admitted.pop(key, None)
        if admitted is None:
            return False
        self._reserved_tokens -= admitted.reserved_tokens
        self._prefill_tokens -= admitted.left_prompt_tokens
        return True
