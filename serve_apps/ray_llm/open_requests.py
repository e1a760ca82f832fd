"""The requests of one ray.serve.llm replica as seen from outside its engine: what waits, what decodes, what a governor
may look at.

A request that does not stream shows nothing before its end. It counts as waiting for the time its prompt takes at full
clock, then as decoding at the pace of the others.
"""

from collections.abc import Callable
from dataclasses import dataclass

from control_plane.domain import QueuedPrompt, QueueView, Role
from serve_apps.engines.protocol import EngineStats, GenerateRequest
from serve_apps.ray_llm import scheduler_view


@dataclass(frozen=True, slots=True)
class Pace:
    """Of a replica at full clock: seconds a prompt token, an iteration and a decoded token take."""

    token_s: float
    base_s: float
    tbt_s: float

    def prompt_s(self, tokens: int) -> float:
        return self.base_s + tokens * self.token_s


@dataclass(slots=True)
class _Open:
    request: GenerateRequest
    began_s: float
    streams: bool
    tokens: float = 0.0


class OpenRequests:
    def __init__(self, tp: int, kv_tokens: int, pace: Pace, clock_s: Callable[[], float]) -> None:
        self._tp, self._kv_tokens, self._pace, self._clock_s = tp, kv_tokens, pace, clock_s
        self._open: dict[str, _Open] = {}

    def began(self, request: GenerateRequest, streams: bool) -> None:
        self._open[request.request_id] = _Open(request, self._clock_s(), streams)

    def progressed(self, request_id: str, tokens: float) -> None:
        self._open[request_id].tokens += tokens

    def ended(self, request_id: str) -> None:
        self._open.pop(request_id, None)

    def silent_progress(self) -> dict[str, float]:
        """Tokens that requests which do not stream are held to have made since the last call, at least."""
        now_s, made = self._clock_s(), {}
        for key, each in self._open.items():
            if not each.streams:
                decoding_s = now_s - each.began_s - self._pace.prompt_s(each.request.input_tokens)
                due = min(max(0.0, decoding_s / self._pace.tbt_s), float(each.request.max_tokens))
                if due > each.tokens:
                    made[key], each.tokens = due - each.tokens, due
        return made

    def stats(self) -> EngineStats:
        """The scheduler's own counts where it tells them, else what is seen here."""
        now_s = self._clock_s()
        waiting = [each for each in self._open.values() if not each.tokens]
        told = scheduler_view.seen(now_s) if self._open else None
        return EngineStats(
            len(waiting) if told is None else told.waiting,
            len(self._open) - len(waiting) if told is None else told.running,
            max((now_s - each.began_s for each in waiting), default=0.0),
            min(1.0, self._context_tokens() / self._kv_tokens) if told is None else told.kv_used_ratio,
            sum(each.request.input_tokens for each in waiting),
            min((each.began_s + each.request.ttft_limit_s - now_s for each in waiting), default=None),
        )

    def queue(self, freq_mhz: int) -> QueueView:
        waiting = sorted(
            (each for each in self._open.values() if not each.tokens),
            key=lambda each: each.began_s + each.request.ttft_limit_s,
        )
        prompts = tuple(
            QueuedPrompt(each.began_s, each.request.input_tokens, each.request.input_tokens, each.request.ttft_limit_s)
            for each in waiting
        )
        context = self._context_tokens()
        decoding = len(self._open) - len(waiting)
        return QueueView(self._tp, Role.COMBINED, freq_mhz, prompts, decoding, context, context, self._kv_tokens)

    def _context_tokens(self) -> int:
        return sum(each.request.input_tokens + int(each.tokens) for each in self._open.values() if each.tokens)
