"""What the engines have in common that hand requests to a batching library: the library computes, and here is the
account of who waits, whose first token is due first and what each stream was sent.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from control_plane.domain import QueuedPrompt, QueueView, Role
from serve_apps.engines.admission_queue import BatchLimits
from serve_apps.engines.charged_activity import ActivityCharge
from serve_apps.engines.model_tokenizer import ModelTokenizer
from serve_apps.engines.output_length import end_of
from serve_apps.engines.pacing import drained, next_delivery
from serve_apps.engines.protocol import (
    Chunk,
    EngineError,
    EngineStats,
    EngineStoppedError,
    GenerateRequest,
    RequestRefusedError,
)
from serve_apps.engines.text_stream import TextStream

log = logging.getLogger(__name__)

WATCH_S = 0.5
"""How soon streams hear that the library has died."""

S = TypeVar("S")
"""How a request's tokens are chosen, as the library takes it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is known once a model is loaded."""

    limits: BatchLimits
    context_tokens: int
    vocabulary_size: int


@dataclass(slots=True, eq=False)
class Stream(Generic[S]):
    """One generation. ``tokens`` are all of its answer so far; ``admitted``: the library has begun it."""

    key: str
    token_ids: Sequence[int]
    stop_after: int
    reason: str
    sampling: S
    arrival_s: float
    submitted_s: float
    ttft_limit_s: float
    tokens: Sequence[int] = ()
    admitted: bool = False
    finished: bool = False
    cancelled: bool = False
    error: str | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def due_s(self) -> float:
        return self.arrival_s + self.ttft_limit_s

    @property
    def context_tokens(self) -> int:
        return len(self.token_ids) + len(self.tokens)


