"""The pure replica model stepped by wall time on simulated GPUs: timings and energy of a real engine, no model.

The engine keeps its own schedule: an iteration begins where the last one ended, not where the operating system woke
us, so a late wake-up delays delivery and never stretches the simulated work.

Prefill and decode may run on two engines. The KV cache then changes hands in no time: the link between two replicas
is not simulated here (the virtual-time cluster has one).
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from actors.gpu.drivers import ChargeableNode
from control_plane.domain import QueuedPrompt, QueueView, Role
from control_plane.hardware.gpu_model import IDLE
from control_plane.hardware.replica_model import PS_PER_S, IterationTimes, Progress, ReplicaLimits, ReplicaModel
from serve_apps.engines.output_length import end_of
from serve_apps.engines.pacing import drained, next_delivery
from serve_apps.engines.protocol import (
    Chunk,
    EngineError,
    EngineStats,
    EngineStoppedError,
    GenerateRequest,
    Handover,
    RequestRefusedError,
)
from serve_apps.engines.word_tokenizer import WordTokenizer

log = logging.getLogger(__name__)

PS_PER_NS = 1000


@dataclass(slots=True)
class _Stream:
    stop_after: int
    reason: str
    input_tokens: int
    arrival_s: float
    ttft_limit_s: float
    sent: int = 0
    done: bool = False
    cancelled: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class SimulatedEngine:
    """Runs on the GPUs ``indices`` of a simulated node, at whatever clock they have at each iteration's start.

    ``stream_interval_s`` is how often a stream sends its new tokens; 0 sends them after every iteration. ``load_s``
    is how long loading the model takes.
    """

    def __init__(
        self,
        times: IterationTimes,
        limits: ReplicaLimits,
        node: ChargeableNode,
        indices: Sequence[int],
        stream_interval_s: float,
        load_s: float = 0.0,
        role: Role = Role.COMBINED,
    ) -> None:
        self._model = ReplicaModel(times, limits)
        self._node, self._indices, self._role = node, tuple(indices), role
        self._stream_interval_s, self._load_s = stream_interval_s, load_s
        self._streams: dict[str, _Stream] = {}
        self._work = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._draining = False

    @property
    def tokenizer(self) -> WordTokenizer:
        return WordTokenizer()

    async def load(self) -> None:
        for index in self._indices:
            self._node.open_context(index, os.getpid())
        await asyncio.sleep(self._load_s)
        self._loop = asyncio.get_running_loop().create_task(self._run())

    def alive(self) -> bool:
        return self._loop is not None and not self._loop.done()

    def failure(self) -> BaseException | None:
        ended = self._loop is not None and self._loop.done() and not self._loop.cancelled()
        return self._loop.exception() if ended and self._loop is not None else None

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        stream = self._submit(request, *end_of(request))
        async with aclosing(self._deliver_to(request, stream)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def prefill(self, request: GenerateRequest) -> Handover:
        stop_after, reason = end_of(request)
        stream = self._submit(request, 1, reason)
        async with aclosing(self._deliver_to(request, stream)) as chunks:
            first = await anext(chunks)
        return Handover(first if stop_after == 1 else replace(first, finish_reason=None), {})

    async def decode(self, request: GenerateRequest, handover: Handover) -> AsyncGenerator[Chunk, None]:
        stream = self._submit(request, *end_of(request), already=handover.first.tokens)
        async with aclosing(self._deliver_to(request, stream)) as chunks:
            async for chunk in chunks:
                yield chunk

    def cancel(self, request_id: str) -> bool:
        stream = self._streams.pop(request_id, None)
        if stream is None or stream.done:
            return False
        self._model.cancel(request_id)
        stream.cancelled = True
        stream.changed.set()
        return True

    def stats(self) -> EngineStats:
        model, now_s = self._model, time.monotonic()
        queued_tokens, tightest_s = 0, None
        for key, left in model.without_first_token():
            queued_tokens += left
            stream = self._streams[str(key)]
            slack_s = stream.arrival_s + stream.ttft_limit_s - now_s
            tightest_s = slack_s if tightest_s is None else min(tightest_s, slack_s)
        return EngineStats(
            model.waiting,
            model.running,
            model.oldest_wait_ps(_now_ps()) / PS_PER_S,
            model.kv_used_tokens / model.limits.kv_tokens,
            queued_tokens,
            tightest_s,
        )

    def queue(self, freq_mhz: int) -> QueueView:
        model = self._model
        queued = []
        for key, left in model.without_first_token():
            stream = self._streams[str(key)]
            queued.append(QueuedPrompt(stream.arrival_s, stream.input_tokens, left, stream.ttft_limit_s))
        return QueueView(
            len(self._indices),
            self._role,
            freq_mhz,
            tuple(queued),
            model.decoding,
            model.context_tokens,
            model.kv_used_tokens,
            model.limits.kv_tokens,
        )

    async def drain(self, deadline_s: float) -> bool:
        self._draining = True
        return await drained(self._streams, self.alive, deadline_s)

    async def shutdown(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait({self._loop})
        for index in self._indices:
            self._node.close_context(index, os.getpid())

    def _submit(self, request: GenerateRequest, stop_after: int, reason: str, already: int = 0) -> _Stream:
        """``already``: tokens that another engine generated; their KV cache is here."""
        if not self.alive():
            raise EngineStoppedError("the engine has stopped" if self._loop else "the engine is not loaded yet")
        if self._draining:
            raise EngineStoppedError("the engine is draining and takes no more requests")
        try:
            self._model.submit(request.request_id, request.input_tokens, stop_after, _now_ps(), already > 0)
        except ValueError as error:
            raise RequestRefusedError(str(error)) from None
        arrival_s = time.monotonic() - request.waited_s
        stream = _Stream(stop_after, reason, request.input_tokens, arrival_s, request.ttft_limit_s, already)
        if already:
            stream.changed.set()
        self._streams[request.request_id] = stream
        self._work.set()
        return stream

    async def _deliver_to(self, request: GenerateRequest, stream: _Stream) -> AsyncGenerator[Chunk, None]:
        try:
            async for chunk in self._follow(request.request_id, stream):
                yield chunk
        finally:
            if self._streams.get(request.request_id) is stream:
                del self._streams[request.request_id]
                if not stream.done:
                    self._model.cancel(request.request_id)

    async def _follow(self, key: str, stream: _Stream) -> AsyncGenerator[Chunk, None]:
        await stream.changed.wait()
        while True:
            if stream.cancelled:
                raise EngineError(f"request {key} was cancelled")
            if not stream.done and not self.alive():
                raise EngineStoppedError("the engine stopped in the middle of a generation")
            done = stream.done  # it may change while a chunk is on its way
            total = stream.stop_after if done else max(stream.sent, self._model.generated(key))
            fresh, stream.sent = total - stream.sent, total
            stream.changed.clear()
            if fresh or done:
                yield Chunk(" tok" * fresh, fresh, stream.reason if done else None)
            if done:
                return
            await next_delivery(stream.changed, self._stream_interval_s)

    async def _run(self) -> None:
        try:
            await self._iterate()
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("the simulated engine's loop failed; this replica takes no more requests")
            raise
        finally:
            asyncio.get_running_loop().call_soon(self._wake_all)

    def _wake_all(self) -> None:
        for stream in self._streams.values():
            stream.changed.set()

    async def _iterate(self) -> None:
        now_ps = _now_ps()
        while True:
            freq_mhz = self._node.state(self._indices[0]).freq_mhz
            iteration = self._model.begin(freq_mhz)
            if iteration is None:
                self._node.set_activity(self._indices, IDLE, now_ps // PS_PER_NS)
                self._work.clear()
                await self._work.wait()
                now_ps = _now_ps()
                continue
            self._node.set_activity(self._indices, iteration.activity, now_ps // PS_PER_NS)
            now_ps += iteration.duration_ps
            await asyncio.sleep(max(0.0, (now_ps - _now_ps()) / PS_PER_S))
            self._deliver(self._model.complete())

    def _deliver(self, progress: Progress) -> None:
        for key in progress.finished:
            stream = self._streams.get(str(key))
            if stream is not None:
                stream.done = True
                stream.changed.set()
        if self._stream_interval_s == 0:
            self._wake_all()
            return
        for key in progress.first_token:
            stream = self._streams.get(str(key))
            if stream is not None:
                stream.changed.set()


def _now_ps() -> int:
    return time.monotonic_ns() * PS_PER_NS
