"""The pure replica model stepped by wall time on simulated GPUs: timings and energy of a real engine, no model.

The engine keeps its own schedule: an iteration begins where the last one ended, not where the operating system woke
us, so a late wake-up delays delivery and never stretches the simulated work.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from actors.gpu.drivers import ChargeableNode
from control_plane.hardware.gpu_model import IDLE
from control_plane.hardware.replica_model import IterationTimes, ReplicaLimits, ReplicaModel
from serve_apps.engines.protocol import Chunk, EngineError, EngineStats, GenerateRequest

log = logging.getLogger(__name__)

PS_PER_NS = 1000


@dataclass(slots=True)
class _Stream:
    stop_after: int
    reason: str
    sent: int = 0
    done: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class SimulatedEngine:
    """Runs on the GPUs ``indices`` of a simulated node, at whatever clock they have at each iteration's start."""

    def __init__(
        self,
        times: IterationTimes,
        limits: ReplicaLimits,
        node: ChargeableNode,
        indices: Sequence[int],
        stream_interval_s: float,
    ) -> None:
        self._model = ReplicaModel(times, limits)
        self._node, self._indices = node, tuple(indices)
        self._stream_interval_s = stream_interval_s
        self._streams: dict[str, _Stream] = {}
        self._work = asyncio.Event()
        for index in self._indices:
            node.open_context(index, os.getpid())
        self._loop = asyncio.get_running_loop().create_task(self._run())

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Chunk]:
        if self._loop.done():
            raise EngineError("the engine has stopped")
        stop_after = request.max_tokens if request.stop_after_tokens is None else request.stop_after_tokens
        reason = "stop" if stop_after <= request.max_tokens else "length"
        stream = _Stream(min(stop_after, request.max_tokens), reason)
        try:
            self._model.submit(request.request_id, request.input_tokens, stream.stop_after, _now_ps())
        except ValueError as error:
            raise EngineError(str(error)) from None
        self._streams[request.request_id] = stream
        self._work.set()
        try:
            async for chunk in self._follow(request.request_id, stream):
                yield chunk
        finally:
            del self._streams[request.request_id]
            if not stream.done:
                self._model.cancel(request.request_id)

    def stats(self) -> EngineStats:
        model = self._model
        return EngineStats(model.waiting, model.running, model.oldest_wait_ps(_now_ps()) / 1e12)

    def alive(self) -> bool:
        return not self._loop.done()

    async def shutdown(self) -> None:
        self._loop.cancel()
        self._release()

    def _release(self) -> None:
        for index in self._indices:
            self._node.close_context(index, os.getpid())

    async def _follow(self, key: str, stream: _Stream) -> AsyncIterator[Chunk]:
        await stream.changed.wait()
        while True:
            if self._loop.done() and not stream.done:
                raise EngineError("the engine stopped in the middle of a generation")
            done = stream.done  # it may change while a chunk is on its way
            total = stream.stop_after if done else self._model.generated(key)
            fresh, stream.sent = total - stream.sent, total
            stream.changed.clear()
            if fresh or done:
                yield Chunk(" tok" * fresh, fresh, stream.reason if done else None)
            if done:
                return
            try:
                await asyncio.wait_for(stream.changed.wait(), self._stream_interval_s)
            except TimeoutError:
                continue

    async def _run(self) -> None:
        try:
            await self._iterate()
        finally:
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
            await asyncio.sleep(max(0.0, (now_ps - _now_ps()) / 1e12))
            progress = self._model.complete()
            for key in progress.finished:
                stream = self._streams.get(str(key))
                if stream is not None:
                    stream.done = True
                    stream.changed.set()
            for key in progress.first_token:
                stream = self._streams.get(str(key))
                if stream is not None:
                    stream.changed.set()


def _now_ps() -> int:
    return time.monotonic_ns() * PS_PER_NS