class BatchedEngine(ABC, Generic[S]):
    """Implements ``protocol.Engine`` for combined replicas. Everything but the computation happens in the event loop
    that ``load`` is called in. ``stream_interval_s`` is how often a stream sends its new tokens, 0 after every
    iteration; ``tp`` is what the replica is planned as."""

    def __init__(self, tokenizer: ModelTokenizer, charge: ActivityCharge, stream_interval_s: float, tp: int) -> None:
        self._tokenizer, self._charge = tokenizer, charge
        self._stream_interval_s, self._tp = stream_interval_s, tp
        self._streams: dict[str, Stream[S]] = {}
        self._by_key: dict[str, Stream[S]] = {}
        """Streams that have not ended, by the key that the library knows them by: a cancelled request's id may come
        again before the library has let go of it."""
        self._numbers = count()
        self._loaded: Loaded | None = None
        self._watch: asyncio.Task[None] | None = None
        self._draining = self._stopped = False

    # What a library does.

    @abstractmethod
    async def _start(self) -> Loaded:
        """Raises EngineError."""

    @abstractmethod
    def _running(self) -> bool: ...
    @abstractmethod
    def failure(self) -> BaseException | None: ...
    @abstractmethod
    def _sampling_of(self, request: GenerateRequest, stop_after: int) -> S:
        """Raises RequestRefusedError for what the library does not honour."""

    @abstractmethod
    def _begin(self, stream: Stream[S]) -> None:
        """Queue the stream; ``_answered`` is called with what comes of it."""

    @abstractmethod
    def _abandon(self, stream: Stream[S]) -> None:
        """The library may forget the stream, wherever it is; called once for each."""

    @abstractmethod
    def _computed_tokens(self) -> int:
        """Of the iterations from now on."""

    @abstractmethod
    def _kv_used_tokens(self) -> int: ...
    @abstractmethod
    async def _stop(self) -> None: ...

    def _got_first_token(self, stream: Stream[S]) -> None:
        """The stream's prompt is computed."""
        del stream

    # The protocol.

    @property
    def tokenizer(self) -> ModelTokenizer:
        return self._tokenizer

    async def load(self) -> None:
        self._charge.open()
        self._loaded = await self._start()
        self._watch = asyncio.get_running_loop().create_task(self._tell_of_its_death())

    def alive(self) -> bool:
        return self._loaded is not None and not self._stopped and self._running()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        stream = self._submit(request)
        text = TextStream(self._tokenizer.decode, request.sampling.stop)
        sent = 0
        try:
            await stream.changed.wait()
            while True:
                self._raise_what_ended(request.request_id, stream)
                stream.changed.clear()
                done, fresh = stream.finished, stream.tokens[sent:]
                piece = text.push(fresh, done)
                sent += piece.tokens
                if piece.stopped:
                    yield Chunk(piece.text, piece.tokens, "stop")
                    return
                if fresh or done:
                    yield Chunk(piece.text, piece.tokens, stream.reason if done else None)
                if done:
                    return
                await next_delivery(stream.changed, self._stream_interval_s)
        finally:
            if self._streams.get(request.request_id) is stream:
                del self._streams[request.request_id]
            self._left(stream)

    def cancel(self, request_id: str) -> bool:
        stream = self._streams.pop(request_id, None)
        if stream is None or stream.finished:
            return False
        stream.cancelled = True
        self._left(stream)
        stream.changed.set()
        return True

    def stats(self) -> EngineStats:
        now_s = time.monotonic()
        without_first = [stream for stream in self._by_key.values() if not stream.tokens]
        waiting = [stream for stream in self._by_key.values() if not stream.admitted]
        return EngineStats(
            len(waiting),
            len(self._by_key) - len(waiting),
            max((now_s - stream.submitted_s for stream in waiting), default=0.0),
            0.0 if self._loaded is None else self._kv_used_tokens() / self._loaded.limits.kv_tokens,
            sum(len(stream.token_ids) for stream in without_first),
            min((stream.due_s - now_s for stream in without_first), default=None),
        )

    def queue(self, freq_mhz: int) -> QueueView:
        """A prompt's tokens count as left until its first token: the library does not say how far it has come."""
        streams = self._by_key.values()
        queued = sorted((stream for stream in streams if not stream.tokens), key=lambda stream: stream.due_s)
        decoding = [stream for stream in streams if stream.tokens]
        return QueueView(
            self._tp,
            Role.COMBINED,
            freq_mhz,
            tuple(
                QueuedPrompt(stream.arrival_s, len(stream.token_ids), len(stream.token_ids), stream.ttft_limit_s)
                for stream in queued
            ),
            len(decoding),
            sum(stream.context_tokens for stream in decoding),
            self._kv_used_tokens(),
            0 if self._loaded is None else self._loaded.limits.kv_tokens,
        )

    async def drain(self, deadline_s: float) -> bool:
        self._draining = True
        return await drained(self._streams, self.alive, deadline_s)

    async def shutdown(self) -> None:
        self._stopped = True
        if self._watch is not None:
            self._watch.cancel()
        self._wake_all()
        await self._stop()
        self._charge.iterate(0)
        self._charge.close()

    # Admission.

    def _submit(self, request: GenerateRequest) -> Stream[S]:
        if self._loaded is None:
            raise EngineStoppedError("the engine is not loaded yet")
        if not self.alive():
            raise EngineStoppedError("the engine has stopped")
        if self._draining:
            raise EngineStoppedError("the engine is draining and takes no more requests")
        if request.request_id in self._streams:
            raise RequestRefusedError(f"request {request.request_id} is here already")
        stop_after, reason = end_of(request)
        token_ids = request.token_ids or self._tokenizer.encode(request.prompt)
        _check(token_ids, stop_after, self._loaded)
        now_s = time.monotonic()
        stream = Stream(
            f"{request.request_id}#{next(self._numbers)}",
            token_ids,
            stop_after,
            reason,
            self._sampling_of(request, stop_after),
            now_s - request.waited_s,
            now_s,
            request.ttft_limit_s,
        )
        self._streams[request.request_id] = self._by_key[stream.key] = stream
        self._begin(stream)
        self._tell_charge()
        return stream

    def _tell_charge(self) -> None:
        self._charge.iterate(self._computed_tokens() if self.alive() else 0)

    def _answered(
        self, stream: Stream[S], tokens: Sequence[int], finished: bool, stopped: bool = False, error: str | None = None
    ) -> None:
        """The library has something new for a stream: ``tokens`` is its whole answer so far, ``stopped`` that the model
        ended it."""
        if stream.key not in self._by_key:
            return
        first = not stream.tokens and bool(tokens)
        stream.tokens = tokens
        if first:
            stream.admitted = True
            self._got_first_token(stream)
        if finished:
            stream.finished, stream.error = True, error
            if stopped:
                stream.reason = "stop"
            self._left(stream)
        elif first:
            self._tell_charge()
        if first or finished or self._stream_interval_s == 0:
            stream.changed.set()

    # How streams end.

    def _left(self, stream: Stream[S]) -> None:
        """The stream has ended, or nobody reads it any more."""
        if self._by_key.pop(stream.key, None) is not None:
            self._abandon(stream)
            self._tell_charge()

    def _raise_what_ended(self, request_id: str, stream: Stream[S]) -> None:
        if stream.cancelled:
            raise EngineError(f"request {request_id} was cancelled")
        if stream.finished and stream.error is None:
            return
        if not self.alive():
            raise EngineStoppedError("the engine stopped in the middle of a generation")
        if stream.error is not None:
            raise EngineError(f"request {request_id} failed: {stream.error}")

    async def _tell_of_its_death(self) -> None:
        """Streams that the library tells nothing hear of its end from here."""
        while self.alive():
            await asyncio.sleep(WATCH_S)
        log.error("the batching library has ended; this replica takes no more requests: %r", self.failure())
        self._charge.iterate(0)
        self._wake_all()

    def _wake_all(self) -> None:
        for stream in self._streams.values():
            stream.changed.set()


def _check(token_ids: Sequence[int], answer_tokens: int, loaded: Loaded) -> None:
    """Raises RequestRefusedError for a request that can never run here."""
    tokens, limits = len(token_ids) + answer_tokens, loaded.limits
    if not limits.fits(tokens):
        raise RequestRefusedError(f"prompt and answer have {tokens} tokens; the KV cache holds {limits.kv_tokens}")
    if tokens > loaded.context_tokens:
        raise RequestRefusedError(f"prompt and answer have {tokens} tokens; the model reads {loaded.context_tokens}")
    foreign = next((token for token in token_ids if not 0 <= token < loaded.vocabulary_size), None)
    if foreign is not None:
        raise RequestRefusedError(f"prompt: {foreign} is no token; the model has {loaded.vocabulary_size}")
